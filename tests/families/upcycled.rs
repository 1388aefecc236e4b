//! BAM out of dense models, through the library's own `upcycle_bam`.

use headwise::{KernelChoice, KvSharing, LoadOptions, UpcycleOptions, upcycle_bam};

use crate::{
    models::{SHAPES, difference, logits, try_load},
    prompt_of,
    reference::moh_llama::MohLlama,
    with_config, without_moh,
};

#[test]
fn a_mixture_of_equal_models_is_the_model() {
    let dense = with_config("moh_llama_tiny", "upcycled-seed", without_moh);
    let prompt = prompt_of("moh_llama_tiny");
    let expected = MohLlama::load(&dense).forward(&prompt).logits;
    for (kv, name) in [(KvSharing::Expert, "upcycled-expert"), (KvSharing::Shared, "upcycled-shared")] {
        let folder = dense.with_file_name(name);
        // What an earlier run left is refused, as any folder with files is.
        let _ = std::fs::remove_dir_all(&folder);
        upcycle_bam(&[&dense, &dense, &dense], &folder, UpcycleOptions::new().kv(kv).router_seed(7)).unwrap();
        for kernels in SHAPES {
            let model = try_load(kernels, &folder, LoadOptions::new()).unwrap();
            for step_tokens in [1, 64] {
                let found = logits(&model, &prompt, step_tokens);
                let worst = difference(&found, &expected);
                assert!(worst < 2e-4, "{name}, {kernels:?}, steps of {step_tokens}: {worst}");
                // The router is not trained: every module weighs the same, and each token takes one MLP.
                for layer in found.routes.iter().flat_map(|token| &token.layers) {
                    assert!(layer.attention.iter().all(|choice| (choice.gate - 1.0 / 3.0).abs() < 1e-6));
                    assert_eq!((layer.attention.len(), layer.mlp.len()), (3, 1));
                }
            }
        }
    }
    let model = try_load(KernelChoice::Tuned, &dense.with_file_name("upcycled-shared"), LoadOptions::new());
    assert_eq!(model.unwrap().info().family, "bam");
}
