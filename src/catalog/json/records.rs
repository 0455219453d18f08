//! What stands in a `metadata.json`: files, deletes, plans that were tried; each as JSON and back.

use serde_json::{Value, json};

use super::index::now_s;
use crate::model::{
    DataPath, DropItem, IndexEntry, Iteration, LayerName, PlanId, TableRef, WriterId,
};

/// A file of the partition, with what planning needs beside its entry.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct FileRecord {
    pub(super) id: u64,
    pub(super) entry: IndexEntry,
    /// When it was registered; a plan's timeout counts from here. Unix seconds.
    pub(super) added_at_s: i64,
    /// Why it is not merged any more.
    pub(super) set_aside: Option<Aside>,
    /// Its bytes on disk, where we found it ourselves.
    pub(super) found_size_bytes: Option<u64>,
}

/// What is needed to bring a replaced file back, while it stands in `drop_queue`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Replaced {
    pub(super) by: DataPath,
    /// How many files `by` replaced.
    pub(super) count: usize,
    pub(super) record: FileRecord,
}

/// Why a file is not merged any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Aside {
    pub(super) reason: String,
    /// Unix seconds; 0 when it is not known.
    pub(super) at_s: i64,
    /// The plan that was given up, when it was not this file alone.
    pub(super) plan: Option<PlanId>,
}

/// A plan that was claimed: it keeps its files, and how its attempts ended.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TriedPlan {
    pub(super) id: PlanId,
    pub(super) iteration: Iteration,
    pub(super) writer: WriterId,
    pub(super) paths: Vec<DataPath>,
    /// Unix seconds.
    pub(super) due_s: i64,
    pub(super) attempts: u32,
    pub(super) forgiven: u32,
    pub(super) failed: u32,
    pub(super) is_suspect: bool,
}

/// One that cannot be understood is forgotten: its files are planned anew.
pub(super) fn tried_plan(item: &Value) -> Option<TriedPlan> {
    let number = |key: &str| item.get(key).and_then(Value::as_i64).unwrap_or(0);
    let count = |key: &str| u32::try_from(number(key).max(0)).unwrap_or(u32::MAX);
    let text = |key: &str| item.get(key).and_then(Value::as_str).unwrap_or_default();
    let paths = item.get("paths")?.as_array()?.iter();
    Some(TriedPlan {
        id: PlanId::new(text("id")),
        iteration: Iteration(count("iteration")),
        writer: WriterId::parse(text("writer_id")).ok()?,
        paths: paths
            .map(|path| DataPath::parse(path.as_str()?).ok())
            .collect::<Option<_>>()?,
        due_s: number("time_s"),
        attempts: count("attempts"),
        forgiven: count("forgiven"),
        failed: count("failed"),
        is_suspect: item.get("suspect").and_then(Value::as_bool) == Some(true),
    })
}

pub(super) fn tried_plan_value(plan: &TriedPlan) -> Value {
    json!({
        "id": plan.id.as_str(),
        "iteration": plan.iteration.0,
        "writer_id": plan.writer.as_str(),
        "paths": plan.paths.iter().map(DataPath::as_str).collect::<Vec<_>>(),
        "time_s": plan.due_s,
        "attempts": plan.attempts,
        "forgiven": plan.forgiven,
        "failed": plan.failed,
        "suspect": plan.is_suspect,
    })
}

const ENTRY_FIELDS: [&str; 19] = [
    "id",
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
    "added_at_s",
    "set_aside",
    "set_aside_at_s",
    "set_aside_plan",
    "found_size_bytes",
    "cmd",
];

/// `None` for anything that is not an entry of this table.
pub(super) fn file_record(item: &Value, layer: &LayerName, table: &TableRef) -> Option<FileRecord> {
    let fields = item.as_object()?;
    let text = |key: &str| fields.get(key).and_then(Value::as_str);
    let number = |key: &str| fields.get(key).and_then(Value::as_i64);
    let unsigned = |key: &str| fields.get(key).and_then(Value::as_u64);
    let object = |key: &str| {
        fields
            .get(key)
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    };
    if text("database").is_some_and(|name| !name.is_empty() && name != table.database())
        || text("table").is_some_and(|name| !name.is_empty() && name != table.table())
    {
        return None;
    }
    let chunk_time_ns = number("chunk_time").unwrap_or(0);
    Some(FileRecord {
        id: unsigned("id").unwrap_or(0),
        entry: IndexEntry {
            // The folder decides: a layer may have been renamed since.
            layer: layer.clone(),
            table: table.clone(),
            path: DataPath::parse(text("path")?).ok()?,
            size_bytes: unsigned("size_bytes")?,
            row_count: unsigned("row_count")?,
            chunk_time_ns,
            min_time_ns: number("min_time")?,
            max_time_ns: number("max_time")?,
            min: object("min"),
            max: object("max"),
            writer: WriterId::parse(text("writer_id").unwrap_or_default()).ok()?,
            extra: fields
                .iter()
                .filter(|(key, _)| !ENTRY_FIELDS.contains(&key.as_str()))
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect(),
        },
        added_at_s: number("added_at_s")
            .unwrap_or(chunk_time_ns / 1_000_000_000)
            .min(now_s()),
        set_aside: text("set_aside").map(|reason| Aside {
            reason: reason.to_owned(),
            at_s: number("set_aside_at_s").unwrap_or(0),
            plan: text("set_aside_plan").map(PlanId::new),
        }),
        found_size_bytes: unsigned("found_size_bytes"),
    })
}

pub(super) fn file_value(record: &FileRecord) -> Value {
    let entry = &record.entry;
    let mut fields = entry.extra.clone();
    fields.entry("range").or_insert_with(|| json!("1h"));
    fields.entry("type").or_insert_with(|| json!("compacted"));
    let known = [
        ("id", json!(record.id)),
        ("layer", json!(entry.layer.as_str())),
        ("database", json!(entry.table.database())),
        ("table", json!(entry.table.table())),
        ("path", json!(entry.path.as_str())),
        ("size_bytes", json!(entry.size_bytes)),
        ("row_count", json!(entry.row_count)),
        ("chunk_time", json!(entry.chunk_time_ns)),
        ("min_time", json!(entry.min_time_ns)),
        ("max_time", json!(entry.max_time_ns)),
        ("min", Value::Object(entry.min.clone())),
        ("max", Value::Object(entry.max.clone())),
        ("writer_id", json!(entry.writer.as_str())),
        ("added_at_s", json!(record.added_at_s)),
    ];
    fields.extend(
        known
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value)),
    );
    if let Some(aside) = &record.set_aside {
        fields.insert("set_aside".to_owned(), json!(aside.reason));
        fields.insert("set_aside_at_s".to_owned(), json!(aside.at_s));
        if let Some(plan) = &aside.plan {
            fields.insert("set_aside_plan".to_owned(), json!(plan.as_str()));
        }
    }
    if let Some(bytes) = record.found_size_bytes {
        fields.insert("found_size_bytes".to_owned(), json!(bytes));
    }
    Value::Object(fields)
}

/// Reads both spellings of the contract: `time_s` and Go's `TimeS`.
pub(super) fn drop_item(item: &Value, layer: &LayerName, table: &TableRef) -> Option<DropItem> {
    let fields = item.as_object()?;
    let field = |ours: &str, go: &str| fields.get(ours).or_else(|| fields.get(go));
    let text = |ours, go| field(ours, go).and_then(Value::as_str);
    if text("database", "Database").is_some_and(|name| name != table.database())
        || text("table", "Table").is_some_and(|name| name != table.table())
    {
        return None;
    }
    Some(DropItem {
        id: PlanId::new(text("id", "ID").unwrap_or_default()),
        table: table.clone(),
        layer: layer.clone(),
        writer: WriterId::parse(text("writer_id", "WriterID").unwrap_or_default()).ok()?,
        path: DataPath::parse(text("path", "Path")?).ok()?,
        due_s: field("time_s", "TimeS")
            .and_then(Value::as_i64)
            .unwrap_or(0),
    })
}

/// `None` for deletes that somebody asked for.
pub(super) fn replaced(item: &Value, layer: &LayerName, table: &TableRef) -> Option<Replaced> {
    Some(Replaced {
        by: DataPath::parse(item.get("replaced_by")?.as_str()?).ok()?,
        count: usize::try_from(item.get("replaced_count")?.as_u64()?).ok()?,
        record: file_record(item.get("entry")?, layer, table)?,
    })
}

pub(super) fn drop_value(
    drop: &DropItem,
    found_size_bytes: Option<&u64>,
    replaced: Option<&Replaced>,
) -> Value {
    let mut value = json!({
        "id": drop.id.as_str(),
        "writer_id": drop.writer.as_str(),
        "layer": drop.layer.as_str(),
        "database": drop.table.database(),
        "table": drop.table.table(),
        "path": drop.path.as_str(),
        "time_s": drop.due_s,
    });
    if let Some(bytes) = found_size_bytes {
        value["found_size_bytes"] = json!(bytes);
    }
    if let Some(replaced) = replaced {
        value["replaced_by"] = json!(replaced.by.as_str());
        value["replaced_count"] = json!(replaced.count);
        value["entry"] = file_value(&replaced.record);
    }
    value
}
