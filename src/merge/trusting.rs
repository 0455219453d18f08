//! One merge by what footers say of its inputs. When one turns out to lie, it starts again and
//! believes less.

use std::{collections::BTreeSet, sync::atomic::Ordering};

use arrow::datatypes::DataType;

use super::{
    ahead::StopOnDrop,
    context::{self, Context, Stop},
    dedup::Collapse,
    keys::KeySpace,
    nearly_sorted, order,
    parts::Part,
    piles, raw_copy, runs, split,
    strategy::{self, InputSummary, Limits, Mode, Plan},
    writer::{OutputWriter, Written},
};

/// After so many footers that lied, none is believed.
const MISLED_COUNT_MAX: usize = 3;

/// A merge that came to its end.
pub(super) struct Merged {
    pub(super) written: Written,
    pub(super) collapsed_row_count: u64,
    pub(super) streamed_run_count: u64,
    pub(super) sorted_run_count: u64,
    pub(super) spilled_run_count: u64,
}

/// Merges by what footers say; starts again, believing less, when one turns out to lie.
/// Where the key is one integer, of type `key_type`, nearly sorted inputs are cut, and row groups
/// are copied.
pub(super) fn merge_trusting<K: KeySpace>(
    context: &mut Context<'_>,
    space: &K,
    mut summaries: Vec<InputSummary>,
    key_type: Option<&DataType>,
) -> Result<Merged, Stop> {
    let options = &context.request.options;
    // What is not decoded may hold rows with the same key.
    let copy_key = key_type.filter(|_| options.dedup.is_none());
    let limits = Limits {
        runs_bytes: context.shares.runs_bytes,
        sort_bytes: context.shares.sort_bytes(),
        scratch_bytes: context.shares.spilled_run_bytes(),
        scratch_bytes_min: context::SPILLED_RUN_BYTES_MIN,
        open_files: context::OPEN_FILES_MAX,
    };
    let mut lying = BTreeSet::new();
    loop {
        context.control.rows_read.store(0, Ordering::Relaxed);
        context.control.rows_written.store(0, Ordering::Relaxed);
        let (parts, described) = match copy_key.filter(|_| lying.is_empty()) {
            Some(key_type) => {
                let rules = raw_copy::Rules {
                    options: &context.request.options,
                    united: context.united,
                    key_type,
                    chunk_bytes: context.shares.page_bytes,
                };
                let is_cancelled = || context.control.is_cancelled();
                raw_copy::split(&rules, context.inputs, &summaries, &is_cancelled)?
            }
            None => {
                let inputs = context.inputs.iter().enumerate();
                let parts = inputs.map(|(index, input)| Part::whole(index, input));
                (parts.collect(), summaries.clone())
            }
        };
        let (parts, described) = match (key_type, &options.order_by[..]) {
            (Some(key_type), [column]) => {
                let inputs = context.inputs;
                let found = nearly_sorted::cut(inputs, (column, key_type), parts, described)?;
                context.control.check()?;
                found
            }
            _ => (parts, described),
        };
        context.parts = parts;
        let mut plan = strategy::choose_strategy(&described, limits);
        if plan.writes() {
            let rules = split::Rules {
                key: options.order_by.first().zip(key_type),
                part_bytes: limits.part_bytes(),
                part_rows: piles::PILE_ROWS,
            };
            let (inputs, parts) = (context.inputs, &context.parts);
            let parts = split::split_large(rules, inputs, parts, &described, context.control)?;
            if let Some((parts, described)) = parts {
                context.parts = parts;
                plan = strategy::choose_strategy(&described, limits);
            }
        }
        match merge_planned(context, space, &plan) {
            Ok(done) => return Ok(done),
            Err(Stop::Misled {
                inputs: parts,
                too_large,
            }) => {
                // Every round distrusts more, and a merge that trusts nobody cannot be misled.
                let misled: Vec<usize> = parts
                    .iter()
                    .map(|index| context.parts[*index].input)
                    .collect();
                lying.extend(misled.iter().copied());
                let distrust_all = lying.len() > MISLED_COUNT_MAX;
                for (index, summary) in summaries.iter_mut().enumerate() {
                    if distrust_all || misled.contains(&index) {
                        summary.seems_sorted = false;
                        summary.key_range = None;
                        if too_large || distrust_all {
                            summary.decoded_bytes = u64::MAX;
                        }
                    }
                }
            }
            Err(other) => return Err(other),
        }
    }
}

fn merge_planned<K: KeySpace>(
    context: &Context<'_>,
    space: &K,
    plan: &Plan,
) -> Result<Merged, Stop> {
    let request = context.request;
    let mut writer = OutputWriter::create(
        &request.output,
        context.united,
        &context.work,
        &request.options,
        &context.shares,
        context.control,
    )?;
    let runs = runs::make_runs(context, space, plan)?;
    let collapsed_row_count = std::thread::scope(|scope| {
        let ahead = &runs.ahead;
        if request.options.thread_count > 1 && ahead.is_useful() {
            // Without the thread, runs are loaded when their turn comes.
            let _ = std::thread::Builder::new()
                .name("merge-load".into())
                .spawn_scoped(scope, || ahead.load_until_stopped(context, space));
        }
        let _stop = StopOnDrop(ahead);
        let limits = context.shares.output_batch();
        let Some(dedup) = &request.options.dedup else {
            order::merge_runs(context, space, runs.cursors, limits, &mut writer)?;
            return Ok::<_, Stop>(0);
        };
        let mut collapse = Collapse::new(context, space, dedup, &mut writer)?;
        order::merge_runs(context, space, runs.cursors, limits, &mut collapse)?;
        Ok(collapse.finish()?)
    })?;
    let count = |mode| plan.count(mode) as u64;
    let written = writer.finish(context)?;
    let copyable = count(Mode::Copy);
    Ok(Merged {
        streamed_run_count: count(Mode::Stream)
            + copyable.saturating_sub(written.copied_row_group_count),
        sorted_run_count: count(Mode::Memory),
        spilled_run_count: runs.spilled_run_count,
        collapsed_row_count,
        written,
    })
}
