//! `gigamerge verify` on real damage of each kind: made, named, mended, and gone; and no false
//! alarm beside a daemon and writers at work.

use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use gigamerge::{
    catalog::{Catalog, ConnectOptions, LayerRule, connect},
    merge::{self, Compression, MergeOptions, SortColumn},
    model::{DataPath, IndexEntry, LayerName, TableRef, WriterId},
};
use parquet::{
    arrow::ArrowWriter,
    file::{metadata::SortingColumn, properties::WriterProperties},
};
use redis::{Commands, Connection};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    lake::{HOUR_START_NS, Lake, PARTITION},
    program::{Program, config_file, run},
    redis_server::RedisServer,
};

const FILES: &str = "files:db:cpu:date=2024-01-15";
const IDLE: &str = "merge:db:cpu:1:date=2024-01-15/hour=14:hot::idle";
const PROCESSING: &str = "merge:db:cpu:1:date=2024-01-15/hour=14:hot::processing";
const FAILED: &str = "merge:db:cpu:1:date=2024-01-15/hour=14:hot::failed";
const DROPS: &str = "drop:db:cpu:hot::idle";

fn options() -> MergeOptions {
    MergeOptions {
        order_by: vec![SortColumn {
            name: "__timestamp".to_owned(),
            descending: false,
            nulls_first: false,
        }],
        compression: Compression::Snappy,
        column_compression: Default::default(),
        bloom_filter_columns: Vec::new(),
        dedup: None,
        row_group_rows: 1000,
        memory_budget_bytes: 64 << 20,
        thread_count: 1,
        bounds_of: vec!["__timestamp".to_owned()],
    }
}

/// The entry that a truthful writer registers.
fn truth(lake: &Lake, name: &str) -> IndexEntry {
    let summary = merge::summarize(&lake.partition("cpu").join(name), &options()).unwrap();
    let time = summary.bounds.first().unwrap();
    IndexEntry {
        layer: LayerName::parse("hot").unwrap(),
        table: TableRef::new("db", "cpu").unwrap(),
        path: DataPath::parse(&format!("{PARTITION}/{name}")).unwrap(),
        size_bytes: summary.size_bytes,
        row_count: summary.row_count,
        chunk_time_ns: HOUR_START_NS,
        min_time_ns: time.min.as_i64().unwrap(),
        max_time_ns: time.max.as_i64().unwrap(),
        min: serde_json::Map::new(),
        max: serde_json::Map::new(),
        writer: WriterId::default(),
        extra: serde_json::Map::new(),
    }
}

async fn catalog(server: &RedisServer, levels_s: u64) -> Arc<dyn Catalog> {
    let mut options = ConnectOptions::default();
    options.policy.levels.truncate(2);
    for level in &mut options.policy.levels {
        level.timeout = Duration::from_secs(levels_s);
    }
    let layer = |name: &str| LayerRule {
        name: LayerName::parse(name).unwrap(),
        kind: "fs".to_owned(),
        url: String::new(),
        ttl: None,
        next: None,
    };
    options.policy.layers = vec![layer("hot"), layer("cold")];
    connect(&server.url(), options).await.unwrap()
}

/// A lake of six registered files, in order.
struct Case {
    folder: tempfile::TempDir,
    lake: Lake,
    names: Vec<String>,
    redis: Option<(RedisServer, Connection)>,
    config: String,
}

const LEVELS: &str = "[merge]\nlevels = [\n{ iteration = 1, timeout = \"1h\", max_size = \"100 MiB\" },\n\
     { iteration = 2, timeout = \"1h\", max_size = \"400 MiB\" },\n]\n";

impl Case {
    async fn on_redis() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(&folder.path().join("lake"));
        let names: Vec<String> = (0..6)
            .map(|seed| lake.drop_file("cpu", seed, 200))
            .collect();
        fs::create_dir(folder.path().join("cold")).unwrap();
        let server = RedisServer::start();
        let entries: Vec<IndexEntry> = names.iter().map(|name| truth(&lake, name)).collect();
        let catalog = catalog(&server, 3600).await;
        catalog.batch(&entries, &[]).await.unwrap();
        let text = format!(
            "[catalog]\ntype = \"redis\"\nurl = {:?}\n[[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = {:?}\n\
             [[layers]]\nname = \"cold\"\ntype = \"fs\"\nurl = {:?}\n{LEVELS}",
            server.url(),
            lake.root,
            folder.path().join("cold")
        );
        let config = config_file(folder.path(), &text);
        let connection = server.connection();
        Self {
            folder,
            lake,
            names,
            redis: Some((server, connection)),
            config,
        }
    }

    fn embedded() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(&folder.path().join("lake"));
        let names: Vec<String> = (0..6)
            .map(|seed| lake.drop_file("cpu", seed, 200))
            .collect();
        let text = format!(
            "data_dir = {:?}\n{LEVELS}[worker]\nlease = \"5s\"\n",
            lake.root
        );
        let config = config_file(folder.path(), &text);
        let case = Self {
            folder,
            lake,
            names,
            redis: None,
            config,
        };
        case.once();
        case
    }

    fn once(&self) {
        let (code, _, log) = run(&["once", "--config", &self.config]);
        assert_eq!(code, 0, "{log}");
    }

    fn redis(&mut self) -> &mut Connection {
        &mut self.redis.as_mut().unwrap().1
    }

    fn path(&self, place: usize) -> String {
        format!("{PARTITION}/{}", self.names[place])
    }

    fn file(&self, place: usize) -> PathBuf {
        self.lake.partition("cpu").join(&self.names[place])
    }

    fn metadata(&self) -> Value {
        let file = self.lake.partition("cpu").join("metadata.json");
        serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
    }

    fn set_metadata(&self, metadata: &Value) {
        let file = self.lake.partition("cpu").join("metadata.json");
        fs::write(file, metadata.to_string()).unwrap();
    }

    /// Exit code and the lines.
    fn verify(&self, arguments: &[&str]) -> (i32, Vec<Value>) {
        let mut all = vec!["verify", "--json", "--config", &self.config];
        if !arguments.contains(&"--min-age") {
            all.extend(["--min-age", "0s"]);
        }
        all.extend(arguments);
        let (code, lines, log) = run(&all);
        assert!(code == 0 || log.contains("differences, see above"), "{log}");
        let parse = |line: &str| serde_json::from_str(line).unwrap();
        (code, lines.lines().map(parse).collect())
    }

    fn kinds(&self, arguments: &[&str]) -> BTreeSet<String> {
        let (code, lines) = self.verify(arguments);
        assert_eq!(code == 0, lines.is_empty(), "{lines:?}");
        lines
            .iter()
            .map(|line| line["kind"].as_str().unwrap().to_owned())
            .collect()
    }

    /// The damage is named, a dry run changes nothing, a repair mends it.
    fn is_mended(&self, kind: &str, arguments: &[&str]) {
        let found = self.kinds(arguments);
        assert!(found.contains(kind), "{kind} was not found: {found:?}");
        let mut dry = vec!["--repair"];
        dry.extend(arguments);
        let (code, lines) = self.verify(&dry);
        assert_eq!(code, 1);
        assert!(
            lines
                .iter()
                .any(|line| line["kind"] == kind && line["outcome"] == "would_repair"),
            "{lines:?}"
        );
        assert_eq!(self.kinds(arguments), found, "a dry run changed something");
        dry.push("--apply");
        let (code, lines) = self.verify(&dry);
        assert_eq!(code, 0, "{lines:?}");
        assert!(
            lines.iter().all(|line| line["outcome"] == "repaired"),
            "{lines:?}"
        );
        let left = self.kinds(&[]);
        assert!(left.is_empty(), "{kind} is left: {left:?}");
    }

    /// The damage is named, and left to people.
    fn is_only_named(&self, kind: &str, arguments: &[&str]) {
        let (code, lines) = self.verify(arguments);
        assert_eq!(code, 1);
        let names = |line: &Value| line["kind"] == kind;
        assert!(lines.iter().any(names), "{kind} was not found: {lines:?}");
        let mut act = vec!["--repair", "--apply"];
        act.extend(arguments);
        let (code, lines) = self.verify(&act);
        assert_eq!(code, 1);
        assert!(
            lines
                .iter()
                .any(|line| names(line) && line["outcome"] == "found"),
            "{lines:?}"
        );
    }
}

fn hset(redis: &mut Connection, key: &str, field: &str, value: &str) {
    let _: () = redis.hset(key, field, value).unwrap();
}

fn push(redis: &mut Connection, list: &str, item: &Value) {
    let text = item
        .as_str()
        .map_or_else(|| item.to_string(), str::to_owned);
    let _: () = redis.rpush(list, text).unwrap();
}

fn drop_item(path: &str) -> Value {
    json!({"id": "d", "writer_id": "", "layer": "hot", "path": path, "database": "db",
        "table": "cpu", "time_s": 4_000_000_000_u64})
}

#[tokio::test]
async fn a_lake_in_order_is_clean_on_every_level_of_looking() {
    let case = Case::on_redis().await;
    assert!(case.kinds(&[]).is_empty());
    assert!(case.kinds(&["--deep"]).is_empty());
    assert!(case.kinds(&["db", "cpu"]).is_empty());
    let (code, text, _) = run(&["verify", "--config", &case.config]);
    assert_eq!(code, 0);
    assert!(text.contains("entries: 6   files: 6"), "{text}");
    let (code, _, log) = run(&["verify", "nowhere", "--config", &case.config]);
    assert_eq!(code, 1);
    assert!(log.contains("knows nowhere"), "{log}");
    let case = Case::embedded();
    assert!(case.kinds(&["--deep"]).is_empty());
}

#[tokio::test]
async fn damage_of_the_index_is_named_and_mended() {
    let mut case = Case::on_redis().await;
    let path = case.path(1);
    fs::remove_file(case.file(1)).unwrap();
    case.is_only_named("missing_file", &[]);
    let taken: String = case.redis().hget(FILES, &path).unwrap();
    // Its plan names it still, as after any delete; it is not due for an hour.
    case.is_mended("missing_file", &["--forget-missing"]);
    let kept: Vec<String> = case.redis().lrange("mended:db:cpu", 0, -1).unwrap();
    let kept: Value = serde_json::from_str(&kept[0]).unwrap();
    assert_eq!(kept["entry"], taken, "what was forgotten is not kept aside");

    let mut case = Case::on_redis().await;
    let path = case.path(1);
    let text: String = case.redis().hget(FILES, &path).unwrap();
    let mut entry: Value = serde_json::from_str(&text).unwrap();
    for (field, value) in [
        ("size_bytes", json!(1)),
        ("row_count", json!(999)),
        ("str_min_time", json!("5")),
        ("str_max_time", json!("6")),
    ] {
        let right = std::mem::replace(&mut entry[field], value);
        hset(case.redis(), FILES, &path, &entry.to_string());
        let (_, lines) = case.verify(&[]);
        let name = field
            .trim_start_matches("str_")
            .trim_start_matches("max_")
            .trim_start_matches("min_");
        assert!(
            lines[0]["detail"].as_str().unwrap().contains(name),
            "{field}: {lines:?}"
        );
        entry[field] = right;
    }
    entry["row_count"] = json!(999);
    entry["a_later_field"] = json!([1, 2]);
    hset(case.redis(), FILES, &path, &entry.to_string());
    case.is_mended("entry_differs", &[]);
    let text: String = case.redis().hget(FILES, &path).unwrap();
    let mended: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&mended["row_count"], &mended["a_later_field"]),
        (&json!(200), &json!([1, 2]))
    );

    for with_file in [true, false] {
        let mut case = Case::on_redis().await;
        let path = case.path(2);
        if !with_file {
            fs::remove_file(case.file(2)).unwrap();
        }
        hset(case.redis(), FILES, &path, "{\"path\": 7}");
        case.is_mended("malformed_entry", &[]);
        let is_there: bool = case.redis().hexists(FILES, &path).unwrap();
        assert_eq!(is_there, with_file);
    }

    let mut case = Case::on_redis().await;
    let _: () = case.redis().hincr("folders:db:cpu", PARTITION, 3).unwrap();
    case.is_mended("folder_count", &[]);
    let _: () = case
        .redis()
        .hset("folders:db:cpu", "date=2024-01-15/hour=3", -2)
        .unwrap();
    case.is_mended("folder_count", &[]);

    let mut case = Case::on_redis().await;
    let path = case.path(0);
    let text: String = case.redis().hget(FILES, &path).unwrap();
    hset(
        case.redis(),
        FILES,
        &path,
        &text.replace("\"hot\"", "\"gone\""),
    );
    case.is_only_named("unknown_layer", &[]);

    let mut case = Case::on_redis().await;
    let _: () = case.redis().set("drop:db:cpu:cold::idle", "text").unwrap();
    let _: () = case.redis().rpush("merge:db", "x").unwrap();
    case.is_only_named("strange_key", &[]);
}

#[tokio::test]
async fn damage_of_files_is_named_and_bytes_go_only_through_the_drop_queue() {
    let case = Case::on_redis().await;
    let bytes = fs::read(case.file(1)).unwrap();
    fs::write(case.file(1), vec![7; bytes.len()]).unwrap();
    case.is_only_named("unreadable_file", &[]);

    let case = Case::on_redis().await;
    let outside = case.folder.path().join("outside.parquet");
    fs::rename(case.file(1), &outside).unwrap();
    symlink(&outside, case.file(1)).unwrap();
    case.is_only_named("outside_table", &[]);

    let case = Case::on_redis().await;
    let copy = case.lake.partition("cpu").join("left-over.1.parquet");
    fs::copy(case.file(0), &copy).unwrap();
    case.is_only_named("unknown_file", &[]);
    // An import that was begun will go on with it.
    let imports = case.lake.root.join("db/cpu/imports");
    fs::create_dir(&imports).unwrap();
    let line = json!({"state": "begun", "path": format!("{PARTITION}/left-over.1.parquet")});
    fs::write(imports.join("ledger.jsonl"), format!("{line}\n")).unwrap();
    assert!(case.kinds(&[]).is_empty());

    let mut case = Case::on_redis().await;
    let copy = case.lake.partition("cpu").join("left-over.2.parquet");
    fs::copy(case.file(0), &copy).unwrap();
    assert!(
        case.verify(&["--min-age", "10min"]).1.is_empty(),
        "what is young was judged"
    );
    case.is_mended("unknown_file", &[]);
    assert!(copy.exists(), "a repair deleted a file");
    let drops: Vec<String> = case.redis().lrange(DROPS, 0, -1).unwrap();
    let drop: Value = serde_json::from_str(&drops[0]).unwrap();
    assert_eq!(drop["path"], format!("{PARTITION}/left-over.2.parquet"));

    let mut case = Case::on_redis().await;
    let copy = case.lake.partition("cpu").join("dead-1.2.parquet");
    fs::copy(case.file(0), &copy).unwrap();
    let path = format!("{PARTITION}/dead-1.2.parquet");
    let announced = json!({"path": path, "layer": "hot", "at_s": 5}).to_string();
    hset(
        case.redis(),
        "announced:db:cpu",
        "1:x:hot::id:1",
        &announced,
    );
    case.is_mended("dead_output", &[]);
    fs::remove_file(copy).unwrap();
    hset(
        case.redis(),
        "announced:db:cpu",
        "1:x:hot::id:1",
        &announced,
    );
    case.is_mended("stale_announcement", &[]);

    let mut case = Case::on_redis().await;
    let cold = case.folder.path().join("cold/db/cpu/data").join(PARTITION);
    fs::create_dir_all(&cold).unwrap();
    fs::copy(case.file(0), cold.join(&case.names[0])).unwrap();
    case.is_mended("second_copy", &[]);
    let drops: Vec<String> = case
        .redis()
        .lrange("drop:db:cpu:cold::idle", 0, -1)
        .unwrap();
    assert_eq!(drops.len(), 1);

    let case = Case::on_redis().await;
    let scratch = case.lake.root.join("db/cpu/tmp/gigamerge-dead");
    fs::create_dir_all(&scratch).unwrap();
    fs::write(scratch.join("lock"), "").unwrap();
    case.is_mended("scratch", &[]);
    assert!(!scratch.exists());
}

#[tokio::test]
async fn damage_of_the_queues_is_named_and_mended() {
    let ghost = format!("{PARTITION}/ghost.1.parquet");

    let mut case = Case::on_redis().await;
    let _: () = case.redis().del(IDLE).unwrap();
    case.is_mended("unplanned_file", &["--max-share", "0"]);
    let plans: Vec<String> = case.redis().lrange(IDLE, 0, -1).unwrap();
    assert_eq!(plans.len(), 1);
    let plan: Value = serde_json::from_str(&plans[0]).unwrap();
    assert_eq!(plan["paths"].as_array().unwrap().len(), 6);

    let mut case = Case::on_redis().await;
    let (path, other) = (case.path(2), case.path(3));
    let twice =
        json!({"id": "again", "time_s": 4_000_000_000_u64, "size": 1, "paths": [path, other]});
    push(case.redis(), IDLE, &twice);
    case.is_mended("planned_twice", &[]);
    assert_eq!(case.redis().llen::<_, u64>(IDLE).unwrap(), 1);

    let mut case = Case::on_redis().await;
    push(
        case.redis(),
        IDLE,
        &json!({"id": "g", "time_s": 4_000_000_000_u64, "size": 1, "paths": [ghost]}),
    );
    assert!(
        case.kinds(&[]).is_empty(),
        "a plan that is not due may name what was deleted"
    );
    push(
        case.redis(),
        IDLE,
        &json!({"id": "h", "time_s": 5, "size": 1, "paths": [ghost]}),
    );
    case.is_mended("plan_of_unknown_file", &[]);

    let mut case = Case::on_redis().await;
    push(case.redis(), IDLE, &json!("not json"));
    push(
        case.redis(),
        DROPS,
        &json!({"id": "x", "path": "../up.1.parquet", "time_s": 1}),
    );
    case.is_mended("broken_item", &[]);
    assert_eq!(case.redis().llen::<_, u64>(FAILED).unwrap(), 1);
    assert_eq!(
        case.redis()
            .llen::<_, u64>("drop:db:cpu:hot::failed")
            .unwrap(),
        1
    );

    let mut case = Case::on_redis().await;
    let plan: String = case.redis().lpop(IDLE, None).unwrap();
    let mut plan: Value = serde_json::from_str(&plan).unwrap();
    plan["time_s"] = json!(5);
    push(case.redis(), PROCESSING, &plan);
    case.is_mended("stale_claim", &[]);
    assert_eq!(case.redis().llen::<_, u64>(IDLE).unwrap(), 1);

    let mut case = Case::on_redis().await;
    let plan: String = case.redis().lpop(IDLE, None).unwrap();
    push(
        case.redis(),
        FAILED,
        &json!({"reason": "types", "item": plan, "at_s": 5}),
    );
    case.is_only_named("given_up", &[]);

    let mut case = Case::on_redis().await;
    let item = drop_item(&case.path(0));
    push(case.redis(), DROPS, &item);
    case.is_mended("drop_of_indexed_file", &[]);
    assert!(case.file(0).exists());

    let mut case = Case::on_redis().await;
    let item = json!({"id": "m", "writer_id": "", "database": "db", "table": "cpu", "path_from": ghost,
        "layer_from": "hot", "path_to": format!("{PARTITION}/to.1.parquet"), "layer_to": "cold", "time_s": 5});
    push(case.redis(), "move:db:cpu:hot::idle", &item);
    case.is_mended("move_of_unknown_file", &[]);

    let mut case = Case::on_redis().await;
    let text = fs::read_to_string(&case.config).unwrap();
    fs::write(&case.config, format!("{text}[worker]\nwriters = [\"w\"]\n")).unwrap();
    let plan: String = case.redis().lpop(IDLE, None).unwrap();
    let mut plan: Value = serde_json::from_str(&plan).unwrap();
    plan["time_s"] = json!(5);
    push(case.redis(), IDLE, &plan);
    case.is_only_named("unserved_item", &[]);
}

/// Rows in this order, in two row groups, declared as sorted.
fn write_sorted(file: &Path, times: Vec<i64>) {
    let times: ArrayRef = Arc::new(Int64Array::from(times));
    let batch = RecordBatch::try_from_iter([("__timestamp", times)]).unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(100))
        .set_sorting_columns(Some(vec![SortingColumn {
            column_idx: 0,
            descending: false,
            nulls_first: false,
        }]))
        .build();
    let out = fs::File::create(file).unwrap();
    let mut writer = ArrowWriter::try_new(out, batch.schema(), Some(properties)).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

#[tokio::test]
async fn a_deep_look_sees_rows_that_are_not_what_their_footer_says() {
    let case = Case::on_redis().await;
    let catalog = catalog(&case.redis.as_ref().unwrap().0, 3600).await;
    let times: Vec<i64> = (0..200).map(|row| HOUR_START_NS + row).collect();
    let partition = case.lake.partition("cpu");
    let register = |name: &'static str| {
        let entry = truth(&case.lake, name);
        let catalog = Arc::clone(&catalog);
        async move { catalog.batch(&[entry], &[]).await.unwrap() }
    };

    write_sorted(&partition.join("sorted.1.parquet"), times.clone());
    register("sorted.1.parquet").await;
    assert!(case.kinds(&["--deep"]).is_empty());

    let mut unsorted = times.clone();
    unsorted.swap(120, 130);
    write_sorted(&partition.join("order.1.parquet"), unsorted);
    register("order.1.parquet").await;
    assert!(case.kinds(&[]).is_empty(), "a footer cannot show this");
    let (_, lines) = case.verify(&["--deep"]);
    assert_eq!(lines[0]["kind"], "wrong_order");
    assert_eq!(lines[0]["invariant"], "ORDER-KEPT");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(
        lines[0]["detail"].as_str().unwrap().contains("row 121 "),
        "{lines:?}"
    );

    // The smallest time of the first row group, in its statistics only.
    let file = partition.join("statistics.1.parquet");
    write_sorted(&file, times.clone());
    let mut bytes = fs::read(&file).unwrap();
    let (old, new) = (times[0].to_le_bytes(), times[50].to_le_bytes());
    let length = u32::from_le_bytes(bytes[bytes.len() - 8..][..4].try_into().unwrap());
    let footer = bytes.len() - 8 - usize::try_from(length).unwrap();
    let mut changed = 0;
    for place in footer..bytes.len() - 8 {
        if bytes[place..].starts_with(&old) {
            bytes[place..place + 8].copy_from_slice(&new);
            changed += 1;
        }
    }
    assert!(changed > 0);
    fs::write(&file, &bytes).unwrap();
    register("statistics.1.parquet").await;
    let found = case.kinds(&["--deep"]);
    assert!(found.contains("wrong_statistics"), "{found:?}");

    let file = partition.join("rows.1.parquet");
    write_sorted(&file, times);
    let mut bytes = fs::read(&file).unwrap();
    bytes[4..300].fill(0xff);
    fs::write(&file, &bytes).unwrap();
    register("rows.1.parquet").await;
    let found = case.kinds(&["--deep"]);
    assert!(found.contains("wrong_rows"), "{found:?}");
    case.is_only_named("wrong_rows", &["--deep"]);
}

#[tokio::test]
async fn more_damage_than_the_share_allows_is_left_alone() {
    let mut case = Case::on_redis().await;
    for place in 0..3 {
        fs::remove_file(case.file(place)).unwrap();
    }
    let act = ["--repair", "--apply", "--forget-missing"];
    let (code, lines) = case.verify(&act);
    assert_eq!((code, lines.len()), (1, 3));
    assert!(
        lines.iter().all(|line| line["outcome"] == "not_repaired"
            && line["repair"].as_str().unwrap().contains("--max-share")),
        "{lines:?}"
    );
    assert_eq!(case.redis().hlen::<_, u64>(FILES).unwrap(), 6);
    let mut more = act.to_vec();
    more.extend(["--max-share", "50%"]);
    assert_eq!(case.verify(&more).0, 0);
    assert_eq!(case.redis().hlen::<_, u64>(FILES).unwrap(), 3);
    let counted: Vec<(String, u64)> = case.redis().hgetall("folders:db:cpu").unwrap();
    assert_eq!(counted, [(PARTITION.to_owned(), 3)]);
}

#[test]
fn damage_of_an_embedded_catalog_is_named_and_mended() {
    let case = Case::embedded();
    fs::remove_file(case.file(1)).unwrap();
    case.is_only_named("missing_file", &[]);
    case.is_mended("missing_file", &["--forget-missing"]);
    assert_eq!(case.metadata()["files"].as_array().unwrap().len(), 5);
    assert_eq!(case.metadata()["mended"].as_array().unwrap().len(), 1);

    let case = Case::embedded();
    let mut metadata = case.metadata();
    metadata["files"][2]["row_count"] = json!(7);
    metadata["row_count"] = json!(1007);
    case.set_metadata(&metadata);
    case.is_mended("entry_differs", &[]);
    assert_eq!(case.metadata()["row_count"], 1200);

    let mut metadata = case.metadata();
    metadata["files"][2]["size_bytes"] = json!("large");
    case.set_metadata(&metadata);
    case.is_mended("malformed_entry", &[]);
    assert_eq!(case.metadata()["files"].as_array().unwrap().len(), 6);

    let mut metadata = case.metadata();
    metadata["max_time"] = json!(5);
    case.set_metadata(&metadata);
    case.is_mended("partition_sums", &[]);
    let mut metadata = case.metadata();
    let again = metadata["files"][0].clone();
    metadata["files"].as_array_mut().unwrap().push(again);
    case.set_metadata(&metadata);
    case.is_mended("partition_sums", &[]);
    assert_eq!(case.metadata()["files"].as_array().unwrap().len(), 6);

    let mut metadata = case.metadata();
    metadata["drop_queue"] = json!([drop_item(&case.path(0))]);
    case.set_metadata(&metadata);
    case.is_mended("drop_of_indexed_file", &[]);
    let mut metadata = case.metadata();
    metadata["drop_queue"] = json!([{"id": "x", "path": "../up.1.parquet", "time_s": 1}]);
    case.set_metadata(&metadata);
    case.is_mended("broken_item", &[]);
    assert_eq!(case.metadata()["failed"].as_array().unwrap().len(), 1);

    let copy = case.lake.partition("cpu").join("new.1.parquet");
    fs::copy(case.file(0), copy).unwrap();
    case.is_only_named("unknown_file", &[]);
    case.once();
    assert!(case.kinds(&[]).is_empty());

    let copy = case.lake.partition("cpu").join("dead-1.2.parquet");
    fs::copy(case.file(0), &copy).unwrap();
    let mut metadata = case.metadata();
    metadata["pending"] = json!([format!("{PARTITION}/dead-1.2.parquet")]);
    case.set_metadata(&metadata);
    assert!(case.kinds(&[]).is_empty(), "a merge may be about to commit");
    std::thread::sleep(Duration::from_millis(6200));
    case.is_mended("dead_output", &[]);
    assert!(copy.exists());

    case.set_metadata(&json!("not an object"));
    case.is_only_named("strange_key", &[]);
}

#[test]
fn an_embedded_catalog_is_not_mended_under_a_running_daemon() {
    let case = Case::embedded();
    let mut program = Program::start(&["run", "--config", &case.config]);
    case.lake.drop_file("cpu", 99, 10);
    program.wait_until("the daemon to work", |_| {
        case.metadata()["files"].as_array().unwrap().len() == 7
    });
    let (code, _, log) = run(&["verify", "--repair", "--apply", "--config", &case.config]);
    assert_eq!(code, 1);
    assert!(
        log.contains("another gigamerge works on this folder"),
        "{log}"
    );
    assert!(case.kinds(&["--repair"]).is_empty());
}

/// Looks again and again until `rounds` looks are done; every look must be clean.
fn look_often(config: &str, rounds: usize) {
    for round in 0..rounds {
        let arguments = ["verify", "--json", "--min-age", "8s", "--config", config];
        let deep = [&arguments[..], &["--deep"]].concat();
        let (code, lines, log) = run(if round % 2 == 0 { &arguments } else { &deep });
        assert_eq!((code, lines.as_str()), (0, ""), "round {round}: {log}");
        std::thread::sleep(Duration::from_millis(150));
    }
}

/// `GIGAMERGE_TEST_VERIFY_ROUNDS` makes this longer.
fn rounds() -> usize {
    std::env::var("GIGAMERGE_TEST_VERIFY_ROUNDS")
        .ok()
        .and_then(|rounds| rounds.parse().ok())
        .unwrap_or(20)
}

#[test]
fn beside_a_daemon_and_writers_on_redis_nothing_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    fs::create_dir_all(&lake.root).unwrap();
    let server = RedisServer::start();
    let text = format!(
        "[catalog]\ntype = \"redis\"\nurl = {:?}\n[[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = {:?}\n\
         [merge]\nlevels = [\n{{ iteration = 1, timeout = \"1s\", max_size = \"20 KiB\" }},\n\
         {{ iteration = 2, timeout = \"2s\", max_size = \"60 KiB\" }},\n]\n\
         [drops]\ngrace = \"1s\"\ninterval = \"1s\"\n[worker]\nlease = \"5s\"\n",
        server.url(),
        lake.root
    );
    let config = config_file(folder.path(), &text);
    let mut daemon = Program::start(&["run", "--config", &config]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            let (lake, server, is_over) = (&lake, &server, &is_over);
            scope.spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                let catalog = runtime.block_on(catalog(server, 1));
                for seed in (writer..).step_by(2) {
                    if is_over.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = lake.drop_file("cpu", seed, 50);
                    let entry = truth(lake, &name);
                    runtime.block_on(catalog.batch(&[entry], &[])).unwrap();
                    std::thread::sleep(Duration::from_millis(40));
                }
            });
        }
        let looked = std::panic::catch_unwind(|| look_often(&config, rounds()));
        is_over.store(true, Ordering::Relaxed);
        if let Err(error) = looked {
            std::panic::resume_unwind(error);
        }
    });
    daemon.wait_until("merges", |daemon| daemon.log().contains("merged"));
    daemon.signal(Signal::TERM);
    daemon.wait_for_exit(Duration::from_secs(20));
}

#[test]
fn beside_a_daemon_and_writers_on_a_folder_nothing_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    fs::create_dir_all(&lake.root).unwrap();
    let text = format!(
        "data_dir = {:?}\n[merge]\nlevels = [\n{{ iteration = 1, timeout = \"1s\", max_size = \"20 KiB\" }},\n\
         {{ iteration = 2, timeout = \"2s\", max_size = \"60 KiB\" }},\n]\n\
         [drops]\ngrace = \"1s\"\ninterval = \"1s\"\n[worker]\nlease = \"5s\"\n",
        lake.root
    );
    let config = config_file(folder.path(), &text);
    let mut daemon = Program::start(&["run", "--config", &config]);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (lake, is_over) = (&lake, &is_over);
        scope.spawn(move || {
            for seed in 0.. {
                if is_over.load(Ordering::Relaxed) {
                    break;
                }
                lake.drop_file("cpu", seed, 50);
                std::thread::sleep(Duration::from_millis(40));
            }
        });
        let looked = std::panic::catch_unwind(|| look_often(&config, rounds()));
        is_over.store(true, Ordering::Relaxed);
        if let Err(error) = looked {
            std::panic::resume_unwind(error);
        }
    });
    daemon.wait_until("merges", |daemon| daemon.log().contains("merged"));
}

#[tokio::test]
async fn what_the_original_would_never_finish_is_finished_by_the_daemon() {
    let mut case = Case::on_redis().await;
    let text = fs::read_to_string(&case.config).unwrap();
    let text = text.replace("timeout = \"1h\"", "timeout = \"1s\"");
    fs::write(&case.config, text).unwrap();
    // A writer that is gone left a claimed plan, and another one a delete.
    let plan: String = case.redis().lpop(IDLE, None).unwrap();
    let mut plan: Value = serde_json::from_str(&plan).unwrap();
    plan["time_s"] = json!(5);
    let gone = "merge:db:cpu:1:date=2024-01-15/hour=14:hot:gone-writer";
    push(case.redis(), &format!("{gone}:processing"), &plan);
    for path in plan["paths"].as_array().unwrap() {
        let path = path.as_str().unwrap();
        let entry: String = case.redis().hget(FILES, path).unwrap();
        let entry = entry.replace("\"writer_id\":\"\"", "\"writer_id\":\"gone-writer\"");
        hset(case.redis(), FILES, path, &entry);
    }
    let old = case.lake.partition("cpu").join("old.1.parquet");
    fs::copy(case.file(0), &old).unwrap();
    let mut drop = drop_item(&format!("{PARTITION}/old.1.parquet"));
    drop["time_s"] = json!(5);
    push(
        case.redis(),
        "drop:db:cpu:hot:another-gone:processing",
        &drop,
    );
    assert!(case.kinds(&[]).contains("stale_claim"));
    // The plan of iteration 2 that follows has one file: the original passes it over for ever.
    let mut daemon = Program::start(&["run", "--config", &case.config]);
    let partition = case.lake.partition("cpu");
    daemon.wait_until("one final file", |_| {
        case.lake
            .files("cpu")
            .iter()
            .any(|name| name.ends_with(".3.parquet"))
            && !old.exists()
    });
    daemon.signal(Signal::TERM);
    daemon.wait_for_exit(Duration::from_secs(20));
    let entries: Vec<(String, String)> = case.redis().hgetall(FILES).unwrap();
    assert_eq!(entries.len(), 1, "{entries:?}");
    let entry: Value = serde_json::from_str(&entries[0].1).unwrap();
    assert_eq!(
        (&entry["row_count"], &entry["writer_id"]),
        (&json!(1200), &json!("gone-writer"))
    );
    assert!(
        partition
            .parent()
            .unwrap()
            .parent()
            .unwrap()
            .join(&entries[0].0)
            .exists()
    );
    assert!(case.kinds(&["--deep"]).is_empty());
}
