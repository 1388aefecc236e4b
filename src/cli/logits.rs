//! `headwise logits`

use headwise::{Source, internal::NewFile};

use super::{
    args::{LogitsArgs, Shared},
    failure::Failure,
    ids::Ids,
};

pub fn run(args: &LogitsArgs, shared: &Shared) -> Result<(), Failure> {
    let ids = match (&args.ids, &args.ids_file) {
        (Some(Ids(ids)), _) => ids.clone(),
        (None, Some(file)) => Ids::read(file)?.0,
        // clap asks for one of them.
        (None, None) => Vec::new(),
    };
    NewFile::check(&args.out)?;
    let model = args.model.load(shared, Source::demo)?;
    let logits = pollster::block_on(model.logits(&[&ids]))?;
    for sequence in logits {
        sequence.save(&args.out)?;
    }
    Ok(())
}
