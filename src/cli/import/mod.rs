//! `gigamerge import`: files that are there already come into the catalog.
//!
//! Files in the layer's folder of the table are registered where they are; files elsewhere are copied.
//! In pieces of some files: look at the index, [decide](decide::decide), copy, record, publish,
//! register, record. Bytes come before the index, and a second run finds what the first one did, even
//! when it was cut off or a daemon has merged the files since.

mod convert;
mod copy;
mod decide;
mod find;
mod importer;
mod ledger;
mod report;

use std::{
    collections::HashSet,
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args;

use self::importer::Import;
use super::{CommonArgs, output::PrintError};
use crate::{
    catalog::{Catalog, CatalogError, EntryFilter, json::JsonCatalog},
    config::{CatalogConfig, Config, Secret},
    daemon::{self, Access, DaemonError},
    model::{DataPath, ModelError, TableRef},
    storage::StorageError,
    telemetry::logging,
};

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
        "{from} is not at rest: {merges} merges and {moves} moves run, {drops} deletes wait; stop what works on it, run `gigamerge once` with it until nothing waits, then import"
    )]
    NotAtRest {
        /// The source, without secrets.
        from: String,
        /// Merges handed out.
        merges: u64,
        /// Moves handed out.
        moves: u64,
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
    import.finish()
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
