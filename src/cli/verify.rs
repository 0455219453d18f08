//! `gigamerge verify`: do index, queues and storage agree?

use std::{fmt::Write as _, io::Write, time::Duration};

use clap::Args;
use serde_json::json;

use super::CommonArgs;
use crate::{
    catalog::CatalogError,
    config::Config,
    model::{LayerName, TableRef},
    telemetry::logging,
    verify::{self, Difference, Outcome, Repair, Summary, VerifyError, VerifyOptions},
};

/// `gigamerge verify`
#[derive(Debug, Args)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is an option of its own"
)]
pub struct VerifyArgs {
    /// Only this database.
    #[arg(value_name = "DB")]
    pub database: Option<String>,
    /// Only this table.
    #[arg(value_name = "TABLE")]
    pub table: Option<String>,
    /// Decode every file: row counts, order and statistics of what is really there.
    #[arg(long)]
    pub deep: bool,
    /// One JSON object per line for each difference.
    #[arg(long)]
    pub json: bool,
    /// Say what a repair would do; with --apply, do it.
    #[arg(long)]
    pub repair: bool,
    /// Make the repairs.
    #[arg(long, visible_alias = "yes", requires = "repair")]
    pub apply: bool,
    /// Files, claims and scratch that are younger are not judged: somebody may be at work.
    #[arg(long, value_name = "TIME", default_value = "10min", value_parser = humantime::parse_duration)]
    pub min_age: Duration,
    /// Files of a table, in percent, that one run may forget, rewrite or queue for deletion; one at least.
    #[arg(long, value_name = "PERCENT", default_value = "5%", value_parser = percent)]
    pub max_share: f64,
    /// Let a repair forget entries whose files are not there. Their text is kept aside.
    #[arg(long)]
    pub forget_missing: bool,
    /// What the command line sets.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// Why the lake is not in order, or could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum VerifyCommandError {
    /// The catalog could not be opened.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// It could not be looked at to the end.
    #[error(transparent)]
    Verify(#[from] VerifyError),
    /// There are differences.
    #[error("{0} differences, see above")]
    Differences(u64),
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim();
    match number.parse::<f64>() {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent),
        _ => Err("write a number from 0 to 100, such as 5%".to_owned()),
    }
}

/// Prints each difference as it is found, then a summary.
pub async fn run(args: &VerifyArgs, config: Config) -> Result<(), VerifyCommandError> {
    logging::start(&config.log);
    let repair = match (args.repair, args.apply) {
        (false, _) => Repair::No,
        (true, false) => Repair::Show,
        (true, true) => Repair::Act,
    };
    let options = VerifyOptions {
        database: args.database.clone(),
        table: args.table.clone(),
        deep: args.deep,
        min_age: args.min_age,
        repair,
        share_max_percent: args.max_share,
        forget_missing: args.forget_missing,
    };
    let audit = verify::open(&config, repair == Repair::Act)?;
    let mut is_first = true;
    let mut report = |difference: &Difference| {
        let mut out = std::io::stdout().lock();
        if args.json {
            return writeln!(out, "{}", as_json(difference));
        }
        if std::mem::take(&mut is_first) {
            writeln!(out, "{:<21} {:<24} PLACE AND FINDING", "KIND", "TABLE")?;
        }
        writeln!(out, "{}", as_line(difference))
    };
    let summary = verify::run(&config, &*audit, &options, &mut report).await?;
    let mut out: Box<dyn Write> = if args.json {
        Box::new(std::io::stderr().lock())
    } else {
        Box::new(std::io::stdout().lock())
    };
    // Whoever closed the pipe has seen enough.
    let _ = out.write_all(conclusion(&summary, repair).as_bytes());
    match summary.differences() - summary.repaired {
        0 => Ok(()),
        left => Err(VerifyCommandError::Differences(left)),
    }
}

fn as_line(difference: &Difference) -> String {
    let table = difference
        .table
        .as_ref()
        .map_or_else(|| "-".to_owned(), ToString::to_string);
    let outcome = match &difference.outcome {
        Outcome::Found => String::new(),
        Outcome::WouldRepair(steps) => format!(" [would: {steps}]"),
        Outcome::Repaired(steps) => format!(" [done: {steps}]"),
        Outcome::NotRepaired(reason) => format!(" [not repaired: {reason}]"),
    };
    let (kind, place, detail) = (
        difference.kind.name(),
        plain(&difference.place),
        plain(&difference.detail),
    );
    format!("{kind:<21} {table:<24} {place}: {detail}{outcome}")
}

/// What came from outside must not draw on a terminal.
fn plain(text: &str) -> String {
    let shown = text.chars().take(1000);
    shown
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

fn as_json(difference: &Difference) -> serde_json::Value {
    let (outcome, steps) = match &difference.outcome {
        Outcome::Found => ("found", None),
        Outcome::WouldRepair(steps) => ("would_repair", Some(steps)),
        Outcome::Repaired(steps) => ("repaired", Some(steps)),
        Outcome::NotRepaired(reason) => ("not_repaired", Some(reason)),
    };
    json!({
        "kind": difference.kind.name(),
        "invariant": difference.kind.invariant(),
        "database": difference.table.as_ref().map(TableRef::database),
        "table": difference.table.as_ref().map(TableRef::table),
        "layer": difference.layer.as_ref().map(LayerName::as_str),
        "place": difference.place,
        "detail": difference.detail,
        "outcome": outcome,
        "repair": steps,
    })
}

fn conclusion(summary: &Summary, repair: Repair) -> String {
    let mut text = format!(
        "tables: {}   entries: {}   files: {}   queue items: {}   differences: {}",
        summary.tables,
        summary.entries,
        summary.files,
        summary.items,
        summary.differences()
    );
    if repair == Repair::Act {
        let _ = write!(text, "   repaired: {}", summary.repaired);
    }
    text.push('\n');
    for (kind, count) in &summary.found {
        let _ = writeln!(text, "  {}: {count}", kind.name());
    }
    for place in &summary.unjudged {
        let _ = writeln!(text, "not judged: {}", plain(place));
    }
    text
}
