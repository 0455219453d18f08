//! `gigamerge undelete`: what a merge replaced comes back while its grace lasts.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{
    CommonArgs,
    output::{Align, PrintError, Table, print, time_text},
};
use crate::{
    catalog::{CatalogError, Replacement, Undeleted},
    config::Config,
    daemon::{self, Access, DaemonError},
    model::{DataPath, ModelError, TableRef},
    storage::StorageError,
    telemetry::logging,
    worker::WorkContext,
};

/// `gigamerge undelete`
#[derive(Debug, Args)]
pub struct UndeleteArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub database: String,
    /// The table.
    #[arg(value_name = "TABLE")]
    pub table: String,
    /// The merged file whose inputs are to come back. Without it, all merges that can be undone are listed.
    #[arg(value_name = "OUTPUT")]
    pub output: Option<String>,
    /// One JSON object per line.
    #[arg(long)]
    pub json: bool,
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Why files did not come back.
#[derive(Debug, thiserror::Error)]
pub enum UndeleteError {
    /// The catalog could not be opened.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The catalog could not be asked.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A layer is not configured or cannot be used.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A name cannot be one.
    #[error(transparent)]
    Name(#[from] ModelError),
    /// No waiting delete names it.
    #[error("{output}: no replaced file of it waits for its deletion; `gigamerge undelete {} {}` lists the merges of which some do", table.database(), table.table())]
    Nothing {
        /// What was asked for.
        output: DataPath,
        /// The table.
        table: TableRef,
    },
    /// Its rows are in another file by now.
    #[error(
        "{output}: the index does not name it any more, because it was merged on, moved or deleted; only the newest merge of a file can be undone"
    )]
    OutputGone {
        /// What was asked for.
        output: DataPath,
    },
    /// Some bytes are gone, or about to be.
    #[error(
        "{output}: its grace is over and some of the {count} files that it replaced are being deleted; nothing was changed"
    )]
    BeingDeleted {
        /// What was asked for.
        output: DataPath,
        /// How many it replaced.
        count: usize,
    },
    /// Somebody else deleted a file.
    #[error("{}: is not there; nothing was changed", file.display())]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The result could not be printed.
    #[error(transparent)]
    Print(#[from] PrintError),
}

/// Lists what can be undone, or undoes one merge.
pub async fn run(args: &UndeleteArgs, config: Config) -> Result<(), UndeleteError> {
    logging::start(&config.log);
    let table = TableRef::new(&args.database, &args.table)?;
    let output = args.output.as_deref().map(DataPath::parse).transpose()?;
    let access = match output {
        Some(_) => Access::Work,
        None => Access::Look,
    };
    let context = daemon::open(config, access).await?;
    let found = context.catalog.replacements(&table).await?;
    let Some(output) = output else {
        // What was merged on cannot be undone.
        let outputs: Vec<DataPath> = found.iter().map(|one| one.output.clone()).collect();
        let indexed = context.catalog.resolve(&table, &outputs).await?;
        let found = found.into_iter().zip(indexed);
        let newest = found.filter_map(|(one, entry)| entry.map(|_| one));
        return list(&newest.collect::<Vec<_>>(), args.json);
    };
    let Some(replacement) = found.into_iter().find(|one| one.output == output) else {
        return Err(UndeleteError::Nothing { output, table });
    };
    bytes_are_there(&context, &replacement)?;
    let grace = context.config.grace(&replacement.layer);
    match context.catalog.undelete(&replacement, grace).await? {
        Undeleted::Done => {}
        Undeleted::OutputGone => return Err(UndeleteError::OutputGone { output }),
        Undeleted::BeingDeleted => {
            let count = replacement.sources_count;
            return Err(UndeleteError::BeingDeleted { output, count });
        }
    }
    let sources = &replacement.sources;
    print(|out| {
        for source in sources {
            if args.json {
                writeln!(
                    out,
                    "{}",
                    json!({"path": source.as_str(), "instead_of": output.as_str()})
                )?;
            } else {
                writeln!(out, "{source}")?;
            }
        }
        if !args.json {
            writeln!(
                out,
                "{} files are in the index again, instead of {output}; they are not merged until `gigamerge quarantine retry` says so",
                sources.len()
            )?;
        }
        Ok(())
    })?;
    Ok(())
}

/// The index must name only files whose bytes are there.
fn bytes_are_there(context: &WorkContext, replacement: &Replacement) -> Result<(), UndeleteError> {
    let layer = context.layers.get(&replacement.layer)?;
    for source in &replacement.sources {
        let file = layer.checked_file(&replacement.table, source)?;
        if !file.exists() {
            return Err(UndeleteError::Missing { file });
        }
    }
    Ok(())
}

fn list(found: &[Replacement], is_json: bool) -> Result<(), UndeleteError> {
    if is_json {
        print(|out| {
            for one in found {
                let sources: Vec<&str> = one.sources.iter().map(DataPath::as_str).collect();
                let line = json!({"output": one.output.as_str(), "layer": one.layer.as_str(), "replaced": sources,
                    "replaced_count": one.sources_count, "delete_at_s": one.due_s});
                writeln!(out, "{line}")?;
            }
            Ok(())
        })?;
        return Ok(());
    }
    let mut lines = Table::new([
        ("OUTPUT", Align::Left),
        ("REPLACED FILES", Align::Right),
        ("DELETED AFTER", Align::Left),
    ]);
    for one in found {
        lines.push([
            one.output.to_string(),
            format!("{} of {}", one.sources.len(), one.sources_count),
            time_text(one.due_s.saturating_mul(1_000_000_000)),
        ]);
    }
    print(|out| lines.write(out))?;
    Ok(())
}
