//! A hub on this machine: serves files in the hub's URL layout, and misbehaves where a test wants it to.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufRead, BufReader, Write},
    net::{Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The files of a revision.
pub type Files = BTreeMap<&'static str, Vec<u8>>;

/// What the hub does to requests for one file.
#[derive(Clone)]
pub enum Fault {
    /// Answers with this status and these words.
    Deny(u16, &'static str),
    /// Ends the next transfer of the file after so many bytes; harmless from then on.
    BreakOnce(usize),
    /// Ends the next transfer of the file after so many bytes and then denies the file.
    BreakAndDeny(usize),
    /// Sends the whole file whatever range is asked for.
    IgnoreRanges,
    /// Refuses every range but that of a header.
    RefuseRanges,
    /// Sends the file with another bit at this place, in the next so many transfers.
    Flip(usize, u32),
    /// Ends the next transfer after so many bytes, and has other bytes of the same length in the file from then on.
    ChangeUnderWay(usize),
    /// Has no such file, as a server says that is no hub.
    NoSuchFile,
    /// States this size of the file everywhere.
    Size(u64),
    /// Replaces a header of the answer of the hub itself: to HEAD, or its redirect.
    Header(&'static str, String),
    /// Replaces a header of the answer with the content.
    GetHeader(&'static str, String),
}

#[derive(Default)]
struct State {
    /// By revision, a commit among them.
    revisions: HashMap<String, (String, Files)>,
    faults: HashMap<String, Fault>,
    /// `HEAD config.json@main`, `GET model.safetensors@COMMIT bytes=0-99`, `… +token`
    log: Vec<String>,
    /// Bytes of file contents sent.
    sent: usize,
}

/// The hub, and beside it the place to which it redirects for large files.
pub struct Hub {
    pub endpoint: String,
    state: Arc<Mutex<State>>,
}

/// The content's name: its SHA-256 where it is large, and git's otherwise.
pub fn etag(file: &str, bytes: &[u8]) -> String {
    let hexadecimal = |hash: &[u8]| hash.iter().map(|byte| format!("{byte:02x}")).collect();
    match is_large(file) {
        true => hexadecimal(&Sha256::digest(bytes)),
        false => hexadecimal(&Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat())),
    }
}

fn is_large(file: &str) -> bool {
    file.ends_with(".safetensors")
}

impl Hub {
    pub const REPO: &str = "tiny/jetmoe";

    pub fn start() -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let storage = listen({
            let state = state.clone();
            move |request, stream| answer(&mut state.lock().unwrap(), request, None, stream)
        });
        let endpoint = listen({
            let state = state.clone();
            move |request, stream| answer(&mut state.lock().unwrap(), request, Some(&storage), stream)
        });
        Self { endpoint, state }
    }

    /// Adds a revision that stands for `commit`.
    pub fn add(&self, revision: &str, commit: &str, files: Files) {
        let mut state = self.state.lock().unwrap();
        for name in [revision, commit] {
            state.revisions.insert(name.to_owned(), (commit.to_owned(), files.clone()));
        }
    }

    pub fn fault(&self, file: &str, fault: Fault) {
        self.state.lock().unwrap().faults.insert(file.to_owned(), fault);
    }

    pub fn heal(&self, file: &str) {
        self.state.lock().unwrap().faults.remove(file);
    }

    /// The requests since the last call.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state.lock().unwrap().log)
    }

    /// Bytes of contents sent since the last call.
    pub fn sent(&self) -> usize {
        std::mem::take(&mut self.state.lock().unwrap().sent)
    }
}

/// Answers one request for each connection, as long as the process lives; the address.
fn listen(answer: impl Fn(&[String], &mut TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(&stream).lines().map_while(Result::ok);
            let request: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
            if !request.is_empty() {
                answer(&request, &mut stream);
            }
            let _ = stream.shutdown(Shutdown::Write);
        }
    });
    address
}

/// `storage` is where the hub sends those who want a large file; the storage itself has none.
fn answer(state: &mut State, request: &[String], storage: Option<&str>, out: &mut TcpStream) {
    let mut first = request[0].split(' ');
    let (method, path) = (first.next().unwrap(), first.next().unwrap());
    let header = |name: &str| {
        let of_line = |line: &String| {
            let (key, value) = line.split_once(": ")?;
            key.eq_ignore_ascii_case(name).then(|| value.to_owned())
        };
        request.iter().find_map(of_line)
    };
    let range = header("range");
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let (repo, revision, file) = match parts[..] {
        [owner, name, "resolve", revision, file] => (format!("{owner}/{name}"), revision, file),
        _ => panic!("not the hub's layout: {path}"),
    };
    let revision = revision.replace("%2F", "/");

    let mut line = format!("{method} {file}@{revision}");
    line += &range.iter().map(|range| format!(" {range}")).collect::<String>();
    if let Some(authorization) = header("authorization") {
        line += &format!(" +{}", authorization.strip_prefix("Bearer ").unwrap());
    }
    if storage.is_some() {
        state.log.push(line);
    } else {
        state.log.push(format!("storage: {line}"));
    }

    let mut send = |status: &str, headers: &[(&str, String)], body: &[u8]| {
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let _ = out.write_all(format!("HTTP/1.1 {status}\r\n{headers}connection: close\r\n\r\n").as_bytes());
        let _ = out.write_all(body);
    };
    let none = |code: &str| [("content-length", "0".to_owned()), ("x-error-code", code.to_owned())];
    let fault = state.faults.get(file).cloned();
    if let Some(Fault::Deny(status, words)) = fault {
        let words = [("content-length", "0".to_owned()), ("x-error-message", words.to_owned())];
        return send(&format!("{status} Denied"), &words, b"");
    }
    if matches!(fault, Some(Fault::NoSuchFile)) {
        return send("404 Not Found", &[("content-length", "0".to_owned())], b"");
    }
    let Some((commit, files)) = state.revisions.get(&revision).filter(|_| repo == Hub::REPO) else {
        return send("404 Not Found", &none("RevisionNotFound"), b"");
    };
    let Some(content) = files.get(file).cloned() else {
        return send("404 Not Found", &none("EntryNotFound"), b"");
    };
    let size = match fault {
        Some(Fault::Size(size)) => size,
        _ => content.len() as u64,
    };
    let with = |mut headers: Vec<(&'static str, String)>, changed: Option<(&'static str, String)>| {
        if let Some((name, value)) = changed {
            headers.retain(|(header, _)| *header != name);
            headers.extend((!value.is_empty()).then_some((name, value)));
        }
        headers
    };

    if let (true, Some(storage)) = (is_large(file), storage) {
        let headers = vec![
            ("content-length", "0".to_owned()),
            ("location", format!("{storage}{path}")),
            ("x-repo-commit", commit.clone()),
            ("x-linked-etag", format!("\"{}\"", etag(file, &content))),
            ("x-linked-size", size.to_string()),
        ];
        let changed = match fault {
            Some(Fault::Header(name, value)) => Some((name, value)),
            _ => None,
        };
        return send("302 Found", &with(headers, changed), b"");
    }
    if method == "HEAD" {
        let headers = vec![
            ("content-length", content.len().to_string()),
            ("etag", format!("W/\"{}\"", etag(file, &content))),
            ("x-repo-commit", commit.clone()),
        ];
        let changed = match fault {
            Some(Fault::Header(name, value)) => Some((name, value)),
            _ => None,
        };
        return send("200 OK", &with(headers, changed), b"");
    }

    // The header of a file of weights is asked for with an end; what breaks is the transfer.
    let whole = range.as_ref().is_none_or(|range| range.ends_with('-'));
    if matches!(fault, Some(Fault::RefuseRanges)) && whole && range.is_some() {
        return send("416 Range Not Satisfiable", &[("content-length", "0".to_owned())], b"");
    }
    let range = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRanges)));
    let bounds = range.as_ref().map(|range| {
        let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        let to =
            if to.is_empty() { content.len() } else { content.len().min(to.parse::<usize>().unwrap() + 1) };
        (from.parse::<usize>().unwrap(), to)
    });
    let (from, to) = bounds.unwrap_or((0, content.len()));
    let mut content = content;
    if let (Some(Fault::Flip(at, times)), true) = (&fault, whole) {
        content[*at] ^= 1;
        match times {
            1 => state.faults.remove(file),
            _ => state.faults.insert(file.to_owned(), Fault::Flip(*at, times - 1)),
        };
    }
    let mut body = &content[from..to];
    let mut headers = vec![("content-length", body.len().to_string())];
    let status = match bounds {
        Some(_) => {
            headers.push(("content-range", format!("bytes {from}-{}/{size}", to - 1)));
            "206 Partial Content"
        }
        None => "200 OK",
    };
    match fault {
        Some(Fault::BreakOnce(bytes)) if whole => {
            body = &body[..bytes];
            state.faults.remove(file);
        }
        Some(Fault::BreakAndDeny(bytes)) if whole => {
            body = &body[..bytes];
            state.faults.insert(file.to_owned(), Fault::Deny(403, "no longer"));
        }
        Some(Fault::ChangeUnderWay(bytes)) if whole => {
            body = &body[..bytes];
            state.faults.remove(file);
            for (_, files) in state.revisions.values_mut() {
                files.values_mut().for_each(|content| content.reverse());
            }
        }
        _ => {}
    }
    let changed = match fault {
        Some(Fault::GetHeader(name, value)) => Some((name, value)),
        _ => None,
    };
    state.sent += body.len();
    send(status, &with(headers, changed), body);
}
