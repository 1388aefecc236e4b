//! What a selftest found.

use serde::Serialize;

use crate::Capabilities;

/// What became of a row of a [`SelftestReport`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SelftestStatus {
    /// Every number is within its limit.
    Ok,
    /// Some number is not.
    Wrong,
    /// The device did not do it: a kernel that its driver does not compile, a lost device.
    Failed,
    /// Not tried: the device has not what it takes.
    Refused,
    /// Something that is otherwise than elsewhere, on which headwise does not depend.
    Note,
}

/// One kernel in one variant, one property of the driver, or a model's text.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct SelftestRow {
    /// The kernel, as its file in `shaders/` is named; `driver` and `text` for the others.
    pub kernel: &'static str,
    /// Its variant, or what is looked at.
    pub variant: String,
    /// What became of it.
    pub status: SelftestStatus,
    /// Inputs that were tried.
    pub cases: u32,
    /// The largest error in times of its limit belongs to this one: relative to the largest value, or to 1; the share of wrong
    /// values where they must be exact. None where nothing was computed, or what was is no number.
    pub error: Option<f64>,
    /// What that error may be.
    pub limit: f64,
    /// Why it is not ok, or what was found.
    pub remark: Option<String>,
    /// Seconds that it took, compiling and the reference included.
    pub seconds: f64,
}

/// What [`Gpu::selftest`](crate::Gpu::selftest) found.
#[derive(Clone, Debug, Serialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[non_exhaustive]
pub struct SelftestReport {
    /// headwise's version.
    pub version: &'static str,
    /// Whether no row is wrong and none failed.
    pub ok: bool,
    /// The adapter that was tested.
    pub adapter: Capabilities,
    /// The variant that headwise runs there of each kernel that has more than one.
    pub kernels: Vec<(&'static str, &'static str)>,
    /// What was tested, in the order in which it was.
    pub rows: Vec<SelftestRow>,
    /// Seconds of all.
    pub seconds: f64,
}

impl SelftestStatus {
    /// Whether the device must not be trusted.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::Wrong | Self::Failed)
    }
}
