//! The demo as a new user runs it.

use std::time::Duration;

use rustix::process::Signal;

use crate::support::program::{Program, run};

#[test]
fn the_demo_ends_with_every_row_in_its_place() {
    let (code, out, log) = run(&["demo", "--seconds", "8"]);
    assert_eq!(code, 0, "{out}{log}");
    assert!(
        out.contains("Every row is there exactly once, and every merged file is sorted by time."),
        "{out}{log}"
    );
    assert!(out.contains("iteration 2"), "{out}");
    assert_eq!(log, "", "the demo logged something");
    let folder = out
        .split("a second into ")
        .nth(1)
        .and_then(|rest| rest.split(';').next())
        .unwrap();
    assert!(
        !std::path::Path::new(folder).exists(),
        "{folder} was left behind"
    );
}

#[test]
fn the_demo_keeps_a_folder_that_was_asked_for_and_refuses_one_that_is_not_empty() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("demo");
    let dir = dir.to_str().unwrap();
    let (code, out, log) = run(&["demo", "--seconds", "2", "--dir", dir]);
    assert_eq!(code, 0, "{out}{log}");
    assert!(folder.path().join("demo/demo/cpu/data").is_dir());
    let (code, _, log) = run(&["demo", "--seconds", "2", "--dir", dir]);
    assert_eq!(code, 1);
    assert!(log.contains("is not empty"), "{log}");
}

#[test]
fn ctrl_c_ends_the_demo_early_with_its_summary() {
    let mut program = Program::start(&["demo", "--seconds", "600"]);
    std::thread::sleep(Duration::from_secs(3));
    program.signal(Signal::INT);
    let status = program.wait_for_exit(Duration::from_secs(45));
    assert_eq!(status.code(), Some(0), "{}", program.log());
}
