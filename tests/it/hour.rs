//! An hour's worth of files, fed quickly while the daemon runs: every row comes out once.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use redis::Connection;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    lake::{HOUR_START_NS, Lake, PARTITION, assert_same_rows, batch, write_file},
    program::{Program, config_file, run},
    redis_server::RedisServer,
};

/// Twelve a minute.
const FILES: u64 = 720;
const TABLES: [&str; 2] = ["cpu", "mem"];
const WRITERS: [&str; 2] = ["writer-a", "writer-b"];
/// The hour passes in about 15 seconds.
const PAUSE: Duration = Duration::from_millis(20);

struct Feed {
    lake: Lake,
    kept: PathBuf,
}

impl Feed {
    /// One file as a writer makes it: unsorted, a column from the second half hour on, some with a single row.
    fn file(&self, number: u64) -> (&'static str, String) {
        let table = TABLES[usize::try_from(number % 2).unwrap()];
        // Every third seed has the column.
        let seed = 3 * number + u64::from(number < FILES / 2);
        let rows = if number % 40 == 7 { 1 } else { 300 };
        let name = format!("{:032x}.1.parquet", number * 7_919);
        let kept = self.kept.join(table).join(&name);
        fs::create_dir_all(kept.parent().unwrap()).unwrap();
        write_file(&kept, &batch(seed, rows));
        let aside = self.lake.root.join("db").join(table).join("tmp");
        fs::create_dir_all(&aside).unwrap();
        fs::create_dir_all(self.lake.partition(table)).unwrap();
        fs::copy(&kept, aside.join(&name)).unwrap();
        fs::rename(aside.join(&name), self.lake.partition(table).join(&name)).unwrap();
        (table, name)
    }

    /// In time, except that one in sixty comes when the hour is over.
    fn order() -> impl Iterator<Item = u64> {
        let is_late = |number: &u64| number % 60 == 59;
        (0..FILES)
            .filter(move |number| !is_late(number))
            .chain((0..FILES).filter(is_late))
    }

    fn kept(&self, table: &str) -> Vec<PathBuf> {
        let files = fs::read_dir(self.kept.join(table)).unwrap();
        files.map(|entry| entry.unwrap().path()).collect()
    }
}

fn config(folder: &Path, lake: &Lake, catalog: &str) -> String {
    config_file(
        folder,
        &format!(
            "[catalog]\n{catalog}\n[[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = \"file://{}\"\n\
             [merge]\nlevels = [\n\
             {{ iteration = 1, timeout = \"1s\", max_size = \"1 MiB\" }},\n\
             {{ iteration = 2, timeout = \"3s\", max_size = \"8 MiB\" }},\n]\n\
             [drops]\ngrace = \"2s\"\ninterval = \"1s\"\n",
            lake.root.display()
        ),
    )
}

fn register(redis: &mut Connection, feed: &Feed, number: u64, table: &str, name: &str) {
    let size = fs::metadata(feed.kept.join(table).join(name))
        .unwrap()
        .len();
    let rows = if number % 40 == 7 { 1 } else { 300 };
    let end_ns = HOUR_START_NS + 3_599_999_999_999;
    let entry = json!({
        "layer": "hot", "database": "db", "table": table, "path": format!("{PARTITION}/{name}"),
        "size_bytes": size, "row_count": rows, "chunk_time": 0, "min": {}, "max": {}, "min_time": 0, "max_time": 0,
        "writer_id": WRITERS[usize::try_from(number / 2 % 2).unwrap()], "str_min_time": HOUR_START_NS.to_string(),
        "str_max_time": end_ns.to_string(), "str_chunk_time": HOUR_START_NS.to_string(), "cmd": "ADD",
    });
    let layers = json!({
        "hot": {"url": "file:///lake", "name": "hot", "type": "fs", "ttl_sec": 0, "layer_to": ""}
    });
    let scripts = gigamerge::catalog::redis::scripts::all();
    let patch_index = scripts
        .iter()
        .find(|script| script.name == "patch_index")
        .unwrap();
    let count: u64 = redis::cmd("EVAL")
        .arg(patch_index.text)
        .arg(2)
        .arg("[[1,1048576,1],[3,8388608,2]]")
        .arg(layers.to_string())
        .arg(entry.to_string())
        .query(redis)
        .unwrap();
    assert_eq!(count, 1);
}

fn json_of(arguments: &[&str]) -> String {
    let (code, out, err) = run(arguments);
    assert_eq!(code, 0, "{arguments:?}\n{err}");
    out
}

fn queues_are_empty(config: &str) -> bool {
    let out = json_of(&["plan", "--json", "--config", config]);
    let value: Value = serde_json::from_str(&out).unwrap();
    let queues = value["queues"].as_object().unwrap();
    queues.values().all(|count| *count == 0)
}

/// Feeds the hour to a running daemon, waits until all is merged, and checks what is there.
fn an_hour(catalog: &str, mut redis: Option<Connection>) {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    fs::create_dir_all(&lake.root).unwrap();
    let config = config(folder.path(), &lake, catalog);
    let feed = Feed {
        lake,
        kept: folder.path().join("kept"),
    };
    let mut program = Program::start(&["run", "--config", &config]);
    for number in Feed::order() {
        let (table, name) = feed.file(number);
        if let Some(redis) = &mut redis {
            register(redis, &feed, number, table, &name);
        }
        std::thread::sleep(PAUSE);
    }
    program.wait_until("final files only", |_| {
        TABLES.iter().all(|table| {
            let files = feed.lake.files(table);
            !files.is_empty() && files.iter().all(|file| file.ends_with(".3.parquet"))
        })
    });
    program.wait_until("empty queues", |_| queues_are_empty(&config));
    program.signal(Signal::TERM);
    let status = program.wait_for_exit(Duration::from_secs(20));
    let log = program.log();
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(!log.contains("ERROR"), "{log}");

    for table in TABLES {
        let on_disk: BTreeSet<String> = feed.lake.files(table).into_iter().collect();
        let out = json_of(&["query", "db", table, "--json", "--config", &config]);
        let entries: Vec<Value> = out
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        let indexed: BTreeSet<String> = entries
            .iter()
            .map(|entry| {
                entry["path"]
                    .as_str()
                    .unwrap()
                    .rsplit('/')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert_eq!(indexed, on_disk);
        assert!(
            on_disk.len() < 60,
            "{} files are left of 360",
            on_disk.len()
        );
        if redis.is_some() {
            let writers: BTreeSet<&str> = entries
                .iter()
                .map(|entry| entry["writer_id"].as_str().unwrap())
                .collect();
            assert_eq!(writers, WRITERS.into());
        }
        let outputs: Vec<PathBuf> = on_disk
            .iter()
            .map(|name| feed.lake.partition(table).join(name))
            .collect();
        assert_same_rows(&outputs, &feed.kept(table));
        let left = feed.lake.leftovers(table);
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn an_hour_of_files_ends_with_the_same_rows_in_the_embedded_catalog() {
    an_hour("type = \"json\"", None);
}

#[test]
fn an_hour_of_files_of_two_writers_ends_with_the_same_rows_on_redis() {
    let server = RedisServer::start();
    let catalog = format!("type = \"redis\"\nurl = {:?}", server.url());
    an_hour(&catalog, Some(server.connection()));
}
