//! The steps of an import, for one piece of files after the other.

mod decisions;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, IsTerminal},
    path::PathBuf,
    sync::Arc,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Map;
use uuid::Uuid;

use super::{
    ImportArgs, ImportError, convert,
    copy::{partition_of, stage, stamp, text},
    decide::Decision,
    find::{self, Found, Place},
    ledger::{ContentHash, Ledger, SourceStamp},
    report::Report,
};
use crate::{
    crash_points::CrashPoint,
    daemon,
    model::{DataPath, IndexEntry, Iteration, LayerName, PartitionDir, TableRef, WriterId},
    storage::{Layer, StorageError},
    worker::WorkContext,
};

/// Files that are copied, then registered by one call.
const CHUNK_FILES: usize = 64;

/// A file and what will be said of it.
pub(super) struct Item {
    pub(super) entry: IndexEntry,
    /// Where to copy it from; `None` when it lies in place or nobody has it.
    pub(super) source: Option<Source>,
    /// Another catalog says that its rows stand nowhere else.
    pub(super) is_vouched: bool,
}

pub(super) struct Source {
    pub(super) file: PathBuf,
    /// What it was when it was read; not known of files whose entry another catalog gave.
    pub(super) read: Option<(SourceStamp, Uuid)>,
}

pub(super) struct Import<'a> {
    args: &'a ImportArgs,
    table: TableRef,
    context: Arc<WorkContext>,
    layer: Option<Layer>,
    known_before: Option<HashSet<DataPath>>,
    ledgers: HashMap<LayerName, Ledger>,
    /// Highest iteration in each partition, on disk and in the index.
    iterations: HashMap<PartitionDir, Iteration>,
    /// Partitions of which the index was asked for its highest iteration.
    asked: HashSet<PartitionDir>,
    /// Files in place that were not registered when this run began, though nothing was under way then.
    free: HashSet<DataPath>,
    /// Copies of this run: target → source.
    targets: HashMap<DataPath, PathBuf>,
    report: Report,
}

impl<'a> Import<'a> {
    pub(super) fn new(
        args: &'a ImportArgs,
        table: TableRef,
        context: Arc<WorkContext>,
        known_before: Option<HashSet<DataPath>>,
    ) -> Result<Self, ImportError> {
        let layer = match &args.layer {
            Some(name) => Some(context.layers.get(&LayerName::parse(name)?)?.clone()),
            None => None,
        };
        Ok(Self {
            args,
            table,
            context,
            layer,
            known_before,
            ledgers: HashMap::new(),
            iterations: HashMap::new(),
            asked: HashSet::new(),
            free: HashSet::new(),
            targets: HashMap::new(),
            report: Report::default(),
        })
    }

    /// Imports what lies below the folders that were named.
    pub(super) async fn files(&mut self) -> Result<(), ImportError> {
        let layers = &self.context.layers;
        let skip = find::unfinished(layers, &self.table);
        let roots: Vec<PathBuf> = self
            .args
            .sources
            .iter()
            .map(|source| PathBuf::from(&source.0))
            .collect();
        let mut found = Vec::new();
        for file in find::files(&roots, &skip, find::is_parquet)? {
            match find::place(file, layers, self.layer.as_ref(), &self.table) {
                Ok(file) => found.push(file),
                Err((file, reason)) => self.report.bad(&file.display(), &reason),
            }
        }
        for file in &found {
            if let Place::Inside(path) = &file.place {
                let highest = self.iterations.entry(path.dir()).or_insert(Iteration(0));
                *highest = path.iteration().max(*highest);
            }
        }
        let inside = found.iter().filter_map(|file| match &file.place {
            Place::Inside(path) => Some(path.clone()),
            Place::Outside(_) => None,
        });
        self.free = self.free_of(inside.collect()).await?;
        self.report.start(progress_bar(found.len()));
        for chunk in found.chunks(CHUNK_FILES) {
            let items = self.describe(chunk).await?;
            self.take(items).await?;
            self.report.advance(chunk.len());
        }
        Ok(())
    }

    /// Imports entries of another catalog.
    pub(super) async fn convert(
        &mut self,
        converted: convert::Converted,
    ) -> Result<(), ImportError> {
        for (what, reason) in &converted.bad {
            self.report.bad(what, reason);
        }
        let in_place = converted.items.iter().filter(|item| item.source.is_none());
        let in_place = in_place.map(|item| item.entry.path.clone()).collect();
        self.free = self.free_of(in_place).await?;
        self.report.start(progress_bar(converted.items.len()));
        let mut items = converted.items;
        while !items.is_empty() {
            let rest = items.split_off(items.len().min(CHUNK_FILES));
            let count = items.len();
            self.take(items).await?;
            self.report.advance(count);
            items = rest;
        }
        Ok(())
    }

    /// Prints what was done.
    pub(super) fn finish(&self) -> Result<(), ImportError> {
        self.report.finish(self.args.dry_run)
    }

    /// Reads the files of which the index does not tell already.
    async fn describe(&mut self, found: &[Found]) -> Result<Vec<Item>, ImportError> {
        let inside: Vec<DataPath> = found
            .iter()
            .filter_map(|file| match &file.place {
                Place::Inside(path) => Some(path.clone()),
                Place::Outside(_) => None,
            })
            .collect();
        let indexed = self.context.catalog.resolve(&self.table, &inside).await?;
        let mut indexed = indexed.into_iter();
        let mut items = Vec::new();
        for file in found {
            let item = match &file.place {
                Place::Inside(path) => match indexed.next().flatten() {
                    Some(entry) => {
                        self.report.indexed(&entry, self.is_new(&entry.path));
                        continue;
                    }
                    None => self.entry(file, path.clone()).map(|entry| Item {
                        entry,
                        source: None,
                        is_vouched: false,
                    }),
                },
                Place::Outside(dir) => match self.outside(file, dir.as_ref()) {
                    Ok(None) => continue,
                    Ok(Some(item)) => Ok(item),
                    Err(reason) => Err(reason),
                },
            };
            match item {
                Ok(item) => items.push(item),
                // Replaced and deleted since the folder was listed.
                Err(_) if !file.file.exists() => self.report.gone(),
                Err(reason) => self.report.bad(&file.file.display(), &reason),
            }
        }
        Ok(items)
    }

    /// Whether the embedded catalog registered the file just now, when it was opened.
    fn is_new(&self, path: &DataPath) -> bool {
        self.known_before
            .as_ref()
            .is_some_and(|known| !known.contains(path))
    }

    fn entry(&self, file: &Found, path: DataPath) -> Result<IndexEntry, String> {
        let probed = daemon::probe_file(&self.context.config, &self.table, &file.file)?;
        let stamp = stamp(&file.file)?;
        Ok(IndexEntry {
            layer: file.layer.clone(),
            table: self.table.clone(),
            path,
            size_bytes: probed.size_bytes,
            row_count: probed.row_count,
            chunk_time_ns: i64::try_from(stamp.modified_ns).unwrap_or(i64::MAX),
            min_time_ns: probed.min_time_ns,
            max_time_ns: probed.max_time_ns,
            min: probed.min,
            max: probed.max,
            writer: WriterId::default(),
            extra: Map::new(),
        })
    }

    /// A file to be copied. Its name says what its bytes are and where they go, so that the same file
    /// has the same name in every run, wherever it lies by then.
    fn outside(
        &mut self,
        found: &Found,
        dir: Option<&PartitionDir>,
    ) -> Result<Option<Item>, String> {
        let stamp = stamp(&found.file)?;
        let content = match self.ledger(&found.layer).map_err(text)?.content(&stamp) {
            Some(content) => content,
            None => File::open(&found.file)
                .and_then(|file| ContentHash::of(&file, |_| Ok(())))
                .map_err(text)?,
        };
        // Any path will do until the times are known.
        let somewhere = PartitionDir::parse("somewhere")
            .and_then(|dir| dir.file("x", Iteration(1)))
            .map_err(text)?;
        let mut entry = self.entry(found, somewhere)?;
        let dir = match dir {
            Some(dir) => dir.clone(),
            None if entry.row_count == 0 => {
                self.report.empty();
                return Ok(None);
            }
            None => partition_of(entry.min_time_ns).map_err(text)?,
        };
        let name = Uuid::new_v5(&content, dir.as_str().as_bytes());
        entry.path = dir.file(&name.to_string(), Iteration(1)).map_err(text)?;
        if let Some(twin) = self.targets.get(&entry.path) {
            self.report.twin(&found.file, twin);
            return Ok(None);
        }
        self.targets.insert(entry.path.clone(), found.file.clone());
        Ok(Some(Item {
            entry,
            source: Some(Source {
                file: found.file.clone(),
                read: Some((stamp, content)),
            }),
            is_vouched: true,
        }))
    }

    fn ledger(&mut self, layer: &LayerName) -> Result<&mut Ledger, ImportError> {
        if !self.ledgers.contains_key(layer) {
            let folder = self.context.layers.get(layer)?.imports_folder(&self.table);
            let ledger = Ledger::open(folder, !self.args.dry_run)?;
            self.ledgers.insert(layer.clone(), ledger);
        }
        self.ledgers.get_mut(layer).ok_or_else(|| {
            StorageError::UnknownLayer {
                name: layer.to_string(),
            }
            .into()
        })
    }

    /// Decides on each item, and does it.
    async fn take(&mut self, items: Vec<Item>) -> Result<(), ImportError> {
        let decisions = self.decide_all(&items).await?;
        let mut to_register = Vec::new();
        let mut to_publish = Vec::new();
        for (item, decision) in items.into_iter().zip(decisions) {
            match decision {
                Decision::Indexed if item.is_vouched && self.is_new(&item.entry.path) => {
                    // What the other catalog says takes the place of what the footer said.
                    to_register.push(item);
                }
                Decision::Indexed => self.report.indexed(&item.entry, false),
                Decision::ImportedBefore => self.report.imported_before(),
                Decision::Wait => self.report.bad(
                    &item.entry.path,
                    "it lies in the table's folder, but a merge may have replaced it: merges run or deletes wait; run import again when there are none (gigamerge plan shows that)",
                ),
                Decision::NoBytes => self
                    .report
                    .bad(&item.entry.path, "the layer has no such file; put it there first"),
                Decision::Register => match self.doubt(&item).await? {
                    Some(reason) => self.report.bad(&item.entry.path, &reason),
                    None => to_register.push(item),
                },
                Decision::Copy | Decision::Publish => to_publish.push((item, decision)),
            }
        }
        if self.args.dry_run {
            let published = to_publish.into_iter().map(|(item, _)| item);
            for item in to_register.into_iter().chain(published) {
                self.report.would_register(&item);
            }
            return Ok(());
        }
        let published = self.publish(to_publish)?;
        to_register.extend(published);
        self.register(to_register).await
    }

    /// Copies, records, gives the copies their names.
    fn publish(&mut self, items: Vec<(Item, Decision)>) -> Result<Vec<Item>, ImportError> {
        let mut staged: HashMap<LayerName, Vec<Item>> = HashMap::new();
        for (item, decision) in items {
            let target = self.ledger(&item.entry.layer)?.staged(&item.entry.path);
            let copied = match &item.source {
                Some(source) if decision == Decision::Copy => stage(source, &item.entry, &target),
                _ => Ok(()),
            };
            match copied {
                Ok(()) => staged
                    .entry(item.entry.layer.clone())
                    .or_default()
                    .push(item),
                Err(reason) => {
                    // Best effort: what stays behind is written anew by the next run.
                    let _ = fs::remove_file(&target);
                    let shown = item.source.map_or_else(PathBuf::new, |source| source.file);
                    self.report.bad(&shown.display(), &reason);
                }
            }
        }
        self.context.reached(CrashPoint::ImportCopied);
        let mut published = Vec::new();
        for (layer, items) in staged {
            let paths: Vec<&DataPath> = items.iter().map(|item| &item.entry.path).collect();
            self.ledger(&layer)?.begin(&paths)?;
            self.context.reached(CrashPoint::ImportRecorded);
            for item in items {
                let path = &item.entry.path;
                let from = self.ledger(&layer)?.staged(path);
                let layer = self.context.layers.get(&layer)?;
                match layer.publish(&from, &self.table, path) {
                    Ok(()) => {
                        self.context.reached(CrashPoint::ImportPublished);
                        published.push(item);
                    }
                    Err(error) => self.report.bad(path, &text(error)),
                }
            }
        }
        Ok(published)
    }

    /// Into the index, then into the record.
    async fn register(&mut self, items: Vec<Item>) -> Result<(), ImportError> {
        if items.is_empty() {
            return Ok(());
        }
        let entries: Vec<IndexEntry> = items.iter().map(|item| item.entry.clone()).collect();
        self.context.catalog.batch(&entries, &[]).await?;
        self.context.reached(CrashPoint::ImportRegistered);
        let mut by_layer: HashMap<&LayerName, Vec<_>> = HashMap::new();
        for item in &items {
            let read = item.source.as_ref().and_then(|source| source.read.clone());
            by_layer
                .entry(&item.entry.layer)
                .or_default()
                .push((&item.entry.path, read));
            self.report.registered(item);
        }
        for (layer, files) in by_layer {
            self.ledger(layer)?.finish(&files)?;
        }
        self.context.reached(CrashPoint::ImportFinished);
        Ok(())
    }
}

/// On a terminal only: in a log it would be noise.
fn progress_bar(files: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(files as u64);
    match ProgressStyle::with_template("{wide_bar} {pos}/{len} files, {eta} left") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
