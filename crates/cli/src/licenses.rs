//! `headwise licenses`

use clap::Args;

use super::{failure::Failure, output};

/// `scripts/notices` writes it.
const NOTICES: &str = include_str!("../THIRD-PARTY-NOTICES");

/// Print the licences of headwise and of all that it is made of
#[derive(Args)]
pub struct LicensesArgs {}

pub fn run(_: &LicensesArgs) -> Result<(), Failure> {
    output::line(NOTICES.trim_end())
}
