//! A Redis server of a test's own: in its own folder, on a free port and a socket, gone with the test.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use gigamerge::config::RedisConfig;
use tempfile::TempDir;

/// The program; `GIGAMERGE_TEST_REDIS_SERVER` names another one (an older Redis, Valkey).
fn program() -> String {
    std::env::var("GIGAMERGE_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned())
}

pub struct RedisServer {
    folder: TempDir,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl RedisServer {
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// With further arguments, such as `--requirepass`.
    pub fn start_with(arguments: &[&str]) -> Self {
        let mut server = Self {
            folder: TempDir::new().unwrap(),
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            child: None,
        };
        server.run();
        server
    }

    /// Starts the server again, with what it had saved.
    pub fn run(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        let child = Command::new(program())
            .args(["--port", "0", "--appendonly", "yes"])
            .args(["--appendfsync", "always", "--save", ""])
            .arg("--unixsocket")
            .arg(self.socket())
            .arg("--dir")
            .arg(self.folder.path())
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server must be installed; tests/run does that");
        self.child = Some(child);
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.answers() {
            assert!(Instant::now() < deadline, "redis-server did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it has read what it had saved: until then it answers each call with LOADING.
    fn answers(&self) -> bool {
        let Ok(mut stream) = UnixStream::connect(self.socket()) else {
            return false;
        };
        let mut answer = [0; 5];
        let asked = stream.write_all(b"PING\r\n");
        asked.is_ok() && stream.read_exact(&mut answer).is_ok() && !answer.starts_with(b"-LOAD")
    }

    /// Ends the server at once, as a crash does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
            let _ = std::fs::remove_file(self.socket());
        }
    }

    /// The process, for signals.
    pub fn process_id(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Where it keeps its data.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("redis.sock")
    }

    pub fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    pub fn config(&self) -> RedisConfig {
        RedisConfig::new(&self.url())
    }

    /// A plain connection, for looking behind the catalog.
    pub fn connection(&self) -> redis::Connection {
        redis::Client::open(self.url())
            .unwrap()
            .get_connection()
            .unwrap()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Calls a script by its name, as any client would.
pub fn call<T: redis::FromRedisValue>(
    connection: &mut redis::Connection,
    name: &str,
    keys: &[&str],
    arguments: &[&str],
) -> redis::RedisResult<T> {
    let script = gigamerge::catalog::redis::scripts::all()
        .into_iter()
        .find(|script| script.name == name)
        .unwrap();
    redis::cmd("EVAL")
        .arg(script.text)
        .arg(keys.len())
        .arg(keys)
        .arg(arguments)
        .query(connection)
}
