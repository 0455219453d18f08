//! The real program on a folder, without a server.

use std::{fs, path::PathBuf, time::Duration};

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    lake::{Lake, assert_same_rows, batch, write_file},
    program::{Program, config_file, run},
};

/// Levels of a second or two, no grace: everything happens while a test watches.
fn config(lake: &Lake, more: &str) -> String {
    format!(
        "data_dir = {:?}\n\
         [merge]\nlevels = [\n\
         {{ iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" }},\n\
         {{ iteration = 2, timeout = \"2s\", max_size = \"400 MiB\" }},\n]\n\
         [drops]\ngrace = \"1s\"\ninterval = \"1s\"\n{more}",
        lake.root
    )
}

/// Time to look at files between their registration and their merge.
fn patient(lake: &Lake) -> String {
    config(lake, "").replace("timeout = \"1s\"", "timeout = \"4s\"")
}

#[test]
fn files_that_have_waited_long_enough_are_merged_by_the_first_run() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..5 {
        lake.drop_file("cpu", seed, 100);
    }
    std::thread::sleep(Duration::from_millis(2100));
    let config = config_file(folder.path(), &config(&lake, ""));
    let (code, _, log) = run(&["once", "--config", &config]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("files=5 rows=500"), "{log}");
}

fn metadata(lake: &Lake, table: &str) -> Value {
    serde_json::from_slice(&fs::read(lake.partition(table).join("metadata.json")).unwrap()).unwrap()
}

fn outputs(lake: &Lake, table: &str) -> Vec<PathBuf> {
    let partition = lake.partition(table);
    let data = partition.parent().unwrap().parent().unwrap().to_owned();
    let files = metadata(lake, table)["files"].as_array().unwrap().clone();
    files
        .iter()
        .map(|file| data.join(file["path"].as_str().unwrap()))
        .collect()
}

#[test]
fn once_merges_what_lies_there_and_a_later_run_deletes_what_was_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..20 {
        lake.drop_file("cpu", seed, 500);
    }
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    let config = config_file(folder.path(), &config(&lake, ""));
    for _ in 0..2 {
        let (code, _, log) = run(&["once", "--config", &config]);
        assert_eq!(code, 0, "{log}");
        std::thread::sleep(Duration::from_millis(2100));
    }
    assert_same_rows(&outputs(&lake, "cpu"), &copies);
    let (code, _, log) = run(&["once", "--config", &config]);
    assert_eq!(code, 0, "{log}");
    std::thread::sleep(Duration::from_millis(2100));
    let (code, _, log) = run(&["once", "--config", &config]);
    assert_eq!(code, 0, "{log}");
    let files = lake.files("cpu");
    assert_eq!(files.len(), 1, "{files:?}\n{log}");
    assert!(files[0].ends_with(".3.parquet"), "{files:?}");
    assert_same_rows(&outputs(&lake, "cpu"), &copies);
    assert!(lake.leftovers("cpu").is_empty());
    let metadata = metadata(&lake, "cpu");
    assert_eq!(metadata["row_count"], 10_000);
    assert_eq!(metadata["drop_queue"], Value::Array(vec![]));
    assert_eq!(
        metadata["files"][0]["min"]["__timestamp"],
        metadata["files"][0]["min_time"]
    );
}

#[test]
fn run_merges_while_files_arrive_and_ends_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    let kept = folder.path().join("copies");
    fs::create_dir_all(&kept).unwrap();
    fs::create_dir_all(&lake.root).unwrap();
    let config = config_file(folder.path(), &config(&lake, ""));
    let mut program = Program::start(&["run", "--config", &config]);
    let mut copies = Vec::new();
    for seed in 0..40 {
        let rows = 100 + usize::try_from(seed).unwrap();
        let copy = kept.join(format!("{seed}.parquet"));
        write_file(&copy, &batch(seed, rows));
        lake.drop_file("cpu", seed, rows);
        copies.push(copy);
        std::thread::sleep(Duration::from_millis(50));
    }
    program.wait_until("one final file", |_| {
        let files = lake.files("cpu");
        !files.is_empty() && files.iter().all(|name| name.ends_with(".3.parquet"))
    });
    program.signal(Signal::TERM);
    let status = program.wait_for_exit(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{}", program.log());
    assert_same_rows(&outputs(&lake, "cpu"), &copies);
    assert!(lake.leftovers("cpu").is_empty());
}

#[test]
fn what_is_not_a_finished_data_file_is_left_alone_and_reported_once() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    lake.drop_file("cpu", 1, 100);
    let partition = lake.partition("cpu");
    let odd = [
        ("notes.txt", "hello"),
        ("no-iteration.parquet", "PAR1"),
        ("half.1.parquet", "PAR1 and then nothing more"),
        ("empty.1.parquet", ""),
    ];
    for (name, text) in odd {
        fs::write(partition.join(name), text).unwrap();
    }
    let config = config_file(folder.path(), &config(&lake, ""));
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_for_log("promoted");
    std::thread::sleep(Duration::from_secs(3));
    for (name, text) in odd {
        assert_eq!(fs::read_to_string(partition.join(name)).unwrap(), text);
        assert_eq!(
            program.log().matches(name).count(),
            1,
            "{name}:\n{}",
            program.log()
        );
    }
    // What was half written becomes a file like any other.
    write_file(&partition.join("half.1.parquet"), &batch(7, 50));
    program.wait_until("the finished file to be merged", |_| {
        metadata(&lake, "cpu")["row_count"] == 150 && !partition.join("half.1.parquet").exists()
    });
}

#[test]
fn a_second_process_on_the_same_folder_is_refused_but_may_look() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..3 {
        lake.drop_file("cpu", seed, 100);
    }
    let text = config(&lake, "").replace("\"1s\", max_size", "\"1h\", max_size");
    let config = config_file(folder.path(), &text);
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_until("metadata.json", |_| {
        lake.partition("cpu").join("metadata.json").exists()
    });
    let (code, _, log) = run(&["once", "--config", &config]);
    assert_eq!(code, 1);
    assert!(
        log.contains("another gigamerge works on this folder"),
        "{log}"
    );
    let before = fs::read(lake.partition("cpu").join("metadata.json")).unwrap();
    let (code, table, log) = run(&["plan", "--config", &config]);
    assert_eq!(code, 0, "{log}");
    assert!(table.contains("Nothing is due"), "{table}");
    assert_eq!(
        fs::read(lake.partition("cpu").join("metadata.json")).unwrap(),
        before
    );
}

#[test]
fn plan_shows_what_a_merge_would_do_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..5 {
        lake.drop_file("cpu", seed, 100);
    }
    let config = config_file(folder.path(), &patient(&lake));
    assert_eq!(run(&["once", "--config", &config]).0, 0);
    std::thread::sleep(Duration::from_millis(4100));
    let before = fs::read(lake.partition("cpu").join("metadata.json")).unwrap();
    let (code, json, log) = run(&["plan", "--json", "--config", &config]);
    assert_eq!(code, 0, "{log}");
    let plan: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(plan["due"][0]["action"], "merge");
    assert_eq!(plan["due"][0]["files"], 5);
    assert_eq!(plan["due"][0]["row_count"], 500);
    let (code, table, _) = run(&["plan", "--config", &config]);
    assert_eq!(code, 0);
    assert!(
        table.contains("db.cpu") && table.contains("1 → 2"),
        "{table}"
    );
    assert_eq!(
        fs::read(lake.partition("cpu").join("metadata.json")).unwrap(),
        before
    );
    assert_eq!(lake.files("cpu").len(), 5);
}

#[test]
fn a_damaged_file_is_set_aside_and_the_others_are_merged() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..4 {
        lake.drop_file("cpu", seed, 400);
    }
    let config = config_file(folder.path(), &patient(&lake));
    assert_eq!(run(&["once", "--config", &config]).0, 0);
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    // Damaged after it was registered: the footer is whole, a page is not.
    let victim = lake.partition("cpu").join(&lake.files("cpu")[2]);
    let mut bytes = fs::read(&victim).unwrap();
    for byte in &mut bytes[4..600] {
        *byte = 0xff;
    }
    fs::write(&victim, &bytes).unwrap();
    std::thread::sleep(Duration::from_millis(4100));
    let (code, _, log) = run(&["once", "--config", &config]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("set aside"), "{log}");
    assert_eq!(
        fs::read(&victim).unwrap(),
        bytes,
        "the damaged file was touched"
    );
    let merged: Vec<PathBuf> = outputs(&lake, "cpu")
        .into_iter()
        .filter(|path| *path != victim)
        .collect();
    let good: Vec<PathBuf> = copies
        .into_iter()
        .filter(|path| path.file_name() != victim.file_name())
        .collect();
    assert_same_rows(&merged, &good);
    assert_eq!(metadata(&lake, "cpu")["files"].as_array().unwrap().len(), 2);
}

fn quarantine(config: &str) -> Vec<Value> {
    let (code, out, log) = run(&["quarantine", "ls", "--json", "--config", config]);
    assert_eq!(code, 0, "{log}");
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_file_that_cannot_be_read_is_shown_until_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    lake.drop_file("cpu", 1, 100);
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    // A writer is in the middle of copying it.
    let whole = fs::read(&copies[0]).unwrap();
    let file = lake.partition("cpu").join("half.1.parquet");
    fs::write(&file, &whole[..whole.len() / 2]).unwrap();
    let config = config_file(folder.path(), &config(&lake, ""));
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_for_log("file is left alone");
    let shown = quarantine(&config);
    assert_eq!(shown.len(), 1, "{shown:?}");
    assert_eq!(shown[0]["kind"], "unregistered");
    assert!(
        shown[0]["id"]
            .as_str()
            .unwrap()
            .ends_with("/half.1.parquet")
    );
    assert!(!shown[0]["reason"].as_str().unwrap().is_empty());
    let id = shown[0]["id"].as_str().unwrap();
    let (code, out, log) = run(&["verify", "--min-age", "0s", "--json", "--config", &config]);
    assert!(
        out.contains("half.1.parquet") && out.contains("not registered: ") && code == 1,
        "{code}: {out} {log}"
    );
    fs::write(&file, &whole).unwrap();
    program.wait_until("both in the index", |_| {
        let metadata = metadata(&lake, "cpu");
        let rows = metadata["row_count"].as_u64();
        rows == Some(200)
    });
    assert!(quarantine(&config).is_empty());
    program.signal(Signal::TERM);
    program.wait_for_exit(Duration::from_secs(20));
    // Nobody can bring back or drop what was never in the index.
    let broken = lake.partition("cpu").join("half.2.parquet");
    fs::write(&broken, &whole[..whole.len() / 2]).unwrap();
    let other = id.replace(".1.parquet", ".2.parquet");
    for words in [
        &["retry", "db", "cpu", &other][..],
        &["drop", "db", "cpu", &other, "--yes"],
    ] {
        let arguments = [&["quarantine"], words, &["--config", &config]].concat();
        let (code, out, log) = run(&arguments);
        assert!(
            code == 0 && out.contains("nothing changed"),
            "{code}: {out} {log}"
        );
        assert_eq!(fs::read(&broken).unwrap().len(), whole.len() / 2);
    }
}
