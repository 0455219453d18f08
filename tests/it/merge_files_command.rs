//! `gigamerge merge-files`: what it writes, what it says, what it leaves alone.

use std::{path::Path, sync::Arc, time::Duration};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;

use rustix::process::Signal;

use crate::{
    merge_files::{read, write},
    support::program::{Program, command, run},
};

fn input(path: &Path, keys: &[i64]) -> String {
    let keys: ArrayRef = Arc::new(Int64Array::from(keys.to_vec()));
    let batch = RecordBatch::try_from_iter([("__timestamp", Arc::clone(&keys)), ("value", keys)]);
    write(path, &batch.unwrap(), Default::default());
    path.display().to_string()
}

fn keys(path: &Path) -> Vec<i64> {
    let column = |batch: &RecordBatch| {
        let keys = batch["__timestamp"].as_primitive::<Int64Type>();
        keys.values().to_vec()
    };
    read(path).iter().flat_map(column).collect()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn named_and_listed_files_become_one_sorted_file_and_a_summary() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let one = input(&at("one.parquet"), &[5, 1, 3]);
    let two = input(&at("two.parquet"), &[4, 2]);
    std::fs::write(at("list"), format!("{two}\n\n")).unwrap();
    let out = at("out.parquet");
    let list = format!("@{}", at("list").display());
    let (code, stdout, stderr) = run(&[
        "merge-files",
        "--out",
        out.to_str().unwrap(),
        "--memory",
        "32 MiB",
        "--compression",
        "zstd(3)",
        "--threads",
        "1",
        &one,
        &list,
    ]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{stdout}");
    assert_eq!(keys(&out), [1, 2, 3, 4, 5]);
    for line in [
        "merged 2 files",
        "rows: 5",
        "row groups: 1, 1 encoded, 0 copied undecoded",
        "strategy: ",
        "seconds: ",
        "spilled runs: 0",
    ] {
        assert!(stdout.contains(line), "{line} is not in {stdout}");
    }
    assert_eq!(
        names(folder.path()),
        ["list", "one.parquet", "out.parquet", "two.parquet"]
    );
}

#[test]
fn the_order_is_what_order_by_says() {
    let folder = tempfile::tempdir().unwrap();
    let one = input(&folder.path().join("one"), &[5, 1, 3]);
    let out = folder.path().join("out");
    let (code, _, stderr) = run(&[
        "merge-files",
        "--order-by",
        "value desc nulls first,__timestamp",
        "--out",
        out.to_str().unwrap(),
        &one,
    ]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(keys(&out), [5, 3, 1]);
}

#[test]
fn a_bare_name_is_written_into_the_current_folder() {
    let folder = tempfile::tempdir().unwrap();
    input(&folder.path().join("one"), &[2, 1]);
    let output = command()
        .current_dir(folder.path())
        .args(["merge-files", "--out", "out", "one"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(keys(&folder.path().join("out")), [1, 2]);
    assert_eq!(names(folder.path()), ["one", "out"]);
}

#[test]
fn a_file_that_exists_is_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let one = input(&folder.path().join("one"), &[1]);
    let (code, _, stderr) = run(&["merge-files", "--out", &one, &one]);
    assert_eq!(code, 1);
    assert!(
        stderr.contains("exists already") && stderr.contains("--out"),
        "{stderr}"
    );
    assert_eq!(keys(Path::new(&one)), [1]);
}

#[test]
fn a_bad_input_is_named_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let one = input(&folder.path().join("one"), &[1]);
    let bad = folder.path().join("bad");
    std::fs::write(&bad, "this is not a Parquet file").unwrap();
    let out = folder.path().join("out");
    let (code, stdout, stderr) = run(&[
        "merge-files",
        "--out",
        out.to_str().unwrap(),
        &one,
        bad.to_str().unwrap(),
    ]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains(bad.to_str().unwrap()), "{stderr}");
    assert_eq!(names(folder.path()), ["bad", "one"]);
}

#[test]
fn a_stop_leaves_neither_output_nor_scratch_wherever_the_merge_is() {
    let folder = tempfile::tempdir().unwrap();
    let inputs: Vec<String> = (0..4_i64)
        .map(|file| {
            let keys: Vec<i64> = (0..400_000)
                .map(|row| (row * 48_271 + file) % 1_000_003)
                .collect();
            input(&folder.path().join(format!("in-{file}")), &keys)
        })
        .collect();
    let out = folder.path().join("out/o.parquet");
    let left = || names(out.parent().unwrap());
    // Little memory, so that there is scratch; a level of zstd that takes its time.
    let mut arguments = vec!["merge-files", "--out", out.to_str().unwrap()];
    arguments.extend(["--memory", "8 MiB", "--compression", "zstd(19)"]);
    arguments.extend(inputs.iter().map(String::as_str));
    std::fs::create_dir(out.parent().unwrap()).unwrap();
    for (signal, has_begun) in [
        (Signal::INT, "lock"),
        (Signal::TERM, ".runs"),
        (Signal::INT, "output.parquet"),
    ] {
        let mut program = Program::start(&arguments);
        program.wait_until(has_begun, |_| {
            let folders = left();
            let Some(scratch) = folders.first() else {
                return false;
            };
            let files = std::fs::read_dir(out.with_file_name(scratch));
            let mut files = files.into_iter().flatten().flatten();
            files.any(|file| file.file_name().to_string_lossy().ends_with(has_begun))
        });
        program.signal(signal);
        let status = program.wait_for_exit(Duration::from_secs(60));
        assert_eq!(status.code(), Some(1), "{}", program.log());
        assert!(program.log().contains("stopped"), "{}", program.log());
        assert_eq!(left(), Vec::<String>::new());
    }
}

#[test]
fn wrong_options_are_refused_with_the_right_form() {
    for (option, value, hint) in [
        ("--memory", "256", "has no unit"),
        ("--compression", "gzip", "snappy"),
        ("--order-by", "a sideways", "name desc"),
        ("--threads", "0", "1.."),
    ] {
        let (code, _, stderr) = run(&["merge-files", "--out", "/nowhere/o", option, value, "x"]);
        assert_eq!(code, 2, "{option}: {stderr}");
        assert!(stderr.contains(hint), "{option}: {stderr}");
    }
    let (code, _, stderr) = run(&["merge-files", "--out", "/nowhere/o", "x"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("/nowhere"), "{stderr}");
}
