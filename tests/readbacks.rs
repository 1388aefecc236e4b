//! The promise: readbacks share a few buffers, whoever waits for them or does not, and each gets its own bytes.

use std::{ops::ControlFlow, path::Path};

use headwise::{
    Cancel, Generate, Gpu, GpuOptions, KernelChoice, LoadOptions, Model, Source, block_on,
    internal::{Buffer, ForTests, Pending, Recorder},
};

/// Steps under way at once: `STEPS_AHEAD` of the generation and the one that is read.
const IN_FLIGHT: usize = 4;
/// What the smallest buffer for a readback takes.
const SMALLEST: u64 = 256;

fn gpu() -> Gpu {
    let options = GpuOptions::new().default_limits(true).kernels(KernelChoice::Tuned);
    block_on(Gpu::new(options)).expect("these tests need a GPU adapter: scripts/setup vulkan")
}

fn tiny(gpu: &Gpu) -> Model {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jetmoe_tiny");
    block_on(Model::load(gpu, &Source::folder(folder), LoadOptions::new())).unwrap()
}

/// A buffer whose words are written before each read.
struct Words {
    recorder: Recorder,
    buffer: Buffer,
}

impl Words {
    fn new(gpu: &Gpu) -> Self {
        Self { recorder: Recorder::new(gpu), buffer: Buffer::new(gpu, "words", 4096) }
    }

    /// Starts to read `count` words that are all `value`.
    fn read(&mut self, value: u32, count: usize) -> Pending {
        self.buffer.write(0, &vec![value; count]);
        self.recorder.submit_and_read(&[(&self.buffer, 0, 4 * count as u64)])
    }
}

fn words(pending: Pending) -> Vec<u32> {
    bytemuck::pod_collect_to_vec(&block_on(pending.wait("reading words")).unwrap())
}

#[test]
fn decoding_makes_no_buffers_once_it_is_under_way() {
    let gpu = gpu();
    let model = tiny(&gpu);
    for routes in [false, true] {
        let options = Generate::new().greedy().stop_at([]).max_new(60);
        let options = if routes { options.with_routes() } else { options };
        let mut created = Vec::new();
        block_on(model.generate_ids(&[&[1, 7, 42]], &options, |token| {
            if !token.prompt {
                created.push(gpu.created_buffers());
            }
            ControlFlow::Continue(())
        }))
        .unwrap();
        assert_eq!(created.len(), 60);
        // The first tokens bring as many buffers as there are steps in flight.
        assert!(created[IN_FLIGHT] - created[0] <= IN_FLIGHT as u64, "{created:?}");
        assert_eq!(created[IN_FLIGHT], created[59], "routes {routes}: {created:?}");
    }
}

#[test]
fn one_read_after_the_other_takes_one_buffer_of_each_size() {
    let gpu = gpu();
    let mut reads = Words::new(&gpu);
    let (created, bytes) = (gpu.created_buffers(), gpu.allocated_bytes());
    for round in 0..20 {
        for count in [0, 1, 64, 65, 128, 1024] {
            assert_eq!(words(reads.read(round, count)), vec![round; count]);
        }
    }
    // 256, 512 and 4096 bytes.
    assert_eq!(gpu.created_buffers() - created, 3);
    assert_eq!(gpu.allocated_bytes() - bytes, SMALLEST + 512 + 4096);
    drop(reads);
    assert_eq!(gpu.allocated_bytes(), 0);
}

#[test]
fn reads_that_nobody_waits_for_neither_break_nor_fill_later_ones() {
    let gpu = gpu();
    let mut reads = Words::new(&gpu);
    let (created, bytes) = (gpu.created_buffers(), gpu.allocated_bytes());
    for round in 0..100 {
        // Behind a read that is dropped at once, before the device could answer; and one that is dropped later.
        drop(reads.read(7_000 + round, 16));
        let late = reads.read(8_000 + round, 16);
        let wanted = reads.read(round, 16);
        assert_eq!(words(wanted), vec![round; 16], "round {round}");
        if round % 2 == 0 {
            // It was given no buffer that the first one's answer would still go to.
            assert_eq!(words(late), vec![8_000 + round; 16], "round {round}");
        }
    }
    // Each wait also lets the device answer what was dropped before it.
    let created = gpu.created_buffers() - created;
    assert!(created <= 3, "{created} buffers");
    assert_eq!(gpu.allocated_bytes() - bytes, created * SMALLEST);
}

#[test]
fn reads_that_nobody_ever_waits_for_keep_a_bounded_number_of_buffers() {
    let gpu = gpu();
    let mut reads = Words::new(&gpu);
    let bytes = gpu.allocated_bytes();
    for round in 0..100 {
        drop(reads.read(round, 16));
        assert!(gpu.allocated_bytes() - bytes <= 8 * SMALLEST, "round {round}");
    }
    assert_eq!(words(reads.read(5, 16)), [5; 16]);
    // A reader that outlives the recorder still gets its bytes; then everything is gone.
    let last = reads.read(6, 16);
    drop(reads);
    assert_eq!(words(last), [6; 16]);
    assert_eq!(gpu.allocated_bytes(), 0);
}

#[test]
fn large_reads_are_not_kept() {
    let gpu = gpu();
    let mut recorder = Recorder::new(&gpu);
    let buffer = Buffer::new(&gpu, "large", 3 << 20);
    buffer.write(0, &vec![9u32; 3 << 18]);
    let bytes = gpu.allocated_bytes();
    assert_eq!(words(recorder.submit_and_read(&[(&buffer, 0, 3 << 20)])), vec![9; 3 << 18]);
    assert_eq!(gpu.allocated_bytes(), bytes);
}

#[test]
fn a_run_that_is_cancelled_leaves_nothing_wrong_behind() {
    let gpu = gpu();
    let model = tiny(&gpu);
    let weights = gpu.allocated_bytes();
    let generate = |options: &Generate, at: usize, cancel: &Cancel| {
        let mut seen = 0;
        let told = |_: &headwise::Token| {
            seen += 1;
            if seen == at {
                cancel.cancel();
            }
            ControlFlow::Continue(())
        };
        block_on(model.generate_ids(&[&[1, 7, 42]], options, told)).unwrap().ids.remove(0)
    };
    let all = generate(&Generate::new().greedy().stop_at([]).max_new(40), usize::MAX, &Cancel::new());
    for at in 1..12 {
        let cancel = Cancel::new();
        let options = Generate::new().greedy().stop_at([]).max_new(40).cancel(&cancel);
        let some = generate(&options, at, &cancel);
        assert_eq!(some, all[..some.len()]);
        assert_eq!(gpu.allocated_bytes(), weights, "cancelled at {at}");
    }
    assert_eq!(generate(&Generate::new().greedy().stop_at([]).max_new(40), 0, &Cancel::new()), all);
}
