//! Every shader translates to every backend, keeps to WebGPU's default limits, and agrees with the Rust beside
//! it: naga reads the WGSL, so what it says is what a driver is given. Browsers are stricter still: they compile
//! the same files in `web/test/shaders.test.mjs`.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
};

use headwise::internal::{Access, KERNELS, Kernel};
use naga::{
    AddressSpace, GlobalVariable, Module, Scalar, ScalarKind, ShaderStage, StorageAccess, TypeInner,
    back::{PipelineConstants, hlsl, msl, spv},
    proc::Layouter,
    valid::{Capabilities, ModuleInfo, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator},
};

/// What WebGPU guarantees without asking for more.
const MAX_STORAGE_BUFFERS: usize = 8;
const MAX_WORKGROUP_BYTES: u32 = 16 * 1024;
const MAX_INVOCATIONS: u32 = 256;

/// Values to try for an override: all that Rust gives it, or the ends and the middle of a range.
fn values(scalar: Scalar, name: &str) -> &'static [f64] {
    match (scalar, name) {
        (Scalar::BOOL, _) => &[0.0, 1.0],
        // shaders/shared/weights.wgsl
        (Scalar::U32, "WEIGHT_FORMAT") => &[0.0, 1.0, 2.0, 3.0],
        // shaders/shared/activation.wgsl
        (Scalar::U32, "ACTIVATION") => &[0.0, 1.0, 2.0, 3.0, 4.0],
        // shaders/shared/select.wgsl
        (Scalar::U32, "WEIGHTING") => &[0.0, 1.0, 2.0, 3.0, 4.0],
        (Scalar::U32, "SHARED") => &[0.0, 3.0, 256.0],
        (Scalar::U32, "GROUPS") => &[3.0],
        (Scalar::U32, "UNSCORED") => &[0.0, 256.0],
        (Scalar::F32, "RENORM_EPS") => &[1e-6],
        (Scalar::F32, "SCALE") => &[2.5],
        // shaders/shared/broadcast.wgsl, row_tile.wgsl
        (Scalar::U32, "LANES") => &[4.0, 8.0, 16.0],
        (Scalar::U32, "ROWS") => &[1.0, 2.0, 8.0],
        (Scalar::U32, "COLUMNS") => &[1.0, 4.0],
        // shaders/copy.wgsl
        (Scalar::U32, "EACH") => &[4.0, 16.0],
        // shaders/norm_router.wgsl
        (Scalar::U32, "NORM") => &[0.0, 1.0, 2.0],
        _ => panic!("override {name} has values this test does not know"),
    }
}

/// May use subgroup operations.
fn is_subgroup(kernel: &Kernel) -> bool {
    kernel.name.ends_with(".subgroup") || kernel.name.ends_with(".broadcast")
}

/// May compute in 16-bit floats.
fn is_f16(kernel: &Kernel) -> bool {
    kernel.name.ends_with(".f16")
}

/// Parses and validates with no feature beyond WebGPU's core, and subgroups and 16-bit floats only where the name says so.
fn validate(kernel: &Kernel) -> (Module, ModuleInfo) {
    let name = kernel.name;
    let module = naga::front::wgsl::parse_str(kernel.source)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string_with_path(kernel.source, name)));
    let info = validator(kernel)
        .validate(&module)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string_with_path(kernel.source, name)));
    (module, info)
}

/// Of what `kernel` may use.
fn validator(kernel: &Kernel) -> Validator {
    // WebGPU has unpack2x16float without any feature; naga counts it as one because of old GL.
    let mut capabilities = Capabilities::default() | Capabilities::SHADER_FLOAT16_IN_FLOAT32;
    if is_subgroup(kernel) {
        capabilities |= Capabilities::SUBGROUP;
    }
    if is_f16(kernel) {
        capabilities |= Capabilities::SHADER_FLOAT16;
    }
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
    validator
}

/// Every combination of override values.
fn permutations(module: &Module) -> Vec<PipelineConstants> {
    let mut all = vec![PipelineConstants::default()];
    for (_, constant) in module.overrides.iter() {
        let name = constant.name.as_deref().expect("overrides have names, not ids");
        let TypeInner::Scalar(scalar) = module.types[constant.ty].inner else {
            panic!("override {name} is no scalar");
        };
        let with = |set: &PipelineConstants, value| {
            let mut set = set.clone();
            set.insert(name.to_owned(), value);
            set
        };
        all = all.iter().flat_map(|set| values(scalar, name).iter().map(|&value| with(set, value))).collect();
    }
    // The defaults, too.
    all.push(PipelineConstants::default());
    all
}

/// The storage and uniform globals, by binding.
fn bindings(module: &Module) -> Vec<&GlobalVariable> {
    let mut globals: Vec<_> = module.global_variables.iter().map(|(_, global)| global).collect();
    globals.retain(|global| global.binding.is_some());
    globals.sort_by_key(|global| global.binding);
    globals
}

#[test]
fn every_kernel_validates_without_optional_features() {
    for kernel in KERNELS {
        validate(kernel);
    }
}

/// One kernel at a time by every core, as this takes longest.
#[test]
fn every_permutation_translates_to_spirv_msl_and_hlsl() {
    let next = AtomicUsize::new(0);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some(kernel) = KERNELS.get(next.fetch_add(1, Relaxed)) {
                    translate(kernel);
                }
            });
        }
    });
}

fn translate(kernel: &Kernel) {
    let entry = (ShaderStage::Compute, "main");
    let (module, _) = validate(kernel);
    let specialise = kernel.specialiser();
    for constants in permutations(&module) {
        let fail = |backend: &str, error: &dyn std::fmt::Display| -> ! {
            panic!("{} as {backend} with {constants:?}: {error}", kernel.name)
        };
        let module = specialise(&constants).unwrap_or_else(|| fail("a module", &"refused"));
        let info =
            validator(kernel).validate(&module).unwrap_or_else(|error| fail("a specialised module", &error));

        let spirv = spv::Options {
            lang_version: if is_subgroup(kernel) { (1, 3) } else { (1, 0) },
            ..Default::default()
        };
        let point = spv::PipelineOptions { shader_stage: entry.0, entry_point: entry.1.into() };
        let words = spv::write_vec(&module, &info, &spirv, Some(&point))
            .unwrap_or_else(|error| fail("SPIR-V", &error));
        assert!(words.len() > 100, "{}: SPIR-V", kernel.name);

        let metal = msl::Options { lang_version: (2, 1), ..Default::default() };
        let point =
            msl::PipelineOptions { entry_point: Some((entry.0, entry.1.to_owned())), ..Default::default() };
        let (text, _) =
            msl::write_string(&module, &info, &metal, &point).unwrap_or_else(|error| fail("MSL", &error));
        assert!(text.contains("kernel void"), "{}: MSL", kernel.name);

        let directx = hlsl::Options { shader_model: hlsl::ShaderModel::V6_0, ..Default::default() };
        let point = hlsl::PipelineOptions { entry_point: Some((entry.0, entry.1.to_owned())) };
        let mut text = String::new();
        let written = hlsl::Writer::new(&mut text, &directx, &point).write(&module, &info, None);
        if let Err(error) = written {
            fail("HLSL", &error);
        }
        assert!(text.contains("[numthreads("), "{}: HLSL", kernel.name);
    }
}

#[test]
fn every_kernel_has_the_bindings_that_rust_gives_it() {
    for kernel in KERNELS {
        let (module, _) = validate(kernel);
        let found: Vec<_> = bindings(&module).iter().map(|global| (global.binding, global.space)).collect();
        let uniform = std::iter::once(AddressSpace::Uniform);
        let storage = kernel.bindings.iter().map(|access| AddressSpace::Storage {
            access: match access {
                Access::Read => StorageAccess::LOAD,
                Access::Write => StorageAccess::LOAD | StorageAccess::STORE,
            },
        });
        let binding = |binding| Some(naga::ResourceBinding { group: 0, binding });
        let expected: Vec<_> =
            uniform.chain(storage).zip(0..).map(|(space, index)| (binding(index), space)).collect();
        assert_eq!(found, expected, "{}", kernel.name);
    }
}

#[test]
fn every_kernel_keeps_to_the_default_limits() {
    for kernel in KERNELS {
        let (module, _) = validate(kernel);
        let [entry] = &module.entry_points[..] else { panic!("{}: not one entry point", kernel.name) };
        assert_eq!((&*entry.name, entry.stage), ("main", ShaderStage::Compute), "{}", kernel.name);

        let invocations: u32 = entry.workgroup_size.iter().product();
        assert!(invocations <= MAX_INVOCATIONS, "{}: {invocations} invocations", kernel.name);
        let [x, y, z] = entry.workgroup_size;
        assert!(x <= 256 && y <= 256 && z <= 64, "{}: workgroup of {x} × {y} × {z}", kernel.name);

        assert!(kernel.bindings.len() <= MAX_STORAGE_BUFFERS, "{}: storage buffers", kernel.name);

        let mut layouter = Layouter::default();
        layouter.update(module.to_ctx()).expect("sizes are constant");
        let shared = module.global_variables.iter().filter(|(_, g)| g.space == AddressSpace::WorkGroup);
        // WebGPU counts each variable rounded up to 16 bytes.
        let bytes: u32 = shared.map(|(_, g)| layouter[g.ty].size.next_multiple_of(16)).sum();
        assert!(bytes <= MAX_WORKGROUP_BYTES, "{}: {bytes} bytes of workgroup memory", kernel.name);
    }
}

#[test]
fn every_uniform_struct_lies_in_memory_as_its_rust_twin() {
    for kernel in KERNELS {
        let layout = (kernel.params)();
        let (module, _) = validate(kernel);
        let params = bindings(&module)[0];
        let TypeInner::Struct { members, span } = &module.types[params.ty].inner else {
            panic!("{}: binding 0 is no struct", kernel.name);
        };
        let fields: Vec<_> = members
            .iter()
            .map(|member| {
                let kind = match module.types[member.ty].inner {
                    TypeInner::Scalar(Scalar { kind: ScalarKind::Uint, width: 4 }) => "u32",
                    TypeInner::Scalar(Scalar { kind: ScalarKind::Float, width: 4 }) => "f32",
                    ref other => panic!("{}: teach this test about {other:?}", kernel.name),
                };
                (member.name.as_deref().unwrap_or_default(), kind, u64::from(member.offset))
            })
            .collect();
        assert_eq!(fields, layout.fields, "{}", kernel.name);
        assert_eq!(u64::from(*span), layout.size, "{}: size", kernel.name);
    }
}

#[test]
fn every_file_is_a_kernel_and_says_which() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders");
    let files: BTreeSet<String> = fs::read_dir(folder)
        .expect("shaders/ is there")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some(name.strip_suffix(".wgsl")?.to_owned()))
        .collect();
    let kernels: BTreeSet<String> = KERNELS.iter().map(|kernel| kernel.name.to_owned()).collect();
    assert_eq!(files, kernels, "files in shaders/ against KERNELS");
    assert_eq!(kernels.len(), KERNELS.len(), "no kernel is listed twice");

    for kernel in KERNELS {
        // A variant says the maths it shares with the plain kernel.
        let maths = kernel.name.split('.').next().unwrap_or_default();
        let opening = kernel.source.lines().next().unwrap_or_default();
        let named = opening.strip_prefix("// ").and_then(|text| text.strip_prefix(maths));
        assert!(
            named.is_some_and(|rest| rest.starts_with([':', ','])),
            "{}.wgsl opens with \"{opening}\"",
            kernel.name
        );
    }
}
