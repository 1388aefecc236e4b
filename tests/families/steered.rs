//! The models whose heads have known jobs, steered by rows that are given; and what no method makes a number of.

use headwise::{
    Edit, Edits, Logits, Model, block_on,
    methods::{expert_difference, importance},
    probes::{Address, Change, Observe, Positions, What},
};

use super::heads::{documents, model, reference};
use crate::{models::difference, reference::widen};

fn logits(model: &Model, ids: &[u32]) -> Logits {
    block_on(model.logits(&[ids])).unwrap().remove(0)
}

fn last(logits: &Logits) -> &[f32] {
    &logits.values[logits.values.len() - logits.vocab..]
}

/// Heads that are told to look where they look anyway change nothing.
#[test]
fn a_given_row_that_is_the_own_one_changes_nothing() {
    for name in ["copier", "copier-moa"] {
        let model = model(name);
        let ids = &documents(name, &model)[0].ids[..Change::MOST_OF_ROW];
        let trace = block_on(model.trace(&[ids], &Observe::new().capture("L*H*:pattern".parse().unwrap())));
        let mut edits = Edits::new();
        for recorded in trace.unwrap().of(What::Pattern) {
            for (row, &[_, position]) in recorded.rows.iter().enumerate() {
                for (place, &head) in recorded.heads.iter().enumerate() {
                    let weights = &recorded.at(row, place)[..=position as usize];
                    let change = Change::Row { part: 1.0, on: (0..).zip(weights.iter().copied()).collect() };
                    let at = Positions::Range(position, position + 1);
                    edits = edits.with(Edit::new(Address::head(recorded.layer, head), change).positions(at));
                }
            }
        }
        let plain = logits(&model, ids);
        let forced = logits(&model.edited(&edits).unwrap(), ids);
        let highest = plain.values.iter().fold(0.0, |most: f32, value| most.max(value.abs()));
        let off = difference(&forced, &widen(&plain.values));
        assert!(off <= 1e-5 * f64::from(highest), "{name}: {off} of {highest}");
    }
}

/// A name that was followed by two others: which of them comes next is chance, until heads that copy are told where to look
/// (the repair of Colored Objects, arXiv 2310.08744).
#[test]
fn a_given_row_repairs_what_was_chance() {
    let (name, questions) = ("copier", 40);
    let model = model(name);
    let reference = reference(name);
    let heads = reference["by_retrieval"].as_array().unwrap().iter().take(3);
    let heads: Vec<Address> = heads.map(|head| head.as_str().unwrap().parse().unwrap()).collect();
    let documents = documents(name, &model);
    let (mut plain, mut repaired, mut asked) = (0, 0, 0);
    for one in documents.iter().filter(|one| one.block.is_none()) {
        // Names that differ: X A .. X B .. X
        let mut names = one.ids.clone();
        let mut seen = std::collections::HashSet::new();
        names.retain(|&id| seen.insert(id));
        let [x, a, b] = [names[0], names[1], names[2]];
        let rest = &names[3..];
        let ids = [&rest[..4], &[x, a], &rest[4..8], &[x, b], &rest[8..12], &[x]].concat();
        for (right, wrong, place) in [(a, b, 5), (b, a, 11)] {
            if asked == questions {
                break;
            }
            asked += 1;
            let end = ids.len() as u32 - 1;
            let change = Change::Row { part: 1.0, on: vec![(place, 1.0)] };
            let edits = heads
                .iter()
                .map(|&at| Edit::new(at, change.clone()).positions(Positions::Range(end, end + 1)));
            let told = model.edited(&edits.collect()).unwrap();
            let better = |model: &Model| {
                let logits = logits(model, &ids);
                let row = last(&logits);
                u32::from(row[right as usize] > row[wrong as usize])
            };
            plain += better(&model);
            repaired += better(&told);
        }
    }
    // Each text is asked for both: by itself it is right once.
    assert_eq!((asked, plain), (questions, questions / 2));
    assert!(f64::from(repaired) >= 0.95 * f64::from(questions), "{repaired} of {questions}");
}

#[test]
fn texts_of_nothing_are_refused() {
    let model = model("copier-moa");
    for texts in [vec![], vec![&[][..]], vec![&[1][..], &[2][..]]] {
        let error = block_on(importance(&model, &texts, None)).unwrap_err().to_string();
        assert!(error.contains("a text of at least two tokens"), "{error}");
    }
    let prompts = [(&[1, 2][..], true), (&[][..], false)];
    let error = block_on(expert_difference(&model, &prompts)).unwrap_err().to_string();
    assert!(error.contains("no tokens in prompt 1"), "{error}");
}
