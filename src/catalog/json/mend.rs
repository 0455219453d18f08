//! Repairs of one `metadata.json`, and what it says of its files as a whole. Pure.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::{
    index::now_s,
    metadata_file::Metadata,
    partition::push_file,
    records::{FileRecord, drop_value, file_value},
};
use crate::{
    catalog::audit::{ItemFate, StoredEntry},
    model::{DropItem, IndexEntry, TableRef},
};

/// Old texts that are kept in one `metadata.json`.
const MENDED_MAX: usize = 100;

pub(super) fn stored(record: &FileRecord) -> StoredEntry {
    StoredEntry {
        path: record.entry.path.to_string(),
        text: file_value(record).to_string(),
        entry: Ok(record.entry.clone()),
    }
}

/// Whether this is the text that was seen of a value.
fn is_text(value: &Value, text: &str) -> bool {
    let shown = value.to_string();
    shown == text
}

pub(super) fn drop_text(drop: &DropItem) -> String {
    drop_value(drop, None, None).to_string()
}

/// What the file says of its files as a whole, where that is not so.
pub(super) fn sums_problem(
    table: &TableRef,
    metadata: &Metadata,
    top: &Map<String, Value>,
) -> Option<String> {
    let entries = || metadata.files.iter().map(|file| &file.entry);
    let mut seen = HashSet::new();
    if let Some(twice) = entries().find(|entry| !seen.insert(&entry.path)) {
        return Some(format!("{} is listed twice", twice.path));
    }
    // Entries that we do not understand count too, for whoever wrote them.
    if !metadata.foreign_files.is_empty() {
        return None;
    }
    let sum = |of: fn(&IndexEntry) -> u64| json!(entries().map(of).sum::<u64>());
    let wanted = [
        ("type", json!(table.table())),
        ("row_count", sum(|entry| entry.row_count)),
        ("parquet_size_bytes", sum(|entry| entry.size_bytes)),
        (
            "min_time",
            json!(entries().map(|entry| entry.min_time_ns).min().unwrap_or(0)),
        ),
        (
            "max_time",
            json!(entries().map(|entry| entry.max_time_ns).max().unwrap_or(0)),
        ),
    ];
    let differs = |(name, wanted): &(&str, Value)| {
        let found = top.get(*name)?;
        (found != wanted).then(|| format!("{name} is {found}, its files say {wanted}"))
    };
    wanted.iter().find_map(differs)
}

/// Keeps an old text, as many as there is room for.
fn keep_text(metadata: &mut Metadata, name: &str, kept: Value) {
    let texts = metadata
        .extra
        .entry(name)
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Value::Array(texts) = texts {
        texts.push(kept);
        let surplus = texts.len().saturating_sub(MENDED_MAX);
        texts.drain(..surplus);
    }
}

pub(super) fn mend_entry(
    metadata: &mut Metadata,
    path: &str,
    seen: &str,
    new: Option<&IndexEntry>,
) -> bool {
    let place = metadata
        .files
        .iter()
        .position(|file| file.entry.path.as_str() == path && stored(file).text == seen);
    let foreign = metadata
        .foreign_files
        .iter()
        .position(|value| is_text(value, seen));
    match (place, foreign, new) {
        (Some(place), _, Some(new)) => metadata.files[place].entry = new.clone(),
        (Some(place), _, None) => drop(metadata.files.remove(place)),
        (None, Some(place), new) => {
            metadata.foreign_files.remove(place);
            let is_there = |new: &IndexEntry| {
                let mut files = metadata.files.iter();
                files.any(|file| file.entry.path == new.path)
            };
            if let Some(new) = new.filter(|new| !is_there(new)) {
                push_file(metadata, new.clone(), now_s());
            }
        }
        (None, None, _) => return false,
    }
    let kept = json!({"path": path, "entry": seen, "at_s": now_s()});
    keep_text(metadata, "mended", kept);
    true
}

pub(super) fn mend_item(metadata: &mut Metadata, seen: &str, fate: &ItemFate) -> bool {
    let drops = metadata.drop_queue.len() + metadata.foreign_drops.len();
    metadata.drop_queue.retain(|drop| drop_text(drop) != seen);
    metadata.foreign_drops.retain(|value| !is_text(value, seen));
    if metadata.drop_queue.len() + metadata.foreign_drops.len() == drops {
        return false;
    }
    if let ItemFate::Fail(reason) = fate {
        let failed = json!({"reason": reason, "item": seen, "at_s": now_s()});
        keep_text(metadata, "failed", failed);
    }
    true
}
