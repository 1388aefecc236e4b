//! Spans: what a program that subscribes is told, and how it nests.

use std::{
    fmt::Debug,
    ops::ControlFlow,
    sync::{Arc, Mutex},
};

use headwise::{Generate, block_on};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};

use super::{load, plain_gpu, tiny};

/// A span that was opened.
#[derive(Clone, Debug, Default, PartialEq)]
struct Seen {
    name: String,
    /// The span that it was opened in.
    within: Option<String>,
    /// `name=value`, in the order in which they were recorded.
    fields: Vec<String>,
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.fields.push(format!("{}={value:?}", field.name()));
    }
}

/// Writes down headwise's spans; those entered, last the innermost.
#[derive(Clone, Default)]
struct Listener(Arc<Mutex<(Vec<Seen>, Vec<usize>)>>);

impl Subscriber for Listener {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span() && metadata.target().starts_with("headwise")
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let (seen, entered) = &mut *self.0.lock().unwrap();
        let within = entered.last().map(|&at| seen[at].name.clone());
        let mut new = Seen { name: span.metadata().name().to_owned(), within, fields: Vec::new() };
        span.record(&mut new);
        seen.push(new);
        Id::from_u64(seen.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        values.record(&mut self.0.lock().unwrap().0[span.into_u64() as usize - 1]);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, span: &Id) {
        self.0.lock().unwrap().1.push(span.into_u64() as usize - 1);
    }

    fn exit(&self, span: &Id) {
        let at = span.into_u64() as usize - 1;
        assert_eq!(self.0.lock().unwrap().1.pop(), Some(at), "spans end in the order in which they began");
    }
}

fn seen(name: &str, within: Option<&str>, fields: &[&str]) -> Seen {
    let fields = fields.iter().map(|&field| field.to_owned()).collect();
    Seen { name: name.to_owned(), within: within.map(str::to_owned), fields }
}

#[test]
fn loading_prompts_steps_and_readbacks_have_spans() {
    let gpu = plain_gpu();
    let listener = Listener::default();
    // Places in the code that another test's thread is just making known would miss who begins to listen: here they are known.
    load(&gpu, &tiny()).unwrap();
    let model = tracing::subscriber::with_default(listener.clone(), || load(&gpu, &tiny()).unwrap());
    let path = format!("{}/tests/fixtures/jetmoe_tiny/", env!("CARGO_MANIFEST_DIR"));
    let info = model.info();
    let bytes = info.memory.iter().find(|memory| memory.precision == model.precision()).unwrap().bytes;
    let opened = std::mem::take(&mut listener.0.lock().unwrap().0);
    assert_eq!(opened[0], seen("load", None, &[&format!("model={path:?}"), &format!("bytes={bytes}")]));
    assert!(opened[1..].iter().all(|span| span.name == "readback" && span.within.as_deref() == Some("load")));

    let generate = || {
        let options = Generate::new().greedy().max_new(3).stop_at([]);
        block_on(model.generate_ids(&[&[3, 1, 4, 1, 5]], &options, |_| ControlFlow::Continue(()))).unwrap()
    };
    generate();
    let heard = tracing::subscriber::with_default(listener.clone(), generate);
    let (opened, entered) = std::mem::take(&mut *listener.0.lock().unwrap());
    assert!(entered.is_empty(), "{entered:?}");
    let prompt = seen("prompt", None, &["sequences=1", "tokens=5"]);
    assert_eq!(opened[0], prompt);
    let steps: Vec<&Seen> = opened.iter().filter(|span| span.name == "step").collect();
    let decoded = seen("step", None, &["sequences=1", "tokens=1"]);
    assert_eq!(*steps[0], seen("step", Some("prompt"), &["sequences=1", "tokens=5"]));
    assert!(steps[1..].iter().all(|&step| *step == decoded) && steps.len() >= 3, "{steps:?}");
    // A token is four bytes; no readback is within a step, which only records.
    let readbacks = || opened.iter().filter(|span| span.name == "readback");
    assert!(readbacks().all(|span| span.fields == ["bytes=4"] && span.within.as_deref() != Some("step")));
    assert!(readbacks().count() >= 3, "{opened:?}");
    // Whoever does not listen hears nothing, and gets the same.
    assert_eq!(generate().ids, heard.ids);
    assert!(listener.0.lock().unwrap().0.is_empty());
}
