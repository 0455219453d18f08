//! One partition in memory, and every change that its `metadata.json` goes through.
//!
//! A change is applied to a copy, the copy is written, and only then takes the place of
//! what was there: an error leaves memory and disk as they were.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use crate::{
    catalog::{CatalogError, DeadOutput},
    crash_points::CrashPoints,
    model::{
        DataPath, DropItem, IndexEntry, LayerName, MergeQueue, PartitionDir, PlanId, TableRef,
        WriterId,
    },
};

use super::{
    claims::Claims,
    index::now_s,
    metadata_file::{self, Metadata, Stamp},
    records::{Aside, FileRecord, Replaced},
};

#[derive(Debug)]
pub(super) struct Partition {
    pub(super) layer: LayerName,
    pub(super) table: TableRef,
    pub(super) dir: PartitionDir,
    folder: PathBuf,
    /// Changes stay in memory.
    is_read_only: bool,
    pub(super) metadata: Metadata,
    /// Path → place in `metadata.files`.
    places: HashMap<DataPath, usize>,
    stamp: Option<Stamp>,
    pub(super) merges: Claims,
    pub(super) drops: Claims,
    /// Deleted files whose drop items are still in the file on disk; written out with the next change.
    pub(super) finished_drops: HashSet<DataPath>,
    pub(super) crash_points: CrashPoints,
}

impl Partition {
    pub(super) fn load(
        layer: LayerName,
        table: TableRef,
        dir: PartitionDir,
        folder: PathBuf,
        is_read_only: bool,
    ) -> Result<Self, CatalogError> {
        let stamp = metadata_file::stamp(&folder);
        let metadata = metadata_file::read(&folder, &layer, &table, &dir)?;
        let mut partition = Self {
            layer,
            table,
            dir,
            folder,
            is_read_only,
            metadata: Metadata::default(),
            places: HashMap::new(),
            stamp,
            merges: Claims::default(),
            drops: Claims::default(),
            finished_drops: HashSet::new(),
            crash_points: CrashPoints::none(),
        };
        partition.set_metadata(metadata);
        Ok(partition)
    }

    fn set_metadata(&mut self, metadata: Metadata) {
        self.places = places(&metadata);
        self.metadata = metadata;
    }

    /// Reads the file again if somebody else replaced it.
    pub(super) fn reload_if_changed(&mut self) -> Result<(), CatalogError> {
        let stamp = metadata_file::stamp(&self.folder);
        if stamp == self.stamp {
            return Ok(());
        }
        if stamp.is_none() && self.folder.is_dir() && !self.is_read_only {
            // Without it, replaced files that still lie here would be taken for new ones.
            tracing::warn!(folder = %self.folder.display(), "metadata.json was removed; it is written again from memory");
            self.replace(&self.metadata)?;
        } else {
            self.set_metadata(metadata_file::read(
                &self.folder,
                &self.layer,
                &self.table,
                &self.dir,
            )?);
        }
        self.stamp = metadata_file::stamp(&self.folder);
        Ok(())
    }

    fn replace(&self, metadata: &Metadata) -> Result<(), CatalogError> {
        metadata_file::replace(&self.folder, &self.table, metadata, &self.crash_points)
    }

    pub(super) fn change(&mut self, apply: impl FnOnce(&mut Metadata)) -> Result<(), CatalogError> {
        self.reload_if_changed()?;
        let mut next = self.metadata.clone();
        apply(&mut next);
        let finished = &self.finished_drops;
        next.drop_queue
            .retain(|drop| !finished.contains(&drop.path));
        next.found_drop_sizes
            .retain(|path, _| !finished.contains(path));
        next.replaced.retain(|path, _| !finished.contains(path));
        forget_plans_without_files(&mut next);
        if next == self.metadata {
            return Ok(());
        }
        if !self.is_read_only
            && let Err(error) = self.replace(&next)
        {
            // The rename may have happened before the error: what is on disk is true.
            // When that cannot be read, nobody knows.
            self.reload_if_changed()
                .map_err(|unknown| CatalogError::Unavailable {
                    context: "reading metadata.json after a failed write".to_owned(),
                    reason: unknown.to_string(),
                })?;
            if self.metadata != next {
                return Err(error);
            }
        }
        self.stamp = metadata_file::stamp(&self.folder);
        self.set_metadata(next);
        self.finished_drops.clear();
        Ok(())
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = &IndexEntry> {
        self.metadata.files.iter().map(|record| &record.entry)
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether somebody removed the whole folder.
    pub(super) fn is_gone(&self) -> bool {
        // Any other error may pass.
        matches!(self.folder.try_exists(), Ok(false))
    }

    pub(super) fn set_aside_count(&self) -> usize {
        self.metadata
            .files
            .iter()
            .filter(|record| record.set_aside.is_some())
            .count()
    }

    pub(super) fn record(&self, path: &DataPath) -> Option<&FileRecord> {
        self.metadata.files.get(*self.places.get(path)?)
    }

    pub(super) fn entry(&self, path: &DataPath) -> Option<&IndexEntry> {
        self.record(path).map(|record| &record.entry)
    }

    /// Files that are there without an entry, and rightly so: replaced ones in their grace, and
    /// outputs before their commit.
    pub(super) fn unindexed(&self) -> HashSet<&DataPath> {
        let dropped = self.metadata.drop_queue.iter().map(|drop| &drop.path);
        dropped
            .filter(|path| !self.finished_drops.contains(path))
            .chain(&self.metadata.pending)
            .collect()
    }

    /// Adds files that were found in the folder; their sizes are those on disk.
    pub(super) fn register_found(
        &mut self,
        found: &[(IndexEntry, i64)],
    ) -> Result<(), CatalogError> {
        self.change(|metadata| {
            for (entry, added_at_s) in found {
                push_file(metadata, entry.clone(), *added_at_s);
                if let Some(record) = metadata.files.last_mut() {
                    record.found_size_bytes = Some(record.entry.size_bytes);
                }
            }
        })
    }

    /// Adds or replaces entries, each with the time from which its plan's timeout counts (Unix seconds);
    /// removes others and queues their deletion.
    pub(super) fn batch(
        &mut self,
        add: &[(IndexEntry, i64)],
        remove: &[DataPath],
        now_s: i64,
        drop_delay_s: i64,
    ) -> Result<(), CatalogError> {
        let layer = self.layer.clone();
        self.change(|metadata| {
            let mut places = places(metadata);
            for (entry, added_at_s) in add {
                let entry = IndexEntry {
                    layer: layer.clone(),
                    ..entry.clone()
                };
                if let Some(place) = places.get(&entry.path) {
                    metadata.files[*place].entry = entry;
                } else {
                    places.insert(entry.path.clone(), metadata.files.len());
                    push_file(metadata, entry, *added_at_s);
                }
            }
            remove_files(metadata, remove, now_s + drop_delay_s, None);
        })
    }

    /// Outputs of merges that a crash interrupted: nobody else knows these names.
    pub(super) fn orphans(&self) -> Vec<DataPath> {
        self.metadata
            .pending
            .iter()
            .filter(|path| self.entry(path).is_none())
            .cloned()
            .collect()
    }

    /// The queue's writer is not known any more, and does not matter here.
    pub(super) fn dead_output(&self, path: DataPath) -> DeadOutput {
        DeadOutput {
            queue: MergeQueue {
                table: self.table.clone(),
                iteration: path.iteration(),
                dir: self.dir.clone(),
                layer: self.layer.clone(),
                writer: WriterId::default(),
            },
            path,
            sources: Vec::new(),
            sources_layer: self.layer.clone(),
            token: String::new(),
        }
    }

    /// Removes outputs that were announced and never committed, and forgets those that are gone for sure:
    /// one that stays would be taken for a new file.
    pub(super) fn remove_announced(&mut self, outputs: &[DataPath]) -> Result<u64, CatalogError> {
        let (mut gone, mut removed_count, mut failed) = (Vec::new(), 0, None);
        for output in outputs.iter().filter(|output| self.entry(output).is_none()) {
            let path = self.folder.join(output.file_name());
            match fs::remove_file(&path) {
                Ok(()) => {
                    removed_count += 1;
                    gone.push(output.clone());
                }
                Err(error) if error.kind() == ErrorKind::NotFound => gone.push(output.clone()),
                Err(source) => failed = Some(CatalogError::Io { path, source }),
            }
        }
        self.change(|metadata| metadata.pending.retain(|path| !gone.contains(path)))?;
        failed.map_or(Ok(removed_count), Err)
    }
}

fn places(metadata: &Metadata) -> HashMap<DataPath, usize> {
    metadata
        .files
        .iter()
        .enumerate()
        .map(|(place, record)| (record.entry.path.clone(), place))
        .collect()
}

pub(super) fn push_file(metadata: &mut Metadata, entry: IndexEntry, added_at_s: i64) {
    // The newest file stands last.
    let id = metadata.files.last().map_or(0, |record| record.id) + 1;
    metadata.files.push(FileRecord {
        id,
        entry,
        added_at_s,
        set_aside: None,
        found_size_bytes: None,
    });
}

/// `by`: the file that has their rows.
pub(super) fn remove_files(
    metadata: &mut Metadata,
    paths: &[DataPath],
    due_s: i64,
    by: Option<&DataPath>,
) {
    let removed: HashSet<&DataPath> = paths.iter().collect();
    let queue = &mut metadata.drop_queue;
    // A path that was deleted and used again: the earlier delete must not end the later one's grace.
    for item in queue.iter_mut() {
        if removed.contains(&item.path) {
            item.due_s = item.due_s.max(due_s);
        }
    }
    let sizes = &mut metadata.found_drop_sizes;
    let replaced = &mut metadata.replaced;
    metadata.files.retain(|record| {
        let goes = removed.contains(&record.entry.path);
        if goes {
            if let Some(bytes) = record.found_size_bytes {
                sizes.insert(record.entry.path.clone(), bytes);
            }
            if let Some(by) = by {
                let known = Replaced {
                    by: by.clone(),
                    count: removed.len(),
                    record: record.clone(),
                };
                replaced.insert(record.entry.path.clone(), known);
            }
            queue.push(DropItem {
                id: PlanId::random(),
                table: record.entry.table.clone(),
                layer: record.entry.layer.clone(),
                writer: record.entry.writer.clone(),
                path: record.entry.path.clone(),
                due_s,
            });
        }
        !goes
    });
}

pub(super) fn set_aside(
    metadata: &mut Metadata,
    paths: &[&DataPath],
    reason: &str,
    plan: Option<&PlanId>,
) {
    let paths: HashSet<&DataPath> = paths.iter().copied().collect();
    for record in &mut metadata.files {
        if paths.contains(&record.entry.path) {
            record.set_aside = Some(Aside {
                reason: reason.to_owned(),
                at_s: now_s(),
                plan: plan.cloned(),
            });
        }
    }
}

/// A plan whose files were all removed by somebody else.
fn forget_plans_without_files(metadata: &mut Metadata) {
    if metadata.plans.is_empty() {
        return;
    }
    let files = metadata.files.iter().map(|record| &record.entry.path);
    let files: HashSet<&DataPath> = files.collect();
    metadata
        .plans
        .retain(|plan| plan.paths.iter().any(|path| files.contains(path)));
}
