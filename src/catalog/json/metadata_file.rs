//! One partition's `metadata.json`: read it defensively, replace it atomically.
//!
//! Other programs read these files and older ones wrote them, so fields that this
//! version does not know are kept. Ours beside the contract's, which readers ignore:
//! `pending` (outputs announced, not committed), `merge_plans` (plans that were claimed, with
//! their attempts) and, per file, `added_at_s` and what it was `set_aside` for.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use serde_json::{Map, Value, json};

use super::records::{
    FileRecord, Replaced, TriedPlan, drop_item, drop_value, file_record, file_value, replaced,
    tried_plan, tried_plan_value,
};
use crate::{
    catalog::CatalogError,
    crash_points::{CrashPoint, CrashPoints},
    model::{DataPath, DropItem, LayerName, PartitionDir, TableRef},
};

pub(super) const FILE_NAME: &str = "metadata.json";
const TEMPORARY_NAME: &str = ".metadata.json.gigamerge";
/// A larger file is not ours: 2 million entries fit below.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// What `metadata.json` says.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Metadata {
    pub(super) files: Vec<FileRecord>,
    pub(super) drop_queue: Vec<DropItem>,
    /// Sizes of files in `drop_queue` that we found ourselves: a file of another size is another file.
    pub(super) found_drop_sizes: HashMap<DataPath, u64>,
    /// Files in `drop_queue` that a merge replaced.
    pub(super) replaced: HashMap<DataPath, Replaced>,
    /// Outputs whose bytes may be there though no entry names them.
    pub(super) pending: Vec<DataPath>,
    /// Plans that were claimed and did not end yet.
    pub(super) plans: Vec<TriedPlan>,
    /// Top-level fields that we do not know.
    pub(super) extra: Map<String, Value>,
    /// Entries that could not be understood; written back as they were.
    pub(super) foreign_files: Vec<Value>,
    pub(super) foreign_drops: Vec<Value>,
}

/// Tells one version of the file on disk from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size_bytes: u64,
    modified_ns: i128,
}

pub(super) fn stamp(dir: &Path) -> Option<Stamp> {
    let meta = fs::symlink_metadata(dir.join(FILE_NAME)).ok()?;
    Some(Stamp {
        inode: meta.ino(),
        size_bytes: meta.len(),
        modified_ns: i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec()),
    })
}

/// Reads a partition's file; an absent one is an empty partition.
pub(super) fn read(
    dir: &Path,
    layer: &LayerName,
    table: &TableRef,
    partition: &PartitionDir,
) -> Result<Metadata, CatalogError> {
    let path = dir.join(FILE_NAME);
    let malformed = |reason: String| CatalogError::Malformed {
        place: path.display().to_string(),
        reason,
    };
    let io = |source| CatalogError::Io {
        path: path.clone(),
        source,
    };
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Ok(Metadata::default());
        }
        Err(error) => return Err(io(error)),
        Ok(meta) if !meta.is_file() => return Err(malformed("not a plain file".to_owned())),
        Ok(meta) if meta.len() > FILE_BYTES_MAX => {
            return Err(malformed(format!(
                "{} bytes are more than 1 GiB",
                meta.len()
            )));
        }
        Ok(_) => {}
    }
    let bytes = fs::read(&path).map_err(io)?;
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| {
        malformed(format!(
            "not JSON ({error}); the partition is left alone until it is mended"
        ))
    })?;
    let Value::Object(mut top) = value else {
        return Err(malformed("not a JSON object".to_owned()));
    };
    let mut metadata = Metadata::default();
    for item in take_array(&mut top, "files").map_err(&malformed)? {
        match file_record(&item, layer, table)
            .filter(|record| record.entry.path.dir() == *partition)
        {
            Some(record) => metadata.files.push(record),
            None => metadata.foreign_files.push(item),
        }
    }
    metadata.files.sort_by_key(|record| record.id);
    for item in take_array(&mut top, "drop_queue").map_err(&malformed)? {
        match drop_item(&item, layer, table) {
            Some(drop) => {
                let size = item.get("found_size_bytes").and_then(Value::as_u64);
                metadata
                    .found_drop_sizes
                    .extend(size.map(|bytes| (drop.path.clone(), bytes)));
                metadata.replaced.extend(
                    replaced(&item, layer, table).map(|replaced| (drop.path.clone(), replaced)),
                );
                metadata.drop_queue.push(drop);
            }
            None => metadata.foreign_drops.push(item),
        }
    }
    for item in take_array(&mut top, "pending").map_err(&malformed)? {
        metadata
            .pending
            .extend(item.as_str().and_then(|path| DataPath::parse(path).ok()));
    }
    for item in take_array(&mut top, PLANS).map_err(&malformed)? {
        metadata.plans.extend(tried_plan(&item));
    }
    for computed in [
        "type",
        "parquet_size_bytes",
        "row_count",
        "min_time",
        "max_time",
    ] {
        top.remove(computed);
    }
    metadata.extra = top;
    Ok(metadata)
}

/// Writes aside, fsyncs, renames, fsyncs the folder: a crash leaves the old file or the new one.
pub(super) fn replace(
    dir: &Path,
    table: &TableRef,
    metadata: &Metadata,
    crash_points: &CrashPoints,
) -> Result<(), CatalogError> {
    let path = dir.join(FILE_NAME);
    let aside = dir.join(TEMPORARY_NAME);
    let io = |source| CatalogError::Io {
        path: path.clone(),
        source,
    };
    let text = to_text(table, metadata).map_err(|error| CatalogError::Malformed {
        place: path.display().to_string(),
        reason: error.to_string(),
    })?;
    let written = (|| {
        fs::create_dir_all(dir)?;
        let mut file = create_aside(&aside)?;
        file.write_all(&text)?;
        crash_points.reached(CrashPoint::MetadataWritten);
        file.sync_all()?;
        crash_points.reached(CrashPoint::MetadataSynced);
        fs::rename(&aside, &path)?;
        crash_points.reached(CrashPoint::MetadataRenamed);
        File::open(dir)?.sync_all()
    })();
    written.map_err(|source| {
        // Best effort: what stays behind is overwritten by the next attempt.
        let _ = fs::remove_file(&aside);
        io(source)
    })
}

/// A new file of our own: what a crash left, or a link that somebody put there, goes first.
fn create_aside(path: &Path) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o640).open(path)
}

fn to_text(table: &TableRef, metadata: &Metadata) -> Result<Vec<u8>, serde_json::Error> {
    let entries = || metadata.files.iter().map(|record| &record.entry);
    let mut files: Vec<Value> = metadata.files.iter().map(file_value).collect();
    files.extend(metadata.foreign_files.iter().cloned());
    let mut drops: Vec<Value> = metadata
        .drop_queue
        .iter()
        .map(|drop| {
            let size = metadata.found_drop_sizes.get(&drop.path);
            drop_value(drop, size, metadata.replaced.get(&drop.path))
        })
        .collect();
    drops.extend(metadata.foreign_drops.iter().cloned());
    let mut top = metadata.extra.clone();
    top.entry("wal_sequence").or_insert_with(|| json!(0));
    let computed = [
        ("type", json!(table.table())),
        (
            "parquet_size_bytes",
            json!(entries().map(|e| e.size_bytes).sum::<u64>()),
        ),
        (
            "row_count",
            json!(entries().map(|e| e.row_count).sum::<u64>()),
        ),
        (
            "min_time",
            json!(entries().map(|e| e.min_time_ns).min().unwrap_or(0)),
        ),
        (
            "max_time",
            json!(entries().map(|e| e.max_time_ns).max().unwrap_or(0)),
        ),
        ("drop_queue", Value::Array(drops)),
        ("files", Value::Array(files)),
    ];
    top.extend(
        computed
            .into_iter()
            .map(|(key, value)| (key.to_owned(), value)),
    );
    if !metadata.pending.is_empty() {
        let pending: Vec<&str> = metadata.pending.iter().map(DataPath::as_str).collect();
        top.insert("pending".to_owned(), json!(pending));
    }
    if !metadata.plans.is_empty() {
        let plans = metadata.plans.iter().map(tried_plan_value).collect();
        top.insert(PLANS.to_owned(), Value::Array(plans));
    }
    serde_json::to_vec(&Value::Object(top))
}

const PLANS: &str = "merge_plans";

fn take_array(top: &mut Map<String, Value>, key: &str) -> Result<Vec<Value>, String> {
    match top.remove(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(format!("{key:?} is not a list")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_fields_and_foreign_entries_survive_a_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let table = TableRef::new("db", "cpu").unwrap();
        let layer = LayerName::parse("hot").unwrap();
        let partition = PartitionDir::parse("a").unwrap();
        let text = json!({
            "type": "cpu", "wal_sequence": 7, "colour": "green",
            "drop_queue": [
                {"ID": "1", "WriterID": "w", "Layer": "hot", "Database": "db", "Table": "cpu", "Path": "a/x.1.parquet", "TimeS": 5},
                {"id": "2", "path": "../escape.1.parquet"},
            ],
            "files": [
                {"id": 3, "range": "1h", "type": "compacted", "path": "a/y.1.parquet", "size_bytes": 10, "row_count": 2,
                 "chunk_time": 1_700_000_000_000_000_001_i64, "min_time": 1, "max_time": 1_700_000_000_000_000_003_i64,
                 "max": {"big": 9_223_372_036_854_775_807_i64}, "shape": [1, 2]},
                {"path": "not a data path"},
            ],
        });
        fs::write(folder.path().join(FILE_NAME), text.to_string()).unwrap();
        let metadata = read(folder.path(), &layer, &table, &partition).unwrap();
        assert_eq!(metadata.files[0].added_at_s, 1_700_000_000);
        assert_eq!(metadata.drop_queue[0].due_s, 5);
        replace(folder.path(), &table, &metadata, &CrashPoints::none()).unwrap();
        assert_eq!(
            read(folder.path(), &layer, &table, &partition).unwrap(),
            metadata
        );
        let written: Value =
            serde_json::from_slice(&fs::read(folder.path().join(FILE_NAME)).unwrap()).unwrap();
        assert_eq!(written["colour"], "green");
        assert_eq!(written["files"][0]["shape"], json!([1, 2]));
        assert_eq!(written["files"][0]["max"]["big"], json!(i64::MAX));
        assert_eq!(written["files"][1], json!({"path": "not a data path"}));
        assert_eq!(
            written["drop_queue"][1],
            json!({"id": "2", "path": "../escape.1.parquet"})
        );
        assert!(!folder.path().join(TEMPORARY_NAME).exists());
    }

    #[test]
    fn a_file_that_is_not_json_is_an_error_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE_NAME), "{\"files\": [").unwrap();
        let table = TableRef::new("db", "cpu").unwrap();
        let error = read(
            folder.path(),
            &LayerName::default(),
            &table,
            &PartitionDir::parse("a").unwrap(),
        )
        .unwrap_err()
        .to_string();
        assert!(error.contains("not JSON"), "{error}");
        assert_eq!(
            fs::read_to_string(folder.path().join(FILE_NAME)).unwrap(),
            "{\"files\": ["
        );
    }
}
