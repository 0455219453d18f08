//! The real binary as a child process, with its output kept.

use std::{
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A running gigamerge. Killed when the test ends.
pub struct Program {
    child: Child,
    folder: TempDir,
}

/// A command with nothing of the tests' own environment that could set an option.
pub fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gigamerge"));
    for (name, _) in std::env::vars() {
        if name.starts_with("GIGA") || name == "LOGLEVEL" {
            command.env_remove(name);
        }
    }
    command
}

/// Runs to the end; returns exit code, stdout, stderr.
pub fn run(arguments: &[&str]) -> (i32, String, String) {
    let output = command().args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code().unwrap_or(-1),
        text(&output.stdout),
        text(&output.stderr),
    )
}

impl Program {
    pub fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| std::fs::File::create(folder.path().join(name)).unwrap();
        let child = command()
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file("stdout"))
            .stderr(file("stderr"))
            .spawn()
            .unwrap();
        Self { child, folder }
    }

    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("stderr")).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Waits until the log holds `text`.
    pub fn wait_for_log(&mut self, text: &str) {
        self.wait_until(&format!("{text:?} in the log"), |program| {
            program.log().contains(text)
        });
    }

    /// Waits up to a minute; shows the log if that is not enough or the program ends before.
    pub fn wait_until(&mut self, what: &str, mut is_so: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_so(self) {
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none(),
                "ended ({ended:?}) before {what}:\n{}",
                self.log()
            );
            assert!(
                Instant::now() < deadline,
                "no {what} within a minute:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for the end.
    pub fn wait_for_exit(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "still running after {limit:?}:\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes a configuration file and returns its path.
pub fn config_file(folder: &Path, text: &str) -> String {
    let path = folder.join("gigamerge.toml");
    std::fs::write(&path, text).unwrap();
    path.display().to_string()
}
