//! Disks that turn out to be full where nobody expects it any more: at `fsync`, and when a file gets its name.

use std::{fs, path::Path, time::Duration};

use gigamerge::crash_points::CrashPoint::MergeAnnounced;
use rustix::fs::{FallocateFlags, fallocate};

use crate::{
    budgets::{is_merged, metadata, outputs, write_dense},
    support::{
        crashing::Stopped,
        lake::{Lake, assert_same_rows},
        program::{Program, config_file},
        thin_disk::ThinDisk,
    },
};

fn config(lake: &Lake, folder: &Path, timeout: &str) -> String {
    let text = format!(
        "data_dir = {:?}\n\
         [merge]\nlevels = [{{ iteration = 1, timeout = \"{timeout}\", max_size = \"100 MiB\" }}]\n\
         [tables]\ncompression = \"none\"\n[drops]\ngrace = \"1s\"\ninterval = \"1s\"\n\
         [worker]\nmin_free = \"64 KiB\"\nmax_attempts = 1\n",
        lake.root
    );
    config_file(folder, &text)
}

#[test]
fn a_disk_that_is_full_at_fsync_costs_no_attempt_and_publishes_nothing() {
    let Some(disk) = ThinDisk::mount("24m", "400m") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&disk.path().join("lake"));
    let partition = lake.partition("cpu");
    fs::create_dir_all(&partition).unwrap();
    for seed in 0..6 {
        write_dense(&partition.join(format!("{seed}.1.parquet")), seed, 20_000);
    }
    disk.sync();
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    // The output has 48 MB: they are written, and only fsync finds out.
    let mut program = Program::start(&["run", "--config", &config(&lake, folder.path(), "1s")]);
    program.wait_for_log("No space left on device");
    program.wait_until("scratch to be gone", |_| lake.leftovers("cpu").is_empty());
    assert_eq!(lake.files("cpu").len(), 6, "{}", program.log());
    disk.backing().resize("400m");
    program.wait_until("the merge", |_| is_merged(&lake, "cpu"));
    assert_same_rows(&outputs(&lake, "cpu"), &copies);
    assert!(!program.log().contains("given up"), "{}", program.log());
    assert!(lake.leftovers("cpu").is_empty());
}

#[test]
fn a_disk_that_is_full_at_fsync_leaves_metadata_as_it_was() {
    let Some(disk) = ThinDisk::mount("24m", "64m") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&disk.path().join("lake"));
    for seed in 0..3 {
        lake.drop_file("cpu", seed, 200);
    }
    lake.drop_file("later", 9, 200);
    let late = lake.partition("later").join(&lake.files("later")[0]);
    let mut program = Program::start(&["run", "--config", &config(&lake, folder.path(), "6s")]);
    let file = lake.partition("cpu").join("metadata.json");
    program.wait_until("metadata.json", |_| file.exists());
    disk.sync();
    let ballast = disk.backing().fill(0);
    // Not earlier: a plan may have been claimed meanwhile.
    let before = fs::read(&file).unwrap();
    fs::rename(&late, lake.partition("cpu").join("late.1.parquet")).unwrap();
    program.wait_for_log("No space left on device");
    assert_eq!(fs::read(&file).unwrap(), before);
    let aside = lake.partition("cpu").join(".metadata.json.gigamerge");
    assert!(!aside.exists());
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    assert_eq!(copies.len(), 4);
    fs::remove_file(ballast).unwrap();
    program.wait_until("the merge", |_| is_merged(&lake, "cpu"));
    assert_same_rows(&outputs(&lake, "cpu"), &copies);
    assert_eq!(metadata(&lake, "cpu")["row_count"], 800);
}

/// Takes every free block, then every place for a name that the folder has: no file can get one there.
fn leave_no_room_for_names(disk: &Path, folder: &Path) {
    let ballast = fs::File::create(disk.join("ballast")).unwrap();
    let mut end = 0;
    for step in [1 << 20, 1 << 12] {
        while fallocate(&ballast, FallocateFlags::empty(), end, step).is_ok() {
            end += step;
        }
    }
    for length in [240, 100, 40, 20, 8] {
        for number in 0.. {
            let name = format!(".{number:0>length$}");
            if fs::File::create(folder.join(name)).is_err() {
                break;
            }
        }
    }
}

#[test]
fn a_disk_that_is_full_when_an_output_gets_its_name_costs_no_attempt() {
    let Some(disk) = ThinDisk::mount("100m", "64m") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&disk.path().join("lake"));
    for seed in 0..3 {
        lake.drop_file("cpu", seed, 200);
    }
    std::thread::sleep(Duration::from_millis(1100));
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    let config = config(&lake, folder.path(), "1s");
    let log = folder.path().join("stopped.log");
    let mut stopped = Stopped::start(MergeAnnounced, &["once", "--config", &config], &log);
    disk.sync();
    let partition = lake.partition("cpu");
    leave_no_room_for_names(disk.path(), &partition);
    stopped.go_on();
    stopped.wait();
    assert!(
        stopped.log().contains("No space left on device"),
        "{}",
        stopped.log()
    );
    assert_eq!(lake.files("cpu").len(), 3, "{}", stopped.log());
    assert!(lake.leftovers("cpu").is_empty());
    fs::remove_file(disk.path().join("ballast")).unwrap();
    for file in fs::read_dir(&partition).unwrap() {
        let file = file.unwrap();
        if file.file_name().to_str().unwrap().starts_with(".0") {
            fs::remove_file(file.path()).unwrap();
        }
    }
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_until("the merge", |_| is_merged(&lake, "cpu"));
    assert_same_rows(&outputs(&lake, "cpu"), &copies);
    assert!(!program.log().contains("given up"), "{}", program.log());
}
