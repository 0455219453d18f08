//! `metadata.json` files, as `verify` sees them: read one partition at a time, straight from
//! disk, beside a daemon that works. Whoever mends takes the daemon's lock.

use std::{
    collections::{BTreeSet, HashSet},
    fs::{self, File},
    path::{Path, PathBuf},
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};

use super::{
    discovery,
    index::now_s,
    lock,
    mend::{drop_text, mend_entry, mend_item, stored, sums_problem},
    metadata_file::{self, Metadata},
};
use crate::{
    catalog::{
        CatalogError,
        audit::{Audit, FolderCount, ItemState, Mend, Record, RecordStream, StoredEntry, Work},
    },
    crash_points::CrashPoints,
    model::{DataPath, DropItem, LayerName, MergeQueue, PartitionDir, PlanId, TableRef},
};

/// A file that is replaced faster than it can be read twice is not judged.
const STEADY_READS_MAX: usize = 5;

/// What a file says, and its top level as it is written.
type Steady = (Metadata, Map<String, Value>);

/// The embedded catalog of one folder, for `verify`.
#[derive(Debug, Clone)]
pub struct JsonAudit {
    layer: LayerName,
    root: PathBuf,
    lock: Option<std::sync::Arc<File>>,
}

impl JsonAudit {
    /// Opens a folder to look; with `to_mend` it is locked as a daemon locks it.
    ///
    /// # Errors
    /// [`CatalogError::Locked`] when a process works on the folder and it is to be mended.
    pub fn open(layer: LayerName, root: PathBuf, to_mend: bool) -> Result<Self, CatalogError> {
        let lock = to_mend
            .then(|| lock(&root))
            .transpose()?
            .map(std::sync::Arc::new);
        Ok(Self { layer, root, lock })
    }

    fn data(&self, table: &TableRef) -> PathBuf {
        self.root
            .join(table.database())
            .join(table.table())
            .join("data")
    }

    fn partitions(&self, table: &TableRef, first_folder: &str) -> Vec<PartitionDir> {
        discovery::partitions_below(table, &self.data(table), first_folder)
            .into_iter()
            .filter(|found| metadata_file::stamp(&found.folder).is_some())
            .map(|found| found.dir)
            .collect()
    }

    fn read(&self, table: &TableRef, dir: &PartitionDir) -> Result<Metadata, CatalogError> {
        let folder = self.data(table).join(dir.as_str());
        metadata_file::read(&folder, &self.layer, table, dir)
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, CatalogError> + Send + 'static,
    ) -> Result<T, CatalogError> {
        let audit = self.clone();
        tokio::task::spawn_blocking(move || work(&audit))
            .await
            .unwrap_or_else(|error| {
                Err(CatalogError::Unavailable {
                    context: "embedded catalog".to_owned(),
                    reason: error.to_string(),
                })
            })
    }

    /// Something of each partition, one partition at a time.
    fn of_each<'a, T: Send + 'static>(
        &'a self,
        table: &'a TableRef,
        first_folder: &'a str,
        read: fn(&Self, &TableRef, &PartitionDir) -> Result<Vec<T>, CatalogError>,
    ) -> RecordStream<'a, T> {
        let (of, first) = (table.clone(), first_folder.to_owned());
        let dirs = self.blocking(move |audit| Ok(audit.partitions(&of, &first)));
        let flat = |found: Result<Vec<T>, CatalogError>| match found {
            Ok(found) => stream::iter(found.into_iter().map(Ok)).left_stream(),
            Err(error) => stream::iter([Err(error)]).right_stream(),
        };
        let found = stream::once(dirs).flat_map(move |dirs| {
            let dirs = match dirs {
                Ok(dirs) => stream::iter(dirs.into_iter().map(Ok)).left_stream(),
                Err(error) => stream::iter([Err(error)]).right_stream(),
            };
            dirs.then(move |dir: Result<PartitionDir, CatalogError>| {
                let table = table.clone();
                async move {
                    let dir = dir?;
                    self.blocking(move |audit| read(audit, &table, &dir)).await
                }
            })
        });
        found.flat_map(flat).boxed()
    }

    /// An unusable `metadata.json` has no entries here: `records` names it.
    fn entries_of(
        &self,
        table: &TableRef,
        dir: &PartitionDir,
    ) -> Result<Vec<StoredEntry>, CatalogError> {
        let metadata = match self.read(table, dir) {
            Err(CatalogError::Malformed { .. }) => return Ok(Vec::new()),
            read => read?,
        };
        let known = metadata.files.iter().map(stored);
        let foreign = metadata.foreign_files.iter().map(|value| StoredEntry {
            path: value["path"].as_str().unwrap_or_default().to_owned(),
            text: value.to_string(),
            entry: Err("it is no entry of this partition".to_owned()),
        });
        Ok(known.chain(foreign).collect())
    }

    fn records_of(
        &self,
        table: &TableRef,
        dir: &PartitionDir,
    ) -> Result<Vec<Record>, CatalogError> {
        let place = self
            .data(table)
            .join(dir.as_str())
            .join(metadata_file::FILE_NAME);
        let place = place.display().to_string();
        let (metadata, top) = match self.read_steady(table, dir) {
            Ok(Some(read)) => read,
            Ok(None) => return Ok(Vec::new()),
            Err(CatalogError::Malformed { reason, .. }) => {
                return Ok(vec![Record::Strange { place, reason }]);
            }
            Err(error) => return Err(error),
        };
        let item = |text: String, work| Record::Item {
            place: place.clone(),
            state: ItemState::Idle,
            text,
            work,
            reason: None,
        };
        let mut records: Vec<Record> = metadata
            .drop_queue
            .iter()
            .map(|drop| item(drop_text(drop), Ok(Work::Drop(drop.clone()))))
            .collect();
        records.extend(metadata.foreign_drops.iter().map(|value| {
            let reason = "it is no delete of this table".to_owned();
            item(value.to_string(), Err(reason))
        }));
        records.extend(metadata.pending.iter().map(|path| Record::Announced {
            field: path.to_string(),
            text: String::new(),
            path: path.clone(),
            layer: self.layer.clone(),
            at_s: None,
        }));
        let set_aside = metadata
            .files
            .iter()
            .filter(|file| file.set_aside.is_some());
        records.extend(set_aside.map(|file| Record::SetAside {
            path: file.entry.path.to_string(),
        }));
        records.extend(
            sums_problem(table, &metadata, &top).map(|reason| Record::Sums {
                dir: dir.clone(),
                reason,
            }),
        );
        Ok(records)
    }

    /// What the file says, and its top level as it is written; `None` while it is replaced all the time.
    fn read_steady(
        &self,
        table: &TableRef,
        dir: &PartitionDir,
    ) -> Result<Option<Steady>, CatalogError> {
        let folder = self.data(table).join(dir.as_str());
        for _ in 0..STEADY_READS_MAX {
            let before = metadata_file::stamp(&folder);
            let metadata = self.read(table, dir)?;
            let bytes = fs::read(folder.join(metadata_file::FILE_NAME)).unwrap_or_default();
            if before.is_some() && metadata_file::stamp(&folder) == before {
                let top = serde_json::from_slice(&bytes).unwrap_or_default();
                return Ok(Some((metadata, top)));
            }
        }
        Ok(None)
    }

    fn change(
        &self,
        table: &TableRef,
        dir: &PartitionDir,
        apply: impl FnOnce(&mut Metadata) -> bool,
    ) -> Result<bool, CatalogError> {
        if self.lock.is_none() {
            return Err(CatalogError::Refused {
                context: "a repair".to_owned(),
                reason: "the folder is not locked".to_owned(),
            });
        }
        let mut metadata = self.read(table, dir)?;
        if !apply(&mut metadata) {
            return Ok(false);
        }
        let folder = self.data(table).join(dir.as_str());
        metadata_file::replace(&folder, table, &metadata, &CrashPoints::none())?;
        Ok(true)
    }

    fn mend_now(&self, table: &TableRef, mend: &Mend) -> Result<bool, CatalogError> {
        match mend {
            Mend::Entry { path, seen, new } => {
                // What stands in a partition without a path of its own cannot be found again.
                let Ok(data_path) = DataPath::parse(path) else {
                    return Ok(false);
                };
                self.change(table, &data_path.dir(), |metadata| {
                    mend_entry(metadata, path, seen, new.as_deref())
                })
            }
            Mend::Item { place, seen, fate } => {
                let folder = Path::new(place).parent().unwrap_or(Path::new(""));
                let dir = folder.strip_prefix(self.data(table)).ok();
                let Some(Ok(dir)) = dir.and_then(Path::to_str).map(PartitionDir::parse) else {
                    return Ok(false);
                };
                self.change(table, &dir, |metadata| mend_item(metadata, seen, fate))
            }
            Mend::Folder(dir) => self.change(table, dir, |metadata| {
                let mut seen = HashSet::new();
                metadata
                    .files
                    .retain(|file| seen.insert(file.entry.path.clone()));
                true
            }),
            Mend::Plan { .. } => Ok(false),
            Mend::Drop {
                path,
                layer: _,
                writer,
                grace,
            } => self.change(table, &path.dir(), |metadata| {
                if metadata.files.iter().any(|file| file.entry.path == *path) {
                    return false;
                }
                metadata.pending.retain(|pending| pending != path);
                metadata.drop_queue.push(DropItem {
                    id: PlanId::random(),
                    table: table.clone(),
                    layer: self.layer.clone(),
                    writer: writer.clone(),
                    path: path.clone(),
                    due_s: now_s()
                        .saturating_add(i64::try_from(grace.as_secs()).unwrap_or(i64::MAX)),
                });
                true
            }),
            Mend::Announced { field, .. } => {
                let Ok(path) = DataPath::parse(field) else {
                    return Ok(false);
                };
                self.change(table, &path.dir(), |metadata| {
                    let before = metadata.pending.len();
                    metadata.pending.retain(|pending| *pending != path);
                    metadata.pending.len() < before
                })
            }
        }
    }
}

#[async_trait]
impl Audit for JsonAudit {
    async fn now_s(&self) -> Result<i64, CatalogError> {
        Ok(now_s())
    }

    async fn tables(&self) -> Result<(BTreeSet<TableRef>, Vec<Record>), CatalogError> {
        self.blocking(|audit| {
            let found = discovery::partitions(&audit.root)?;
            Ok((
                found.into_iter().map(|found| found.table).collect(),
                Vec::new(),
            ))
        })
        .await
    }

    async fn first_folders(&self, table: &TableRef) -> Result<BTreeSet<String>, CatalogError> {
        let table = table.clone();
        self.blocking(move |audit| {
            let names = fs::read_dir(audit.data(&table))
                .into_iter()
                .flatten()
                .flatten();
            let folders = names.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            Ok(folders
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| !name.starts_with('.'))
                .collect())
        })
        .await
    }

    fn entries<'a>(
        &'a self,
        table: &'a TableRef,
        first_folder: &'a str,
    ) -> RecordStream<'a, StoredEntry> {
        self.of_each(table, first_folder, Self::entries_of)
    }

    fn merges<'a>(&'a self, _: &'a TableRef, _: &'a str) -> RecordStream<'a, Record> {
        stream::empty().boxed()
    }

    fn records<'a>(
        &'a self,
        table: &'a TableRef,
        first_folder: &'a str,
    ) -> RecordStream<'a, Record> {
        self.of_each(table, first_folder, Self::records_of)
    }

    fn is_table_wide(&self) -> bool {
        false
    }

    fn has_plans(&self) -> bool {
        false
    }

    async fn folder_counts(
        &self,
        _: &TableRef,
        _: &str,
    ) -> Result<Vec<(String, String)>, CatalogError> {
        Ok(Vec::new())
    }

    async fn count_folder(
        &self,
        _: &TableRef,
        _: &PartitionDir,
    ) -> Result<Option<FolderCount>, CatalogError> {
        Ok(None)
    }

    async fn stored(
        &self,
        table: &TableRef,
        path: &str,
    ) -> Result<Option<StoredEntry>, CatalogError> {
        let (table, path) = (table.clone(), path.to_owned());
        self.blocking(move |audit| {
            let Ok(data_path) = DataPath::parse(&path) else {
                return Ok(None);
            };
            let found = audit.entries_of(&table, &data_path.dir())?;
            Ok(found.into_iter().find(|stored| stored.path == path))
        })
        .await
    }

    async fn unplanned(
        &self,
        _: &MergeQueue,
        _: &[DataPath],
    ) -> Result<Option<Vec<DataPath>>, CatalogError> {
        Ok(Some(Vec::new()))
    }

    async fn mend(&self, table: &TableRef, mend: &Mend) -> Result<bool, CatalogError> {
        let (table, mend) = (table.clone(), mend.clone());
        self.blocking(move |audit| audit.mend_now(&table, &mend))
            .await
    }
}
