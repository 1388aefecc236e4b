//! `headwise selftest` and `headwise doctor`.

use std::collections::{BTreeMap, BTreeSet};

use headwise::{
    Error, Gpu, GpuOptions, KernelChoice, Selftest, SelftestRow, SelftestStatus, block_on, internal::KERNELS,
};
use serde_json::Value;

use crate::support::*;

fn gpu() -> Gpu {
    block_on(Gpu::new(GpuOptions::new().kernels(KernelChoice::Tuned))).unwrap()
}

/// Never runs: that it compiles is the promise.
#[allow(dead_code)]
fn a_selftest_can_change_threads(gpu: &Gpu) {
    fn is_send<T: Send>(_: T) {}
    is_send(gpu.selftest(Selftest::new().progress(|_| ())));
}

#[test]
fn what_a_selftest_tests_may_lie_in_a_settings_file() {
    let kept = |json: &str| serde_json::from_str::<Selftest<'_>>(json);
    let written = serde_json::to_string(&Selftest::new().filter("routed_matvec").progress(|_| ())).unwrap();
    assert_eq!(written, r#"{"filter":"routed_matvec"}"#);
    for (json, shown) in [
        (written.as_str(), r#"Selftest { filter: Some("routed_matvec"), .. }"#),
        ("{}", "Selftest { filter: None, .. }"),
    ] {
        assert_eq!(format!("{:?}", kept(json).unwrap()), shown);
    }
    assert!(kept(r#"{"filters": "a"}"#).unwrap_err().to_string().contains("unknown field `filters`"));
}

/// The whole of it, and that each kernel's wrong numbers are found out: a word of what it wrote is changed.
#[test]
fn every_kernel_is_right_here_and_is_found_out_where_it_is_not() {
    let gpu = gpu();
    let mut told = BTreeMap::new();
    let selftest = Selftest::new().progress(|row| {
        told.insert((row.kernel, row.variant.clone()), row.clone());
    });
    let report = block_on(gpu.selftest(selftest)).unwrap();
    let bad: Vec<_> = report.rows.iter().filter(|row| row.status.is_bad()).collect();
    assert!(report.ok && bad.is_empty(), "{bad:#?}");
    assert_eq!(told.len(), report.rows.len());
    for row in &report.rows {
        assert_eq!(format!("{row:?}"), format!("{:?}", told[&(row.kernel, row.variant.clone())]));
    }

    let tested: BTreeSet<&str> = report.rows.iter().map(|row| row.kernel).collect();
    for kernel in KERNELS {
        let maths = kernel.name.split('.').next().unwrap();
        let maths = if maths.starts_with("group_") { "group" } else { maths };
        assert!(tested.contains(maths), "{} is not tested", kernel.name);
        if let Some((_, variant)) = kernel.name.split_once('.').filter(|(maths, _)| *maths != "driver") {
            let row = report.rows.iter().find(|row| (row.kernel, &*row.variant) == (maths, variant));
            assert!(row.is_some(), "no row of {}", kernel.name);
        }
    }

    for kernel in tested.into_iter().filter(|kernel| *kernel != "text") {
        let selftest = Selftest::new().filter(kernel).spoiled(kernel);
        let report = block_on(gpu.selftest(selftest)).unwrap();
        // These are no promise.
        let looked_at = ["long loops", "f16 limits"];
        let promised = |row: &&SelftestRow| row.cases > 0 && !looked_at.contains(&&*row.variant);
        let mut own = report.rows.iter().filter(|row| row.kernel == kernel).filter(promised);
        assert!(!report.ok && own.all(|row| row.status.is_bad()), "{kernel}: {report:#?}");
    }
}

#[test]
fn a_lost_device_and_a_name_that_fits_nothing_are_errors() {
    let gpu = gpu();
    let error = block_on(gpu.selftest(Selftest::new().filter("no such kernel"))).unwrap_err();
    assert!(error.to_string().starts_with("filter: found no such kernel"), "{error}");

    // In its midst every row from there on says so.
    let lost = gpu.clone();
    let selftest = Selftest::new().filter("router").progress(|row| {
        if row.kernel == "cosine_router" {
            lost.destroy();
        }
    });
    let report = block_on(gpu.selftest(selftest)).unwrap();
    for row in &report.rows {
        let failed = row.status == SelftestStatus::Failed;
        assert_eq!((failed, failed), (row.kernel == "cosine_router", row.remark.is_some()), "{row:?}");
    }
    assert!(!report.ok && report.rows.len() > 1, "{report:#?}");
    assert!(matches!(block_on(gpu.selftest(Selftest::new())), Err(Error::DeviceLost { .. })));
}

#[test]
fn the_command_reports_what_it_tested() {
    let args = ["selftest", "--filter", "row_attention_prefill", "--json"];
    let report = json(&args);
    assert_eq!((&report["ok"], &report["version"]), (&Value::Bool(true), &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(report["adapter"]["name"], json(&["adapters", "--json"])[0]["name"]);
    let rows = report["rows"].as_array().unwrap();
    assert!(rows.iter().all(|row| row["kernel"] == "row_attention_prefill"), "{report}");
    assert!(
        rows.iter().any(|row| row["status"] == "ok" && row["error"].as_f64().unwrap() < 1e-5),
        "{report}"
    );
    fails(&["selftest", "--adapter", "no such adapter"], &["no such adapter"]);
}

/// Mesa's OpenGL takes other texts of shaders than it was given: for one kernel a text that is none, then one that computes
/// something else.
#[cfg(target_os = "linux")]
#[test]
fn what_a_driver_refuses_or_computes_wrong_is_a_row_and_exits_with_1() {
    use std::{fs, path::Path};
    let (given, instead) = (folder("shaders-given"), folder("shaders-instead"));
    let selftest = |variable: &str, folder: &Path| {
        let mut command = headwise(&["selftest", "--filter", "combine"]);
        run(command.env("WGPU_BACKEND", "gl").env(variable, folder))
    };
    let (code, stdout, stderr) = selftest("MESA_SHADER_DUMP_PATH", &given);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    // The kernel with two choices of constants, beside wgpu's own.
    let texts = fs::read_dir(&given).unwrap().map(|entry| entry.unwrap().path());
    let texts = texts.map(|path| (path.file_name().unwrap().to_owned(), fs::read_to_string(path).unwrap()));
    let kernels: Vec<_> = texts.filter(|(_, text)| text.contains("struct Params {")).collect();
    assert_eq!(kernels.len(), 2, "{kernels:?}");

    for (from, to, expected) in [
        ("void main() {", "void main() { nonsense;", &["FAILED", "Internal error: ", "nonsense"][..]),
        // The sign of a sum of floats; sums of indices have no parenthesis there.
        (" + (", " - (", &["WRONG", "gated: off by "]),
    ] {
        for (name, text) in &kernels {
            assert!(text.contains(from), "{from}: {text}");
            fs::write(instead.join(name), text.replace(from, to)).unwrap();
        }
        let (code, stdout, stderr) = selftest("MESA_SHADER_READ_PATH", &instead);
        assert_eq!((code, stderr.as_str()), (1, ""), "{stdout}");
        assert!(expected.iter().all(|part| stdout.contains(part)), "{expected:?}: {stdout}");
        assert!(stdout.contains("1 of 1 WRONG"), "{stdout}");
    }
}

#[test]
fn the_doctor_names_adapters_drivers_caches_and_variables_but_no_secret() {
    let folder = folder("doctor");
    let manifest = folder.join("broken_icd.json");
    std::fs::write(&manifest, r#"{"ICD": {"library_path": "libno_such_driver.so"}}"#).unwrap();
    let report = json(&["doctor", "--json"]);
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    let adapters = json(&["adapters", "--json"]);
    let named = |adapter: &Value| adapter["name"] == adapters[0]["name"] && adapter["refused"].is_null();
    assert!(report["adapters"].as_array().unwrap().iter().any(named), "{report}");
    assert!(report["caches"].as_array().unwrap().iter().any(|cache| cache["name"] == "kernels"), "{report}");

    // Without a driver it still says what it found, and what to do.
    let mut command = headwise(&["doctor"]);
    command.env("VK_DRIVER_FILES", &manifest).env("HF_TOKEN", "hf_secret").env("WGPU_BACKEND", "vulkan");
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert!(!stdout.contains("hf_secret") && stdout.contains("HF_TOKEN"), "{stdout}");
    assert!(stdout.contains("WGPU_BACKEND  "), "{stdout}");
    if cfg!(target_os = "linux") {
        assert!(stdout.contains("names libno_such_driver.so, which is missing"), "{stdout}");
        assert!(stdout.contains("no adapter works"), "{stdout}");
    }
}

#[test]
fn the_doctor_names_values_that_mean_nothing_and_shows_proxies_without_who_asks() {
    let mut command = headwise(&["doctor"]);
    command.env("WGPU_BACKEND", "bogus").env("HEADWISE_KERNELS", "fast").env("HEADWISE_VERIFY", "maybe");
    command.env("HTTPS_PROXY", "http://me:secret@proxy:3128").env("NO_PROXY", "localhost,10.0.0.1");
    let (code, stdout, stderr) = run(&mut command);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    for part in [
        "WGPU_BACKEND: found \"bogus\", expected vulkan, metal, dx12 or gl",
        "no adapter was looked for",
        "HEADWISE_KERNELS: found \"fast\", expected auto, plain, tuned",
        "HEADWISE_VERIFY: found \"maybe\", expected 1, on, yes or true",
        "http://…@proxy:3128",
        "localhost,10.0.0.1",
    ] {
        assert!(stdout.contains(part), "no {part:?} in {stdout}");
    }
    for not in ["secret", "no adapter works", "me:"] {
        assert!(!stdout.contains(not), "{not:?} in {stdout}");
    }
}

/// Each adapter that the doctor finds is one of `headwise adapters`, as it is or with what the doctor says.
#[test]
fn the_doctor_says_how_each_adapter_is_found() {
    let adapters = json(&["doctor", "--json"])["adapters"].as_array().unwrap().clone();
    for adapter in adapters {
        let mut command = headwise(&["adapters", "--json"]);
        if let Some(needs) = adapter["needs"].as_str() {
            let (name, value) = needs.split_once('=').unwrap();
            command.env(name, value);
        }
        let (code, stdout, stderr) = run(&mut command);
        assert_eq!(code, 0, "{stderr}");
        let found: Vec<Value> = serde_json::from_str(&stdout).unwrap();
        let same = |found: &Value| found["name"] == adapter["name"] && found["backend"] == adapter["backend"];
        assert!(found.iter().any(same), "{adapter} is not in {stdout}");
    }
}
