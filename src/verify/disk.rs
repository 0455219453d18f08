//! The other way round: what lies on disk, and who knows of it.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::sync::mpsc;

use super::{
    Difference, Fix, Kind, VerifyError,
    accounts::Accounts,
    entries::Folder,
    files,
    walk::{Announcement, Walk},
};
use crate::{
    catalog::audit::Mend,
    model::{DataPath, TableRef, WriterId},
    storage::{Layer, Workspace},
};

/// Folders may be nested this deep.
const DEPTH_MAX: usize = 12;
/// Files that are handed over in one go.
const BATCH_FILES: usize = 500;
/// Suspicions that are looked at again together.
const SUSPECTS_MAX: usize = 1000;
/// Deletes that a repair queues wait at least this long, however short the grace is.
const GRACE_MIN: Duration = Duration::from_secs(30);

/// A data file on disk.
struct Found {
    layer: usize,
    path: DataPath,
    age_s: u64,
}

fn names_in(folder: &Path) -> impl Iterator<Item = (String, fs::DirEntry)> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            (!name.starts_with('.')).then_some((name, entry))
        })
}

fn folders_in(folder: &Path) -> impl Iterator<Item = String> {
    names_in(folder)
        .filter(|(_, entry)| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|(name, _)| name)
}

/// Sends every data file below a folder; links are not followed. False when nobody listens.
fn send_files(
    layer: usize,
    folder: &Path,
    dir: &str,
    depth: usize,
    send: &mpsc::Sender<Vec<Found>>,
) -> bool {
    let mut batch = Vec::new();
    let mut below = Vec::new();
    for (name, entry) in names_in(folder) {
        let Ok(kind) = entry.file_type() else {
            continue;
        };
        let path = format!("{dir}/{name}");
        if kind.is_dir() && depth > 0 {
            below.push((entry.path(), path));
        } else if kind.is_file()
            && let (Ok(path), Ok(meta)) = (DataPath::parse(&path), entry.metadata())
        {
            let age_s = files::age_s(&meta);
            batch.push(Found { layer, path, age_s });
        }
        if batch.len() >= BATCH_FILES && send.blocking_send(std::mem::take(&mut batch)).is_err() {
            return false;
        }
    }
    (batch.is_empty() || send.blocking_send(batch).is_ok())
        && below
            .iter()
            .all(|(folder, dir)| send_files(layer, folder, dir, depth - 1, send))
}

/// Paths that an import has begun and not finished, or finished and may bring in again.
fn imported(layers: &[Layer], table: &TableRef) -> HashSet<String> {
    let mut paths = HashSet::new();
    for layer in layers {
        let ledger = layer.imports_folder(table).join("ledger.jsonl");
        let lines = fs::File::open(ledger).map(BufReader::new).into_iter();
        for line in lines.flat_map(BufRead::lines).map_while(Result::ok) {
            if let Ok(record) = serde_json::from_str::<serde_json::Value>(&line)
                && let Some(path) = record["path"].as_str()
            {
                match record["state"].as_str() {
                    Some("begun") => drop(paths.insert(path.to_owned())),
                    _ => drop(paths.remove(path)),
                }
            }
        }
    }
    paths
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, VerifyError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| VerifyError::Panicked(error.to_string()))
}

impl Walk<'_> {
    pub(super) async fn tables_on_disk(&self) -> Result<BTreeSet<TableRef>, VerifyError> {
        let layers = self.layers.clone();
        blocking(move || {
            let mut tables = BTreeSet::new();
            for layer in &layers {
                for database in folders_in(layer.root()) {
                    for table in folders_in(&layer.root().join(&database)) {
                        if let Ok(table) = TableRef::new(&database, &table)
                            && layer.table_folder(&table).join("data").is_dir()
                        {
                            tables.insert(table);
                        }
                    }
                }
            }
            tables
        })
        .await
    }

    pub(super) async fn first_folders_on_disk(
        &self,
        table: &TableRef,
    ) -> Result<BTreeSet<String>, VerifyError> {
        let (layers, table) = (self.layers.clone(), table.clone());
        blocking(move || {
            let data = layers
                .iter()
                .map(|layer| layer.table_folder(&table).join("data"));
            data.flat_map(|data| folders_in(&data).collect::<Vec<_>>())
                .collect()
        })
        .await
    }

    pub(super) async fn files_on_disk(
        &mut self,
        table: &TableRef,
        first: &str,
        folder: &Folder,
        accounts: &Accounts,
    ) -> Result<(), VerifyError> {
        let (send, mut receive) = mpsc::channel(8);
        let (layers, of, dir) = (self.layers.clone(), table.clone(), first.to_owned());
        let walk = tokio::task::spawn_blocking(move || {
            for (place, layer) in layers.iter().enumerate() {
                let below = layer.table_folder(&of).join("data").join(&dir);
                let is_folder = fs::symlink_metadata(&below).is_ok_and(|meta| meta.is_dir());
                if is_folder && !send_files(place, &below, &dir, DEPTH_MAX, &send) {
                    return;
                }
            }
        });
        let mut suspects = Vec::new();
        while let Some(batch) = receive.recv().await {
            for found in batch {
                self.summary.files += 1;
                let seen = folder.seen.get(&self.keys.path(found.path.as_str()));
                let is_named = seen.is_some_and(|seen| usize::from(seen.layer) == found.layer);
                let layer = self.layers[found.layer].name().clone();
                let is_known = accounts.knows(self.bytes_key(&layer, found.path.as_str()));
                if !is_named && !is_known && found.age_s >= self.options.min_age.as_secs() {
                    suspects.push(found);
                }
            }
            if suspects.len() >= SUSPECTS_MAX {
                let suspects = std::mem::take(&mut suspects);
                self.judge_files(table, first, suspects).await?;
            }
        }
        walk.await
            .map_err(|error| VerifyError::Panicked(error.to_string()))?;
        self.judge_files(table, first, suspects).await
    }

    /// Looks again, in this order: no entry, no item, still no entry, and the file is still there. A file
    /// goes from entry to item in one step and is deleted before its item ends, so it was seen by nobody.
    async fn judge_files(
        &mut self,
        table: &TableRef,
        first: &str,
        suspects: Vec<Found>,
    ) -> Result<(), VerifyError> {
        if suspects.is_empty() {
            return Ok(());
        }
        let mut left = Vec::new();
        for found in suspects {
            if !self.is_named(table, &found).await?.0 {
                left.push(found);
            }
        }
        if left.is_empty() {
            return Ok(());
        }
        let accounts = self.records(table, first, false).await?;
        let (layers, of) = (self.layers.clone(), table.clone());
        let imports = blocking(move || imported(&layers, &of)).await?;
        for found in left {
            let layer = self.layers[found.layer].clone();
            let path = found.path.as_str();
            if accounts.knows(self.bytes_key(layer.name(), path)) || imports.contains(path) {
                continue;
            }
            let (is_named, elsewhere) = self.is_named(table, &found).await?;
            if is_named || files::is_gone(&layer.data_file(table, &found.path)) {
                continue;
            }
            let unreadable = if self.audit.has_plans() {
                None
            } else {
                let (file, config) = (
                    layer.data_file(table, &found.path),
                    self.config.table(table),
                );
                blocking(move || files::describe(&file, &config).err()).await?
            };
            self.unknown_file(table, &layer, &found.path, elsewhere, unreadable)?;
        }
        Ok(())
    }

    /// Whether the index names these bytes, and if not, the layer in which it has this path.
    async fn is_named(
        &self,
        table: &TableRef,
        found: &Found,
    ) -> Result<(bool, Option<String>), VerifyError> {
        let stored = self.audit.stored(table, found.path.as_str()).await?;
        Ok(match stored.map(|stored| stored.entry) {
            None => (false, None),
            // Its entry is named by itself.
            Some(Err(_)) => (true, None),
            Some(Ok(entry)) => {
                let place = self.layer(&entry.layer).map(|(place, _)| place);
                let is_here = place == Some(found.layer);
                (is_here, Some(entry.layer.to_string()))
            }
        })
    }

    fn unknown_file(
        &mut self,
        table: &TableRef,
        layer: &Layer,
        path: &DataPath,
        elsewhere: Option<String>,
        unreadable: Option<String>,
    ) -> Result<(), VerifyError> {
        let drop = Mend::Drop {
            path: path.clone(),
            layer: layer.name().clone(),
            writer: WriterId::default(),
            grace: self.config.drops.grace.max(GRACE_MIN),
        };
        let new = |kind, detail: String| {
            Difference::new(kind, table, path.as_str(), detail).in_layer(layer.name())
        };
        let difference = match elsewhere {
            Some(other) => {
                let detail = format!("its entry names layer {other:?}");
                new(Kind::SecondCopy, detail).mended_by(drop)
            }
            None if !self.audit.has_plans() => new(
                Kind::UnknownFile,
                match unreadable {
                    Some(reason) => format!("not registered: {reason}"),
                    None => "not registered yet; the daemon registers it".to_owned(),
                },
            ),
            None if path.iteration().0 == 1 => new(
                Kind::UnknownFile,
                "neither in the index nor waiting for deletion; `gigamerge import` can register it"
                    .to_owned(),
            ),
            None => new(
                Kind::UnknownFile,
                "an output that the index does not name".to_owned(),
            )
            .mended_by(drop),
        };
        self.emit(difference)
    }

    /// Whether nobody will make an announcement good.
    pub(super) async fn is_stale(
        &self,
        table: &TableRef,
        announced: &Announcement,
    ) -> Result<bool, VerifyError> {
        let lease_s = i64::try_from(self.config.worker.lease.as_secs()).unwrap_or(i64::MAX);
        if let Some(at_s) = announced.at_s {
            return Ok(self.is_overdue(at_s.saturating_add(lease_s)));
        }
        // The embedded catalog keeps no time, but its file has one; without a file there is nothing to do.
        let Some((_, layer)) = self.layer(&announced.layer) else {
            return Ok(false);
        };
        let file = layer.data_file(table, &announced.path);
        let age_s = blocking(move || fs::symlink_metadata(file).map(|meta| files::age_s(&meta)));
        let wait_s = self.options.min_age + self.config.worker.lease;
        Ok(age_s.await?.is_ok_and(|age_s| age_s >= wait_s.as_secs()))
    }

    pub(super) async fn stale_announcement(
        &mut self,
        table: &TableRef,
        announced: Announcement,
    ) -> Result<(), VerifyError> {
        let path = announced.path.as_str();
        let is_indexed = self.audit.stored(table, path).await?.is_some();
        let layer = self.layer(&announced.layer).map(|(_, layer)| layer.clone());
        let is_there = layer.as_ref().is_some_and(|layer| {
            fs::symlink_metadata(layer.data_file(table, &announced.path)).is_ok()
        });
        let forget = Mend::Announced {
            field: announced.field.clone(),
            seen: announced.text.clone(),
        };
        if is_indexed || !is_there {
            let detail = format!("{path} was announced, and nobody works on it any more");
            let difference =
                Difference::new(Kind::StaleAnnouncement, table, &announced.field, detail);
            return self.emit(difference.mended_by(forget));
        }
        let detail = "announced by a merge or move that ended without a commit";
        let layer = layer.map_or_else(|| announced.layer.clone(), |layer| layer.name().clone());
        let difference = Difference::new(Kind::DeadOutput, table, path, detail).in_layer(&layer);
        self.emit(
            difference
                .mended_by(Mend::Drop {
                    path: announced.path.clone(),
                    layer,
                    writer: WriterId::default(),
                    grace: self.config.drops.grace.max(GRACE_MIN),
                })
                .mended_by(forget),
        )
    }

    pub(super) async fn scratch(&mut self, table: &TableRef) -> Result<(), VerifyError> {
        let layers = self.layers.clone();
        let (of, min_age) = (table.clone(), self.options.min_age);
        let parents: Vec<PathBuf> = layers
            .iter()
            .map(|layer| layer.table_folder(&of).join("tmp"))
            .collect();
        let left = blocking(move || {
            let abandoned = parents
                .iter()
                .flat_map(|parent| Workspace::abandoned(parent));
            let is_old = |folder: &PathBuf| {
                fs::symlink_metadata(folder)
                    .is_ok_and(|meta| files::age_s(&meta) >= min_age.as_secs())
            };
            abandoned.filter(is_old).collect::<Vec<PathBuf>>()
        });
        for folder in left.await? {
            let place = folder.display().to_string();
            let detail = "scratch of a process that is gone";
            let mut difference = Difference::new(Kind::Scratch, table, &place, detail);
            difference.mends.push(Fix::RemoveScratch(folder));
            self.emit(difference)?;
        }
        Ok(())
    }
}
