//! The daemon is killed again and again at any moment; every row is there exactly once in the end.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use redis::Commands;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    lake::{HOUR_START_NS, Lake, PARTITION, assert_same_rows, batch, next, write_file},
    program::{Program, config_file},
    redis_server::RedisServer,
};

const ROUNDS: u64 = 15;
const FILES_PER_ROUND: u64 = 4;
const ROWS: usize = 3000;

const LEVELS: &str = "[merge]\nlevels = [\n\
    { iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" },\n\
    { iteration = 2, timeout = \"2s\", max_size = \"400 MiB\" },\n]\n\
    [drops]\ngrace = \"1s\"\ninterval = \"1s\"\n[worker]\nlease = \"5s\"\n";

/// Drops files and kills the program at a random moment, many times. `register` tells a catalog of a file.
fn rounds(
    config: &str,
    lake: &Lake,
    copies: &Path,
    mut register: impl FnMut(&str),
) -> Vec<PathBuf> {
    fs::create_dir_all(copies).unwrap();
    let mut state = 42;
    let mut kept = Vec::new();
    for round in 0..ROUNDS {
        let program = Program::start(&["run", "--config", config]);
        for number in 0..FILES_PER_ROUND {
            let seed = round * FILES_PER_ROUND + number;
            let copy = copies.join(format!("{seed}.parquet"));
            write_file(&copy, &batch(seed, ROWS));
            register(&lake.drop_file("cpu", seed, ROWS));
            kept.push(copy);
        }
        std::thread::sleep(Duration::from_millis(200 + next(&mut state) % 2500));
        program.signal(Signal::KILL);
    }
    kept
}

fn is_final(lake: &Lake) -> bool {
    let files = lake.files("cpu");
    !files.is_empty() && files.iter().all(|name| name.ends_with(".3.parquet"))
}

/// Lets one more run finish everything, then stops it in order.
fn settle(config: &str, lake: &Lake, mut is_settled: impl FnMut() -> bool) {
    let mut program = Program::start(&["run", "--config", config]);
    program.wait_until("final files only", |_| is_final(lake) && is_settled());
    program.signal(Signal::TERM);
    assert_eq!(
        program.wait_for_exit(Duration::from_secs(20)).code(),
        Some(0),
        "{}",
        program.log()
    );
    assert!(
        lake.leftovers("cpu").is_empty(),
        "scratch was left behind: {:?}",
        lake.leftovers("cpu")
    );
}

#[test]
fn on_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    fs::create_dir_all(&lake.root).unwrap();
    let config = config_file(
        folder.path(),
        &format!("data_dir = {:?}\n{LEVELS}", lake.root),
    );
    let copies = rounds(&config, &lake, &folder.path().join("copies"), |_| {});
    let metadata = lake.partition("cpu").join("metadata.json");
    let read = || serde_json::from_slice::<Value>(&fs::read(&metadata).unwrap()).unwrap();
    settle(&config, &lake, || {
        let metadata = read();
        let files = metadata["files"].as_array().unwrap().len();
        files == lake.files("cpu").len() && metadata["drop_queue"].as_array().unwrap().is_empty()
    });
    assert_eq!(read().get("pending"), None);
    let outputs: Vec<PathBuf> = lake
        .files("cpu")
        .iter()
        .map(|name| lake.partition("cpu").join(name))
        .collect();
    assert_same_rows(&outputs, &copies);
}

#[test]
fn on_redis() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    fs::create_dir_all(&lake.root).unwrap();
    let server = RedisServer::start();
    let text = format!(
        "[catalog]\ntype = \"redis\"\nurl = {:?}\n[[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = \"file://{}\"\n{LEVELS}",
        server.url(),
        lake.root.display()
    );
    let config = config_file(folder.path(), &text);
    let mut redis = server.connection();
    let script = gigamerge::catalog::redis::scripts::all()
        .into_iter()
        .find(|script| script.name == "patch_index")
        .unwrap();
    let copies = rounds(&config, &lake, &folder.path().join("copies"), |name| {
        let entry = json!({
            "layer": "hot", "database": "db", "table": "cpu", "path": format!("{PARTITION}/{name}"),
            "size_bytes": fs::metadata(lake.partition("cpu").join(name)).unwrap().len(), "row_count": ROWS,
            "chunk_time": 0, "min": {}, "max": {}, "min_time": 0, "max_time": 0, "writer_id": "",
            "str_min_time": HOUR_START_NS.to_string(), "str_max_time": (HOUR_START_NS + 3_599_999_999_999).to_string(),
            "str_chunk_time": HOUR_START_NS.to_string(), "cmd": "ADD",
        });
        let _: i64 = redis::cmd("EVAL")
            .arg(&*script.text)
            .arg(2)
            .arg("[[1,104857600,1],[2,419430400,2]]")
            .arg(r#"{"hot":{"url":"","name":"hot","type":"fs","ttl_sec":0,"layer_to":""}}"#)
            .arg(entry.to_string())
            .query(&mut redis)
            .unwrap();
    });
    let mut redis = server.connection();
    let files_key = "files:db:cpu:date=2024-01-15";
    settle(&config, &lake, || {
        let indexed: usize = redis.hlen(files_key).unwrap();
        let queues: Vec<String> = redis
            .scan_match("*:hot:*")
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap();
        indexed == lake.files("cpu").len() && queues.is_empty()
    });
    let paths: Vec<String> = redis.hkeys(files_key).unwrap();
    let data = lake.root.join("db/cpu/data");
    let outputs: Vec<PathBuf> = paths.iter().map(|path| data.join(path)).collect();
    assert_same_rows(&outputs, &copies);
}
