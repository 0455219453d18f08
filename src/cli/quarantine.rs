//! `gigamerge quarantine`: what is not merged any more, and how it comes back or goes.

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{
    CommonArgs,
    output::{Align, PrintError, Table, print, time_text},
};
use crate::{
    catalog::{Catalog, CatalogError, Retried},
    config::Config,
    daemon::{self, Access, DaemonError},
    model::{DataPath, ModelError, QuarantineKind, Quarantined, TableRef},
    telemetry::logging,
};

/// `gigamerge quarantine`
#[derive(Debug, Args)]
pub struct QuarantineArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
}

/// What to do with the quarantine.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// List files that were set aside and plans that were given up, with their reasons.
    ///
    /// Locks and changes nothing; may run beside the daemon.
    Ls(LsArgs),
    /// Show one of them with everything that is known of it.
    Show(ShowArgs),
    /// Bring them back to work: a file as a plan of its own, a plan with all its files.
    ///
    /// What is wrong with them should have been corrected before. The embedded catalog is locked
    /// meanwhile: stop the daemon first.
    Retry(ChangeArgs),
    /// Remove their files from the index. The bytes are deleted after drops.grace.
    ///
    /// The rows are gone then. The embedded catalog is locked meanwhile: stop the daemon first.
    Drop(DropArgs),
}

impl Action {
    /// What the command line sets.
    pub fn common(&self) -> &CommonArgs {
        match self {
            Self::Ls(args) => &args.common,
            Self::Show(args) => &args.common,
            Self::Retry(args) => &args.common,
            Self::Drop(args) => &args.change.common,
        }
    }
}

/// `gigamerge quarantine ls`
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only this database.
    #[arg(value_name = "DB")]
    pub database: Option<String>,
    /// Only this table.
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,
    /// One JSON object per line.
    #[arg(long)]
    pub json: bool,
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `gigamerge quarantine show`
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub database: String,
    /// The table.
    #[arg(value_name = "TABLE")]
    pub table: String,
    /// A file's path, or the id that `ls` shows. The path of a plan's file stands for the plan.
    #[arg(value_name = "PATH")]
    pub what: String,
    /// One JSON object.
    #[arg(long)]
    pub json: bool,
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `gigamerge quarantine retry`
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The database.
    #[arg(value_name = "DB")]
    pub database: String,
    /// The table.
    #[arg(value_name = "TABLE")]
    pub table: String,
    /// Paths of files, or ids that `ls` shows. The path of a plan's file stands for the plan.
    #[arg(
        value_name = "PATH",
        required_unless_present = "all",
        conflicts_with = "all"
    )]
    pub what: Vec<String>,
    /// Everything in the quarantine of this table.
    #[arg(long)]
    pub all: bool,
    /// One JSON object per line.
    #[arg(long)]
    pub json: bool,
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// `gigamerge quarantine drop`
#[derive(Debug, Args)]
pub struct DropArgs {
    /// What, and how to say it.
    #[command(flatten)]
    pub change: ChangeArgs,
    /// Really do it. Without it only what would be dropped is shown.
    #[arg(long)]
    pub yes: bool,
}

/// Why the quarantine could not be shown or changed.
#[derive(Debug, thiserror::Error)]
pub enum QuarantineError {
    /// The catalog could not be opened.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The catalog could not be asked.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A name cannot be one.
    #[error(transparent)]
    Name(#[from] ModelError),
    /// It is not there.
    #[error(
        "{what} is not in the quarantine of {table}; `gigamerge quarantine ls` shows what is there"
    )]
    Absent {
        /// What was asked for.
        what: String,
        /// The table.
        table: TableRef,
    },
    /// Rows would be lost without a question.
    #[error("nothing was dropped: say --yes to remove {files} files from the index")]
    NotConfirmed {
        /// How many.
        files: usize,
    },
    /// The result could not be printed.
    #[error(transparent)]
    Print(#[from] PrintError),
}

/// Lists, shows or changes.
pub async fn run(action: &Action, config: Config) -> Result<(), QuarantineError> {
    logging::start(&config.log);
    let grace = config.drops.grace;
    let is_change = match action {
        Action::Ls(_) | Action::Show(_) => false,
        Action::Retry(_) => true,
        Action::Drop(args) => args.yes,
    };
    let access = if is_change {
        Access::Work
    } else {
        Access::Look
    };
    let context = daemon::open(config, access).await?;
    let catalog = &*context.catalog;
    match action {
        Action::Ls(args) => list(catalog, args).await,
        Action::Show(args) => {
            let table = TableRef::new(&args.database, &args.table)?;
            let all = catalog.quarantine(Some(&table)).await?;
            let one = find(&all, &args.what, &table)?;
            if args.json {
                print_lines(&[full_json(one)])
            } else {
                print_one(one)
            }
        }
        Action::Retry(args) => {
            for one in meant(catalog, args).await? {
                let what = match one.kind {
                    QuarantineKind::Unregistered => UNREGISTERED,
                    _ => retried_text(catalog.retry_quarantined(&one).await?),
                };
                report(&one, what, args.json)?;
            }
            Ok(())
        }
        Action::Drop(args) => {
            let meant = meant(catalog, &args.change).await?;
            if !args.yes {
                let (untouched, meant): (Vec<&Quarantined>, Vec<&Quarantined>) = meant
                    .iter()
                    .partition(|one| one.kind == QuarantineKind::Unregistered);
                for one in untouched {
                    report(one, UNREGISTERED, args.change.json)?;
                }
                for one in &meant {
                    report(one, "would be dropped", args.change.json)?;
                }
                let files = meant.iter().map(|one| one.paths.len()).sum();
                return Err(QuarantineError::NotConfirmed { files });
            }
            for one in &meant {
                let what = match one.kind {
                    QuarantineKind::Unregistered => UNREGISTERED,
                    _ => match catalog.drop_quarantined(one, grace).await? {
                        Some(_) => "dropped",
                        None => retried_text(Retried::Absent),
                    },
                };
                report(one, what, args.change.json)?;
            }
            Ok(())
        }
    }
}

/// There is nothing to change in the catalog.
const UNREGISTERED: &str = "not in the index; nothing changed: once the file can be read it is registered by itself, else remove it";

fn retried_text(retried: Retried) -> &'static str {
    match retried {
        Retried::Planned => "planned",
        Retried::Final => "out of quarantine; files of its iteration are not merged",
        Retried::Gone => "forgotten: the index has its files no more",
        Retried::Absent => "not there any more; nothing changed",
    }
}

async fn list(catalog: &dyn Catalog, args: &LsArgs) -> Result<(), QuarantineError> {
    let table = match (&args.database, &args.table) {
        (Some(database), Some(table)) => Some(TableRef::new(database, table)?),
        _ => None,
    };
    let mut found = catalog.quarantine(table.as_ref()).await?;
    if let Some(database) = &args.database {
        found.retain(|one| one.table.database() == database);
    }
    if args.json {
        return print_lines(&found.iter().map(short_json).collect::<Vec<_>>());
    }
    let mut lines = Table::new([
        ("TABLE", Align::Left),
        ("KIND", Align::Left),
        ("FILES", Align::Right),
        ("SINCE", Align::Left),
        ("PATH OR ID", Align::Left),
        ("REASON", Align::Left),
    ]);
    for one in &found {
        lines.push([
            one.table.to_string(),
            kind_text(one.kind).to_owned(),
            one.paths.len().to_string(),
            since(one.at_s),
            visible(&one.id),
            visible(&one.reason),
        ]);
    }
    Ok(print(|out| lines.write(out))?)
}

async fn meant(
    catalog: &dyn Catalog,
    args: &ChangeArgs,
) -> Result<Vec<Quarantined>, QuarantineError> {
    let table = TableRef::new(&args.database, &args.table)?;
    let all = catalog.quarantine(Some(&table)).await?;
    if args.all {
        return Ok(all);
    }
    let mut meant: Vec<Quarantined> = Vec::new();
    // All are looked for before anything changes; two paths may stand for one plan.
    for what in &args.what {
        let one = find(&all, what, &table)?;
        if !meant.contains(one) {
            meant.push(one.clone());
        }
    }
    Ok(meant)
}

fn find<'a>(
    all: &'a [Quarantined],
    what: &str,
    table: &TableRef,
) -> Result<&'a Quarantined, QuarantineError> {
    let by_id = all.iter().find(|one| one.id == what);
    let by_path = || {
        all.iter()
            .find(|one| one.paths.iter().any(|path| path.as_str() == what))
    };
    by_id
        .or_else(by_path)
        .ok_or_else(|| QuarantineError::Absent {
            what: what.to_owned(),
            table: table.clone(),
        })
}

fn report(one: &Quarantined, what: &str, as_json: bool) -> Result<(), QuarantineError> {
    if as_json {
        let mut line = short_json(one);
        line["result"] = json!(what);
        return print_lines(&[line]);
    }
    let kind = kind_text(one.kind);
    Ok(print(|out| {
        writeln!(
            out,
            "{} {kind} {} ({} files): {what}",
            one.table,
            visible(&one.id),
            one.paths.len()
        )
    })?)
}

fn print_one(one: &Quarantined) -> Result<(), QuarantineError> {
    Ok(print(|out| {
        writeln!(out, "table:   {}", one.table)?;
        writeln!(out, "kind:    {}", kind_text(one.kind))?;
        writeln!(out, "id:      {}", visible(&one.id))?;
        writeln!(out, "since:   {}", since(one.at_s))?;
        writeln!(out, "reason:  {}", visible(&one.reason))?;
        writeln!(out, "kept in: {}", visible(&one.place))?;
        for path in &one.paths {
            writeln!(out, "file:    {path}")?;
        }
        Ok(())
    })?)
}

fn print_lines(lines: &[Value]) -> Result<(), QuarantineError> {
    Ok(print(|out| {
        lines.iter().try_for_each(|line| writeln!(out, "{line}"))
    })?)
}

fn short_json(one: &Quarantined) -> Value {
    json!({
        "database": one.table.database(), "table": one.table.table(), "kind": kind_text(one.kind),
        "id": one.id, "files": one.paths.len(), "reason": one.reason, "at_s": one.at_s,
    })
}

fn full_json(one: &Quarantined) -> Value {
    let mut line = short_json(one);
    line["paths"] = one.paths.iter().map(DataPath::as_str).collect();
    line["place"] = json!(one.place);
    line["text"] = json!(one.text);
    line
}

fn kind_text(kind: QuarantineKind) -> &'static str {
    match kind {
        QuarantineKind::File => "file",
        QuarantineKind::Plan => "plan",
        QuarantineKind::Item => "item",
        QuarantineKind::Unregistered => "unregistered",
    }
}

fn since(at_s: i64) -> String {
    match at_s.checked_mul(1_000_000_000) {
        Some(ns) if ns > 0 => time_text(ns),
        _ => "-".to_owned(),
    }
}

/// Names and reasons come from files and from other programs: no control character of theirs
/// reaches the terminal.
fn visible(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c.is_control() {
                c.escape_default().to_string()
            } else {
                c.to_string()
            }
        })
        .collect()
}
