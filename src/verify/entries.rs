//! Every entry of a first folder, the file that it names, and how many of them each folder says it has.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use futures_util::TryStreamExt;

use super::{
    Difference, Kind, VerifyError,
    accounts::{Seen, SeenEntries},
    files::{self, Look},
    walk::Walk,
};
use crate::{
    catalog::audit::{Mend, StoredEntry},
    merge::RowsProblem,
    model::{DataPath, IndexEntry, LayerName, PartitionDir, TableRef},
    storage::Layer,
};

/// Entries whose files are looked at by one thread in one go.
const LOOK_ENTRIES: usize = 64;
/// Such looks at a time.
const LOOKS_MAX: usize = 4;

/// What is known of a first folder while it is looked at.
#[derive(Default)]
pub(super) struct Folder {
    pub(super) seen: SeenEntries,
    counts: BTreeMap<String, u64>,
}

impl Walk<'_> {
    /// Every entry, and its file.
    pub(super) async fn entries(
        &mut self,
        table: &TableRef,
        first: &str,
    ) -> Result<Folder, VerifyError> {
        let mut folder = Folder::default();
        let audit = self.audit;
        let (layers, config) = (self.layers.clone(), Arc::new(self.config.table(table)));
        let deep = self.options.deep;
        let mut looks = audit
            .entries(table, first)
            .try_chunks(LOOK_ENTRIES)
            .map_err(|error| error.1)
            .map_ok(|chunk| {
                let (layers, config) = (layers.clone(), Arc::clone(&config));
                async move {
                    let looked = tokio::task::spawn_blocking(move || {
                        let look = |stored: StoredEntry| {
                            let found = stored.entry.as_ref().ok().and_then(|entry| {
                                let layer = layer_of(&layers, &entry.layer)?;
                                Some(files::look(layer, entry, &config, deep))
                            });
                            (stored, found)
                        };
                        chunk.into_iter().map(look).collect::<Vec<_>>()
                    });
                    Ok(looked.await)
                }
            })
            .try_buffered(LOOKS_MAX);
        while let Some(looked) = looks.try_next().await? {
            let looked = looked.map_err(|error| VerifyError::Panicked(error.to_string()))?;
            for (stored, found) in looked {
                self.entry(table, stored, found, &mut folder).await?;
            }
        }
        Ok(folder)
    }

    async fn entry(
        &mut self,
        table: &TableRef,
        stored: StoredEntry,
        found: Option<Look>,
        folder: &mut Folder,
    ) -> Result<(), VerifyError> {
        let key = self.keys.path(&stored.path);
        let place = match &stored.entry {
            Ok(entry) => self.layer(&entry.layer).map(|(place, _)| place),
            Err(_) => None,
        };
        let is_mergeable = stored.entry.as_ref().is_ok_and(|entry| {
            let mut levels = self.config.levels.iter();
            levels.any(|level| level.iteration == entry.path.iteration())
        });
        let seen = Seen {
            layer: place
                .and_then(|place| u8::try_from(place).ok())
                .unwrap_or(u8::MAX),
            is_mergeable: is_mergeable && place.is_some(),
            ..Seen::default()
        };
        // A page of a hash may bring a field twice.
        if folder.seen.insert(key, seen).is_some() {
            return Ok(());
        }
        self.summary.entries += 1;
        if let Some((dir, _)) = stored.path.rsplit_once('/') {
            *folder.counts.entry(dir.to_owned()).or_default() += 1;
        }
        let (path, text) = (stored.path, stored.text);
        let entry = match stored.entry {
            Ok(entry) => entry,
            Err(reason) => return self.malformed(table, path, text, &reason).await,
        };
        let layer = entry.layer.clone();
        let new =
            |kind, detail: String| Difference::new(kind, table, &path, detail).in_layer(&layer);
        let difference = match found {
            None => {
                let detail = format!("layer {:?} is not configured", layer.as_str());
                new(Kind::UnknownLayer, detail)
            }
            Some(Look::Fine) => return Ok(()),
            Some(Look::Missing) => {
                let detail = "the index names it, the layer does not have it".to_owned();
                let mut missing = new(Kind::MissingFile, detail);
                if self.options.forget_missing {
                    missing = missing.mended_by(forget(&path, &text));
                }
                missing
            }
            Some(Look::Outside(file)) => new(
                Kind::OutsideTable,
                format!("{file} is a link or leads out of its table"),
            ),
            Some(Look::Unreadable(reason)) => new(Kind::UnreadableFile, reason),
            Some(Look::Differs(right, detail)) => {
                new(Kind::EntryDiffers, detail).mended_by(Mend::Entry {
                    path: path.clone(),
                    seen: text.clone(),
                    new: Some(right),
                })
            }
            Some(Look::Rows(problems)) => {
                if self.is_still(table, &path, &text).await? {
                    for problem in problems {
                        let (kind, detail) = match problem {
                            RowsProblem::Rows(detail) => (Kind::WrongRows, detail),
                            RowsProblem::Order(detail) => (Kind::WrongOrder, detail),
                            RowsProblem::Statistics(detail) => (Kind::WrongStatistics, detail),
                        };
                        self.emit(new(kind, detail))?;
                    }
                }
                return Ok(());
            }
        };
        // Bytes go only after their entry: what is still named now was damaged then.
        if self.is_still(table, &path, &text).await? {
            self.emit(difference)?;
        }
        Ok(())
    }

    async fn is_still(
        &self,
        table: &TableRef,
        path: &str,
        text: &str,
    ) -> Result<bool, VerifyError> {
        let now = self.audit.stored(table, path).await?;
        Ok(now.is_some_and(|now| now.text == text))
    }

    /// Made new from the file that it stands for, if there is one; else forgotten.
    async fn malformed(
        &mut self,
        table: &TableRef,
        path: String,
        text: String,
        reason: &str,
    ) -> Result<(), VerifyError> {
        if !self.is_still(table, &path, &text).await? && self.audit.has_plans() {
            return Ok(());
        }
        let rebuilt = self.rebuild(table, &path, &text).await?;
        let hint = match (&rebuilt, DataPath::parse(&path).is_ok()) {
            (Ok(Some(_)), _) => "; its file is there",
            (Ok(None), true) => "; there is no such file",
            _ => "",
        };
        let mut difference = Difference::new(
            Kind::MalformedEntry,
            table,
            &path,
            format!("{reason}{hint}"),
        );
        if let Ok(new) = rebuilt {
            difference = difference.mended_by(Mend::Entry {
                path,
                seen: text,
                new: new.map(Box::new),
            });
        }
        self.emit(difference)
    }

    /// The entry of a file from its footer; `Err` when its file is there and cannot be read.
    async fn rebuild(
        &self,
        table: &TableRef,
        path: &str,
        text: &str,
    ) -> Result<Result<Option<IndexEntry>, ()>, VerifyError> {
        let Ok(path) = DataPath::parse(path) else {
            return Ok(Ok(None));
        };
        let (layers, config, table) =
            (self.layers.clone(), self.config.table(table), table.clone());
        let fields: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let found = tokio::task::spawn_blocking(move || {
            for layer in &layers {
                let file = layer.checked_file(&table, &path).map_err(drop)?;
                if files::is_gone(&file) {
                    continue;
                }
                let told = files::describe(&file, &config).map_err(drop)?;
                let (min_time_ns, max_time_ns) = told.times.ok_or(())?;
                let writer = fields["writer_id"].as_str().unwrap_or_default();
                return Ok(Some(IndexEntry {
                    layer: layer.name().clone(),
                    table,
                    path,
                    size_bytes: told.size_bytes,
                    row_count: told.row_count,
                    chunk_time_ns: max_time_ns,
                    min_time_ns,
                    max_time_ns,
                    min: serde_json::Map::new(),
                    max: serde_json::Map::new(),
                    writer: crate::model::WriterId::parse(writer).unwrap_or_default(),
                    extra: serde_json::Map::new(),
                }));
            }
            Ok(None)
        });
        found
            .await
            .map_err(|error| VerifyError::Panicked(error.to_string()))
    }

    pub(super) async fn folder_counts(
        &mut self,
        table: &TableRef,
        first: &str,
        folder: &Folder,
    ) -> Result<(), VerifyError> {
        if !self.audit.has_plans() {
            return Ok(());
        }
        let kept = self.audit.folder_counts(table, first).await?;
        let kept: HashMap<String, String> = kept.into_iter().collect();
        let dirs: BTreeSet<&String> = folder.counts.keys().chain(kept.keys()).collect();
        for dir in dirs {
            let files = folder.counts.get(dir).copied().unwrap_or(0);
            let told = kept.get(dir).map_or("0", String::as_str);
            if told == files.to_string() {
                continue;
            }
            let Ok(partition) = PartitionDir::parse(dir) else {
                let detail = format!("{told} files in {dir:?}, which is no folder of a table");
                self.emit(Difference::new(Kind::FolderCount, table, dir, detail))?;
                continue;
            };
            // Files come and go: only a count made in one step is certain.
            match self.audit.count_folder(table, &partition).await? {
                Some(count) if count.kept == count.files.to_string() => {}
                Some(count) => {
                    let detail = format!("counts {}, holds {}", count.kept, count.files);
                    let difference = Difference::new(Kind::FolderCount, table, dir, detail);
                    self.emit(difference.mended_by(Mend::Folder(partition)))?;
                }
                None => self.summary.unjudged.push(format!(
                    "{table} {dir}: the count of its files, which are too many to count in one step"
                )),
            }
        }
        Ok(())
    }
}

/// The layer of that name among these.
fn layer_of<'l>(layers: &'l [Layer], name: &LayerName) -> Option<&'l Layer> {
    if name.as_str().is_empty() {
        return layers.first();
    }
    layers.iter().find(|layer| layer.name() == name)
}

fn forget(path: &str, text: &str) -> Mend {
    Mend::Entry {
        path: path.to_owned(),
        seen: text.to_owned(),
        new: None,
    }
}
