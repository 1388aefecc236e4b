//! A model folder whose matrices are quantised, from one whose are not.

use std::{collections::HashMap, path::Path};

use safetensors::Dtype as Stored;
use serde_json::{Map, Value, json};

use super::rewrite::{ModelWriter, Watch, WrittenModel};
use crate::{
    Cancel, Error, Result,
    models::{Blueprint, CONFIG_FILE, MAX_CONFIG_BYTES, read_config},
    ops::{MatrixShape, Precision, QUANTIZED_GROUP},
    tasks::{MAX_TOKENIZER, ModelInfo, TOKENIZER_FILE},
    weights::{
        Checkpoint, Form, Layout, Loss, NewFolder, QUANTIZATION_FIELD, QUANTIZATION_VERSION, Request, Source,
        TensorInfo, TensorPlan, pack_matrix, packed_plan,
    },
};

/// How to quantise.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(deny_unknown_fields)]
pub struct QuantizeOptions<'a> {
    scheme: Precision,
    #[serde(skip)]
    watch: Watch<'a>,
}

impl<'a> QuantizeOptions<'a> {
    /// Matrices as [`Precision::Q8`], [`Precision::Q4`] or [`Precision::F16`].
    pub fn new(scheme: Precision) -> Self {
        Self { scheme, watch: Watch::default() }
    }

    /// Called with the bytes written so far and in all, from 0 to the end.
    pub fn progress(mut self, progress: impl FnMut(u64, u64) + 'a) -> Self {
        self.watch.progress = Some(Box::new(progress));
        self
    }

    /// Lets another thread or handler stop the writing, with [`Error::Cancelled`]; nothing is left of it then.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.watch.cancel = cancel.clone();
        self
    }
}

/// What becomes of a matrix or a tensor.
enum Job<'a> {
    /// A matrix in groups, as the GPU has it.
    Pack(&'a Request, MatrixShape, Layout),
    /// A tensor in f16.
    Narrow(&'a TensorInfo),
    /// A tensor as it is.
    Copy(&'a TensorInfo),
}

/// Writes the model in the folder `input` once more, with its matrices in another precision.
///
/// Loading the result gives the same bits on the GPU as loading the original in that precision. Embeddings, routers of
/// two layers and matrices whose rows are not whole groups of 32 become f16; norms, biases and routers of one layer keep
/// their type. `out` is a new or an empty folder; it appears when it is complete. Host memory holds one matrix in its
/// new form, and a few rows of the old one (one expert's matrix, where the file has it input-major).
///
/// # Errors
/// What loading `input` would report; a model that is quantised already; values that the scheme cannot store; a file that
/// changes under way; an `out` that cannot be written or is within `input`; what the system reports.
pub fn quantize(
    input: impl AsRef<Path>,
    out: impl AsRef<Path>,
    options: QuantizeOptions<'_>,
) -> Result<WrittenModel> {
    pollster::block_on(write(input.as_ref(), out.as_ref(), options))
}

async fn write(input: &Path, out: &Path, options: QuantizeOptions<'_>) -> Result<WrittenModel> {
    let QuantizeOptions { scheme, watch } = options;
    if scheme == Precision::F32 {
        return Err(Error::argument("scheme", scheme.name(), "q8, q4 or f16"));
    }
    let folder = NewFolder::create(out, &[input])?;
    let source = Source::steady_folder(input);
    let (blueprint, checkpoint) = Blueprint::read(&source).await?;
    if let Some(already) = checkpoint.quantization() {
        let why = format!("this model is in {} already; quantise the one it came from", already.name());
        let file = source.path_of(CONFIG_FILE);
        return Err(Error::Unsupported { file, field: QUANTIZATION_FIELD.to_owned(), why });
    }
    let requests = &blueprint.requests;
    let info = ModelInfo::new(&blueprint, &checkpoint);
    let config = config(&source, &checkpoint, requests, scheme).await?;
    let mut jobs = jobs(&checkpoint, requests, scheme);
    // Larger types first, so that all values are aligned.
    jobs.sort_by_key(|(plan, _)| std::cmp::Reverse(plan.stored.bitsize()));

    let (plans, jobs): (Vec<TensorPlan>, Vec<Job<'_>>) = jobs.into_iter().unzip();
    let mut writer = ModelWriter::create(folder, &plans, watch)?;
    for (plan, job) in plans.iter().zip(&jobs) {
        match job {
            Job::Pack(request, shape, layout) => {
                let packed = pack_matrix(&source, &checkpoint, request, (shape, *layout), scheme).await?;
                writer.write(&plan.name, &packed)?;
            }
            Job::Copy(tensor) => writer.copy(&plan.name, &source, &checkpoint, tensor).await?,
            Job::Narrow(tensor) => {
                let mut stream = checkpoint.stream(&source, vec![tensor]);
                let (mut narrow, mut loss) = (Vec::new(), Loss::default());
                while let Some(chunk) = stream.next().await? {
                    chunk.to_f16(&mut narrow, &mut loss)?;
                    let bytes: Vec<u8> = narrow.iter().flat_map(|bits| bits.to_le_bytes()).collect();
                    writer.write(&plan.name, &bytes)?;
                }
                loss.check(checkpoint.path(tensor), &tensor.name, Precision::F16)?;
            }
        }
    }
    if let Some(json) = source.read_text(TOKENIZER_FILE, MAX_TOKENIZER).await? {
        writer.tokenizer(&json)?;
    }
    writer.side_files(&source).await?;
    writer.parameters(info.parameters);
    info.notes.iter().for_each(|note| writer.note(note));
    if scheme.is_quantized() && !info.kept_f16.is_empty() {
        let head = if info.tied_head { "; the embedding table is the output head too" } else { "" };
        writer.note(format!("f16: {}{head}", info.kept_f16.join(", ")));
    }
    writer.finish(&config, &[&source])
}

/// What the new file holds, matrices in the order of the model, then the rest.
fn jobs<'a>(
    checkpoint: &'a Checkpoint,
    requests: &'a [Request],
    scheme: Precision,
) -> Vec<(TensorPlan, Job<'a>)> {
    let mut jobs = Vec::new();
    // Tensors that are stored as such, each once, and whether all that is made of them is a matrix.
    let mut plain: Vec<&TensorInfo> = Vec::new();
    let mut matrices: HashMap<&str, bool> = HashMap::new();
    for request in requests {
        let matrix = match request.form {
            Form::Matrix(shape, layout) if request.precision(scheme).is_quantized() => {
                let (name, shape_in_file) = packed_plan(request, &shape, scheme);
                let plan = TensorPlan::new(name, Stored::U32, &shape_in_file);
                jobs.push((plan, Job::Pack(request, shape, layout)));
                continue;
            }
            form => matches!(form, Form::Matrix(..)),
        };
        for tensor in request.pieces.iter().filter_map(|piece| checkpoint.tensor(&piece.name)) {
            match matrices.get_mut(tensor.name.as_str()) {
                Some(all) => *all &= matrix,
                None => {
                    matrices.insert(&tensor.name, matrix);
                    plain.push(tensor);
                }
            }
        }
    }
    for tensor in plain {
        let narrow = matrices.get(tensor.name.as_str()) == Some(&true) && tensor.stored != Stored::F16;
        let stored = if narrow { Stored::F16 } else { tensor.stored };
        let plan = TensorPlan::new(&tensor.name, stored, &tensor.shape);
        jobs.push((plan, if narrow { Job::Narrow(tensor) } else { Job::Copy(tensor) }));
    }
    jobs
}

/// The original's config, which says besides what is quantised.
async fn config(
    source: &Source,
    checkpoint: &Checkpoint,
    requests: &[Request],
    scheme: Precision,
) -> Result<Map<String, Value>> {
    let file = source.path_of(CONFIG_FILE);
    let mut config = read_config(source).await?.into_object();
    if !scheme.is_quantized() {
        for name in ["torch_dtype", "dtype"] {
            if let Some(dtype) = config.get_mut(name) {
                *dtype = "float16".into();
            }
        }
        return Ok(config);
    }
    let quantized = requests.iter().filter(|request| request.precision(scheme).is_quantized());
    let tensors = quantized.flat_map(|request| &request.pieces);
    let tensors = tensors.filter_map(|piece| checkpoint.tensor(&piece.name)).map(TensorInfo::listed);
    let object = json!({
        "version": QUANTIZATION_VERSION,
        "scheme": scheme.name(),
        "group": QUANTIZED_GROUP,
        "tensors": tensors.collect::<Map<_, _>>(),
    });
    config.insert(QUANTIZATION_FIELD.to_owned(), object);
    match serde_json::to_string_pretty(&config).map_or(0, |text| text.len() as u64 + 1) {
        bytes if bytes > MAX_CONFIG_BYTES => {
            let expected = format!("at most {MAX_CONFIG_BYTES}, or nothing would read it");
            Err(Error::bad_file(file, "bytes, with the list of its tensors", bytes, expected))
        }
        _ => Ok(config),
    }
}
