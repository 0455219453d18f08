//! Published bytes and the index entry that will name them.

use serde_json::{Map, Value};

use super::{WorkContext, dead_outputs::remove_output, merge_run::Attempt};
use crate::{
    merge::{ColumnBounds, FileSummary, MergeReport},
    model::{DataPath, IndexEntry, SetAside},
};

/// A published file that is not in the index yet.
pub(super) struct Published {
    pub(super) entry: IndexEntry,
    pub(super) sources: Vec<DataPath>,
    pub(super) set_aside: Vec<SetAside>,
    /// `None` for a promotion.
    pub(super) report: Option<MergeReport>,
}

impl Published {
    /// See [`remove_output`].
    pub(super) async fn remove(&self, context: &WorkContext) {
        let entry = &self.entry;
        remove_output(context, &entry.table, &entry.layer, &entry.path).await;
    }
}

/// The result of a merge, ready to commit.
pub(super) fn merged(
    attempt: &Attempt<'_>,
    report: MergeReport,
    set_aside: Vec<SetAside>,
) -> Published {
    let entry = entry(
        attempt,
        report.row_count,
        report.output_bytes,
        &report.bounds,
    );
    Published {
        entry,
        sources: paths(&attempt.sources),
        set_aside,
        report: Some(report),
    }
}

/// The result of a promotion, ready to commit.
pub(super) fn promoted(
    attempt: &Attempt<'_>,
    source: &IndexEntry,
    summary: &FileSummary,
) -> Published {
    let mut entry = entry(
        attempt,
        summary.row_count,
        summary.size_bytes,
        &summary.bounds,
    );
    entry.extra.clone_from(&source.extra);
    Published {
        entry,
        sources: paths(&attempt.sources),
        set_aside: Vec::new(),
        report: None,
    }
}

/// No input could be read: there is no output, but the catalog learns why.
pub(super) fn nothing_but_set_aside(attempt: &Attempt<'_>, set_aside: Vec<SetAside>) -> Published {
    Published {
        entry: entry(attempt, 0, 0, &[]),
        sources: Vec::new(),
        set_aside,
        report: None,
    }
}

fn paths(entries: &[IndexEntry]) -> Vec<DataPath> {
    entries.iter().map(|entry| entry.path.clone()).collect()
}

fn entry(
    attempt: &Attempt<'_>,
    row_count: u64,
    size_bytes: u64,
    bounds: &[ColumnBounds],
) -> IndexEntry {
    let plan = attempt.plan;
    let sources = &attempt.sources;
    let config = attempt.context.config.table(&plan.queue.table);
    let time = bounds
        .iter()
        .find(|bounds| bounds.column == config.time_column);
    // Files may hold times as something else than integers: then the inputs' entries know.
    let time_of = |value: Option<&Value>, known: Option<i64>| {
        value.and_then(Value::as_i64).or(known).unwrap_or(0)
    };
    let column = |pick: fn(&ColumnBounds) -> &Value| -> Map<String, Value> {
        bounds
            .iter()
            .filter(|bounds| config.is_indexed(&bounds.column))
            .map(|bounds| (bounds.column.clone(), pick(bounds).clone()))
            .collect()
    };
    IndexEntry {
        layer: plan.queue.layer.clone(),
        table: plan.queue.table.clone(),
        path: attempt.output.clone(),
        size_bytes,
        row_count,
        // A layer's TTL counts from here: no row may expire before its time.
        chunk_time_ns: sources
            .iter()
            .map(|source| source.chunk_time_ns)
            .max()
            .unwrap_or(0),
        min_time_ns: time_of(
            time.map(|t| &t.min),
            sources.iter().map(|source| source.min_time_ns).min(),
        ),
        max_time_ns: time_of(
            time.map(|t| &t.max),
            sources.iter().map(|source| source.max_time_ns).max(),
        ),
        min: column(|bounds| &bounds.min),
        max: column(|bounds| &bounds.max),
        writer: plan.queue.writer.clone(),
        extra: Map::new(),
    }
}
