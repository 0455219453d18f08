//! Sorted runs from inputs: streamed, sorted in memory, or sorted in pieces through scratch.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arrow::array::{ArrayRef, RecordBatch};

use super::{
    MergeError,
    ahead::Ahead,
    context::{Context, Stop},
    cursor::{Cursor, Source},
    keys::KeySpace,
    load::{SortedColumns, SortedRows},
    order::merge_runs,
    race::Rank,
    spill::{SpillWriter, SpilledRun},
    strategy::{Mode, Plan, Run, Written},
};

/// Runs of a merge, and how many were written to scratch on the way.
pub(super) struct Runs<'a, K: KeySpace> {
    pub(super) cursors: Vec<Cursor<'a, K>>,
    pub(super) spilled_run_count: u64,
    /// Loads the runs that are sorted in memory.
    pub(super) ahead: Arc<Ahead<K>>,
}

/// Makes the planned runs, in the order of inputs. Only what goes through scratch is decoded here.
pub(super) fn make_runs<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    plan: &Plan,
) -> Result<Runs<'a, K>, Stop> {
    let spill_groups = plan.count(Mode::Spill);
    let runs_per_group_max = (context.shares.fan_in() / spill_groups.max(1)).max(2);
    let mut in_memory: Vec<&Run> = plan.runs.iter().collect();
    in_memory.retain(|run| run.mode == Mode::Memory);
    in_memory.sort_by_key(|run| run.first_key);
    let in_memory = in_memory.into_iter().map(|run| run.inputs.clone());
    let mut made = Runs {
        cursors: Vec::new(),
        spilled_run_count: 0,
        ahead: Arc::new(Ahead::new(in_memory.collect(), plan.early_max)),
    };
    let mut in_scratch = write_to_scratch(context, space, plan)?;
    for run in &plan.runs {
        let first_key = run.first_key;
        let bound = first_key.and_then(|key| space.bound(key));
        let Some(&first) = run.inputs.first() else {
            continue;
        };
        let rank = Rank::of_part(first);
        match run.mode {
            Mode::Stream => {
                let source = Source::UnopenedStream(first);
                made.cursors.push(Cursor::waiting(source, bound, rank));
            }
            Mode::Copy => {
                // A copyable row group has an integer key, so its bound is exact.
                let copy = context.parts[first].copy.as_ref();
                let last = copy.and_then(|copy| space.bound(copy.last));
                made.cursors.push(match (bound, last) {
                    (Some(bound), Some(last)) => Cursor::copyable(first, bound, last),
                    _ => Cursor::waiting(Source::UnopenedStream(first), None, rank),
                });
            }
            Mode::Memory => {
                let ahead = Arc::clone(&made.ahead);
                let source = Source::UnopenedInputs(run.inputs.clone(), ahead);
                made.cursors.push(Cursor::waiting(source, bound, rank));
            }
            Mode::Scratch(_) => {
                let Some(written) = in_scratch.pop_front() else {
                    let reason = "a run in scratch is missing".to_owned();
                    return Err(context.invariant("ROWS-KEPT", reason).into());
                };
                for (run, rank) in written {
                    made.spilled_run_count += 1;
                    let source = Source::UnopenedSpill(run, Some(first));
                    let bound = first_key.and_then(|key| space.bound(key));
                    made.cursors.push(Cursor::waiting(source, bound, rank));
                }
            }
            Mode::Spill => {
                let group = spill(context, space, &run.inputs, plan.runs.len() == 1)?;
                made.spilled_run_count += group.written_count;
                let mut runs = group.spilled;
                while runs.len() > runs_per_group_max {
                    (runs, made.spilled_run_count) = merge_spilled(
                        context,
                        space,
                        runs,
                        runs_per_group_max,
                        made.spilled_run_count,
                    )?;
                }
                made.cursors.extend(runs.into_iter().map(|(run, rank)| {
                    Cursor::waiting(Source::UnopenedSpill(run, None), None, rank)
                }));
                made.cursors.extend(group.in_memory);
            }
        }
    }
    Ok(made)
}

/// Writes the runs that are to be read from scratch, two at a time: each takes no more than half
/// of the memory. Gives them in the order of the plan, each as one run or as its pieces.
fn write_to_scratch<K: KeySpace>(
    context: &Context<'_>,
    space: &K,
    plan: &Plan,
) -> Result<VecDeque<Vec<(SpilledRun, Rank)>>, Stop> {
    let wanted = plan.runs.iter().filter_map(|run| match run.mode {
        Mode::Scratch(written) => Some((run, written)),
        _ => None,
    });
    let wanted: Vec<_> = wanted.collect();
    let write = |(run, written): &(&Run, Written)| {
        let first = run.inputs.first().copied().unwrap_or(0);
        let source = match written {
            Written::Stream => Source::UnopenedStream(first),
            Written::Whole => {
                let alone = Arc::new(Ahead::new(Vec::new(), 0));
                Source::UnopenedInputs(run.inputs.clone(), alone)
            }
            Written::Pieces => return Ok(spill(context, space, &run.inputs, false)?.spilled),
        };
        let bound = run.first_key.and_then(|key| space.bound(key));
        let rank = Rank::of_part(first);
        let cursor = Cursor::waiting(source, bound, rank);
        Ok::<_, Stop>(vec![(write_run(context, space, vec![cursor])?, rank)])
    };
    // Results in the order of `wanted`; whoever is free takes the next one.
    let (next, is_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let write_some = || {
        let mut written = Vec::new();
        while !is_failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(run) = wanted.get(index) else { break };
            let done = write(run).inspect_err(|_| is_failed.store(true, Ordering::Relaxed))?;
            written.push((index, done));
        }
        Ok::<_, Stop>(written)
    };
    let mut written = std::thread::scope(|scope| {
        let is_shared = context.request.options.thread_count > 1 && wanted.len() > 1;
        // Without the thread, this one writes all.
        let other = is_shared.then(|| {
            let thread = std::thread::Builder::new().name("merge-spill".into());
            thread.spawn_scoped(scope, write_some)
        });
        let mut written = write_some()?;
        if let Some(Ok(other)) = other {
            let reason =
                || context.invariant("ROWS-KEPT", "sorting a file ended the thread".into());
            written.extend(other.join().unwrap_or_else(|_| Err(reason().into()))?);
        }
        Ok::<_, Stop>(written)
    })?;
    written.sort_by_key(|(index, _)| *index);
    Ok(written.into_iter().map(|(_, run)| run).collect())
}

/// Rows that are in memory and not sorted yet.
struct Pile<K: KeySpace> {
    /// For each united column its arrays, one for each batch.
    columns: Vec<Vec<ArrayRef>>,
    blocks: Vec<K::Block>,
    row_count: u64,
    size_bytes: u64,
}

impl<K: KeySpace> Pile<K> {
    fn new() -> Self {
        Self {
            columns: Vec::new(),
            blocks: Vec::new(),
            row_count: 0,
            size_bytes: 0,
        }
    }

    fn push(
        &mut self,
        context: &Context<'_>,
        space: &K,
        batch: &RecordBatch,
        bytes: u64,
    ) -> Result<(), MergeError> {
        let keys = context.encode(space, batch)?;
        self.row_count += batch.num_rows() as u64;
        self.size_bytes += bytes + space.size_bytes(&keys);
        self.columns.resize_with(batch.num_columns(), Vec::new);
        for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
            column.push(ArrayRef::clone(array));
        }
        self.blocks.push(keys);
        Ok(())
    }

    fn sort<'a>(self, context: &Context<'a>, space: &K, rank: Rank) -> Result<Cursor<'a, K>, Stop> {
        let (keys, order) = space.sort(self.blocks);
        let row_bytes = self.size_bytes / self.row_count.max(1);
        let mut sorted = SortedColumns::new(context, &order, row_bytes);
        for (index, chunks) in self.columns.into_iter().enumerate() {
            sorted.add(index, &chunks)?;
        }
        let rows = SortedRows {
            keys,
            rank,
            ranks: None,
            row_bytes: sorted.row_bytes(),
            batches: sorted.finish()?,
        };
        Ok(Cursor::sorted(space, rows))
    }
}

/// What became of inputs that were to go through scratch.
struct SpilledGroup<'a, K: KeySpace> {
    spilled: Vec<(SpilledRun, Rank)>,
    written_count: u64,
    /// The last rows, when they may stay.
    in_memory: Option<Cursor<'a, K>>,
}

/// Sorts inputs in pieces of what memory holds. When all fits after all and nothing else is
/// merged, nothing is written.
fn spill<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    inputs: &[usize],
    is_alone: bool,
) -> Result<SpilledGroup<'a, K>, Stop> {
    let mut group = SpilledGroup {
        spilled: Vec::new(),
        written_count: 0,
        in_memory: None,
    };
    let first = Rank::of_part(inputs.first().copied().unwrap_or(0));
    let mut pile = Pile::new();
    for &index in inputs {
        if context.parts[index].row_count == 0 {
            continue;
        }
        let mut decoder = context.decoder(index, context.shares.load_batch_bytes)?;
        // What the reader holds counts, and what the allocator keeps of a pile when it is gone.
        let runs_bytes = context.shares.runs_bytes;
        let limit_bytes = (runs_bytes + context.shares.row_group_bytes)
            .saturating_sub(2 * decoder.pages_bytes())
            .clamp(runs_bytes / 4, runs_bytes / 2);
        while let Some((batch, bytes)) = decoder.next()? {
            pile.push(context, space, &batch, bytes)?;
            if pile.size_bytes > limit_bytes {
                let full = std::mem::replace(&mut pile, Pile::new());
                let rank = first.piece(group.spilled.len());
                let full = full.sort(context, space, rank)?;
                group
                    .spilled
                    .push((write_run(context, space, vec![full])?, rank));
                group.written_count += 1;
            }
        }
    }
    if pile.row_count > 0 {
        let rank = first.piece(group.spilled.len());
        let rest = pile.sort(context, space, rank)?;
        if group.spilled.is_empty() && is_alone {
            group.in_memory = Some(rest);
        } else {
            group
                .spilled
                .push((write_run(context, space, vec![rest])?, rank));
            group.written_count += 1;
        }
    }
    Ok(group)
}

/// One pass over runs in scratch: neighbours become one, as many as can be read together. No
/// more of them than are needed to get down to `wanted_count`, when one merge is enough.
fn merge_spilled<K: KeySpace>(
    context: &Context<'_>,
    space: &K,
    runs: Vec<(SpilledRun, Rank)>,
    wanted_count: usize,
    mut written_count: u64,
) -> Result<(Vec<(SpilledRun, Rank)>, u64), Stop> {
    let fan_in = context.shares.fan_in();
    let mut merged = Vec::with_capacity(runs.len().div_ceil(fan_in));
    let excess = runs.len() - wanted_count + 1;
    let is_last = excess <= fan_in;
    let mut runs = runs.into_iter();
    loop {
        let neighbours: Vec<_> = runs
            .by_ref()
            .take(if is_last { excess } else { fan_in })
            .map(|(run, rank)| {
                (
                    Cursor::waiting(Source::UnopenedSpill(run, None), None, rank),
                    rank,
                )
            })
            .collect();
        let Some(rank) = neighbours.first().map(|(_, rank)| *rank) else {
            return Ok((merged, written_count));
        };
        let neighbours = neighbours.into_iter().map(|(run, _)| run).collect();
        merged.push((write_run(context, space, neighbours)?, rank));
        written_count += 1;
        if is_last {
            merged.extend(runs);
            return Ok((merged, written_count));
        }
    }
}

fn write_run<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    cursors: Vec<Cursor<'a, K>>,
) -> Result<SpilledRun, Stop> {
    let mut writer = SpillWriter::create(
        &context.request.scratch,
        &context.work.schema,
        context.shares.spill_batch_bytes,
    )?;
    merge_runs(
        context,
        space,
        cursors,
        context.shares.spill_batch(),
        &mut writer,
    )?;
    Ok(writer.finish()?)
}
