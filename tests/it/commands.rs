//! The commands that look at a catalog or fill it, as a user runs them, on both catalogs.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{
    lake::{HOUR_START_NS, Lake, PARTITION, assert_same_rows, batch, write_file},
    program::{Program, config_file, run},
    redis_server::RedisServer,
};

/// A lake with a configuration for one of the catalogs.
struct Place {
    folder: TempDir,
    lake: Lake,
    server: Option<RedisServer>,
    config: String,
}

impl Place {
    fn embedded() -> Self {
        Self::with(None)
    }

    fn redis() -> Self {
        Self::with(Some(RedisServer::start()))
    }

    fn with(server: Option<RedisServer>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(&folder.path().join("lake"));
        fs::create_dir_all(&lake.root).unwrap();
        let config = config_for(folder.path(), &lake.root, server.as_ref());
        Self {
            folder,
            lake,
            server,
            config,
        }
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let mut all = arguments.to_vec();
        all.extend(["--config", self.config.as_str()]);
        run(&all)
    }

    /// Runs and expects success; returns stdout.
    fn ok(&self, arguments: &[&str]) -> String {
        let (code, out, err) = self.run(arguments);
        assert_eq!(code, 0, "{arguments:?}\n{out}{err}");
        out
    }

    fn entries(&self, arguments: &[&str]) -> Vec<Value> {
        let mut all = vec!["query", "db", "cpu", "--json"];
        all.extend(arguments);
        lines(&self.ok(&all))
    }

    /// A folder outside of the lake.
    fn inbox(&self, name: &str) -> PathBuf {
        let inbox = self.folder.path().join(name);
        fs::create_dir_all(&inbox).unwrap();
        inbox
    }

    fn data(&self) -> PathBuf {
        self.lake.root.join("db/cpu/data")
    }

    /// Every data file on disk, by its path inside the table.
    fn on_disk(&self) -> BTreeSet<String> {
        parquet_files(&self.data())
            .iter()
            .map(|file| file.strip_prefix(self.data()).unwrap())
            .map(|file| file.to_str().unwrap().to_owned())
            .collect()
    }

    fn indexed(&self) -> BTreeSet<String> {
        self.entries(&[])
            .iter()
            .map(|entry| entry["path"].as_str().unwrap().to_owned())
            .collect()
    }

    /// Runs the daemon until the index holds nothing but final files and no other file is left.
    fn merge_all(&self) {
        let mut program = Program::start(&["run", "--config", &self.config]);
        program.wait_until("only merged files", |_| {
            let files = self.on_disk();
            !files.is_empty() && files.iter().all(|file| file.ends_with(".2.parquet"))
        });
        program.wait_until("no delete that waits", |_| {
            let queues: Value = serde_json::from_str(&self.ok(&["plan", "--json"])).unwrap();
            queues["queues"]["drops_idle"] == 0 && queues["queues"]["drops_processing"] == 0
        });
        program.signal(Signal::TERM);
        program.wait_for_exit(Duration::from_secs(20));
    }
}

fn config_for(folder: &Path, root: &Path, server: Option<&RedisServer>) -> String {
    let catalog = server.map_or_else(
        || "type = \"json\"".to_owned(),
        |server| format!("type = \"redis\"\nurl = {:?}", server.url()),
    );
    config_file(
        folder,
        &format!(
            "[catalog]\n{catalog}\n[[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = \"file://{}\"\n\
             [merge]\nlevels = [{{ iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" }}]\n\
             [drops]\ngrace = \"1s\"\ninterval = \"1s\"\n",
            root.display()
        ),
    )
}

fn parquet_files(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|end| end == "parquet") {
                found.push(path);
            }
        }
    }
    found.sort_unstable();
    found
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn both() -> [Place; 2] {
    [Place::embedded(), Place::redis()]
}

#[test]
fn a_script_is_printed_complete_and_redis_knows_it_by_the_listed_name() {
    let server = RedisServer::start();
    let mut redis = server.connection();
    let (code, list, _) = run(&["scripts"]);
    assert_eq!(code, 0);
    let listed: Vec<Vec<&str>> = list
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().collect())
        .collect();
    assert!(listed.iter().any(|row| row[0] == "patch_index"), "{list}");
    for row in listed {
        let (code, text, _) = run(&["scripts", row[0]]);
        assert_eq!(code, 0);
        let sha1: String = redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg(text)
            .query(&mut redis)
            .unwrap();
        assert_eq!(sha1, row[1], "{}", row[0]);
    }
    let (code, _, error) = run(&["scripts", "nonsense"]);
    assert_eq!(code, 1);
    assert!(error.contains("there are: patch_index"), "{error}");
}

#[test]
fn query_selects_by_time_folder_and_iteration_with_inclusive_edges() {
    for place in both() {
        for seed in 0..3 {
            place.lake.drop_file("cpu", seed, 50);
        }
        place.ok(&["import", "db", "cpu", place.data().to_str().unwrap()]);
        let all = place.entries(&[]);
        assert_eq!(all.len(), 3);
        let first = all[0]["max_time"].as_i64().unwrap();
        let count = |arguments: &[&str]| place.entries(arguments).len();
        let is_first_in = |arguments: &[&str]| place.entries(arguments).contains(&all[0]);
        assert!(is_first_in(&["--after", &first.to_string()]));
        assert!(!is_first_in(&["--after", &(first + 1).to_string()]));
        let min = all[0]["min_time"].as_i64().unwrap();
        assert!(is_first_in(&["--before", &min.to_string()]));
        assert!(!is_first_in(&["--before", &(min - 1).to_string()]));
        assert_eq!(
            count(&["--after", "2024-01-15", "--before", "2024-01-16"]),
            3
        );
        assert_eq!(count(&["--after", "2024-01-15T15:00:00Z"]), 0);
        assert_eq!(count(&["--after", "2024-01-15T15:00:00+02:00"]), 3);
        assert_eq!(count(&["--folder", "date=2024-01-15"]), 3);
        assert_eq!(count(&["--folder", "date=2024-01-1"]), 0);
        assert_eq!(count(&["--iteration", "1"]), 3);
        assert_eq!(count(&["--iteration", "2"]), 0);

        let table = place.ok(&["query", "db", "cpu"]);
        assert!(table.starts_with("PATH"), "{table}");
        assert!(table.contains("files: 3   rows: 150"), "{table}");
        let (code, _, error) = place.run(&["query", "db", "cpu", "--after", "1705327200"]);
        assert_eq!(code, 2);
        assert!(error.contains("too short to be nanoseconds"), "{error}");
        let (code, _, error) = place.run(&["query", "db", "cqu"]);
        assert_eq!(code, 1);
        assert!(error.contains("no table db.cqu"), "{error}");
    }
}

#[test]
fn ls_shows_databases_tables_and_partitions_with_their_sums() {
    for place in both() {
        for seed in 0..3 {
            place.lake.drop_file("cpu", seed, 50);
        }
        place.lake.drop_file("mem", 7, 20);
        for table in ["cpu", "mem"] {
            let data = place.lake.root.join("db").join(table).join("data");
            place.ok(&["import", "db", table, data.to_str().unwrap()]);
        }
        let shown = |arguments: &[&str]| lines(&place.ok(arguments));
        assert_eq!(
            shown(&["ls", "--json"]),
            [json!({"database": "db", "tables": 2})]
        );
        let tables = shown(&["ls", "db", "--json"]);
        assert_eq!(tables.len(), 2);
        assert_eq!(
            (&tables[0]["table"], &tables[0]["row_count"]),
            (&json!("cpu"), &json!(150))
        );
        let partitions = shown(&["ls", "db", "cpu", "--json"]);
        assert_eq!(partitions[0]["partition"], PARTITION);
        assert_eq!(partitions[0]["files"], 3);
        let entries = place.entries(&[]);
        let sum: u64 = entries
            .iter()
            .map(|e| e["size_bytes"].as_u64().unwrap())
            .sum();
        assert_eq!(partitions[0]["size_bytes"], sum);
        let first = entries
            .iter()
            .map(|e| e["min_time"].as_i64().unwrap())
            .min();
        assert_eq!(partitions[0]["min_time"].as_i64(), first);
        let text = place.ok(&["ls", "db", "cpu"]);
        assert!(
            text.contains(PARTITION) && text.contains("2024-01-15T14:0"),
            "{text}"
        );
        let (code, _, error) = place.run(&["ls", "nowhere"]);
        assert_eq!(code, 1);
        assert!(error.contains("no database \"nowhere\""), "{error}");
    }
}

#[test]
fn looking_neither_locks_nor_writes() {
    let place = Place::embedded();
    place.lake.drop_file("cpu", 1, 50);
    let mut program = Program::start(&["run", "--config", &place.config]);
    program.wait_for_log("iteration");
    for arguments in [&["ls"][..], &["ls", "db", "cpu"], &["query", "db", "cpu"]] {
        place.ok(arguments);
    }
    let (code, _, error) = place.run(&["import", "db", "cpu", place.data().to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(
        error.contains("another gigamerge works on this folder"),
        "{error}"
    );
    drop(program);

    let place = Place::embedded();
    place.lake.drop_file("cpu", 1, 50);
    place.ok(&["query", "db", "cpu"]);
    let data = place.data().display().to_string();
    let (_, out, _) = place.run(&["import", "db", "cpu", &data, "--dry-run"]);
    assert!(out.contains("would register: 1 files (1 in place"), "{out}");
    let left: Vec<_> = fs::read_dir(place.lake.partition("cpu")).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    assert!(!place.lake.root.join(".gigamerge.lock").exists());
    assert!(!place.lake.root.join("db/cpu/imports").exists());
}

#[test]
fn files_in_place_and_files_from_elsewhere_are_imported_once_whatever_happens_between() {
    for place in both() {
        for seed in 0..3 {
            place.lake.drop_file("cpu", seed, 50);
        }
        let inbox = place.inbox("inbox");
        fs::create_dir_all(inbox.join("date=2024-01-15/hour=14")).unwrap();
        fs::create_dir_all(inbox.join("region=eu")).unwrap();
        let inputs = [
            inbox.join("one.parquet"),
            inbox.join("date=2024-01-15/hour=14/two.parquet"),
            inbox.join("region=eu/three.7.parquet"),
        ];
        for (seed, file) in (10..).zip(&inputs) {
            write_file(file, &batch(seed, 50));
        }
        let kept = place
            .lake
            .keep_copy("cpu", &place.folder.path().join("kept"));
        let (data, inbox) = (place.data(), inbox.display().to_string());
        let import = ["import", "db", "cpu", data.to_str().unwrap(), &inbox];

        let mut dry = import.to_vec();
        dry.push("--dry-run");
        let out = place.ok(&dry);
        assert!(
            out.contains("would register: 6 files (3 in place, 3 copied), 300 rows"),
            "{out}"
        );
        assert_eq!(place.on_disk().len(), 3);

        let out = place.ok(&import);
        assert!(
            out.contains("registered: 6 files (3 in place, 3 copied), 300 rows"),
            "{out}"
        );
        assert_eq!(place.indexed(), place.on_disk());
        let in_hour = place.entries(&["--folder", PARTITION]);
        assert_eq!(in_hour.len(), 5);
        let eu = place.entries(&["--folder", "region=eu"]);
        assert!(eu[0]["path"].as_str().unwrap().ends_with(".1.parquet"));
        assert!(eu[0]["min_time"].as_i64().unwrap() >= HOUR_START_NS);
        assert_eq!(eu[0]["row_count"], 50);
        assert_eq!(eu[0]["min"]["__timestamp"], eu[0]["min_time"]);

        let before = place.entries(&[]);
        let out = place.ok(&import);
        assert!(out.contains("registered: 0 files"), "{out}");
        // The three copies lie in the table's folder now, so they are met twice.
        assert!(out.contains("in the index already: 9 files"), "{out}");
        assert_eq!(place.entries(&[]), before);

        place.merge_all();
        // Under another name and in another place: still the same files.
        let moved = place.folder.path().join("moved");
        fs::rename(&inbox, &moved).unwrap();
        fs::rename(moved.join("one.parquet"), moved.join("uno.parquet")).unwrap();
        let merged = place.indexed();
        let out = place.ok(&[
            "import",
            "db",
            "cpu",
            data.to_str().unwrap(),
            moved.to_str().unwrap(),
        ]);
        assert!(out.contains("registered: 0 files"), "{out}");
        assert!(
            out.contains("imported before, and merged since: 3 files"),
            "{out}"
        );
        assert_eq!(place.indexed(), merged);
        assert_eq!(place.on_disk(), merged);

        let outputs: Vec<PathBuf> = merged.iter().map(|path| data.join(path)).collect();
        let mut all = kept;
        all.extend(parquet_files(&moved));
        assert_same_rows(&outputs, &all);
        assert!(parquet_files(&place.lake.root.join("db/cpu/imports")).is_empty());
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named_and_the_others_are_imported() {
    for place in both() {
        let inbox = place.inbox("inbox");
        write_file(&inbox.join("good.parquet"), &batch(1, 50));
        write_file(&inbox.join("twin.parquet"), &batch(1, 50));
        fs::write(inbox.join("bad.parquet"), "PAR1 but not really PAR1").unwrap();
        fs::write(inbox.join("notes.txt"), "not ours").unwrap();
        let other = place.inbox("other_lake");
        write_file(&other.join("x.1.parquet"), &batch(2, 50));
        fs::write(other.join("metadata.json"), "{\"files\":[]}").unwrap();
        fs::create_dir_all(place.lake.root.join("db/mem/data/a")).unwrap();
        let foreign = place.lake.root.join("db/mem/data/a/x.1.parquet");
        write_file(&foreign, &batch(3, 50));
        let (code, out, err) = place.run(&[
            "import",
            "db",
            "cpu",
            inbox.to_str().unwrap(),
            other.to_str().unwrap(),
            foreign.to_str().unwrap(),
        ]);
        assert_eq!(code, 1, "{out}{err}");
        assert!(
            out.contains("registered: 1 files (0 in place, 1 copied), 50 rows"),
            "{out}"
        );
        assert!(out.contains("skipped: 3 files"), "{out}");
        assert!(
            err.contains("bad.parquet: ") && err.contains("--from-catalog"),
            "{err}"
        );
        assert!(err.contains("but not in the folder of db.cpu"), "{err}");
        assert!(err.contains("the same bytes as"), "{err}");
        assert!(err.contains("3 files were not imported"), "{err}");
        assert_eq!(place.indexed().len(), 1);
        let (code, _, err) = place.run(&[
            "import",
            "db",
            "cpu",
            inbox.to_str().unwrap(),
            "--layer",
            "cold",
        ]);
        assert_eq!(code, 1);
        assert!(err.contains("layer \"cold\" is not configured"), "{err}");
    }
}

#[test]
fn an_import_that_was_cut_off_at_any_step_goes_on_without_doubling() {
    for place in both() {
        let inbox = place.inbox("inbox");
        write_file(&inbox.join("a.parquet"), &batch(1, 50));
        let inbox = inbox.display().to_string();
        let import = ["import", "db", "cpu", &inbox];
        place.ok(&import);
        let path = place.indexed().into_iter().next().unwrap();
        let imports = place.lake.root.join("db/cpu/imports");
        let ledger = imports.join("ledger.jsonl");
        let begun = fs::read_to_string(&ledger).unwrap();
        let begun = begun.lines().next().unwrap().to_owned() + "\n";
        assert!(begun.contains("begun"), "{begun}");
        let forget = || match &place.server {
            Some(server) => {
                let _: () = redis::cmd("FLUSHALL")
                    .query(&mut server.connection())
                    .unwrap();
            }
            None => {
                fs::remove_file(place.data().join(&path).with_file_name("metadata.json")).unwrap()
            }
        };
        // Published, not registered.
        forget();
        fs::write(&ledger, &begun).unwrap();
        let out = place.ok(&import);
        assert!(!out.contains("imported before"), "{out}");
        assert_eq!(place.indexed(), BTreeSet::from([path.clone()]));
        // Staged, not published.
        forget();
        let name = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, path.as_bytes());
        let staged = imports.join(format!("{}.parquet", name.simple()));
        fs::rename(place.data().join(&path), &staged).unwrap();
        fs::write(&ledger, &begun).unwrap();
        place.ok(&import);
        assert_eq!(place.indexed(), BTreeSet::from([path.clone()]));
        assert!(!staged.exists());
        // Half staged, nothing recorded.
        forget();
        fs::remove_file(place.data().join(&path)).unwrap();
        fs::write(&staged, "half").unwrap();
        fs::write(&ledger, "{\"state\":\"be").unwrap();
        place.ok(&import);
        assert_eq!(place.indexed(), BTreeSet::from([path.clone()]));
        assert_eq!(place.on_disk(), BTreeSet::from([path]));
    }
}

#[test]
fn a_file_that_a_merge_may_have_replaced_is_not_registered_in_place() {
    let place = Place::redis();
    let data = place.data().display().to_string();
    let name = place.lake.drop_file("cpu", 1, 50);
    let mut redis = place.server.as_ref().unwrap().connection();
    let item = json!({"id": "1", "writer_id": "", "layer": "hot", "database": "db", "table": "cpu",
        "path": format!("{PARTITION}/{name}"), "time_s": 4_000_000_000_u64});
    let queue = "drop:db:cpu:hot::idle";
    let _: () = redis::cmd("RPUSH")
        .arg(queue)
        .arg(item.to_string())
        .query(&mut redis)
        .unwrap();
    let (code, out, err) = place.run(&["import", "db", "cpu", &data]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("a merge may have replaced it"), "{err}");

    // Nothing waits any more, but the original never deletes: a merged file beside it is a warning.
    let _: () = redis::cmd("DEL").arg(queue).query(&mut redis).unwrap();
    let merged = place.lake.partition("cpu").join("m.2.parquet");
    write_file(&merged, &batch(2, 50));
    let (code, out, err) = place.run(&["import", "db", "cpu", &data]);
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("--assume-live"), "{err}");
    assert_eq!(
        place.indexed(),
        BTreeSet::from([format!("{PARTITION}/m.2.parquet")])
    );
    place.ok(&["import", "db", "cpu", &data, "--assume-live"]);
    assert_eq!(place.indexed().len(), 2);
}

#[test]
fn entries_move_between_catalogs_with_every_field() {
    let embedded = Place::embedded();
    for seed in 0..3 {
        embedded.lake.drop_file("cpu", seed, 50);
    }
    let root = embedded.lake.root.display().to_string();
    embedded.ok(&["once"]);
    let metadata = embedded.lake.partition("cpu").join("metadata.json");
    let mut value: Value = serde_json::from_str(&fs::read_to_string(&metadata).unwrap()).unwrap();
    value["files"][0]["colour"] = json!(["red", 9_007_199_254_740_993_u64]);
    fs::write(&metadata, value.to_string()).unwrap();
    let wanted = embedded.entries(&[]);
    assert!(wanted.iter().any(|entry| entry.get("colour").is_some()));

    // Into Redis, over the same files.
    let server = RedisServer::start();
    let folder = tempfile::tempdir().unwrap();
    let redis_config = config_for(folder.path(), &embedded.lake.root, Some(&server));
    let on_redis = |arguments: &[&str]| {
        let mut all = arguments.to_vec();
        all.extend(["--config", redis_config.as_str()]);
        let (code, out, err) = run(&all);
        assert_eq!(code, 0, "{arguments:?}\n{out}{err}");
        out
    };
    let convert = ["import", "db", "cpu", &root, "--from-catalog"];
    let out = on_redis(&convert);
    assert!(
        out.contains("registered: 3 files (3 in place, 0 copied)"),
        "{out}"
    );
    assert_eq!(lines(&on_redis(&["query", "db", "cpu", "--json"])), wanted);
    let out = on_redis(&convert);
    assert!(out.contains("in the index already: 3 files"), "{out}");

    // And back, into a lake that has the bytes but no metadata.json.
    fs::remove_file(&metadata).unwrap();
    let url = server.url();
    embedded.ok(&["import", "db", "cpu", &url, "--from-catalog"]);
    assert_eq!(embedded.entries(&[]), wanted);

    // Into another lake: the bytes come along.
    let other = Place::redis();
    let out = other.ok(&convert);
    assert!(
        out.contains("registered: 3 files (0 in place, 3 copied)"),
        "{out}"
    );
    assert_eq!(other.entries(&[]), wanted);
    assert_same_rows_unsorted(&other, &embedded);
    other.merge_all();
    let out = other.ok(&convert);
    assert!(
        out.contains("imported before, and merged since: 3 files"),
        "{out}"
    );

    // Not while deletes wait: replaced files would count twice.
    let mut redis = server.connection();
    let _: () = redis::cmd("RPUSH")
        .arg("drop:db:cpu:hot::idle")
        .arg("{}")
        .query(&mut redis)
        .unwrap();
    let (code, _, err) = embedded.run(&["import", "db", "cpu", &url, "--from-catalog"]);
    assert_eq!(code, 1);
    assert!(
        err.contains("is not at rest: 0 merges and 0 moves run, 1 deletes wait"),
        "{err}"
    );
    let (code, _, err) = embedded.run(&["import", "db", "cpu", &root, "--from-catalog"]);
    assert_eq!(code, 1);
    assert!(err.contains("the configured catalog itself"), "{err}");
}

fn assert_same_rows_unsorted(a: &Place, b: &Place) {
    let contents = |place: &Place| -> BTreeSet<Vec<u8>> {
        parquet_files(&place.data())
            .iter()
            .map(|file| fs::read(file).unwrap())
            .collect()
    };
    assert_eq!(contents(a), contents(b));
}

#[test]
fn a_url_where_a_folder_is_asked_for_is_refused_without_showing_its_password() {
    let place = Place::embedded();
    for flag in [&[][..], &["--from-catalog"]] {
        let mut arguments = vec!["import", "db", "cpu", "redis://:hunter2@127.0.0.1:1/0"];
        arguments.extend(flag);
        let (code, out, err) = place.run(&arguments);
        assert_eq!(code, 1);
        assert!(
            !out.contains("hunter2") && !err.contains("hunter2"),
            "{out}{err}"
        );
    }
}

#[test]
fn many_files_are_registered_in_place_on_redis_while_a_daemon_merges_them() {
    let place = Place::redis();
    for seed in 0..300 {
        place.lake.drop_file("cpu", seed, 20);
    }
    let kept = place
        .lake
        .keep_copy("cpu", &place.folder.path().join("kept"));
    let mut program = Program::start(&["run", "--config", &place.config]);
    // The first pieces are being merged while the last ones are registered.
    let data = place.data().display().to_string();
    let out = place.ok(&["import", "db", "cpu", &data]);
    assert!(
        out.contains("registered: 300 files (300 in place, 0 copied), 6000 rows"),
        "{out}"
    );
    // Again, while replaced files still lie there and others are just being deleted.
    // An output that is not committed yet may be met; it is left alone too, and named.
    for _ in 0..5 {
        let (code, out, err) = place.run(&["import", "db", "cpu", &data]);
        assert!(
            code == 0 || err.contains("a merge may have replaced it"),
            "{err}"
        );
        assert!(out.contains("registered: 0 files"), "{out}");
        std::thread::sleep(Duration::from_millis(700));
    }
    // In order, also in the midst of deletes: killed, it would keep its claims on them for a lease.
    program.signal(Signal::TERM);
    program.wait_for_exit(Duration::from_secs(20));
    place.merge_all();
    let outputs: Vec<PathBuf> = parquet_files(&place.data());
    assert_same_rows(&outputs, &kept);
}
