//! Templates that public packages ship, and expressions one by one, against what transformers makes of them. The files say
//! what, `tests/chat/published/render.py` wrote the expected texts.

use std::{fs, path::Path, process::Command};

use headwise::{ChatMessage, ChatTemplate, Source, block_on};
use serde_json::{Value, json};

/// Where we differ from jinja2 on purpose, and why. An entry that no longer differs fails.
const DIFFERENT: [(&str, &str); 13] = [
    ("{{ range(1,10,3) }}", "a range is its items, and is written as the shortest that has them"),
    ("{{ '{} {0}'.format(1) }}", "numbered and unnumbered fields may be mixed"),
    ("{{ '{a[b]}{c.real}'.format(a={'b':1},c=1) }}", "numbers have no parts"),
    ("{{ self }}", "there are no blocks to inherit"),
    ("{{ [1,2]|pprint }}", "for people who look for mistakes"),
    ("{{ 'a b'|wordwrap(1) }}", "for pages"),
    ("{{ 'a'.replace('a','b',count=1) }}", "count may have its name, as in newer Python"),
    ("{{ '%a' % 'é' }}", "as %r"),
    ("{{ s.encode() }}", "there are no bytes"),
    ("{{ 'é'.encode('utf-8') }}", "there are no bytes"),
    ("{{ l|random in l }}", "the same text every time"),
    ("{% autoescape true %}{{ '<' }}{% endautoescape %}", "a text for a model is no HTML"),
    ("{% raw %}", "raw text that does not end is a mistake"),
];

fn file(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/chat/published").join(name);
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn render(template: &str, messages: &Value, prompt: bool) -> Option<String> {
    let config =
        json!({ "chat_template": template, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>" });
    let source =
        Source::memory("folder", vec![("tokenizer_config.json".to_owned(), config.to_string().into_bytes())]);
    let messages: Vec<ChatMessage> = messages.as_array().unwrap().iter().map(message).collect();
    block_on(ChatTemplate::read(&source)).and_then(|template| template.render(&messages, prompt)).ok()
}

fn message(pair: &Value) -> ChatMessage {
    ChatMessage::new(pair[0].as_str().unwrap(), pair[1].as_str().unwrap())
}

/// Today, where a text has the form of a day in its place.
fn of_today(text: &str) -> String {
    ["%d %B %Y", "%d %b %Y"].iter().fold(text.to_owned(), |text, form| {
        let date = Command::new("date").env("LC_ALL", "C").arg(format!("+{form}")).output().unwrap();
        text.replace(&format!("<<{form}>>"), String::from_utf8(date.stdout).unwrap().trim())
    })
}

#[test]
fn published_templates_say_what_transformers_says() {
    let file = file("templates.json");
    let conversations = file["conversations"].as_array().unwrap();
    let mut held = 0;
    for row in file["templates"].as_array().unwrap() {
        for (conversation, expected) in conversations.iter().zip(row["texts"].as_array().unwrap()) {
            let prompt = conversation["prompt"] == true;
            let found = render(row["template"].as_str().unwrap(), &conversation["messages"], prompt);
            let expected = expected.as_str().map(of_today);
            assert_eq!(found, expected, "{}: {conversation}", row["name"]);
            held += 1;
        }
    }
    println!("{held} conversations");
    assert_eq!(held, 64 * 5);
}

#[test]
fn expressions_are_worth_what_they_are_in_python() {
    let file = file("expressions.json");
    let prelude = file["prelude"].as_str().unwrap();
    let (mut wrong, mut different) = (Vec::new(), Vec::new());
    let cases = file["cases"].as_array().unwrap();
    for case in cases {
        let (template, expected) = (case[0].as_str().unwrap(), case[1].as_str());
        let found = render(&format!("{prelude}{template}"), &file["messages"], false);
        let known = DIFFERENT.iter().any(|(name, _)| *name == template);
        match found.as_deref() == expected {
            true if known => wrong.push(format!("{template}: no longer differs")),
            true => {}
            false if known => different.push(template),
            false => wrong.push(format!("{template}: {found:?}, not {expected:?}")),
        }
    }
    println!("{} expressions, {} differ on purpose", cases.len(), different.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(different.len(), DIFFERENT.len(), "{different:?}");
    assert!(cases.len() > 800);
}
