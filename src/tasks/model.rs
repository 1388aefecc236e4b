//! A loaded model.

use std::{fmt, sync::Arc};

use tracing::Instrument as _;

use super::ModelInfo;
#[cfg(any(doc, feature = "tokenizer"))]
use crate::Error;
use crate::{
    Cancel, Result,
    gpu::{Gpu, WasmNotSend},
    models::{Blueprint, Task, Transformer},
    ops::{CachePrecision, Precision, choose_kernels},
    probes::Edits,
    sessions::{Resolved, Session, SessionOptions},
    weights::{Checkpoint, Fingerprint, Source, Upload},
};

/// Whoever wants to know how much was read.
#[cfg(not(target_arch = "wasm32"))]
type Progress<'a> = Box<dyn FnMut(u64, u64) + Send + 'a>;
/// As natively, on the one thread of a browser.
#[cfg(target_arch = "wasm32")]
type Progress<'a> = Box<dyn FnMut(u64, u64) + 'a>;

/// How to load a model.
#[derive(Default, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct LoadOptions<'a> {
    precision: Option<Precision>,
    cache_precision: CachePrecision,
    #[serde(skip)]
    progress: Option<Progress<'a>>,
    warm_up: bool,
    #[serde(skip)]
    cancel: Cancel,
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { precision, cache_precision, warm_up, cancel, .. } = self;
        f.debug_struct("LoadOptions")
            .field("precision", precision)
            .field("cache_precision", cache_precision)
            .field("warm_up", warm_up)
            .field("cancel", cancel)
            .finish_non_exhaustive()
    }
}

impl<'a> LoadOptions<'a> {
    /// The files' own precision (bf16 becomes f16), a cache of f32, no progress reports.
    pub fn new() -> Self {
        Self::default()
    }

    /// How to store the weights on the GPU. With `Q8` and `Q4` matrices are quantised as they come; embeddings and
    /// the other [`ModelInfo::kept_f16`] stay f16.
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = Some(precision);
        self
    }

    /// How key/value caches hold their numbers: f32, or f16 in half the memory.
    pub fn cache_precision(mut self, precision: CachePrecision) -> Self {
        self.cache_precision = precision;
        self
    }

    /// Compiles the kernels while the weights come, by [`Model::warm_up`]. Natively that takes a second thread.
    pub fn warm_up(mut self, on: bool) -> Self {
        self.warm_up = on;
        self
    }

    /// Lets another thread or handler stop the loading, with [`Error::Cancelled`]; what was allocated is free then. The model does
    /// not keep the handle: [`Model::cancelled_by`] is for its work.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }

    /// Called with the bytes read so far and in all, from 0 to the end; `Send`, except in a browser.
    pub fn progress(mut self, progress: impl FnMut(u64, u64) + WasmNotSend + 'a) -> Self {
        self.progress = Some(Box::new(progress));
        self
    }
}

/// A model on a GPU: a handle, cheap to clone. Dropping the last clone and all sessions frees its memory.
#[derive(Clone)]
pub struct Model {
    pub(crate) gpu: Gpu,
    pub(crate) transformer: Arc<Transformer>,
    pub(crate) task: Task,
    /// Which model it is, by its sizes and its weights.
    fingerprint: u64,
    info: Arc<ModelInfo>,
    #[cfg(feature = "tokenizer")]
    tokenizer: Option<super::Tokenizer>,
    /// Change the work of this handle.
    pub(super) edits: Arc<Edits>,
    /// Ends the work of this handle.
    pub(crate) cancel: Cancel,
}

impl fmt::Debug for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ModelInfo { family, task, parameters, .. } = self.info();
        write!(f, "Model({family}, to {task}, {parameters} parameters)")
    }
}

/// All of a model but its weights.
pub(crate) struct Files {
    pub blueprint: Blueprint,
    pub checkpoint: Checkpoint,
    #[cfg(feature = "tokenizer")]
    pub tokenizer: Option<super::Tokenizer>,
}

impl Files {
    async fn read(source: &Source) -> Result<Self> {
        let (blueprint, checkpoint) = Blueprint::read(source).await?;
        // Images need none, and a browser would log that there is none.
        #[cfg(feature = "tokenizer")]
        let tokenizer = match &blueprint.task {
            Task::Classify(_) => None,
            _ => super::Tokenizer::read(source).await?,
        };
        Ok(Self {
            blueprint,
            checkpoint,
            #[cfg(feature = "tokenizer")]
            tokenizer,
        })
    }
}

impl Model {
    /// Reads all of a model but its weights, of which the headers do: what is wrong with it is known before gigabytes are
    /// fetched or read.
    ///
    /// # Errors
    /// What is wrong with a file, naming it.
    pub async fn check(source: &Source) -> Result<ModelInfo> {
        let Files { blueprint, checkpoint, .. } = Files::read(source).await?;
        Ok(ModelInfo::new(&blueprint, &checkpoint))
    }

    /// Loads a model folder: `config.json`, `generation_config.json` if there is one, safetensors in one file or several,
    /// and `tokenizer.json` if there is one.
    ///
    /// Memory is planned before anything is allocated, and weights stream: host memory does not grow with the
    /// model.
    ///
    /// # Errors
    /// What is wrong with a file, naming it; [`Error::TooLarge`] when the model does not fit; [`Error::Cancelled`].
    pub async fn load(gpu: &Gpu, source: &Source, options: LoadOptions<'_>) -> Result<Self> {
        let steady = source.steady();
        let source = steady.as_ref().unwrap_or(source);
        options.cancel.check()?;
        let span = tracing::info_span!("load", model = source.path_of(""), bytes = tracing::field::Empty);
        let loading = async {
            // What it waits for may never come.
            let files = options.cancel.ends(Files::read(source)).await?;
            Self::load_weights(gpu, source, files, options, &span).await
        };
        loading.instrument(span.clone()).await
    }

    /// Loads the weights of files that have been read, within `span`.
    pub(crate) async fn load_weights(
        gpu: &Gpu,
        source: &Source,
        files: Files,
        options: LoadOptions<'_>,
        span: &tracing::Span,
    ) -> Result<Self> {
        let Files {
            blueprint,
            checkpoint,
            #[cfg(feature = "tokenizer")]
            tokenizer,
        } = files;
        let info = ModelInfo::new(&blueprint, &checkpoint);
        info.notes.iter().for_each(|note| tracing::warn!("{note}"));
        let precision = info.precision(options.precision)?;
        let bytes = info.weight_bytes(precision);
        span.record("bytes", bytes);
        gpu.plan("the model", bytes)?;
        gpu.fits("the table of positions", blueprint.spec.position_bytes())?;
        options.cancel.check()?;
        choose_kernels(gpu).await;
        let Blueprint { spec, names, task, .. } = blueprint;
        let mut fingerprint = Fingerprint::new().with(format!("{spec:?}").as_bytes()).value();
        let mut upload = Upload::new(gpu, &checkpoint, precision);
        let layers = spec.layers(&names, &mut upload)?;
        gpu.check("allocating the model")?;
        let transformer = Transformer::new(spec, layers, (precision, options.cache_precision));
        let mut model = Self {
            gpu: gpu.clone(),
            transformer: Arc::new(transformer),
            task,
            fingerprint,
            info: Arc::new(info),
            #[cfg(feature = "tokenizer")]
            tokenizer,
            edits: Arc::default(),
            cancel: Cancel::new(),
        };
        let LoadOptions { mut progress, cancel, warm_up, .. } = options;
        let mut watch = |done, of| {
            progress.iter_mut().for_each(|told| told(done, of));
            cancel.flow()
        };
        let streaming = cancel.ends(upload.stream(source, &mut watch, &mut fingerprint));
        if warm_up {
            model.warm_up_while(streaming).await?;
        } else {
            streaming.await?;
        }
        model.fingerprint = fingerprint;
        // Weights of two versions are no model.
        cancel.ends(source.check_unchanged()).await?;
        tracing::info!(
            family = model.info.family,
            parameters = model.info.parameters,
            ?precision,
            "loaded model"
        );
        Ok(model)
    }

    /// Loads [`Source::demo`], the model that ships with headwise to generate text: 10 M parameters, English prose of
    /// four kinds. There is one for each other task too: [`Source::demo_translate`], [`Source::demo_fill`],
    /// [`Source::demo_classify`].
    ///
    /// # Errors
    /// As [`Model::load`].
    #[cfg(feature = "demo-model")]
    pub async fn demo(gpu: &Gpu) -> Result<Self> {
        Self::load(gpu, &Source::demo(), LoadOptions::new()).await
    }

    /// The same model, by a handle whose work `cancel` ends: all that is asked of it and of the sessions that it makes. What was
    /// done by then is kept, as [`Cancel`] says.
    pub fn cancelled_by(&self, cancel: &Cancel) -> Self {
        Self { cancel: Cancel::below([&self.cancel, cancel]), ..self.clone() }
    }

    /// The same model, by a handle whose work `edits` change, in place of those that this handle has: all that is asked of it, in
    /// whatever task, and of the sessions that it makes.
    ///
    /// ```
    /// use std::ops::ControlFlow;
    /// use headwise::{Edits, Generate, Gpu, GpuOptions, Model};
    ///
    /// # fn main() -> headwise::Result<()> {
    /// # headwise::block_on(async {
    /// let model = Model::demo(&Gpu::new(GpuOptions::new()).await?).await?;
    /// // Nobody may choose head expert 3 of layer 0, and head 5 of layer 1 is taken out.
    /// let edited = model.edited(&Edits::new().with("L0A3:masked".parse()?).with("L1H5:scale=0".parse()?))?;
    /// let greedy = Generate::new().greedy().max_new(8);
    /// let on_token = |_: &headwise::Token| ControlFlow::Continue(());
    /// let [plain, other] =
    ///     [model.generate("The king shall", &greedy, on_token).await?, edited.generate("The king shall", &greedy, on_token).await?];
    /// println!("{:?}\n{:?}", plain.text, other.text);
    /// # Ok(()) })
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Argument`] that names an edit of what the model does not have.
    pub fn edited(&self, edits: &Edits) -> Result<Self> {
        Resolved::new(&self.transformer.spec, edits)?;
        Ok(Self { edits: Arc::new(edits.clone()), ..self.clone() })
    }

    /// What changes the work of this handle.
    pub fn edits(&self) -> &Edits {
        &self.edits
    }

    /// Makes a session: sequences on the GPU, to be worked on one step at a time. It owns what it needs, so it may outlive the
    /// model. A model that translates has [`Model::translate`] instead, one that looks at images [`Model::classify`].
    ///
    /// # Errors
    /// A model that translates or classifies, an option out of range, and [`Error::TooLarge`] before anything is allocated.
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        match self.task {
            Task::Translate { .. } | Task::Classify(_) => Err(self.wrong_task("generate or fill")),
            Task::Generate | Task::FillMask { .. } => self.any_session(options),
        }
    }

    /// A session of any model of one stack.
    pub(crate) fn any_session(&self, options: SessionOptions) -> Result<Session> {
        let mut session =
            Session::new(&self.gpu, &self.transformer, self.fingerprint, &self.cancel, options)?;
        session.set_edits(&self.edits)?;
        Ok(session)
    }

    /// What the model is.
    pub fn info(&self) -> &ModelInfo {
        &self.info
    }

    /// A number that tells the model from others, by its sizes and the first 4 KiB of each tensor as its files have it: what
    /// was computed from one model is then not taken for another's. It is no protection against intent.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The GPU it is on.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// How its weights are stored.
    pub fn precision(&self) -> Precision {
        self.transformer.precision
    }

    /// Its tokenizer.
    ///
    /// # Errors
    /// When the model folder has no `tokenizer.json`.
    #[cfg(feature = "tokenizer")]
    pub fn tokenizer(&self) -> Result<&super::Tokenizer> {
        self.tokenizer.as_ref().ok_or_else(|| {
            Error::bad_file("the model folder", "tokenizer.json", "nothing", "a tokenizer, to work with text")
        })
    }
}

/// Texts in.
#[cfg(feature = "tokenizer")]
impl Model {
    /// The ids of a text as [`super::Tokenizer::encode`] gives them. A text that is much longer than the model's context is
    /// refused before all of it is cut into tokens; for others, what the ids are given to counts them.
    ///
    /// # Errors
    /// No tokenizer, such a text, and what the tokenizer reports.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer()?.encode_for(text, self.info().context as usize)
    }

    /// [`Model::encode`], for a model that wants `end` at the end.
    pub(crate) fn encode_ending(&self, text: &str, end: u32) -> Result<Vec<u32>> {
        let mut ids = self.encode(text)?;
        if ids.last() != Some(&end) {
            ids.push(end);
        }
        Ok(ids)
    }
}

/// The models that ship with headwise (feature `demo-model`). A program carries only those that it names.
#[cfg(feature = "demo-model")]
impl Source {
    /// For [`Model::generate`]: English prose of four kinds (20 MB).
    pub fn demo() -> Self {
        let halves = [headwise_model_prose::FILES, headwise_model_prose_part_2::FILES];
        Source::embedded("models/prose", halves.into_iter().flatten())
    }

    /// For [`Model::translate`]: strings of user interfaces, English to German (20 MB).
    pub fn demo_translate() -> Self {
        let halves = [headwise_model_ui_en_de::FILES, headwise_model_ui_en_de_part_2::FILES];
        Source::embedded("models/ui-en-de", halves.into_iter().flatten())
    }

    /// For [`Model::fill`]: English strings of user interfaces (6 MB).
    pub fn demo_fill() -> Self {
        Source::embedded("models/ui-fill", headwise_model_ui_fill::FILES)
    }

    /// For [`Model::classify`]: photographs of clothes, 28 × 28 pixels (1 MB).
    pub fn demo_classify() -> Self {
        Source::embedded("models/fashion", headwise_model_fashion::FILES)
    }
}
