//! `headwise bench`. Its times are not tested: speed is for reports. Its counts are exact.

use std::ops::ControlFlow;

use headwise::{Counters, Generate, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Source, block_on};
use serde_json::Value;

use crate::support::*;

/// Counters of a generation from the library.
fn generated(model: &Model, prompt: usize, new: usize) -> Counters {
    // What is generated does not matter to the counts.
    let ids: Vec<u32> = (0..prompt as u32).collect();
    let options = Generate::new().greedy().stop_at([]).max_new(new);
    block_on(model.generate_ids(&[&ids], &options, |_| ControlFlow::Continue(()))).unwrap().counters
}

fn counters(row: &Value) -> Counters {
    serde_json::from_value(row["counters"].clone()).unwrap()
}

#[test]
fn the_object_has_every_row_with_exact_counts_and_its_limit() {
    let report =
        json(&["bench", "--model", TINY, "--rounds", "2", "--tokens", "9", "--precision", "f16", "--json"]);
    let adapter = &json(&["adapters", "--json"])[0];
    for (name, same) in
        [("adapter", "name"), ("driver", "driver"), ("backend", "backend"), ("kernels", "kernels")]
    {
        assert_eq!(report[name], adapter[same], "{name}");
    }
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&report["precision"], &report["family"]), (&"f16".into(), &"jetmoe".into()));
    assert!(report["date"].as_str().unwrap().starts_with("20"), "{report}");
    // A context of 64 has room for the shortest prompt only.
    let remarks: Vec<&str> =
        report["remarks"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
    let left_out = |length| format!("no prompt of {length} tokens: the model's context is 64");
    assert_eq!(remarks, [left_out(128), left_out(512)]);

    let gpu = block_on(Gpu::new(GpuOptions::new().kernels(KernelChoice::Tuned))).unwrap();
    let options = LoadOptions::new().precision(headwise::Precision::F16);
    let model = block_on(Model::load(&gpu, &Source::folder(TINY), options)).unwrap();
    let prompt = generated(&model, 16, 1);
    let decoded = generated(&model, 16, 10) - prompt;
    let expected = [
        ("prefill", 16, prompt, "matmul"),
        ("first token", 16, prompt, "matmul"),
        ("decode", 9, decoded, "copy"),
    ];
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), expected.len());
    for (row, (what, tokens, count, limit)) in rows.iter().zip(expected) {
        assert_eq!((&row["what"], &row["tokens"]), (&what.into(), &tokens.into()));
        assert_eq!((&row["prompt"], &row["limit"]), (&16.into(), &limit.into()), "{what}");
        assert_eq!(counters(row), count, "{what}");
        let number = |name: &str| row[name].as_f64().unwrap();
        let (seconds, needed) = (row["seconds"]["median"].as_f64().unwrap(), number("needed_per_second"));
        let work = if limit == "copy" { count.weight_bytes } else { 2 * count.macs };
        // The other numbers follow from the times.
        for (found, follows) in [
            (number("tokens_per_second"), f64::from(tokens) / seconds),
            (needed, work as f64 / seconds),
            (number("ratio"), needed / number("limit_per_second")),
        ] {
            assert!(found > 0.0 && (found - follows).abs() <= 1e-9 * follows, "{row}");
        }
        assert_eq!(row["seconds"]["rounds"], 2);
    }

    let start = &report["cold_start"];
    let parts =
        ["open_seconds", "load_seconds", "first_token_seconds"].map(|part| start[part].as_f64().unwrap());
    assert!((parts.iter().sum::<f64>() - start["seconds"].as_f64().unwrap()).abs() < 1e-9, "{start}");
    assert_eq!(report["host_seconds"]["rounds"], 32);
    for limit in ["copy", "matmul"] {
        assert!(report[limit]["per_second"]["median"].as_f64().unwrap() > 0.0, "{report}");
    }
}

#[test]
fn the_table_has_a_line_for_each_row() {
    let text = stdout(&["bench", "--model", TINY, "--rounds", "1", "--tokens", "99"]);
    for part in [
        "\nprefill 16 ",
        "\nfirst token ",
        "\ndecode ",
        "\ncopy ",
        "\nmatmul ",
        "\nhost ",
        "\ncold start ",
        "47 tokens decoded, not 99: the context is 64",
    ] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
}

#[test]
fn models_that_do_not_generate_and_empty_benches_are_refused() {
    for (model, task) in [(CLASSIFIER, "classify"), (TRANSLATOR, "translate"), (FILLER, "fill")] {
        fails(
            &["bench", "--model", model],
            &[&format!("model: found one for the task {task}"), "expected one for the task generate"],
        );
    }
    for (option, name) in [("--rounds", "rounds"), ("--tokens", "tokens")] {
        fails(&["bench", "--model", TINY, option, "0"], &[name, "at least 1"]);
    }
}
