//! A tensor for each expert is the same model as one tensor of all.

use pollster::block_on;

use super::*;
use crate::{
    Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Precision, Source,
    layers::{Heads, MlpActivation},
    models::{Blueprint, Description, HeadNames, Prefix, Task},
    ops::{Activation, ExpertChoice, NormKind, Weighting},
    tasks::Files,
    weights::{Checkpoint, Order, testing::file},
};

const VOCAB: u32 = 11;
const WIDTH: u32 = 32;
const HIDDEN: u32 = 64;
const EXPERTS: u32 = 3;
const HEADS: Heads = Heads { query: 4, kv: 4, dim: 8 };
/// Query and value experts of all heads, where the experts are within heads.
const WITHIN: u32 = 4 * 2;

/// Tensors of all experts: the name, the shape, and of how many tensors the same may be made.
const STACKED: [(&str, &[u32], u32); 9] = [
    ("0.q", &[EXPERTS, 32, WIDTH], EXPERTS),
    ("0.o", &[EXPERTS, WIDTH, 32], EXPERTS),
    // An expert's gate, its up projection, the next expert's gate, …
    ("0.up", &[EXPERTS, 2 * HIDDEN, WIDTH], 2 * EXPERTS),
    ("0.down", &[EXPERTS, WIDTH, HIDDEN], EXPERTS),
    ("1.v", &[WITHIN, WIDTH, 8], WITHIN),
    ("1.o", &[WITHIN, 8, WIDTH], WITHIN),
    ("1.up", &[EXPERTS, WIDTH, HIDDEN], EXPERTS),
    ("1.down", &[EXPERTS, HIDDEN, WIDTH], EXPERTS),
    // Keys over values.
    ("0.kv", &[2, 32, WIDTH], 2),
];

/// The other tensors.
const OTHERS: [(&str, &[u32]); 11] = [
    ("table.weight", &[VOCAB, WIDTH]),
    ("norm.weight", &[WIDTH]),
    ("0.norm.weight", &[WIDTH]),
    ("0.router.weight", &[EXPERTS, WIDTH]),
    ("0.mlp_router.weight", &[EXPERTS, WIDTH]),
    ("1.norm.weight", &[WIDTH]),
    ("1.router.weight", &[WITHIN, WIDTH]),
    ("1.value_router.weight", &[WITHIN, WIDTH]),
    ("1.mlp_router.weight", &[EXPERTS, WIDTH]),
    ("1.q.weight", &[32, WIDTH]),
    ("1.k.weight", &[32, WIDTH]),
];

/// The names of a stacked tensor, or of its parts where they are `apart`.
fn names(name: &str, apart: bool) -> Vec<String> {
    let parts = STACKED.iter().find(|stacked| stacked.0 == name).unwrap().2;
    match apart {
        false => vec![name.to_owned()],
        true => (0..parts).map(|part| format!("{name}.{part}")).collect(),
    }
}

/// A mixture of attention heads with gated experts, then one of experts within heads with plain ones: between them every
/// stack that a family may have, output-major and input-major.
fn description(apart: bool) -> Description {
    let norm = NormSpec::before(NormKind::Rms, WIDTH, 1e-5);
    let router = |choice| RouterSpec::new(RouterNet::Linear, choice);
    let top_2 = ExpertChoice::top_k(EXPERTS, 2, Weighting::SoftmaxTopK);
    let dense = HeadMixtureSpec::dense(norm, HEADS, PositionEncoding::None);
    let within = router(ExpertChoice { groups: 4, ..ExpertChoice::top_k(WITHIN, 1, Weighting::Sigmoid) });
    let mlp = |activation| ExpertMlpSpec {
        router: router(top_2),
        ..ExpertMlpSpec::dense(norm, HIDDEN, activation)
    };
    let blocks = vec![
        BlockSpec::new(HeadMixtureSpec { router: router(top_2), ..dense }, mlp(MlpActivation::SwiGlu)),
        BlockSpec::new(
            HeadMixtureSpec {
                router: within,
                heads_per_expert: 1,
                query_share: 2,
                kv: KvProjection::MixedValues(within),
                ..dense
            },
            mlp(MlpActivation::Plain(Activation::Gelu)),
        ),
    ];
    let pieces = |name| names(name, apart).into_iter().collect::<Pieces>();
    let output_major = |name| pieces(name).ordered(Order::OutputMajor);
    let input_major = |name| pieces(name).ordered(Order::InputMajor);
    let (first, second) = (Prefix::new(0), Prefix::new(1));
    let block_names = vec![
        BlockNames {
            attention: AttentionNames {
                norm: first.weight("norm"),
                router: RouterNames::linear(first.weight("router")),
                query: output_major("0.q"),
                // One dense matrix: its rows are in order however many tensors there are.
                kv: names("0.kv", true).into_iter().collect(),
                output: output_major("0.o"),
                ..AttentionNames::default()
            },
            mlp: MlpNames {
                norm: first.weight("norm"),
                router: RouterNames::linear(first.weight("mlp_router")),
                up: output_major("0.up"),
                down: output_major("0.down"),
                ..MlpNames::default()
            },
            ..BlockNames::default()
        },
        BlockNames {
            attention: AttentionNames {
                norm: second.weight("norm"),
                router: RouterNames::linear(second.weight("router")),
                query: second.weight("q"),
                kv: second.weight("k"),
                values: input_major("1.v"),
                value_router: RouterNames::linear(second.weight("value_router")),
                output: input_major("1.o"),
                ..AttentionNames::default()
            },
            mlp: MlpNames {
                norm: second.weight("norm"),
                router: RouterNames::linear(second.weight("mlp_router")),
                up: input_major("1.up"),
                down: input_major("1.down"),
                ..MlpNames::default()
            },
            ..BlockNames::default()
        },
    ];
    let stack = StackSpec::new(blocks, true, norm);
    let input = InputSpec::Tokens { scale: 1.0, sinusoidal_from: None, factor: None };
    let stack_names = StackNames { blocks: block_names, final_norm: Prefix::default().weight("norm") };
    let embedding = InputNames::table("table.weight");
    let head = HeadNames::new("head.weight", true);
    Description {
        family: "test",
        task: Task::Generate,
        spec: TransformerSpec::new(VOCAB, 16, input, stack),
        names: TransformerNames::new(embedding, stack_names, head),
    }
}

/// The same values in either layout.
fn source(apart: bool) -> Source {
    let mut seed = 7u32;
    let mut values = |count: usize| -> Vec<u8> {
        let mut next = || {
            seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
            (seed >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..count).flat_map(|_| next().to_le_bytes()).collect()
    };
    let sizes = |shape: &[u32]| shape.iter().map(|&n| n as usize).collect::<Vec<_>>();
    let mut tensors = Vec::new();
    for (name, shape, _) in STACKED {
        let shape = sizes(shape);
        let bytes = values(shape.iter().product());
        let names = names(name, apart || name == "0.kv");
        if let [one] = names.as_slice() {
            tensors.push((one.clone(), shape, bytes));
            continue;
        }
        let (part, rows) = (bytes.len() / names.len(), shape[0] * shape[1] / names.len());
        let parts = names.into_iter().zip(bytes.chunks(part));
        tensors.extend(parts.map(|(name, bytes)| (name, vec![rows, shape[2]], bytes.to_vec())));
    }
    for (name, shape) in OTHERS {
        let shape = sizes(shape);
        tensors.push((name.to_owned(), shape.clone(), values(shape.iter().product())));
    }
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), "F32", shape.as_slice(), bytes.clone()))
        .collect();
    Source::memory("m", vec![("model.safetensors", file(&tensors))])
}

fn logits(gpu: &Gpu, apart: bool, precision: Precision) -> Vec<f32> {
    let source = source(apart);
    let checkpoint = block_on(Checkpoint::open(&source)).unwrap();
    let blueprint = Blueprint::checked(description(apart), &checkpoint, "m/config.json").unwrap();
    let files = Files {
        blueprint,
        checkpoint,
        #[cfg(feature = "tokenizer")]
        tokenizer: None,
    };
    let options = LoadOptions::new().precision(precision);
    let model = block_on(Model::load_weights(gpu, &source, files, options, &tracing::Span::none())).unwrap();
    block_on(model.logits(&[&[1, 5, 3, 8, 8, 2]])).unwrap().remove(0).values
}

#[test]
fn a_tensor_for_each_expert_gives_the_bits_of_one_tensor_of_all() {
    let gpu = GpuOptions::new().default_limits(true).kernels(KernelChoice::Plain);
    let gpu = block_on(Gpu::new(gpu)).expect("this test needs a GPU adapter: scripts/setup vulkan");
    for precision in [Precision::F32, Precision::F16, Precision::Q8] {
        let stacked = logits(&gpu, false, precision);
        assert_eq!(stacked.len(), 6 * VOCAB as usize);
        assert!(stacked.iter().all(|logit| logit.is_finite() && *logit != 0.0), "{stacked:?}");
        let apart = logits(&gpu, true, precision);
        let bits = |logits: &[f32]| logits.iter().map(|logit| logit.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&apart), bits(&stacked), "{precision:?}");
    }
}

#[test]
fn names_that_do_not_make_the_whole_are_refused() {
    let pieces = |count| (0..count).map(|part| format!("x.{part}")).collect::<Pieces>();
    let shape = MatrixShape { experts: 3, halves: 1, outputs: 8, inputs: 16 };
    for (order, count, fits) in [
        (Order::InputMajor, 0, false),
        (Order::InputMajor, 1, true),
        (Order::InputMajor, 2, false),
        (Order::InputMajor, 3, true),
        (Order::OutputMajor, 3, true),
        (Order::OutputMajor, 5, false),
        (Order::Columns, 4, true),
        (Order::Columns, 3, false),
        (Order::Dense, 12, true),
    ] {
        let mut plan: Vec<Request> = Vec::new();
        let asked = plan.matrix(Request::matrix(&pieces(count).ordered(order), shape));
        assert_eq!(asked.is_ok(), fits, "{order:?} of {count}: {asked:?}");
    }
}
