//! From several dense models to one mixture of them.

use std::path::Path;

use serde::Serialize;

use super::{
    rewrite::{ModelWriter, SIDE_FILES, Watch, WrittenModel, dtype, torch_name},
    seeds::{Seed, Sizes, read_seeds},
};
use crate::{
    Cancel, Error, Result,
    tasks::MAX_TOKENIZER,
    weights::{Dtype, NewFolder, TensorInfo, TensorPlan},
};

/// The spread of a new MLP router's weights.
const ROUTER_STD: f64 = 0.02;
/// Values that are made at a time.
const BLOCK: usize = 1 << 14;

/// How to make a mixture of dense models.
#[derive(Default, Debug, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(default, deny_unknown_fields)]
pub struct UpcycleOptions<'a> {
    kv: KvSharing,
    router_seed: u64,
    #[serde(skip)]
    watch: Watch<'a>,
}

/// Whose keys and values an attention expert sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[cfg_attr(feature = "typescript", derive(ts_rs::TS))]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KvSharing {
    /// Its own. As many caches as experts; the better of the two in the paper.
    #[default]
    Expert,
    /// Those of all: projected by the mean of the seeds' matrices, in one cache.
    Shared,
}

impl<'a> UpcycleOptions<'a> {
    /// Keys and values for each expert, router seed 0, no progress reports.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whose keys and values an attention expert sees.
    pub fn kv(mut self, kv: KvSharing) -> Self {
        self.kv = kv;
        self
    }

    /// Decides the MLP routers' weights: the same seed gives the same bytes on every machine.
    pub fn router_seed(mut self, seed: u64) -> Self {
        self.router_seed = seed;
        self
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

/// Writes a BAM mixture (arXiv 2408.08274) of dense Llama models of the same shape and tokenizer.
///
/// Each model's attention becomes an attention expert, all of which run, weighted by a router that begins at zero
/// and so weights them equally. Each model's MLP becomes one of the experts of which a token takes one; that router
/// begins with small random numbers. Embeddings, output head and norms are the element-wise means of the models'.
/// A norm is not folded into the matrices behind it, so where the models' norms differ their experts see inputs
/// scaled in another way than they were trained with: a mixture is where training begins.
///
/// `models` are at least two folders, `out` is a new or an empty one; it appears when it is complete. Weights keep
/// their type. Host memory does not grow with the models: a few MiB for each of them.
///
/// # Errors
/// Fewer than two models, one that is not a dense Llama, and whatever differs between them: the message names the
/// file, the field and both values. Also what the system reports.
pub fn upcycle_bam(
    models: &[impl AsRef<Path>],
    out: impl AsRef<Path>,
    options: UpcycleOptions<'_>,
) -> Result<WrittenModel> {
    let models: Vec<&Path> = models.iter().map(AsRef::as_ref).collect();
    pollster::block_on(upcycle(&models, out.as_ref(), options))
}

async fn upcycle(models: &[&Path], out: &Path, options: UpcycleOptions<'_>) -> Result<WrittenModel> {
    let folder = NewFolder::create(out, models)?;
    let (seeds, sizes, tokenizer) = read_seeds(models).await?;
    let mixture = Mixture::plan(&seeds, &sizes, options.kv)?;
    let config = BamConfig {
        model_type: "bam",
        model: &sizes,
        bam: Bam {
            experts: seeds.len(),
            kv: match options.kv {
                KvSharing::Expert => "expert",
                KvSharing::Shared => "shared",
            },
            parallel_block: false,
            mlp_top_k: 1,
            mlp_gate: "softmax_topk",
        },
        torch_dtype: torch_name(mixture.router),
    };

    let plans: Vec<_> = mixture.tensors.iter().map(|(plan, _)| plan.clone()).collect();
    let mut writer = ModelWriter::create(folder, &plans, options.watch)?;
    let mut random = Random(options.router_seed);
    for (plan, content) in &mixture.tensors {
        match content {
            Content::Mean(name) => mean(&mut writer, &plan.name, &seeds, name).await?,
            Content::Stack(names) => stack(&mut writer, &plan.name, &seeds, names).await?,
            Content::Zeros => fill(&mut writer, plan, mixture.router, || 0.0)?,
            Content::Random => fill(&mut writer, plan, mixture.router, || ROUTER_STD * random.normal())?,
        }
    }
    if let Some(json) = tokenizer {
        writer.tokenizer(&json)?;
    }
    if let Some((first, others)) = seeds.split_first() {
        writer.side_files(&first.source).await?;
        note_differences(&mut writer, first, others).await?;
    }
    writer.note("embeddings, output head and norms are means of the seeds'; norms are not folded");
    writer.note("all attention experts weigh the same and the MLP routers are random: train before use");
    writer.finish(&config, &seeds.iter().map(|seed| &seed.source).collect::<Vec<_>>())
}

/// Says which of the files that the first model gave are not as those of the others.
async fn note_differences(writer: &mut ModelWriter<'_>, first: &Seed, others: &[Seed]) -> Result<()> {
    for name in SIDE_FILES {
        let of_first = first.source.read_small(name, MAX_TOKENIZER).await?;
        for other in others {
            if other.source.read_small(name, MAX_TOKENIZER).await? != of_first {
                writer.note(format!(
                    "{name} is as the first model has it; {} differs",
                    other.source.path_of(name)
                ));
                break;
            }
        }
    }
    Ok(())
}

/// The `config.json` of a mixture.
#[derive(Serialize)]
struct BamConfig<'a> {
    model_type: &'static str,
    #[serde(flatten)]
    model: &'a Sizes,
    bam: Bam,
    torch_dtype: &'static str,
}

#[derive(Serialize)]
struct Bam {
    experts: usize,
    kv: &'static str,
    parallel_block: bool,
    mlp_top_k: usize,
    mlp_gate: &'static str,
}

/// What a tensor of the mixture is made of.
enum Content {
    /// The mean of the seeds' tensors of this name.
    Mean(String),
    /// For each seed in turn its tensors of these names, below each other.
    Stack(Vec<String>),
    Zeros,
    Random,
}

/// The tensors of a mixture, in the order of the file.
struct Mixture<'a> {
    seeds: &'a [Seed],
    tensors: Vec<(TensorPlan, Content)>,
    /// The type of the routers: that of the embeddings.
    router: Dtype,
}

impl<'a> Mixture<'a> {
    fn plan(seeds: &'a [Seed], sizes: &Sizes, kv: KvSharing) -> Result<Self> {
        let n = seeds.len();
        let [width, hidden] = [sizes.width, sizes.hidden];
        let (q, kv_width) = (sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim);
        let embedding = "model.embed_tokens.weight";
        let first = seeds.first().map(|seed| (seed, seed.tensor(embedding)));
        let Some((seed, table)) = first else { return Err(Error::argument("models", 0, "at least two")) };
        let mut mixture = Mixture { seeds, tensors: Vec::new(), router: dtype(&seed.checkpoint, table?)? };

        mixture.mean(embedding, &[sizes.vocab, width])?;
        for layer in 0..sizes.layers {
            let name = |name: &str| format!("model.layers.{layer}.{name}.weight");
            mixture.mean(&name("input_layernorm"), &[width])?;
            mixture.router(name("self_attn.router"), &[n, width], Content::Zeros);
            let seed = [name("self_attn.q_proj")];
            mixture.stack(name("self_attn.experts.q_proj"), &[n, q, width], &seed)?;
            for part in ["k_proj", "v_proj"] {
                let name = name(&format!("self_attn.{part}"));
                match kv {
                    KvSharing::Expert => mixture.stack(name.clone(), &[n * kv_width, width], &[name])?,
                    KvSharing::Shared => mixture.mean(&name, &[kv_width, width])?,
                }
            }
            let seed = [name("self_attn.o_proj")];
            mixture.stack(name("self_attn.experts.o_proj"), &[n, width, q], &seed)?;
            mixture.mean(&name("post_attention_layernorm"), &[width])?;
            mixture.router(name("mlp.router"), &[n, width], Content::Random);
            let seed = [name("mlp.gate_proj"), name("mlp.up_proj")];
            mixture.stack(name("mlp.experts.gate_up_proj"), &[n, 2 * hidden, width], &seed)?;
            mixture.stack(name("mlp.experts.down_proj"), &[n, width, hidden], &[name("mlp.down_proj")])?;
        }
        mixture.mean("model.norm.weight", &[width])?;
        if !sizes.tied {
            mixture.mean("lm_head.weight", &[sizes.vocab, width])?;
        }
        Ok(mixture)
    }

    fn mean(&mut self, name: &str, shape: &[usize]) -> Result<()> {
        self.add(name.to_owned(), shape, &[name.to_owned()], Content::Mean(name.to_owned()))
    }

    fn stack(&mut self, name: String, shape: &[usize], of: &[String]) -> Result<()> {
        self.add(name, shape, of, Content::Stack(of.to_vec()))
    }

    fn router(&mut self, name: String, shape: &[usize], content: Content) {
        let stored = match self.router {
            Dtype::F32 => safetensors::Dtype::F32,
            Dtype::F16 => safetensors::Dtype::F16,
            Dtype::Bf16 => safetensors::Dtype::BF16,
            Dtype::Packed => safetensors::Dtype::U32,
        };
        self.tensors.push((TensorPlan::new(name, stored, shape), content));
    }

    /// Adds a tensor made of the seeds' tensors `of`, which must all be of one type.
    fn add(&mut self, name: String, shape: &[usize], of: &[String], content: Content) -> Result<()> {
        let mut first: Option<(&Seed, &TensorInfo)> = None;
        for (seed, part) in self.seeds.iter().flat_map(|seed| of.iter().map(move |part| (seed, part))) {
            let tensor = seed.tensor(part)?;
            let (first_seed, first) = *first.get_or_insert((seed, tensor));
            if tensor.stored != first.stored {
                let field = format!("tensor {part:?}, dtype");
                let place = format!("tensor {:?} of {}", first.name, first_seed.checkpoint.path(first));
                let expected = format!("{}, as {place} has", first.stored);
                return Err(Error::bad_file(seed.checkpoint.path(tensor), field, tensor.stored, expected));
            }
        }
        if let Some((_, tensor)) = first {
            self.tensors.push((TensorPlan::new(name, tensor.stored, shape), content));
        }
        Ok(())
    }
}

/// Writes the seeds' tensors below each other.
async fn stack(writer: &mut ModelWriter<'_>, name: &str, seeds: &[Seed], of: &[String]) -> Result<()> {
    for seed in seeds {
        for part in of {
            writer.copy(name, &seed.source, &seed.checkpoint, seed.tensor(part)?).await?;
        }
    }
    Ok(())
}

/// Writes the mean of the seeds' tensors, summed in f64 and rounded once.
async fn mean(writer: &mut ModelWriter<'_>, name: &str, seeds: &[Seed], of: &str) -> Result<()> {
    let mut streams = Vec::with_capacity(seeds.len());
    for seed in seeds {
        streams.push(seed.checkpoint.stream(&seed.source, vec![seed.tensor(of)?]));
    }
    let (mut sum, mut values, mut bytes) = (Vec::<f64>::new(), Vec::new(), Vec::new());
    loop {
        let mut dtype = None;
        sum.clear();
        // Shapes and types are the same, so the chunks have the same rows.
        for stream in &mut streams {
            let Some(chunk) = stream.next().await? else { return Ok(()) };
            chunk.to_f32(&mut values);
            sum.resize(values.len(), 0.0);
            sum.iter_mut().zip(&values).for_each(|(sum, &value)| *sum += f64::from(value));
            dtype = Some(chunk.dtype);
        }
        let Some(dtype) = dtype else { return Ok(()) };
        sum.iter_mut().for_each(|sum| *sum /= seeds.len() as f64);
        bytes.clear();
        dtype.encode(&sum, &mut bytes);
        writer.write(name, &bytes)?;
    }
}

/// Writes values that come from nowhere.
fn fill(
    writer: &mut ModelWriter<'_>,
    plan: &TensorPlan,
    dtype: Dtype,
    mut value: impl FnMut() -> f64,
) -> Result<()> {
    let mut left: usize = plan.shape.iter().product();
    let mut bytes = Vec::new();
    while left > 0 {
        let values: Vec<f64> = (0..left.min(BLOCK)).map(|_| value()).collect();
        left -= values.len();
        bytes.clear();
        dtype.encode(&values, &mut bytes);
        writer.write(&plan.name, &bytes)?;
    }
    Ok(())
}

/// Random numbers from a seed: SplitMix64, a counter in steps of the golden ratio, each count scrambled.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of mean 0 and variance 1, close to normal: the sum of twelve uniform numbers of 32 bits, less 6.
    /// Unlike a logarithm or a cosine, that is the same on every machine.
    fn normal(&mut self) -> f64 {
        let sum: u64 = (0..12).map(|_| self.bits() >> 32).sum();
        sum as f64 / (1u64 << 32) as f64 - 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_the_published_sequence_and_nearly_normal() {
        // The first outputs of SplitMix64 for seed 0.
        let mut random = Random(0);
        assert_eq!([random.bits(), random.bits()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);

        let mut random = Random(7);
        let values: Vec<f64> = (0..100_000).map(|_| random.normal()).collect();
        let mean = |f: &dyn Fn(f64) -> f64| values.iter().map(|&v| f(v)).sum::<f64>() / values.len() as f64;
        assert!(mean(&|v| v).abs() < 0.01 && (mean(&|v| v * v) - 1.0).abs() < 0.02);
        assert!((mean(&|v| f64::from(v.abs() < 1.0)) - 0.683).abs() < 0.01);
    }
}
