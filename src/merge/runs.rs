//! Sorted runs from inputs: streamed, sorted in memory, or brought into order in scratch.

use std::{
    cmp::Ordering as Order,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};

use super::{
    MergeError,
    ahead::Ahead,
    context::{Context, Stop, spill_batch},
    cursor::{Cursor, Source},
    gather::Gathered,
    keys::{KeySpace, RowRef},
    load::{SortedRows, load_sorted},
    order::{Sink, merge_runs},
    race::Rank,
    sorted_columns::SortedColumns,
    spill::{SpillWriter, SpilledRun, with_part_column},
    strategy::{Mode, Plan, Run, Written},
};

/// Runs of a merge, and how many were written to scratch on the way.
pub(super) struct Runs<'a, K: KeySpace> {
    pub(super) cursors: Vec<Cursor<'a, K>>,
    pub(super) spilled_run_count: u64,
    /// Loads the runs that are sorted in memory.
    pub(super) ahead: Arc<Ahead<K>>,
}

/// Makes the planned runs. Only what goes through scratch is decoded here.
pub(super) fn make_runs<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    plan: &Plan,
) -> Result<Runs<'a, K>, Stop> {
    let mut in_memory: Vec<&Run> = plan.runs.iter().collect();
    in_memory.retain(|run| run.mode == Mode::Memory);
    in_memory.sort_by_key(|run| run.first_key);
    let in_memory = in_memory.into_iter().map(|run| run.inputs.clone());
    let mut made = Runs {
        cursors: Vec::new(),
        spilled_run_count: 0,
        ahead: Arc::new(Ahead::new(in_memory.collect(), plan.early_max)),
    };
    // What an attempt left that was misled is not to be kept by new runs.
    context.scratch.close();
    let mut in_scratch = write_to_scratch(context, space, plan)?;
    made.spilled_run_count = in_scratch.len() as u64;
    let fan_in = context.shares.fan_in(plan.scratch_bytes);
    while plan.is_crowded && in_scratch.len() > fan_in {
        let (merged, count) = merge_neighbours(context, space, in_scratch, fan_in, plan)?;
        in_scratch = merged;
        made.spilled_run_count += count;
    }
    context.scratch.close();
    made.cursors.extend(cursors_of(in_scratch));
    for run in &plan.runs {
        let bound = run.first_key.and_then(|key| space.bound(key));
        let Some(&first) = run.inputs.first() else {
            continue;
        };
        let rank = Rank::of_part(first);
        made.cursors.push(match run.mode {
            Mode::Stream => Cursor::waiting(Source::UnopenedStream(first), bound, rank),
            Mode::Copy => {
                // A copyable row group has an integer key, so its bound is exact.
                let copy = context.parts[first].copy.as_ref();
                let last = copy.and_then(|copy| space.bound(copy.last));
                match (bound, last) {
                    (Some(bound), Some(last)) => Cursor::copyable(first, bound, last),
                    _ => Cursor::waiting(Source::UnopenedStream(first), None, rank),
                }
            }
            Mode::Memory => {
                let ahead = Arc::clone(&made.ahead);
                let source = Source::UnopenedInputs(run.inputs.clone(), ahead);
                Cursor::waiting(source, bound, rank)
            }
            Mode::Scratch(_) => continue,
        });
    }
    Ok(made)
}

/// A run that was written.
struct InScratch<K: KeySpace> {
    run: SpilledRun,
    /// A block with its first key.
    first: Option<K::Block>,
}

/// They wait behind their first keys. Of a part that was written in pieces, earlier rows are in
/// earlier runs.
fn cursors_of<'a, K: KeySpace>(runs: Vec<InScratch<K>>) -> impl Iterator<Item = Cursor<'a, K>> {
    runs.into_iter().enumerate().map(|(place, written)| {
        let rank = Rank::of_part(written.run.part().unwrap_or(0)).in_run(place);
        Cursor::waiting(
            Source::UnopenedSpill(written.run, place),
            written.first,
            rank,
        )
    })
}

/// Writes the runs that are to be read from scratch, two at a time: each takes no more than half
/// of the memory. Gives them in the order of the plan, each as one run or as its pieces.
fn write_to_scratch<K: KeySpace>(
    context: &Context<'_>,
    space: &K,
    plan: &Plan,
) -> Result<Vec<InScratch<K>>, Stop> {
    let wanted = plan.runs.iter().filter_map(|run| match run.mode {
        Mode::Scratch(written) => Some((run, written)),
        _ => None,
    });
    let written = in_parallel(context, wanted.collect(), |(run, written)| {
        let bound = run.first_key.and_then(|key| space.bound(key));
        let (cursor, part) = match (written, &run.inputs[..]) {
            (Written::Pieces, inputs) => return pieces(context, space, inputs, plan),
            (Written::Stream, &[first]) => {
                let (source, rank) = (Source::UnopenedStream(first), Rank::of_part(first));
                (Cursor::waiting(source, bound, rank), Some(first))
            }
            (_, inputs) => {
                let rows = load_sorted(context, space, inputs, context.shares.sort_bytes())?;
                let is_before = |bound| space.compare(&rows.keys, 0, bound, 0) == Order::Less;
                if bound.as_ref().is_some_and(is_before) {
                    return Err(Stop::Misled {
                        inputs: inputs.to_vec(),
                        too_large: false,
                    });
                }
                sorted(context, space, rows)?
            }
        };
        Ok(vec![write_run(context, space, vec![cursor], part, plan)?])
    })?;
    Ok(written.into_iter().flatten().collect())
}

/// Does some work on two threads. Results are in the order of `wanted`; whoever is free takes the
/// next one.
fn in_parallel<T: Send, R: Send>(
    context: &Context<'_>,
    wanted: Vec<T>,
    work: impl Fn(T) -> Result<R, Stop> + Sync,
) -> Result<Vec<R>, Stop> {
    let (next, is_failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let is_shared = context.request.options.thread_count > 1 && wanted.len() > 1;
    let wanted: Vec<Mutex<Option<T>>> = wanted
        .into_iter()
        .map(|one| Mutex::new(Some(one)))
        .collect();
    let work_on_some = || {
        let mut results = Vec::new();
        while !is_failed.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = wanted.get(index) else { break };
            // Each is taken once, by whoever got its number.
            let Some(one) = one.lock().unwrap_or_else(PoisonError::into_inner).take() else {
                continue;
            };
            let done = work(one).inspect_err(|_| is_failed.store(true, Ordering::Relaxed))?;
            results.push((index, done));
        }
        Ok::<_, Stop>(results)
    };
    let mut results = std::thread::scope(|scope| {
        // Without the thread, this one does all.
        let other = is_shared.then(|| {
            let thread = std::thread::Builder::new().name("merge-spill".into());
            thread.spawn_scoped(scope, work_on_some)
        });
        let mut results = work_on_some()?;
        if let Some(Ok(other)) = other {
            let reason =
                || context.invariant("ROWS-KEPT", "sorting a file ended the thread".into());
            results.extend(other.join().unwrap_or_else(|_| Err(reason().into()))?);
        }
        Ok::<_, Stop>(results)
    })?;
    results.sort_by_key(|(index, _)| *index);
    Ok(results.into_iter().map(|(_, done)| done).collect())
}

/// A cursor of rows that are to be written, and the part that they are of, if they are of one.
fn sorted<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    mut rows: SortedRows<K>,
) -> Result<(Cursor<'a, K>, Option<usize>), Stop> {
    let Some(ranks) = rows.ranks.take() else {
        let part = usize::try_from(rows.rank.part()).ok();
        return Ok((Cursor::sorted(space, rows), part));
    };
    let broken = |reason: String| context.invariant("ROWS-KEPT", reason);
    let schema = with_part_column(&context.work.schema);
    let mut ranks = ranks.into_iter();
    for batch in &mut rows.batches {
        let parts = ranks.by_ref().take(batch.num_rows());
        let parts = parts.map(|rank| u32::try_from(rank.part()).map_err(|e| e.to_string()));
        let parts = parts.collect::<Result<Vec<u32>, _>>().map_err(broken)?;
        let parts: ArrayRef = Arc::new(UInt32Array::from(parts));
        let columns = batch.columns().iter().cloned().chain([parts]).collect();
        *batch = RecordBatch::try_new(Arc::clone(&schema), columns)
            .map_err(|e| broken(e.to_string()))?;
    }
    Ok((Cursor::sorted(space, rows), None))
}

/// Rows that are in memory and not sorted yet.
struct Pile<K: KeySpace> {
    /// For each united column its arrays, one for each batch.
    columns: Vec<Vec<ArrayRef>>,
    blocks: Vec<K::Block>,
    /// The part that each batch is of.
    parts: Vec<usize>,
    row_count: u64,
    size_bytes: u64,
}

impl<K: KeySpace> Pile<K> {
    fn new() -> Self {
        Self {
            columns: Vec::new(),
            blocks: Vec::new(),
            parts: Vec::new(),
            row_count: 0,
            size_bytes: 0,
        }
    }

    fn push(
        &mut self,
        context: &Context<'_>,
        space: &K,
        part: usize,
        (batch, bytes): (&RecordBatch, u64),
    ) -> Result<(), MergeError> {
        let keys = context.encode(space, batch)?;
        self.row_count += batch.num_rows() as u64;
        self.size_bytes += bytes + space.size_bytes(&keys);
        self.columns.resize_with(batch.num_columns(), Vec::new);
        for (column, array) in self.columns.iter_mut().zip(batch.columns()) {
            column.push(ArrayRef::clone(array));
        }
        self.blocks.push(keys);
        self.parts.push(part);
        Ok(())
    }

    fn sort(self, context: &Context<'_>, space: &K) -> Result<SortedRows<K>, Stop> {
        let (keys, order) = space.sort(self.blocks);
        let row_bytes = self.size_bytes / self.row_count.max(1);
        let mut sorted = SortedColumns::new(context, &order, row_bytes);
        for (index, chunks) in self.columns.into_iter().enumerate() {
            sorted.add(index, &chunks)?;
        }
        let first = self.parts.first().copied().unwrap_or(0);
        let rank_of = |at: &RowRef| Rank::of_part(self.parts[at.batch as usize]);
        let is_of_one = self.parts.last() == Some(&first);
        Ok(SortedRows {
            keys,
            rank: Rank::of_part(first),
            ranks: (!is_of_one).then(|| order.iter().map(rank_of).collect()),
            row_bytes: sorted.row_bytes(),
            batches: sorted.finish()?,
        })
    }
}

/// Sorts inputs in pieces of what memory holds.
fn pieces<K: KeySpace>(
    context: &Context<'_>,
    space: &K,
    inputs: &[usize],
    plan: &Plan,
) -> Result<Vec<InScratch<K>>, Stop> {
    let mut written = Vec::new();
    let mut write = |pile: Pile<K>| {
        let (cursor, part) = sorted(context, space, pile.sort(context, space)?)?;
        written.push(write_run(context, space, vec![cursor], part, plan)?);
        Ok::<_, Stop>(())
    };
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
            pile.push(context, space, index, (&batch, bytes))?;
            if pile.size_bytes > limit_bytes {
                write(std::mem::replace(&mut pile, Pile::new()))?;
            }
        }
    }
    if pile.row_count > 0 {
        write(pile)?;
    }
    Ok(written)
}

/// One pass over runs in scratch: neighbours become one. No more of them than are needed to get
/// down to `wanted_count`, when one pass is enough. Also gives how many were written.
fn merge_neighbours<K: KeySpace>(
    context: &Context<'_>,
    space: &K,
    runs: Vec<InScratch<K>>,
    wanted_count: usize,
    plan: &Plan,
) -> Result<(Vec<InScratch<K>>, u64), Stop> {
    // Two threads read at a time.
    let fan_in = (context.shares.fan_in(plan.scratch_bytes) / 2).max(2);
    let merge_count = (runs.len() - wanted_count).div_ceil(fan_in - 1);
    let mut groups: Vec<Vec<InScratch<K>>> = Vec::new();
    let mut runs = runs.into_iter();
    while groups.len() < merge_count && runs.len() > 1 {
        groups.push(runs.by_ref().take(fan_in).collect());
    }
    let rest: Vec<_> = runs.collect();
    let mut merged = in_parallel(context, groups, |group| {
        let mut parts = group.iter().map(|written| written.run.part());
        let first = parts.next().flatten();
        let part = first.filter(|_| parts.all(|part| part == first));
        write_run(context, space, cursors_of(group).collect(), part, plan)
    })?;
    let count = merged.len() as u64;
    merged.extend(rest);
    Ok((merged, count))
}

/// Writes a run and takes a note of its first key.
struct ToScratch<'a, 'b, K: KeySpace> {
    context: &'a Context<'b>,
    space: &'a K,
    writer: SpillWriter,
    first: Option<K::Block>,
}

impl<K: KeySpace> Sink for ToScratch<'_, '_, K> {
    fn write(&mut self, rows: Gathered) -> Result<(), MergeError> {
        if self.first.is_none() {
            let places = self.context.sort_places.iter();
            let column = |place: &usize| Ok(rows.column(*place)?.slice(0, 1));
            let columns = places.map(column).collect::<Result<Vec<_>, String>>();
            let first = columns.and_then(|columns| self.space.encode(&columns));
            let broken = |reason| self.context.invariant("ORDER-KEPT", reason);
            self.first = Some(first.map_err(broken)?);
        }
        self.writer.write(rows)
    }
}

/// Merges runs into one in scratch. `part`: all their rows are of it; else they say so themselves.
fn write_run<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    cursors: Vec<Cursor<'a, K>>,
    part: Option<usize>,
    plan: &Plan,
) -> Result<InScratch<K>, Stop> {
    let limits = spill_batch(plan.scratch_bytes);
    let schema = &context.work.schema;
    let mut sink = ToScratch {
        context,
        space,
        writer: SpillWriter::create(
            &context.scratch,
            &context.request.scratch,
            schema,
            limits.bytes,
            part,
        )?,
        first: None,
    };
    merge_runs(context, space, cursors, limits, &mut sink)?;
    Ok(InScratch {
        run: sink.writer.finish(&context.scratch)?,
        first: sink.first,
    })
}
