// The edits of heads or experts, as src/ops/edit_plan.rs writes them down:
//     units, how many there are; [units + 1] where the records of each start, and where the last end; then records of RECORD
//     words (what and where, first position, end, value, number of the edit, quad where its vector starts, or the word where its
//     row does); then lists of positions, ascending, between whose words a record's first and end point, and rows: how many
//     entries, then a position and the bits of its weight each

//!needs var plan

const RECORD: u32 = 6u;

const SCALE_OUTPUT: u32 = 0u;
const OFF: u32 = 1u;
const MASKED: u32 = 2u;
const FORCED: u32 = 3u;
const BIAS: u32 = 4u;
const IDENTITY: u32 = 5u;
const UNIFORM: u32 = 6u;
const MIX: u32 = 7u;
const ADD: u32 = 8u;
const ROW: u32 = 9u;

const EVERYWHERE: u32 = 0u;
const IN_RANGE: u32 = 1u;
const IN_LIST: u32 = 2u;

// A vector for each position, beside what and where.
const EACH: u32 = 65536u;

fn units() -> u32 {
    return plan[0];
}

// Where the records of a head or expert start, and those of the one before it end.
fn first_record(unit: u32) -> u32 {
    return plan[1u + unit];
}

fn what(record: u32) -> u32 {
    return plan[record] & 255u;
}

fn value(record: u32) -> f32 {
    return bitcast<f32>(plan[record + 3u]);
}

fn number(record: u32) -> u32 {
    return plan[record + 4u];
}

// What a record brings: the quad where its vectors start, or the word where its row does.
fn brought(record: u32) -> u32 {
    return plan[record + 5u];
}

// The quad where the vector of a record for this position starts, vectors of `quads` quads: one for all, or one for each position
// of a range.
fn vector(record: u32, position: u32, quads: u32) -> u32 {
    let own = select(0u, position - plan[record + 1u], (plan[record] & EACH) != 0u);
    return brought(record) + own * quads;
}

// Whether a record is meant for this position.
fn is_at(record: u32, position: u32) -> bool {
    let first = plan[record + 1u];
    let end = plan[record + 2u];
    switch (plan[record] >> 8u) & 255u {
        case EVERYWHERE: { return true; }
        case IN_RANGE: { return position >= first && position < end; }
        default: {
            // The first of the list that is not before it.
            var low = first;
            var high = end;
            while low < high {
                let middle = (low + high) / 2u;
                if plan[middle] < position {
                    low = middle + 1u;
                } else {
                    high = middle;
                }
            }
            return low < end && plan[low] == position;
        }
    }
}
