//! The tokens that start and end a text.

use crate::{
    Result,
    weights::{Fields, Source},
};

/// What a model folder says of writing; `config.json` said so before there was this file.
const GENERATION_FILE: &str = "generation_config.json";
/// The longest that is read; published ones have under 1 kB.
const MAX_GENERATION_BYTES: u64 = 1 << 20;

/// The tokens that start and end a text. Ids that the vocabulary does not have are left out: no text can hold them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ends {
    pub bos: Option<u32>,
    pub eos: Vec<u32>,
}

impl Ends {
    /// What `config.json` says, for a vocabulary of so many tokens.
    pub fn read(config: &Fields<'_>, vocab: u32) -> Result<Self> {
        let known = |name| -> Result<Vec<u32>> {
            let ids = config.tokens(name)?.into_iter();
            Ok(ids.filter_map(|id| u32::try_from(id).ok()).filter(|&id| id < vocab).collect())
        };
        Ok(Self { bos: known("bos_token_id")?.first().copied(), eos: known("eos_token_id")? })
    }

    /// Of a model that writes: `generation_config.json` has the last word, as in transformers. Of a field that it does not
    /// have `config.json` speaks.
    pub async fn of_writer(source: &Source, config: &Fields<'_>, vocab: u32) -> Result<Self> {
        let generation = Fields::read(source, GENERATION_FILE, MAX_GENERATION_BYTES).await?;
        let mut ends = Self::read(config, vocab)?;
        let Some(generation) = generation else { return Ok(ends) };
        let Self { bos, eos } = Self::read(&generation, vocab)?;
        if !generation.tokens("bos_token_id")?.is_empty() {
            ends.bos = bos;
        }
        if !generation.tokens("eos_token_id")?.is_empty() {
            ends.eos = eos;
        }
        Ok(ends)
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::weights::Source;

    /// For a vocabulary of 300, with these files.
    fn ends(config: &str, generation: Option<&str>) -> Result<(Option<u32>, Vec<u32>)> {
        let files = generation.map(|text| (GENERATION_FILE.to_owned(), text.as_bytes().to_vec()));
        let source = Source::memory("m", files);
        let config = Fields::parse(config.as_bytes(), "m/config.json")?;
        let Ends { bos, eos } = pollster::block_on(Ends::of_writer(&source, &config, 300))?;
        Ok((bos, eos))
    }

    #[test]
    fn the_generation_config_has_the_last_word() {
        // transformers 5.24: `GenerationConfig.from_pretrained` where the file is there, else `from_model_config`.
        let config = r#"{"bos_token_id": 1, "eos_token_id": 2}"#;
        for (generation, bos, eos) in [
            (None, Some(1), vec![2]),
            (
                Some(r#"{"eos_token_id": [2, 269], "bos_token_id": 1, "temperature": NaN}"#),
                Some(1),
                vec![2, 269],
            ),
            (Some(r#"{"eos_token_id": 269}"#), Some(1), vec![269]),
            (Some(r#"{"bos_token_id": 3}"#), Some(3), vec![2]),
            (Some(r#"{"eos_token_id": null}"#), Some(1), vec![2]),
            (Some(r#"{"eos_token_id": 300, "bos_token_id": -1}"#), None, vec![]),
            (Some("{}"), Some(1), vec![2]),
        ] {
            assert_eq!(ends(config, generation).unwrap(), (bos, eos), "{generation:?}");
        }
        assert_eq!(
            ends(r#"{"eos_token_id": null}"#, Some(r#"{"eos_token_id": [2, 269]}"#)).unwrap(),
            (None, vec![2, 269])
        );
        assert_eq!(ends(r#"{"eos_token_id": [300, 2, -1, 2.0]}"#, None).unwrap(), (None, vec![2, 2]));
        for (generation, part) in [
            (
                r#"{"eos_token_id": "</s>"}"#,
                "m/generation_config.json: eos_token_id: found \"</s>\", expected a token id",
            ),
            ("", "m/generation_config.json: content: found an empty file"),
            ("[]", "m/generation_config.json: JSON: found"),
        ] {
            let error = ends(config, Some(generation)).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
