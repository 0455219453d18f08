//! Stopping and reloading the real daemon.

use std::{collections::BTreeSet, fs, path::PathBuf, time::Duration};

use gigamerge::catalog::redis::scripts;
use redis::{Commands, Connection};
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{
    lake::{Lake, PARTITION, assert_same_rows},
    program::{Program, config_file},
    proxy::{Fault, Proxy},
    redis_server::RedisServer,
    world::register,
};

fn config(lake: &Lake, timeout: &str, more: &str) -> String {
    format!(
        "data_dir = {:?}\n[merge]\nlevels = [{{ iteration = 1, timeout = {timeout:?}, max_size = \"4 GiB\" }}]\n{more}",
        lake.root
    )
}

/// A merge that takes some seconds, so that signals meet it at work.
fn long_merge() -> (tempfile::TempDir, Lake, Vec<PathBuf>) {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..24 {
        lake.drop_file("cpu", seed, 400_000);
    }
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    (folder, lake, copies)
}

fn is_merging(program: &Program, lake: &Lake) -> bool {
    !lake.leftovers("cpu").is_empty() && !program.log().contains("merged")
}

#[test]
fn a_second_signal_stops_a_merge_between_batches_and_hands_its_plan_back() {
    let (folder, lake, copies) = long_merge();
    let config = config_file(
        folder.path(),
        &config(&lake, "1s", "[worker]\nstop_timeout = \"10min\"\n"),
    );
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_until("a running merge", |program| is_merging(program, &lake));
    program.signal(Signal::TERM);
    program.wait_for_log("stopping");
    program.signal(Signal::INT);
    let status = program.wait_for_exit(Duration::from_secs(5));
    assert_eq!(status.code(), Some(0), "{}", program.log());
    assert!(program.log().contains("handed back"), "{}", program.log());
    assert!(lake.leftovers("cpu").is_empty());
    assert_eq!(lake.files("cpu").len(), 24);
    let inputs: Vec<PathBuf> = lake
        .files("cpu")
        .iter()
        .map(|name| lake.partition("cpu").join(name))
        .collect();
    for (input, copy) in inputs.iter().zip(&copies) {
        assert_eq!(
            fs::metadata(input).unwrap().len(),
            fs::metadata(copy).unwrap().len()
        );
    }
}

#[test]
fn a_stopped_daemon_lets_its_merge_finish_in_time() {
    let (folder, lake, copies) = long_merge();
    let config = config_file(
        folder.path(),
        &config(&lake, "1s", "[worker]\nstop_timeout = \"5min\"\n"),
    );
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_until("a running merge", |program| is_merging(program, &lake));
    program.signal(Signal::TERM);
    let status = program.wait_for_exit(Duration::from_secs(120));
    assert_eq!(status.code(), Some(0), "{}", program.log());
    let merged: Vec<PathBuf> = lake
        .files("cpu")
        .into_iter()
        .filter(|name| name.ends_with(".2.parquet"))
        .map(|name| lake.partition("cpu").join(name))
        .collect();
    assert_eq!(merged.len(), 1, "{}", program.log());
    assert_same_rows(&merged, &copies);
}

#[test]
fn a_valid_reload_is_applied_and_an_invalid_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    for seed in 0..3 {
        lake.drop_file("cpu", seed, 100);
    }
    let path = config_file(folder.path(), &config(&lake, "1h", ""));
    let mut program = Program::start(&["run", "--config", &path]);
    program.wait_until("metadata.json", |_| {
        lake.partition("cpu").join("metadata.json").exists()
    });
    fs::write(&path, config(&lake, "1", "")).unwrap();
    program.signal(Signal::HUP);
    program.wait_for_log("the old one stays");
    assert!(program.log().contains("has no unit"), "{}", program.log());
    assert!(!program.log().contains("merged"));
    fs::write(&path, config(&lake, "1s", "[log]\nformat = \"json\"\n")).unwrap();
    program.signal(Signal::HUP);
    program.wait_for_log("configuration reloaded");
    program.wait_for_log("\"message\":\"merged\"");
    program.signal(Signal::TERM);
    assert_eq!(
        program.wait_for_exit(Duration::from_secs(20)).code(),
        Some(0)
    );
}

#[test]
fn a_reload_may_move_to_another_folder_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (
        Lake::new(&folder.path().join("one")),
        Lake::new(&folder.path().join("two")),
    );
    for lake in [&first, &second] {
        lake.drop_file("cpu", 0, 100);
        lake.drop_file("cpu", 1, 100);
    }
    let path = config_file(folder.path(), &config(&first, "1s", ""));
    let mut program = Program::start(&["run", "--config", &path]);
    program.wait_until("a merge in the first folder", |program| {
        program.log().matches("merged").count() == 1
    });
    fs::write(&path, config(&second, "1s", "")).unwrap();
    program.signal(Signal::HUP);
    program.wait_until("a merge in the second folder", |program| {
        program.log().matches("merged").count() == 2
    });
    first.drop_file("cpu", 2, 100);
    first.drop_file("cpu", 3, 100);
    fs::write(&path, config(&first, "1s", "")).unwrap();
    program.signal(Signal::HUP);
    program.wait_until("another merge in the first folder", |program| {
        program.log().matches("merged").count() == 3
    });
    program.signal(Signal::TERM);
    assert_eq!(
        program.wait_for_exit(Duration::from_secs(20)).code(),
        Some(0)
    );
}

#[test]
fn a_level_with_a_cron_line_runs_when_the_line_says() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    lake.drop_file("cpu", 0, 100);
    lake.drop_file("cpu", 1, 100);
    let with_schedule = |line: &str| {
        config(&lake, "1s", "").replace("timeout", &format!("schedule = {line:?}, timeout"))
    };
    let path = config_file(folder.path(), &with_schedule("0 0 3 1 1 *"));
    let mut program = Program::start(&["run", "--config", &path]);
    program.wait_until("metadata.json", |_| {
        lake.partition("cpu").join("metadata.json").exists()
    });
    std::thread::sleep(Duration::from_secs(4));
    assert!(!program.log().contains("merged"), "{}", program.log());
    fs::write(&path, with_schedule("*/2 * * * * *")).unwrap();
    program.signal(Signal::HUP);
    program.wait_for_log("merged");
}

#[test]
fn deletes_go_on_while_a_long_merge_holds_the_only_place() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    lake.drop_file("disk", 0, 100);
    lake.drop_file("disk", 1, 100);
    std::thread::sleep(Duration::from_millis(1100));
    for seed in 0..48 {
        lake.drop_file("cpu", seed, 400_000);
    }
    let more = "[worker]\nconcurrency = 1\nmemory_budget = \"64 MiB\"\n[drops]\ngrace = \"1s\"\ninterval = \"1s\"\n";
    let path = config_file(folder.path(), &config(&lake, "1s", more));
    let mut program = Program::start(&["run", "--config", &path]);
    program.wait_until("replaced files to be deleted", |_| {
        lake.files("disk")
            .iter()
            .all(|name| name.ends_with(".2.parquet"))
    });
    assert!(
        !program.log().contains("rows=19200000"),
        "the merge was over before:\n{}",
        program.log()
    );
}

/// Files that are registered, and a configuration under which a lost claim stays lost: nothing that is
/// left behind is free again before the test ends.
struct OnRedis {
    folder: tempfile::TempDir,
    lake: Lake,
    server: RedisServer,
}

impl OnRedis {
    fn with_files(count: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(&folder.path().join("lake"));
        let server = RedisServer::start();
        let mut redis = server.connection();
        for seed in 0..count {
            let name = lake.drop_file("cpu", seed, 20);
            register(&mut redis, &lake, "cpu", &name, 20);
        }
        Self {
            folder,
            lake,
            server,
        }
    }

    fn start(&self, url: &str) -> Program {
        let text = format!(
            "[catalog]\ntype = \"redis\"\nurl = {url:?}\n\
             [[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = \"file://{}\"\n\
             [merge]\nlevels = [{{ iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" }}]\n\
             [drops]\ngrace = \"1s\"\ninterval = \"1s\"\nmax_per_second = 1\n[worker]\nlease = \"1h\"\n",
            self.lake.root.display()
        );
        Program::start(&["run", "--config", &config_file(self.folder.path(), &text)])
    }

    /// Paths of files that were registered and are still there.
    fn inputs(&self) -> BTreeSet<String> {
        let names = self.lake.files("cpu").into_iter();
        let inputs = names.filter(|name| name.ends_with(".1.parquet"));
        inputs.map(|name| format!("{PARTITION}/{name}")).collect()
    }
}

/// Items of all lists whose key matches.
fn items(redis: &mut Connection, pattern: &str) -> Vec<Value> {
    let keys: Vec<String> = redis
        .scan_match(pattern)
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    let texts = keys.iter().flat_map(|key| {
        let texts: Vec<String> = redis.lrange(key, 0, -1).unwrap();
        texts
    });
    texts
        .map(|text| serde_json::from_str(&text).unwrap())
        .collect()
}

#[test]
fn a_stop_ends_the_deletes_that_were_done_and_hands_back_the_others() {
    const FILES: u64 = 40;
    let place = OnRedis::with_files(FILES);
    let mut program = place.start(&place.server.url());
    // All were claimed at once; at this pace that is work for longer than a stop may take.
    program.wait_until("the second delete", |_| {
        (place.inputs().len() as u64) < FILES - 1
    });
    program.signal(Signal::TERM);
    let status = program.wait_for_exit(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{}", program.log());
    let mut redis = place.server.connection();
    let claimed = items(&mut redis, "drop:*:processing");
    assert!(claimed.is_empty(), "{claimed:?}");
    let waiting: BTreeSet<String> = items(&mut redis, "drop:*:idle")
        .iter()
        .map(|item| item["path"].as_str().unwrap().to_owned())
        .collect();
    assert!(!waiting.is_empty(), "{}", program.log());
    assert_eq!(waiting, place.inputs());
}

#[test]
fn a_stop_waits_for_the_answer_to_a_claim() {
    let place = OnRedis::with_files(2);
    let claim = scripts::all()
        .into_iter()
        .find(|script| script.name == "get_merge_plan")
        .unwrap();
    let mut redis = place.server.connection();
    redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(claim.text)
        .exec(&mut redis)
        .unwrap();
    let proxy = Proxy::start(&place.server.socket());
    proxy.fail_next(&claim.sha1, Fault::LateAnswer);
    let mut program = place.start(&proxy.url());
    program.wait_until("a claim whose answer is on its way", |_| proxy.is_done());
    program.signal(Signal::TERM);
    let status = program.wait_for_exit(Duration::from_secs(20));
    assert_eq!(status.code(), Some(0), "{}", program.log());
    let claimed = items(&mut redis, "merge:*:processing");
    assert!(claimed.is_empty(), "{claimed:?}\n{}", program.log());
    // It was claimed, so it was also done.
    assert!(items(&mut redis, "merge:*:1:*:idle").is_empty());
    assert_eq!(place.lake.files("cpu").len(), 3, "{}", program.log());
}
