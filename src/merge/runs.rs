//! Sorted runs from inputs: streamed, sorted in memory, or sorted in pieces through scratch.

use std::ops::Range;

use arrow::array::RecordBatch;

use super::{
    MergeError,
    context::{Context, Stop},
    keys::KeySpace,
    order::{Cursor, Source, merge_runs},
    spill::{SpillWriter, SpilledRun},
    strategy::{Mode, Run},
};

/// Runs of a merge, and how many were written to scratch on the way.
pub(super) struct Runs<'a, K: KeySpace> {
    pub(super) cursors: Vec<Cursor<'a, K>>,
    pub(super) spilled_run_count: u64,
}

/// Makes the planned runs, in the order of inputs. Only what goes through scratch is decoded here.
pub(super) fn make_runs<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    plan: &[Run],
) -> Result<Runs<'a, K>, Stop> {
    let spill_groups = plan.iter().filter(|run| run.mode == Mode::Spill).count();
    let runs_per_group_max = (context.shares.fan_in() / spill_groups.max(1)).max(2);
    let mut made = Runs {
        cursors: Vec::new(),
        spilled_run_count: 0,
    };
    for run in plan {
        let bound = run.first_key.and_then(|key| space.bound(key));
        let inputs = run.inputs.clone();
        match run.mode {
            Mode::Stream => made
                .cursors
                .push(Cursor::waiting(Source::UnopenedStream(inputs.start), bound)),
            Mode::Copy => {
                // A copyable row group has an integer key, so its bound is exact.
                let copy = context.parts[inputs.start].copy.as_ref();
                let last = copy.and_then(|copy| space.bound(copy.last));
                made.cursors.push(match (bound, last) {
                    (Some(first), Some(last)) => Cursor::copyable(inputs.start, first, last),
                    _ => Cursor::waiting(Source::UnopenedStream(inputs.start), None),
                });
            }
            Mode::Memory => made
                .cursors
                .push(Cursor::waiting(Source::UnopenedInputs(inputs), bound)),
            Mode::Spill => {
                let group = spill(context, space, inputs, plan.len() == 1)?;
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
                made.cursors.extend(
                    runs.into_iter()
                        .map(|run| Cursor::waiting(Source::UnopenedSpill(run), None)),
                );
                made.cursors.extend(group.in_memory);
            }
        }
    }
    Ok(made)
}

/// Decodes and sorts inputs as a whole.
pub(super) fn load_sorted<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    inputs: Range<usize>,
) -> Result<Cursor<'a, K>, Stop> {
    let mut pile = Pile::new();
    for index in inputs.clone() {
        if context.parts[index].row_count == 0 {
            continue;
        }
        let mut decoder = context.decoder(index, context.shares.load_batch_bytes)?;
        while let Some((batch, bytes)) = decoder.next()? {
            pile.push(context, space, batch, bytes)?;
            if pile.size_bytes > context.shares.runs_bytes {
                return Err(Stop::Misled {
                    inputs,
                    too_large: true,
                });
            }
        }
    }
    Ok(pile.sort(space))
}

/// Rows that are in memory and not sorted yet.
struct Pile<K: KeySpace> {
    batches: Vec<RecordBatch>,
    blocks: Vec<K::Block>,
    row_count: u64,
    size_bytes: u64,
    decoded_bytes: u64,
}

impl<K: KeySpace> Pile<K> {
    fn new() -> Self {
        Self {
            batches: Vec::new(),
            blocks: Vec::new(),
            row_count: 0,
            size_bytes: 0,
            decoded_bytes: 0,
        }
    }

    fn push(
        &mut self,
        context: &Context<'_>,
        space: &K,
        batch: RecordBatch,
        bytes: u64,
    ) -> Result<(), MergeError> {
        let keys = context.encode(space, &batch)?;
        self.row_count += batch.num_rows() as u64;
        self.decoded_bytes += bytes;
        self.size_bytes += bytes + space.size_bytes(&keys);
        self.batches.push(batch);
        self.blocks.push(keys);
        Ok(())
    }

    fn sort<'a>(self, space: &K) -> Cursor<'a, K> {
        let row_bytes = self.decoded_bytes / self.row_count.max(1);
        let (keys, order) = space.sort(self.blocks);
        Cursor::sorted(space, self.batches, keys, order, row_bytes)
    }
}

/// What became of inputs that were to go through scratch.
struct SpilledGroup<'a, K: KeySpace> {
    spilled: Vec<SpilledRun>,
    written_count: u64,
    /// The last rows, when they may stay.
    in_memory: Option<Cursor<'a, K>>,
}

/// Sorts inputs in pieces of what memory holds. When all fits after all and nothing else is
/// merged, nothing is written.
fn spill<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    inputs: Range<usize>,
    is_alone: bool,
) -> Result<SpilledGroup<'a, K>, Stop> {
    let mut group = SpilledGroup {
        spilled: Vec::new(),
        written_count: 0,
        in_memory: None,
    };
    let mut pile = Pile::new();
    for index in inputs {
        if context.parts[index].row_count == 0 {
            continue;
        }
        let mut decoder = context.decoder(index, context.shares.load_batch_bytes)?;
        // What the reader holds counts, but no row group is in the making yet.
        let runs_bytes = context.shares.runs_bytes;
        let limit_bytes = (runs_bytes + context.shares.row_group_bytes)
            .saturating_sub(2 * decoder.pages_bytes())
            .clamp(runs_bytes / 4, runs_bytes);
        while let Some((batch, bytes)) = decoder.next()? {
            pile.push(context, space, batch, bytes)?;
            if pile.size_bytes > limit_bytes {
                let full = std::mem::replace(&mut pile, Pile::new());
                group
                    .spilled
                    .push(write_run(context, space, vec![full.sort(space)])?);
                group.written_count += 1;
            }
        }
    }
    if pile.row_count > 0 {
        let rest = pile.sort(space);
        if group.spilled.is_empty() && is_alone {
            group.in_memory = Some(rest);
        } else {
            group.spilled.push(write_run(context, space, vec![rest])?);
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
    runs: Vec<SpilledRun>,
    wanted_count: usize,
    mut written_count: u64,
) -> Result<(Vec<SpilledRun>, u64), Stop> {
    let fan_in = context.shares.fan_in();
    let mut merged = Vec::with_capacity(runs.len().div_ceil(fan_in));
    let excess = runs.len() - wanted_count + 1;
    let is_last = excess <= fan_in;
    let mut runs = runs.into_iter();
    loop {
        let neighbours: Vec<_> = runs
            .by_ref()
            .take(if is_last { excess } else { fan_in })
            .map(|run| Cursor::waiting(Source::UnopenedSpill(run), None))
            .collect();
        if neighbours.is_empty() {
            return Ok((merged, written_count));
        }
        merged.push(write_run(context, space, neighbours)?);
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
        &context.united.schema,
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
