//! JSON as it stands in Redis, to and from the model.
//!
//! Scripts of other programs print integers beyond 14 digits damaged, so times travel as
//! decimal strings (`str_*`) beside fields that are 0; a reader prefers the string.

use serde_json::{Map, Value, json};

use crate::{
    catalog::Policy,
    model::{
        DataPath, DropItem, IndexEntry, LayerName, MergePlan, MergeQueue, MoveItem, PlanId,
        PlanPart, TableRef, WriterId,
    },
};

use super::keys::FileQueue;

/// What a call does with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EntryCommand {
    Add,
    Delete,
}

/// Fields of an entry that the model has a place for.
const ENTRY_FIELDS: [&str; 16] = [
    "layer",
    "database",
    "table",
    "path",
    "size_bytes",
    "row_count",
    "chunk_time",
    "min_time",
    "max_time",
    "min",
    "max",
    "writer_id",
    "str_chunk_time",
    "str_min_time",
    "str_max_time",
    "cmd",
];

/// Most refused paths that are kept with their reasons.
const REFUSED_PATHS_MAX: usize = 100;

/// An entry as it is sent to `patch_index`. Of one that is removed, what says which file it is.
pub(super) fn entry_to_json(entry: &IndexEntry, command: EntryCommand) -> String {
    let mut object = Map::new();
    if command == EntryCommand::Add {
        object.extend(entry.extra.clone());
        let described = json!({
            "size_bytes": entry.size_bytes,
            "row_count": entry.row_count,
            "chunk_time": 0,
            "min": entry.min,
            "max": entry.max,
            "min_time": 0,
            "max_time": 0,
            "str_min_time": entry.min_time_ns.to_string(),
            "str_max_time": entry.max_time_ns.to_string(),
            "str_chunk_time": entry.chunk_time_ns.to_string(),
        });
        if let Value::Object(described) = described {
            object.extend(described);
        }
    }
    let named = json!({
        "database": entry.table.database(),
        "table": entry.table.table(),
        "path": entry.path.as_str(),
        "writer_id": entry.writer.as_str(),
        "cmd": match command {
            EntryCommand::Add => "ADD",
            EntryCommand::Delete => "DELETE",
        },
    });
    if let Value::Object(named) = named {
        object.extend(named);
    }
    object.remove("layer");
    // The layer comes first, as most clients write it: then scripts compare it without decoding the rest.
    let rest = Value::Object(object).to_string();
    format!("{{\"layer\":{},{}", json!(entry.layer.as_str()), &rest[1..])
}

/// An entry as it is stored under `path` of `table`.
pub(super) fn entry_from_json(
    text: &str,
    table: &TableRef,
    path: &str,
) -> Result<IndexEntry, String> {
    let mut object = parse_object(text)?;
    for (name, wanted) in [
        ("database", table.database()),
        ("table", table.table()),
        ("path", path),
    ] {
        if string(&object, name)? != wanted {
            return Err(format!("{name} is not that of its key"));
        }
    }
    Ok(IndexEntry {
        layer: LayerName::parse(string(&object, "layer")?).map_err(|e| e.to_string())?,
        table: table.clone(),
        path: DataPath::parse(path).map_err(|e| e.to_string())?,
        size_bytes: count(&object, "size_bytes")?,
        row_count: count(&object, "row_count")?,
        chunk_time_ns: time_ns(&object, "chunk_time")?,
        min_time_ns: time_ns(&object, "min_time")?,
        max_time_ns: time_ns(&object, "max_time")?,
        writer: WriterId::parse(string(&object, "writer_id")?).map_err(|e| e.to_string())?,
        min: take_object(&mut object, "min")?,
        max: take_object(&mut object, "max")?,
        extra: object
            .into_iter()
            .filter(|(name, _)| !ENTRY_FIELDS.contains(&name.as_str()))
            .collect(),
    })
}

/// A plan as it stands in a list of `queue`. Paths of other folders or iterations are refused
/// one by one; the rest of the plan stays usable.
pub(super) fn plan_from_json(text: &str, queue: &MergeQueue) -> Result<MergePlan, String> {
    let object = parse_object(text)?;
    let mut plan = MergePlan {
        id: PlanId::new(string(&object, "id")?),
        queue: queue.clone(),
        paths: Vec::new(),
        refused_paths: Vec::new(),
        size_bytes: count(&object, "size")?,
        due_s: due_s(&object)?,
        attempts: small_count(&object, "attempts"),
        forgiven: small_count(&object, "forgiven"),
        failed: small_count(&object, "failed"),
        is_suspect: object.get("suspect").and_then(Value::as_bool) == Some(true),
    };
    let mut seen = std::collections::HashSet::new();
    let mut refuse = |path: String, reason: String| {
        if plan.refused_paths.len() < REFUSED_PATHS_MAX {
            plan.refused_paths.push((path, reason));
        }
    };
    for path in paths(&object)? {
        let Some(path) = path.as_str() else {
            let shown: String = path.to_string().chars().take(300).collect();
            refuse(shown, "it is not a string".to_owned());
            continue;
        };
        match DataPath::parse(path) {
            Err(error) => refuse(path.chars().take(300).collect(), error.to_string()),
            Ok(path) if path.dir() != queue.dir => {
                refuse(
                    path.to_string(),
                    "it lies outside the plan's folder".to_owned(),
                );
            }
            Ok(path) if path.iteration() != queue.iteration => {
                refuse(path.to_string(), "it is of another iteration".to_owned());
            }
            Ok(path) => {
                if seen.insert(path.clone()) {
                    plan.paths.push(path);
                }
            }
        }
    }
    Ok(plan)
}

/// A part of a plan as `split_plan` takes it.
pub(super) fn part_to_json(part: &PlanPart, is_suspect: bool) -> String {
    let paths: Vec<&str> = part.paths.iter().map(DataPath::as_str).collect();
    let suspect = if is_suspect { ",\"suspect\":true" } else { "" };
    // In the order in which `patch_index` knows a plan that takes more files.
    format!(
        "{{\"size\":{},\"paths\":{}{suspect}}}",
        part.size_bytes,
        json!(paths)
    )
}

/// A delete as it stands in a list of `queue`; the key says whose file it is.
pub(super) fn drop_from_json(text: &str, queue: &FileQueue) -> Result<DropItem, String> {
    let object = parse_object(text)?;
    Ok(DropItem {
        id: PlanId::new(string(&object, "id")?),
        table: queue.table.clone(),
        layer: queue.layer.clone(),
        writer: queue.writer.clone(),
        path: DataPath::parse(string(&object, "path")?).map_err(|e| e.to_string())?,
        due_s: due_s(&object)?,
    })
}

/// A move as it stands in a list of `queue`; the key says whose file it is and where it lies.
pub(super) fn move_from_json(text: &str, queue: &FileQueue) -> Result<MoveItem, String> {
    let object = parse_object(text)?;
    let path = |name| -> Result<DataPath, String> {
        DataPath::parse(string(&object, name)?).map_err(|e| format!("{name}: {e}"))
    };
    let (path_from, path_to) = (path("path_from")?, path("path_to")?);
    if path_from.dir() != path_to.dir() || path_from.iteration() != path_to.iteration() {
        return Err("path_to is not of the folder and iteration of path_from".to_owned());
    }
    if string(&object, "layer_from")? != queue.layer.as_str() {
        return Err("layer_from is not that of its key".to_owned());
    }
    for (name, of_key) in [
        ("database", queue.table.database()),
        ("table", queue.table.table()),
    ] {
        let of = string(&object, name)?;
        if !of.is_empty() && of != of_key {
            return Err(format!("{name} is not that of its key"));
        }
    }
    // "" deletes the file: a field that got lost must not.
    let Some(Value::String(layer_to)) = object.get("layer_to") else {
        return Err("layer_to is missing or not a string".to_owned());
    };
    let layer_to = LayerName::parse(layer_to).map_err(|e| e.to_string())?;
    if layer_to == queue.layer {
        return Err("layer_to is the layer that the file lies in".to_owned());
    }
    Ok(MoveItem {
        id: PlanId::new(string(&object, "id")?),
        table: queue.table.clone(),
        writer: queue.writer.clone(),
        path_from,
        layer_from: queue.layer.clone(),
        path_to,
        layer_to: (!layer_to.as_str().is_empty()).then_some(layer_to),
        due_s: due_s(&object)?,
        attempts: small_count(&object, "attempts"),
        forgiven: small_count(&object, "forgiven"),
    })
}

/// When an item is due, Unix seconds.
pub(super) fn due_s_of(text: &str) -> Result<i64, String> {
    due_s(&parse_object(text)?)
}

/// `[[timeout_sec, max_size_bytes, iteration], …]`.
pub(super) fn levels_to_json(policy: &Policy) -> String {
    let levels: Vec<Value> = policy
        .levels
        .iter()
        .map(|level| {
            // Up: a plan must not close before its time.
            let timeout_s = level.timeout.as_secs() + u64::from(level.timeout.subsec_nanos() > 0);
            json!([timeout_s, level.max_size_bytes, level.iteration.0])
        })
        .collect();
    Value::Array(levels).to_string()
}

/// Name → layer, with the entry `""` for files of clients that name none.
pub(super) fn layers_to_json(policy: &Policy) -> String {
    let mut layers = Map::new();
    layers.insert(String::new(), layer_to_json("", "", "", 0, ""));
    for layer in &policy.layers {
        let ttl = layer.ttl.unwrap_or_default();
        let ttl_s = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        let next = layer.next.as_ref().map_or("", LayerName::as_str);
        let name = layer.name.as_str();
        layers.insert(
            name.to_owned(),
            layer_to_json(&layer.url, name, &layer.kind, ttl_s, next),
        );
    }
    Value::Object(layers).to_string()
}

fn layer_to_json(url: &str, name: &str, kind: &str, ttl_s: u64, next: &str) -> Value {
    json!({"url": url, "name": name, "type": kind, "ttl_sec": ttl_s, "layer_to": next})
}

fn parse_object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is not a JSON object".to_owned()),
        Err(error) => Err(format!("it is not JSON: {error}")),
    }
}

/// A text field; empty when absent, as in entries of older clients.
fn string<'a>(object: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(""),
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("{name} is not a string")),
    }
}

/// A whole number of at least 0; 0 when absent. Floats come from scripts that re-encode.
fn count(object: &Map<String, Value>, name: &str) -> Result<u64, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(0),
        Some(value) => value
            .as_u64()
            .or_else(|| whole(value).and_then(|number| u64::try_from(number).ok()))
            .ok_or_else(|| format!("{name} is not a whole number of at least 0")),
    }
}

fn whole(value: &Value) -> Option<i64> {
    if let Some(number) = value.as_i64() {
        return Some(number);
    }
    let number = value.as_f64()?;
    #[expect(clippy::cast_possible_truncation, reason = "the range is checked")]
    (number.fract() == 0.0 && number.abs() < 9.2e18).then_some(number as i64)
}

fn time_ns(object: &Map<String, Value>, name: &str) -> Result<i64, String> {
    let twin = format!("str_{name}");
    match string(object, &twin)? {
        "" => match object.get(name) {
            None | Some(Value::Null) => Ok(0),
            Some(value) => whole(value).ok_or_else(|| format!("{name} is not a whole number")),
        },
        digits => digits
            .parse()
            .map_err(|_| format!("{twin} is not a whole number of 64 bits")),
    }
}

fn due_s(object: &Map<String, Value>) -> Result<i64, String> {
    object
        .get("time_s")
        .and_then(whole)
        .ok_or_else(|| "it has no time_s".to_owned())
}

/// A count of ours in an item; anything else that stands there counts as 0.
fn small_count(object: &Map<String, Value>, name: &str) -> u32 {
    object
        .get(name)
        .and_then(whole)
        .map_or(0, |number| u32::try_from(number.max(0)).unwrap_or(u32::MAX))
}

/// Scripts that re-encode print an empty array as `{}`.
fn paths(object: &Map<String, Value>) -> Result<&[Value], String> {
    match object.get("paths") {
        Some(Value::Array(paths)) => Ok(paths),
        Some(Value::Object(empty)) if empty.is_empty() => Ok(&[]),
        _ => Err("it has no list of paths".to_owned()),
    }
}

fn take_object(object: &mut Map<String, Value>, name: &str) -> Result<Map<String, Value>, String> {
    match object.remove(name) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(values)) => Ok(values),
        Some(Value::Array(values)) if values.is_empty() => Ok(Map::new()),
        Some(_) => Err(format!("{name} is not an object")),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        catalog::{LayerRule, Level},
        model::{Iteration, PartitionDir},
    };

    fn table() -> TableRef {
        TableRef::new("db", "t").unwrap()
    }

    fn queue() -> MergeQueue {
        MergeQueue {
            table: table(),
            iteration: Iteration(1),
            dir: PartitionDir::parse("date=2024-01-15/hour=14").unwrap(),
            layer: LayerName::default(),
            writer: WriterId::default(),
        }
    }

    #[test]
    fn an_entry_comes_back_with_every_bit_and_unknown_field() {
        let path = "date=2024-01-15/hour=14/a.1.parquet";
        let text = r#"{"layer":"l1","database":"db","table":"t","path":"date=2024-01-15/hour=14/a.1.parquet",
            "size_bytes":9007199254740993,"row_count":5,"chunk_time":0,"min_time":0,"max_time":0,
            "min":{"n":-9223372036854775808},"max":{"n":18446744073709551615},
            "str_min_time":"1705327215000000001","str_max_time":"1705327215000000003","str_chunk_time":"1705327215000000002",
            "cmd":"ADD","colour":["red",9007199254740993]}"#;
        let entry = entry_from_json(text, &table(), path).unwrap();
        assert_eq!(entry.size_bytes, 9_007_199_254_740_993);
        assert_eq!(entry.min_time_ns, 1_705_327_215_000_000_001);
        assert_eq!(entry.writer.as_str(), "");
        assert_eq!(entry.extra.len(), 1);
        let again = entry_to_json(&entry, EntryCommand::Add);
        assert!(again.contains("18446744073709551615"), "{again}");
        assert!(again.starts_with(r#"{"layer":"l1","#), "{again}");
        let removed = entry_to_json(&entry, EntryCommand::Delete);
        assert!(removed.len() < 200, "{removed}");
        assert_eq!(entry_from_json(&again, &table(), path).unwrap(), entry);
    }

    #[test]
    fn an_entry_of_the_guides_client_and_a_damaged_one_are_read() {
        let text = r#"{"layer":"","database":"db","table":"t","path":"a/b.1.parquet","size_bytes":1.5e+15,
            "min":null,"max":[],"chunk_time":7,"str_chunk_time":""}"#;
        let entry = entry_from_json(text, &table(), "a/b.1.parquet").unwrap();
        assert_eq!(entry.size_bytes, 1_500_000_000_000_000);
        assert_eq!(entry.chunk_time_ns, 7);
        assert!(entry.min.is_empty() && entry.max.is_empty());
    }

    #[test]
    fn an_unusable_entry_says_what_is_wrong() {
        let path = "a/b.1.parquet";
        for (text, reason) in [
            ("", "not JSON"),
            ("[]", "not a JSON object"),
            (
                r#"{"database":"db","table":"t","path":"a/c.1.parquet"}"#,
                "path is not that of its key",
            ),
            (
                r#"{"database":"x","table":"t","path":"a/b.1.parquet"}"#,
                "database is not that",
            ),
            (
                r#"{"database":"db","table":"t","path":"a/b.1.parquet","size_bytes":-1}"#,
                "size_bytes",
            ),
            (
                r#"{"database":"db","table":"t","path":"a/b.1.parquet","str_min_time":"1e9"}"#,
                "str_min_time",
            ),
            (
                r#"{"database":"db","table":"t","path":"a/b.1.parquet","layer":"a:b"}"#,
                "colon",
            ),
        ] {
            let error = entry_from_json(text, &table(), path).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        let deep = "[".repeat(100_000);
        assert!(entry_from_json(&deep, &table(), path).is_err());
    }

    #[test]
    fn a_plan_keeps_its_good_paths_once_and_names_the_others() {
        let text = r#"{"id":"x","time_s":17,"size":12,"attempts":3,"forgiven":1,"failed":"x","suspect":true,"paths":[
            "date=2024-01-15/hour=14/a.1.parquet","date=2024-01-15/hour=14/a.1.parquet",
            "date=2024-01-15/hour=14/b.1.parquet","date=2024-01-15/hour=15/c.1.parquet",
            "date=2024-01-15/hour=14/d.2.parquet","../../etc/x.1.parquet",5]}"#;
        let plan = plan_from_json(text, &queue()).unwrap();
        assert_eq!(plan.paths.len(), 2);
        assert_eq!(plan.refused_paths.len(), 4);
        assert_eq!((plan.due_s, plan.size_bytes, plan.attempts), (17, 12, 3));
        assert_eq!((plan.forgiven, plan.failed, plan.is_suspect), (1, 0, true));
        assert!(plan_from_json(r#"{"id":"x","time_s":1}"#, &queue()).is_err());
        assert!(plan_from_json(r#"{"id":"x","paths":[]}"#, &queue()).is_err());
        let empty = plan_from_json(r#"{"id":"x","time_s":1,"paths":{}}"#, &queue()).unwrap();
        assert!(empty.paths.is_empty());
    }

    #[test]
    fn the_policy_goes_out_as_the_contract_says() {
        let policy = Policy {
            levels: vec![Level {
                iteration: Iteration(1),
                timeout: Duration::from_millis(9_500),
                max_size_bytes: 10_485_760,
            }],
            layers: vec![LayerRule {
                name: LayerName::parse("l1").unwrap(),
                kind: "fs".to_owned(),
                url: "file:///data".to_owned(),
                ttl: Some(Duration::from_mins(1)),
                next: Some(LayerName::parse("l2").unwrap()),
            }],
            writers: None,
        };
        assert_eq!(levels_to_json(&policy), "[[10,10485760,1]]");
        let layers: Value = serde_json::from_str(&layers_to_json(&policy)).unwrap();
        assert_eq!(
            layers["l1"],
            json!({"url":"file:///data","name":"l1","type":"fs","ttl_sec":60,"layer_to":"l2"})
        );
        assert_eq!(layers[""]["ttl_sec"], 0);
    }
}
