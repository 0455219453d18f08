//! A file that cannot be merged, or that ends the process that tries, is found and set aside; all
//! others are merged.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
};
use redis::Commands;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    lake::{HOUR_START_NS, batch, write_file},
    program::{command, run},
    redis_server::RedisServer,
    world::World,
};

const ONE_LEVEL: &str = "[merge]\nlevels = [{ iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" }]\n\
    [drops]\ngrace = \"1s\"\ninterval = \"1s\"\n";

fn gigamerge(world: &World, arguments: &[&str]) -> (i32, String, String) {
    run(&[arguments, &["--config", &world.config]].concat())
}

fn quarantine(world: &World) -> Vec<Value> {
    let (code, out, log) = gigamerge(world, &["quarantine", "ls", "--json"]);
    assert_eq!(code, 0, "{log}");
    out.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// One table with so many partitions of two files each; every second file is its partition's bad one
/// where `is_bad` says so.
fn fill(world: &World, partitions: usize, bad_partition: usize) -> PathBuf {
    let source = world.folder.path().join("source.parquet");
    write_file(&source, &batch(1, 50));
    let sound = fs::read(&source).unwrap();
    // Its footer is sound: the embedded catalog registers no other.
    let mut damaged = sound.clone();
    damaged[4..200].fill(0xff);
    let table = world.lake.root.join("db/cpu");
    let mut bad = PathBuf::new();
    let mut entries = Vec::new();
    for number in 0..partitions {
        let dir = format!("date=2024-01-15/hour={number}");
        let folder = table.join("data").join(&dir);
        fs::create_dir_all(&folder).unwrap();
        for file in 0..2 {
            let name = format!("00000000-0000-4000-8000-00000000000{file}.1.parquet");
            let is_bad = number == bad_partition && file == 1;
            let bytes = if is_bad { &damaged } else { &sound };
            fs::write(folder.join(&name), bytes).unwrap();
            if is_bad {
                bad = folder.join(&name);
            }
            entries.push(json!({
                "layer": "hot", "database": "db", "table": "cpu", "path": format!("{dir}/{name}"),
                "size_bytes": bytes.len(), "row_count": 50, "chunk_time": 0, "min": {}, "max": {},
                "min_time": 0, "max_time": 0, "writer_id": "", "str_min_time": HOUR_START_NS.to_string(),
                "str_max_time": (HOUR_START_NS + 3_599_999_999_999).to_string(),
                "str_chunk_time": HOUR_START_NS.to_string(), "cmd": "ADD",
            }).to_string());
        }
    }
    if world.server.is_some() {
        let script = gigamerge::catalog::redis::scripts::all()
            .into_iter()
            .find(|script| script.name == "patch_index")
            .unwrap();
        for entries in entries.chunks(500) {
            let _: i64 = redis::cmd("EVAL")
                .arg(script.text)
                .arg(2)
                .arg("[[1,104857600,1]]")
                .arg(r#"{"hot":{"url":"","name":"hot","type":"fs","ttl_sec":0,"layer_to":""}}"#)
                .arg(entries)
                .query(&mut world.redis())
                .unwrap();
        }
    }
    bad
}

/// Names of the data files of each partition.
fn names(world: &World) -> Vec<BTreeSet<String>> {
    let data = world.lake.root.join("db/cpu/data/date=2024-01-15");
    let names = |folder: &Path| {
        let entries = fs::read_dir(folder).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".parquet")).collect()
    };
    let folders = fs::read_dir(data).unwrap();
    folders
        .map(|folder| names(&folder.unwrap().path()))
        .collect()
}

fn one_bad_file(on_redis: bool, partitions: usize) {
    let world = World::with(on_redis.then(RedisServer::start), ONE_LEVEL);
    let bad = fill(&world, partitions, partitions / 2);
    let bad_bytes = fs::read(&bad).unwrap();
    let data = world.lake.root.join("db/cpu/data");
    let bad_path = bad.strip_prefix(&data).unwrap().to_str().unwrap();
    // Plans and deletes are due after a second.
    let finish = || {
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(1100));
            let (code, _, log) = gigamerge(&world, &["once"]);
            assert_eq!(code, 0, "{log}");
        }
    };
    finish();
    let merged = |names: &BTreeSet<String>| {
        names.len() == 1 && names.iter().all(|name| name.ends_with(".2.parquet"))
    };
    let found = names(&world);
    let unfinished: Vec<_> = found.iter().filter(|names| !merged(names)).collect();
    assert_eq!(found.len(), partitions);
    assert_eq!(unfinished.len(), 1, "{unfinished:?}");
    assert!(unfinished[0].contains(bad_path.rsplit('/').next().unwrap()));

    // It is named, stays as it is, and readers still find it.
    let listed = quarantine(&world);
    assert_eq!(listed.len(), 1, "{listed:?}");
    let (code, out, log) = gigamerge(&world, &["quarantine", "show", "db", "cpu", bad_path]);
    assert!(code == 0 && out.contains(bad_path), "{out}{log}");
    assert!(out.contains("its rows cannot be read"), "{out}");
    assert_eq!(fs::read(&bad).unwrap(), bad_bytes);
    let (_, out, _) = gigamerge(&world, &["query", "db", "cpu", "--json"]);
    assert!(out.contains(bad_path), "the index lost {bad_path}");

    // Repaired, it is merged like any other.
    fs::copy(world.folder.path().join("source.parquet"), &bad).unwrap();
    let (code, _, log) = gigamerge(&world, &["quarantine", "retry", "db", "cpu", bad_path]);
    assert_eq!(code, 0, "{log}");
    finish();
    assert!(quarantine(&world).is_empty());
    assert!(!bad.exists());
    let names = names(&world);
    assert!(
        names
            .iter()
            .flatten()
            .all(|name| name.ends_with(".2.parquet"))
    );
}

#[test]
fn one_bad_file_among_a_thousand_plans_is_set_aside_on_redis() {
    one_bad_file(true, 1000);
}

#[test]
fn one_bad_file_among_many_plans_is_set_aside_on_a_folder() {
    one_bad_file(false, 100);
}

/// A small file whose rows have a MiB each, all of them different.
fn file_of_long_texts(rows: i64) -> Vec<u8> {
    const AT_ONCE: usize = 20;
    let times: Vec<i64> = (0..rows).rev().collect();
    let batch = |times: &[i64]| {
        let texts = times
            .iter()
            .map(|time| format!("{time} {}", "x".repeat(1 << 20)));
        let columns: [(&str, ArrayRef); 2] = [
            ("__timestamp", Arc::new(Int64Array::from(times.to_vec()))),
            ("text", Arc::new(StringArray::from_iter_values(texts))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let properties = WriterProperties::builder()
        .set_dictionary_enabled(false)
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .build();
    let mut bytes = Vec::new();
    let schema = batch(&times[..1]).schema();
    let mut writer = ArrowWriter::try_new(&mut bytes, schema, Some(properties)).unwrap();
    for some in times.chunks(AT_ONCE) {
        writer.write(&batch(some)).unwrap();
    }
    writer.close().unwrap();
    bytes
}

/// The culprit is sound, but needs more memory than the process may have, while the settings promise more.
fn culprit(on_redis: bool) {
    const ROWS: u16 = 1100;
    const CULPRIT: &str = "00000000-0000-4000-8000-000000000099.1.parquet";
    let settings = format!(
        "{ONE_LEVEL}[worker]\nlease = \"5s\"\nconcurrency = 1\nmax_attempts = 2\nmemory_budget = \"3 GiB\"\n"
    );
    let world = World::with(on_redis.then(RedisServer::start), &settings);
    world.write(0..7, 50);
    let bad = world.lake.partition("cpu").join(CULPRIT);
    let bad_bytes = file_of_long_texts(ROWS.into());
    fs::write(&bad, &bad_bytes).unwrap();
    if on_redis {
        let redis = &mut world.redis();
        crate::support::world::register(redis, &world.lake, "cpu", CULPRIT, ROWS.into());
    }
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let mut deaths = 0;
    let once = format!(
        "ulimit -v 1000000; exec {} once --config {}",
        command().get_program().to_str().unwrap(),
        world.config
    );
    for _ in 0..12 {
        let mut shell = std::process::Command::new("sh");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GIGA")) {
            shell.env_remove(name);
        }
        let ended = shell.args(["-c", &once]).output().unwrap();
        if ended.status.signal() == Some(Signal::ABORT.as_raw()) {
            deaths += 1;
            if on_redis {
                let_leases_run_out(&world);
            }
            continue;
        }
        assert_eq!(
            ended.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&ended.stderr)
        );
        if !quarantine(&world).is_empty() {
            break;
        }
    }
    // Halved three times, then twice by itself.
    assert_eq!(deaths, 3 + 2);
    let listed = quarantine(&world);
    assert_eq!(listed.len(), 1, "{listed:?}");
    let listed = listed[0].to_string();
    assert!(
        listed.contains(CULPRIT) && listed.contains("the process ended each of the 2 times"),
        "{listed}"
    );
    assert_eq!(fs::read(&bad).unwrap(), bad_bytes);
    let indexed = world.indexed();
    assert!(indexed.contains(CULPRIT), "{indexed:?}");
    assert!(
        indexed
            .iter()
            .filter(|name| name.ends_with(".1.parquet"))
            .count()
            == 1,
        "the others were not merged: {indexed:?}"
    );
}

/// What the dead worker claimed is free again, as after its lease.
fn let_leases_run_out(world: &World) {
    let redis = &mut world.redis();
    for key in world.keys("merge:*:processing") {
        let items: Vec<String> = redis.lrange(&key, 0, -1).unwrap();
        for (place, text) in items.iter().enumerate() {
            let item: Value = serde_json::from_str(text).unwrap();
            let due = item["time_s"].to_string();
            let text = text.replace(&format!("\"time_s\":{due}"), "\"time_s\":1");
            let place = isize::try_from(place).unwrap();
            let _: () = redis.lset(&key, place, text).unwrap();
        }
    }
}

#[test]
fn a_file_that_ends_the_process_is_found_by_halves_on_a_folder() {
    culprit(false);
}

#[test]
fn a_file_that_ends_the_process_is_found_by_halves_on_redis() {
    culprit(true);
}
