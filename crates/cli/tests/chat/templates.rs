//! Templates in the manner of published ones, with what they must make of a conversation, written by hand and compared
//! with what Jinja2 3.1.6 makes of it under transformers' settings.

use headwise::{ChatMessage, ChatTemplate, Error, Source, block_on};
use serde_json::{Value, json};

/// Llama 2: the system's message inside the first of the user's, every pair with its own bos and eos.
const LLAMA_2: &str = "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
    {% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
    {% set system_message = false %}{% endif %}{% for message in loop_messages %}\
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
    {{ raise_exception('Roles must alternate user/assistant') }}{% endif %}\
    {% if loop.index0 == 0 and system_message != false %}\
    {% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
    {% else %}{% set content = message['content'] %}{% endif %}\
    {% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
    {% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";

/// ChatML, laid out over lines whose breaks and indentation are not the text's.
const CHATML: &str = "{% for message in messages %}
    {% if loop.first and messages[0].role != 'system' %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content | trim ~ '<|im_end|>' }}
{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
";

/// Lines as they are: only block tags take theirs with them.
const ZEPHYR: &str = "{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}";

/// Llama 3: headers, a namespace, tools that are none.
const LLAMA_3: &str = "{{- bos_token }}
{%- set ns = namespace(count=0) %}
{%- if tools is not none %}{{- 'tools!' }}{%- endif %}
{%- for message in messages %}
    {%- set ns.count = ns.count + 1 %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt and ns.count > 0 %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}
{%- endif %}";

fn source(files: &[(&str, String)]) -> Source {
    Source::memory("folder", files.iter().cloned())
}

fn read(config: Value) -> Result<ChatTemplate, Error> {
    block_on(ChatTemplate::read(&source(&[("tokenizer_config.json", config.to_string())])))
}

fn template(text: &str) -> ChatTemplate {
    // A token is a text or an object with one.
    read(
        json!({"chat_template": text, "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}}),
    )
    .unwrap()
}

fn talk(roles: Roles) -> Vec<ChatMessage> {
    roles.iter().map(|(role, content)| ChatMessage::new(*role, *content)).collect()
}

/// Messages, each with its role.
type Roles<'a> = &'a [(&'a str, &'a str)];

#[test]
fn conversations_are_written_as_their_templates_say() {
    let two = [("user", " Hi there "), ("assistant", " Hello! "), ("user", "How & <why>?")];
    let three = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Bye")];
    let cases: [(&str, Roles, bool, &str); 7] = [
        (LLAMA_2, &two, true, "<s>[INST] Hi there [/INST] Hello! </s><s>[INST] How & <why>? [/INST]"),
        (
            LLAMA_2,
            &three,
            true,
            "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello! </s><s>[INST] Bye [/INST]",
        ),
        (
            CHATML,
            &two,
            true,
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi there<|im_end|>\n\
             <|im_start|>assistant\nHello!<|im_end|>\n<|im_start|>user\nHow & <why>?<|im_end|>\n\
             <|im_start|>assistant\n",
        ),
        (
            CHATML,
            &three[..3],
            false,
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n\
             <|im_start|>assistant\nHello!<|im_end|>\n",
        ),
        (
            ZEPHYR,
            &three,
            true,
            "<|system|>\nBe brief.</s>\n<|user|>\nHi</s>\n<|assistant|>\nHello!</s>\n<|user|>\nBye</s>\n\
             <|assistant|>\n",
        ),
        (
            LLAMA_3,
            &two[..1],
            true,
            "<s><|start_header_id|>user<|end_header_id|>\n\nHi there<|eot_id|>\
             <|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (LLAMA_3, &[], true, "<s>"),
    ];
    for (index, (text, roles, prompt, expected)) in cases.into_iter().enumerate() {
        let found = template(text).render(&talk(roles), prompt).unwrap();
        assert_eq!(found, expected, "case {index}");
    }
}

#[test]
fn the_template_is_found_where_the_folder_has_it() {
    let hello = talk(&[("user", "x")]);
    let named = json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain {{ messages[0].content }}"}]);
    assert_eq!(read(json!({"chat_template": named})).unwrap().render(&hello, true).unwrap(), "plain x");
    // Of a dict, and of entries with one name, what Python's dict would have.
    let dict = json!({"tool_use": "tools", "default": "dict {{ messages[0].content }}"});
    assert_eq!(read(json!({"chat_template": dict})).unwrap().render(&hello, true).unwrap(), "dict x");
    let twice = json!([{"name": "default", "template": "one"}, {"name": "default", "template": "two"}]);
    assert_eq!(read(json!({"chat_template": twice})).unwrap().render(&hello, true).unwrap(), "two");
    // A file of its own counts more, and is no HTML.
    let files = [
        ("tokenizer_config.json", json!({"chat_template": "old", "bos_token": "<s>"}).to_string()),
        ("chat_template.jinja", "{{ bos_token }}{{ messages[0].content }}\n".to_owned()),
    ];
    let own = block_on(ChatTemplate::read(&source(&files))).unwrap();
    assert_eq!(own.render(&talk(&[("user", "<&>")]), true).unwrap(), "<s><&>");
    let alone = block_on(ChatTemplate::read(&source(&files[1..]))).unwrap();
    assert_eq!(alone.render(&hello, true).unwrap(), "x");
}

#[test]
fn folders_without_a_template_are_refused_by_name() {
    let none = "folder/tokenizer_config.json: chat_template: found nothing, expected a chat template: this model was \
        not made for conversations, it continues texts";
    let refused = |result: Result<ChatTemplate, Error>| result.err().unwrap().to_string();
    assert_eq!(refused(block_on(ChatTemplate::read(&source(&[])))), none);
    assert_eq!(refused(read(json!({}))), none);
    assert_eq!(refused(read(json!({"chat_template": null}))), none);
    for (template, part) in [
        (json!(7), "found something else"),
        (
            json!([{"name": "rag", "template": "x"}, {"name": "tool_use", "template": "y"}]),
            "found \"rag, tool_use\"",
        ),
        (
            json!({"rag": "x", "tool\n": "y"}),
            r#"found "rag, tool\n", expected a template with the name default"#,
        ),
        (json!({"default": 7}), "found \"default\""),
        (json!({}), "expected a template with the name default"),
        (json!("x".repeat((256 << 10) + 1)), "found 256.0 KiB, expected at most 256.0 KiB"),
        (
            json!("a\nb {% if %}"),
            "chat template, line 2, \"%}\": found syntax error: %} where an expression should be",
        ),
        (json!("{% for x in"), "chat template, line 1, \"{% for x in\": found a tag that does not end"),
        (json!("{{ a ! b }}"), "chat template, line 1, \"! b }}\": found an unexpected character '!'"),
        (json!("{{ a \u{7} }}"), r#"line 1, "\u{7} }}": found an unexpected character '\u{7}'"#),
        (
            json!("\n\n {% flub %}"),
            "chat template, line 3, \"{% flub %}\": found syntax error: an unknown tag flub",
        ),
        (json!("{".repeat(100_000)), "found a tag that does not end"),
        (
            json!(format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000))),
            "nested more than 100 deep",
        ),
        (json!(format!("{{{{ {}1 }}}}", "not ".repeat(50_000))), "an expression of more than 200 levels"),
    ] {
        let error = refused(read(json!({"chat_template": template})));
        assert!(error.starts_with("folder/tokenizer_config.json: ") && error.contains(part), "{error}");
    }
    let files = [("chat_template.jinja", "x".repeat((256 << 10) + 1))];
    let error = refused(block_on(ChatTemplate::read(&source(&files))));
    assert!(error.starts_with("folder/chat_template.jinja: file length"), "{error}");
}

#[test]
fn a_template_may_object_but_not_go_on_for_ever() {
    let error = template(LLAMA_2).render(&talk(&[("assistant", "I begin")]), true).unwrap_err().to_string();
    assert_eq!(
        error,
        "folder/tokenizer_config.json: chat template, line 1: found its objection \"Roles must alternate user/assistant\", \
         expected a conversation that it takes"
    );
    let error = template("a\n{{ x.y.z }}").render(&[], true).unwrap_err().to_string();
    assert_eq!(
        error,
        "folder/tokenizer_config.json: chat template, line 2, \"x.y.z }}\": found \"x\" is undefined, expected a template \
         for this conversation"
    );
    let error = template("{{ raise_exception('\\n' * 100000) }}").render(&[], true).unwrap_err().to_string();
    assert!(error.len() < 500 && !error.contains('\n'), "{error}");

    for hostile in [
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ j }}{% endfor %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(64) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{{ 'x' * 100000000000 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% macro twice(n) %}{{ twice(n + 1) }}{{ twice(n + 1) }}{% endmacro %}{{ twice(0) }}",
        "{{ range(100000000000) | list }}",
        "{{ ('x' * 100000).replace('x', 'y' * 100000) }}",
        "{% for i in range(100000) %}{{ messages | string }}{% endfor %}",
        "{% include 'other' %}",
        "{{ messages.nothing.at.all }}",
        "{{ no_such_function() }}",
        "{{ 1 / 0 }}",
    ] {
        let talk = talk(&[("user", &"y".repeat(1000))]);
        let rendered =
            read(json!({"chat_template": hostile})).and_then(|template| template.render(&talk, true));
        let error = rendered.unwrap_err().to_string();
        assert!(error.starts_with("folder/tokenizer_config.json: chat template"), "{hostile}: {error}");
    }
}

/// Python's templates may gather a conversation in one text, message by message. The expected text is the messages' own, each
/// after its role: the arithmetic of joining.
#[test]
fn a_text_may_be_gathered_from_a_long_conversation() {
    for (count, ways) in [
        (90, ["ns.o ~ '<' ~ m.role ~ '>' ~ m.content", "ns.o + '<' + m.role + '>' + m.content"]),
        (500, ["ns.o ~ '<' ~ m.role ~ '>' ~ m.content", "(ns.o ~ '<' ~ m.role ~ '>' ~ m.content).strip()"]),
        (500, ["ns.o + '<' + m.role + '>' + m.content", "(ns.o ~ '<' ~ m.role ~ '>' ~ m.content)|trim"]),
    ] {
        let roles = ["user", "assistant"].into_iter().cycle().take(count);
        let said: Vec<(&str, String)> =
            roles.enumerate().map(|(at, role)| (role, format!("{at:04}").repeat(500))).collect();
        let messages: Vec<_> = said.iter().map(|(role, content)| ChatMessage::new(*role, content)).collect();
        let expected: String = said.iter().map(|(role, content)| format!("<{role}>{content}")).collect();
        // "<user>" and "<assistant>" have 17 bytes together.
        assert_eq!(expected.len(), count / 2 * 17 + count * 2000);
        for way in ways {
            let text = format!(
                "{{% set ns = namespace(o='') %}}{{% for m in messages %}}{{% set ns.o = {way} %}}{{% endfor %}}{{{{ ns.o }}}}"
            );
            let found = template(&text).render(&messages, true).unwrap();
            assert!(found == expected, "{count}, {way}: {} bytes", found.len());
        }
    }
}

/// Where `apply_chat_template` of transformers 5.24 (`AutoTokenizer.from_pretrained` on a folder with these files and any
/// `tokenizer.json`) has its special tokens from.
#[test]
fn special_tokens_are_those_that_transformers_finds() {
    let text = "{{ bos_token }}|{{ eos_token }}|{{ unk_token }}{{ image_token }}";
    let map = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}});
    let class = "PreTrainedTokenizerFast";
    for (config, map, rendered) in [
        (json!({"tokenizer_class": class}), Some(map.clone()), "<s>|</s>|"),
        (json!({"bos_token": "A", "eos_token": "B"}), Some(map.clone()), "<s>|</s>|"),
        (json!({"bos_token": "A", "eos_token": {"content": "B"}}), None, "A|B|"),
        (
            json!({"bos_token": "A", "eos_token": "B", "added_tokens_decoder": {"2": {"content": "</s>"}}}),
            Some(map.clone()),
            "A|B|",
        ),
        (json!({"added_tokens_decoder": {}}), Some(map.clone()), "||"),
        (json!({"bos_token": null}), Some(map.clone()), "<s>|</s>|"),
        (json!({"bos_token": "A"}), Some(json!({"bos_token": null})), "||"),
        (json!({"image_token": "<img>", "add_bos_token": true}), Some(map.clone()), "<s>|</s>|<img>"),
        (json!({"tokenizer_class": "LlamaTokenizer"}), None, "<s>|</s>|<unk>"),
        (
            json!({"tokenizer_class": "LlamaTokenizerFast", "bos_token": null}),
            Some(json!({"eos_token": "E"})),
            "|E|<unk>",
        ),
        (json!({"tokenizer_class": "GPT2TokenizerFast"}), None, "<|endoftext|>|<|endoftext|>|<|endoftext|>"),
        (json!({"tokenizer_class": "OtherTokenizer"}), None, "||"),
        (json!({}), None, "||"),
    ] {
        let mut files =
            vec![("chat_template.jinja", text.to_owned()), ("tokenizer_config.json", config.to_string())];
        files.extend(map.as_ref().map(|map| ("special_tokens_map.json", map.to_string())));
        let template = block_on(ChatTemplate::read(&source(&files))).unwrap();
        assert_eq!(template.render(&talk(&[("user", "a")]), true).unwrap(), rendered, "{config} and {map:?}");
    }
    // The map alone, as in folders of older tools.
    let files = [("chat_template.jinja", text.to_owned()), ("special_tokens_map.json", map.to_string())];
    let template = block_on(ChatTemplate::read(&source(&files))).unwrap();
    assert_eq!(template.render(&talk(&[("user", "a")]), true).unwrap(), "<s>|</s>|");

    let turns = "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}\
                 {% if add_generation_prompt %}<|assistant|>{% endif %}";
    let config = json!({"tokenizer_class": class, "chat_template": turns});
    let files = [("tokenizer_config.json", config.to_string()), ("special_tokens_map.json", map.to_string())];
    let template = block_on(ChatTemplate::read(&source(&files))).unwrap();
    assert_eq!(template.render(&talk(&[("user", "a")]), true).unwrap(), "<s><|user|>a<|assistant|>");

    let wrong = [
        ("tokenizer_config.json", config.to_string()),
        ("special_tokens_map.json", json!({"bos_token": 3}).to_string()),
    ];
    let error = block_on(ChatTemplate::read(&source(&wrong))).err().unwrap().to_string();
    assert_eq!(
        error,
        "folder/special_tokens_map.json: bos_token: found 3, expected a text, or an object with its `content`"
    );
}

/// Expected values by Python 3.11's json and jinja2 3.1.6 under transformers 5.24's settings.
#[test]
fn what_transformers_adds_to_jinja_is_there() {
    let said = [("user", "Hi <b> &")];
    for (text, expected) in [
        ("{{ messages[0].content | tojson }}", "\"Hi <b> &\""),
        ("{{ messages | tojson }}", "[{\"role\": \"user\", \"content\": \"Hi <b> &\"}]"),
        (
            "{{ {'b': [1, 2.0], 'a': none} | tojson(indent=2) }}",
            "{\n  \"b\": [\n    1,\n    2.0\n  ],\n  \"a\": null\n}",
        ),
        ("{{ {'b': 1, 'a': true} | tojson(sort_keys=true) }}", "{\"a\": true, \"b\": 1}"),
        ("{{ [1, {'a': 2}] | tojson(separators=(',', ':')) }}", "[1,{\"a\":2}]"),
        ("{{ 'é😀' | tojson(ensure_ascii=true) }}", "\"\\u00e9\\ud83d\\ude00\""),
        ("{{ 'é' | tojson }}", "\"é\""),
        ("a{% generation %}{{ messages[0].role }}{% endgeneration %}b", "auserb"),
        (
            "{#- {% generation %} -#}{% raw %}{% generation %}{% endraw %}{{ '{% generation %}' }}",
            "{% generation %}{% generation %}",
        ),
        (
            "{{ none }} {{ true }} {{ [1, 'a', none] }} {{ 1.0 }} {{ {'a': 'it\\'s'} }}",
            "None True [1, 'a', None] 1.0 {'a': \"it's\"}",
        ),
        ("{{ strftime_now('%%') }}{{ strftime_now('%Y-%m-%d') | length }}", "%10"),
        ("{{ tools is none and documents is none }}", "True"),
    ] {
        assert_eq!(template(text).render(&talk(&said), true).unwrap(), expected, "{text}");
    }
}
