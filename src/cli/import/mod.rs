//! `gigamerge import`: files that are there already come into the catalog.
//!
//! Files in the layer's folder of the table are registered where they are; files elsewhere are copied.
//! In pieces of [`CHUNK_FILES`]: look at the index, [decide](decide::decide), copy, record, publish,
//! register, record. Bytes come before the index, and a second run finds what the first one did, even
//! when it was cut off or a daemon has merged the files since.

mod convert;
mod decide;
mod find;
mod ledger;
mod report;

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File},
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use chrono::{DateTime, Utc};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Map;
use uuid::Uuid;

use self::{
    decide::{Decision, Facts, decide},
    find::{Found, Place},
    ledger::{ContentHash, Ledger, SourceStamp},
    report::Report,
};
use super::{CommonArgs, output::PrintError};
use crate::{
    catalog::{Catalog, CatalogError, EntryFilter, json::JsonCatalog},
    config::{CatalogConfig, Config, Secret},
    daemon::{self, Access, DaemonError},
    model::{
        DataPath, IndexEntry, Iteration, LayerName, ModelError, PartitionDir, TableRef, WriterId,
    },
    storage::{Layer, StorageError},
    telemetry::logging,
    worker::WorkContext,
};

/// Files that are copied, then registered by one call.
const CHUNK_FILES: usize = 64;

/// `gigamerge import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub database: String,
    /// The table.
    #[arg(value_name = "TABLE")]
    pub table: String,
    /// Folders (looked through with all below them) or files. With --from-catalog: a lake's root folder
    /// with metadata.json files, or the URL of a Redis.
    ///
    /// Other users of this machine can see command lines: a password in a URL is not hidden from them.
    #[arg(value_name = "DIR", required = true, value_parser = super::secret)]
    pub sources: Vec<Secret>,
    /// The layer that the files go to. Without it, the one that DIR lies in, or the first.
    #[arg(long, value_name = "NAME")]
    pub layer: Option<String>,
    /// Show what would be done; lock and change nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Take the entries of another catalog, with every field, without reading footers.
    #[arg(long)]
    pub from_catalog: bool,
    /// Register files in the table's folder even if files of a higher iteration lie beside them.
    ///
    /// Such files may be leftovers of a merge, and then their rows would be there twice. Only you can
    /// know; without this option they are left alone.
    #[arg(long, conflicts_with = "from_catalog")]
    pub assume_live: bool,
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Why an import stopped, or is not complete.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The catalog could not be opened.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A catalog could not be asked or changed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A layer is not configured or cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A name cannot be one.
    #[error(transparent)]
    Name(#[from] ModelError),
    /// A folder or file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// More folders or files than one import takes.
    #[error("{}: too many files or too deep; import it in parts", folder.display())]
    TooMuch {
        /// Where it was noticed.
        folder: PathBuf,
    },
    /// Another import works on the table.
    #[error("{}: another import works on this table; wait for it", path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
    },
    /// A catalog's URL where folders are asked for.
    #[error("a URL is another catalog: add --from-catalog; else name folders or files")]
    UrlWithoutFlag,
    /// The source and the configured catalog are one.
    #[error("--from-catalog names the configured catalog itself; name the one to convert from")]
    SameCatalog,
    /// The source holds nothing of the table.
    #[error("{from} has no files of {table}")]
    NoSource {
        /// Where entries were looked for, without secrets.
        from: String,
        /// The table.
        table: TableRef,
    },
    /// Files of the source are about to change.
    #[error(
        "{from} is not at rest: {merges} merges run, {drops} deletes wait; stop what works on it, run `gigamerge once` with it until nothing waits, then import"
    )]
    NotAtRest {
        /// The source, without secrets.
        from: String,
        /// Merges handed out.
        merges: u64,
        /// Deletes waiting or handed out.
        drops: u64,
    },
    /// Some files were not imported.
    #[error("{count} files were not imported; each is named above")]
    Incomplete {
        /// How many.
        count: u64,
    },
    /// The result could not be printed.
    #[error(transparent)]
    Print(#[from] PrintError),
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> ImportError {
    let path = path.to_owned();
    move |source| ImportError::Io { path, source }
}

/// Imports, and prints what was done. Fails at the end when a file was left out.
pub async fn run(args: &ImportArgs, config: Config) -> Result<(), ImportError> {
    let table = TableRef::new(&args.database, &args.table)?;
    if !args.from_catalog && args.sources.iter().any(convert::is_url) {
        return Err(ImportError::UrlWithoutFlag);
    }
    // Before logging starts: the same oddities are told when the catalog is opened for real.
    let known_before = registered_before(&config, &table).await?;
    logging::start(&config.log);
    // Before the catalog is opened: an embedded one would register files that the source had replaced.
    let converted = if args.from_catalog {
        Some(convert::read(args, &config, &table).await?)
    } else {
        None
    };
    let access = if args.dry_run {
        Access::Look
    } else {
        Access::Work
    };
    let context = daemon::open(config, access).await?;
    let mut import = Import::new(args, table, context, known_before)?;
    match converted {
        Some(converted) => import.convert(converted).await?,
        None => import.files().await?,
    }
    import.report.finish(args.dry_run)
}

/// What the embedded catalog names before it is opened and registers what it finds.
async fn registered_before(
    config: &Config,
    table: &TableRef,
) -> Result<Option<HashSet<DataPath>>, ImportError> {
    if config.catalog != CatalogConfig::Json {
        return Ok(None);
    }
    let layers = config
        .layers
        .iter()
        .map(|layer| (layer.name.clone(), layer.root.clone()))
        .collect();
    let nothing_new = Arc::new(|_: &TableRef, _: &Path| Err(String::new()));
    let catalog = JsonCatalog::open_to_look(layers, Arc::new(config.policy()), nothing_new).await?;
    let entries = catalog.entries(table, &EntryFilter::default()).await?;
    Ok(Some(entries.into_iter().map(|entry| entry.path).collect()))
}

/// A file and what will be said of it.
struct Item {
    entry: IndexEntry,
    /// Where to copy it from; `None` when it lies in place or nobody has it.
    source: Option<Source>,
    /// Another catalog says that its rows stand nowhere else.
    is_vouched: bool,
}

struct Source {
    file: PathBuf,
    /// What it was when it was read; not known of files whose entry another catalog gave.
    read: Option<(SourceStamp, Uuid)>,
}

struct Import<'a> {
    args: &'a ImportArgs,
    table: TableRef,
    context: Arc<WorkContext>,
    layer: Option<Layer>,
    known_before: Option<HashSet<DataPath>>,
    ledgers: HashMap<LayerName, Ledger>,
    /// Highest iteration in each partition, on disk and in the index.
    iterations: HashMap<PartitionDir, Iteration>,
    /// Copies of this run: target → source.
    targets: HashMap<DataPath, PathBuf>,
    report: Report,
}

impl<'a> Import<'a> {
    fn new(
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
            targets: HashMap::new(),
            report: Report::default(),
        })
    }

    /// Imports what lies below the folders that were named.
    async fn files(&mut self) -> Result<(), ImportError> {
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
        self.report.start(progress_bar(found.len()));
        for chunk in found.chunks(CHUNK_FILES) {
            let items = self.describe(chunk).await?;
            self.take(items).await?;
            self.report.advance(chunk.len());
        }
        Ok(())
    }

    /// Imports entries of another catalog.
    async fn convert(&mut self, converted: convert::Converted) -> Result<(), ImportError> {
        for (what, reason) in &converted.bad {
            self.report.bad(what, reason);
        }
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

    async fn decide_all(&mut self, items: &[Item]) -> Result<Vec<Decision>, ImportError> {
        let context = Arc::clone(&self.context);
        let catalog = &context.catalog;
        let paths: Vec<DataPath> = items.iter().map(|item| item.entry.path.clone()).collect();
        let mut indexed = catalog.resolve(&self.table, &paths).await?;
        let mut is_quiet = false;
        let mut may_be_replaced = |(item, entry): (&Item, &Option<IndexEntry>)| {
            entry.is_none() && is_published(&context, item).unwrap_or(true)
        };
        if items.iter().zip(&indexed).any(&mut may_be_replaced) {
            let depths = catalog.queue_depths().await?;
            is_quiet = depths.merges_processing_count == 0
                && depths.drops_idle_count == 0
                && depths.drops_processing_count == 0;
            // Again: a merge may have committed between the two questions.
            for (first, second) in indexed
                .iter_mut()
                .zip(catalog.resolve(&self.table, &paths).await?)
            {
                *first = first.take().or(second);
            }
        }
        let mut decisions = Vec::with_capacity(items.len());
        for (item, entry) in items.iter().zip(indexed) {
            let path = &item.entry.path;
            if entry.is_some() {
                decisions.push(Decision::Indexed);
                continue;
            }
            let ledger = self.ledger(&item.entry.layer)?;
            decisions.push(decide(Facts {
                is_indexed: false,
                is_staged: ledger.staged(path).exists(),
                recorded: ledger.state(path),
                has_source: item.source.is_some(),
                is_quiet,
                // Last: what was deleted meanwhile is not there any more.
                is_published: is_published(&context, item)?,
            }));
        }
        Ok(decisions)
    }

    /// Why a file in the table's folder may be what a merge left behind. Programs that merge without
    /// deleting exist, and so do catalogs that were lost.
    async fn doubt(&mut self, item: &Item) -> Result<Option<String>, ImportError> {
        if item.is_vouched || self.args.assume_live {
            return Ok(None);
        }
        let dir = item.entry.path.dir();
        let filter = EntryFilter {
            folder: Some(dir.to_string()),
            ..EntryFilter::default()
        };
        let highest = self.iterations.get(&dir).copied().unwrap_or(Iteration(0));
        let indexed = self.context.catalog.entries(&self.table, &filter).await?;
        let highest = indexed
            .iter()
            .filter(|entry| entry.path.dir() == dir)
            .map(|entry| entry.path.iteration())
            .fold(highest, Ord::max);
        self.iterations.insert(dir, highest);
        Ok((highest > item.entry.path.iteration()).then(|| {
            format!("a file of iteration {highest} lies beside it and may hold its rows already; if you know that it does not, import with --assume-live")
        }))
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
        let mut published = Vec::new();
        for (layer, items) in staged {
            let paths: Vec<&DataPath> = items.iter().map(|item| &item.entry.path).collect();
            self.ledger(&layer)?.begin(&paths)?;
            for item in items {
                let path = &item.entry.path;
                let from = self.ledger(&layer)?.staged(path);
                let layer = self.context.layers.get(&layer)?;
                match layer.publish(&from, &self.table, path) {
                    Ok(()) => published.push(item),
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
        Ok(())
    }
}

fn is_published(context: &WorkContext, item: &Item) -> Result<bool, ImportError> {
    let layer = context.layers.get(&item.entry.layer)?;
    let file = layer.checked_file(&item.entry.table, &item.entry.path)?;
    Ok(file.exists())
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn stamp(file: &Path) -> Result<SourceStamp, String> {
    let meta = fs::metadata(file).map_err(text)?;
    let modified = meta.modified().unwrap_or_else(|_| SystemTime::now());
    Ok(SourceStamp {
        file: file.to_owned(),
        size_bytes: meta.len(),
        modified_ns: modified
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos(),
    })
}

/// `date=2024-01-15/hour=14` of a time in nanoseconds, UTC.
fn partition_of(time_ns: i64) -> Result<PartitionDir, ModelError> {
    let time = DateTime::<Utc>::from_timestamp_nanos(time_ns);
    PartitionDir::parse(&time.format("date=%Y-%m-%d/hour=%H").to_string())
}

/// Copies a file to where it waits for its name, durably, and checks that it is what was read before.
fn stage(source: &Source, entry: &IndexEntry, target: &Path) -> Result<(), String> {
    let from = File::open(&source.file).map_err(text)?;
    let mut copy =
        File::create(target).map_err(|error| format!("{}: {error}", target.display()))?;
    let mut size_bytes = 0;
    let content = ContentHash::of(&from, |piece| {
        size_bytes += piece.len() as u64;
        copy.write_all(piece)
    })
    .map_err(text)?;
    copy.sync_all().map_err(text)?;
    let is_same = source
        .read
        .as_ref()
        .is_none_or(|(_, read)| *read == content);
    if is_same && size_bytes == entry.size_bytes {
        Ok(())
    } else {
        Err("it changed while it was read; import it when it is complete".to_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_the_hour_of_the_time_in_utc() {
        for (time_ns, dir) in [
            (1_705_327_200_000_000_000, "date=2024-01-15/hour=14"),
            (1_705_327_199_999_999_999, "date=2024-01-15/hour=13"),
            (-1, "date=1969-12-31/hour=23"),
        ] {
            assert_eq!(partition_of(time_ns).unwrap().as_str(), dir);
        }
    }
}
