//! What the tests run on.

use std::collections::BTreeSet;

use headwise::internal::{KERNELS, KernelChoice};

use crate::support::{CHOICES, ROUNDING, gpu};

#[test]
fn devices_have_the_default_limits() {
    for choice in CHOICES.into_iter().chain(ROUNDING) {
        let limits = gpu(choice).device().limits();
        let default = wgpu::Limits::default();
        assert_eq!(limits.max_storage_buffer_binding_size, default.max_storage_buffer_binding_size);
        assert_eq!(limits.max_storage_buffers_per_shader_stage, default.max_storage_buffers_per_shader_stage);
        assert_eq!(limits.max_compute_workgroup_storage_size, default.max_compute_workgroup_storage_size);
        assert_eq!(
            limits.max_compute_invocations_per_workgroup,
            default.max_compute_invocations_per_workgroup
        );
    }
}

/// Else a run that says it tests another subgroup size would test the same one again.
#[test]
fn subgroups_have_the_size_the_environment_asks_for() {
    let capabilities = gpu(KernelChoice::Subgroup).capabilities();
    let Ok(width) = std::env::var("LP_NATIVE_VECTOR_WIDTH") else { return };
    if capabilities.name.starts_with("llvmpipe") {
        let lanes = width.parse::<u32>().expect("LP_NATIVE_VECTOR_WIDTH is a number of bits") / 32;
        assert_eq!(capabilities.subgroups, Some((lanes, lanes)), "LP_NATIVE_VECTOR_WIDTH={width}");
    }
}

/// Else what says it tests 16-bit floats would test the kernels that do without.
#[test]
fn sixteen_bit_floats_are_there_where_tests_run_on_mesas_software_driver() {
    let capabilities = gpu(KernelChoice::F16).capabilities();
    assert!(capabilities.shader_f16 || !capabilities.name.starts_with("llvmpipe"));
}

/// `scripts/test subgroups` runs `attention` and `linear` alone, and of the variants these: the text of all other kernels
/// names no subgroup (naga refuses it there, see `shaders_are_portable.rs`), so another size of subgroups leaves them as
/// they are.
#[test]
fn kernels_with_subgroups_have_their_tests_where_other_sizes_are_tried() {
    let with_subgroups = KERNELS.iter().filter(|kernel| kernel.source.contains("subgroup"));
    let found: BTreeSet<&str> = with_subgroups.map(|kernel| kernel.name).collect();
    let in_attention = [
        "rope_attention_decode.broadcast",
        "row_attention_decode.broadcast",
        "row_attention_prefill.broadcast",
    ];
    let in_linear = ["routed_matmul.broadcast", "routed_matvec.broadcast", "routed_matvec.subgroup"];
    // And that of the selftest, which compares sizes with what the device reports.
    let in_selftest = ["driver.subgroup"];
    assert_eq!(found, in_attention.into_iter().chain(in_linear).chain(in_selftest).collect());
}
