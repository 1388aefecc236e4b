//! The promise: `--model owner/name` fetches what a hub has, nothing twice, nothing that does not fit, and takes up what
//! broke; what fails is one error that names repository, file and status, and leaves nothing that looks complete.

#[path = "hub/contents.rs"]
mod contents;
#[path = "hub/server.rs"]
mod server;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use headwise::{
    Cancel, Error, Gpu, GpuOptions, Hub as Client, HubRepo, KernelChoice, LoadOptions, Model, ModelInfo,
    Source, block_on,
};
use safetensors::{SafeTensors, tensor::TensorView};
use server::{Fault, Files, Hub};

const TINY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/jetmoe_tiny");
const FIRST: &str = "1111111111111111111111111111111111111111";
const SECOND: &str = "2222222222222222222222222222222222222222";
const WEIGHTS: &str = "model.safetensors";

/// The tiny fixture as a repository.
fn files() -> Files {
    let read = |name: &str| fs::read(format!("{TINY}/{name}")).unwrap();
    let tokenizer = br#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"a":0},"unk_token":"a"}}"#;
    BTreeMap::from([
        ("config.json", read("config.json")),
        ("README.md", b"not fetched".to_vec()),
        ("tokenizer.json", tokenizer.to_vec()),
        (WEIGHTS, read(WEIGHTS)),
    ])
}

/// A hub with the fixture, a client of it, and the client's empty cache.
fn start(test: &str) -> (Hub, Client, PathBuf) {
    let hub = Hub::start();
    hub.add("main", FIRST, files());
    let cache = empty(test);
    let client = Client::new(&hub.endpoint, &cache, None).unwrap();
    (hub, client, cache)
}

fn empty(test: &str) -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hub-{test}")).join("hub");
    let _ = fs::remove_dir_all(&cache);
    cache
}

fn repo(text: &str) -> HubRepo {
    text.parse().unwrap()
}

fn fetch(client: &Client, name: &str) -> Result<PathBuf, Error> {
    client.look(&repo(name))?.download(|_, _| {})
}

/// Status and message of what must fail.
#[track_caller]
fn fails(client: &Client, name: &str) -> (Option<u16>, String) {
    match fetch(client, name) {
        Err(error) => match &error {
            Error::Hub { status, .. } => (*status, error.to_string()),
            _ => (None, error.to_string()),
        },
        Ok(folder) => panic!("fetched {folder:?}"),
    }
}

/// The repository's folder in the cache.
fn kept(cache: &Path) -> PathBuf {
    cache.join("models--tiny--jetmoe")
}

/// Names in a folder; none where there is no folder.
fn names(folder: impl AsRef<Path>) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Files that are not all here, with their lengths.
fn incomplete(cache: &Path) -> Vec<u64> {
    let blobs = kept(cache).join("blobs");
    let partial = names(&blobs).into_iter().filter(|name| name.ends_with(".incomplete"));
    partial.map(|name| fs::metadata(blobs.join(name)).unwrap().len()).collect()
}

#[track_caller]
fn assert_same(folder: &Path, files: &Files, wanted: &[&str]) {
    assert_eq!(names(folder), wanted);
    for name in wanted {
        assert!(fs::read(folder.join(name)).unwrap() == files[name], "{name} differs");
    }
}

// -- what is fetched --------------------------------------------------------------------------------

#[test]
fn a_model_is_fetched_once_and_kept_in_the_hubs_own_layout() {
    let (hub, client, cache) = start("once");
    let model = client.look(&repo("tiny/jetmoe")).unwrap();
    let at = |request: &str| format!("{request}@{FIRST}");
    let looked = [
        "HEAD config.json@main".to_owned(),
        at("HEAD config.json"),
        at("GET config.json"),
        at("HEAD generation_config.json"),
        at("HEAD tokenizer.json"),
        at("GET tokenizer.json"),
        at("HEAD tokenizer_config.json"),
        at("HEAD special_tokens_map.json"),
        at("HEAD chat_template.jinja"),
        at("HEAD model.safetensors"),
        at("GET model.safetensors") + " bytes=0-65535",
        at("storage: GET model.safetensors") + " bytes=0-65535",
    ];
    assert_eq!(hub.requests(), looked);
    // Known before the weights are fetched, and no more than the header of them is.
    let info = block_on(ModelInfo::read(&model.preview())).unwrap();
    assert_eq!(
        serde_json::to_value(&info).unwrap(),
        serde_json::to_value(block_on(ModelInfo::read(&Source::folder(TINY))).unwrap()).unwrap()
    );
    let files = files();
    let size = files[WEIGHTS].len() as u64;
    assert_eq!(model.missing_bytes(), size);
    assert!(model.disk_bytes().is_some_and(|bytes| bytes > size));

    let mut told = Vec::new();
    let folder = model.download(|here, all| told.push((here, all))).unwrap();
    assert_eq!(hub.requests(), [at("GET model.safetensors"), at("storage: GET model.safetensors")]);
    assert_eq!((told[0], *told.last().unwrap()), ((0, size), (size, size)));
    assert!(told.is_sorted());

    assert_eq!(folder, kept(&cache).join("snapshots").join(FIRST));
    assert_same(&folder, &files, &["config.json", WEIGHTS, "tokenizer.json"]);
    assert_eq!(names(kept(&cache)), [".no_exist", "blobs", "refs", "snapshots"]);
    assert_eq!(fs::read_to_string(kept(&cache).join("refs/main")).unwrap(), FIRST);
    assert_eq!(
        names(kept(&cache).join(".no_exist").join(FIRST)),
        ["chat_template.jinja", "generation_config.json", "special_tokens_map.json", "tokenizer_config.json"]
    );
    #[cfg(unix)]
    {
        let link = fs::read_link(folder.join(WEIGHTS)).unwrap();
        assert_eq!(link.parent(), Some(Path::new("../../blobs")));
    }
    // hf-hub itself finds it.
    let theirs = hf_hub::Cache::new(cache).model("tiny/jetmoe".to_owned());
    assert_eq!(theirs.get(WEIGHTS), Some(folder.join(WEIGHTS)));

    // A second time only the branch is asked about, and what was not there.
    assert_eq!(fetch(&client, "tiny/jetmoe").unwrap(), folder);
    let absent =
        ["generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];
    let again = absent.map(|name| at(&format!("HEAD {name}")));
    assert_eq!(hub.requests(), [&["HEAD config.json@main".to_owned()], &again[..]].concat());
    // A commit does not change.
    assert_eq!(fetch(&client, &format!("tiny/jetmoe@{FIRST}")).unwrap(), folder);
    assert_eq!(hub.requests(), [""; 0]);
}

#[test]
fn a_revision_has_its_own_files_and_shares_what_is_the_same() {
    let (hub, client, cache) = start("revision");
    let mut second = files();
    let first_ten = second["tokenizer.json"][..10].to_vec();
    second.insert("tokenizer.json", first_ten);
    hub.add("refs/pr/1", SECOND, second.clone());
    let first = fetch(&client, "tiny/jetmoe").unwrap();
    hub.sent();
    let folder = fetch(&client, "tiny/jetmoe@refs/pr/1").unwrap();
    assert_same(&folder, &second, &["config.json", WEIGHTS, "tokenizer.json"]);
    assert_same(&first, &files(), &["config.json", WEIGHTS, "tokenizer.json"]);
    assert_eq!(hub.sent(), 10);
    assert_eq!(fs::read_to_string(kept(&cache).join("refs/refs/pr/1")).unwrap(), SECOND);

    let (status, message) = fails(&client, "tiny/jetmoe@v9");
    assert_eq!(status, Some(404));
    assert!(message.starts_with("tiny/jetmoe@v9 on http://127.0.0.1:"), "{message}");
    assert!(message.contains("config.json: HTTP 404"), "{message}");
    assert_eq!(fails(&client, "tiny/other").0, Some(404));
}

/// The fixture's weights in two files, and their index.
fn sharded() -> Files {
    let mut files = files();
    let whole = files.remove(WEIGHTS).unwrap();
    let tensors = SafeTensors::deserialize(&whole).unwrap();
    let mut shards: [Vec<(String, TensorView)>; 2] = Default::default();
    let mut map = serde_json::Map::new();
    let shard_names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    for (index, (name, tensor)) in tensors.tensors().into_iter().enumerate() {
        map.insert(name.clone(), shard_names[index % 2].into());
        shards[index % 2].push((name, tensor));
    }
    for (name, shard) in shard_names.into_iter().zip(shards) {
        files.insert(name, safetensors::serialize(shard, None).unwrap());
    }
    let index = serde_json::json!({ "weight_map": map });
    files.insert("model.safetensors.index.json", index.to_string().into_bytes());
    files
}

#[test]
fn weights_in_several_files_are_fetched_by_their_index() {
    let (hub, client, cache) = start("shards");
    let files = sharded();
    hub.add("main", FIRST, files.clone());
    let model = client.look(&repo("tiny/jetmoe")).unwrap();
    assert_eq!(block_on(ModelInfo::read(&model.preview())).unwrap().layers, 2);
    let size: usize =
        files.iter().filter(|(name, _)| name.ends_with("safetensors")).map(|(_, f)| f.len()).sum();
    assert_eq!(model.missing_bytes(), size as u64);
    let folder = model.download(|_, all| assert_eq!(all, size as u64)).unwrap();
    let mut wanted: Vec<&str> = files.keys().copied().filter(|name| *name != "README.md").collect();
    wanted.sort();
    assert_same(&folder, &files, &wanted);
    assert_eq!(
        names(kept(&cache).join(".no_exist").join(FIRST)),
        [
            "chat_template.jinja",
            "generation_config.json",
            WEIGHTS,
            "special_tokens_map.json",
            "tokenizer_config.json"
        ]
    );
    hub.requests();
    fetch(&client, "tiny/jetmoe").unwrap();
    assert!(hub.requests().iter().all(|line| line.starts_with("HEAD") && !line.contains("safetensors")));
}

/// The length of a safetensors header.
fn header_length(weights: &[u8]) -> usize {
    u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize
}

/// The fixture with a header of 100 kB: safetensors allows spaces behind it.
fn long_header() -> Files {
    let mut files = files();
    let weights = &files[WEIGHTS];
    let length = header_length(weights);
    let longer = [
        &(length as u64 + 100_000).to_le_bytes(),
        &weights[8..8 + length],
        &[b' '; 100_000][..],
        &weights[8 + length..],
    ];
    files.insert(WEIGHTS, longer.concat());
    files
}

#[test]
fn a_long_header_is_read_to_its_end() {
    let (hub, client, _) = start("long-header");
    let length = header_length(&files()[WEIGHTS]);
    hub.add("main", FIRST, long_header());
    let model = client.look(&repo("tiny/jetmoe")).unwrap();
    let ranges: Vec<String> = hub.requests().into_iter().filter(|line| line.starts_with("storage")).collect();
    let end = 8 + length + 100_000 - 1;
    assert_eq!(
        ranges,
        ["bytes=0-65535".to_owned(), format!("bytes=65536-{end}")]
            .map(|range| format!("storage: GET model.safetensors@{FIRST} {range}"))
    );
    assert_eq!(block_on(ModelInfo::read(&model.preview())).unwrap().layers, 2);
}

// -- what breaks ------------------------------------------------------------------------------------

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let (hub, client, cache) = start("broken");
    hub.fault(WEIGHTS, Fault::BreakOnce(100_000));
    let folder = fetch(&client, "tiny/jetmoe").unwrap();
    assert_same(&folder, &files(), &["config.json", WEIGHTS, "tokenizer.json"]);
    let transfers: Vec<String> = hub.requests().split_off(12);
    let get = format!("GET model.safetensors@{FIRST}");
    let expected = [
        get.clone(),
        format!("storage: {get}"),
        format!("{get} bytes=100000-"),
        format!("storage: {get} bytes=100000-"),
    ];
    assert_eq!(transfers, expected);
    assert_eq!(incomplete(&cache), [0; 0]);
}

#[test]
fn a_download_that_ended_goes_on_in_another_process() {
    let (hub, client, cache) = start("ended");
    hub.fault(WEIGHTS, Fault::BreakAndDeny(70_001));
    let (status, message) = fails(&client, "tiny/jetmoe");
    assert_eq!(status, Some(403));
    for part in ["tiny/jetmoe on http", "model.safetensors: HTTP 403", "no longer", "HF_TOKEN", "licence"] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    // What is here does not look complete.
    assert_eq!(incomplete(&cache), [70_001]);
    let snapshot = kept(&cache).join("snapshots").join(FIRST);
    assert_eq!(names(&snapshot), ["config.json", "tokenizer.json"]);

    hub.heal(WEIGHTS);
    hub.requests();
    let size = files()[WEIGHTS].len() as u64;
    let other = Client::new(&hub.endpoint, &cache, None).unwrap();
    // Cancelled, it keeps what is here.
    let cancel = Cancel::new();
    let cancelled = other.look(&repo("tiny/jetmoe")).unwrap().cancel(&cancel);
    assert!(matches!(cancelled.download(|_, _| cancel.cancel()), Err(Error::Cancelled)));
    assert!(!hub.requests().iter().any(|request| request.contains("bytes=70001-")));
    assert_eq!(incomplete(&cache), [70_001]);
    let model = other.look(&repo("tiny/jetmoe")).unwrap();
    assert_eq!(model.missing_bytes(), size - 70_001);
    let mut first = None;
    let folder = model.download(|here, all| first = first.or(Some((here, all)))).unwrap();
    assert_eq!(first, Some((70_001, size)));
    assert_eq!(hub.requests().last(), Some(&format!("storage: GET model.safetensors@{FIRST} bytes=70001-")));
    assert_same(&folder, &files(), &["config.json", WEIGHTS, "tokenizer.json"]);
}

#[test]
fn a_denied_file_leaves_nothing_behind() {
    for (status, part) in [(401, "HF_TOKEN is needed"), (403, "accepted its licence: see http://127.0.0.1:")]
    {
        let (hub, client, cache) = start(&format!("denied-{status}"));
        hub.fault("config.json", Fault::Deny(status, "Access to model tiny/jetmoe is restricted."));
        let (found, message) = fails(&client, "tiny/jetmoe");
        assert_eq!(found, Some(status));
        for part in ["config.json", &format!("HTTP {status}"), "is restricted", part] {
            assert!(message.contains(part), "no {part:?} in {message}");
        }
        assert!(!kept(&cache).exists());
        // Refused once, not tried again.
        assert_eq!(hub.requests(), ["HEAD config.json@main"]);
    }
}

#[test]
fn what_a_hub_says_is_not_believed_unseen() {
    let cases: [(&str, Fault, &str); 9] = [
        ("config.json", Fault::Header("etag", "\"../../../x\"".to_owned()), "etag \"../../../x\""),
        ("config.json", Fault::Header("x-repo-commit", "../main".to_owned()), "not a hub's"),
        ("config.json", Fault::Header("content-length", "999999999999".to_owned()), "at most 134217728"),
        (WEIGHTS, Fault::Header("x-linked-size", String::new()), "without the file's size"),
        (WEIGHTS, Fault::Header("x-linked-size", "133361".to_owned()), "133360 bytes, expected 133361"),
        (WEIGHTS, Fault::Header("location", "file:///etc/passwd".to_owned()), "a redirect to \"file:"),
        (WEIGHTS, Fault::GetHeader("content-range", "bytes 5-9/133360".to_owned()), "expected bytes from 0"),
        (WEIGHTS, Fault::GetHeader("content-range", "what".to_owned()), "content-range \"what\""),
        ("tokenizer.json", Fault::Deny(400, "no"), "HTTP 400"),
    ];
    for (index, (file, fault, part)) in cases.into_iter().enumerate() {
        let (hub, client, cache) = start(&format!("hostile-{index}"));
        hub.fault(file, fault);
        let (_, message) = fails(&client, "tiny/jetmoe");
        assert!(message.contains(part) && message.contains(file), "no {part:?} in {message}");
        let snapshot = kept(&cache).join("snapshots").join(FIRST);
        assert!(!snapshot.join(file).exists() && incomplete(&cache).is_empty(), "{file}");
    }
}

#[test]
fn a_redirect_in_a_circle_ends() {
    let (hub, client, _) = start("circle");
    let circle = format!("{}/tiny/jetmoe/resolve/{FIRST}/{WEIGHTS}", hub.endpoint);
    hub.fault(WEIGHTS, Fault::Header("location", circle));
    assert!(fails(&client, "tiny/jetmoe").1.contains("too many redirects"));
}

#[test]
fn a_hub_without_ranges_serves_whole_files() {
    let (hub, client, cache) = start("no-ranges");
    hub.fault(WEIGHTS, Fault::IgnoreRanges);
    let folder = fetch(&client, "tiny/jetmoe").unwrap();
    assert_same(&folder, &files(), &["config.json", WEIGHTS, "tokenizer.json"]);

    // A header that takes a second request comes with the file's start.
    fs::remove_dir_all(&cache).unwrap();
    let long = long_header();
    hub.add("main", FIRST, long.clone());
    assert_same(&fetch(&client, "tiny/jetmoe").unwrap(), &long, &["config.json", WEIGHTS, "tokenizer.json"]);
}

#[test]
fn names_in_an_index_stay_in_the_folder() {
    let (hub, client, _) = start("index");
    let mut files = sharded();
    let index = br#"{"weight_map": {"a": "../../../etc/passwd"}}"#;
    files.insert("model.safetensors.index.json", index.to_vec());
    hub.add("main", FIRST, files);
    let (_, message) = fails(&client, "tiny/jetmoe");
    assert!(message.contains("../../../etc/passwd") && message.contains("plain file name"), "{message}");
    assert!(hub.requests().iter().all(|line| !line.contains("passwd")));
}

#[test]
fn a_disk_that_is_too_small_is_seen_before_the_download() {
    let (hub, client, _) = start("disk");
    // More than any disk has: one tensor of 2^50 numbers, whose header is all there is of it.
    let header = r#"{"a":{"dtype":"F32","shape":[1125899906842624],"data_offsets":[0,4503599627370496]}}"#;
    let header = format!("{header:65528}");
    let mut files = files();
    files.insert(WEIGHTS, [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat());
    hub.add("main", FIRST, files);
    let size = (1u64 << 52) + 65536;
    hub.fault(WEIGHTS, Fault::Header("x-linked-size", size.to_string()));
    // Both answers must tell the same size.
    let (_, message) = fails(&client, "tiny/jetmoe");
    assert!(message.contains("bytes, expected 45035996"), "{message}");
    hub.fault(WEIGHTS, Fault::Size(size));
    hub.sent();
    match fetch(&client, "tiny/jetmoe").unwrap_err() {
        Error::TooLarge { what, need, have, limit } => {
            assert_eq!((what.as_str(), need), ("the download of tiny/jetmoe", size));
            assert!(have < need && limit.starts_with("the disk of "), "{have} {limit}");
        }
        error => panic!("{error}"),
    }
    assert_eq!(hub.sent(), 65536);
}

#[test]
fn without_the_hub_the_cache_is_enough() {
    let (hub, client, cache) = start("offline");
    let folder = fetch(&client, "tiny/jetmoe").unwrap();
    hub.requests();
    // Nobody listens on port 1.
    let away = Client::new("http://127.0.0.1:1", &cache, None).unwrap();
    assert_eq!(fetch(&away, "tiny/jetmoe").unwrap(), folder);
    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    let (status, message) = fails(&away, "tiny/jetmoe");
    assert!(
        status.is_none() && message.contains("tiny/jetmoe on http://127.0.0.1:1: model.safetensors: "),
        "{message}"
    );
    let (status, message) =
        fails(&Client::new("http://127.0.0.1:1", empty("away"), None).unwrap(), "tiny/jetmoe");
    assert!(status.is_none() && message.contains("config.json: "), "{message}");
    // The link was gone, not the content.
    assert_eq!(fetch(&client, "tiny/jetmoe").unwrap(), folder);
    let requests = hub.requests();
    assert!(requests.iter().all(|line| line.starts_with("HEAD")), "{requests:?}");
    assert_eq!(requests.last(), Some(&format!("HEAD model.safetensors@{FIRST}")));
}

#[test]
fn the_token_is_told_to_the_hub_alone() {
    let (hub, _, cache) = start("token");
    let client = Client::new(&format!("{}/", hub.endpoint), &cache, Some("secret".to_owned())).unwrap();
    fetch(&client, "tiny/jetmoe").unwrap();
    let requests = hub.requests();
    assert_eq!(requests.len(), 14);
    for request in requests {
        assert_eq!(request.ends_with(" +secret"), !request.starts_with("storage"), "{request}");
    }
}

#[test]
fn all_small_files_are_fetched() {
    let (hub, client, _) = start("small");
    let mut files = files();
    for name in
        ["generation_config.json", "special_tokens_map.json", "tokenizer_config.json", "chat_template.jinja"]
    {
        files.insert(name, format!("{{\"of\": \"{name}\"}}").into_bytes());
    }
    hub.add("main", FIRST, files.clone());
    let folder = fetch(&client, "tiny/jetmoe").unwrap();
    let wanted: Vec<&str> = files.keys().copied().filter(|name| *name != "README.md").collect();
    assert_same(&folder, &files, &wanted);
}

// -- the command ------------------------------------------------------------------------------------

/// Runs the command with an environment that names the hub and the cache's home; exit code, stdout, stderr.
fn headwise(hub: &Hub, home: &Path, args: &[&str]) -> (i32, String, String) {
    let home = home.to_str().unwrap();
    headwise_with(&[("HF_ENDPOINT", &hub.endpoint), ("HF_HOME", home), ("HF_TOKEN", "secret")], args)
}

/// Runs the command with these variables of a hub and no others.
fn headwise_with(vars: &[(&str, &str)], args: &[&str]) -> (i32, String, String) {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_headwise"));
    let foreign = |name: &str| {
        ["HF_", "HUGGING", "TRANSFORMERS_", "SSL_", "XDG_CACHE"].iter().any(|start| name.starts_with(start))
            || name.to_lowercase().ends_with("_proxy")
            || name == "RUST_LOG"
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(foreign) {
            command.env_remove(name);
        }
    }
    command.env("HEADWISE_KERNELS", "tuned").envs(vars.iter().copied());
    let output = command.args(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// What the variables say is for `src/weights/hub/environment.rs`; here, that the command reads them.
#[test]
fn the_environment_is_that_of_the_hubs_other_tools() {
    let (hub, _, cache) = start("environment");
    let home = cache.parent().unwrap();
    let _ = fs::remove_dir_all(home);
    fs::create_dir_all(home.join("hf")).unwrap();
    fs::write(home.join("hf/token"), "from-login\n").unwrap();
    let home = home.to_str().unwrap();
    let (endpoint, args) = (hub.endpoint.as_str(), ["info", "--model", "tiny/jetmoe"]);
    let mut tried = 0;
    let mut info = |vars: &[(&str, &str)]| {
        tried += 1;
        headwise_with(&[&[("HF_ENDPOINT", endpoint), ("HOME", home)], vars].concat(), &args)
    };
    for (name, value) in
        [("HF_HUB_OFFLINE", "True"), ("TRANSFORMERS_OFFLINE", "1"), ("HF_HUB_OFFLINE", "yes")]
    {
        let (code, _, error) = info(&[(name, value)]);
        assert!(code == 1 && error.contains("HF_HUB_OFFLINE") && hub.requests().is_empty(), "{error}");
    }
    // Each finds what the one before has fetched: a path with `~`, an older name, no home of the hub's at all.
    let last = |hub: &Hub| hub.requests().into_iter().rfind(|line| !line.starts_with("storage")).unwrap();
    let runs: [(&[(&str, &str)], &str); 5] = [
        (&[("HF_HUB_OFFLINE", "False"), ("HF_HOME", "~/hf")], " +from-login"),
        (&[("HF_HUB_OFFLINE", "no"), ("HF_HUB_CACHE", "~/hf/hub")], ""),
        (&[("HUGGINGFACE_HUB_CACHE", "$HOME/hf/hub"), ("HF_TOKEN_PATH", "~/hf/token")], " +from-login"),
        (&[("HF_HUB_CACHE", "~/hf/hub"), ("HF_HOME", "~/hf"), ("HF_TOKEN", "")], " +from-login"),
        (&[("HF_HOME", "~/hf"), ("HF_TOKEN", "given\n")], " +given"),
    ];
    for (vars, token) in runs {
        let (code, _, error) = info(vars);
        assert_eq!(code, 0, "{vars:?}: {error}");
        let last = last(&hub);
        assert_eq!(last.split_once(" +").map_or(String::new(), |(_, token)| format!(" +{token}")), token);
    }
    assert_eq!(names(home), ["hf"]);
    for (vars, part) in [
        (("HF_TOKEN", "a b"), "HF_TOKEN: found a character"),
        (("HF_ENDPOINT", "hub.org"), "endpoint of the hub: found \"hub.org\""),
        (("SSL_CERT_FILE", "~/none.pem"), "/none.pem: "),
        (("SSL_CERT_FILE", "~/hf/token"), "SSL_CERT_FILE"),
        (("HF_TOKEN_PATH", "~/hf"), "/hf: "),
    ] {
        let (code, _, error) = info(&[vars]);
        assert!(code == 1 && error.contains(part) && error.lines().count() == 1, "{error}");
    }
    println!("{tried} environments");
}

/// An address, as it is copied from a browser, stands for the repository.
#[test]
fn an_address_stands_for_its_repository() {
    let (hub, _, cache) = start("address");
    hub.add("refs/pr/1", SECOND, files());
    let home = cache.parent().unwrap();
    let mut tried = 0;
    for (path, revision) in [
        ("tiny/jetmoe", "main"),
        ("tiny/jetmoe/", "main"),
        ("tiny/jetmoe?library=transformers", "main"),
        ("tiny/jetmoe/tree/main", "main"),
        ("tiny/jetmoe/blob/main/config.json", "main"),
        ("tiny/jetmoe/resolve/refs%2Fpr%2F1/config.json?download=true", "refs/pr/1"),
        ("tiny/jetmoe/tree/refs/pr/1", "refs/pr/1"),
    ] {
        let (code, text, error) =
            headwise(&hub, home, &["info", "--model", &format!("{}/{path}", hub.endpoint)]);
        assert!(code == 0 && text.contains("jetmoe"), "{path}: {error}");
        assert_eq!(hub.requests()[0], format!("HEAD config.json@{revision} +secret"), "{path}");
        tried += 1;
    }
    assert_eq!(headwise(&hub, home, &["info", "--model", "hf://tiny/jetmoe@main"]).0, 0);
    hub.requests();
    for (address, part) in [
        ("https://huggingface.co/tiny/jetmoe", "an address of https://huggingface.co"),
        ("hf.co/tiny/jetmoe/tree/main", "an address of https://hf.co"),
        ("https://huggingface.co/tiny", "names no repository"),
        ("hf://datasets/tiny/jetmoe", "one of the hub's datasets"),
        ("ftp://huggingface.co/tiny/jetmoe", "owner/name"),
    ] {
        let (code, _, error) = headwise(&hub, home, &["info", "--model", address]);
        assert!(code == 1 && error.contains(part) && error.lines().count() == 1, "{address}: {error}");
        assert_eq!(hub.requests(), [""; 0]);
        tried += 1;
    }
    println!("{tried} addresses");
}

#[test]
fn what_is_wrong_with_a_small_file_is_known_before_the_weights_come() {
    let (hub, _, cache) = start("wrong");
    let home = cache.parent().unwrap();
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
    for (commit, (name, text, part)) in [
        ("tokenizer.json", "{}", "tokenizer.json: tokenizer: "),
        ("tokenizer.json", pointer, "tokenizer.json: content: found a Git LFS pointer"),
        (
            "generation_config.json",
            "[]",
            "generation_config.json: JSON: found a text that begins with \"[]\"",
        ),
        ("config.json", "<html>", "config.json: content: found a web page"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut files = files();
        files.insert(name, text.into());
        let revision = format!("{:040}", commit + 1);
        hub.add(&revision, &revision, files);
        let model = format!("tiny/jetmoe@{revision}");
        let (code, _, error) =
            headwise(&hub, home, &["generate", "--model", &model, "--ids", "1", "--max-new", "1"]);
        assert!(code == 1 && error.contains(part) && error.lines().count() == 1, "{error}");
        // The start of the weights, for their header.
        assert!(hub.sent() < 70_000, "{name}");
    }
}

#[test]
fn every_command_takes_a_repository_for_a_model() {
    let (hub, _, cache) = start("command");
    let home = cache.parent().unwrap();
    let size = files()[WEIGHTS].len();
    // Facts take no weights.
    let (code, text, _) = headwise(&hub, home, &["info", "--model", "tiny/jetmoe"]);
    assert_eq!((code, text.contains("family      jetmoe")), (0, true), "{text}");
    assert!(hub.sent() < size);
    assert!(hub.requests().iter().all(|line| line.ends_with(" +secret") || line.starts_with("storage")));

    // Nor does what does not fit.
    let (code, text, error) = headwise(
        &hub,
        home,
        &["generate", "--model", "tiny/jetmoe", "--ids", "1", "--memory-limit", "64KiB"],
    );
    assert_eq!((code, text.as_str()), (1, ""), "{error}");
    assert!(error.starts_with("error: the model tiny/jetmoe needs 1"), "{error}");
    assert!(error.ends_with(" KiB, but the memory limit gives 64.0 KiB\n"), "{error}");
    assert_eq!(hub.sent(), 65536);

    let logits = |model: &str| {
        let out = home.join("out.safetensors");
        let args = ["logits", "--model", model, "--ids", "1,2,3", "--out", out.to_str().unwrap()];
        let (code, _, remark) = headwise(&hub, home, &args);
        assert_eq!(code, 0, "{remark}");
        (fs::read(out).unwrap(), remark)
    };
    // Nor does what cannot chat.
    let (code, _, error) = headwise(&hub, home, &["chat", "--model", "tiny/jetmoe"]);
    assert!(code == 1 && error.contains(": chat_template: found nothing"), "{error}");
    assert!(hub.sent() <= 65536);

    let (fetched, remark) = logits("tiny/jetmoe");
    let here = home.join("hub").display().to_string();
    for part in ["tiny/jetmoe: 130.2 KiB to download into ", &here, ", free ", " on the GPU as f32, free "] {
        assert!(remark.contains(part), "no {part:?} in {remark}");
    }
    let (again, remark) = logits("tiny/jetmoe");
    assert!(fetched == logits(TINY).0 && fetched == again && remark.is_empty(), "{remark}");

    for (model, status) in [("no/folder", "404"), ("tiny/jetmoe@v9", "404")] {
        let (code, _, error) = headwise(&hub, home, &["info", "--model", model]);
        assert_eq!((code, error.lines().count()), (1, 1));
        for part in [&format!("{model} on http://"), status, &format!("nor is there a folder {model}")] {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    }
}

// -- the same files from a host that is no hub ------------------------------------------------------

/// What a host of files is for headwise: the tiny fixture below an address.
fn served(hub: &Hub) -> Source {
    Source::http(format!("{}/{}/resolve/main/", hub.endpoint, Hub::REPO))
}

fn logits(source: &Source) -> Result<Vec<f32>, Error> {
    logits_by(source, LoadOptions::new())
}

fn logits_by(source: &Source, options: LoadOptions<'_>) -> Result<Vec<f32>, Error> {
    let gpu = block_on(Gpu::new(GpuOptions::new().kernels(KernelChoice::Tuned)))
        .expect("this needs a GPU adapter: scripts/setup vulkan");
    let model = block_on(Model::load(&gpu, source, options))?;
    Ok(block_on(model.logits(&[&[3, 14, 15]]))?.remove(0).values)
}

#[test]
fn a_model_is_read_from_an_address() {
    let (hub, ..) = start("served");
    let expected = logits(&Source::folder(TINY)).unwrap();
    assert_eq!(logits(&served(&hub)).unwrap(), expected);
    assert!(hub.requests().iter().all(|request| !request.contains("HEAD") && !request.contains("bytes=")));
    // What breaks is taken up where it did, or passed over to there.
    hub.fault(WEIGHTS, Fault::BreakOnce(100));
    hub.requests();
    assert_eq!(logits(&served(&hub)).unwrap(), expected);
    assert_eq!(hub.requests().iter().filter(|request| request.contains("bytes=")).count(), 2);
    hub.fault(WEIGHTS, Fault::IgnoreRanges);
    assert_eq!(logits(&served(&hub)).unwrap(), expected);
}

#[test]
fn what_a_host_says_is_not_believed_unseen() {
    let (hub, ..) = start("served-lies");
    let fails = |fault: Fault, file: &str, words: &[&str]| {
        hub.fault(file, fault);
        let error = logits(&served(&hub)).unwrap_err().to_string();
        hub.heal(file);
        for part in [&[hub.endpoint.as_str(), file], words].concat() {
            assert!(error.contains(part), "no {part:?} in {error}");
        }
    };
    fails(Fault::NoSuchFile, "config.json", &["not found"]);

    hub.fault(WEIGHTS, Fault::Deny(403, "no"));
    let error = logits(&served(&hub)).unwrap_err().to_string();
    assert!(error.contains("neither file"), "{error}");
    fails(Fault::Deny(401, "who are you"), WEIGHTS, &["HTTP 401", "who are you"]);
    fails(Fault::GetHeader("content-length", String::new()), "config.json", &["content-length"]);
    fails(Fault::GetHeader("content-length", "99999999".to_owned()), WEIGHTS, &["99999999", "last tensor"]);
    fails(Fault::GetHeader("content-length", "9999".to_owned()), "config.json", &["another file"]);
    // Another file of the same length, half-way.
    let other = |_, _| hub.fault(WEIGHTS, Fault::GetHeader("etag", "\"another\"".to_owned()));
    let error = logits_by(&served(&hub), LoadOptions::new().progress(other)).unwrap_err().to_string();
    assert!(error.contains(WEIGHTS) && error.contains("must not change"), "{error}");
    hub.heal(WEIGHTS);
    for address in ["", "localhost", "ftp://a.b", "http://", "http://a@b/", "http://a/?b", "http://a/#b"] {
        let error = logits(&Source::http(address)).unwrap_err().to_string();
        assert!(error.contains("config.json") && error.contains("address"), "{error}");
    }
    // A front page is no file.
    hub.fault("config.json", Fault::GetHeader("content-type", "text/html".to_owned()));
    let error = logits(&served(&hub)).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("not found"), "{error}");
}
