//! A plan of many files is merged in pieces, so that no commit keeps Redis from others for long.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::Duration,
};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use gigamerge::{
    catalog::{Catalog, redis::RedisCatalog},
    model::{ClaimedMerge, DataPath, Iteration},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use redis::Commands;
use serde_json::{Value, json};

use crate::{
    catalog_suite::policy,
    support::{
        lake::{HOUR_START_NS, PARTITION, write_file},
        program::run,
        redis_server::RedisServer,
        world::{WRITERS_LEVELS, World},
    },
};

/// Files that one commit takes.
const COMMIT_FILES_MAX: usize = 2000;
const FILES: usize = 10_000;

const SETTINGS: &str = "[merge]\nlevels = [\n\
    { iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" },\n\
    { iteration = 2, timeout = \"1h\", max_size = \"400 MiB\" },\n]\n\
    [drops]\ngrace = \"1h\"\n";

/// So many files of one row each, registered as writers do.
fn fill(world: &World) {
    let folder = world.lake.partition("cpu");
    fs::create_dir_all(&folder).unwrap();
    let mut entries = Vec::new();
    for number in 0..FILES {
        let name = format!("00000000-0000-4000-8000-{number:012}.1.parquet");
        let time_ns = HOUR_START_NS + i64::try_from(number).unwrap();
        let column: ArrayRef = Arc::new(Int64Array::from(vec![time_ns]));
        let rows = RecordBatch::try_from_iter([("__timestamp", column)]).unwrap();
        write_file(&folder.join(&name), &rows);
        let size = fs::metadata(folder.join(&name)).unwrap().len();
        let time = time_ns.to_string();
        entries.push(
            json!({
                "layer": "hot", "database": "db", "table": "cpu", "path": format!("{PARTITION}/{name}"),
                "size_bytes": size, "row_count": 1, "chunk_time": 0, "min": {}, "max": {}, "min_time": 0,
                "max_time": 0, "writer_id": "", "str_min_time": time, "str_max_time": time,
                "str_chunk_time": time, "cmd": "ADD",
            })
            .to_string(),
        );
    }
    let script = gigamerge::catalog::redis::scripts::all()
        .into_iter()
        .find(|script| script.name == "patch_index")
        .unwrap();
    for entries in entries.chunks(2000) {
        let _: i64 = redis::cmd("EVAL")
            .arg(script.text)
            .arg(2)
            .arg(WRITERS_LEVELS)
            .arg(r#"{"hot":{"url":"","name":"hot","type":"fs","ttl_sec":0,"layer_to":""}}"#)
            .arg(entries)
            .query(&mut world.redis())
            .unwrap();
    }
}

/// The sources of each commit, by its output.
fn commits(world: &World) -> BTreeMap<String, BTreeSet<String>> {
    let waiting: Vec<String> = world
        .redis()
        .lrange("drop:db:cpu:hot::idle", 0, -1)
        .unwrap();
    let mut commits: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for item in &waiting {
        let item: Value = serde_json::from_str(item).unwrap();
        let text = |name: &str| item[name].as_str().unwrap().to_owned();
        let sources = commits.entry(text("replaced_by")).or_default();
        assert!(sources.insert(text("path")), "{item} waits twice");
    }
    commits
}

fn indexed(world: &World) -> Vec<Value> {
    let entries: BTreeMap<String, String> = world
        .redis()
        .hgetall("files:db:cpu:date=2024-01-15")
        .unwrap();
    entries
        .values()
        .map(|text| serde_json::from_str(text).unwrap())
        .collect()
}

fn times(file: &Path) -> Vec<i64> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(file).unwrap());
    let batches = reader.unwrap().build().unwrap();
    batches
        .flat_map(|batch| {
            batch.unwrap()["__timestamp"]
                .as_primitive::<Int64Type>()
                .values()
                .to_vec()
        })
        .collect()
}

/// Merges the one plan of an iteration, which waits for hours, now.
fn merge_now(world: &World, iteration: u32) {
    let list = format!("merge:db:cpu:{iteration}:{PARTITION}:hot::idle");
    let plans: Vec<String> = world.redis().lrange(&list, 0, -1).unwrap();
    assert_eq!(plans.len(), 1);
    let mut plan: Value = serde_json::from_str(&plans[0]).unwrap();
    plan["time_s"] = json!(1);
    let _: () = world.redis().lset(&list, 0, plan.to_string()).unwrap();
    let (code, _, log) = run(&["once", "--config", &world.config]);
    assert_eq!(code, 0, "{log}");
}

#[test]
fn a_plan_of_ten_thousand_files_becomes_one_file_in_commits_of_two_thousand() {
    let world = World::with(Some(RedisServer::start()), SETTINGS);
    fill(&world);
    merge_now(&world, 1);
    let first = commits(&world);
    assert_eq!(first.len(), FILES / COMMIT_FILES_MAX);
    assert!(
        first
            .values()
            .all(|sources| sources.len() == COMMIT_FILES_MAX)
    );
    let sources: BTreeSet<&String> = first.values().flatten().collect();
    assert_eq!(sources.len(), FILES);

    // What is smaller than its level allows is merged on.
    merge_now(&world, 2);
    let second = commits(&world);
    assert_eq!(second.len(), first.len() + 1);
    let entries = indexed(&world);
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0]["row_count"], FILES);
    let path = entries[0]["path"].as_str().unwrap();
    assert_eq!(second[path], first.keys().cloned().collect());
    let rows = times(
        &world
            .lake
            .partition("cpu")
            .join(path.rsplit('/').next().unwrap()),
    );
    let expected: Vec<i64> = (0..i64::try_from(FILES).unwrap())
        .map(|number| HOUR_START_NS + number)
        .collect();
    assert_eq!(rows, expected);

    let plans: Vec<String> = world.redis().keys("merge:*").unwrap();
    assert!(plans.is_empty(), "{plans:?}");
    let (code, out, log) = run(&["verify", "--config", &world.config]);
    assert_eq!(code, 0, "{out}{log}");
}

/// Claims everything that is due of a plan of 5,000 files with these further fields.
async fn claims_of(more: Value) -> Vec<ClaimedMerge> {
    let server = RedisServer::start();
    let paths: Vec<String> = (0..5000).map(|n| format!("a/b/{n}.1.parquet")).collect();
    let mut plan = json!({"id": "long", "time_s": 1, "size": 5000, "paths": paths});
    plan.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    let _: () = server
        .connection()
        .rpush("merge:d:t:1:a/b:l1::idle", plan.to_string())
        .unwrap();
    let catalog = RedisCatalog::connect(&server.config(), Arc::new(policy())).unwrap();
    let mut claimed = Vec::new();
    while let Some(plan) = catalog.due_merges(Iteration(1), 10).await.unwrap().first() {
        let claim = catalog
            .claim_merge(&plan.queue, Duration::from_mins(1))
            .await;
        claimed.extend(claim.unwrap());
    }
    let planned: BTreeSet<&DataPath> = claimed.iter().flat_map(|claim| &claim.plan.paths).collect();
    assert_eq!(planned.len(), 5000);
    let count: usize = claimed.iter().map(|claim| claim.plan.paths.len()).sum();
    assert_eq!(count, 5000);
    assert!(
        claimed
            .iter()
            .all(|claim| claim.plan.paths.len() <= COMMIT_FILES_MAX)
    );
    assert!(
        claimed
            .iter()
            .all(|claim| claim.plan.attempts == 1 && claim.plan.deaths() == 0)
    );
    claimed
}

#[tokio::test]
async fn pieces_of_a_plan_that_nobody_died_of_are_no_suspects() {
    for more in [
        json!({}),
        json!({"attempts": 3, "forgiven": 2, "failed": 1}),
    ] {
        let claimed = claims_of(more).await;
        assert_eq!(claimed.len(), 3);
        assert!(claimed.iter().all(|claim| !claim.plan.runs_alone()));
    }
}

#[tokio::test]
async fn pieces_of_a_suspect_and_of_a_plan_that_died_run_alone() {
    for more in [
        json!({"suspect": true}),
        json!({"attempts": 1}),
        json!({"attempts": 3, "forgiven": 1, "failed": 1}),
    ] {
        let claimed = claims_of(more).await;
        assert_eq!(claimed.len(), 3);
        assert!(claimed.iter().all(|claim| claim.plan.is_suspect));
    }
}
