//! The program with a crash point, as a child process: the shipped binary has none, so this test binary
//! starts itself and does what the program's `main` does.

use std::{
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use clap::Parser;
use gigamerge::{
    cli::{self, Cli, Command as Task},
    config::Config,
    crash_points::{CrashPoint, CrashPoints},
};
use rustix::process::{Pid, Signal, kill_process};

const ARGUMENTS: &str = "CRASHING_PROGRAM_ARGUMENTS";
const POINT: &str = "CRASHING_PROGRAM_POINT";

/// Where the child dies or stops.
#[derive(Debug, Clone, Copy)]
pub struct Crash {
    pub point: CrashPoint,
    /// The how many-th time it gets there.
    pub count: u32,
    pub is_stop: bool,
}

impl Crash {
    pub fn kill(point: CrashPoint) -> Self {
        Self {
            point,
            count: 1,
            is_stop: false,
        }
    }

    pub fn stop(point: CrashPoint) -> Self {
        Self {
            is_stop: true,
            ..Self::kill(point)
        }
    }
}

/// `gigamerge ARGUMENTS` that dies or stops there.
pub fn command(crash: Crash, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars() {
        if name.starts_with("GIGA") || name == "LOGLEVEL" {
            command.env_remove(name);
        }
    }
    let fate = if crash.is_stop { "stop" } else { "kill" };
    let point = format!("{fate} {} {}", crash.point.name(), crash.count);
    command
        .args([
            "support::crashing::the_program",
            "--exact",
            "--ignored",
            "--nocapture",
        ])
        .env(ARGUMENTS, serde_json::to_string(arguments).unwrap())
        .env(POINT, point)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// A child that stopped (`SIGSTOP`) at its crash point. Killed when the test ends.
pub struct Stopped {
    child: Child,
    log: PathBuf,
}

impl Stopped {
    /// Starts it and waits until it has stopped.
    pub fn start(point: CrashPoint, arguments: &[&str], log: &Path) -> Self {
        let child = command(Crash::stop(point), arguments)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        let mut stopped = Self {
            child,
            log: log.to_owned(),
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = format!("/proc/{}/stat", stopped.child.id());
        loop {
            let text = std::fs::read_to_string(&status).unwrap_or_default();
            // The state stands after the name, which ends with a bracket.
            if text.rsplit(')').next().unwrap().trim().starts_with('T') {
                return stopped;
            }
            let ended = stopped.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{} was not reached ({ended:?}):\n{}",
                point.name(),
                stopped.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `SIGCONT`: it goes on as if no time had passed.
    pub fn go_on(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::CONT).unwrap();
    }

    /// Waits for its end; returns the exit code.
    pub fn wait(&mut self) -> Option<i32> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "still running:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs to the end; true when it was killed by the crash point, which the point's own signal says.
pub fn run(crash: Crash, arguments: &[&str]) -> (bool, Output) {
    let output = command(crash, arguments).output().unwrap();
    (output.status.signal() == Some(9), output)
}

#[test]
#[ignore = "the program that the crash tests start as a child process"]
fn the_program() {
    let variable = |name| std::env::var(name).expect("only the crash tests start this");
    let arguments: Vec<String> = serde_json::from_str(&variable(ARGUMENTS)).unwrap();
    let crash_points = crash_points(&variable(POINT));
    let cli = Cli::parse_from(std::iter::once("gigamerge".to_owned()).chain(arguments));
    // What the child was told is no setting of the program.
    let load = |common| {
        Config::load(&cli.sources(common)).map(|config| Config {
            crash_points: crash_points.clone(),
            ..config
        })
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let done: anyhow::Result<()> = runtime.block_on(async {
        match &cli.command {
            Task::Run(args) => {
                cli::run::run(load(&args.common)?, cli.sources(&args.common)).await?;
            }
            Task::Once(args) => cli::once::run(load(&args.common)?).await?,
            Task::Import(args) => cli::import::run(args, load(&args.common)?).await?,
            other => panic!("the crash tests do not run {other:?}"),
        }
        Ok(())
    });
    if let Err(error) = &done {
        eprintln!("gigamerge: {error:#}");
    }
    // Before the test harness says anything.
    std::process::exit(i32::from(done.is_err()));
}

fn crash_points(text: &str) -> CrashPoints {
    let parts: Vec<&str> = text.split(' ').collect();
    let point = *CrashPoint::ALL
        .iter()
        .find(|point| point.name() == parts[1])
        .expect("no such crash point");
    let count = parts[2].parse().unwrap();
    match parts[0] {
        "stop" => CrashPoints::stop_at(point, count),
        _ => CrashPoints::kill_at(point, count),
    }
}
