//! The choice of kernels: what is picked from which times, what is remembered, and what a broken memory costs.

use std::{
    cell::{Cell, RefCell},
    fs,
    path::{Path, PathBuf},
};

use headwise::{
    Capabilities, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Source, block_on,
    internal::{
        Candidate, Family, MARGIN, Measured, NotePlace, Notes, Packed, Variant, Variants, candidates, choose,
        choose_kernels, pick,
    },
};

fn capabilities(software: bool, subgroups: Option<(u32, u32)>) -> Capabilities {
    let given = serde_json::json!({
        "name": "an adapter",
        "backend": "vulkan",
        "kind": if software { "software" } else { "discrete" },
        "driver": "a driver 1.0",
        "software": software,
        "subgroups": subgroups,
        "shader_f16": false,
        "timestamps": false,
        "max_binding": 128 << 20,
        "max_buffer": 256 << 20,
        "max_storage_buffers": 8,
        "max_workgroup_memory": 16 << 10,
        "max_workgroup_invocations": 256,
    });
    serde_json::from_value(given).unwrap()
}

/// What is measured, in order, and what is chosen, where each candidate takes `seconds` on the clock and for its work.
fn chosen(
    capabilities: &Capabilities,
    budget: f64,
    seconds: impl Fn(Family, Candidate) -> Option<f64>,
) -> (Variants, Vec<(Family, &'static str, u32)>) {
    let (clock, measured) = (Cell::new(0.0), RefCell::new(Vec::new()));
    let measure = async |family, _, candidate: Candidate| {
        measured.borrow_mut().push((family, candidate.variant.name(), candidate.tile_rows));
        let took = seconds(family, candidate);
        clock.set(clock.get() + took.unwrap_or(1.0));
        took
    };
    let (variants, _) = block_on(choose(capabilities, budget, || clock.get(), measure));
    (variants, measured.into_inner())
}

fn tuned(capabilities: &Capabilities) -> Variants {
    Variants::by_capability(KernelChoice::Tuned, capabilities)
}

/// An empty folder of its own for each test.
fn folder(test: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("kernel-choice-{test}"));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(&path).unwrap();
    path
}

fn open(options: GpuOptions) -> Gpu {
    block_on(Gpu::new(options)).expect("these tests need a GPU adapter: scripts/setup vulkan")
}

/// A device that has chosen its kernels, with what it remembers.
fn choose_with(options: GpuOptions) -> (Gpu, String) {
    let gpu = open(options);
    block_on(choose_kernels(&gpu));
    gpu.check("choosing").unwrap();
    let note = gpu.kernels_to_remember().unwrap();
    (gpu, note)
}

/// A note that is believed, however short of time its measurement was.
fn settled(note: &str) -> String {
    note.replace(PARTLY, FULLY)
}

const PARTLY: &str = "\"measured\":\"partly\"";
const FULLY: &str = "\"measured\":\"fully\"";

/// A note of another choice than the one that `gpu` makes by capability, if it has one.
fn other_note(gpu: &Gpu, note: &str) -> Option<String> {
    let capabilities = gpu.capabilities();
    let other = *candidates(Family::Matvec, capabilities).last()?;
    let mut json: serde_json::Value = serde_json::from_str(&settled(note)).unwrap();
    json["matvec"] = other.variant.name().into();
    (other.variant != tuned(capabilities).matvec).then(|| json.to_string())
}

#[test]
fn the_fastest_wins_if_it_wins_by_a_margin() {
    let just = 1.0 - MARGIN;
    let cases: [(&[Option<f64>], usize); 12] = [
        (&[], 0),
        (&[None], 0),
        (&[Some(1.0)], 0),
        (&[Some(1.0), Some(0.5)], 1),
        (&[Some(1.0), Some(just)], 0),
        (&[Some(1.0), Some(just - 1e-9)], 1),
        (&[Some(1.0), Some(0.8), Some(0.7), Some(0.75)], 2),
        (&[Some(1.0), Some(0.7), Some(0.7)], 1),
        (&[Some(1.0), None, Some(0.7)], 2),
        (&[None, Some(0.1)], 0),
        (&[Some(f64::NAN), Some(0.1)], 0),
        (&[Some(1.0), Some(f64::NAN), Some(f64::INFINITY)], 0),
    ];
    for (seconds, expected) in cases {
        assert_eq!(pick(seconds), expected, "{seconds:?}");
    }
}

#[test]
fn the_first_candidates_are_those_by_capability() {
    for software in [false, true] {
        for subgroups in [None, Some((4, 4)), Some((8, 8)), Some((32, 32)), Some((8, 32))] {
            let adapter = capabilities(software, subgroups);
            let by_capability = tuned(&adapter);
            let [matvec, matmul] =
                [Family::Matvec, Family::Matmul].map(|family| candidates(family, &adapter));
            assert_eq!((matvec[0].variant, matmul[0].variant), (by_capability.matvec, by_capability.matmul));
            for (index, one) in matvec.iter().enumerate() {
                assert!(!matvec[..index].contains(one), "twice: {one:?}");
                assert!(subgroups.is_some() || one.variant != Variant::Subgroup);
            }
            // Nothing is said of a choice: the value by capability.
            assert_eq!(Variants::by_capability(KernelChoice::Auto, &adapter), by_capability);
        }
    }
}

#[test]
fn each_family_gets_its_fastest_shape() {
    let adapter = capabilities(true, Some((8, 8)));
    let (variants, measured) = chosen(&adapter, 100.0, |family, candidate| {
        Some(match (family, candidate.variant, candidate.tile_rows) {
            (Family::Matvec, Variant::Plain, _) => 0.5,
            (Family::Matmul, Variant::Broadcast { .. }, 8) => 0.5,
            _ => 1.0,
        })
    });
    let names = variants.names();
    assert_eq!(
        names,
        [("routed_matvec", "plain"), ("routed_matmul", "broadcast"), ("row_attention", "broadcast")]
    );
    assert!(!variants.tall);
    assert_eq!(
        measured,
        [
            (Family::Matvec, "broadcast", 1),
            (Family::Matvec, "plain", 1),
            (Family::Matmul, "broadcast", 16),
            (Family::Matmul, "broadcast", 8),
            (Family::Matmul, "plain", 8),
        ]
    );
}

#[test]
fn refused_candidates_and_equal_ones_change_nothing() {
    for adapter in [capabilities(true, Some((8, 8))), capabilities(false, Some((32, 32)))] {
        assert_eq!(chosen(&adapter, 100.0, |_, _| None).0, tuned(&adapter));
        assert_eq!(chosen(&adapter, 100.0, |_, _| Some(1.0)).0, tuned(&adapter));
    }
}

/// On a GPU with 16-bit floats, where they are quicker, and 8-bit integers, too.
#[test]
fn coarse_products_are_for_weights_as_coarse_on_gpus_where_they_win() {
    let mut gpu = capabilities(false, Some((32, 32)));
    gpu.shader_f16 = true;
    let quick = |_, candidate: Candidate| {
        Some(match candidate.variant {
            Variant::F16 => 0.5,
            Variant::Packed => 0.25,
            _ => 1.0,
        })
    };
    let (variants, measured) = chosen(&gpu, 100.0, quick);
    let names: Vec<&str> = variants.names().iter().map(|(_, name)| *name).collect();
    assert_eq!(names, ["subgroup", "f16", "workgroup", "packed", "packed"]);
    // Each beside what won without them.
    let quantized: Vec<_> = measured
        .iter()
        .filter(|(family, ..)| matches!(family, Family::QuantizedMatvec | Family::QuantizedMatmul))
        .collect();
    assert_eq!(
        quantized,
        [
            &(Family::QuantizedMatvec, "subgroup", 1),
            &(Family::QuantizedMatvec, "packed", 1),
            &(Family::QuantizedMatmul, "f16", 32),
            &(Family::QuantizedMatmul, "packed", 32),
        ]
    );

    // Tiles are cut before it is known which weights they are for: not packed where other products have lower tiles.
    let (variants, _) = chosen(&gpu, 100.0, |family, candidate| match (family, candidate.variant) {
        (Family::Matmul, Variant::Plain) => Some(0.1),
        _ => quick(family, candidate),
    });
    assert_eq!((variants.matmul, variants.packed), (Variant::Plain, Packed { matvec: true, matmul: false }));

    // Without 16-bit floats, and on software adapters, neither is tried.
    let without = |adapter: &Capabilities| {
        let (variants, measured) = chosen(adapter, 100.0, quick);
        assert_eq!(variants.packed.matvec, measured.iter().any(|(_, name, _)| *name == "packed"));
        measured.iter().all(|(_, name, _)| *name != "f16")
    };
    assert!(without(&capabilities(false, Some((32, 32)))));
    let mut software = capabilities(true, Some((8, 8)));
    software.shader_f16 = true;
    assert!(without(&software));
    assert_eq!(chosen(&software, 100.0, quick).0.packed, Packed::default());

    // By capability only who asks for them has them.
    for choice in [KernelChoice::Tuned, KernelChoice::Subgroup, KernelChoice::Workgroup, KernelChoice::Plain]
    {
        let variants = Variants::by_capability(choice, &gpu);
        assert!(variants.packed == Packed::default() && variants.matmul != Variant::F16, "{choice:?}");
    }
}

#[test]
fn the_budget_ends_the_measurement() {
    let adapter = capabilities(true, Some((8, 8)));
    // Each candidate takes 1 and may be followed by one that does, but for the first matmul, which may take 3.
    for (budget, expected) in
        [(0.0, 0), (0.5, 1), (1.0, 1), (2.0, 1), (2.5, 2), (5.0, 2), (5.5, 5), (100.0, 5)]
    {
        let (variants, measured) = chosen(&adapter, budget, |_, _| Some(1.0));
        assert_eq!((variants, measured.len()), (tuned(&adapter), expected), "{budget}");
        let clock = Cell::new(0.0);
        let measure = async |_, _, _| {
            clock.set(clock.get() + 1.0);
            Some(1.0)
        };
        let (_, how_far) = block_on(choose(&adapter, budget, || clock.get(), measure));
        assert_eq!(how_far == Measured::Fully, expected == 5, "{budget}");
    }
}

#[test]
fn nothing_is_measured_where_there_is_no_choice() {
    let adapter = capabilities(true, None);
    assert_eq!(chosen(&adapter, 100.0, |_, _| Some(1.0)), (tuned(&adapter), Vec::new()));
}

#[test]
fn a_choice_is_made_once_and_found_again() {
    let folder = folder("round-trip");
    let (gpu, first) = choose_with(GpuOptions::new().kernel_cache(&folder));
    let file = folder.join("kernels.json");
    let written = fs::read_to_string(&file).unwrap();
    assert_eq!(written, format!("[{first}]"));
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "something is left beside the file");

    // Another choice in the file is what the next device runs: it read it, and measured nothing.
    let note = other_note(&gpu, &first).unwrap_or_else(|| settled(&first));
    fs::write(&file, format!("[{note}]")).unwrap();
    let (_, second) = choose_with(GpuOptions::new().kernel_cache(&folder));
    assert_eq!(second, note);
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("[{note}]"));
}

/// Where compiling took the time, drivers have compiled by the second time, or keep nothing and never will have.
#[test]
fn what_the_budget_cut_short_is_measured_once_more() {
    let folder = folder("once-more");
    let (_, whole) = choose_with(GpuOptions::new().kernel_cache(&folder));
    let part = whole.replace(FULLY, PARTLY);
    fs::write(folder.join("kernels.json"), format!("[{part}]")).unwrap();
    let (gpu, second) = choose_with(GpuOptions::new().kernel_cache(&folder));
    assert!(second.contains(FULLY), "{second}");
    let (_, measured) = Notes::of(&NotePlace::Folder(folder)).variants(gpu.capabilities()).unwrap();
    assert_eq!(measured, Measured::Fully);
}

#[test]
fn a_note_is_handed_from_one_device_to_the_next() {
    let (gpu, first) = choose_with(GpuOptions::new().without_kernel_cache());
    let note = other_note(&gpu, &first).unwrap_or_else(|| settled(&first));
    let (_, second) = choose_with(GpuOptions::new().without_kernel_cache().remembered_kernels(&*note));
    assert_eq!(second, note);
}

#[test]
fn a_note_on_something_else_is_not_believed() {
    let (gpu, note) = choose_with(GpuOptions::new().without_kernel_cache());
    let adapter = gpu.capabilities();
    let folder = folder("mismatch");
    let notes = Notes::of(&NotePlace::Folder(folder.clone()));
    let says = |text: &str| {
        fs::write(folder.join("kernels.json"), text).unwrap();
        notes.variants(adapter)
    };
    assert!(says(&format!("[{note}]")).is_some());
    for (name, value) in [("name", "another"), ("driver", "another"), ("backend", "another")] {
        let mut other = adapter.clone();
        match name {
            "name" => other.name = value.to_owned(),
            "driver" => other.driver = value.to_owned(),
            _ => other.backend = value.to_owned(),
        }
        assert!(notes.variants(&other).is_none(), "another {name}");
    }
    let mut other = adapter.clone();
    other.subgroups = Some((64, 64));
    assert!(notes.variants(&other).is_none(), "other subgroups");
    let version = format!("headwise {}", env!("CARGO_PKG_VERSION"));
    assert!(note.contains(&version));
    assert!(says(&format!("[{}]", note.replace(&version, "headwise 0.0.1"))).is_none());
    // A kernel that is no candidate here.
    for field in ["matvec", "matmul", "tile_rows"] {
        let mut json: serde_json::Value = serde_json::from_str(&note).unwrap();
        json[field] = if field == "tile_rows" { 7.into() } else { "no such kernel".into() };
        assert!(says(&format!("[{json}]")).is_none(), "{json}");
    }
    for field in ["packed_matvec", "packed_matmul"].into_iter().filter(|_| adapter.software) {
        let mut json: serde_json::Value = serde_json::from_str(&note).unwrap();
        json[field] = true.into();
        assert!(says(&format!("[{json}]")).is_none(), "{json}");
    }
}

#[test]
fn a_broken_file_costs_a_measurement_and_no_more() {
    let (gpu, note) = choose_with(GpuOptions::new().without_kernel_cache());
    let folder = folder("broken");
    let file = folder.join("kernels.json");
    let deep = "[".repeat(60_000);
    let long = format!("[{}{note}]", " ".repeat(1 << 20));
    let cases: [&[u8]; 10] = [
        b"",
        b"\0\xff\xfe",
        b"null",
        b"{}",
        b"[1, null, {}]",
        b"[{\"adapter\": 3}]",
        &note.as_bytes()[..note.len() - 1],
        note.as_bytes(),
        deep.as_bytes(),
        long.as_bytes(),
    ];
    for text in cases {
        fs::write(&file, text).unwrap();
        let notes = Notes::of(&NotePlace::Folder(folder.clone()));
        assert!(notes.variants(gpu.capabilities()).is_none(), "{:?}", text.get(..20));
    }
    // What is whole in a broken list counts.
    fs::write(&file, format!("[null, {{}}, {note}]")).unwrap();
    assert!(Notes::of(&NotePlace::Folder(folder.clone())).variants(gpu.capabilities()).is_some());
    // And the file is whole again after the next choice.
    fs::write(&file, b"\0").unwrap();
    let (_, note) = choose_with(GpuOptions::new().kernel_cache(&folder));
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("[{note}]"));
}

#[test]
fn broken_notes_from_a_program_are_measured_anew() {
    for note in [
        "",
        "nonsense",
        "{}",
        "[]",
        "{\"adapter\":\"\",\"matmul\":\"plain\",\"matvec\":\"plain\",\"measured\":\"fully\",\"packed_matmul\":false,\"packed_matvec\":false,\"tile_rows\":8}",
    ] {
        choose_with(GpuOptions::new().without_kernel_cache().remembered_kernels(note));
    }
}

#[test]
fn notes_on_other_adapters_stay_and_old_ones_go() {
    let folder = folder("others");
    let file = folder.join("kernels.json");
    let other = |index: u32| {
        format!(
            "{{\"adapter\":\"{index}\",\"matmul\":\"plain\",\"matvec\":\"plain\",\
             \"measured\":\"fully\",\"packed_matmul\":false,\"packed_matvec\":false,\"tile_rows\":8}}"
        )
    };
    let others: Vec<String> = (0..40).map(other).collect();
    fs::write(&file, format!("[{}]", others.join(","))).unwrap();
    let (_, note) = choose_with(GpuOptions::new().kernel_cache(&folder));
    let expected = format!("[{},{note}]", others[9..].join(","));
    assert_eq!(fs::read_to_string(&file).unwrap(), expected);
}

#[test]
fn a_folder_that_cannot_be_written_changes_nothing() {
    let folder = folder("unwritable");
    // A file where a folder would have to be, and a folder where the file would have to be.
    fs::write(folder.join("file"), "").unwrap();
    fs::create_dir_all(folder.join("taken/kernels.json/x")).unwrap();
    for place in ["file/below", "taken"] {
        choose_with(GpuOptions::new().kernel_cache(folder.join(place)));
    }
    let left: Vec<_> =
        fs::read_dir(folder.join("taken")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kernels.json"]);
}

#[test]
fn a_choice_stays_for_the_life_of_a_device() {
    // Kernels that ran before the choice keep their variants, and so do all after them.
    let gpu = open(GpuOptions::new().without_kernel_cache());
    let before = Variants::of(&gpu);
    block_on(choose_kernels(&gpu));
    assert_eq!(Variants::of(&gpu), before);
    assert_eq!((before, gpu.kernels_to_remember()), (tuned(gpu.capabilities()), None));
}

#[test]
fn only_auto_measures() {
    for kernels in [KernelChoice::Tuned, KernelChoice::Plain, KernelChoice::Broadcast] {
        let folder = folder(&format!("{kernels:?}"));
        let gpu = open(GpuOptions::new().kernel_cache(&folder).kernels(kernels));
        let bytes = gpu.allocated_bytes();
        block_on(choose_kernels(&gpu));
        assert_eq!((gpu.kernels_to_remember(), gpu.allocated_bytes()), (None, bytes));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    }
}

#[test]
fn loading_a_model_chooses_and_leaves_no_memory_behind() {
    let folder = folder("load");
    let gpu = open(GpuOptions::new().kernel_cache(&folder));
    assert_eq!(gpu.kernels_to_remember(), None);
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny");
    let load = || block_on(Model::load(&gpu, &Source::folder(&tiny), LoadOptions::new())).unwrap();
    drop(load());
    assert!(gpu.kernels_to_remember().is_some() && folder.join("kernels.json").is_file());
    assert_eq!(gpu.allocated_bytes(), 0);
}
