//! What sparsity saves in a whole attention layer: MoH's, with some of its heads for each token, against all of them, and
//! against ordinary attention of the same heads, which runs denser kernels.
//!
//! `cargo bench --bench head_mixture` prints, for each, the counted multiply-accumulates and the median time of one run as
//! ratios to MoH with all heads. Keys and values are projected for all tokens either way.

mod support;

use headwise::{
    Gpu, Precision,
    internal::{
        AttentionKernel, Buffer, CachePrecision, CacheSize, CacheUse, Dimensions, ExpertChoice, HeadMixture,
        HeadMixtureSpec, HeadMixtureWeights, KvCache, KvProjection, Matrix, MatrixShape, Norm, NormKind,
        NormSpec, OutputBias, Pass, PositionEncoding, Recorder, Router, RouterNet, RouterSpec, RouterWeights,
        Span, Step, Weighting, Workspace, padded,
    },
};
use support::{in_turns, open_and_announce, time};

const WIDTH: u32 = 768;
const HEADS: u32 = 12;
const HEAD_DIM: u32 = 64;
/// Tokens of an image of 14 × 14 patches.
const TOKENS: u32 = 197;
/// Heads that are always on, and heads kept of the others; `None` for ordinary attention.
const ACTIVE: [Option<(u32, u32)>; 4] = [Some((3, 3)), Some((3, 6)), Some((3, 9)), None];
/// The one that the others are compared with.
const ALL: usize = 2;

struct Setup {
    recorder: Recorder,
    layer: HeadMixture,
    workspace: Workspace,
    cache: KvCache,
    step: Step,
}

/// A matrix whose values do not matter.
fn matrix(gpu: &Gpu, shape: MatrixShape) -> Matrix {
    Matrix::new(gpu, "bench", shape, Precision::F16).expect("one part")
}

/// The router of a mixture of heads.
fn router(shared: u32, routed: u32) -> RouterSpec {
    let choice = ExpertChoice {
        shared,
        scale: routed as f32,
        shared_softmax: true,
        two_stage: true,
        ..ExpertChoice::top_k(HEADS, routed, Weighting::SoftmaxAllRenormalised { eps: 0.0 })
    };
    RouterSpec::new(RouterNet::Linear, choice)
}

fn layer(gpu: &Gpu, active: Option<(u32, u32)>) -> HeadMixture {
    let norm = NormSpec::before(NormKind::Layer, WIDTH, 1e-6);
    let router = active.map_or(RouterSpec::none(), |(shared, routed)| router(shared, routed));
    let spec = HeadMixtureSpec {
        norm,
        router,
        query_share: 1,
        heads_per_expert: if router.routes() { 1 } else { HEADS },
        kv_heads: HEADS,
        group: 1,
        head_dim: HEAD_DIM,
        kv: KvProjection::Projected,
        position: PositionEncoding::None,
        kernel: AttentionKernel::Softmax,
    };
    // Random routers, so that tokens differ in their heads.
    let rows = router.choice.score_rows() * padded(WIDTH);
    let noise: Vec<f32> =
        (0..rows).map(|i| (i.wrapping_mul(2_654_435_761) >> 16) as f32 / 65536.0 - 0.5).collect();
    let weight = Buffer::with_data(gpu, "router", &noise);
    let vector = |count: u32| Buffer::new(gpu, "vector", 4 * u64::from(count));
    HeadMixture {
        norm: Norm {
            spec: norm,
            weights: Some(Buffer::with_data(gpu, "norm", &vec![1f32; 2 * WIDTH as usize])),
        },
        router: router
            .routes()
            .then(|| Router { spec: router, weights: RouterWeights::Linear { weight, bias: None } }),
        weights: HeadMixtureWeights {
            query: matrix(gpu, spec.query_shape()),
            query_bias: Some(vector(HEADS * HEAD_DIM)),
            kv: spec.kv_shape().map(|shape| (matrix(gpu, shape), Some(vector(shape.outputs)))),
            values: None,
            output: matrix(gpu, spec.output_shape()),
            output_bias: OutputBias::Once(vector(WIDTH)),
            relative: None,
        },
        spec,
    }
}

impl Setup {
    fn new(gpu: &Gpu, active: Option<(u32, u32)>) -> Self {
        let layer = layer(gpu, active);
        let mut dimensions = Dimensions::new(TOKENS, 1, TOKENS, 1);
        dimensions.attention(&layer.spec);
        let workspace = Workspace::new(gpu, &dimensions);
        let spans: Vec<Span> = (0..TOKENS).map(|position| Span::seeing(position, 0, TOKENS)).collect();
        let x: Vec<f32> = (0..TOKENS * padded(WIDTH)).map(|i| (i % 97) as f32 / 97.0 - 0.5).collect();
        workspace.x.write(0, &x);
        let step = workspace.begin(&spans, &[[0, TOKENS]]);
        let precision = CachePrecision::F32;
        let size = CacheSize { sequences: 1, capacity: TOKENS, most: TOKENS, precision };
        let cache = KvCache::new(gpu, std::iter::once(&layer.spec), size, CacheUse::OneStep);
        Self { recorder: Recorder::new(gpu), layer, workspace, cache, step }
    }

    fn seconds(&mut self) -> f64 {
        let Self { recorder, layer, workspace, cache, step } = self;
        let (layer, workspace, cache) = (&*layer, &*workspace, &cache.layers[0]);
        let once = time(recorder, 1, |recorder| {
            layer.record(&mut Pass::new(recorder, workspace, step), cache);
        });
        once.as_secs_f64()
    }
}

fn main() {
    let gpu = open_and_announce();
    let mut setups = ACTIVE.map(|active| Setup::new(&gpu, active));
    // What one run of each records.
    let macs = setups.each_mut().map(|setup| {
        setup.seconds();
        setup.recorder.counters().macs as f64
    });
    let mut measures = setups.each_mut().map(|setup| || setup.seconds());
    let mut measures = measures.each_mut().map(|measure| measure as &mut dyn FnMut() -> f64);
    let medians = in_turns(15, &mut measures);
    for (index, active) in ACTIVE.into_iter().enumerate() {
        let what = match active {
            Some((shared, routed)) => format!("{shared} + {routed} of {HEADS} heads"),
            None => format!("ordinary attention of {HEADS} heads"),
        };
        println!(
            "{what}, {TOKENS} tokens: {:.2} of the multiply-accumulates, {:.2} of the time ({:.1} ms)",
            macs[index] / macs[ALL],
            medians[index] / medians[ALL],
            1e3 * medians[index],
        );
    }
}
