//! A host that takes connections and says nothing, or nothing more, holds nobody.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use headwise::{Cancel, Error, LoadOptions, Model, ModelInfo, Source, block_on};

use super::plain_gpu;

/// Every connection that was made, none of which gets more than the start of an answer.
struct Silent {
    source: Source,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl Silent {
    fn saying(start: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let source = Source::http(format!("http://{}/model", listener.local_addr().unwrap()));
        let connections = Arc::<Mutex<Vec<TcpStream>>>::default();
        let kept = connections.clone();
        thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let _ = connection.read(&mut [0; 1024]);
                let _ = connection.write_all(start.as_bytes());
                kept.lock().unwrap().push(connection);
            }
        });
        Self { source, connections }
    }

    fn all() -> [Self; 3] {
        [
            "",
            "HTTP/1.1 200 OK\r\ncontent-le",
            "HTTP/1.1 200 OK\r\ncontent-length: 5000\r\n\r\n{\"model_type\": \"jetmoe\"",
        ]
        .map(Self::saying)
    }
}

/// Far above what ending takes, and far below what the client waits for a host.
const SOON: Duration = Duration::from_secs(8);

#[test]
fn a_silent_host_lets_timeouts_fire_and_others_have_their_turn() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for host in Silent::all() {
        let turns = Arc::new(AtomicUsize::new(0));
        let counted = turns.clone();
        let start = Instant::now();
        runtime.block_on(async {
            let ticker = tokio::spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    counted.fetch_add(1, Ordering::Relaxed);
                }
            });
            let read = tokio::time::timeout(Duration::from_millis(300), ModelInfo::read(&host.source)).await;
            assert!(read.is_err(), "{read:?}");
            ticker.abort();
        });
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert!(turns.load(Ordering::Relaxed) > 5);
        // Whoever reads finds out that nobody waits, and asks no more: an attempt that breaks is otherwise made anew after a
        // quarter of a second.
        let asked = host.connections.lock().unwrap().drain(..).count();
        assert_eq!(asked, 1);
        thread::sleep(Duration::from_millis(1200));
        assert_eq!(host.connections.lock().unwrap().len(), 0);
    }
}

#[test]
fn a_handle_ends_a_load_that_waits_for_a_host() {
    let gpu = plain_gpu();
    for host in Silent::all() {
        let (cancel, start) = (Cancel::new(), Instant::now());
        let (handle, connections) = (cancel.clone(), host.connections.clone());
        let later = thread::spawn(move || {
            while connections.lock().unwrap().is_empty() && start.elapsed() < SOON {
                thread::sleep(Duration::from_millis(2));
            }
            handle.cancel();
        });
        let loaded = block_on(Model::load(&gpu, &host.source, LoadOptions::new().cancel(&cancel)));
        assert!(matches!(loaded, Err(Error::Cancelled)), "{loaded:?}");
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        later.join().unwrap();
    }
}
