//! A relay before a server's socket that can swallow an answer and cut the connection: the
//! server has done what it was asked, and the caller does not hear of it.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use tempfile::TempDir;

pub struct CuttingProxy {
    folder: TempDir,
    answers_to_swallow: Arc<AtomicUsize>,
}

impl CuttingProxy {
    pub fn start(server: &Path) -> Self {
        let folder = TempDir::new().unwrap();
        let answers_to_swallow = Arc::new(AtomicUsize::new(0));
        let listener = UnixListener::bind(folder.path().join("proxy.sock")).unwrap();
        let (server, left) = (server.to_owned(), answers_to_swallow.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (Ok(client), Ok(server)) = (client, UnixStream::connect(&server)) else {
                    return;
                };
                let (client_back, server_back) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                let left = left.clone();
                std::thread::spawn(move || relay(client, server, || false));
                std::thread::spawn(move || {
                    relay(server_back, client_back, || {
                        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1))
                            .is_ok()
                    });
                });
            }
        });
        Self {
            folder,
            answers_to_swallow,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("proxy.sock")
    }

    /// The next answer is lost, and the connection with it.
    pub fn swallow_next_answer(&self) {
        self.answers_to_swallow.store(1, Ordering::SeqCst);
    }

    pub fn is_done(&self) -> bool {
        self.answers_to_swallow.load(Ordering::SeqCst) == 0
    }
}

fn relay(mut from: UnixStream, mut to: UnixStream, cut: impl Fn() -> bool) {
    let mut buffer = vec![0; 65536];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || cut() || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
