//! One look at the folders: new files in, orphans out, oddities reported once.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use super::{
    ProbedFile,
    discovery::{self, FoundFile, FoundPartition},
    index::{Inner, guard, now_s},
    partition::Partition,
};
use crate::{
    catalog::{CatalogError, Refreshed},
    model::{DataPath, IndexEntry, LayerName, QuarantineKind, Quarantined, TableRef, WriterId},
};

/// A folder that changed this recently may change again within the same clock tick.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// A refused file that did not change is probed again after this, without another report.
const LOOK_AGAIN_TIME: Duration = Duration::from_secs(60);

/// What a file looked like when it was refused, and why it was.
#[derive(Debug)]
struct Report {
    seen: (u64, Option<SystemTime>),
    at: Instant,
    reason: String,
    /// `None` for what is no data file by its name.
    file: Option<(TableRef, DataPath)>,
}

/// What the last looks saw, so that the next is cheap and says nothing twice.
#[derive(Debug, Default)]
pub(super) struct ScanMemory {
    /// Folder → its modification time when everything in it was accounted for.
    settled: HashMap<PathBuf, SystemTime>,
    /// Files that were refused.
    reported: HashMap<PathBuf, Report>,
    /// Folders whose metadata cannot be used.
    broken: HashSet<PathBuf>,
    /// Orphans are those of processes before this one: looked for once per partition.
    swept: HashSet<PathBuf>,
}

impl ScanMemory {
    fn forget(&mut self, folder: &Path) {
        self.settled.remove(folder);
        self.broken.remove(folder);
        self.swept.remove(folder);
    }

    /// The data files that could not be read when they were last looked at.
    pub(super) fn refused(&self, table: Option<&TableRef>) -> Vec<Quarantined> {
        let refused = self.reported.iter().filter_map(|(full, report)| {
            let (of_table, path) = report.file.as_ref()?;
            if table.is_some_and(|table| table != of_table) {
                return None;
            }
            let written = report
                .seen
                .1?
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            Some(Quarantined {
                kind: QuarantineKind::Unregistered,
                table: of_table.clone(),
                id: path.to_string(),
                paths: vec![path.clone()],
                reason: report.reason.clone(),
                at_s: i64::try_from(written.as_secs()).unwrap_or(i64::MAX),
                place: full.display().to_string(),
                text: String::new(),
            })
        });
        refused.collect()
    }

    /// Whether a file was refused a short while ago and has not changed since. After that it gets another
    /// look: what was wrong may have been a permission, a full table of open files, or our settings.
    fn was_just_refused(&self, path: &Path) -> bool {
        self.reported.get(path).is_some_and(|report| {
            report.seen == size_and_time(path) && report.at.elapsed() < LOOK_AGAIN_TIME
        })
    }
}

pub(super) fn refresh(inner: &Inner) -> Result<Refreshed, CatalogError> {
    let mut memory = guard(&inner.scan);
    let mut refreshed = Refreshed::default();
    guard(&inner.partitions).retain(|_, partition| {
        let is_gone = partition.is_gone();
        if is_gone {
            // It may come back as it was.
            memory.forget(partition.folder());
        }
        !is_gone
    });
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
    memory.reported.retain(|path, _| path.exists());
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
            FoundFile::Other(path, reason) => report(memory, refreshed, &path, &reason, None),
            FoundFile::Data(path) => {
                let full = found.folder.join(path.file_name());
                if memory.was_just_refused(&full) {
                    is_settled = false;
                    continue;
                }
                match (inner.probe)(&found.table, &full) {
                    Ok(probed) => {
                        memory.reported.remove(&full);
                        let entry = entry(layer, found, path, probed, &full);
                        // What has lain here for long has waited for long: a first run need not wait again.
                        let written_at_s = (entry.chunk_time_ns / 1_000_000_000).min(now_s());
                        new.push((entry, written_at_s));
                    }
                    Err(reason) => {
                        // It may still be written in place: look again when it has changed.
                        is_settled = false;
                        let file = Some((found.table.clone(), path));
                        report(memory, refreshed, &full, &reason, file);
                    }
                }
            }
        }
    }
    if !new.is_empty() {
        refreshed.registered_count += new.len() as u64;
        inner.with_partition(&found.table, &found.dir, layer, |p| p.register_found(&new))?;
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
    let removed_count = inner.with_partition(&found.table, &found.dir, layer, |partition| {
        let mut orphans = partition.orphans();
        orphans.retain(|orphan| !live.contains(orphan));
        partition.remove_announced(&orphans)
    })?;
    if removed_count > 0 {
        tracing::info!(folder = %found.folder.display(), files = removed_count,
            "removed outputs of interrupted merges");
    }
    Ok(removed_count)
}

fn report(
    memory: &mut ScanMemory,
    refreshed: &mut Refreshed,
    path: &Path,
    reason: &str,
    file: Option<(TableRef, DataPath)>,
) {
    // Deleted since the folder was listed: nothing to report.
    if matches!(path.try_exists(), Ok(false)) {
        return;
    }
    let report = Report {
        seen: size_and_time(path),
        at: Instant::now(),
        reason: reason.to_owned(),
        file,
    };
    let is_known = memory.reported.insert(path.to_owned(), report).is_some();
    if !is_known {
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
