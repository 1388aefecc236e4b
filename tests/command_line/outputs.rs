//! Where `--out` and `--output` lead: through links, into pipes, or nowhere before any work is done.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{FileTypeExt, PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::support::*;

/// Commands that write one file, without its path.
fn writers(input: &Path) -> [Vec<&str>; 3] {
    let input = input.to_str().unwrap();
    [
        vec!["logits", "--model", TINY, "--ids", "1,2", "--out"],
        vec!["translate", "-q", "--input", input, "--output"],
        vec!["score", "-q", input, "--out"],
    ]
}

#[test]
fn links_are_written_through_and_files_keep_their_mode() {
    let folder = folder("outputs-links");
    let input = folder.join("en.txt");
    fs::write(&input, "Open file\n").unwrap();
    for command in writers(&input) {
        let room = folder.join(command[0]);
        fs::create_dir_all(room.join("elsewhere")).unwrap();
        let (plain, real) = (room.join("plain"), room.join("elsewhere/real"));
        stdout(&[&command[..], &[plain.to_str().unwrap()]].concat());
        fs::write(&real, "old").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o600)).unwrap();
        symlink("elsewhere/real", room.join("link")).unwrap();
        symlink("elsewhere/new", room.join("dangling")).unwrap();
        for (link, target) in [("link", &real), ("dangling", &room.join("elsewhere/new"))] {
            stdout(&[&command[..], &[room.join(link).to_str().unwrap()]].concat());
            assert!(room.join(link).is_symlink(), "{link}");
            assert!(fs::read(target).unwrap() == fs::read(&plain).unwrap(), "{link}");
        }
        assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o600);
        // A link that leads into a folder that is not there.
        symlink("nowhere/real", room.join("broken")).unwrap();
        fails(&[&command[..], &[room.join("broken").to_str().unwrap()]].concat(), &["broken: "]);
        assert_eq!(fs::read_dir(&room).unwrap().count(), 5);
        assert_eq!(fs::read_dir(room.join("elsewhere")).unwrap().count(), 2);
    }
}

#[test]
fn pipes_and_stdout_are_written_to() {
    let folder = folder("outputs-pipes");
    let (input, fifo, plain) = (folder.join("en.txt"), folder.join("fifo"), folder.join("plain"));
    fs::write(&input, "Open file\n").unwrap();
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    for command in writers(&input) {
        stdout(&[&command[..], &[plain.to_str().unwrap()]].concat());
        let expected = fs::read(&plain).unwrap();
        let reader = thread::spawn({
            let fifo = fifo.clone();
            move || fs::read(fifo).unwrap()
        });
        stdout(&[&command[..], &[fifo.to_str().unwrap()]].concat());
        assert!(reader.join().unwrap() == expected && fs::metadata(&fifo).unwrap().file_type().is_fifo());

        let args = [&command[..], &["/dev/stdout"]].concat();
        let piped = headwise(&args).output().unwrap();
        assert!(piped.status.success() && piped.stdout == expected);
        // A file that the shell opened, behind what is in it.
        let file = fs::File::create(folder.join("opened")).unwrap();
        assert!(headwise(&args).stdout(file).status().unwrap().success());
        assert!(fs::read(folder.join("opened")).unwrap() == expected);
        assert!(Path::new("/dev/stdout").is_symlink());
        stdout(&[&command[..], &["/dev/null"]].concat());
        assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 4);
}

/// The model is a folder that is not there, which would be seen first by who looks at the target later.
#[test]
fn a_target_that_cannot_be_written_is_refused_before_the_work() {
    let folder = folder("outputs-refused");
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    fs::write(at("en.txt"), "Open file\n").unwrap();
    fs::create_dir_all(at("taken/x")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
    let (none, text, taken) = (at("no-model"), at("en.txt"), at("taken"));
    let files: [&[&str]; 3] = [
        &["logits", "--model", &none, "--ids", "1", "--out"],
        &["translate", "--model", &none, "--input", &text, "--output"],
        &["score", "--model", &none, &text, "--out"],
    ];
    let mut tried = 0;
    for command in files {
        for target in ["missing/out", "taken", "taken/", "en.txt/out", "socket"] {
            fails(&[command, &[&at(target)]].concat(), &[&at(target)]);
            tried += 1;
        }
    }
    let folders: [&[&str]; 3] = [
        &["quantize", "--scheme", "q8", &none],
        &["convert", &none, "--top-k", "1", "--out"],
        &["upcycle", "--method", "bam", &none, &none, "--out"],
    ];
    for command in folders {
        for target in ["missing/out", "taken", "en.txt", "en.txt/out", "socket"] {
            fails(&[command, &[&at(target)]].concat(), &[&at(target)]);
            tried += 1;
        }
    }
    // Nor within what is read.
    let within: [&[&str]; 3] = [
        &["quantize", "--scheme", "q8", &taken],
        &["convert", &taken, "--top-k", "1", "--out"],
        &["upcycle", "--method", "bam", &taken, &none, "--out"],
    ];
    for command in within {
        for target in ["taken/new", "taken/x", "taken/x/../new"] {
            fails(&[command, &[&at(target)]].concat(), &["folder to write: found one within", &taken]);
            tried += 1;
        }
    }
    println!("{tried} targets that cannot be written");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 3);
    assert_eq!(fs::read_dir(taken).unwrap().count(), 1);
}

#[test]
fn ctrl_c_ends_a_command_that_has_no_answer_to_end() {
    let folder = folder("outputs-interrupted");
    let out = folder.join("out.safetensors");
    let ids: Vec<String> = (0..250).map(|id| id.to_string()).collect();
    let ids = ids.join(",");
    // The slowest kernels of a software adapter, so that the work does not end before the signal comes.
    let args = ["logits", "--ids", &ids, "--out", out.to_str().unwrap(), "--kernels", "workgroup"];
    let mut child = headwise(&args).env("RUST_LOG", "headwise=debug").spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(log.any(|line| line.contains("loaded model")));
    interrupt(child, log);
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0);
    // One that waits for its input.
    let child = headwise(&["generate"]).stdin(Stdio::piped()).spawn().unwrap();
    thread::sleep(Duration::from_millis(500));
    interrupt(child, std::iter::empty());
}

/// Sends Ctrl-C; the process must end soon, with the code that means that.
fn interrupt(mut child: std::process::Child, log: impl Iterator<Item = String>) {
    // The end of its input would end it, too.
    let _input = child.stdin.take();
    let sent = Instant::now();
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(log.filter(|line| line.starts_with("error")).count(), 0);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(sent.elapsed() < Duration::from_secs(5));
}
