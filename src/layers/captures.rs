//! Captures of a pass: whoever stands at its places and copies what is there, or computes again what no kernel keeps.

use std::{collections::HashMap, ops::Range};

use crate::{
    gpu::{Buffer, Gpu, Recorder},
    layers::{AttentionSite, Hook, Inside, LayerIndex, Place, Site, SitePart, Sublayer, stored},
    ops::{Asked, AttentionRows, Copy, GatherHeads, HeadLayout, MassOf, Masses, Queries, RowStatistics},
};

/// What of a sublayer is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Captured {
    /// What stands there.
    Part(SitePart),
    /// How asked heads weigh their keys.
    Pattern,
    /// What these rows come to.
    Statistics,
}

/// One capture of one sublayer.
pub struct SublayerCapture {
    pub what: Captured,
    /// Which of the lists of what is asked for.
    pub asked: usize,
    /// Floats of a head as they are recorded; of a pattern those of the step.
    pub stride: u32,
    /// `[asked tokens, asked heads, stride]`
    out: Buffer,
}

/// The captures of a model's sublayers.
pub struct Captures {
    sublayers: HashMap<(LayerIndex, Sublayer), Vec<SublayerCapture>>,
    /// Heads, each list with the tokens of the step that are asked of it, and with masses over these.
    asked: Vec<(Asked, Masses)>,
    /// Queries as they were before something turned them, for as long as a sublayer is recorded.
    queries: Buffer,
    /// Rows that statistics are computed from, and first numbers of rows that are kept.
    rows: Buffer,
    numbers: Buffer,
    /// Slots of a row in the step.
    row: u32,
}

/// Bytes of rows that statistics share, if one row is not more.
const ROW_BYTES: u64 = 32 << 20;

impl Captures {
    /// These captures, of lists of asked heads with room for so many tokens of a step.
    pub fn new(gpu: &Gpu, asked: &[&[u32]], most_tokens: u32) -> Self {
        let nothing = || Buffer::new(gpu, "captures", 0);
        let asked =
            asked.iter().map(|heads| (Asked::new(gpu, heads, most_tokens), Masses::new(gpu, &[]))).collect();
        Self {
            sublayers: HashMap::new(),
            asked,
            queries: nothing(),
            rows: nothing(),
            numbers: nothing(),
            row: 0,
        }
    }

    /// Adds a capture of a sublayer; returns its number among those.
    pub fn add(
        &mut self,
        gpu: &Gpu,
        at: (LayerIndex, Sublayer),
        what: Captured,
        asked: usize,
        stride: u32,
    ) -> usize {
        let own = self.sublayers.entry(at).or_default();
        own.push(SublayerCapture { what, asked, stride, out: Buffer::new(gpu, "captures", 0) });
        own.len() - 1
    }

    /// Says which tokens of the next step are asked of each list, and over which keys their weights are summed up; then makes room:
    /// `row` are the slots that a token may see in this step, `queries` the bytes of the queries of all its tokens.
    pub fn begin(
        &mut self,
        gpu: &Gpu,
        tokens: &[Vec<u32>],
        masses: &[Vec<MassOf<'_>>],
        row: u32,
        queries: u64,
    ) {
        self.row = row;
        for (((asked, own), tokens), masses) in self.asked.iter_mut().zip(tokens).zip(masses) {
            asked.set_tokens(tokens);
            *own = Masses::new(gpu, masses);
        }
        let (mut rows, mut numbers, mut turned) = (0, 0, 0);
        for capture in self.sublayers.values_mut().flatten() {
            let asked = &self.asked[capture.asked].0;
            let heads = u64::from(asked.tokens()) * u64::from(asked.heads());
            match capture.what {
                Captured::Pattern => {
                    capture.stride = row;
                    numbers = numbers.max(8 * heads);
                    turned = queries;
                }
                Captured::Statistics => {
                    let all = 4 * heads * u64::from(row);
                    rows = all.min(ROW_BYTES.max(4 * u64::from(asked.heads()) * u64::from(row))).max(rows);
                    turned = queries;
                }
                _ => {}
            }
            grow(gpu, &mut capture.out, 4 * heads * u64::from(capture.stride));
        }
        grow(gpu, &mut self.rows, rows);
        grow(gpu, &mut self.numbers, numbers);
        grow(gpu, &mut self.queries, turned);
    }

    /// Bytes of GPU memory that they hold.
    pub fn bytes(&self) -> u64 {
        let asked = self.asked.iter().map(|(asked, masses)| asked.held() + masses.held());
        let own = self.sublayers.values().flatten().map(|capture| capture.out.bytes());
        let shared = [&self.queries, &self.rows, &self.numbers].map(Buffer::bytes);
        asked.chain(own).chain(shared).sum()
    }

    /// What the step recorded of a capture: the buffer, and its bytes.
    pub fn recorded(&self, at: (LayerIndex, Sublayer), number: usize) -> Option<(&Buffer, u64)> {
        let capture = self.sublayers.get(&at)?.get(number)?;
        let asked = &self.asked[capture.asked].0;
        let heads = u64::from(asked.tokens()) * u64::from(asked.heads());
        Some((&capture.out, 4 * heads * u64::from(capture.stride)))
    }
}

/// Makes room where there is too little.
fn grow(gpu: &Gpu, buffer: &mut Buffer, bytes: u64) {
    if buffer.bytes() < bytes {
        *buffer = Buffer::new(gpu, "captures", bytes.next_power_of_two().min(bytes.max(64 << 20)));
    }
}

impl Hook for Captures {
    fn reach(&mut self, recorder: &mut Recorder, site: &Site<'_>) {
        let Some(own) = self.sublayers.get(&(site.layer, site.sublayer)) else { return };
        let weighs = |capture: &SublayerCapture| !matches!(capture.what, Captured::Part(_));
        if let (Place::Queries, Inside::Attention(attention)) = (site.place, site.inside)
            && own.iter().any(weighs)
        {
            let quads = (query_bytes(&attention.heads, site.step.tokens) / 16) as u32;
            let (src, dst) = (&site.workspace.q, &self.queries);
            Copy { src, dst, quads, each: 4, runs: false }.record(recorder);
        }
        for capture in own {
            let (asked, masses) = &self.asked[capture.asked];
            match (capture.what, site.place, site.inside) {
                (Captured::Part(part), ..) => {
                    let (tokens, out) = (site.step.tokens, &capture.out);
                    if let Some(src) = stored(site, part) {
                        GatherHeads { src, asked, tokens, out }.record(recorder);
                    }
                }
                (_, Place::Attended, Inside::Attention(attention)) => {
                    self.weigh(recorder, site, &attention, capture, asked, masses);
                }
                _ => {}
            }
        }
    }
}

impl Captures {
    /// Computes rows of weights again, and what they come to.
    fn weigh(
        &self,
        recorder: &mut Recorder,
        site: &Site<'_>,
        attention: &AttentionSite<'_>,
        capture: &SublayerCapture,
        asked: &Asked,
        masses: &Masses,
    ) {
        let AttentionSite { heads, kernel, positions, spans, cache, routes, .. } = *attention;
        let row = self.row;
        let keeps = capture.what == Captured::Pattern;
        let (rows, statistics, columns) = match keeps {
            true => (&capture.out, &self.numbers, 2),
            false => (&self.rows, &capture.out, capture.stride),
        };
        let of_token = 4 * u64::from(asked.heads()) * u64::from(row).max(1);
        let each = if keeps { asked.tokens() } else { (rows.bytes() / of_token).max(1) as u32 };
        for first in (0..asked.tokens()).step_by(each.max(1) as usize) {
            let range: Range<u32> = first..(first + each).min(asked.tokens());
            AttentionRows {
                heads,
                kernel,
                positions,
                q: &self.queries,
                spans,
                routes: site.rows.routes(),
                by_expert: routes.is_some(),
                cache,
                tokens: site.step.tokens,
                asked,
                range: range.clone(),
                row,
                rows,
                statistics,
                columns,
            }
            .record(recorder);
            if !keeps {
                let tokens = site.step.tokens;
                RowStatistics { rows, row, asked, range, spans, tokens, masses, statistics }.record(recorder);
            }
        }
    }
}

/// Bytes of the queries of a step.
pub fn query_bytes(heads: &HeadLayout, tokens: u32) -> u64 {
    let slots = if let Queries::Dense { .. } = heads.queries { 1 } else { heads.slots };
    4 * u64::from(tokens) * u64::from(slots) * u64::from(heads.q_row())
}
