//! The dense models that a mixture is made of, and that they fit each other.

use std::path::Path;

use serde::{Serialize, Serializer, ser::SerializeMap};
use serde_json::Value;

use crate::{
    Error, Result,
    models::{Blueprint, CONFIG_FILE, read_config},
    tasks::{MAX_TOKENIZER, TOKENIZER_FILE},
    weights::{
        Checkpoint, Fields, QUANTIZATION_FIELD, Source, TensorInfo, limits::MOST_EXPERTS, quote, shown,
    },
};

/// A dense model.
pub(super) struct Seed {
    pub source: Source,
    pub checkpoint: Checkpoint,
}

impl Seed {
    /// The tensor of this name.
    pub fn tensor(&self, name: &str) -> Result<&TensorInfo> {
        self.checkpoint.tensor(name).ok_or_else(|| {
            let folder = self.source.path_of("");
            Error::bad_file(folder, format!("tensor {}", quote(name)), "none", "one, as a dense Llama has")
        })
    }
}

/// The sizes that all seeds have, and the fields that say so in the mixture's config.
#[derive(Debug)]
pub(super) struct Sizes {
    pub vocab: usize,
    pub width: usize,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub tied: bool,
    fields: Vec<(&'static str, Value)>,
}

/// Opens the models and compares their configs, shapes and tokenizers. The last of the three is the tokenizer that
/// they share.
///
/// # Errors
/// Fewer than two models, more than a mixture may have, one that is not a dense Llama, and any difference.
pub(super) async fn read_seeds(models: &[&Path]) -> Result<(Vec<Seed>, Sizes, Option<Vec<u8>>)> {
    if !(2..=MOST_EXPERTS).contains(&models.len()) {
        return Err(Error::argument("models", models.len(), format!("2 to {MOST_EXPERTS} dense models")));
    }
    let mut seeds = Vec::with_capacity(models.len());
    let mut shared: Option<(Sizes, String)> = None;
    for model in models {
        let source = Source::steady_folder(model);
        let (sizes, checkpoint) = read_seed(&source).await?;
        let config = source.path_of(CONFIG_FILE);
        match &shared {
            None => shared = Some((sizes, config)),
            Some((first, path)) => first.compare(path, &sizes, &config)?,
        }
        seeds.push(Seed { source, checkpoint });
    }
    let tokenizer = shared_tokenizer(&seeds).await?;
    // Not reached without: there are at least two models.
    let (sizes, _) = shared.ok_or_else(|| Error::argument("models", 0, "at least two"))?;
    Ok((seeds, sizes, tokenizer))
}

/// Reads a dense Llama's config and the headers of its tensors, whose shapes it checks.
async fn read_seed(source: &Source) -> Result<(Sizes, Checkpoint)> {
    let (blueprint, checkpoint) = Blueprint::read(source).await?;
    let file = source.path_of(CONFIG_FILE);
    if blueprint.family != "llama" {
        let field = format!("the family {}", blueprint.family);
        let why = "a mixture is made of dense models in Llama's layout, without `moh`".to_owned();
        return Err(Error::Unsupported { file, field, why });
    }
    if checkpoint.quantization().is_some() {
        let why = "a mixture is made of the weights themselves, before they are quantised".to_owned();
        return Err(Error::Unsupported { file, field: QUANTIZATION_FIELD.into(), why });
    }
    Ok((Sizes::read(&read_config(source).await?, blueprint.names.head.shared)?, checkpoint))
}

impl Sizes {
    /// Reads what the family's reader has accepted, as values: they are written again as they were.
    /// `tied` is whether the head is the embedding table, which the files may decide.
    fn read(fields: &Fields<'_>, tied: bool) -> Result<Self> {
        let size = |name| fields.size(&[name], usize::MAX);
        let (width, heads) = (size("hidden_size")?, size("num_attention_heads")?);
        let kv_heads = fields.optional_size(&["num_key_value_heads"], usize::MAX)?.unwrap_or(heads);
        let head_dim = fields.optional_size(&["head_dim"], usize::MAX)?.unwrap_or(width / heads);
        let mut sizes = Sizes {
            vocab: size("vocab_size")?,
            width,
            hidden: size("intermediate_size")?,
            layers: size("num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            tied,
            fields: Vec::new(),
        };
        let or = |names: &[&'static str], default: Value| {
            Ok::<_, Error>(fields.get(names)?.map_or(default, |(_, value)| value.clone()))
        };
        sizes.fields = vec![
            ("vocab_size", sizes.vocab.into()),
            ("hidden_size", width.into()),
            ("intermediate_size", sizes.hidden.into()),
            ("num_hidden_layers", sizes.layers.into()),
            ("num_attention_heads", heads.into()),
            ("num_key_value_heads", kv_heads.into()),
            ("head_dim", head_dim.into()),
            ("rms_norm_eps", or(&["rms_norm_eps"], Value::Null)?),
            (
                "rope_theta",
                or(&["rope_theta", "rope_parameters.rope_theta", "rope_scaling.rope_theta"], 1e4.into())?,
            ),
            ("max_position_embeddings", size("max_position_embeddings")?.into()),
            ("tie_word_embeddings", sizes.tied.into()),
            ("hidden_act", "silu".into()),
            ("bos_token_id", or(&["bos_token_id"], Value::Null)?),
            ("eos_token_id", or(&["eos_token_id"], Value::Null)?),
        ];
        Ok(sizes)
    }

    /// Compares with the `other` config, at `place`; this one is at `path`.
    fn compare(&self, path: &str, other: &Sizes, place: &str) -> Result<()> {
        for ((name, first), (_, second)) in self.fields.iter().zip(&other.fields) {
            if first != second && (first.as_f64().is_none() || first.as_f64() != second.as_f64()) {
                return Err(Error::bad_file(place, *name, second, format!("{first}, as in {path}")));
            }
        }
        Ok(())
    }
}

/// Only the fields of a config, in their usual order.
impl Serialize for Sizes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.fields.iter().filter(|(_, value)| !value.is_null()) {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

// -- tokenizers --------------------------------------------------------------------------------------

/// The tokenizer of all seeds, if they have one.
async fn shared_tokenizer(seeds: &[Seed]) -> Result<Option<Vec<u8>>> {
    let mut first: Option<(Option<Vec<u8>>, String)> = None;
    for Seed { source, .. } in seeds {
        let json = source.read_text(TOKENIZER_FILE, MAX_TOKENIZER).await?;
        let path = source.path_of(TOKENIZER_FILE);
        match &first {
            None => first = Some((json, path)),
            Some((same, _)) if *same == json => {}
            Some((Some(first), first_path)) if json.is_some() => {
                compare_tokenizers(first, first_path, json.as_deref().unwrap_or_default(), &path)?;
            }
            Some((first, first_path)) => {
                let is = |there: bool| if there { "a file" } else { "no file" };
                let expected = format!("{}, as {first_path} is", is(first.is_some()));
                return Err(Error::bad_file(path, "tokenizer", is(json.is_some()), expected));
            }
        }
    }
    Ok(first.and_then(|(json, _)| json))
}

/// Compares two tokenizers as JSON: the same one may be laid out in two ways.
fn compare_tokenizers(first: &[u8], first_path: &str, other: &[u8], path: &str) -> Result<()> {
    let parse = |json: &[u8], path: &str| {
        serde_json::from_slice::<Value>(json).map_err(|e| Error::bad_file(path, "JSON", e, "a tokenizer"))
    };
    match difference(&parse(first, first_path)?, &parse(other, path)?) {
        None => Ok(()),
        Some((field, first, other)) => {
            let field = format!("tokenizer{}", quote(&field).trim_matches('"'));
            Err(Error::bad_file(path, field, other, format!("{first}, as in {first_path}")))
        }
    }
}

/// The first place where two values differ, and what each has there.
fn difference(first: &Value, other: &Value) -> Option<(String, String, String)> {
    match (first, other) {
        _ if first == other => None,
        (Value::Object(a), Value::Object(b)) => {
            let keys = a.keys().chain(b.keys());
            let mut found = keys.filter_map(|key| {
                let (a, b) = (a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null));
                difference(a, b).map(|(place, a, b)| (format!(".{key}{place}"), a, b))
            });
            found.next()
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut pairs = a.iter().zip(b).enumerate();
            pairs
                .find_map(|(i, (a, b))| difference(a, b).map(|(place, a, b)| (format!("[{i}]{place}"), a, b)))
        }
        _ => Some((String::new(), shown(first), shown(other))),
    }
}
