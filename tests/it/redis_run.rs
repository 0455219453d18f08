//! The real program on a real Redis, beside a writer that knows only the contract.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use redis::{Commands, Connection};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    lake::{HOUR_START_NS, Lake, PARTITION, assert_same_rows},
    program::{Program, config_file, run},
    redis_server::RedisServer,
};

fn config(server: &RedisServer, lake: &Lake, more: &str) -> String {
    format!(
        "[catalog]\ntype = \"redis\"\nurl = {:?}\n[[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = \"file://{}\"\n\
         [merge]\nlevels = [\n\
         {{ iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" }},\n\
         {{ iteration = 2, timeout = \"2s\", max_size = \"400 MiB\" }},\n]\n\
         [drops]\ngrace = \"1s\"\ninterval = \"1s\"\n{more}",
        server.url(),
        lake.root.display()
    )
}

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

/// Leaves what the original's `patch_index` leaves for files of one plan, key by key.
fn register(redis: &mut Connection, lake: &Lake, table: &str, names: &[String], plan_id: &str) {
    let mut size = 0;
    let mut paths = Vec::new();
    for name in names {
        let bytes = fs::metadata(lake.partition(table).join(name))
            .unwrap()
            .len();
        let path = format!("{PARTITION}/{name}");
        let entry = json!({
            "layer": "hot", "database": "db", "table": table, "path": path, "size_bytes": bytes, "row_count": 500,
            "chunk_time": 0, "min": {}, "max": {}, "min_time": 0, "max_time": 0, "writer_id": "",
            "str_min_time": HOUR_START_NS.to_string(), "str_max_time": (HOUR_START_NS + 3_599_999_999_999).to_string(),
            "str_chunk_time": HOUR_START_NS.to_string(), "cmd": "ADD", "a_later_field": [1, 2, 3],
        });
        let _: () = redis
            .hset(
                format!("files:db:{table}:date=2024-01-15"),
                &path,
                entry.to_string(),
            )
            .unwrap();
        let _: () = redis
            .hincr(format!("folders:db:{table}"), PARTITION, 1)
            .unwrap();
        size += bytes;
        paths.push(path);
    }
    let plan = json!({ "id": plan_id, "time_s": now_s() + 1, "paths": paths, "size": size });
    let _: () = redis
        .rpush(
            format!("merge:db:{table}:1:{PARTITION}:hot::idle"),
            plan.to_string(),
        )
        .unwrap();
}

fn index(redis: &mut Connection, table: &str) -> Vec<Value> {
    let entries: Vec<(String, String)> = redis
        .hgetall(format!("files:db:{table}:date=2024-01-15"))
        .unwrap();
    entries
        .iter()
        .map(|(_, text)| serde_json::from_str(text).unwrap())
        .collect()
}

fn keys(redis: &mut Connection, pattern: &str) -> Vec<String> {
    redis
        .scan_match(pattern)
        .unwrap()
        .collect::<Result<Vec<String>, _>>()
        .unwrap()
}

fn files_of(lake: &Lake, table: &str, entries: &[Value]) -> Vec<PathBuf> {
    let data = lake.root.join("db").join(table).join("data");
    entries
        .iter()
        .map(|entry| data.join(entry["path"].as_str().unwrap()))
        .collect()
}

#[test]
fn files_that_another_program_registered_are_merged_and_the_old_ones_deleted() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    let server = RedisServer::start();
    let mut redis = server.connection();
    let names: Vec<String> = (0..12)
        .map(|seed| lake.drop_file("cpu", seed, 500))
        .collect();
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    register(
        &mut redis,
        &lake,
        "cpu",
        &names[..8],
        "11111111-0000-4000-8000-000000000001",
    );
    register(
        &mut redis,
        &lake,
        "cpu",
        &names[8..],
        "11111111-0000-4000-8000-000000000002",
    );

    let config = config_file(folder.path(), &config(&server, &lake, ""));
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_until("one final file and nothing else on disk", |_| {
        let files = lake.files("cpu");
        files.len() == 1 && files[0].ends_with(".3.parquet")
    });
    program.wait_until("empty queues", |_| {
        let mut redis = server.connection();
        ["merge:*", "drop:*", "move:*"]
            .iter()
            .all(|pattern| keys(&mut redis, pattern).is_empty())
    });
    program.signal(Signal::TERM);
    assert_eq!(
        program.wait_for_exit(Duration::from_secs(20)).code(),
        Some(0),
        "{}",
        program.log()
    );

    let entries = index(&mut redis, "cpu");
    assert_eq!(entries.len(), 1);
    let entry = &entries[0];
    assert_eq!(entry["row_count"], 6000);
    assert_eq!(
        (&entry["min_time"], &entry["max_time"], &entry["chunk_time"]),
        (&json!(0), &json!(0), &json!(0))
    );
    assert_eq!(
        entry["str_min_time"],
        entry["min"]["__timestamp"].to_string()
    );
    assert_eq!(
        entry["str_max_time"],
        entry["max"]["__timestamp"].to_string()
    );
    let outputs = files_of(&lake, "cpu", &entries);
    assert_eq!(
        entry["size_bytes"],
        fs::metadata(&outputs[0]).unwrap().len()
    );
    let folders: Vec<(String, i64)> = redis.hgetall("folders:db:cpu").unwrap();
    assert_eq!(folders, [(PARTITION.to_owned(), 1)]);
    assert_same_rows(&outputs, &copies);
    assert!(lake.leftovers("cpu").is_empty());
}

#[test]
fn a_server_that_went_away_and_came_back_needs_no_restart_of_the_daemon() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    let mut server = RedisServer::start();
    fs::create_dir_all(&lake.root).unwrap();
    let config = config_file(folder.path(), &config(&server, &lake, ""));
    let mut program = Program::start(&["run", "--config", &config]);
    let first: Vec<String> = (0..3)
        .map(|seed| lake.drop_file("cpu", seed, 500))
        .collect();
    register(
        &mut server.connection(),
        &lake,
        "cpu",
        &first,
        "11111111-0000-4000-8000-000000000001",
    );
    program.wait_for_log("merged");
    server.kill();
    program.wait_for_log("trying again");
    server.run();
    let second: Vec<String> = (3..6)
        .map(|seed| lake.drop_file("disk", seed, 500))
        .collect();
    let copies = lake.keep_copy("disk", &folder.path().join("copies"));
    register(
        &mut server.connection(),
        &lake,
        "disk",
        &second,
        "11111111-0000-4000-8000-000000000002",
    );
    program.wait_until("the second table to be final", |_| {
        lake.files("disk")
            .iter()
            .all(|name| name.ends_with(".3.parquet"))
    });
    let entries = index(&mut server.connection(), "disk");
    assert_same_rows(&files_of(&lake, "disk", &entries), &copies);
}

#[test]
fn a_daemon_starts_before_its_server() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    let names: Vec<String> = (0..3)
        .map(|seed| lake.drop_file("cpu", seed, 500))
        .collect();
    let mut server = RedisServer::start();
    register(
        &mut server.connection(),
        &lake,
        "cpu",
        &names,
        "11111111-0000-4000-8000-000000000001",
    );
    server.kill();
    let config = config_file(folder.path(), &config(&server, &lake, ""));
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_for_log("trying again");
    server.run();
    program.wait_for_log("merged");
}

#[test]
fn two_daemons_share_the_work_and_no_row_is_merged_twice() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    let server = RedisServer::start();
    let mut redis = server.connection();
    let names: Vec<String> = (0..60)
        .map(|seed| lake.drop_file("cpu", seed, 500))
        .collect();
    let copies = lake.keep_copy("cpu", &folder.path().join("copies"));
    for (number, chunk) in names.chunks(3).enumerate() {
        // The original's ids repeat within a millisecond: all plans here share one.
        let id = if number < 10 {
            "same".to_owned()
        } else {
            format!("plan-{number}")
        };
        register(&mut redis, &lake, "cpu", chunk, &id);
    }
    let config = config_file(folder.path(), &config(&server, &lake, ""));
    let mut daemons = [
        Program::start(&["run", "--config", &config]),
        Program::start(&["run", "--config", &config]),
    ];
    for daemon in &mut daemons {
        daemon.wait_until("final files only", |_| {
            lake.files("cpu")
                .iter()
                .all(|name| name.ends_with(".3.parquet"))
        });
    }
    for daemon in &mut daemons {
        daemon.signal(Signal::TERM);
        assert_eq!(
            daemon.wait_for_exit(Duration::from_secs(20)).code(),
            Some(0),
            "{}",
            daemon.log()
        );
    }
    let entries = index(&mut redis, "cpu");
    assert_same_rows(&files_of(&lake, "cpu", &entries), &copies);
    assert_eq!(lake.files("cpu").len(), entries.len());
    assert!(lake.leftovers("cpu").is_empty());
}

#[test]
fn plans_with_paths_out_of_the_table_harm_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    let server = RedisServer::start();
    let mut redis = server.connection();
    let names: Vec<String> = (0..3)
        .map(|seed| lake.drop_file("cpu", seed, 500))
        .collect();
    let precious = lake.root.join("precious.1.parquet");
    fs::write(&precious, "precious").unwrap();
    register(
        &mut redis,
        &lake,
        "cpu",
        &names,
        "11111111-0000-4000-8000-000000000001",
    );
    let list = format!("merge:db:cpu:1:{PARTITION}:hot::idle");
    let evil = [
        "../../../../precious.1.parquet",
        "/etc/passwd",
        "a/../../x.1.parquet",
        "a\u{0}b/x.1.parquet",
    ];
    let items = [
        json!({ "id": "evil", "time_s": 0, "paths": evil, "size": 1 }).to_string(),
        "not json".to_owned(),
        json!({ "id": "no time", "paths": [] }).to_string(),
        json!({ "id": 7, "time_s": "soon", "paths": "all", "size": -1 }).to_string(),
    ];
    for item in items {
        let _: () = redis.lpush(&list, item).unwrap();
    }
    let evil_drop = json!({
        "id": "d", "writer_id": "", "layer": "hot", "path": "../../../precious.1.parquet", "database": "db",
        "table": "cpu", "time_s": 0,
    });
    let _: () = redis
        .rpush("drop:db:cpu:hot::idle", evil_drop.to_string())
        .unwrap();
    let config = config_file(folder.path(), &config(&server, &lake, ""));
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_until("the good plan to be done", |_| {
        lake.files("cpu")
            .iter()
            .all(|name| name.ends_with(".3.parquet"))
    });
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(Path::new("/etc/passwd").exists());
}

#[test]
fn once_on_redis_ends_when_nothing_is_due() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    let server = RedisServer::start();
    let names: Vec<String> = (0..3)
        .map(|seed| lake.drop_file("cpu", seed, 500))
        .collect();
    register(
        &mut server.connection(),
        &lake,
        "cpu",
        &names,
        "11111111-0000-4000-8000-000000000001",
    );
    std::thread::sleep(Duration::from_millis(2100));
    let config = config_file(folder.path(), &config(&server, &lake, ""));
    let (code, table, log) = run(&["plan", "--config", &config]);
    assert_eq!(code, 0, "{log}");
    assert!(
        table.contains("merge") && table.contains("db.cpu"),
        "{table}"
    );
    let (code, _, log) = run(&["once", "--config", &config]);
    assert_eq!(code, 0, "{log}");
    assert!(log.contains("merges=1"), "{log}");
    assert_eq!(index(&mut server.connection(), "cpu").len(), 1);
}

#[test]
fn one_unusable_entry_does_not_keep_its_neighbours_from_being_merged() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    let server = RedisServer::start();
    let mut redis = server.connection();
    let names: Vec<String> = (0..4)
        .map(|seed| lake.drop_file("cpu", seed, 500))
        .collect();
    register(
        &mut redis,
        &lake,
        "cpu",
        &names,
        "11111111-0000-4000-8000-000000000001",
    );
    let broken = format!("{PARTITION}/{}", names[1]);
    let files = "files:db:cpu:date=2024-01-15";
    let _: () = redis.hset(files, &broken, "{\"path\": 7}").unwrap();
    let config = config_file(folder.path(), &config(&server, &lake, ""));
    let mut program = Program::start(&["run", "--config", &config]);
    program.wait_until("the good files to be merged", |_| {
        lake.files("cpu").len() == 2
    });
    assert!(program.log().contains("set aside"), "{}", program.log());
    let kept: String = redis.hget(files, &broken).unwrap();
    assert_eq!(kept, "{\"path\": 7}");
    assert!(lake.files("cpu").contains(&names[1]));
}
