//! `gigamerge plan`: what is due, and what each merge would do. Claims and changes nothing.

use std::{fmt::Write as _, io::Write as _, time::SystemTime};

use bytesize::ByteSize;
use serde_json::json;

use super::PlanArgs;
use crate::{
    catalog::{CatalogError, QueueDepths},
    config::Config,
    daemon::{self, Access, DaemonError},
    merge,
    model::MergePlan,
    telemetry::logging,
    worker::WorkContext,
};

/// Plans shown for each iteration; more are counted.
const PLANS_MAX: usize = 10_000;

/// Why the plans could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The catalog could not be opened.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// The catalog could not be asked.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The result could not be printed.
    #[error("stdout cannot be written: {0}")]
    Print(std::io::Error),
}

/// A due plan and what would become of it.
struct Shown {
    plan: MergePlan,
    action: &'static str,
    rows: u64,
    overdue_s: i64,
}

/// Prints what is due as a table or as JSON.
pub async fn run(args: &PlanArgs, config: Config) -> Result<(), PlanError> {
    logging::start(&config.log);
    let context = daemon::open(config, Access::Look).await?;
    let mut due = Vec::new();
    for level in &context.config.levels {
        for plan in context
            .catalog
            .due_merges(level.iteration, PLANS_MAX)
            .await?
        {
            due.push(look(&context, plan).await?);
        }
    }
    let depths = context.catalog.queue_depths().await?;
    let text = if args.json {
        as_json(&due, &depths)
    } else {
        as_table(&due, &depths)
    };
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(PlanError::Print(error))
        }
        _ => Ok(()),
    }
}

async fn look(context: &WorkContext, plan: MergePlan) -> Result<Shown, PlanError> {
    let now_s = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let overdue_s = i64::try_from(now_s)
        .unwrap_or(i64::MAX)
        .saturating_sub(plan.due_s);
    let found: Vec<_> = context
        .catalog
        .resolve(&plan.queue.table, &plan.paths)
        .await?
        .into_iter()
        .flatten()
        .collect();
    let rows = found.iter().map(|entry| entry.row_count).sum();
    let action = match found.as_slice() {
        [] => "end: its files are gone",
        [entry] if is_sorted(context, &plan, entry) => "promote",
        [_] => "sort",
        _ => "merge",
    };
    Ok(Shown {
        plan,
        action,
        rows,
        overdue_s,
    })
}

fn is_sorted(context: &WorkContext, plan: &MergePlan, entry: &crate::model::IndexEntry) -> bool {
    let options = context
        .config
        .table(&plan.queue.table)
        .merge_options(context.merge_budget_bytes());
    context
        .layers
        .get(&plan.queue.layer)
        .and_then(|layer| layer.checked_file(&plan.queue.table, &entry.path))
        .is_ok_and(|file| merge::summarize(&file, &options).is_ok_and(|summary| summary.is_sorted))
}

fn as_json(due: &[Shown], depths: &QueueDepths) -> String {
    let plans: Vec<_> = due
        .iter()
        .map(|shown| {
            let queue = &shown.plan.queue;
            json!({
                "database": queue.table.database(), "table": queue.table.table(), "partition": queue.dir.as_str(),
                "layer": queue.layer.as_str(), "writer": queue.writer.as_str(), "iteration": queue.iteration.0,
                "action": shown.action, "files": shown.plan.paths.len(), "size_bytes": shown.plan.size_bytes,
                "row_count": shown.rows, "overdue_s": shown.overdue_s,
                "paths": shown.plan.paths.iter().map(crate::model::DataPath::as_str).collect::<Vec<_>>(),
            })
        })
        .collect();
    let waiting = json!({
        "merges_idle": depths.merges_idle_count, "merges_processing": depths.merges_processing_count,
        "moves_idle": depths.moves_idle_count, "moves_processing": depths.moves_processing_count,
        "drops_idle": depths.drops_idle_count, "drops_processing": depths.drops_processing_count,
        "failed": depths.failed_count,
    });
    format!("{:#}\n", json!({ "due": plans, "queues": waiting }))
}

fn as_table(due: &[Shown], depths: &QueueDepths) -> String {
    let mut text = String::new();
    if due.is_empty() {
        text.push_str("Nothing is due.\n");
    } else {
        let row = |cells: [&str; 8]| {
            let [table, partition, step, action, files, rows, size, due] = cells;
            format!(
                "{table:<24} {partition:<28} {step:<6} {action:<8} {files:>6} {rows:>12} {size:>12} {due:>10}\n"
            )
        };
        text.push_str(&row([
            "TABLE",
            "PARTITION",
            "STEP",
            "ACTION",
            "FILES",
            "ROWS",
            "SIZE",
            "DUE SINCE",
        ]));
        for shown in due {
            let queue = &shown.plan.queue;
            text.push_str(&row([
                &queue.table.to_string(),
                queue.dir.as_str(),
                &format!("{} → {}", queue.iteration, queue.iteration.next()),
                shown.action,
                &shown.plan.paths.len().to_string(),
                &shown.rows.to_string(),
                &ByteSize::b(shown.plan.size_bytes)
                    .display()
                    .iec()
                    .to_string(),
                &format!("{} s", shown.overdue_s.max(0)),
            ]));
        }
    }
    let _ = writeln!(
        text,
        "\nmerges: {} due, {} waiting in all, {} running   moves: {} waiting, {} running   deletes: {} waiting, {} running   given up or set aside: {}",
        due.len(),
        depths.merges_idle_count,
        depths.merges_processing_count,
        depths.moves_idle_count,
        depths.moves_processing_count,
        depths.drops_idle_count,
        depths.drops_processing_count,
        depths.failed_count,
    );
    text
}
