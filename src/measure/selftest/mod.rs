//! Whether a device computes right: each kernel in each variant that it may run against f64 on the CPU, what drivers are known
//! to do otherwise, and a text of the demo model.
//!
//! A variant runs as it would in earnest: on the same device, opened as if with the choice that means it.

mod attention;
mod captures;
mod driver;
mod edits;
mod finding;
mod lab;
mod linear;
mod report;
mod routing;
mod rows;
#[cfg(feature = "tokenizer")]
mod text;
mod tokens;

use finding::Finding;
use lab::Lab;
pub use report::{SelftestReport, SelftestRow, SelftestStatus};

use crate::{
    Error, Result,
    gpu::{Capabilities, Clock, Gpu, KernelChoice, WasmNotSend},
    ops::{Variants, choose_kernels},
};

/// The choices that between them run every variant.
const CHOICES: [KernelChoice; 6] = [
    KernelChoice::Plain,
    KernelChoice::Broadcast,
    KernelChoice::Workgroup,
    KernelChoice::Subgroup,
    KernelChoice::F16,
    KernelChoice::Packed,
];

/// Is told of each row.
#[cfg(not(target_arch = "wasm32"))]
type Progress<'a> = Box<dyn FnMut(&SelftestRow) + Send + 'a>;
#[cfg(target_arch = "wasm32")]
type Progress<'a> = Box<dyn FnMut(&SelftestRow) + 'a>;

/// What to test. With serde that is its filter; callbacks, and the model of the row `text`, are left out.
#[derive(Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct Selftest<'a> {
    filter: Option<String>,
    #[serde(skip)]
    progress: Option<Progress<'a>>,
    #[cfg(feature = "tokenizer")]
    #[serde(skip)]
    text: Option<text::Greedy>,
    #[serde(skip)]
    spoiled: Option<String>,
}

impl std::fmt::Debug for Selftest<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Selftest").field("filter", &self.filter).finish_non_exhaustive()
    }
}

impl<'a> Selftest<'a> {
    /// Everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only rows whose name, `kernel variant`, contains this text: `routed_matvec`, `routed_matmul packed`, `driver`, `text`.
    pub fn filter(mut self, text: impl Into<String>) -> Self {
        self.filter = Some(text.into());
        self
    }

    /// Calls `progress` with each row: when it begins, without a case, and again after each of its cases.
    pub fn progress(mut self, progress: impl FnMut(&SelftestRow) + WasmNotSend + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }

    /// The row `text` is of this model: `expected` is what it must write greedily behind `prompt`, in `tokens` tokens. Without it
    /// the row is of the demo model, where the program carries that, and else there is none.
    #[cfg(feature = "tokenizer")]
    pub fn text(
        mut self,
        model: crate::Source,
        prompt: impl Into<String>,
        expected: impl Into<String>,
        tokens: usize,
    ) -> Self {
        self.text = Some(text::Greedy { model, prompt: prompt.into(), expected: expected.into(), tokens });
        self
    }

    /// Changes a word of all that this kernel writes, so that a test can see it found out.
    #[doc(hidden)]
    pub fn spoiled(mut self, kernel: impl Into<String>) -> Self {
        self.spoiled = Some(kernel.into());
        self
    }
}

impl Gpu {
    /// Tests whether this device computes right, in a minute or two: the same inputs in every run. What a driver refuses or gets
    /// wrong is a row of the report. The device's own errors stay apart, but a kernel that hangs may cost the device.
    ///
    /// # Errors
    /// [`Error::Argument`] where the filter fits no row; [`Error::DeviceLost`] where the device was lost before.
    pub async fn selftest(&self, selftest: Selftest<'_>) -> Result<SelftestReport> {
        let clock = Clock::start();
        let mut labs = Vec::new();
        for choice in CHOICES {
            labs.push(Lab::new(self, choice)?);
        }
        let mut run = Run { selftest, rows: Vec::new(), done: Vec::new() };
        linear::check(&mut run, &labs).await;
        attention::check(&mut run, &labs).await;
        routing::check(&mut run, &labs).await;
        rows::check(&mut run, &labs).await;
        edits::check(&mut run, &labs).await;
        captures::check(&mut run, &labs).await;
        tokens::check(&mut run, &labs).await;
        if let Some(lab) = labs.first() {
            driver::check(&mut run, lab).await;
        }
        choose_kernels(self).await;
        #[cfg(feature = "tokenizer")]
        text::check(&mut run, &Lab::own(self)).await;
        run.refuse(self.capabilities());
        if run.rows.is_empty() {
            let found = run.selftest.filter.unwrap_or_default();
            return Err(Error::argument("filter", found, "a part of a row's name, such as routed_matvec"));
        }
        Ok(SelftestReport {
            version: env!("CARGO_PKG_VERSION"),
            ok: !run.rows.iter().any(|row| row.status.is_bad()),
            adapter: self.capabilities().clone(),
            kernels: Variants::of(self).names(),
            rows: run.rows,
            seconds: clock.seconds(),
        })
    }
}

/// Kernel, variant, and input.
type Case = (&'static str, String, String);

/// A selftest under way.
struct Run<'a> {
    selftest: Selftest<'a>,
    rows: Vec<SelftestRow>,
    /// Cases by kernel and variant: several choices may mean one variant.
    done: Vec<Case>,
}

impl Run<'_> {
    /// Does a case of a kernel in a variant, unless another choice did or the filter leaves it out.
    async fn case(
        &mut self,
        lab: &Lab,
        (kernel, variant): (&'static str, &str),
        case: &str,
        work: impl Future<Output = Result<Finding>>,
    ) {
        let Some(index) = self.begin_case(lab, (kernel, variant), case) else { return };
        let clock = Clock::start();
        let found = lab.gpu.attempt(kernel, work).await;
        self.end_case(index, case, found, clock);
    }

    /// The index of the case's row, where there is something to do.
    fn begin_case(&mut self, lab: &Lab, name: (&'static str, &str), case: &str) -> Option<usize> {
        let (kernel, variant) = name;
        let key = (kernel, variant.to_owned(), case.to_owned());
        if self.done.contains(&key) || !self.wants(kernel, variant) {
            return None;
        }
        self.done.push(key);
        lab.spoil(self.selftest.spoiled.as_deref() == Some(kernel));
        Some(self.row(kernel, variant))
    }

    fn end_case(&mut self, index: usize, case: &str, found: Result<Finding>, clock: Clock) {
        self.rows[index].add(case, found, clock.seconds());
        self.tell(index);
    }

    /// Looks at something that need not be as elsewhere; what is otherwise is a note.
    async fn look(
        &mut self,
        lab: &Lab,
        (kernel, what): (&'static str, &str),
        work: impl Future<Output = Result<Option<String>>>,
    ) {
        if !self.wants(kernel, what) {
            return;
        }
        let clock = Clock::start();
        let index = self.row(kernel, what);
        lab.spoil(false);
        let found = lab.gpu.attempt(kernel, work).await;
        let row = &mut self.rows[index];
        match found {
            Ok(None) => row.add(what, Ok(Finding { error: 0.0, limit: 0.0 }), clock.seconds()),
            Ok(Some(remark)) => {
                (row.status, row.remark) = (SelftestStatus::Note, Some(remark));
                row.seconds = clock.seconds();
            }
            Err(error) => row.add(what, Err(error), clock.seconds()),
        }
        self.tell(index);
    }

    fn wants(&self, kernel: &str, variant: &str) -> bool {
        let filter = self.selftest.filter.as_deref();
        filter.is_none_or(|filter| format!("{kernel} {variant}").contains(filter))
    }

    /// The index of a row.
    fn row(&mut self, kernel: &'static str, variant: &str) -> usize {
        let found = self.rows.iter().position(|row| row.kernel == kernel && row.variant == variant);
        found.unwrap_or_else(|| self.begin(SelftestRow::new(kernel, variant)))
    }

    fn begin(&mut self, row: SelftestRow) -> usize {
        let index = self.rows.len();
        self.rows.push(row);
        self.tell(index);
        index
    }

    fn tell(&mut self, index: usize) {
        if let Some(progress) = &mut self.selftest.progress {
            progress(&self.rows[index]);
        }
    }

    /// Rows for the variants that the device cannot run, with the reason.
    fn refuse(&mut self, capabilities: &Capabilities) {
        let subgroups = match capabilities.subgroups {
            None => "the device has no subgroups".to_owned(),
            Some((least, most)) => format!("subgroups of {least} to {most}, expected all of 4, 8 or 16"),
        };
        let of_one_size = [
            "routed_matvec",
            "routed_matmul",
            "row_attention_decode",
            "rope_attention_decode",
            "row_attention_prefill",
        ];
        let f16 = "the device has no 16-bit arithmetic";
        let all = of_one_size.map(|kernel| (kernel, "broadcast", subgroups.as_str()));
        let others = [("routed_matvec", "subgroup", subgroups.as_str()), ("routed_matmul", "f16", f16)];
        for (kernel, variant, why) in all.into_iter().chain(others) {
            let is = |row: &SelftestRow| row.kernel == kernel && row.variant == variant;
            if self.wants(kernel, variant) && !self.rows.iter().any(is) {
                let remark = Some(why.to_owned());
                let row = SelftestRow::new(kernel, variant);
                self.begin(SelftestRow { status: SelftestStatus::Refused, remark, ..row });
            }
        }
    }
}

impl SelftestRow {
    fn new(kernel: &'static str, variant: &str) -> Self {
        Self {
            kernel,
            variant: variant.to_owned(),
            status: SelftestStatus::Ok,
            cases: 0,
            error: None,
            limit: 0.0,
            remark: None,
            seconds: 0.0,
        }
    }

    /// Counts a case; the first that is bad gives the remark.
    fn add(&mut self, case: &str, found: Result<Finding>, seconds: f64) {
        self.cases += 1;
        self.seconds += seconds;
        let before = self.error.map(|error| Finding { error, limit: self.limit });
        match found {
            Ok(finding) => {
                let worst = before.map_or(finding, |before| before.and(finding));
                (self.error, self.limit) = (Some(worst.error).filter(|error| error.is_finite()), worst.limit);
                if !finding.is_right() && !self.status.is_bad() {
                    self.status = SelftestStatus::Wrong;
                    self.remark = Some(format!("{case}: {finding}"));
                }
            }
            Err(error) if !self.status.is_bad() => {
                self.status = SelftestStatus::Failed;
                self.remark = Some(format!("{case}: {error}"));
            }
            Err(_) => {}
        }
    }
}
