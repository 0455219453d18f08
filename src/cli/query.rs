//! `gigamerge query`: the index entries of one table.

use clap::Args;

use super::{
    CommonArgs,
    output::{Align, PrintError, Sums, Table, entry_json, print, size_text, time_text},
    time_argument,
};
use crate::{
    catalog::{CatalogError, EntryFilter},
    config::Config,
    daemon::{self, Access, DaemonError},
    model::{IndexEntry, Iteration, ModelError, TableRef},
    telemetry::logging,
};

/// `gigamerge query`
#[derive(Debug, Args)]
pub struct QueryArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub database: String,
    /// The table.
    #[arg(value_name = "TABLE")]
    pub table: String,
    /// Only files that hold times at or after TIME.
    ///
    /// 2024-01-15T14:30:00Z, 2024-01-15 (its first instant) or nanoseconds since 1970; UTC
    /// unless an offset says otherwise.
    #[arg(long, value_name = "TIME", value_parser = time_argument::parse, allow_hyphen_values = true)]
    pub after: Option<i64>,
    /// Only files that hold times at or before TIME, in the same forms.
    #[arg(long, value_name = "TIME", value_parser = time_argument::parse, allow_hyphen_values = true)]
    pub before: Option<i64>,
    /// Only files in this partition or below it: date=2024-01-15 or date=2024-01-15/hour=14.
    #[arg(long, value_name = "F")]
    pub folder: Option<String>,
    /// Only files of this iteration: 1 for what writers made, one more for each merge.
    #[arg(long, value_name = "N")]
    pub iteration: Option<u32>,
    /// One JSON object per line, with every field of the entry; times in nanoseconds.
    #[arg(long)]
    pub json: bool,
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Why the index could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The catalog could not be opened.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The catalog could not be asked.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A name cannot be one.
    #[error(transparent)]
    Name(#[from] ModelError),
    /// There is no such table.
    #[error("the catalog has no table {table}; `gigamerge ls` shows those it has")]
    NoTable {
        /// The table.
        table: TableRef,
    },
    /// There is no such database.
    #[error("the catalog has no database {database:?}; `gigamerge ls` shows those it has")]
    NoDatabase {
        /// The database.
        database: String,
    },
    /// The result could not be printed.
    #[error(transparent)]
    Print(#[from] PrintError),
}

/// Prints the entries as a table or as lines of JSON.
pub async fn run(args: &QueryArgs, config: Config) -> Result<(), QueryError> {
    logging::start(&config.log);
    let table = TableRef::new(&args.database, &args.table)?;
    let context = daemon::open(config, Access::Look).await?;
    let filter = EntryFilter {
        after_ns: args.after,
        before_ns: args.before,
        folder: args.folder.clone(),
        iteration: args.iteration.map(Iteration),
    };
    let entries = context.catalog.entries(&table, &filter).await?;
    // A mistyped name must not look like a table without such files.
    if entries.is_empty() && !context.catalog.tables().await?.contains(&table) {
        return Err(QueryError::NoTable { table });
    }
    if args.json {
        print(|out| {
            entries
                .iter()
                .try_for_each(|entry| writeln!(out, "{}", entry_json(entry)))
        })?;
    } else {
        let (lines, sums) = as_table(&entries);
        print(|out| {
            lines.write(out)?;
            let [files, rows, size, ..] = sums.cells();
            writeln!(out, "\nfiles: {files}   rows: {rows}   size: {size}")
        })?;
    }
    Ok(())
}

fn as_table(entries: &[IndexEntry]) -> (Table<7>, Sums) {
    let mut sums = Sums::default();
    let mut table = Table::new([
        ("PATH", Align::Left),
        ("LAYER", Align::Left),
        ("WRITER", Align::Left),
        ("ROWS", Align::Right),
        ("SIZE", Align::Right),
        ("FIRST TIME", Align::Left),
        ("LAST TIME", Align::Left),
    ]);
    let or_dash = |text: &str| if text.is_empty() { "-" } else { text }.to_owned();
    for entry in entries {
        sums.add(entry);
        table.push([
            entry.path.to_string(),
            or_dash(entry.layer.as_str()),
            or_dash(entry.writer.as_str()),
            entry.row_count.to_string(),
            size_text(entry.size_bytes),
            time_text(entry.min_time_ns),
            time_text(entry.max_time_ns),
        ]);
    }
    (table, sums)
}
