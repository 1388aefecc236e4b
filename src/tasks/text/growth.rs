//! How long a text may become on its way to the model.

use serde_json::Value;

use super::charsmap;

/// The most that is allowed: how many times as long a text may become.
pub const MAX: u64 = 4096;

/// How many times as long Unicode's forms make a text at the most: of the three bytes of `U+FDFA` they make 33.
const UNICODE: u64 = 11;

/// What a part may put in place of what it finds.
struct Rule<'a> {
    /// Bytes of it for each byte found, at the most.
    times: u64,
    /// The one text that it finds; none where it may find any.
    finds: Option<&'a str>,
    /// The one text that it leaves; none where what it found stays beside it.
    puts: Option<&'a str>,
}

/// How many times as long the parts, one after the other, may make a text.
///
/// A rule grows what an earlier one has put only if it can find some of that, so the bound is that of the worst chain of
/// rules that feed each other: of `a → aa` forty times it is 2^40, of a rule for each digit that of one.
pub fn of<'a>(components: impl Iterator<Item = &'a Value>) -> u64 {
    let mut tables = 0;
    let rules: Vec<Rule> = components.flat_map(parts).filter_map(|part| rule(part, &mut tables)).collect();
    let mut growth = vec![1u64; rules.len()];
    for index in (0..rules.len()).rev() {
        let later = (index + 1..rules.len()).filter(|later| rules[*later].may_find(rules[index].puts));
        let later = later.map(|later| growth[later]).max().unwrap_or(1);
        growth[index] = rules[index].times.saturating_mul(later);
    }
    growth.into_iter().max().unwrap_or(1)
}

impl Rule<'_> {
    fn may_find(&self, put: Option<&str>) -> bool {
        let (Some(finds), Some(put)) = (self.finds, put) else { return true };
        finds.chars().any(|char| put.contains(char))
    }
}

/// What a part does, if it makes anything longer. Unicode's forms do, but of few characters and only once; so does a table
/// that does no more than they, if it is the only one.
fn rule<'a>(part: &'a Value, tables: &mut usize) -> Option<Rule<'a>> {
    let text = |field: &str| part.get(field).and_then(Value::as_str);
    let kind = text("type");
    // Older files name no kinds. Where one is named, fields of another do nothing.
    let is = |name: &str| kind.is_none_or(|kind| kind == name);
    let rule = match (text("content"), part.get("pattern"), text("prepend"), kind) {
        (Some(content), Some(pattern), ..) if is("Replace") => replace(pattern, content),
        (_, _, Some(prepend), _) if is("Prepend") => beside(prepend),
        (.., Some("Metaspace")) => beside(text("replacement").unwrap_or_default()),
        // A byte becomes a character of up to two.
        (.., Some("ByteLevel")) => Rule { times: 2, finds: None, puts: None },
        _ => {
            let times = charsmap::check(text("precompiled_charsmap")?).ok()? as u64;
            *tables += 1;
            if *tables == 1 && times <= UNICODE {
                return None;
            }
            Rule { times, finds: None, puts: None }
        }
    };
    (rule.times > 1).then_some(rule)
}

fn replace<'a>(pattern: &'a Value, content: &'a str) -> Rule<'a> {
    let finds = pattern.get("String").and_then(Value::as_str);
    let regex = pattern.get("Regex").and_then(Value::as_str);
    let shortest = match (finds, regex) {
        (Some(finds), _) => finds.len(),
        // Of an expression that only the other engine reads nothing is known.
        (_, Some(regex)) => {
            let parsed = regex_syntax::parse(regex).ok();
            parsed.and_then(|parsed| parsed.properties().minimum_len()).unwrap_or(0)
        }
        _ => 0,
    };
    match shortest {
        0 => beside(content),
        _ => Rule { times: content.len().div_ceil(shortest) as u64, finds, puts: Some(content) },
    }
}

/// A text that may come to stand beside every character.
fn beside(text: &str) -> Rule<'_> {
    Rule { times: text.len() as u64 + 1, finds: None, puts: None }
}

/// The parts of a component in the order in which they work: itself, or those that a sequence lists.
pub fn parts(value: &Value) -> Vec<&Value> {
    let lists = ["normalizers", "pretokenizers", "processors", "decoders"];
    let listed = lists.iter().find_map(|list| value.get(list)?.as_array());
    match listed {
        Some(listed) => listed.iter().flat_map(parts).collect(),
        None => vec![value],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn replaces(rules: &[(&str, &str)]) -> Value {
        let rule = |(pattern, content): &(&str, &str)| json!({"type": "Replace", "pattern": {"String": pattern}, "content": content});
        json!({"type": "Sequence", "normalizers": rules.iter().map(rule).collect::<Vec<_>>()})
    }

    #[test]
    fn only_rules_that_feed_each_other_multiply() {
        assert_eq!(of([replaces(&[("a", "aa"); 10])].iter()), 1 << 10);
        assert_eq!(of([replaces(&[("a", "aa"); 70])].iter()), u64::MAX);
        let digits: Vec<String> = (0..10).map(|digit| digit.to_string()).collect();
        let spaced: Vec<String> = digits.iter().map(|digit| format!("<{digit}>")).collect();
        let rules: Vec<(&str, &str)> =
            digits.iter().zip(&spaced).map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(of([replaces(&rules)].iter()), 3);
        assert_eq!(of([replaces(&[("a", "bb"), ("b", "ccc"), ("c", "d")])].iter()), 6);
        assert_eq!(of([replaces(&[("", "xx"), (" ", "\u{2581}")])].iter()), 9);
        let llama = json!([{"type": "Prepend", "prepend": "\u{2581}"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]);
        assert_eq!(of([json!({"type": "Sequence", "normalizers": llama})].iter()), 12);
        let regex = |pattern: &str| json!({"type": "Replace", "pattern": {"Regex": pattern}, "content": "-"});
        assert_eq!(of([json!({"normalizers": vec![regex(r"\s+"); 30]})].iter()), 1);
        assert_eq!(of([json!({"normalizers": vec![regex("(?=q)"); 5]})].iter()), 32);
        assert_eq!(of([json!({"normalizers": vec![regex("q*"); 5]})].iter()), 32);
        assert_eq!(of([json!({"type": "NFC"})].iter()), 1);
        let disguised = json!({"type": "ByteLevel", "pattern": {"String": "long"}, "content": ""});
        assert_eq!(of([json!({"pretokenizers": vec![disguised; 5]})].iter()), 32);
    }
}
