//! Disks that are nearly or really full, and few open files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use serde_json::Value;

use crate::support::{
    lake::{HOUR_START_NS, Lake, assert_same_rows},
    program::{Program, command, config_file},
    tmpfs::Tmpfs,
};

const LEVELS: &str =
    "[merge]\nlevels = [{ iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" }]\n";

pub fn metadata(lake: &Lake, table: &str) -> Value {
    let file = lake.partition(table).join("metadata.json");
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}

pub fn outputs(lake: &Lake, table: &str) -> Vec<PathBuf> {
    let data = lake.root.join("db").join(table).join("data");
    let files = metadata(lake, table)["files"].as_array().unwrap().clone();
    let path = |file: &Value| data.join(file["path"].as_str().unwrap());
    files.iter().map(path).collect()
}

pub fn is_merged(lake: &Lake, table: &str) -> bool {
    let files = lake.files(table);
    !files.is_empty() && files.iter().all(|name| name.ends_with(".2.parquet"))
}

/// Small as a file, large in memory and as an uncompressed output.
pub fn write_dense(path: &Path, seed: i64, rows: i64) {
    let times: ArrayRef = Arc::new(Int64Array::from_iter_values(
        (0..rows).map(|row| HOUR_START_NS + (row * 7919 + seed) % rows),
    ));
    let texts = (0..rows).map(|row| format!("{:0>400}", row * 10 + seed));
    let texts: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    let batch = RecordBatch::try_from_iter([("__timestamp", times), ("text", texts)]).unwrap();
    let properties = WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(3).unwrap()))
        .build();
    let file = fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[test]
fn with_too_little_free_space_no_merge_starts_deletes_go_on_and_work_resumes_by_itself() {
    let Some(disk) = Tmpfs::mount("40m") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&disk.path().join("lake"));
    fs::create_dir_all(&lake.root).unwrap();
    for seed in 0..4 {
        lake.drop_file("first", seed, 200);
    }
    let text = format!(
        "data_dir = {:?}\n{LEVELS}[drops]\ngrace = \"5s\"\ninterval = \"1s\"\n[worker]\nmin_free = \"8 MiB\"\n",
        lake.root
    );
    let config = config_file(folder.path(), &text);
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_for_log("merged");
    let ballast = disk.fill(4 << 20);
    for seed in 0..4 {
        lake.drop_file("second", seed, 200);
    }
    let copies = lake.keep_copy("second", &folder.path().join("copies"));
    program.wait_for_log("too little free space");
    program.wait_until("deletes beside it", |_| is_merged(&lake, "first"));
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(
        program.log().matches("too little free space").count(),
        1,
        "{}",
        program.log()
    );
    assert_eq!(lake.files("second").len(), 4, "{}", program.log());
    assert!(lake.leftovers("second").is_empty());
    fs::remove_file(ballast).unwrap();
    program.wait_for_log("there is room again");
    program.wait_until("the merge", |_| is_merged(&lake, "second"));
    assert_same_rows(&outputs(&lake, "second"), &copies);
    assert!(!program.log().contains("given up"), "{}", program.log());
}

#[test]
fn scratch_on_a_disk_of_its_own_needs_room_too() {
    let Some(disk) = Tmpfs::mount("1m") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..8 {
        lake.drop_file("cpu", seed, 5_000);
    }
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    let text = format!(
        "data_dir = {:?}\n{LEVELS}[worker]\nscratch_dir = {:?}\nmin_free = \"1 KiB\"\n",
        lake.root,
        disk.path()
    );
    let config = config_file(folder.path(), &text);
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_for_log("too little free space");
    assert!(
        program.log().contains(&disk.path().display().to_string()),
        "{}",
        program.log()
    );
    assert_eq!(lake.files("cpu").len(), 8);
    disk.resize("64m");
    program.wait_until("the merge", |_| outputs(&lake, "cpu").len() == 1);
    assert_same_rows(&outputs(&lake, "cpu"), &copies);
}

#[test]
fn once_says_that_plans_wait_for_room() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..3 {
        lake.drop_file("cpu", seed, 100);
    }
    let text = format!(
        "data_dir = {:?}\n{LEVELS}[worker]\nmin_free = \"1024 TiB\"\n",
        lake.root
    );
    std::thread::sleep(Duration::from_millis(2100));
    let config = config_file(folder.path(), &text);
    let (code, _, log) = crate::support::program::run(&["once", "--config", &config]);
    assert_eq!(code, 1, "{log}");
    assert!(log.contains("for want of free space"), "{log}");
    assert_eq!(lake.files("cpu").len(), 3);
}

#[test]
fn a_disk_that_is_full_in_the_middle_of_a_merge_costs_no_attempt_and_leaves_nothing_behind() {
    let Some(disk) = Tmpfs::mount("24m") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&disk.path().join("lake"));
    let partition = lake.partition("cpu");
    fs::create_dir_all(&partition).unwrap();
    for seed in 0..6 {
        write_dense(&partition.join(format!("{seed}.1.parquet")), seed, 20_000);
    }
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    // The output has 48 MB, its inputs so little that the merge starts.
    let text = format!(
        "data_dir = {:?}\n{LEVELS}[tables]\ncompression = \"none\"\n[drops]\ngrace = \"1s\"\ninterval = \"1s\"\n\
         [worker]\nmin_free = \"64 KiB\"\nmax_attempts = 1\n",
        lake.root
    );
    let config = config_file(folder.path(), &text);
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_for_log("No space left on device");
    program.wait_until("scratch to be gone", |_| lake.leftovers("cpu").is_empty());
    assert_eq!(lake.files("cpu").len(), 6, "{}", program.log());
    assert_eq!(metadata(&lake, "cpu")["files"].as_array().unwrap().len(), 6);
    disk.resize("300m");
    program.wait_until("the merge", |_| is_merged(&lake, "cpu"));
    assert_same_rows(&outputs(&lake, "cpu"), &copies);
    assert!(!program.log().contains("given up"), "{}", program.log());
    assert!(lake.leftovers("cpu").is_empty());
}

#[test]
fn a_full_disk_leaves_metadata_as_it_was_and_everything_is_found_afterwards() {
    let Some(disk) = Tmpfs::mount("24m") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&disk.path().join("lake"));
    for seed in 0..3 {
        lake.drop_file("cpu", seed, 200);
    }
    // Ready to get its name, which takes no room.
    lake.drop_file("later", 9, 200);
    let late = lake.partition("later").join(&lake.files("later")[0]);
    let waiting = disk.path().join("waiting.parquet");
    fs::rename(late, &waiting).unwrap();
    let text = format!(
        "data_dir = {:?}\n{}[drops]\ngrace = \"1s\"\ninterval = \"1s\"\n[worker]\nmin_free = \"0 B\"\n",
        lake.root,
        LEVELS.replace("1s", "6s")
    );
    let config = config_file(folder.path(), &text);
    let mut program = Program::start(&["run", "--config", &config]);
    let file = lake.partition("cpu").join("metadata.json");
    program.wait_until("metadata.json", |_| file.exists());
    let before = fs::read(&file).unwrap();
    let ballast = disk.fill(0);
    fs::rename(&waiting, lake.partition("cpu").join("late.1.parquet")).unwrap();
    program.wait_for_log("No space left on device");
    assert_eq!(fs::read(&file).unwrap(), before);
    assert!(
        !lake
            .partition("cpu")
            .join(".metadata.json.gigamerge")
            .exists()
    );
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    assert_eq!(copies.len(), 4);
    fs::remove_file(ballast).unwrap();
    program.wait_until("the merge", |_| is_merged(&lake, "cpu"));
    assert_same_rows(&outputs(&lake, "cpu"), &copies);
    assert_eq!(metadata(&lake, "cpu")["row_count"], 800);
}

/// Runs gigamerge with at most 256 open files; returns success, the most that were open, and its output.
fn with_few_files(arguments: &[&str]) -> (bool, usize, String) {
    let program = command();
    let mut child = Command::new("sh")
        .env_clear()
        .args(["-c", "ulimit -n 256; exec \"$0\" \"$@\""])
        .arg(program.get_program())
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let folder = format!("/proc/{}/fd", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = fs::read_dir(&folder).map_or(0, Iterator::count).max(most);
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        most,
        String::from_utf8_lossy(&text).into_owned(),
    )
}

#[test]
fn two_thousand_inputs_are_merged_with_few_open_files() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..2000 {
        lake.drop_file("cpu", seed, 20);
    }
    let list: Vec<String> = lake
        .files("cpu")
        .iter()
        .map(|name| lake.partition("cpu").join(name).display().to_string())
        .collect();
    let names = folder.path().join("list");
    fs::write(&names, list.join("\n")).unwrap();
    let out = folder.path().join("out.parquet");
    let (is_done, most, log) = with_few_files(&[
        "merge-files",
        "--out",
        out.to_str().unwrap(),
        &format!("@{}", names.display()),
    ]);
    assert!(is_done, "{log}");
    assert!(most < 256, "{most}");
    assert!(log.contains("rows: 40000"), "{log}");

    // Several merges at once share the limit.
    for table in ["a", "b", "c", "d", "e", "f"] {
        for seed in 0..150 {
            lake.drop_file(table, seed, 300);
        }
    }
    let text = format!(
        "data_dir = {:?}\n{LEVELS}[worker]\nconcurrency = 8\n",
        lake.root
    );
    std::thread::sleep(Duration::from_millis(2100));
    let config = config_file(folder.path(), &text);
    let (is_done, most, log) = with_few_files(&["once", "--config", &config]);
    assert!(is_done, "{log}");
    assert!(log.contains("fewer merges run at once"), "{log}");
    assert!(log.contains("files=2000 rows=40000"), "{log}");
    assert_eq!(log.matches("files=150 rows=45000").count(), 6, "{log}");
    assert!(!log.contains("Too many open files"), "{log}");
    assert!(most < 256, "{most}");
}
