//! A TCP relay before a server's socket, with the faults of a network: answers that are swallowed or late,
//! requests that arrive in half, connections that break, a server that becomes another one.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use super::lake::next;

pub struct Proxy {
    port: u16,
    shared: Arc<Shared>,
}

/// What happens to the next request that holds some text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The server does it; the answer is lost, and the connection with it.
    SwallowAnswer,
    /// Half of the request arrives, then the connection breaks.
    CutRequest,
    /// The server does it; the answer, and what comes after it, is a second late.
    LateAnswer,
}

/// What is to happen to the answers of one connection.
#[derive(Default)]
struct Answers {
    swallows: AtomicBool,
    is_late: AtomicBool,
}

struct Shared {
    server: Mutex<PathBuf>,
    /// Text of the request that it is for; empty for any.
    fault: Mutex<Option<(Vec<u8>, Fault)>>,
    faults_done: AtomicUsize,
    /// One piece of data in so many has a fault; none when 0.
    bad_one_in: AtomicU64,
    random: Mutex<u64>,
    /// Both ends of what is connected now.
    open: Mutex<Vec<(TcpStream, UnixStream)>>,
}

impl Proxy {
    pub fn start(server: &Path) -> Self {
        Self::with_seed(server, 1)
    }

    pub fn with_seed(server: &Path, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared {
            server: Mutex::new(server.to_owned()),
            fault: Mutex::new(None),
            faults_done: AtomicUsize::new(0),
            bad_one_in: AtomicU64::new(0),
            random: Mutex::new(seed),
            open: Mutex::new(Vec::new()),
        });
        let for_all = Arc::clone(&shared);
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let server = for_all.server.lock().unwrap().clone();
                // A server that is away: the connection ends at once.
                if let Ok(server) = UnixStream::connect(server) {
                    connect(&for_all, client, server);
                }
            }
        });
        Self { port, shared }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The next request that holds `text` meets this fault.
    pub fn fail_next(&self, text: &str, fault: Fault) {
        *self.shared.fault.lock().unwrap() = Some((text.as_bytes().to_vec(), fault));
        self.shared.faults_done.store(0, Ordering::SeqCst);
    }

    /// Whether that has happened.
    pub fn is_done(&self) -> bool {
        self.shared.faults_done.load(Ordering::SeqCst) > 0
    }

    /// From now on one piece of data in so many is late, or lost with its connection; 0 for none.
    pub fn bad_one_in(&self, count: u64) {
        self.shared.bad_one_in.store(count, Ordering::SeqCst);
    }

    /// Breaks every connection.
    pub fn cut_all(&self) {
        for (client, server) in self.shared.open.lock().unwrap().drain(..) {
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        }
    }

    /// From now on this is the server, as after a failover.
    pub fn turn_to(&self, server: &Path) {
        server.clone_into(&mut self.shared.server.lock().unwrap());
        self.cut_all();
    }
}

fn connect(shared: &Arc<Shared>, client: TcpStream, server: UnixStream) {
    let _ = client.set_nodelay(true);
    let both = || (client.try_clone().unwrap(), server.try_clone().unwrap());
    {
        let mut open = shared.open.lock().unwrap();
        open.retain(|(client, _)| client.peer_addr().is_ok());
        open.push(both());
    }
    let fate = Arc::new(Answers::default());
    let (client_in, server_out) = both();
    let (requests, mark) = (Arc::clone(shared), Arc::clone(&fate));
    std::thread::spawn(move || {
        relay(client_in, server_out, |piece| {
            requests.request(piece, &mark)
        });
    });
    let answers = Arc::clone(shared);
    std::thread::spawn(move || relay(server, client, |piece| answers.answer(piece, &fate)));
}

impl Shared {
    /// How much of a request goes on; less than all breaks the connection.
    fn request(&self, piece: &[u8], answers: &Answers) -> usize {
        let mut fault = self.fault.lock().unwrap();
        let hit = fault
            .as_ref()
            .filter(|(text, _)| text.is_empty() || contains(piece, text))
            .map(|(_, fault)| *fault);
        // Before anybody is told that it happened, and before the request is on its way.
        match hit {
            Some(Fault::SwallowAnswer) => answers.swallows.store(true, Ordering::SeqCst),
            Some(Fault::LateAnswer) => answers.is_late.store(true, Ordering::SeqCst),
            Some(Fault::CutRequest) | None => {}
        }
        if hit.is_some() {
            *fault = None;
            self.faults_done.fetch_add(1, Ordering::SeqCst);
        }
        drop(fault);
        match hit {
            Some(Fault::CutRequest) => piece.len() / 2,
            None if self.is_bad() => piece.len() / 2,
            Some(Fault::SwallowAnswer | Fault::LateAnswer) | None => piece.len(),
        }
    }

    fn answer(&self, piece: &[u8], fate: &Answers) -> usize {
        if fate.swallows.load(Ordering::SeqCst) {
            return 0;
        }
        if fate.is_late.swap(false, Ordering::SeqCst) {
            std::thread::sleep(Duration::from_secs(1));
        }
        if self.is_bad() {
            let roll = next(&mut self.random.lock().unwrap());
            if roll.is_multiple_of(2) {
                return 0;
            }
            std::thread::sleep(Duration::from_millis(roll % 1500));
        }
        piece.len()
    }

    fn is_bad(&self) -> bool {
        let one_in = self.bad_one_in.load(Ordering::SeqCst);
        let is_bad = one_in > 0 && next(&mut self.random.lock().unwrap()).is_multiple_of(one_in);
        if is_bad {
            self.faults_done.fetch_add(1, Ordering::SeqCst);
        }
        is_bad
    }
}

fn contains(piece: &[u8], text: &[u8]) -> bool {
    piece.windows(text.len()).any(|window| window == text)
}

trait Stream: Read + Write {
    fn end(&self);
}

impl Stream for TcpStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

impl Stream for UnixStream {
    fn end(&self) {
        let _ = self.shutdown(Shutdown::Both);
    }
}

/// `pass` says how much of a piece goes on.
fn relay(mut from: impl Stream, mut to: impl Stream, pass: impl Fn(&[u8]) -> usize) {
    let mut buffer = vec![0; 65536];
    while let Ok(count) = from.read(&mut buffer) {
        let passed = pass(&buffer[..count]);
        if count == 0 || to.write_all(&buffer[..passed]).is_err() || passed < count {
            break;
        }
    }
    from.end();
    to.end();
}
