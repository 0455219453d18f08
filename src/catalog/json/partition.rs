//! One partition in memory, and every change that its `metadata.json` goes through.
//!
//! A change is applied to a copy, the copy is written, and only then takes the place of
//! what was there: an error leaves memory and disk as they were.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use crate::{
    catalog::CatalogError,
    model::{DataPath, DropItem, IndexEntry, LayerName, PartitionDir, PlanId, TableRef},
};

use super::{
    claims::Claims,
    metadata_file::{self, FileRecord, Metadata, Stamp},
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
        let metadata = metadata_file::read(&folder, &layer, &table)?;
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
            metadata_file::replace(&self.folder, &self.table, &self.metadata)?;
        } else {
            self.set_metadata(metadata_file::read(&self.folder, &self.layer, &self.table)?);
        }
        self.stamp = metadata_file::stamp(&self.folder);
        Ok(())
    }

    pub(super) fn change(&mut self, apply: impl FnOnce(&mut Metadata)) -> Result<(), CatalogError> {
        self.reload_if_changed()?;
        let mut next = self.metadata.clone();
        apply(&mut next);
        next.drop_queue
            .retain(|drop| !self.finished_drops.contains(&drop.path));
        if next == self.metadata {
            return Ok(());
        }
        if !self.is_read_only
            && let Err(error) = metadata_file::replace(&self.folder, &self.table, &next)
        {
            // The rename may have happened before the error: what is on disk is true.
            self.reload_if_changed()?;
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

    /// Whether somebody removed the whole folder.
    pub(super) fn is_gone(&self) -> bool {
        !self.folder.exists()
    }

    pub(super) fn set_aside_count(&self) -> usize {
        self.metadata
            .files
            .iter()
            .filter(|record| record.set_aside.is_some())
            .count()
    }

    pub(super) fn entry(&self, path: &DataPath) -> Option<&IndexEntry> {
        Some(&self.metadata.files.get(*self.places.get(path)?)?.entry)
    }

    /// Files that are there without an entry, and rightly so: replaced ones in their grace, and
    /// outputs before their commit.
    pub(super) fn unindexed(&self) -> HashSet<&DataPath> {
        let dropped = self.metadata.drop_queue.iter().map(|drop| &drop.path);
        dropped.chain(&self.metadata.pending).collect()
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
            remove_files(metadata, remove, now_s + drop_delay_s);
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

    pub(super) fn forget_pending(&mut self, paths: &[DataPath]) -> Result<(), CatalogError> {
        self.change(|metadata| metadata.pending.retain(|path| !paths.contains(path)))
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
    });
}

pub(super) fn remove_files(metadata: &mut Metadata, paths: &[DataPath], due_s: i64) {
    let removed: HashSet<&DataPath> = paths.iter().collect();
    let queue = &mut metadata.drop_queue;
    metadata.files.retain(|record| {
        let goes = removed.contains(&record.entry.path);
        if goes {
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

pub(super) fn set_aside(metadata: &mut Metadata, path: &DataPath, reason: &str) {
    if let Some(record) = metadata
        .files
        .iter_mut()
        .find(|record| record.entry.path == *path)
    {
        record.set_aside = Some(reason.to_owned());
    }
}
