//! What drivers are known to do otherwise: loops that end early, subgroups of another size than reported, 16-bit floats of
//! another range, parameters or workgroups that are lost.

use half::f16;
use headwise_reference::noise::noise;

use super::{Finding, Lab, Run, lab::floats_of};
use crate::{
    Result,
    gpu::Recorder,
    ops::{DriverLoop, DriverProducts, DriverSubgroups},
};

/// Turns that kernels may take: fewer than llvmpipe gives an invocation, which it ends after 65,535 of all its loops.
const TURNS: u32 = 60_000;
/// More than that.
const MANY_TURNS: u32 = 100_000;

pub(super) async fn check(run: &mut Run<'_>, lab: &Lab) {
    let name = |what| ("driver", what);
    run.case(lab, name("loops"), "60,000 turns", turns(lab, TURNS)).await;
    let long = async {
        let ends = !turns(lab, MANY_TURNS).await?.is_right();
        Ok(ends.then(|| "a loop of 100,000 turns ends early; headwise's are shorter".to_owned()))
    };
    run.look(lab, name("long loops"), long).await;
    run.case(lab, name("workgroups"), "65,535 of them", workgroups(lab)).await;
    run.case(lab, name("parameters"), "300 dispatches in a pass", parameters(lab)).await;
    let capabilities = lab.gpu.capabilities();
    if let Some(sizes) = capabilities.subgroups {
        run.case(lab, name("subgroups"), "sizes", subgroups(lab, sizes)).await;
    }
    if capabilities.shader_f16 {
        run.case(lab, name("f16"), "products up to 65,504", products(lab)).await;
        run.look(lab, name("f16 limits"), limits(lab)).await;
    }
}

async fn turns(lab: &Lab, turns: u32) -> Result<Finding> {
    let out = lab.output(1);
    let work = DriverLoop { out: &out.buffer, first: 0, seed: 5, turns, groups: 1 };
    let read = lab.run(&[&out], |recorder: &mut Recorder| work.record(recorder)).await?;
    Ok(Finding::equal(&read[0], &[work.expected(0)]))
}

async fn workgroups(lab: &Lab) -> Result<Finding> {
    let groups = 65_535;
    let out = lab.output(groups as usize);
    // From the last numbers before they wrap around.
    let work = DriverLoop { out: &out.buffer, first: 0, seed: u32::MAX - 9, turns: 1, groups };
    let read = lab.run(&[&out], |recorder: &mut Recorder| work.record(recorder)).await?;
    Ok(Finding::equal(&read[0], &(0..groups).map(|group| work.expected(group)).collect::<Vec<_>>()))
}

/// Each dispatch finds its own parameters, in steps of a uniform's alignment, over more than one buffer of them.
async fn parameters(lab: &Lab) -> Result<Finding> {
    let count = 300;
    let out = lab.output(count as usize);
    let work = |first| DriverLoop { out: &out.buffer, first, seed: 7 * first, turns: 2, groups: 1 };
    let record = |recorder: &mut Recorder| (0..count).for_each(|first| work(first).record(recorder));
    let read = lab.run(&[&out], record).await?;
    Ok(Finding::equal(&read[0], &(0..count).map(|first| work(first).expected(0)).collect::<Vec<_>>()))
}

/// As many lanes add up as a subgroup says it has, within what the device reports.
async fn subgroups(lab: &Lab, (least, most): (u32, u32)) -> Result<Finding> {
    let out = lab.output(128);
    let read = lab.run(&[&out], |recorder| DriverSubgroups { out: &out.buffer }.record(recorder)).await?;
    let expected: Vec<u32> =
        read[0].chunks_exact(2).flat_map(|lane| [lane[0].clamp(least, most), lane[0].min(64)]).collect();
    Ok(Finding::equal(&read[0], &expected))
}

async fn multiply(lab: &Lab, pairs: &[f64]) -> Result<Vec<f64>> {
    let count = pairs.len() as u32 / 2;
    let (src, out) = (lab.floats(pairs), lab.output(count as usize));
    let record = |recorder: &mut Recorder| {
        DriverProducts { src: &src, out: &out.buffer, count }.record(recorder);
    };
    Ok(floats_of(&lab.run(&[&out], record).await?[0]))
}

/// Within one part in 1,024 of each: two roundings to 11 bits, in any direction.
async fn products(lab: &Lab) -> Result<Finding> {
    let pairs = [&noise(1, 200)[..], &[65_504.0, 1.0, 256.0, 255.0, -1.0, 65_504.0]].concat();
    let got = multiply(lab, &pairs).await?;
    let expected: Vec<f64> = pairs.chunks_exact(2).map(|pair| pair[0] * pair[1]).collect();
    let relative: Vec<f64> = got.iter().zip(&expected).map(|(got, expected)| got / expected).collect();
    let ones = vec![1.0; relative.len()];
    // Each input is rounded, and the product.
    Ok(Finding::within(&relative, &ones, &vec![3.0 / 1024.0; ones.len()]))
}

/// What no kernel depends on: where 16-bit floats end, and how the nearest of two is chosen.
async fn limits(lab: &Lab) -> Result<Option<String>> {
    let (smallest, largest) = (0.5f64.powi(17), 131_008.0);
    let got = multiply(lab, &[0.5f64.powi(14), 0.125, 65_504.0, 2.0, 1.0 + 1.0 / 2048.0 + 1e-6, 1.0]).await?;
    let nearest = f16::from_f64(1.0 + 1.0 / 2048.0 + 1e-6).to_f64();
    let mut remarks = Vec::new();
    if got[0] != smallest {
        remarks.push(format!("2^-17 is {}", got[0]));
    }
    if got[1].is_finite() {
        remarks.push(format!("{largest} is {}", got[1]));
    }
    if got[2] != nearest {
        remarks.push("rounds towards zero".to_owned());
    }
    Ok((!remarks.is_empty()).then(|| remarks.join(", ")))
}
