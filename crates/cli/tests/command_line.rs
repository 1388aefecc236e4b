//! The promise: the `headwise` command does what its help says, and fails with one message and the right code.

#[path = "command_line/bench.rs"]
mod bench;
#[path = "command_line/classify.rs"]
mod classify;
#[path = "command_line/edits.rs"]
mod edits;
#[path = "command_line/ends.rs"]
mod ends;
#[path = "command_line/fill.rs"]
mod fill;
#[path = "command_line/heads.rs"]
mod heads;
#[cfg(unix)]
#[path = "command_line/outputs.rs"]
mod outputs;
#[path = "command_line/routes.rs"]
mod routes;
#[path = "command_line/score.rs"]
mod score;
#[path = "command_line/selftest.rs"]
mod selftest;
#[path = "../../../tests/support/successors.rs"]
mod successors;
#[path = "command_line/support.rs"]
mod support;
#[path = "command_line/text.rs"]
mod text;
#[path = "command_line/translate.rs"]
mod translate;

use std::{
    collections::BTreeSet,
    fs,
    io::{Read, Write},
    process::{Command, Stdio},
};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use support::*;

// -- generate -----------------------------------------------------------------------------------------------

#[test]
fn greedy_text_and_ids_are_those_of_the_reference() {
    let bytes = fs::read(format!("{PROSE}/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    for (index, (prompt, greedy)) in prompts().iter().enumerate() {
        let text = stdout(&["generate", prompt, "--greedy", "--max-new", "48"]);
        assert_eq!(text, format!("{prompt}{greedy}\n"));

        let ids = |name: &str| words(&reference.tensor(&format!("{index}.{name}")).unwrap());
        let given = join(&ids("ids"));
        let printed = stdout(&["generate", "--ids", &given, "--greedy", "--max-new", "48", "--print-ids"]);
        assert_eq!(printed, format!("{}\n", join(&ids("greedy"))));
    }
}

#[test]
fn the_prompt_may_come_from_stdin() {
    let (prompt, _) = &prompts()[0];
    let from_argument = stdout(&["generate", prompt, "--greedy", "--max-new", "4"]);
    for end in ["", "\n", "\r\n"] {
        let mut command = headwise(&["generate", "--greedy", "--max-new", "4"]);
        let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{prompt}{end}").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), from_argument);
    }
}

#[test]
fn ids_stand_for_text_where_there_is_no_tokenizer() {
    let args = ["generate", "--model", TINY, "--ids", "1,2", "--greedy", "--max-new", "3"];
    let new = stdout(&[&args[..], &["--print-ids"]].concat());
    assert_eq!(stdout(&args), format!("1,2,{new}"));
    assert_eq!(json(&[&args[..], &["--json"]].concat())["text"], Value::Null);
}

#[test]
fn the_report_names_speeds_and_adapter_unless_quiet() {
    let (_, _, report) = run(&mut headwise(&["generate", "The king", "--max-new", "4"]));
    let adapter = json(&["adapters", "--json"])[0]["name"].as_str().unwrap().to_owned();
    for part in ["prefill ", "(2 in ", "decode ", "(3 in ", "tokens/s", &adapter] {
        assert!(report.contains(part), "no {part:?} in {report}");
    }
    assert_eq!(report.lines().count(), 1, "{report}");
    let (_, text, report) = run(&mut headwise(&["generate", "The king", "--max-new", "4", "--quiet"]));
    assert!(text.starts_with("The king") && report.is_empty(), "{report}");
}

#[test]
fn what_is_unusual_about_the_files_is_noted_unless_quiet() {
    let two_tables = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/jetmoe_two_tables");
    let note = "the output head is lm_head.weight, as transformers has it, though config.json ties it";
    let args = ["generate", "--model", two_tables, "--ids", "1,5", "--max-new", "2"];
    let (_, _, report) = run(&mut headwise(&args));
    assert!(report.starts_with(&format!("note: {note}")), "{report}");
    let (_, _, report) = run(&mut headwise(&[&args[..], &["--quiet"]].concat()));
    assert!(report.is_empty(), "{report}");
    assert!(stdout(&["info", "--model", two_tables]).contains(&format!("note        {note}")));
    let notes = &json(&["info", "--model", two_tables, "--json"])["notes"];
    assert!(notes[0].as_str().is_some_and(|found| found.starts_with(note)), "{notes}");
    assert_eq!(json(&["info", "--json"])["notes"], serde_json::json!([]));
}

#[test]
fn seeds_decide_the_text() {
    let with = |seed| stdout(&["generate", "Emma could not", "--max-new", "24", "--seed", seed]);
    assert_eq!(with("7"), with("7"));
    assert_ne!(with("7"), with("8"));
}

#[test]
fn json_has_what_was_generated_and_nothing_else() {
    let (prompt, greedy) = &prompts()[2];
    let report = json(&["generate", prompt, "--greedy", "--max-new", "48", "--json"]);
    assert_eq!(report["text"], greedy.as_str());
    assert_eq!(report["stop_reason"], "max-new");
    assert_eq!(report["ids"].as_array().unwrap().len(), 48);
    assert_eq!(report["timings"]["prefill_tokens"], report["prompt_ids"].as_array().unwrap().len());
    assert_eq!(report["timings"]["decode_tokens"], 47);
    assert!(report["timings"]["decode_tokens_per_second"].as_f64().unwrap() > 0.0);
    assert!(report["counters"]["macs"].as_u64().unwrap() > 0);
    assert!(report.get("tokens").is_none());

    // A context of 256 with a prompt of 4.
    let full = json(&["generate", prompt, "--greedy", "--max-new", "9999", "--json"]);
    assert_eq!((&full["stop_reason"], full["ids"].as_array().unwrap().len()), (&Value::from("context"), 252));
}

#[test]
fn shown_heads_are_those_of_the_reference() {
    let bytes = fs::read(format!("{PROSE}/reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&bytes).unwrap();
    let set = |experts: &[u32]| experts.iter().copied().collect::<BTreeSet<_>>();
    for (index, (prompt, greedy)) in prompts().iter().enumerate() {
        let experts = |layer: usize| {
            let name = format!("{index}.layers.{layer}.attention.experts");
            words(&reference.tensor(&name).unwrap()).chunks(2).map(set).collect::<Vec<_>>()
        };
        let layer = (index % 5).to_string();
        let args = ["generate", prompt, "--greedy", "--max-new", "48", "--show-heads", "--layer", &layer];
        let shown = stdout(&args);
        let (legend, text) = shown.split_once("\n\n").unwrap();
        assert!(legend.contains(&format!("layer {layer}")), "{legend}");

        let (plain, routes) = without_brackets(text);
        assert_eq!(plain, format!("{prompt}{greedy}\n"));
        let expected = experts(index % 5);
        assert_eq!(routes.len(), expected.len() + 48);
        assert!(routes.iter().all(|experts| set(experts).len() == 2));
        let prompt_routes: Vec<_> = routes[..expected.len()].iter().map(|experts| set(experts)).collect();
        assert_eq!(prompt_routes, expected);

        let report = json(&[&args[..], &["--json"]].concat());
        let tokens = report["tokens"].as_array().unwrap();
        assert_eq!(tokens.len(), routes.len());
        for layer in 0..5 {
            let choices = |token: &Value| {
                let choices = token["routes"]["layers"][layer]["attention"].as_array().unwrap().clone();
                choices.iter().map(|choice| choice["expert"].as_u64().unwrap() as u32).collect()
            };
            let found: Vec<BTreeSet<u32>> = tokens[..expected.len()].iter().map(choices).collect();
            assert_eq!(found, experts(layer));
        }
    }
}

#[test]
fn colours_are_for_terminals_or_forced() {
    let args = ["generate", "The king", "--max-new", "2", "--show-heads"];
    assert!(!stdout(&args).contains('\x1b'));
    let (_, forced, _) = run(headwise(&args).env("CLICOLOR_FORCE", "1").env("COLORTERM", "truecolor"));
    let (legend, text) = forced.split_once("\n\n").unwrap();
    assert_eq!(legend.matches("\x1b[48;2;").count(), 8, "{legend}");
    assert_eq!((text.matches("\x1b[48;2;").count(), text.matches("\x1b[58:2::").count()), (4, 4), "{text}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_the_text() {
    let (prompt, greedy) = &prompts()[0];
    // The slowest kernels of a software adapter, so that the text does not end before the signal comes.
    let args = ["generate", prompt, "--greedy", "--max-new", "250", "--kernels", "workgroup"];
    let mut child = headwise(&args).spawn().unwrap();
    let mut text = vec![0; prompt.len() + 1];
    child.stdout.as_mut().unwrap().read_exact(&mut text).unwrap();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    text.extend(output.stdout);
    let text = String::from_utf8(text).unwrap();
    assert_eq!(output.status.code(), Some(0), "{:?}", output.status);
    let all = stdout(&args);
    assert!(all.starts_with(&format!("{prompt}{greedy}")));
    assert!(text.len() < all.len() && all.starts_with(text.strip_suffix('\n').unwrap()), "{text}");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let mut child = headwise(&["generate", "The king", "--max-new", "200"]).spawn().unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0; 8]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}

// -- logits -------------------------------------------------------------------------------------------------

#[test]
fn the_logits_file_holds_logits_and_routes() {
    let out = folder("logits").join("out.safetensors");
    let file = format!("{TINY}/expected.json");
    // The reference is also a file of ids.
    let args = ["logits", "--model", TINY, "--ids-file", &file, "--out", out.to_str().unwrap()];
    assert_eq!(stdout(&args), "");
    let bytes = fs::read(&out).unwrap();
    let found = SafeTensors::deserialize(&bytes).unwrap();
    let expected = read_json(&file);

    let mut names: Vec<String> = ["0.attention", "0.mlp", "1.attention", "1.mlp"]
        .iter()
        .flat_map(|part| ["experts", "gates"].map(|what| format!("layers.{part}.{what}")))
        .chain(["logits".to_owned()])
        .collect();
    names.sort();
    // All layers in one array for each kind, too.
    let arrays = ["routed_heads", "routed_experts"];
    assert_eq!(
        found.names().into_iter().collect::<BTreeSet<_>>(),
        names.iter().map(|name| &**name).chain(arrays).collect()
    );
    for (array, part) in arrays.into_iter().zip(["attention", "mlp"]) {
        let array = found.tensor(array).unwrap();
        assert_eq!((array.dtype(), array.shape()), (Dtype::I32, &[12, 2, 2][..]));
        let layers =
            [0, 1].map(|layer| words(&found.tensor(&format!("layers.{layer}.{part}.experts")).unwrap()));
        let expected =
            (0..12).flat_map(|token| layers.iter().flat_map(move |layer| &layer[2 * token..2 * token + 2]));
        assert_eq!(words(&array), expected.copied().collect::<Vec<_>>());
    }
    for name in &names {
        let tensor = found.tensor(name).unwrap();
        let dtype = if name.ends_with("experts") { Dtype::U32 } else { Dtype::F32 };
        let width = if name == "logits" { 101 } else { 2 };
        assert_eq!((tensor.dtype(), tensor.shape()), (dtype, &[12, width][..]), "{name}");
    }
    let logits = floats(&found.tensor("logits").unwrap());
    assert_close(&logits, &numbers(&expected["logits"]), 2e-4);
    for layer in 0..2 {
        let tensor = |what: &str| found.tensor(&format!("layers.{layer}.attention.{what}")).unwrap();
        let experts = words(&tensor("experts")).into_iter().map(f64::from).collect::<Vec<_>>();
        assert_eq!(experts, numbers(&expected["attn_route_idx"][layer]));
        assert_close(&floats(&tensor("gates")), &numbers(&expected["attn_route_gate"][layer]), 1e-5);
    }
}

#[test]
fn ids_come_from_the_line_or_from_either_form_of_file() {
    let folder = folder("ids");
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let of = |option: &str, value: &str| {
        let out = folder.join("out.safetensors");
        stdout(&["logits", "--model", TINY, option, value, "--out", out.to_str().unwrap()]);
        fs::read(out).unwrap()
    };
    let expected = of("--ids", "1,2,3");
    for text in ["[1, 2, 3]", " 1 2 3 ", "[1,2,3]"] {
        assert!(of("--ids", text) == expected, "{text}");
    }
    for text in [
        "[1, 2, 3]",
        "{\"ids\": [1, 2, 3]}",
        "{\"input_ids\": [[1, 2, 3]], \"attention_mask\": [[1, 1, 1]]}",
        "[[1, 2, 3]]",
        "[1 2 3]",
        "1,2,3\n",
        "1\r\n2\r\n3\r\n",
        "\u{feff}[1,2,3]",
    ] {
        assert!(of("--ids-file", &write("good", text)) == expected, "{text}");
    }

    for (text, part) in [
        ("[1, -2]", "ids[1]"),
        ("[1", "JSON"),
        ("seven", "\"seven\""),
        ("1 -2", "\"-2\""),
        ("", "nothing"),
        ("{\"tokens\": [1]}", "{\"ids\": [1,2,3]}"),
        ("[4294967296]", "ids[0]"),
        ("[[1], [2]]", "2 lists"),
        ("[1.5]", "ids[0]"),
    ] {
        let bad = write("bad.json", text);
        fails(&["logits", "--model", TINY, "--ids-file", &bad, "--out", "never"], &[&bad, part]);
    }
}

#[test]
fn a_file_that_cannot_be_written_leaves_nothing_behind() {
    let folder = folder("no-such-folder");
    let missing = folder.join("missing/out.safetensors");
    let missing = missing.to_str().unwrap();
    fails(&["logits", "--model", TINY, "--ids", "1", "--out", missing], &[missing]);
    let taken = folder.to_str().unwrap();
    fails(&["logits", "--model", TINY, "--ids", "1", "--out", taken], &[taken]);
    let never = folder.join("out.safetensors");
    fails(&["logits", "--model", TINY, "--ids", "101", "--out", never.to_str().unwrap()], &["101"]);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
}

// -- info and adapters --------------------------------------------------------------------------------------

/// Parameters in all and active per token, from the safetensors headers alone.
fn count_parameters(folder: &str, active: u64, experts: u64) -> (u64, u64) {
    let mut counts = (0, 0);
    for (name, shape) in shapes(folder) {
        let elements: u64 = shape.iter().product();
        let routed = name.ends_with("put_linear.weight");
        counts.0 += elements;
        counts.1 += if routed { elements / experts * active } else { elements };
    }
    counts
}

/// Names and shapes of a folder's tensors.
fn shapes(folder: &str) -> Vec<(String, Vec<u64>)> {
    let mut shapes = Vec::new();
    for file in headwise_reference::jetmoe::weight_files(folder.as_ref()) {
        let bytes = fs::read(file).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        for (name, tensor) in header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__") {
            let shape = tensor["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap());
            shapes.push((name.clone(), shape.collect()));
        }
    }
    shapes
}

#[test]
fn info_counts_what_the_files_hold() {
    for (model, experts, cache) in [(PROSE, 8, 5 * 2 * 3 * 64 * 4), (TINY, 4, 2 * 2 * 2 * 8 * 4)] {
        let info = json(&["info", "--model", model, "--json"]);
        let config = read_json(&format!("{model}/config.json"));
        for (name, field) in [
            ("vocab", "vocab_size"),
            ("width", "hidden_size"),
            ("layers", "num_hidden_layers"),
            ("context", "max_position_embeddings"),
        ] {
            assert_eq!(info[name], config[field], "{name}");
        }
        let (all, active) = count_parameters(model, 2, experts);
        assert_eq!(
            (info["parameters"].as_u64(), info["active_parameters"].as_u64()),
            (Some(all), Some(active))
        );
        assert_eq!((&info["attention"]["experts"], &info["mlp"]["active"]), (&experts.into(), &2.into()));
        assert_eq!(info["cache_bytes_per_token"], cache);
        // Rows may be padded, norms and biases stay f32: somewhat more than the bare weights.
        for (index, precision, bytes) in [(0, "f32", 4), (1, "f16", 2)] {
            assert_eq!(info["memory"][index]["precision"], precision);
            let found = info["memory"][index]["bytes"].as_u64().unwrap();
            assert!((all * bytes..all * bytes * 6 / 5).contains(&found), "{found} bytes for {all}");
        }
    }
    for (model, parts) in [
        (TRANSLATOR, ["task        translate", "4 of an encoder, 3 of a decoder"]),
        (CLASSIFIER, ["task        classify", "classes     10"]),
    ] {
        let text = stdout(&["info", "--model", model]);
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    assert_eq!(count_parameters(PROSE, 2, 8), (10_021_824, 3_386_304));
    let text = stdout(&["info"]);
    for part in ["jetmoe", "10,021,824", "3,386,304", "f16 19.2 MiB", "7.5 KiB per token"] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn info_says_whether_the_model_fits() {
    assert!(stdout(&["info", "--adapter", "auto"]).ends_with(": fits\n"));
    let fit = &json(&["info", "--memory-limit", "1MiB", "--json"])["fit"];
    let reason = fit["reason"].as_str().unwrap();
    assert!(fit["fits"] == false && reason.contains("21.0 MiB") && reason.contains("1.0 MiB"), "{fit}");
}

#[test]
fn licences_are_those_of_all_that_is_compiled_in() {
    let text = stdout(&["licenses"]);
    let lock = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock")).unwrap();
    // `scripts/test licences` looks for all of them.
    for name in ["wgpu", "tokenizers", "clap", "ring"] {
        let version =
            lock.split(&format!("\nname = \"{name}\"\nversion = \"")).nth(1).unwrap().split('"').next();
        assert!(text.contains(&format!("\n{name} {}\n", version.unwrap())), "{name}");
    }
    assert!(text.contains("Permission is hereby granted, free of charge"));
}

#[test]
fn adapters_are_listed() {
    let adapters = json(&["adapters", "--json"]);
    let first = &adapters[0];
    assert!(first["max_binding"].as_u64().unwrap() >= 128 << 20, "{first}");
    let variants = first["kernels"].as_array().unwrap();
    assert!(variants.iter().any(|pair| pair[0] == "routed_matvec" && pair[1].is_string()), "{first}");
    let name = first["name"].as_str().unwrap();
    let text = stdout(&["adapters"]);
    assert!(first["number"] == 0 && text.contains(&format!("0: {name}")), "{text}");
    for part in
        [name, first["backend"].as_str().unwrap(), first["kind"].as_str().unwrap(), "limits", "features"]
    {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    assert_eq!(&json(&["adapters", "--json", "--adapter", &name.to_uppercase()])[0], first);
}

/// Digits are in many names: `llvmpipe (LLVM 15.0.6, 256 bits)`.
#[test]
fn a_number_is_an_adapters_place_in_the_list_and_no_part_of_its_name() {
    let all = json(&["adapters", "--json"]);
    let all = all.as_array().unwrap();
    let name = all[0]["name"].as_str().unwrap();
    for (number, adapter) in all.iter().enumerate() {
        let found = json(&["adapters", "--json", "--adapter", &number.to_string()]);
        assert_eq!(found.as_array().unwrap(), std::slice::from_ref(adapter));
    }
    let digits = name.split(|c: char| !c.is_ascii_digit()).filter(|part| !part.is_empty());
    for number in digits.map(str::to_owned).chain([all.len().to_string(), "99999999999999999999".to_owned()])
    {
        if number.parse::<usize>().is_ok_and(|number| number < all.len()) {
            continue;
        }
        let parts = [&*format!("'{number}'"), &format!("0: {name}")];
        fails(&["adapters", "--adapter", &number], &parts);
        fails(&["generate", "x", "--adapter", &number], &parts);
    }
    stdout(&["generate", "x", "--max-new", "1", "--adapter", "0"]);
    for text in [&name[..4], " Software ", "AUTO"] {
        assert_eq!(json(&["adapters", "--json", "--adapter", text]).as_array().unwrap()[0], all[0], "{text}");
    }
}

#[test]
fn without_any_adapter_there_is_advice() {
    for args in [&["adapters"][..], &["generate", "The king"]] {
        // A backend that this system does not have, one that nobody knows, none.
        for backend in [if cfg!(windows) { "metal" } else { "dx12" }, "vulcan", ""] {
            let named = format!("WGPU_BACKEND={backend:?}");
            let failed = run(headwise(args).env("WGPU_BACKEND", backend));
            check_failure(failed, &["no GPU adapter", "install", &named, "vulkan"]);
        }
    }
}

/// OpenGL is taken where it is named, and where there is nothing else.
#[cfg(target_os = "linux")]
#[test]
fn without_vulkan_opengl_writes_the_same_text() {
    let (prompt, greedy) = &prompts()[2];
    for hide in
        [&["WGPU_BACKEND", "gl"][..], &["VK_DRIVER_FILES", "/dev/null", "VK_ICD_FILENAMES", "/dev/null"]]
    {
        let hidden = |args: &[&str]| {
            let mut command = headwise(args);
            let (code, stdout, stderr) = run(command.envs(hide.chunks(2).map(|pair| (pair[0], pair[1]))));
            assert_eq!(code, 0, "{hide:?}: {stderr}");
            stdout
        };
        let adapters: Value = serde_json::from_str(&hidden(&["adapters", "--json"])).unwrap();
        assert_eq!(adapters[0]["backend"], "gl", "{adapters}");
        let text = hidden(&["generate", prompt, "--greedy", "--max-new", "48"]);
        assert_eq!(text, format!("{prompt}{greedy}\n"));
    }
}

// -- failures -----------------------------------------------------------------------------------------------

#[test]
fn what_goes_wrong_is_one_message() {
    let adapter = json(&["adapters", "--json"])[0]["name"].as_str().unwrap().to_owned();
    let long = "word ".repeat(300);
    let cases: [(&[&str], &[&str]); 13] = [
        (&["generate", "x", "--model", "no/such/folder"], &["no/such/folder"]),
        (&["info", "--model", "no/such/folder"], &["no/such/folder"]),
        (&["info", "--model", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")], &["Cargo.toml", "folder"]),
        (&["generate", "x", "--model", TINY], &["tokenizer.json"]),
        (&["generate", "--ids", "1,4096"], &["4096", "vocabulary"]),
        (&["generate", ""], &["prompt", "no tokens"]),
        (&["generate"], &["prompt", "no tokens"]),
        (&["generate", &long], &["prompt", "301 tokens", "256"]),
        (&["generate", "x", "--memory-limit", "1MiB"], &["needs 19.2 MiB", "gives 1.0 MiB"]),
        (&["generate", "x", "--adapter", "no such GPU"], &["no such GPU", &adapter]),
        (&["adapters", "--adapter", "no such GPU"], &["no such GPU", &adapter]),
        (&["generate", "x", "--top-p", "1.5"], &["top-p", "1.5"]),
        (&["generate", "x", "--show-heads", "--layer", "5"], &["layer", "5 layers"]),
    ];
    for (args, parts) in cases {
        fails(args, parts);
    }
}

#[test]
fn usage_errors_have_code_2() {
    let cases: [&[&str]; 9] = [
        &[],
        &["generate", "x", "--no-such-flag"],
        &["generate", "x", "--ids", "1"],
        &["generate", "--ids", "1,two"],
        &["generate", "x", "--memory-limit", "much"],
        &["generate", "x", "--precision", "f64"],
        &["generate", "x", "--print-ids", "--json"],
        &["logits", "--ids", "1"],
        &["logits", "--out", "x"],
    ];
    for args in cases {
        let (code, stdout, stderr) = run(&mut headwise(args));
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}");
        assert!(stderr.contains("--help") || stderr.contains("Usage"), "{stderr}");
    }
}

#[test]
fn a_number_that_cannot_be_is_named_with_what_could() {
    let whole = "expected a whole number from 0 to ";
    let cases: [(&[&str], &str); 19] = [
        (&["generate", "x", "--seed", "-1"], "18446744073709551615"),
        (&["generate", "x", "--seed", "18446744073709551616"], whole),
        (&["generate", "x", "--seed", "1.5"], whole),
        (&["generate", "x", "--max-new", "-5"], whole),
        (&["generate", "x", "--max-new", "1e3"], whole),
        (&["generate", "x", "--top-k", "-1"], "4294967295"),
        (&["generate", "x", "--top-k", "4294967296"], whole),
        (&["generate", "x", "--layer", "-1"], whole),
        (&["generate", "x", "--temperature", "-1"], "expected a finite number of 0 or more"),
        (&["generate", "x", "--temperature", "nan"], "expected a finite number of 0 or more"),
        (&["generate", "x", "--temperature", "1e39"], "expected a finite number of 0 or more"),
        (&["generate", "x", "--top-p", "-0.5"], "expected a finite number of 0 or more"),
        (&["chat", "--seed", "-1"], whole),
        (&["chat", "--context", "-1"], whole),
        (&["translate", "x", "--beams", "-1"], whole),
        (&["translate", "x", "--length-penalty", "inf"], "expected a finite number"),
        (&["fill", "x", "--top", "-1"], whole),
        (&["bench", "--rounds", "-1"], whole),
        (&["generate", "x", "--memory-limit", "-1"], "not an amount of memory"),
    ];
    for (args, part) in cases {
        let [.., option, value] = args else { panic!("{args:?}") };
        let (code, stdout, stderr) = run(&mut headwise(args));
        assert_eq!((code, stdout.as_str()), (2, ""), "{args:?}");
        let first = stderr.lines().next().unwrap();
        for part in [part, *option, &format!("'{value}'")] {
            assert!(first.contains(part), "no {part:?} in {first}");
        }
    }
    // What is no number stays an option, and a text may be one.
    assert!(stdout(&["generate", "-7", "--max-new", "0"]).starts_with("-7"));
    assert!(stdout(&["translate", "x", "--length-penalty", "-1", "--max-new", "1"]).ends_with('\n'));
}

#[test]
fn ids_are_read_alike_everywhere_and_what_is_none_is_named() {
    let new = |ids| stdout(&["generate", "--ids", ids, "--greedy", "--max-new", "4", "--print-ids"]);
    let routes = |ids| stdout(&["routes", "--ids", ids]);
    for ids in ["[1, 2]", "1, 2", "1 2", "[1 2]", "1,2,"] {
        assert_eq!((new(ids), routes(ids)), (new("1,2"), routes("1,2")), "{ids}");
    }
    for command in [&["generate"][..], &["routes"], &["logits", "--out", "never"]] {
        for (ids, part) in [("1,two", "\"two\""), ("-1,2", "\"-1\""), ("[1, 2", "bracket"), ("", "nothing")] {
            let (code, stdout, stderr) = run(&mut headwise(&[command, &["--ids", ids]].concat()));
            assert_eq!((code, stdout.as_str()), (2, ""), "{command:?} {ids}");
            assert!(stderr.contains(part) && stderr.contains("such as 1,2,3"), "{stderr}");
        }
    }
}

/// Before it is loaded, or even looked for.
#[test]
fn options_out_of_range_are_refused_before_the_model() {
    for (option, value) in [("--top-p", "1.5"), ("--top-p", "0")] {
        for command in [&["generate", "x"][..], &["chat"]] {
            let args = [command, &["--model", "no/such/folder", option, value]].concat();
            fails(&args, &["top-p", value, "above 0, at most 1"]);
        }
    }
}

#[test]
fn every_command_has_help_with_an_example() {
    for command in [
        "generate",
        "chat",
        "translate",
        "fill",
        "classify",
        "routes",
        "trace",
        "logits",
        "info",
        "bench",
        "adapters",
    ] {
        let help = stdout(&[command, "--help"]);
        assert!(help.contains(&format!("Example:\n  headwise {command}")), "{help}");
        // What chooses tokens is many options.
        let most = if ["generate", "chat"].contains(&command) { 53 } else { 46 };
        assert!(help.contains("--adapter") && help.lines().count() < most, "{help}");
    }
}

#[test]
fn every_analysis_has_help_with_an_example() {
    let heads = [
        "patterns",
        "indicators",
        "importance",
        "retrieval",
        "divergence",
        "influence",
        "patch",
        "rings",
        "guide",
        "reinforce",
        "hunt",
    ];
    let others = [["experts", "difference"], ["task", "learn"], ["task", "run"]];
    for command in heads.map(|name| ["heads", name]).into_iter().chain(others) {
        let help = stdout(&[command[0], command[1], "--help"]);
        assert!(help.contains(&format!("Example:\n  headwise {} {}", command[0], command[1])), "{help}");
        assert!(help.contains("--adapter") && help.lines().count() < 46, "{help}");
    }
}

#[test]
fn logs_are_off_until_asked_for() {
    let (code, text, log) =
        run(headwise(&["generate", "The king", "--max-new", "1", "-q"]).env("RUST_LOG", "headwise"));
    assert!(code == 0 && text.starts_with("The king"));
    assert!(log.contains("loaded model") && !log.contains('\x1b'), "{log}");
}
