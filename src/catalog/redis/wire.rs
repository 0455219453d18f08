//! JSON as it stands in Redis, to and from the model.
//!
//! Scripts of other programs print integers beyond 14 digits damaged, so times travel as
//! decimal strings (`str_*`) beside fields that are 0; a reader prefers the string.

use serde_json::{Map, Value, json};

use crate::model::{
    DataPath, DropItem, IndexEntry, LayerName, MergePlan, MergeQueue, MoveItem, PlanId, PlanPart,
    TableRef, WriterId,
};

use super::{
    json_fields::{count, due_s, parse_object, paths, small_count, string, take_object, time_ns},
    keys::FileQueue,
};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Iteration, PartitionDir};

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
}
