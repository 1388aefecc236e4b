//! Types that an app keeps: in its state, in its log, in its settings file.

use std::fmt::Debug;

use headwise::*;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use super::{load, plain_gpu, tiny};

/// Never runs: that it compiles is the promise.
#[allow(dead_code)]
fn what_public_types_are() {
    fn handle<T: Clone + Debug + Send + Sync + 'static>() {}
    fn owned<T: Debug + Send + 'static>() {}
    fn options<T: Debug + Serialize + DeserializeOwned>() {}
    fn result<T: Clone + Debug + Serialize + Send + Sync + 'static>() {}
    handle::<Gpu>();
    handle::<Model>();
    handle::<Cancel>();
    handle::<Tokenizer>();
    handle::<(Generate, Translate, Embed, Score, Sampling, SessionOptions, GpuOptions)>();
    handle::<(Image, HubRepo, Routes, RouterShape)>();
    owned::<(Session, Chat, ChatTemplate, Source, Hub, HubModel<'static>, Error)>();
    owned::<(TokenStream, ReplyStream, PendingTokens, PendingValues, TextStream<'static>)>();
    options::<(Generate, Translate, Embed, Score, Sampling, SessionOptions, GpuOptions)>();
    options::<(LoadOptions<'_>, Bench<'_>, QuantizeOptions<'_>, ConvertOptions<'_>, UpcycleOptions<'_>)>();
    options::<(AdapterSelection, KernelChoice, Precision, CachePrecision, Pooling, ChatMessage)>();
    options::<(MoaGates, MoaActivation, KvSharing)>();
    result::<(Token, TopToken, Generation, StopReason, Reply, Translation, TranslationLogits, Logits)>();
    result::<(Filled, FilledMask, Candidate, Classification, Class, Scored)>();
    result::<(ModelInfo, AttentionInfo, MlpInfo, PrecisionMemory, WrittenModel)>();
    result::<(TokenRoutes, LayerRoutes, Choice, LayerUse, RouterUse, DropMargin)>();
    result::<(BenchReport, BenchRow, Limit, Spread, Counters, Capabilities, AdapterReport)>();
}

/// What `options` are in a settings file, and again from there.
#[track_caller]
fn kept<T: Debug + Serialize + DeserializeOwned>(options: &T, expected: Value) {
    let written = serde_json::to_string(options).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), expected);
    let read: T = serde_json::from_str(&written).unwrap();
    assert_eq!(format!("{read:?}"), format!("{options:?}"));
}

#[test]
fn options_are_kept_in_a_settings_file() {
    let options = Generate::new()
        .max_new(5)
        .temperature(0.5)
        .top_k(None)
        .top_p(0.5)
        .seed(u64::MAX)
        .repetition_penalty(1.25)
        .logit_bias([(7, f32::NEG_INFINITY), (9, 2.0)])
        .logprobs(3)
        .stop_at([2])
        .stop(["."])
        .with_routes()
        .progress(|_, _| ());
    let written = json!({
        "max_new": 5,
        "sampling": {"temperature": 0.5, "top_k": null, "top_p": 0.5, "seed": u64::MAX},
        "stop_at": [2],
        "stop": ["."],
        "penalties": {"repetition": 1.25, "presence": 0.0, "frequency": 0.0, "bias": {"7": null, "9": 2.0}},
        "logprobs": 3,
        "routes": true,
    });
    let read: Generate = serde_json::from_value(written.clone()).unwrap();
    // All but the callback, which no file has.
    assert_eq!(format!("{read:?}"), format!("{options:?}").replace("Some(Progress)", "None"));
    kept(&read, written);
    let written = json!({"beams": 4, "length_penalty": 0.6, "max_new": 96, "batch": 16, "routes": false});
    kept(&Translate::new().beams(4), written);
    let written = json!({"pooling": "last", "normalize": true, "cut": false, "step_tokens": null});
    kept(&Embed::new().pooling(Pooling::Last).normalize(true), written);
    kept(&Score::new().step_tokens(64), json!({"cut": false, "step_tokens": 64}));
    let written = json!({
        "sequences": 3, "positions": 100, "reserve": 1, "step_tokens": null, "logit_rows": null, "hidden": false,
    });
    kept(&SessionOptions::new().sequences(3).positions(100), written);
    let options = GpuOptions::new().adapter(AdapterSelection::Number(1)).kernels(KernelChoice::Plain);
    let written = json!({
        "adapter": {"number": 1}, "default_limits": false, "kernels": "plain", "memory_limit": 1000,
        "kernel_cache": {"note": null, "place": {"folder": "/cache"}},
    });
    kept(&options.memory_limit(1000).kernel_cache("/cache"), written);
    let options = LoadOptions::new().precision(Precision::Q4).cache_precision(CachePrecision::F16);
    kept(&options, json!({"precision": "q4", "cache_precision": "f16", "warm_up": false}));
    kept(&Bench::new().rounds(3), json!({"rounds": 3, "tokens": 64}));
    kept(&QuantizeOptions::new(Precision::Q8), json!({"scheme": "q8"}));
    let written = json!({
        "top_k": 2, "gates": "paper", "activation": "gelu", "max_positions": 1024, "tokenizer": null,
    });
    let options = ConvertOptions::new(2).gates(MoaGates::Paper).activation(MoaActivation::Gelu);
    kept(&options, written);
    kept(&UpcycleOptions::new().kv(KvSharing::Shared), json!({"kv": "shared", "router_seed": 0}));
}

#[test]
fn settings_may_leave_out_options_but_not_invent_any() {
    let of = |json: Value| serde_json::from_value::<Generate>(json);
    assert_eq!(format!("{:?}", of(json!({})).unwrap()), format!("{:?}", Generate::new()));
    let some = of(json!({"sampling": {"temperature": 0.0}})).unwrap();
    assert_eq!(format!("{some:?}"), format!("{:?}", Generate::new().greedy()));
    let convert: ConvertOptions<'_> = serde_json::from_value(json!({"top_k": 2})).unwrap();
    assert_eq!(format!("{convert:?}"), format!("{:?}", ConvertOptions::new(2)));
    let says = |result: Result<String, serde_json::Error>, part: &str| {
        let error = result.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
    };
    let shown = |options: Result<Generate, _>| options.map(|options| format!("{options:?}"));
    says(shown(of(json!({"max_mew": 5}))), "unknown field `max_mew`");
    says(shown(of(json!({"sampling": {"top": 5}}))), "unknown field `top`");
    says(shown(of(json!({"cancel": true}))), "unknown field `cancel`");
    let gpu = serde_json::from_value::<GpuOptions>(json!({"submission_macs": 1}));
    says(gpu.map(|gpu| format!("{gpu:?}")), "unknown field `submission_macs`");
}

/// What is shown of handles is a line, whatever they hold.
#[test]
fn handles_are_short_in_a_log() {
    let gpu = plain_gpu();
    let model = load(&gpu, &tiny()).unwrap();
    let session = model.session(SessionOptions::new().sequences(2)).unwrap();
    let template = ChatTemplate::from_text("{{ messages[0].content }}", [("bos_token", "<s>")]).unwrap();
    let said = template.render(&[ChatMessage::new("user", "Hi")], true).unwrap();
    assert_eq!(said, "Hi");
    let wrong = ChatTemplate::from_text("{{", [("", "")]).unwrap_err().to_string();
    assert!(wrong.starts_with("the given template: chat template, line 1"), "{wrong}");
    let wrong = Tokenizer::from_bytes(*b"{}").unwrap_err().to_string();
    assert!(wrong.contains("tokenizer.json"), "{wrong}");
    for shown in [format!("{gpu:?}"), format!("{model:?}"), format!("{session:?}"), format!("{:?}", tiny())] {
        assert!(shown.len() < 400, "{shown}");
    }
}
