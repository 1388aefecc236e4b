// Sums over a workgroup of LANES invocations. Every lane gets the same bits: all add the partial sums in
// lane order.

override LANES: u32 = 64u;
var<workgroup> partial_sums: array<f32, LANES>;

fn workgroup_sum(lane: u32, value: f32) -> f32 {
    partial_sums[lane] = value;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < LANES; i++) {
        sum += partial_sums[i];
    }
    workgroupBarrier();
    return sum;
}
