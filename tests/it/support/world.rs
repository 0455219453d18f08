//! A lake with its catalog, seen from outside: through the contract's keys and files only.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use redis::{Commands, Connection};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    lake::{HOUR_START_NS, Lake, PARTITION, batch, python, write_file},
    redis_server::RedisServer,
};

/// Two levels of a second, short leases.
pub const LEVELS: &str = "[merge]\nlevels = [\n\
    { iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" },\n\
    { iteration = 2, timeout = \"1s\", max_size = \"400 MiB\" },\n]\n\
    [drops]\ngrace = \"1s\"\ninterval = \"1s\"\n[worker]\nlease = \"5s\"\n";

/// One table, `db.cpu`, in one partition.
pub struct World {
    pub folder: TempDir,
    pub lake: Lake,
    pub server: Option<RedisServer>,
    pub config: String,
    /// Layers behind "hot", by name.
    pub later: Vec<(String, Lake)>,
    /// Settings of the layers, to be put before other settings.
    pub layers: String,
    /// The first layer has a lifetime of a second.
    has_ttl: bool,
    /// What writers plan by.
    writers_levels: &'static str,
}

/// Merge configurations that plan as [`LEVELS`] do.
pub const WRITERS_LEVELS: &str = "[[1,104857600,1],[1,419430400,2]]";

/// Registers a file of `lake` as any writer does, with the contract's script.
pub fn register(redis: &mut Connection, lake: &Lake, table: &str, name: &str, row_count: usize) {
    let layers = r#"{"hot":{"url":"","name":"hot","type":"fs","ttl_sec":0,"layer_to":""}}"#;
    register_by(
        redis,
        lake,
        table,
        (name, row_count),
        (WRITERS_LEVELS, layers),
    );
}

/// As [`register`], by these merge configurations and layers.
pub fn register_by(
    redis: &mut Connection,
    lake: &Lake,
    table: &str,
    (name, row_count): (&str, usize),
    (levels, layers): (&str, &str),
) {
    let script = gigamerge::catalog::redis::scripts::all()
        .into_iter()
        .find(|script| script.name == "patch_index")
        .unwrap();
    let bytes = fs::metadata(lake.partition(table).join(name))
        .unwrap()
        .len();
    let entry = json!({
        "layer": "hot", "database": "db", "table": table, "path": format!("{PARTITION}/{name}"),
        "size_bytes": bytes, "row_count": row_count,
        "chunk_time": 0, "min": {}, "max": {}, "min_time": 0, "max_time": 0, "writer_id": "",
        "str_min_time": HOUR_START_NS.to_string(), "str_max_time": (HOUR_START_NS + 3_599_999_999_999).to_string(),
        "str_chunk_time": HOUR_START_NS.to_string(), "cmd": "ADD",
    });
    let _: i64 = redis::cmd("EVAL")
        .arg(script.text)
        .arg(2)
        .arg(levels)
        .arg(layers)
        .arg(entry.to_string())
        .query(redis)
        .unwrap();
}

impl World {
    pub fn new(on_redis: bool) -> Self {
        Self::with(on_redis.then(RedisServer::start), LEVELS)
    }

    /// `settings`: everything but the catalog and the layer.
    pub fn with(server: Option<RedisServer>, settings: &str) -> Self {
        Self::layered(server, settings, &[], false, WRITERS_LEVELS)
    }

    /// Layers behind "hot", each with more lines of settings. With `has_ttl` files stay in "hot" for a second.
    pub fn layered(
        server: Option<RedisServer>,
        settings: &str,
        later: &[(&str, &str)],
        has_ttl: bool,
        writers_levels: &'static str,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lake = Lake::new(&folder.path().join("lake"));
        fs::create_dir_all(&lake.root).unwrap();
        let mut world = Self {
            folder,
            lake,
            server,
            config: String::new(),
            later: Vec::new(),
            layers: String::new(),
            has_ttl,
            writers_levels,
        };
        let mut layers = if has_ttl { "ttl = \"1s\"\n" } else { "" }.to_owned();
        for (name, more) in later {
            let root = world.folder.path().join(name);
            fs::create_dir_all(&root).unwrap();
            layers.extend([format!(
                "[[layers]]\nname = {name:?}\ntype = \"fs\"\nurl = \"file://{}\"\n{more}",
                root.display()
            )]);
            world.later.push(((*name).to_owned(), Lake::new(&root)));
        }
        let settings = &format!("{layers}{settings}");
        world.layers = layers;
        world.config = match &world.server {
            Some(server) => world.config_of("gigamerge.toml", &server.url(), settings),
            None => world.write_config(
                "gigamerge.toml",
                &format!("data_dir = {:?}\n{settings}", world.lake.root),
            ),
        };
        world
    }

    /// A configuration for a daemon that reaches Redis by this URL.
    pub fn config_of(&self, name: &str, url: &str, settings: &str) -> String {
        let text = format!(
            "[catalog]\ntype = \"redis\"\nurl = {url:?}\ntimeout = \"1s\"\n[[layers]]\nname = \"hot\"\ntype = \"fs\"\nurl = \"file://{}\"\n{settings}",
            self.lake.root.display()
        );
        self.write_config(name, &text)
    }

    fn write_config(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    pub fn redis(&self) -> Connection {
        self.server.as_ref().unwrap().connection()
    }

    /// Writes and registers files; keeps copies of them.
    pub fn write(&self, seeds: std::ops::Range<u64>, rows: usize) {
        for seed in seeds {
            let copy = self.copies().join(format!("{seed}.parquet"));
            fs::create_dir_all(self.copies()).unwrap();
            write_file(&copy, &batch(seed, rows));
            let name = self.lake.drop_file("cpu", seed, rows);
            if self.server.is_some() {
                let next = self.later.first().map_or("", |(name, _)| name);
                let layers = json!({"hot": {"url": "", "name": "hot", "type": "fs",
                    "ttl_sec": i32::from(self.has_ttl), "layer_to": next}});
                let rules = (self.writers_levels, layers.to_string());
                register_by(
                    &mut self.redis(),
                    &self.lake,
                    "cpu",
                    (&name, rows),
                    (rules.0, &rules.1),
                );
            }
        }
    }

    pub fn copies(&self) -> PathBuf {
        self.folder.path().join("copies")
    }

    pub fn metadata(&self) -> Value {
        match fs::read(self.lake.partition("cpu").join("metadata.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap(),
            Err(_) => json!({"files": [], "drop_queue": []}),
        }
    }

    /// Names of the files that the index names.
    pub fn indexed(&self) -> BTreeSet<String> {
        let paths: Vec<String> = match &self.server {
            Some(_) => self.redis().hkeys("files:db:cpu:date=2024-01-15").unwrap(),
            None => texts(&self.metadata()["files"], Some("path")),
        };
        paths.iter().map(|path| name_of(path)).collect()
    }

    /// Name and layer of each file that the index names, in one look.
    pub fn layers_of(&self) -> BTreeMap<String, String> {
        let entries: BTreeMap<String, String> = self
            .redis()
            .hgetall("files:db:cpu:date=2024-01-15")
            .unwrap();
        let layer = |text: &str| {
            let entry: Value = serde_json::from_str(text).unwrap();
            entry["layer"].as_str().unwrap().to_owned()
        };
        entries
            .iter()
            .map(|(path, text)| (name_of(path), layer(text)))
            .collect()
    }

    fn lake_of(&self, layer: &str) -> &Lake {
        let later = self.later.iter().find(|(name, _)| name == layer);
        later.map_or(&self.lake, |(_, lake)| lake)
    }

    fn lakes(&self) -> impl Iterator<Item = (&str, &Lake)> {
        let later = self.later.iter().map(|(name, lake)| (name.as_str(), lake));
        std::iter::once(("hot", &self.lake)).chain(later)
    }

    pub fn on_disk(&self) -> BTreeSet<String> {
        self.lakes()
            .flat_map(|(_, lake)| lake.files("cpu"))
            .collect()
    }

    /// Scratch in any layer.
    pub fn leftovers(&self) -> Vec<PathBuf> {
        self.lakes()
            .flat_map(|(_, lake)| lake.leftovers("cpu"))
            .filter(|folder| is_in_use(folder))
            .collect()
    }

    /// Where the file of an entry lies.
    fn located(&self) -> Vec<(String, PathBuf)> {
        if self.server.is_none() {
            let file = |name: String| (name.clone(), self.lake.partition("cpu").join(name));
            return self.visible().into_iter().map(file).collect();
        }
        let file = |(name, layer): (String, String)| {
            let file = self.lake_of(&layer).partition("cpu").join(&name);
            (name, file)
        };
        self.layers_of().into_iter().map(file).collect()
    }

    /// What readers see; of the embedded catalog, what they see once new files are registered.
    pub fn visible(&self) -> BTreeSet<String> {
        if self.server.is_some() {
            return self.indexed();
        }
        let metadata = self.metadata();
        let hidden: BTreeSet<String> = texts(&metadata["drop_queue"], Some("path"))
            .into_iter()
            .chain(texts(&metadata["pending"], None))
            .map(|path| name_of(&path))
            .collect();
        self.on_disk().difference(&hidden).cloned().collect()
    }

    /// Keys of Redis by a pattern.
    pub fn keys(&self, pattern: &str) -> Vec<String> {
        self.redis()
            .scan_match(pattern)
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// Nothing waits, nothing runs, nothing is announced; every file on disk is in the index.
    pub fn is_at_rest(&self) -> bool {
        let is_quiet = if self.server.is_some() {
            ["merge:*", "drop:*", "move:*", "announced:*"]
                .iter()
                .flat_map(|pattern| self.keys(pattern))
                .all(|key| key.ends_with(":failed"))
        } else {
            let metadata = self.metadata();
            metadata["drop_queue"] == json!([]) && metadata.get("pending").is_none()
        };
        is_quiet && self.indexed() == self.on_disk()
    }

    /// ONE-HOLDER: no file is in two plans, waiting or handed out.
    pub fn assert_one_holder(&self, what: &str) {
        if self.server.is_none() {
            return;
        }
        let mut seen = BTreeSet::new();
        for key in self.keys("merge:*") {
            if key.ends_with(":failed") {
                continue;
            }
            let items: Vec<String> = self.redis().lrange(&key, 0, -1).unwrap();
            for item in items {
                let item: Value = serde_json::from_str(&item).unwrap();
                for path in texts(&item["paths"], None) {
                    assert!(seen.insert(path.clone()), "{what}: {path} is in two plans");
                }
            }
        }
    }

    /// BYTES-BEFORE-INDEX and DROP-AFTER-COMMIT: every file that the index names is there, whole.
    pub fn assert_bytes_are_there(&self, what: &str) {
        let files = match &self.server {
            Some(_) => self.located(),
            None => {
                let file = |name: String| (name.clone(), self.lake.partition("cpu").join(name));
                self.indexed().into_iter().map(file).collect()
            }
        };
        for (name, file) in files {
            let bytes = fs::read(&file).unwrap_or_default();
            assert!(
                bytes.ends_with(b"PAR1"),
                "{what}: the index names {name}, of which {} bytes are there",
                bytes.len()
            );
        }
    }

    /// INSIDE-TABLE, and nothing left behind: only data, the record of imports and the lock.
    pub fn assert_nothing_stray(&self, what: &str) {
        if self.server.is_none() {
            return Self::assert_nothing_stray_in(&self.lake, &self.indexed(), what);
        }
        let layers = self.layers_of();
        for (layer, lake) in self.lakes() {
            let here = |(name, of): (&String, &String)| (of == layer).then(|| name.clone());
            let indexed = layers.iter().filter_map(here).collect();
            Self::assert_nothing_stray_in(lake, &indexed, what);
        }
    }

    fn assert_nothing_stray_in(lake: &Lake, indexed: &BTreeSet<String>, what: &str) {
        let mut found = Vec::new();
        walk(&lake.root, &mut found);
        let table = lake.root.join("db/cpu");
        let partition = lake.partition("cpu");
        for file in found {
            let name = name_of(file.to_str().unwrap());
            let is_known = match file.parent() {
                Some(folder) if folder == partition => {
                    indexed.contains(&name) || name == "metadata.json"
                }
                Some(folder) if folder == table.join("imports") => Path::new(&name)
                    .extension()
                    .is_none_or(|end| end != "parquet"),
                _ => name == ".gigamerge.lock",
            };
            assert!(is_known, "{what}: {} was left behind", file.display());
        }
    }

    /// The state of now, for [`assert_states`]: the files are linked aside, as a reader has them open.
    pub fn state(&self, name: &str, may_lack: bool) -> Value {
        let located = self.located();
        let aside = self
            .folder
            .path()
            .join(format!("state-{}", name.replace([' ', ':'], "-")));
        fs::create_dir_all(&aside).unwrap();
        let outputs: Vec<String> = located
            .iter()
            .map(|(name, from)| {
                let to = aside.join(name);
                fs::hard_link(from, &to)
                    .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
                to.display().to_string()
            })
            .collect();
        let mut inputs = Vec::new();
        walk(&self.copies(), &mut inputs);
        json!({"name": name, "outputs": outputs, "inputs": inputs, "may_lack": may_lack})
    }
}

/// ROWS-KEPT, ORDER-KEPT, COLUMNS-UNITED of each state, by the independent reader.
pub fn assert_states(states: &[Value]) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("request.json");
    fs::write(&file, Value::from(states).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/duckdb/many_rows.py");
    let answer = python().arg(script).arg(file).output().unwrap();
    assert!(
        answer.status.success(),
        "{}{}",
        String::from_utf8_lossy(&answer.stdout),
        String::from_utf8_lossy(&answer.stderr)
    );
}

fn texts(list: &Value, field: Option<&str>) -> Vec<String> {
    let of = |item: &Value| {
        let text = field.map_or(item, |field| &item[field]);
        text.as_str().unwrap().to_owned()
    };
    list.as_array()
        .map(|items| items.iter().map(of).collect())
        .unwrap_or_default()
}

fn name_of(path: &str) -> String {
    path.rsplit('/').next().unwrap().to_owned()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            walk(&entry.path(), found);
        } else {
            found.push(entry.path());
        }
    }
}

/// Whether there is anything in it. Who is killed while a folder is made or removed leaves it without
/// its lock and empty; it is swept once it is a minute old.
fn is_in_use(folder: &Path) -> bool {
    fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some())
}
