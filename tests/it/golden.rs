//! Replays recorded exchanges of the original implementation with our scripts.
//!
//! Each file in `tests/golden/cases/` is one case: calls, replies, and the whole keyspace after
//! each step that changed it. Fresh ids, names and times are masked there. Where ours differs on
//! purpose, `tests/golden/differences.json` says why and what ours must give: replies by
//! `<step>.<call>`, values of keys (`null`: absent) that hold from a step on, what reads give by
//! step (`reads`: files as `path@layer`), and commands to run before (`first`).
//!
//! What the original's client read (`get`, `query`, `paths`, `tables`, `databases`) is read with
//! the library.

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::Duration,
};

use chrono::DateTime;
use gigamerge::{
    catalog::{
        Catalog, EntryFilter,
        redis::{RedisCatalog, scripts},
    },
    model::{DataPath, IndexEntry, Iteration, LayerName, TableRef},
};
use redis::{Connection, RedisResult};
use serde_json::{Map, Value, json};

use crate::{catalog_suite::policy, support::redis_server::RedisServer};

/// How far a time may lie after the recorded one: a replay is not as fast as the recording.
const TIME_TOLERANCE_S: i64 = 4;
/// SHA1 of the original's scripts in raw calls, in the order of our own.
const RECORDED_SHA1: [&str; 3] = [
    "b409a0b198ae2f9b2862bb3e36637cad1d0e70a1",
    "758f0c0f339dd1181c13ad84990be912f1779019",
    "176334984a69af0d5104e602977de1324c97c49e",
];

fn read_json(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn golden(part: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(part)
}

#[test]
fn our_scripts_do_what_the_recorded_exchanges_show() {
    let server = RedisServer::start();
    let mut connection = server.connection();
    for script in scripts::all() {
        let loaded: String = redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg(script.text)
            .query(&mut connection)
            .unwrap();
        assert_eq!(loaded, script.sha1);
    }
    let library = Library::new(&server);
    let differences = read_json(&golden("differences.json"));
    let differences = differences.as_object().unwrap();
    let mut files: Vec<_> = std::fs::read_dir(golden("cases"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() > 70, "cases are missing");
    let mut problems = Vec::new();
    let mut names = Vec::new();
    for file in files {
        let case = read_json(&file);
        let name = case["name"].as_str().unwrap().to_owned();
        let difference = differences.get(&name);
        for problem in Replay::run(&mut connection, &library, &case, difference) {
            problems.push(format!("{name}: {problem}"));
        }
        if difference.is_some() && Replay::run(&mut connection, &library, &case, None).is_empty() {
            problems.push(format!("{name}: differs no more; take it from the list"));
        }
        names.push(name);
    }
    for name in differences.keys() {
        assert!(names.contains(name), "{name} is listed, but is no case");
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

/// Reads as a Rust program does.
struct Library {
    catalog: RedisCatalog,
    runtime: tokio::runtime::Runtime,
}

impl Library {
    fn new(server: &RedisServer) -> Self {
        Self {
            catalog: RedisCatalog::connect(&server.config(), std::sync::Arc::new(policy()))
                .unwrap(),
            runtime: tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    /// What a recorded read gives here, in its recorded form; `None` for other operations.
    fn read(&self, case: &Value, step: &Value) -> Option<Value> {
        let operation = step["op"].as_str().unwrap();
        if !["get", "query", "paths", "tables", "databases"].contains(&operation) {
            return None;
        }
        let arguments = &step["args"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let database = text(&case["database"]);
        let table = arguments["table"].as_str().or(case["table"].as_str());
        let Ok(table) = TableRef::new(&database, table.unwrap()) else {
            return Some(json!("refused"));
        };
        let time_ns = |value: &Value| {
            let time = DateTime::parse_from_rfc3339(value.as_str()?).unwrap();
            time.timestamp_nanos_opt()
        };
        let catalog = &self.catalog;
        Some(self.runtime.block_on(async {
            match operation {
                "get" => {
                    let layer = LayerName::parse(&text(&arguments["layer"])).unwrap();
                    let path = DataPath::parse(&text(&arguments["path"])).unwrap();
                    let found = catalog.get(&table, &layer, &path).await.unwrap();
                    found.as_ref().map_or(Value::Null, recorded_form)
                }
                "query" => {
                    let filter = EntryFilter {
                        after_ns: time_ns(&arguments["after"]),
                        before_ns: time_ns(&arguments["before"]),
                        folder: arguments["folder"].as_str().map(str::to_owned),
                        iteration: arguments["iteration"]
                            .as_u64()
                            .map(|number| Iteration(number.try_into().unwrap())),
                    };
                    let found = catalog.entries(&table, &filter).await.unwrap();
                    found.iter().map(recorded_form).collect()
                }
                "paths" => {
                    let found = catalog.folders(&table).await.unwrap();
                    found.iter().map(|folder| folder.dir.as_str()).collect()
                }
                "tables" => {
                    let mut found = catalog.tables().await.unwrap();
                    found.retain(|table| table.database() == database);
                    found.iter().map(TableRef::table).collect()
                }
                _ => catalog.databases().await.unwrap().into_iter().collect(),
            }
        }))
    }
}

fn recorded_form(entry: &IndexEntry) -> Value {
    json!({
        "chunk_time": entry.chunk_time_ns, "database": entry.table.database(),
        "layer": entry.layer.as_str(), "max": entry.max, "max_time": entry.max_time_ns,
        "min": entry.min, "min_time": entry.min_time_ns, "path": entry.path.as_str(),
        "row_count": entry.row_count, "size_bytes": entry.size_bytes,
        "table": entry.table.table(), "writer_id": entry.writer.as_str(),
    })
}

/// Files as `path@layer`, lists sorted: the form of the stated differences.
fn short_form(read: &Value) -> Value {
    match read {
        Value::Array(list) => {
            let mut list: Vec<Value> = list.iter().map(short_form).collect();
            list.sort_by_key(Value::to_string);
            Value::Array(list)
        }
        Value::Object(entry) => {
            let text = |name: &str| entry[name].as_str().unwrap().to_owned();
            format!("{}@{}", text("path"), text("layer")).into()
        }
        other => other.clone(),
    }
}

struct Replay<'a> {
    connection: &'a mut Connection,
    started_s: i64,
    /// Masked id → ours.
    ids: HashMap<String, String>,
    /// What each step was handed out, and from which queue.
    handed_out: Vec<([String; 6], Value)>,
    problems: Vec<String>,
}

impl<'a> Replay<'a> {
    fn run(
        connection: &'a mut Connection,
        library: &Library,
        case: &Value,
        difference: Option<&Value>,
    ) -> Vec<String> {
        redis::cmd("FLUSHALL").exec(connection).unwrap();
        let (started_s, _): (i64, i64) = redis::cmd("TIME").query(connection).unwrap();
        let mut replay = Self {
            connection,
            started_s,
            ids: HashMap::new(),
            handed_out: Vec::new(),
            problems: Vec::new(),
        };
        let first = difference.and_then(|difference| difference["first"].as_array());
        for command in first.into_iter().flatten().map(texts) {
            redis::cmd(&command[0])
                .arg(&command[1..])
                .exec(replay.connection)
                .unwrap();
        }
        let mut patches: Map<String, Value> = Map::new();
        let mut recorded: BTreeMap<String, Value> = BTreeMap::new();
        for (number, step) in case["steps"].as_array().unwrap().iter().enumerate() {
            replay.play(number, step, difference);
            if let Some(ours) = library.read(case, step) {
                replay.compare_read(number, step, difference, &ours);
            }
            if let Some(keys) =
                difference.and_then(|difference| difference["keys"][number.to_string()].as_object())
            {
                patches.extend(keys.clone());
            }
            // A step without a keyspace changed nothing.
            if let Some(keyspace) = step["keyspace"].as_object() {
                recorded = keyspace
                    .iter()
                    .map(|(key, stored)| (key.clone(), stored["value"].clone()))
                    .collect();
            }
            let mut expected = recorded.clone();
            for (key, value) in &patches {
                if value.is_null() {
                    expected.remove(key);
                } else {
                    expected.insert(key.clone(), value.clone());
                }
            }
            replay.compare_keyspace(number, &expected);
        }
        replay.problems
    }

    fn play(&mut self, number: usize, step: &Value, difference: Option<&Value>) {
        let arguments = &step["args"];
        self.handed_out.push(Default::default());
        for (place, call) in step["script_calls"]
            .as_array()
            .into_iter()
            .flatten()
            .enumerate()
        {
            let reply = self.call(
                call["script"].as_str().unwrap(),
                &texts(&call["keys"]),
                &texts(&call["argv"]),
            );
            let expected = difference
                .and_then(|difference| difference["replies"].get(format!("{number}.{place}")))
                .unwrap_or(&call["reply"]);
            self.compare_reply(&format!("step {number} call {place}"), expected, &reply);
        }
        match step["op"].as_str().unwrap() {
            "sleep" => std::thread::sleep(Duration::from_secs_f64(
                arguments["seconds"].as_f64().unwrap(),
            )),
            "shift_time_s" => self.shift_time(arguments),
            "end_merge" => self.end_merge(arguments),
            "end_move" | "rm_from_drop_queue" => self.end_item(arguments),
            "raw" => {
                let command = texts(&arguments["command"]);
                let _: redis::Value = redis::cmd(&command[0])
                    .arg(&command[1..])
                    .query(self.connection)
                    .unwrap();
            }
            "raw_wire" => self.raw_wire(number, step),
            _ => {}
        }
    }

    fn call(&mut self, name: &str, keys: &[String], arguments: &[String]) -> Value {
        let script = scripts::all()
            .into_iter()
            .find(|script| script.name == name)
            .unwrap();
        let answer: RedisResult<redis::Value> = redis::cmd("EVALSHA")
            .arg(&script.sha1)
            .arg(keys.len())
            .arg(keys)
            .arg(arguments)
            .query(self.connection);
        match answer {
            Ok(redis::Value::Int(number)) => json!({"type": ":", "value": number}),
            Ok(redis::Value::BulkString(bytes)) => {
                let text = String::from_utf8(bytes).unwrap();
                if let Ok(item) = serde_json::from_str(&text) {
                    let queue = keys.to_vec().try_into().unwrap();
                    *self.handed_out.last_mut().unwrap() = (queue, item);
                }
                json!({"type": "$", "value": text})
            }
            Ok(other) => panic!("unexpected reply {other:?}"),
            Err(error) => {
                let text = [error.code(), error.detail()].map(Option::unwrap_or_default);
                json!({"type": "-", "value": text.join(" ")})
            }
        }
    }

    fn compare_reply(&mut self, place: &str, expected: &Value, ours: &Value) {
        let text = |reply: &Value| reply["value"].as_str().unwrap_or_default().to_owned();
        let is_equal = match expected["type"].as_str() {
            // The text of Lua's own errors is not part of the contract.
            Some("-") if text(expected).starts_with("ERR ") => ours["type"] == "-",
            Some("$") if !text(expected).is_empty() => {
                let parse = |reply| serde_json::from_str::<Value>(&text(reply)).ok();
                match (parse(expected), parse(ours)) {
                    (Some(mut expected), Some(mut ours)) => {
                        // Absolute; the keyspace shows it relative to the start.
                        expected["time_s"] = Value::Null;
                        ours["time_s"] = Value::Null;
                        self.is_same(&expected, &ours)
                    }
                    _ => false,
                }
            }
            _ => expected == ours,
        };
        if !is_equal {
            self.problems
                .push(format!("{place}: replied {ours}, not {expected}"));
        }
    }

    fn compare_read(
        &mut self,
        number: usize,
        step: &Value,
        difference: Option<&Value>,
        ours: &Value,
    ) {
        let listed = difference.and_then(|difference| difference["reads"].get(number.to_string()));
        let is_same = match listed {
            Some(expected) => short_form(ours) == *expected,
            None => {
                let sorted = |read: &Value| match read {
                    Value::Array(list) => {
                        let mut list = list.clone();
                        list.sort_by_key(|item| short_form(item).to_string());
                        Value::Array(list)
                    }
                    other => other.clone(),
                };
                let (expected, ours) = (sorted(&step["result"]), sorted(ours));
                self.is_same(&expected, &ours)
            }
        };
        if !is_same {
            self.problems.push(format!(
                "step {number}: {} {} gave {}",
                step["op"],
                step["args"],
                short_form(ours)
            ));
        }
    }

    fn compare_keyspace(&mut self, number: usize, expected: &BTreeMap<String, Value>) {
        let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(self.connection).unwrap();
        keys.sort();
        let mut found = BTreeMap::new();
        for key in keys {
            found.insert(key.clone(), self.read(&key));
        }
        for (key, value) in expected {
            match found.remove(key) {
                None => self
                    .problems
                    .push(format!("step {number}: {key} is missing")),
                Some(ours) => {
                    if !self.is_same(value, &ours) {
                        self.problems
                            .push(format!("step {number}: {key} is {ours}, not {value}"));
                    }
                }
            }
        }
        for (key, value) in found {
            self.problems
                .push(format!("step {number}: {key} should not be there: {value}"));
        }
    }

    fn read(&mut self, key: &str) -> Value {
        let kind: String = redis::cmd("TYPE").arg(key).query(self.connection).unwrap();
        match kind.as_str() {
            "list" => {
                let items: Vec<String> = redis::cmd("LRANGE")
                    .arg(key)
                    .arg(0)
                    .arg(-1)
                    .query(self.connection)
                    .unwrap();
                Value::Array(items.iter().map(|text| parsed(text)).collect())
            }
            "hash" => {
                let fields: BTreeMap<String, String> = redis::cmd("HGETALL")
                    .arg(key)
                    .query(self.connection)
                    .unwrap();
                fields
                    .into_iter()
                    .map(|(field, text)| (field, parsed(&text)))
                    .collect::<Map<_, _>>()
                    .into()
            }
            other => panic!("{key} is a {other}"),
        }
    }

    /// Whether ours is what a masked value stands for.
    fn is_same(&mut self, expected: &Value, ours: &Value) -> bool {
        match (expected, ours) {
            (Value::Object(mask), Value::Number(time_s))
                if mask.contains_key("$case_start_plus_s") =>
            {
                let wanted = self.started_s + mask["$case_start_plus_s"].as_i64().unwrap();
                time_s
                    .as_i64()
                    .is_some_and(|time_s| (wanted..=wanted + TIME_TOLERANCE_S).contains(&time_s))
            }
            (Value::Object(expected), Value::Object(ours)) => {
                expected.len() == ours.len()
                    && expected.iter().all(|(name, value)| {
                        ours.get(name).is_some_and(|ours| self.is_same(value, ours))
                    })
            }
            (Value::Array(expected), Value::Array(ours)) => {
                expected.len() == ours.len()
                    && expected
                        .iter()
                        .zip(ours)
                        .all(|(expected, ours)| self.is_same(expected, ours))
            }
            (Value::String(expected), Value::String(ours)) => self.is_same_text(expected, ours),
            // A whole number may have been written as a float.
            (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
            _ => expected == ours,
        }
    }

    fn is_same_text(&mut self, expected: &str, ours: &str) -> bool {
        if let Some((before, after)) = expected.split_once("<uuid>") {
            return uuid_between(ours, before, after).is_some();
        }
        let Some((before, rest)) = expected.split_once("$uuid") else {
            return expected == ours;
        };
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let Some(id) = uuid_between(ours, before, &rest[digits..]) else {
            return false;
        };
        let mask = rest[..digits].to_owned();
        let is_first_seen = !self.ids.contains_key(&mask);
        if is_first_seen && self.ids.values().any(|known| known == id) {
            return false;
        }
        self.ids.entry(mask).or_insert_with(|| id.to_owned()) == id
    }

    fn shift_time(&mut self, arguments: &Value) {
        let key = arguments["key"].as_str().unwrap();
        let index = arguments["index"].as_i64().unwrap();
        let text: Option<String> = redis::cmd("LINDEX")
            .arg(key)
            .arg(index)
            .query(self.connection)
            .unwrap();
        let Some(text) = text else {
            self.problems.push(format!("{key} has no item {index}"));
            return;
        };
        let mut item: Value = serde_json::from_str(&text).unwrap();
        let time_s = item["time_s"].as_i64().unwrap() + arguments["delta"].as_i64().unwrap();
        item["time_s"] = time_s.into();
        redis::cmd("LSET")
            .arg(key)
            .arg(index)
            .arg(item.to_string())
            .exec(self.connection)
            .unwrap();
    }

    /// The original's client ended merges by hand; ours is a script.
    fn end_merge(&mut self, arguments: &Value) {
        let from = usize::try_from(arguments["plan_from"].as_u64().unwrap()).unwrap();
        let (keys, plan) = self.handed_out[from].clone();
        let Some(id) = arguments["override"]["ID"].as_str().or(plan["id"].as_str()) else {
            self.problems
                .push(format!("step {from} handed nothing out"));
            return;
        };
        let mut suffix = keys[3].clone();
        if let Some(output) = arguments["override"]["To"].as_str() {
            suffix = format!("1:{}", output.rsplit_once('/').unwrap().0);
        }
        let [_, database, table, _, layer, writer] = keys;
        let keys = [database, table, suffix, layer, writer, id.to_owned()];
        let reply = self.call("end_merge", &keys, &[]);
        if reply["value"] != "" {
            self.problems.push(format!("end_merge replied {reply}"));
        }
    }

    fn end_item(&mut self, arguments: &Value) {
        let from = usize::try_from(arguments["plan_from"].as_u64().unwrap()).unwrap();
        let (keys, item) = self.handed_out[from].clone();
        let Some(id) = arguments["override"]["id"].as_str().or(item["id"].as_str()) else {
            self.problems
                .push(format!("step {from} handed nothing out"));
            return;
        };
        let [prefix, database, table, _, layer, writer] = keys;
        let key = format!("{prefix}:{database}:{table}:{layer}:{writer}:processing");
        let texts: Vec<String> = redis::cmd("LRANGE")
            .arg(&key)
            .arg(0)
            .arg(-1)
            .query(self.connection)
            .unwrap();
        for text in texts {
            if parsed(&text)["id"] == id {
                redis::cmd("LREM")
                    .arg(&key)
                    .arg(1)
                    .arg(text)
                    .exec(self.connection)
                    .unwrap();
            }
        }
    }

    fn raw_wire(&mut self, number: usize, step: &Value) {
        let command: Vec<String> = texts(&step["args"]["command"])
            .into_iter()
            .map(|word| {
                let known = RECORDED_SHA1.iter().position(|sha1| *sha1 == word);
                known.map_or(word, |place| scripts::all()[place].sha1.clone())
            })
            .collect();
        let answer: RedisResult<redis::Value> = redis::cmd(&command[0])
            .arg(&command[1..])
            .query(self.connection);
        if answer.is_ok() != step["ok"].as_bool().unwrap_or_default() {
            self.problems
                .push(format!("step {number}: {command:?} gave {answer:?}"));
        }
    }
}

fn texts(list: &Value) -> Vec<String> {
    list.as_array()
        .into_iter()
        .flatten()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

/// Objects as JSON, everything else as the text that it is.
fn parsed(text: &str) -> Value {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Value::Object(object),
        _ => Value::String(text.to_owned()),
    }
}

fn uuid_between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let id = text.strip_prefix(before)?.strip_suffix(after)?;
    (id.len() == 36 && id.bytes().all(|b| b == b'-' || b.is_ascii_hexdigit())).then_some(id)
}
