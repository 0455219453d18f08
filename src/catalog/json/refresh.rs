//! One look at the folders: new files in, orphans out, oddities reported once.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use super::{
    ProbedFile,
    discovery::{self, FoundFile, FoundPartition},
    index::{Inner, guard, now_s},
    partition::Partition,
};
use crate::{
    catalog::{CatalogError, Refreshed},
    model::{DataPath, IndexEntry, LayerName, WriterId},
};

/// A folder that changed this recently may change again within the same clock tick.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// What the last looks saw, so that the next is cheap and says nothing twice.
#[derive(Debug, Default)]
pub(super) struct ScanMemory {
    /// Folder → its modification time when everything in it was accounted for.
    settled: HashMap<PathBuf, SystemTime>,
    /// File → size and modification time when it was reported.
    reported: HashMap<PathBuf, (u64, Option<SystemTime>)>,
    /// Folders whose metadata cannot be used.
    broken: HashSet<PathBuf>,
    /// Orphans are those of processes before this one: looked for once per partition.
    swept: HashSet<PathBuf>,
}

pub(super) fn refresh(inner: &Inner) -> Result<Refreshed, CatalogError> {
    let mut memory = guard(&inner.scan);
    let mut refreshed = Refreshed::default();
    guard(&inner.partitions).retain(|_, partition| !partition.is_gone());
    for (layer, root) in &inner.layers {
        for partition in discovery::partitions(root)? {
            if memory.settled.get(&partition.folder) == partition.modified.as_ref()
                && partition.modified.is_some()
            {
                continue;
            }
            match refresh_partition(inner, layer, &partition, &mut memory, &mut refreshed) {
                Ok(()) => {
                    memory.broken.remove(&partition.folder);
                }
                // One unusable partition must not stop the others.
                Err(error) => {
                    if memory.broken.insert(partition.folder.clone()) {
                        tracing::error!(partition = %partition.folder.display(), %error, "partition is left alone");
                    }
                }
            }
        }
    }
    Ok(refreshed)
}

fn refresh_partition(
    inner: &Inner,
    layer: &LayerName,
    found: &FoundPartition,
    memory: &mut ScanMemory,
    refreshed: &mut Refreshed,
) -> Result<(), CatalogError> {
    let files = discovery::files(found)?;
    let has_metadata = super::metadata_file::stamp(&found.folder).is_some();
    if files.is_empty() && !has_metadata {
        settle(found, memory, true);
        return Ok(());
    }
    let files = inner.with_partition(&found.table, &found.dir, layer, |partition| {
        partition.reload_if_changed()?;
        Ok(unknown(files, partition))
    })?;
    if memory.swept.insert(found.folder.clone()) && !inner.is_read_only {
        refreshed.orphans_removed_count += sweep_orphans(inner, layer, found)?;
    }
    let mut new = Vec::new();
    let mut is_settled = true;
    for file in files {
        match file {
            FoundFile::Other(path, reason) => report(memory, refreshed, &path, &reason),
            FoundFile::Data(path) => {
                let full = found.folder.join(path.file_name());
                if memory
                    .reported
                    .get(&full)
                    .is_some_and(|seen| *seen == size_and_time(&full))
                {
                    is_settled = false;
                    continue;
                }
                match (inner.probe)(&found.table, &full) {
                    Ok(probed) => {
                        let entry = entry(layer, found, path, probed, &full);
                        // What has lain here for long has waited for long: a first run need not wait again.
                        let written_at_s = (entry.chunk_time_ns / 1_000_000_000).min(now_s());
                        new.push((entry, written_at_s));
                    }
                    Err(reason) => {
                        // It may still be written in place: look again when it has changed.
                        is_settled = false;
                        report(memory, refreshed, &full, &reason);
                    }
                }
            }
        }
    }
    if !new.is_empty() {
        refreshed.registered_count += new.len() as u64;
        inner.with_partition(&found.table, &found.dir, layer, |p| {
            p.batch(&new, &[], now_s(), 0)
        })?;
    }
    settle(found, memory, is_settled);
    Ok(())
}

/// Leaves out the files that the partition accounts for.
fn unknown(mut files: Vec<FoundFile>, partition: &Partition) -> Vec<FoundFile> {
    let unindexed = partition.unindexed();
    files.retain(|file| match file {
        FoundFile::Data(path) => partition.entry(path).is_none() && !unindexed.contains(path),
        FoundFile::Other(..) => true,
    });
    files
}

fn settle(found: &FoundPartition, memory: &mut ScanMemory, is_settled: bool) {
    let modified = found
        .modified
        .filter(|time| time.elapsed().is_ok_and(|age| age > SETTLE_TIME));
    match modified {
        Some(time) if is_settled => memory.settled.insert(found.folder.clone(), time),
        _ => memory.settled.remove(&found.folder),
    };
}

/// Removes outputs that were announced by a process that is gone and never committed.
fn sweep_orphans(
    inner: &Inner,
    layer: &LayerName,
    found: &FoundPartition,
) -> Result<u64, CatalogError> {
    let live: HashSet<DataPath> = guard(&inner.announced)
        .values()
        .flatten()
        .cloned()
        .collect();
    inner.with_partition(&found.table, &found.dir, layer, |partition| {
        let mut orphans = partition.orphans();
        orphans.retain(|orphan| !live.contains(orphan));
        for orphan in &orphans {
            let path = found.folder.join(orphan.file_name());
            match fs::remove_file(&path) {
                Ok(()) => tracing::info!(file = %path.display(), "removed the output of an interrupted merge"),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(source) => return Err(CatalogError::Io { path, source }),
            }
        }
        partition.forget_pending(&orphans)?;
        Ok(orphans.len() as u64)
    })
}

fn report(memory: &mut ScanMemory, refreshed: &mut Refreshed, path: &Path, reason: &str) {
    let seen = size_and_time(path);
    if memory.reported.insert(path.to_owned(), seen).is_none() {
        refreshed.left_alone_count += 1;
        tracing::warn!(file = %path.display(), reason, "file is left alone");
    }
}

fn size_and_time(path: &Path) -> (u64, Option<SystemTime>) {
    fs::symlink_metadata(path).map_or((0, None), |meta| (meta.len(), meta.modified().ok()))
}

fn entry(
    layer: &LayerName,
    found: &FoundPartition,
    path: DataPath,
    probed: ProbedFile,
    full: &Path,
) -> IndexEntry {
    let written = size_and_time(full).1.unwrap_or_else(SystemTime::now);
    let written_ns = written
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_nanos();
    IndexEntry {
        layer: layer.clone(),
        table: found.table.clone(),
        path,
        size_bytes: probed.size_bytes,
        row_count: probed.row_count,
        chunk_time_ns: i64::try_from(written_ns).unwrap_or(i64::MAX),
        min_time_ns: probed.min_time_ns,
        max_time_ns: probed.max_time_ns,
        min: probed.min,
        max: probed.max,
        writer: WriterId::default(),
        extra: serde_json::Map::new(),
    }
}
