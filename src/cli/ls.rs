//! `gigamerge ls`: databases, tables, partitions.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use super::{
    CommonArgs,
    output::{Align, Sums, Table, print},
    query::QueryError,
};
use crate::{
    catalog::{Catalog, EntryFilter},
    config::Config,
    daemon::{self, Access},
    model::{PartitionDir, TableRef},
    telemetry::logging,
};

/// `gigamerge ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Show the tables of this database.
    #[arg(value_name = "DB")]
    pub database: Option<String>,
    /// Show the partitions of this table.
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,
    /// One JSON object per line; times in nanoseconds.
    #[arg(long)]
    pub json: bool,
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Prints what there is one level below what was named.
pub async fn run(args: &LsArgs, config: Config) -> Result<(), QueryError> {
    logging::start(&config.log);
    let context = daemon::open(config, Access::Look).await?;
    let catalog = &*context.catalog;
    match (&args.database, &args.table) {
        (None, _) => databases(catalog, args.json).await,
        (Some(database), None) => tables(catalog, database, args.json).await,
        (Some(database), Some(table)) => {
            partitions(catalog, TableRef::new(database, table)?, args.json).await
        }
    }
}

async fn databases(catalog: &dyn Catalog, as_json: bool) -> Result<(), QueryError> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for table in catalog.tables().await? {
        *counts.entry(table.database().to_owned()).or_default() += 1;
    }
    if as_json {
        let lines = counts
            .iter()
            .map(|(name, tables)| json!({"database": name, "tables": tables}));
        return print_lines(lines);
    }
    let mut table = Table::new([("DATABASE", Align::Left), ("TABLES", Align::Right)]);
    for (name, tables) in counts {
        table.push([name, tables.to_string()]);
    }
    Ok(print(|out| table.write(out))?)
}

async fn tables(catalog: &dyn Catalog, database: &str, as_json: bool) -> Result<(), QueryError> {
    let mut found: Vec<(String, Sums)> = Vec::new();
    for table in catalog.tables().await? {
        if table.database() != database {
            continue;
        }
        // One table at a time, so that no more than one stands in memory.
        let mut sums = Sums::default();
        for entry in catalog.entries(&table, &EntryFilter::default()).await? {
            sums.add(&entry);
        }
        found.push((table.table().to_owned(), sums));
    }
    if found.is_empty() {
        return Err(QueryError::NoDatabase {
            database: database.to_owned(),
        });
    }
    print_sums("TABLE", "table", &found, as_json)
}

async fn partitions(
    catalog: &dyn Catalog,
    table: TableRef,
    as_json: bool,
) -> Result<(), QueryError> {
    let mut found: BTreeMap<PartitionDir, Sums> = BTreeMap::new();
    for entry in catalog.entries(&table, &EntryFilter::default()).await? {
        found.entry(entry.path.dir()).or_default().add(&entry);
    }
    if found.is_empty() {
        return Err(QueryError::NoTable { table });
    }
    let found: Vec<(String, Sums)> = found
        .into_iter()
        .map(|(dir, sums)| (dir.to_string(), sums))
        .collect();
    print_sums("PARTITION", "partition", &found, as_json)
}

fn print_sums(
    head: &str,
    key: &str,
    found: &[(String, Sums)],
    as_json: bool,
) -> Result<(), QueryError> {
    if as_json {
        return print_lines(found.iter().map(|(name, sums)| {
            let mut line = sums.json();
            line[key] = json!(name);
            line
        }));
    }
    let mut table = Table::new([
        (head, Align::Left),
        ("FILES", Align::Right),
        ("ROWS", Align::Right),
        ("SIZE", Align::Right),
        ("FIRST TIME", Align::Left),
        ("LAST TIME", Align::Left),
    ]);
    for (name, sums) in found {
        let [files, rows, size, first, last] = sums.cells();
        table.push([name.clone(), files, rows, size, first, last]);
    }
    Ok(print(|out| table.write(out))?)
}

fn print_lines(lines: impl Iterator<Item = Value>) -> Result<(), QueryError> {
    let mut lines = lines;
    Ok(print(|out| {
        lines.try_for_each(|line| writeln!(out, "{line}"))
    })?)
}
