//! One table after the other, one first folder after the other: entries, records, plans, files.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use futures_util::TryStreamExt;

use super::{
    Difference, Kind, Repair, Report, Summary, VerifyError, VerifyOptions,
    accounts::{Accounts, FileKey, Keys, Seen, SeenEntries},
    files::{self, Look},
    records::difference_of_key,
    repair::Repairs,
};
use crate::{
    catalog::audit::{Audit, Mend, Record, StoredEntry},
    config::{CatalogConfig, Config},
    merge::RowsProblem,
    model::{DataPath, IndexEntry, LayerName, PartitionDir, TableRef},
    storage::{Layer, Layers},
};

/// Entries whose files are looked at by one thread in one go.
const LOOK_ENTRIES: usize = 64;
/// Such looks at a time.
const LOOKS_MAX: usize = 4;

/// One run.
pub(super) struct Walk<'a> {
    pub(super) config: &'a Config,
    pub(super) audit: &'a dyn Audit,
    pub(super) options: &'a VerifyOptions,
    pub(super) layers: Vec<Layer>,
    pub(super) keys: Keys,
    pub(super) summary: Summary,
    pub(super) now_s: i64,
    report: &'a mut Report<'a>,
    pub(super) repairs: Repairs,
}

/// What is known of a first folder while it is looked at.
#[derive(Default)]
pub(super) struct Folder {
    pub(super) seen: SeenEntries,
    counts: BTreeMap<String, u64>,
}

/// An announcement, until it is known whether it is kept.
pub(super) struct Announcement {
    pub(super) field: String,
    pub(super) text: String,
    pub(super) path: DataPath,
    pub(super) layer: LayerName,
    pub(super) at_s: Option<i64>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        config: &'a Config,
        audit: &'a dyn Audit,
        options: &'a VerifyOptions,
        report: &'a mut Report<'_>,
    ) -> Self {
        let mut layers: Vec<Layer> = Layers::new(&config.layers).iter().cloned().collect();
        if config.catalog == CatalogConfig::Json {
            // The others may belong to programs that keep their own metadata.json there.
            layers.truncate(1);
        }
        Self {
            config,
            audit,
            options,
            layers,
            keys: Keys::default(),
            summary: Summary::default(),
            now_s: 0,
            report,
            repairs: Repairs::default(),
        }
    }

    pub(super) async fn run(mut self) -> Result<Summary, VerifyError> {
        self.now_s = self.audit.now_s().await?;
        let (mut tables, strange) = self.audit.tables().await?;
        tables.extend(self.tables_on_disk().await?);
        let wanted = self.options;
        let is_wanted = |table: &TableRef| {
            let database = wanted.database.as_deref();
            let name = wanted.table.as_deref();
            database.is_none_or(|database| database == table.database())
                && name.is_none_or(|name| name == table.table())
        };
        if wanted.database.is_none() {
            for record in strange {
                if let Record::Strange { place, reason } = record {
                    self.emit(Difference {
                        table: None,
                        ..difference_of_key(&place, &reason)
                    })?;
                }
            }
        }
        let tables: Vec<TableRef> = tables.into_iter().filter(is_wanted).collect();
        if let (true, Some(database)) = (tables.is_empty(), &wanted.database) {
            let table = wanted.table.as_ref().map(|table| format!(".{table}"));
            let name = format!("{database}{}", table.unwrap_or_default());
            return Err(VerifyError::Unknown(name));
        }
        for table in tables {
            self.summary.tables += 1;
            self.table(&table).await?;
            self.finish_table(&table).await?;
        }
        Ok(self.summary)
    }

    /// Reports a difference now, or after it was mended.
    pub(super) fn emit(&mut self, difference: Difference) -> Result<(), VerifyError> {
        *self.summary.found.entry(difference.kind).or_default() += 1;
        if self.options.repair != Repair::No && self.repairs.takes(&difference) {
            self.repairs.keep(difference);
            return Ok(());
        }
        self.show(&difference)
    }

    pub(super) fn show(&mut self, difference: &Difference) -> Result<(), VerifyError> {
        (self.report)(difference).map_err(VerifyError::Report)
    }

    pub(super) fn min_age_s(&self) -> i64 {
        i64::try_from(self.options.min_age.as_secs()).unwrap_or(i64::MAX)
    }

    /// Whether a time has passed for so long that somebody should have acted.
    pub(super) fn is_overdue(&self, due_s: i64) -> bool {
        due_s.saturating_add(self.min_age_s()) <= self.now_s
    }

    /// A layer's place and itself; the empty name stands for the first one.
    pub(super) fn layer(&self, name: &LayerName) -> Option<(usize, &Layer)> {
        let is_it = |layer: &&Layer| name.as_str().is_empty() || layer.name() == name;
        let place = self.layers.iter().position(|layer| is_it(&layer))?;
        Some((place, &self.layers[place]))
    }

    /// A key for the bytes of a path in a layer, under whatever name the layer goes.
    pub(super) fn bytes_key(&self, layer: &LayerName, path: &str) -> FileKey {
        let name = self
            .layer(layer)
            .map_or(layer.as_str(), |(_, layer)| layer.name().as_str());
        self.keys.bytes(name, path)
    }

    async fn table(&mut self, table: &TableRef) -> Result<(), VerifyError> {
        let mut firsts: BTreeSet<String> = self.audit.first_folders(table).await?;
        firsts.extend(self.first_folders_on_disk(table).await?);
        let mut accounts = Accounts::default();
        if self.audit.is_table_wide() {
            accounts = self.records(table, "", true).await?;
        }
        for first in firsts {
            self.now_s = self.audit.now_s().await?;
            if !self.audit.is_table_wide() {
                accounts = self.records(table, &first, true).await?;
            }
            self.first_folder(table, &first, &accounts).await?;
        }
        self.scratch(table).await
    }

    async fn first_folder(
        &mut self,
        table: &TableRef,
        first: &str,
        accounts: &Accounts,
    ) -> Result<(), VerifyError> {
        let mut folder = self.entries(table, first).await?;
        if self.audit.has_plans() {
            self.plans(table, first, &mut folder, accounts).await?;
        }
        self.folder_counts(table, first, &folder).await?;
        self.files_on_disk(table, first, &folder, accounts).await
    }

    /// Every entry, and its file.
    async fn entries(&mut self, table: &TableRef, first: &str) -> Result<Folder, VerifyError> {
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

    async fn folder_counts(
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
