//! Templates that are made to take a program down: each ends soon, within its memory, with a text or an error.
//!
//! The inputs run in a process of their own, because a stack that overflows takes its process with it.

use std::{env, fs, process::Command, time::Instant};

use headwise::{ChatMessage, ChatTemplate, Source, block_on};
use serde_json::json;

/// How often what is repeated is repeated, in sources.
const TIMES: [usize; 5] = [90, 101, 201, 5000, 60_000];
/// What stands for N in templates that ask for something large.
const SIZES: [&str; 5] = ["40", "3000", "99999", "1000000000", "9223372036854775807"];
/// Milliseconds and KiB that an input may take.
const MOST_TIME: u128 = 1000;
const MOST_MEMORY: u64 = 64 << 10;

/// Before, repeated, between, repeated, after.
const REPEATED: [[&str; 5]; 43] = [
    ["{{ ", "not ", "1 }}", "", ""],
    ["{{ 1", "+1", " }}", "", ""],
    ["{{ 1", "~1", " }}", "", ""],
    ["{{ ", "-", "1 }}", "", ""],
    ["{{ ", "- ", "1 }}", "", ""],
    ["{{ 1", " and 1", " }}", "", ""],
    ["{{ 0", " or 0", " }}", "", ""],
    ["{{ 1", " == 1", " }}", "", ""],
    ["{{ 1", "**1", " }}", "", ""],
    ["{{ ", "(", "1", ")", " }}"],
    ["{{ ", "(", "", "", ""],
    ["{{ ", "[", "1", "]", " }}"],
    ["{{ ", "{1:", "1", "}", " }}"],
    ["{{ a", ".b", " }}", "", ""],
    ["{{ a", "[0]", " }}", "", ""],
    ["{{ range", "()", " }}", "", ""],
    ["{{ 1", "|string", " }}", "", ""],
    ["{{ 1", " is defined", " }}", "", ""],
    ["{{ 1", " if 1 else 1", " }}", "", ""],
    ["{{ 1", " if 1", " }}", "", ""],
    ["", "{% if 1 %}", "x", "{% endif %}", ""],
    ["{% if 0 %}", "{% elif 0 %}", "{% endif %}", "", ""],
    ["", "{% for a in [1] %}", "x", "{% endfor %}", ""],
    ["", "{% with %}", "x", "{% endwith %}", ""],
    ["", "{% generation %}", "x", "{% endgeneration %}", ""],
    ["", "{% set a %}", "x", "{% endset %}", ""],
    ["", "{% filter upper %}", "x", "{% endfilter %}", ""],
    ["", "{% macro a() %}", "x", "{% endmacro %}", ""],
    ["{% macro m() %}{{ caller() }}{% endmacro %}", "{% call m() %}", "x", "{% endcall %}", ""],
    ["{% set ", "(", "a", ")", " = 1 %}"],
    ["{{ ", "1|default(", "1", ")", " }}"],
    ["{{ ", "'a' ", " }}", "", ""],
    ["", "{", "", "", ""],
    ["", "{#", "", "", ""],
    ["", "{% raw %}", "", "", ""],
    ["{% raw %}", "{% endraw", "", "", ""],
    ["", "{%", "", "", ""],
    ["", "{{", "", "", ""],
    ["", "{{ 1 }}", "", "", ""],
    ["{{ range(", "1,", ") }}", "", ""],
    ["{{ '", "{:", "", "}", "'.format(1,2,3) }}"],
    ["{{ '{0", ".a", "}'.format({}) }}", "", ""],
    ["{{ '{0", "[0]", "}'.format([]) }}", "", ""],
];

/// Templates with an N.
const LARGE: [&str; 169] = [
    "{{ 'a' * N }}",
    "{{ [1] * N }}",
    "{{ (1,) * N }}",
    "{{ '' * N }}",
    "{{ '%*d' % (-N - 1, 1) }}",
    "{{ ('\\n' * N).splitlines()|length }}",
    "{{ ('\\n' * 5000000).splitlines()|length }}{{ N }}",
    "{{ (' a' * 2500000).split()|length }}{{ N }}",
    "{{ (' a' * 2500000).rsplit()|length }}{{ N }}",
    "{{ (',' * 5000000).split(',')|length }}{{ N }}",
    "{{ ('\\n' * 5000000)|indent }}{{ N }}",
    "{{ 'a'.center(N, '😀') }}{{ '{:😀>3000000}'.format(1) }}",
    "{{ ('\\x01' * 3000000)|tojson|length }}{{ [('\\x01' * 2000000)]|string|length }}{{ N }}",
    "{{ range(N)|list|length }}",
    "{{ range(N)|join }}",
    "{{ range(N)|string|length }}",
    "{{ '{:>N}'.format(1) }}",
    "{{ '{:0N}'.format(1) }}",
    "{{ '{:.N}'.format('a') }}",
    "{{ '{:.Nf}'.format(1.5) }}",
    "{{ '{:.Ne}'.format(1.5) }}",
    "{{ '{:N}'.format('a') }}",
    "{{ '%Ns' % 1 }}",
    "{{ '%.Nf' % 1.5 }}",
    "{{ '%.Nd' % 1 }}",
    "{{ '%*d' % (N, 1) }}",
    "{{ '%-Ns' % 1 }}",
    "{{ 'a'.center(N) }}",
    "{{ 'a'.ljust(N) }}",
    "{{ 'a'.rjust(N,'é') }}",
    "{{ 'a'.zfill(N) }}",
    "{{ '\\t'.expandtabs(N) }}",
    "{{ ('\\t'*1000).expandtabs(N)|length }}",
    "{{ 'a'|center(N) }}",
    "{{ 'a\nb'|indent(N) }}",
    "{{ [1]|tojson(indent=N) }}",
    "{{ [[[[1]]]]|tojson(indent=N) }}",
    "{{ [1]|batch(N, 0)|list }}",
    "{{ [1]|slice(N)|list }}",
    "{{ 2 ** N }}",
    "{{ N ** N }}",
    "{{ 2.0 ** N }}",
    "{{ N * N }}",
    "{{ N + N }}",
    "{{ -N - N - 2 }}",
    "{{ N // -1 }}",
    "{{ (-N-1) // -1 }}",
    "{{ (-N-1) % -1 }}",
    "{{ 1|round(N) }}",
    "{{ 1.5|round(N) }}",
    "{{ 1.5|round(-N) }}",
    "{{ 15|round(-N) }}",
    "{{ 'abc'[N] }}",
    "{{ 'abc'[-N] }}",
    "{{ 'abc'[::N] }}",
    "{{ 'abc'[::-N] }}",
    "{{ 'abc'[N:-N:-1] }}",
    "{{ [1,2][-N:N] }}",
    "{{ 'a'.split('a', N) }}",
    "{{ 'a'.rsplit('a', N) }}",
    "{{ ' a '.split(none, N) }}",
    "{{ 'aaa'.replace('a','b', N) }}",
    "{{ 'aaa'|replace('a','b', N) }}",
    "{{ 'abc'|truncate(N) }}",
    "{{ 'abc'.find('b', N) }}",
    "{{ 'abc'.find('b', -N, N) }}",
    "{{ '%c' % N }}",
    "{{ '{:c}'.format(N) }}",
    "{{ range(-N, N, N) }}",
    "{{ range(N, -N, -N) }}",
    "{{ N|filesizeformat }}",
    "{{ ('a' * 100000).replace('a', 'b' * N)|length }}",
    "{{ ('a' * 100000).replace('', 'b' * 100)|length }}",
    "{{ ('ab,' * 5000).split(',')|join('x' * N)|length }}",
    "{{ (['x'] * 50000)|join('y' * N) }}",
    "{{ 'x' * N|length }}",
    "{{ (range(99999)|list * N)|sort|length }}",
    "{{ range(N)|map('string')|unique|list|length }}",
    "{{ range(N)|sort(reverse=true)|first }}",
    "{{ range(N)|groupby('x') }}",
    "{{ range(N)|batch(1)|list|length }}",
    "{{ range(N)|sum }}",
    "{{ (range(N)|list) == (range(N)|list) }}",
    "{{ N in range(N) }}",
    "{% for i in range(N) %}{% for j in range(N) %}{% endfor %}{% endfor %}",
    "{% for i in range(N) %}x{% endfor %}",
    "{% for i in range(N) %}{{ loop.cycle('aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa') * 1000 }}{% endfor %}",
    "{% set ns = namespace(x=[]) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x={}) %}{% for i in range(N) %}{% set ns.x = {'a':ns.x} %}{% endfor %}{{ ns.x|tojson }}",
    "{% set ns = namespace(x=[],y=[]) %}{% for i in range(N) %}{% set ns.x = [ns.x] %}{% set ns.y = [ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "{% set ns = namespace(x=[]) %}{% for i in range(N) %}{% set ns.x = (ns.x,) %}{% endfor %}done",
    "{% set ns = namespace(x=[1],y=[1]) %}{% for i in range(N) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
    "{% set ns = namespace(x=[1],y=[1]) %}{% for i in range(N) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x < ns.y }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(N) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(N) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(N) %}{% set ns.x = ns.x.replace('a','aa') %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='ab') %}{% for i in range(N) %}{% set ns.x = ns.x|tojson %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='<') %}{% for i in range(N) %}{% set ns.x = ns.x|e %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='%') %}{% for i in range(N) %}{% set ns.x = ns.x|urlencode %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(N) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns = namespace(x='a\n') %}{% for i in range(N) %}{% set ns.x = ns.x|indent(9) ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(N) %}{% set ns.x = ns.x|string %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=['\\'\"']) %}{% for i in range(N) %}{% set ns.x = [ns.x|string] %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x='İ') %}{% for i in range(N) %}{% set ns.x = (ns.x ~ ns.x)|lower|upper|title|capitalize %}{% endfor %}{{ ns.x }}",
    "{% set ns = namespace(x=1) %}{% for i in range(N) %}{% set ns.x = namespace(x=ns.x) %}{% endfor %}{{ ns }}",
    "{% set ns = namespace(x=1) %}{% for i in range(N) %}{% set ns.x = ns.x.items %}{% endfor %}{{ ns }}",
    "{% set ns = namespace(x='a') %}{% for i in range(N) %}{% set ns.x = [ns.x.upper] %}{% endfor %}{{ ns }}",
    "{% macro m(n) %}{% if n < N %}{{ m(n + 1) }}{% endif %}x{% endmacro %}{{ m(0) }}",
    "{% macro m(n) %}{{ m(n) }}{{ m(n) }}{% endmacro %}{{ m(N) }}",
    "{% macro m(n) %}{% if n < 12 %}{% for i in range(N) %}{{ m(n + 1) }}{% endfor %}{% endif %}x{% endmacro %}{{ m(0) }}",
    "{% macro m(c) %}{% call m(caller) %}{% endcall %}{% endmacro %}{{ m(N) }}",
    "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}{{ N }}",
    "{% for x in range(N) recursive %}{{ loop(range(N)) }}{% endfor %}",
    "{% macro a(f) %}{{ f(f) }}{% endmacro %}{{ a(a) }}{{ N }}",
    "{% set ns = namespace() %}{% macro a() %}{{ ns.f() }}{% endmacro %}{% set ns.f = a %}{{ a() }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns|tojson }}",
    "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}",
    "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x == ns.x }}",
    "{% set ns = namespace() %}{% set ns.x = [ns, ns] %}{{ ns.x|string|length }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns == ns }}{{ [ns]|sort }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ '%s' % ns }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ '{}'.format(ns) }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns ~ ns }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ [ns, ns]|join }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns|indent }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns|length }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ {ns: ns} }}",
    "{{ strftime_now('%c' * N)|length }}",
    "{{ ('ab' * 50000).count('a' * N) }}",
    "{{ ('a' * 100000).find('a' * 50000 ~ 'b') }}",
    "{% for i in range(N) %}{{ ('a' * 100000).find('b') }}{% endfor %}",
    "{% for i in range(N) %}{{ ('a' * 10000).strip('xyz' * 1000) }}{% endfor %}",
    "{{ ('a' * 1000000).strip('a' * 1000000) }}",
    "{% for i in range(N) %}{{ messages|tojson|length }}{% endfor %}",
    "{% set x = 'é' * 100000 %}{% for i in range(N) %}{{ x[i] }}{% endfor %}",
    "{% set x = 'é' * 100000 %}{% for i in range(N) %}{{ x|length }}{% endfor %}",
    "{% set x = 'a b' * 10000 %}{% for i in range(N) %}{{ x.split()|length }}{% endfor %}",
    "{% set ns = namespace() %}{% for i in range(N) %}{% set ns.a = i %}{% set q = namespace(b=range(1000)|list) %}{% endfor %}",
    "{{ ('[' * N) ~ 1 }}",
    "{{ (range(300)|list|tojson * 300)|length }}",
    "{% set x = range(3000)|map('string')|list %}{% for i in range(N) %}{{ x|sort|length }}{{ x|unique|list|length }}{% endfor %}",
    "{% set x %}{% for i in range(N) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endset %}{{ x|length }}",
    // What holds another twice, and again: little to hold, much to go through.
    "{% set ns=namespace(l=(1,)) %}{% for i in range(60) %}{% set ns.l=(ns.l,ns.l) %}{% endfor %}{{ {ns.l:1}|length }}{{ N }}",
    "{% set ns=namespace(l=(1,)) %}{% for i in range(60) %}{% set ns.l=(ns.l,ns.l) %}{% endfor %}{{ dict([[ns.l,1]])|length }}{{ N }}",
    "{% set ns=namespace(l=(1,)) %}{% for i in range(60) %}{% set ns.l=(ns.l,ns.l) %}{% endfor %}{{ namespace({ns.l:1}) }}{{ N }}",
    "{% set ns=namespace(l=(1,)) %}{% for i in range(60) %}{% set ns.l=(ns.l,ns.l) %}{% endfor %}{% set d = {ns.l:1, 2:3} %}{{ N }}",
    "{% set ns=namespace(l=(1,)) %}{% for i in range(60) %}{% set ns.l=(ns.l,ns.l) %}{% endfor %}{{ dict.fromkeys([ns.l]) }}{{ N }}",
    "{% set ns=namespace(l=[]) %}{% for i in range(60) %}{% set ns.l=[ns.l,ns.l] %}{% endfor %}{{ ns.l|tojson }}{{ N }}",
    "{% set ns=namespace(l=[],k=[]) %}{% for i in range(60) %}{% set ns.l=[ns.l,ns.l] %}{% set ns.k=[ns.k,ns.k] %}{% endfor %}{{ [ns.l,ns.k]|unique|list }}{{ N }}",
    "{% set ns=namespace(l=[],k=[]) %}{% for i in range(60) %}{% set ns.l=[ns.l,ns.l] %}{% set ns.k=[ns.k,ns.k] %}{% endfor %}{{ ns.l in [ns.k] }}{{ N }}",
    "{% set ns=namespace(l={},k={}) %}{% for i in range(60) %}{% set ns.l={1:ns.l,2:ns.l} %}{% set ns.k={1:ns.k,2:ns.k} %}{% endfor %}{{ ns.l == ns.k }}{{ N }}",
    "{% set ns=namespace(l=1) %}{% for i in range(60) %}{% set ns.l=namespace(a=ns.l,b=ns.l) %}{% endfor %}{{ ns.l }}{{ N }}",
    // What goes through something large again and again.
    "{% set x=range(99999) %}{% for i in range(N) %}{{ x|sum }}{% endfor %}",
    "{% set x=[u]*99999 %}{% for i in range(N) %}{{ x|join }}{% endfor %}",
    "{% for i in range(N) %}{{ loop|first }}{% endfor %}",
    "{% set x=(1,)*99999 %}{% for i in range(N) %}{{ '%(a)s' % x }}{% endfor %}",
    "{% set x='a'*3000000 %}{% set y='a'*3000000 %}{% for i in range(N) %}{{ x is sameas y }}{% endfor %}",
    "{% set x='0'*3000000 %}{% for i in range(N) %}{{ x|filesizeformat }}{% endfor %}",
    "{% set x='a'*1000000 %}{% set y='a'*999999~'b' %}{{ x.startswith((y,)*N) }}",
    // What makes texts and lets them go.
    "{% set ns=namespace() %}{% for i in range(N) %}{% set ns.o='a'*1000000 %}{% endfor %}",
    "{% set ns=namespace() %}{% set x='é'*400000 %}{% for i in range(N) %}{% set ns.o=x|reverse %}{% endfor %}",
    "{% set ns=namespace() %}{% set x='a'*1000000 %}{% for i in range(N) %}{% set ns.o=x~x %}{% endfor %}",
    "{% set ns=namespace() %}{% for i in range(N) %}{% set ns.o='a'.center(500000) %}{% endfor %}",
    "{% set x='a'*1000000 %}{% for i in range(N) %}{{ (x~x) is none }}{% endfor %}",
    "{% set x='a'*1000000 %}{% for i in range(N) %}{% set o=(x~'b')|e|replace('a','bb') %}{% endfor %}",
    "{% set ns=namespace() %}{% set x=' '*1000000 %}{% for i in range(N) %}{% set ns.o=x.strip() %}{{ x|trim }}{% endfor %}",
    // Texts that grow where they are written otherwise do not earn room.
    "{% set ns=namespace(l=[]) %}{% set x='ΐ'*300000 %}{% for i in range(N) %}{% set ns.l=[ns.l,x.upper()] %}{% for j in range(40) %}{% set ns.o=x|upper %}{% endfor %}{% endfor %}",
    "{% set ns=namespace(l=[]) %}{% set x='\"'*300000 %}{% for i in range(N) %}{% set ns.l=[ns.l,x|tojson] %}{% for j in range(40) %}{% set ns.o=x|tojson %}{% endfor %}{% endfor %}",
];

fn inputs() -> Vec<String> {
    let repeated = REPEATED.iter().flat_map(|[before, a, between, b, after]| {
        let whole = move |n: usize| [*before, &a.repeat(n), *between, &b.repeat(n), *after].concat();
        TIMES.into_iter().map(whole)
    });
    let large = LARGE.iter().flat_map(|template| SIZES.into_iter().map(|size| template.replace('N', size)));
    repeated.chain(large).chain(TIMES.into_iter().flat_map(counted)).collect()
}

/// Sources whose parts have numbers.
fn counted(n: usize) -> Vec<String> {
    let all = |part: fn(usize) -> String| (0..n).map(part).collect::<String>();
    let maps = "'map',".repeat(n);
    vec![
        all(|i| format!("{{% macro m{i}() %}}{{{{ m{}() }}}}{{% endmacro %}}", i + 1)) + "{{ m0() }}",
        all(|i| format!("{{% set a{i} = 1 %}}")),
        format!("{{{{ {{{}}}|length }}}}", all(|i| format!("{i}:1,"))),
        format!("{{{{ dict({}) }}}}", all(|i| format!("a{i}=1,"))),
        format!(
            "{{% macro m({}) %}}{{% endmacro %}}{{{{ m() }}}}",
            all(|i| format!("a{i}=1,")).trim_end_matches(',')
        ),
        format!("{{% for i in range(99999) %}}{{{{ {} }}}}{{% endfor %}}", "n".repeat(n)),
        format!("{{{{ 'a'|map({maps} 'upper')|list }}}}"),
        format!("{{{{ ['a']|map({maps} 'upper')|list|string }}}}"),
    ]
}

#[test]
fn no_template_takes_the_process_down() {
    let status = Command::new(env::current_exe().unwrap())
        .args(["--exact", "hostile::every_input", "--ignored", "--nocapture"])
        .status();
    assert!(status.unwrap().success());
}

/// The most memory that this process had at once, where the system tells.
fn peak() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0)
}

#[test]
#[ignore = "no_template_takes_the_process_down runs it, in its own process"]
fn every_input() {
    let inputs = inputs();
    let before = peak();
    let (mut texts, mut slowest) = (0, 0);
    for input in &inputs {
        let config = json!({ "chat_template": input }).to_string().into_bytes();
        let source = Source::memory("folder", vec![("tokenizer_config.json".to_owned(), config)]);
        let mut time = u128::MAX;
        // A machine that was busy gets another chance.
        for _ in 0..3 {
            let started = Instant::now();
            let rendered = block_on(ChatTemplate::read(&source))
                .and_then(|template| template.render(&[ChatMessage::new("user", "hi")], true));
            time = time.min(started.elapsed().as_millis());
            if time <= MOST_TIME {
                match rendered {
                    Ok(_) => texts += 1,
                    Err(error) => assert!(error.to_string().len() < 700, "{error}"),
                }
                break;
            }
        }
        let start: String = input.chars().take(200).collect();
        assert!(time <= MOST_TIME, "{time} ms: {start}");
        assert!(peak() - before <= MOST_MEMORY, "{} KiB: {start}", peak() - before);
        slowest = slowest.max(time);
    }
    println!(
        "{} templates, of which {texts} are texts; the slowest took {slowest} ms, memory {} KiB",
        inputs.len(),
        peak() - before
    );
}
