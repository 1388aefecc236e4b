//! The small files beside the weights, as people have them and at random.

use std::path::Path;

use headwise::{ChatTemplate, Error, Source, block_on, fuzzing::check_source};
use serde_json::{Value, json};

use super::{
    FIXTURES,
    build::{CONFIG, INDEX, Model, WEIGHTS, refused},
};

/// A pointer as `git clone` leaves it where Git LFS is not installed.
const POINTER: &str = "version https://git-lfs.github.com/spec/v1\n\
    oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 4943162336\n";
/// The same, as an editor may have saved it.
const MARKED: &str =
    "\u{feff}version https://git-lfs.github.com/spec/v1\r\noid sha256:4d7a\r\nsize 4943162336\r\n";
const BELOW: &str = "\n\nversion https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4943162336\n";
const PAGE: &str = "<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>";
/// Other ways in which pages begin.
const SAVED: &str = "\u{feff}<!-- saved from -->\n<html lang=\"en\"><body>Sign in</body></html>";
const HEADED: &str = "\n<head><meta charset=\"utf-8\"></head>";
const STRICT: &str =
    "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- a --><!-- b -->\n<HTML xmlns=\"x\"></HTML>";
const PUBLISHED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/models");

/// The small model with other files.
fn source(files: &[(&str, &[u8])]) -> Source {
    let mut all =
        vec![("config.json", Model::small().config()), ("model.safetensors", Model::small().weights())];
    for (name, bytes) in files {
        all.retain(|(other, _)| other != name);
        all.push((name, bytes.to_vec()));
    }
    Source::memory("m", all)
}

fn check(name: &str, text: impl AsRef<[u8]>) -> Result<(), Error> {
    check_source(&source(&[(name, text.as_ref())]))
}

fn read_template(files: &[(&str, &[u8])]) -> Result<(), Error> {
    block_on(ChatTemplate::read(&source(files))).map(drop)
}

#[test]
fn pointers_pages_and_empty_files_are_named_for_what_they_are() {
    let template: (&str, &[u8]) = ("chat_template.jinja", b"{{ bos_token }}");
    for (text, parts) in [
        (POINTER, ["found a Git LFS pointer", "`git lfs pull`"]),
        (MARKED, ["found a Git LFS pointer", "`git lfs pull`"]),
        (BELOW, ["found a Git LFS pointer", "`git lfs pull`"]),
        (PAGE, ["found a web page (HTML)", "/resolve/"]),
        (SAVED, ["found a web page (HTML)", "/resolve/"]),
        (HEADED, ["found a web page (HTML)", "/resolve/"]),
        (STRICT, ["found a web page (HTML)", "/resolve/"]),
        ("", ["found an empty file", "fetch the file anew"]),
    ] {
        let named = |file: &str| [parts[0], parts[1], file].map(str::to_owned);
        let says = |result, file: &str| refused(result, &named(file).each_ref().map(String::as_str));
        says(check("config.json", text), "m/config.json: content: ");
        says(check("generation_config.json", text), "m/generation_config.json: content: ");
        says(check("model.safetensors", text), "m/model.safetensors: content: ");
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            says(read_template(&[template, (name, text.as_bytes())]), &format!("m/{name}: content: "));
        }
        says(read_template(&[("chat_template.jinja", text.as_bytes())]), "m/chat_template.jinja: content: ");

        let index = json!({"weight_map": {"model.norm.weight": "1.safetensors"}}).to_string();
        let sharded = |index: &str, shard: &str| {
            let files = [
                ("config.json", Model::small().config()),
                ("model.safetensors.index.json", index.into()),
                ("1.safetensors", shard.into()),
            ];
            check_source(&Source::memory("m", files))
        };
        says(sharded(&index, text), "m/1.safetensors: content: ");
        says(sharded(text, ""), INDEX);
    }
    // A server's excuse in the place of a file.
    for text in ["Entry not found", "{\"error\":\"Repository not found\"}"] {
        refused(check("model.safetensors", text), &[WEIGHTS, "a text that begins with", &text[1..5]]);
    }
    refused(
        check("config.json", "Entry not found"),
        &[CONFIG, "JSON: found a text that begins with \"Entry not"],
    );
    refused(check("config.json", b"\xff\xfe{\0}\0"), &[CONFIG, "text in UTF-16, expected JSON in UTF-8"]);
}

/// What hubs answer where they have no file is JSON, too, and would pass for a file that says nothing.
#[test]
fn a_servers_excuse_is_no_side_file() {
    let template: (&str, &[u8]) = ("chat_template.jinja", b"{{ bos_token }}");
    for (answer, shown) in [
        (r#"{"error":"Repository not found"}"#, r#""Repository not found""#),
        ("\u{feff}{\"error\": \"Repository not found\"}\n", r#""Repository not found""#),
        (r#"{"message": "Not Found", "documentation_url": "x", "status": "404"}"#, r#""Not Found""#),
        (r#"{"error": "a", "message": "b"}"#, r#""a""#),
        (r#"{"detail":"Not Found"}"#, r#""Not Found""#),
        ("<?xml version=\"1.0\"?>\n<Error><Code>NoSuchKey</Code></Error>", "\"<Error><Code>NoSuchKey"),
    ] {
        let found = |kind: &str| {
            let found = format!("content: found a server's answer in its place, {shown}");
            [found, format!("expected {kind}: fetch the file anew")]
        };
        let json = found("JSON");
        refused(check("config.json", answer), &["m/config.json", &json[0], &json[1]]);
        refused(check("generation_config.json", answer), &["m/generation_config.json", &json[0], &json[1]]);
        for name in ["tokenizer_config.json", "special_tokens_map.json"] {
            let read = read_template(&[template, (name, answer.as_bytes())]);
            refused(read, &[&format!("m/{name}"), &json[0], &json[1]]);
        }
        let text = found("text");
        let read = read_template(&[("chat_template.jinja", answer.as_bytes())]);
        refused(read, &["m/chat_template.jinja", &text[0], &text[1]]);
    }
    for file in ["{}", r#"{"temperature": 1, "error": "x"}"#, r#"{"status": "ok"}"#] {
        check("generation_config.json", file).unwrap();
    }
}

/// What Python's `json` writes or reads and a strict reader would not.
#[test]
fn json_as_python_and_windows_write_it_is_read() {
    let config = Model::small().config.to_string();
    let inner = config.trim_start_matches('{');
    for text in [
        format!("\u{feff}{config}"),
        format!("{{\"unused\": NaN, \"list\": [Infinity, {{\"a\": -Infinity}}], {inner}"),
        format!("{{\"vocab_size\": 99, \"hidden_size\": NaN, {inner}"),
        config
            .replace("\"vocab_size\":3", "\"vocab_size\":3.0")
            .replace("\"moe_top_k\":1", "\"moe_top_k\":1e0"),
        format!("{{\"model_max_length\": 1000000000000000019884624838656, {inner}"),
        config.replace(',', ",\r\n"),
    ] {
        check("config.json", &text).unwrap_or_else(|error| panic!("{error} for {text}"));
    }
    for field in ["vocab_size", "rms_norm_eps", "hidden_size"] {
        let mut other: Value = Model::small().config.clone();
        other[field] = "here".into();
        let text = other.to_string().replace("\"here\"", "NaN");
        refused(check("config.json", text), &[CONFIG, &format!("{field}: found \"NaN\", expected a")]);
    }
    check("generation_config.json", "\u{feff}{\"temperature\": NaN, \"eos_token_id\": [2.0, 9, -1]}")
        .unwrap();
}

/// The published MoH-LLaMA3 says `llama` and has a Llama's tensors; only the code it names makes it another model.
#[test]
fn code_of_a_models_own_is_refused_where_tensors_do_not_tell() {
    let map =
        json!({"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"});
    let check = |fixture: &str, edit: &dyn Fn(&mut Value)| {
        let folder = Path::new(FIXTURES).join(fixture);
        let mut config: Value =
            serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        edit(&mut config);
        let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
        headwise::fuzzing::check_checkpoint(&weights, config.to_string().as_bytes())
    };
    for fixture in ["jetmoe_tiny", "molm_tiny", "moh_llama_tiny"] {
        check(fixture, &|config| config["auto_map"] = map.clone()).unwrap();
    }
    let dense = |config: &mut Value| drop(config.as_object_mut().unwrap().remove("moh"));
    let refusal = check("moh_llama_tiny", &|config| {
        dense(config);
        config["auto_map"] = map.clone();
    });
    let advice = "add \"moh\": {\"shared\": 4, \"routed\": 2, \"router\": \"query_norm\"} to the config";
    refused(
        refusal,
        &[CONFIG, "auto_map.AutoModelForCausalLM = \"modeling_x.XForCausalLM\" is not supported", advice],
    );
    for (map, said) in [
        (json!("modeling_x.XForCausalLM"), "auto_map = \"modeling_x.XForCausalLM\""),
        (json!(["modeling_x.X"]), "auto_map = a list of 1"),
        (json!(true), "auto_map = true"),
        (json!({"AutoModel": ["modeling_x.X", null]}), "auto_map.AutoModel = a list of 2"),
    ] {
        let refusal = check("moh_llama_tiny", &|config| {
            dense(config);
            config["auto_map"] = map.clone();
        });
        refused(refusal, &[CONFIG, &format!("{said} is not supported"), advice]);
    }
    for map in [Value::Null, json!({}), json!({"AutoModel": null})] {
        check("moh_llama_tiny", &|config| {
            dense(config);
            config["auto_map"] = map.clone();
        })
        .unwrap();
    }
    check("moh_llama_tiny", &|config| {
        dense(config);
        config["auto_map"] = json!({"AutoTokenizer": ["tokenization_x.XTokenizer", null]});
    })
    .unwrap();
}

// -- random damage -----------------------------------------------------------------------------------

/// What is put in the place of something else.
const PIECES: [&str; 18] = [
    "NaN",
    "-Infinity",
    "null",
    "true",
    "-1",
    "1e999",
    "0.5",
    "18446744073709551616",
    "\"",
    "\\u0000",
    "\\ud800",
    "{",
    "}",
    "[",
    "]",
    ",",
    "\u{feff}",
    "version https://git-lfs.github.com/spec/v1",
];

/// One random change of a file.
fn damage(bytes: &mut Vec<u8>, random: &mut impl FnMut(usize) -> usize) {
    let at = random(bytes.len() + 1);
    let end = (at + random(12)).min(bytes.len());
    match random(4) {
        0 => drop(bytes.splice(at..end, PIECES[random(PIECES.len())].bytes())),
        1 => drop(bytes.drain(at..end)),
        2 => {
            let copy = bytes[at..end].to_vec();
            let to = random(bytes.len() + 1);
            bytes.splice(to..to, copy);
        }
        _ => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random(8)),
    }
}

/// Every small file that ships, or that a test reads, damaged in thousands of ways: a model or an error, no panic.
#[test]
fn damaged_small_files_never_panic() {
    let read = |path: String| std::fs::read(path).unwrap();
    let configs =
        ["prose", "ui-en-de", "ui-fill", "fashion"].map(|name| format!("{PUBLISHED}/{name}/config.json"));
    let fixtures = ["jetmoe_tiny", "molm_tiny", "molm_tiny_2head", "moh_llama_tiny", "ends"];
    let fixtures = fixtures.map(|name| format!("{FIXTURES}/{name}/config.json"));
    let files: Vec<(&str, Vec<u8>)> = configs
        .into_iter()
        .chain(fixtures)
        .map(|path| ("config.json", read(path)))
        .chain(
            ["generation_config.json", "tokenizer_config.json"]
                .map(|name| (name, read(format!("{FIXTURES}/ends/{name}")))),
        )
        .chain([(
            "special_tokens_map.json",
            br#"{"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}}"#.to_vec(),
        )])
        .collect();
    // Weyl's sequence, mixed: the same damage in every run.
    let mut state = 7u64;
    let mut random = |below: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed >> 33) % below.max(1) as u64) as usize
    };
    let (mut tried, mut good) = (0, 0);
    for (name, bytes) in &files {
        for _ in 0..1500 {
            let mut bytes = bytes.clone();
            (0..=random(3)).for_each(|_| damage(&mut bytes, &mut random));
            let template: (&str, &[u8]) = ("chat_template.jinja", b"{{ bos_token }}{{ eos_token }}");
            let files: [(&str, &[u8]); 2] = [template, (name, &bytes)];
            let source = source(&files);
            for result in [check_source(&source), block_on(ChatTemplate::read(&source)).map(drop)] {
                tried += 1;
                match result {
                    Ok(()) => good += 1,
                    Err(error) => {
                        let text = error.to_string();
                        assert!(
                            text.starts_with("m/") && text.len() < 1500 && !text.contains('\n'),
                            "{text}"
                        );
                    }
                }
            }
        }
    }
    println!("{tried} readings of damaged files, {good} of them good");
    assert!(tried == 2 * 1500 * files.len() && good > 0);
}
