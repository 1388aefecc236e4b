//! What is in the cache is what the hub named by its hash, whatever the server sends and other tools leave.

use super::*;
use server::etag;

const SMALL: [&str; 2] = ["config.json", "tokenizer.json"];
const WANTED: [&str; 3] = ["config.json", WEIGHTS, "tokenizer.json"];

/// Where the cache has a content.
fn blob(cache: &Path, file: &str) -> PathBuf {
    kept(cache).join("blobs").join(etag(file, &files()[file]))
}

fn flip(bytes: &mut [u8], at: usize) {
    bytes[at] ^= 1;
}

/// Asserts that the cache has the contents of these files alone, each under its hash.
#[track_caller]
fn assert_blobs(cache: &Path, wanted: &[&str]) {
    let mut wanted: Vec<String> = wanted.iter().map(|file| etag(file, &files()[*file])).collect();
    wanted.sort();
    assert_eq!(names(kept(cache).join("blobs")), wanted);
}

#[test]
fn a_content_that_is_wrong_once_is_fetched_anew() {
    let mut tried = 0;
    for file in WANTED {
        let length = files()[file].len();
        for at in [0, length / 2, length - 1] {
            let (hub, client, cache) = start("wrong-once");
            hub.fault(file, Fault::Flip(at, 1));
            assert_same(&fetch(&client, "tiny/jetmoe").unwrap(), &files(), &WANTED);
            assert_blobs(&cache, &WANTED);
            tried += 1;
        }
    }
    println!("{tried} contents that were wrong once");
}

#[test]
fn a_content_that_stays_wrong_is_an_error_with_both_hashes() {
    let mut tried = 0;
    for file in WANTED {
        let (hub, client, cache) = start("stays-wrong");
        hub.fault(file, Fault::Flip(1, u32::MAX));
        let (status, message) = fails(&client, "tiny/jetmoe");
        let mut sent = files()[file].clone();
        flip(&mut sent, 1);
        assert_eq!(status, None);
        for part in [file, &etag(file, &sent), &etag(file, &files()[file]), "deleted"] {
            assert!(message.contains(part), "no {part:?} in {message}");
        }
        // Twice, not for ever.
        let transfers = hub.requests().into_iter().filter(|line| {
            line.contains("GET")
                && line.contains(file)
                && !line.starts_with("storage")
                && !line.contains("=0-")
        });
        assert_eq!(transfers.count(), 2);
        assert!(!kept(&cache).join("snapshots").join(FIRST).join(file).exists());
        assert!(!blob(&cache, file).exists() && incomplete(&cache).is_empty());
        // The next run asks again.
        hub.heal(file);
        assert_same(&fetch(&client, "tiny/jetmoe").unwrap(), &files(), &WANTED);
        tried += 1;
    }
    println!("{tried} contents that stayed wrong");
}

#[test]
fn what_another_tool_left_of_a_file_is_checked() {
    let whole = files()[WEIGHTS].clone();
    let length = whole.len();
    let hole = |from: usize, to: usize| {
        let mut bytes = whole.clone();
        bytes[from..to].fill(0);
        bytes
    };
    let mut flipped = whole[..length / 2].to_vec();
    flip(&mut flipped, 77);
    // With what is fetched besides: nothing, the rest, or the file anew.
    let left = [
        (whole.clone(), 0),
        (whole[..length - 1].to_vec(), 1),
        (Vec::new(), length),
        (hole(1000, 70_000), length),
        (vec![0; length], length),
        (hole(1000, 2000)[..length / 3].to_vec(), length - length / 3 + length),
        (flipped, length - length / 2 + length),
        ([&whole[..], b"more"].concat(), length),
    ];
    let tried = left.len();
    for (index, (bytes, fetched)) in left.into_iter().enumerate() {
        let (hub, client, cache) = start("left");
        let model = client.look(&repo("tiny/jetmoe")).unwrap();
        fs::write(blob(&cache, WEIGHTS).with_extension("incomplete"), bytes).unwrap();
        hub.sent();
        let folder = model.download(|_, _| {}).unwrap();
        assert_same(&folder, &files(), &WANTED);
        assert_eq!(hub.sent(), fetched, "{index}");
        assert_blobs(&cache, &WANTED);
    }
    println!("{tried} partial files");
}

#[test]
fn a_body_that_changes_under_way_is_no_content() {
    let (hub, client, cache) = start("changes");
    hub.fault(WEIGHTS, Fault::ChangeUnderWay(50_000));
    let (_, message) = fails(&client, "tiny/jetmoe");
    assert!(message.contains(&etag(WEIGHTS, &files()[WEIGHTS])) && message.contains("SHA-256"), "{message}");
    assert!(!blob(&cache, WEIGHTS).exists() && incomplete(&cache).is_empty());
}

#[test]
fn a_damaged_cache_is_mended() {
    type Damage = fn(&mut Vec<u8>);
    let damage: [(&str, Damage); 4] = [
        ("cut", |bytes| bytes.truncate(bytes.len() / 2)),
        ("one byte short", |bytes| bytes.truncate(bytes.len() - 1)),
        ("empty", Vec::clear),
        ("longer", |bytes| bytes.push(0)),
    ];
    let mut tried = 0;
    let mut try_with = |file: &str, name: &str, damage: Damage, copied: bool| {
        let (hub, client, cache) = start("damaged");
        let folder = fetch(&client, "tiny/jetmoe").unwrap();
        let mut bytes = files()[file].clone();
        damage(&mut bytes);
        if copied {
            fs::remove_file(folder.join(file)).unwrap();
            fs::write(folder.join(file), &bytes).unwrap();
        }
        fs::write(blob(&cache, file), &bytes).unwrap();
        // Without a hub it is an error that says so, not a model.
        let away = Client::new("http://127.0.0.1:1", &cache, None).unwrap();
        let (_, message) = fails(&away, "tiny/jetmoe");
        assert!(message.contains(file) && message.contains("damaged in the cache"), "{name}: {message}");
        hub.requests();
        assert_same(&fetch(&client, "tiny/jetmoe").unwrap(), &files(), &WANTED);
        assert_blobs(&cache, &WANTED);
        tried += 1;
    };
    for (name, damage) in damage {
        for file in WANTED {
            try_with(file, name, damage, false);
        }
        // Where links are not used, only weights say how long they are.
        try_with(WEIGHTS, name, damage, true);
    }
    for file in SMALL {
        try_with(file, "a bit", |bytes| flip(bytes, 3), false);
    }
    println!("{tried} damaged caches");
}

#[test]
fn weights_with_a_wrong_bit_are_found_when_they_are_linked_anew() {
    let (_hub, client, cache) = start("bit");
    let folder = fetch(&client, "tiny/jetmoe").unwrap();
    let mut bytes = files()[WEIGHTS].clone();
    flip(&mut bytes, 100_000);
    fs::write(blob(&cache, WEIGHTS), &bytes).unwrap();
    fs::remove_file(folder.join(WEIGHTS)).unwrap();
    assert_same(&fetch(&client, "tiny/jetmoe").unwrap(), &files(), &WANTED);
}

#[test]
fn a_server_without_ranges_starts_anew() {
    for fault in [Fault::IgnoreRanges, Fault::RefuseRanges] {
        let (hub, client, cache) = start("anew");
        hub.fault(WEIGHTS, Fault::BreakAndDeny(70_001));
        fails(&client, "tiny/jetmoe");
        assert_eq!(incomplete(&cache), [70_001]);
        hub.fault(WEIGHTS, fault);
        assert_same(&fetch(&client, "tiny/jetmoe").unwrap(), &files(), &WANTED);
        assert_eq!(incomplete(&cache), [0; 0]);
    }
}

/// The etags of mirrors: the content's own SHA-1, and what is no hash.
#[test]
fn other_etags_are_accepted() {
    use sha1::Digest;
    let sha1 = sha1::Sha1::digest(&files()["config.json"]);
    let sha1: String = sha1.iter().map(|byte| format!("{byte:02x}")).collect();
    for etag in [sha1.as_str(), "5d41402abc4b2a76b9719d911017c592", "v1-2"] {
        let (hub, client, _cache) = start("etags");
        hub.fault("config.json", Fault::Header("etag", format!("\"{etag}\"")));
        for _ in 0..2 {
            assert_same(&fetch(&client, "tiny/jetmoe").unwrap(), &files(), &WANTED);
        }
    }
}

#[test]
fn a_small_file_that_was_not_there_is_asked_for_again() {
    for fault in [Fault::NoSuchFile, Fault::Deny(503, "later")] {
        let (hub, client, _cache) = start("again");
        hub.fault("tokenizer.json", fault);
        let _ = fetch(&client, "tiny/jetmoe");
        hub.heal("tokenizer.json");
        assert_same(&fetch(&client, "tiny/jetmoe").unwrap(), &files(), &WANTED);
    }
    // Nor is it an error that the hub cannot be asked again.
    let (hub, client, _cache) = start("not-again");
    let folder = fetch(&client, "tiny/jetmoe").unwrap();
    hub.fault("chat_template.jinja", Fault::Deny(503, "later"));
    assert_eq!(fetch(&client, "tiny/jetmoe").unwrap(), folder);
}

/// The folders that are written to beside contents are files here, which even root cannot write into.
#[test]
fn a_cache_that_is_complete_needs_no_writing() {
    let (_hub, client, cache) = start("read-only");
    let folder = fetch(&client, "tiny/jetmoe").unwrap();
    for written in [kept(&cache).join(".no_exist"), cache.join(".locks"), kept(&cache).join("refs")] {
        fs::remove_dir_all(&written).unwrap();
        fs::write(&written, "").unwrap();
    }
    assert_eq!(fetch(&client, "tiny/jetmoe").unwrap(), folder);
}
