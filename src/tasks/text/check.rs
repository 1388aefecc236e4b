//! What a `tokenizer.json` may say, checked before the library that runs it is given it.
//!
//! That library trusts its file: some contradictions make it panic, some make it work without end or fill the memory. Where
//! a browser runs this, a panic is the end, so whatever is known to go wrong is refused here, by name.

use std::{borrow::Cow, collections::HashMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use tokenizers::AddedVocabulary;

use super::{
    charsmap,
    growth::{self, parts},
};
use crate::weights::quote;

/// The longest token in bytes. Published vocabularies have runs of spaces of a few hundred.
const MAX_TOKEN: usize = 1024;
/// The most tokens and merges; the largest published vocabularies have some 260,000.
const MAX_TOKENS: usize = 1 << 21;
const MAX_MERGES: usize = 1 << 22;
/// The longest JSON of a component, and of a field that is not known.
const MAX_COMPONENT: usize = 4 << 20;
const MAX_UNKNOWN: usize = 64 << 10;
/// How deep the JSON of a component may nest, and how many objects it may have.
const MAX_DEPTH: usize = 24;
const MAX_OBJECTS: usize = 512;
/// The longest regular expression, and the most of one component.
const MAX_REGEX: usize = 32 << 10;
const MAX_REGEXES: usize = 32;
/// The longest word that a WordPiece model may cut: its time grows with the square. Published models have 100 or 200.
const MAX_WORD: u64 = 1000;
/// Pieces of a template, and ids of one of its special tokens.
const MAX_PIECES: usize = 64;
/// How many times as long a decoder may make a token.
const MAX_DECODED_GROWTH: u64 = 256;

/// What is known of a file that may be read.
#[derive(Debug)]
pub struct Checked {
    /// How many times as long its normalizers and pre-tokenizers may make a text.
    pub growth: u64,
}

/// What a file says wrong, and where.
type Found<T = ()> = Result<T, String>;

/// Checks a whole file.
pub fn check(json: &[u8]) -> Found<Checked> {
    let file: File = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    for added in file.added_tokens.iter().flatten() {
        check_token("added_tokens", &added.content)?;
    }
    check_model(&file.model)?;
    let normalizer = component("normalizer", file.normalizer)?;
    let pre_tokenizer = component("pre_tokenizer", file.pre_tokenizer)?;
    let decoder = component("decoder", file.decoder)?;
    component("post_processor", file.post_processor)?;
    let growth = growth::of(normalizer.iter().chain(&pre_tokenizer));
    bounded_growth("normalizer and pre_tokenizer", growth, growth::MAX)?;
    bounded_growth("decoder", growth::of(decoder.iter()), MAX_DECODED_GROWTH)?;
    Ok(Checked { growth })
}

/// Checks the added tokens of a file that has been read: one of which the normalizer makes nothing would be found
/// everywhere, between the bytes of a character, too.
pub fn check_added(added: &AddedVocabulary) -> Found {
    let mut ids: Vec<_> = added.get_added_tokens_decoder().iter().collect();
    ids.sort_unstable_by_key(|(id, _)| **id);
    let nothing =
        ids.into_iter().find(|(id, _)| added.simple_id_to_token(**id).is_some_and(|token| token.is_empty()));
    match nothing {
        None => Ok(()),
        Some((_, token)) => Err(format!(
            "added_tokens: found {}, of which the normalizer makes nothing",
            quote(&token.content)
        )),
    }
}

fn bounded_growth(place: &str, growth: u64, most: u64) -> Found {
    if growth <= most {
        return Ok(());
    }
    let times =
        if growth == u64::MAX { "without bound".to_owned() } else { format!("{growth} times as long") };
    Err(format!("{place}: found rules that may make a text grow {times}, expected at most {most} times"))
}

#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow, default)]
    added_tokens: Option<Vec<Added<'a>>>,
    #[serde(borrow, default)]
    normalizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    pre_tokenizer: Option<&'a RawValue>,
    #[serde(borrow, default)]
    post_processor: Option<&'a RawValue>,
    #[serde(borrow, default)]
    decoder: Option<&'a RawValue>,
    #[serde(borrow)]
    model: Model<'a>,
}

#[derive(Deserialize)]
struct Added<'a> {
    #[serde(borrow)]
    content: Cow<'a, str>,
}

// -- the model ---------------------------------------------------------------------------------------

/// Whatever some kind of model has.
#[derive(Default)]
struct Model<'a> {
    vocab: Option<Vocab<'a>>,
    merges: Option<Vec<(Text<'a>, Text<'a>)>>,
    prefix: Option<Cow<'a, str>>,
    suffix: Option<Cow<'a, str>>,
    unknown: Option<Cow<'a, str>>,
    unknown_id: Option<serde_json::Number>,
    longest_word: Option<serde_json::Number>,
    byte_fallback: bool,
}

enum Vocab<'a> {
    /// Ids by token.
    Ids(HashMap<Cow<'a, str>, u32>),
    /// Tokens and their scores, by id.
    Scores(Vec<(Text<'a>, f64)>),
}

fn check_model(model: &Model) -> Found {
    match &model.vocab {
        None => return Err("model.vocab: found nothing, expected the tokens".to_owned()),
        Some(Vocab::Ids(ids)) => check_ids(ids)?,
        Some(Vocab::Scores(tokens)) => {
            if let Some(id) = &model.unknown_id
                && id.as_u64().is_none_or(|id| id >= tokens.len() as u64)
            {
                return Err(format!("model.unk_id: found {id}, expected one of the {} tokens", tokens.len()));
            }
            for (token, score) in tokens {
                check_token("model.vocab", &token.0)?;
                if !score.is_finite() {
                    return Err(format!(
                        "model.vocab: found the score {score} of {}, expected a number",
                        quote(&token.0)
                    ));
                }
            }
        }
    }
    let small = [
        ("continuing_subword_prefix", &model.prefix),
        ("end_of_word_suffix", &model.suffix),
        ("unk_token", &model.unknown),
    ];
    for (field, text) in small {
        if let Some(text) = text {
            check_token(&format!("model.{field}"), text)?;
        }
    }
    if let Some(most) = &model.longest_word
        && most.as_u64().is_none_or(|most| most > MAX_WORD)
    {
        return Err(format!("model.max_input_chars_per_word: found {most}, expected at most {MAX_WORD}"));
    }
    match (&model.merges, &model.vocab) {
        (Some(merges), Some(Vocab::Ids(ids))) => check_merges(model, merges, ids),
        _ => Ok(()),
    }
}

fn check_ids(ids: &HashMap<Cow<str>, u32>) -> Found {
    let mut tokens: HashMap<u32, &str> = HashMap::with_capacity(ids.len());
    // The pair that is named is the same in every run.
    let mut twice: Option<(u32, [&str; 2])> = None;
    for (token, id) in ids {
        check_token("model.vocab", token)?;
        if let Some(other) = tokens.insert(*id, token)
            && twice.is_none_or(|(least, _)| *id < least)
        {
            let mut both = [other, token];
            both.sort_unstable();
            twice = Some((*id, both));
        }
    }
    match twice {
        None => Ok(()),
        Some((id, [one, other])) => Err(format!(
            "model.vocab: found {} and {} for the id {id}, expected one token",
            quote(one),
            quote(other)
        )),
    }
}

/// Each merge joins two tokens of the vocabulary, the second without the prefix, to a third.
fn check_merges(model: &Model, merges: &[(Text, Text)], ids: &HashMap<Cow<str>, u32>) -> Found {
    let prefix = model.prefix.as_deref().unwrap_or_default();
    let mut joined = String::new();
    for (index, (Text(left), Text(right))) in merges.iter().enumerate() {
        let wrong = |what: String| {
            Err(format!("model.merges: found {what} in merge {index}, expected tokens of the vocabulary"))
        };
        for part in [left, right] {
            if !ids.contains_key(part.as_ref()) {
                return wrong(quote(part));
            }
        }
        let Some(rest) = right.strip_prefix(prefix) else {
            let (right, prefix) = (quote(right), quote(prefix));
            return Err(format!(
                "model.merges: found {right} in merge {index}, expected it to begin with continuing_subword_prefix {prefix}"
            ));
        };
        joined.clear();
        joined.extend([left.as_ref(), rest]);
        if !ids.contains_key(joined.as_str()) {
            return wrong(format!("{}, the token that is made,", quote(&joined)));
        }
    }
    if model.byte_fallback && !(prefix.is_empty() && model.suffix.as_deref().unwrap_or_default().is_empty()) {
        return Err("model.byte_fallback: found it with a continuing_subword_prefix or an end_of_word_suffix, expected neither".to_owned());
    }
    Ok(())
}

fn check_token(place: &str, token: &str) -> Found {
    if token.len() > MAX_TOKEN {
        let (found, token) = (token.len(), quote(token));
        return Err(format!("{place}: found {token} of {found} bytes, expected at most {MAX_TOKEN}"));
    }
    Ok(())
}

/// A text that is not copied where it stands as it is.
#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Model<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Model<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a model")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut model = Model::default();
                let mut seen = Vec::new();
                while let Some(Text(field)) = map.next_key::<Text>()? {
                    match field.as_ref() {
                        "vocab" => model.vocab = Some(map.next_value()?),
                        "merges" => model.merges = map.next_value::<Option<Merges>>()?.map(|merges| merges.0),
                        "continuing_subword_prefix" => {
                            model.prefix = map.next_value::<Option<Text>>()?.map(|text| text.0)
                        }
                        "end_of_word_suffix" => {
                            model.suffix = map.next_value::<Option<Text>>()?.map(|text| text.0)
                        }
                        "unk_token" => model.unknown = map.next_value::<Option<Text>>()?.map(|text| text.0),
                        "unk_id" => model.unknown_id = map.next_value()?,
                        "max_input_chars_per_word" => model.longest_word = map.next_value()?,
                        "byte_fallback" => {
                            model.byte_fallback = map.next_value::<Option<bool>>()?.unwrap_or_default();
                        }
                        _ => {
                            let value: &RawValue = map.next_value()?;
                            if value.get().len() > MAX_UNKNOWN {
                                return Err(A::Error::custom(format!(
                                    "model.{}: found {} bytes, expected at most {MAX_UNKNOWN}",
                                    field.escape_debug(),
                                    value.get().len()
                                )));
                            }
                        }
                    }
                    if seen.contains(&field) || seen.len() > 64 {
                        return Err(A::Error::custom(format!(
                            "model: found {field:?} twice, or too many fields"
                        )));
                    }
                    seen.push(field);
                }
                Ok(model)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Vocab<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tokens;
        impl<'de> Visitor<'de> for Tokens {
            type Value = Vocab<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("ids by token, or pairs of a token and its score")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut ids = HashMap::new();
                while let Some((Text(token), id)) = map.next_entry()? {
                    ids.insert(token, id);
                    at_most::<A::Error>(ids.len(), MAX_TOKENS, "tokens")?;
                }
                Ok(Vocab::Ids(ids))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = seq.next_element()? {
                    tokens.push(token);
                    at_most::<A::Error>(tokens.len(), MAX_TOKENS, "tokens")?;
                }
                Ok(Vocab::Scores(tokens))
            }
        }
        deserializer.deserialize_any(Tokens)
    }
}

/// Merges in both forms, `"a b"` and `["a", "b"]`.
struct Merges<'a>(Vec<(Text<'a>, Text<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Merges<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Merges<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list of merges")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut merges = Vec::new();
                while let Some(Merge(merge)) = seq.next_element()? {
                    merges.extend(merge);
                    at_most::<A::Error>(merges.len(), MAX_MERGES, "merges")?;
                }
                Ok(Merges(merges))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

/// One of them; none for the line with which a list may say its version.
struct Merge<'a>(Option<(Text<'a>, Text<'a>)>);

impl<'de: 'a, 'a> Deserialize<'de> for Merge<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pair;
        impl<'de> Visitor<'de> for Pair {
            type Value = Merge<'de>;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("two tokens, in a list or with a space between them")
            }

            fn visit_str<E: serde::de::Error>(self, line: &str) -> Result<Self::Value, E> {
                if line.starts_with("#version") {
                    return Ok(Merge(None));
                }
                match line.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') => {
                        let own = |text: &str| Text(Cow::Owned(text.to_owned()));
                        Ok(Merge(Some((own(left), own(right)))))
                    }
                    _ => Err(E::custom(format!(
                        "model.merges: found {}, expected {}",
                        quote(line),
                        "two tokens"
                    ))),
                }
            }

            fn visit_borrowed_str<E: serde::de::Error>(self, line: &'de str) -> Result<Self::Value, E> {
                match line.split_once(' ') {
                    Some((left, right)) if !right.contains(' ') && !line.starts_with("#version") => {
                        Ok(Merge(Some((Text(Cow::Borrowed(left)), Text(Cow::Borrowed(right))))))
                    }
                    _ => self.visit_str(line),
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let (left, right) = (seq.next_element()?, seq.next_element()?);
                let more = seq.next_element::<IgnoredAny>()?;
                match (left, right, more) {
                    (Some(left), Some(right), None) => Ok(Merge(Some((left, right)))),
                    _ => Err(A::Error::custom("model.merges: found a list, expected two tokens")),
                }
            }
        }
        deserializer.deserialize_any(Pair)
    }
}

fn at_most<E: serde::de::Error>(found: usize, most: usize, what: &str) -> Result<(), E> {
    if found > most { Err(E::custom(format!("found more than {most} {what}"))) } else { Ok(()) }
}

// -- the components ----------------------------------------------------------------------------------

/// Reads and checks a component, whatever kind it is.
fn component(place: &str, json: Option<&RawValue>) -> Found<Option<Value>> {
    let Some(json) = json else { return Ok(None) };
    let (length, expected) = (json.get().len(), "expected at most");
    if length > MAX_COMPONENT {
        return Err(format!("{place}: found {length} bytes, {expected} {MAX_COMPONENT}"));
    }
    let value: Value = serde_json::from_str(json.get()).map_err(|error| format!("{place}: {error}"))?;
    let (mut objects, mut regexes) = (0, 0);
    check_depth(place, &value, MAX_DEPTH)?;
    for part in parts(&value) {
        objects += 1;
        regexes += usize::from(part.pointer("/pattern/Regex").is_some());
        check_part(place, part)?;
    }
    for (found, most, what) in
        [(objects, MAX_OBJECTS, "parts"), (regexes, MAX_REGEXES, "regular expressions")]
    {
        if found > most {
            return Err(format!("{place}: found {found} {what}, {expected} {most}"));
        }
    }
    Ok(Some(value))
}

fn check_depth(place: &str, value: &Value, left: usize) -> Found {
    let deeper = |value| match left {
        0 => Err(format!("{place}: found more than {MAX_DEPTH} levels, expected fewer")),
        _ => check_depth(place, value, left - 1),
    };
    match value {
        Value::Array(values) => values.iter().try_for_each(deeper),
        Value::Object(values) => values.values().try_for_each(deeper),
        _ => Ok(()),
    }
}

fn check_part(place: &str, part: &Value) -> Found {
    let is = |kind: &str| part.get("type").and_then(Value::as_str) == Some(kind);
    if let Some(table) = part.get("precompiled_charsmap").or(is("Precompiled").then_some(&Value::Null)) {
        let table = table
            .as_str()
            .ok_or_else(|| format!("{place}.precompiled_charsmap: expected a table in base64"))?;
        charsmap::check(table).map_err(|found| format!("{place}.precompiled_charsmap: found {found}"))?;
    }
    // Zero would cut a text into pieces of nothing.
    if place == "pre_tokenizer" && part.get("length").and_then(Value::as_u64) == Some(0) {
        return Err(format!("{place}.length: found 0, expected at least 1"));
    }
    if let Some(regex) = part.pointer("/pattern/Regex").and_then(Value::as_str)
        && regex.len() > MAX_REGEX
    {
        let length = regex.len();
        return Err(format!(
            "{place}.pattern: found a regular expression of {length} bytes, expected at most {MAX_REGEX}"
        ));
    }
    for field in ["content", "prepend", "suffix", "prefix", "pad_token", "word_delimiter_token"] {
        if let Some(text) = part.get(field).and_then(Value::as_str) {
            check_token(&format!("{place}.{field}"), text)?;
        }
    }
    match part.get("single").and_then(Value::as_array) {
        Some(single) => check_template(place, single, part.get("special_tokens")),
        None => Ok(()),
    }
}

/// The template of a single text: it has that text once at the most and no second one, and its tokens are known.
fn check_template(place: &str, single: &[Value], specials: Option<&Value>) -> Found {
    if single.len() > MAX_PIECES {
        return Err(format!("{place}.single: found {} pieces, expected at most {MAX_PIECES}", single.len()));
    }
    let mut texts = 0;
    for piece in single {
        match piece.pointer("/Sequence/id").and_then(Value::as_str) {
            Some("A") => texts += 1,
            Some(id) => {
                return Err(format!("{place}.single: found the sequence {}, expected \"A\"", quote(id)));
            }
            None => {}
        }
        let Some(id) = piece.pointer("/SpecialToken/id").and_then(Value::as_str) else { continue };
        let Some(special) = specials.and_then(|specials| specials.get(id)) else {
            return Err(format!(
                "{place}.special_tokens: found no {}, expected it because single names it",
                quote(id)
            ));
        };
        let count = |field| special.get(field).and_then(Value::as_array).map_or(0, Vec::len);
        if count("ids") != count("tokens") || count("ids") > MAX_PIECES {
            let (ids, tokens) = (count("ids"), count("tokens"));
            return Err(format!(
                "{place}.special_tokens: found {ids} ids and {tokens} tokens of {}, expected as many, at most {MAX_PIECES}",
                quote(id)
            ));
        }
    }
    if texts > 1 {
        return Err(format!("{place}.single: found the text {texts} times, expected it once"));
    }
    Ok(())
}
