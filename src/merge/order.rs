//! The k-way merge: many sorted runs become one, ties in the order of the runs.
//!
//! A run waits, unopened, behind a key that none of its rows comes before. When it is its
//! turn it is opened and takes part with its real first key; so only runs that overlap are
//! open together.

use std::{cmp::Ordering, ops::Range};

use arrow::array::{ArrayRef, RecordBatch};

use super::{
    MergeError,
    context::{Context, Stop},
    decode::Decoder,
    gather::Gathered,
    keys::{KeySpace, RowRef},
    loser_tree::LoserTree,
    raw_copy::Part,
    runs::load_sorted,
    spill::{SpillReader, SpilledRun},
};

/// Where sorted rows go.
pub(super) trait Sink {
    /// Takes the next rows.
    fn write(&mut self, rows: Gathered) -> Result<(), MergeError>;

    /// Whether a row group of so many rows may be copied now.
    fn takes_copy(&self, _row_count: u64) -> bool {
        false
    }

    /// Copies the row group that a part consists of.
    fn copy(&mut self, context: &Context<'_>, part: &Part) -> Result<(), MergeError> {
        let reason = format!("input {} is not to be copied here", part.input);
        Err(context.invariant("ROWS-KEPT", reason))
    }
}

/// How large the batches of a merge's output are.
#[derive(Debug, Clone, Copy)]
pub(super) struct BatchLimits {
    pub(super) rows: usize,
    pub(super) bytes: u64,
}

/// Where a run's rows come from.
pub(super) enum Source<'a> {
    /// A sorted input that was not opened yet.
    UnopenedStream(usize),
    /// Inputs that are decoded and sorted when their turn comes.
    UnopenedInputs(Range<usize>),
    /// A run in scratch that was not opened yet.
    UnopenedSpill(SpilledRun),
    /// A row group that is in order and may be copied.
    Copyable(usize),
    /// A sorted input.
    Stream(usize, Box<Decoder<'a>>),
    /// A run in scratch.
    Spill(Box<SpillReader>),
    /// Nothing but what is in memory.
    Memory,
}

/// One run and how far it is.
pub(super) struct Cursor<'a, K: KeySpace> {
    source: Source<'a>,
    /// Keys of the rows in memory; of a waiting run its bound; `None` when it has no more rows.
    keys: Option<K::Block>,
    /// The last key of a row group that may be copied.
    last: Option<K::Block>,
    position: usize,
    end: usize,
    is_waiting: bool,
    batches: Vec<RecordBatch>,
    /// The rows in order; `None` when there is one batch and it is in order.
    order: Option<Vec<RowRef>>,
    row_bytes: u64,
    /// For each batch: in which output batch it was last used, and its slot there.
    slots: Vec<(u64, u32)>,
}

impl<'a, K: KeySpace> Cursor<'a, K> {
    /// A run that waits behind `bound`; without one it is opened at once.
    pub(super) fn waiting(source: Source<'a>, bound: Option<K::Block>) -> Self {
        Self {
            source,
            keys: bound,
            last: None,
            position: 0,
            end: 1,
            is_waiting: true,
            batches: Vec::new(),
            order: None,
            row_bytes: 0,
            slots: Vec::new(),
        }
    }

    /// A row group in order that may be copied; its first key is exact, so it does not wait.
    pub(super) fn copyable(part: usize, first: K::Block, last: K::Block) -> Self {
        Self {
            last: Some(last),
            is_waiting: false,
            ..Self::waiting(Source::Copyable(part), Some(first))
        }
    }

    /// A run that is in memory and sorted.
    pub(super) fn sorted(
        space: &K,
        batches: Vec<RecordBatch>,
        keys: K::Block,
        order: Vec<RowRef>,
        row_bytes: u64,
    ) -> Self {
        let end = space.len(&keys);
        Self {
            source: Source::Memory,
            keys: (end > 0).then_some(keys),
            last: None,
            position: 0,
            end,
            is_waiting: false,
            slots: vec![(0, 0); batches.len()],
            batches,
            order: Some(order),
            row_bytes,
        }
    }

    /// Opens a waiting run; its first key must not come before its bound.
    fn open(&mut self, context: &Context<'a>, space: &K) -> Result<(), Stop> {
        let bound = self.keys.take();
        self.is_waiting = false;
        let mut inputs = 0..0;
        match std::mem::replace(&mut self.source, Source::Memory) {
            Source::UnopenedStream(index) => {
                inputs = index..index + 1;
                let decoder = context.decoder(index, context.shares.stream_batch_bytes)?;
                self.source = Source::Stream(index, Box::new(decoder));
                self.advance(context, space)?;
            }
            Source::UnopenedSpill(run) => {
                self.source = Source::Spill(Box::new(run.open()?));
                self.advance(context, space)?;
            }
            Source::UnopenedInputs(range) => {
                inputs = range.clone();
                *self = load_sorted(context, space, range)?;
            }
            opened => self.source = opened,
        }
        match (&bound, &self.keys) {
            (Some(bound), Some(keys)) if space.compare(keys, 0, bound, 0) == Ordering::Less => {
                Err(Stop::Misled {
                    inputs,
                    too_large: false,
                })
            }
            _ => Ok(()),
        }
    }

    /// Gets the next batch after the last row of this one.
    fn advance(&mut self, context: &Context<'a>, space: &K) -> Result<(), Stop> {
        let last = self.keys.take();
        let last_position = self.end;
        self.batches.clear();
        self.order = None;
        let next = match &mut self.source {
            Source::Stream(_, decoder) => decoder.next()?,
            Source::Spill(reader) => {
                let next = reader.next()?;
                next.map(|batch| {
                    let bytes = batch.get_array_memory_size() as u64;
                    (batch, bytes)
                })
            }
            _ => None,
        };
        let Some((batch, bytes)) = next else {
            // Closes the file, and removes a run in scratch.
            self.source = Source::Memory;
            return Ok(());
        };
        let keys = context.encode(space, &batch)?;
        let disorder = space.first_disorder(&keys).is_some()
            || last.as_ref().is_some_and(|last| {
                space.compare(last, last_position - 1, &keys, 0) == Ordering::Greater
            });
        if let (true, Source::Stream(index, _)) = (disorder, &self.source) {
            return Err(Stop::Misled {
                inputs: *index..*index + 1,
                too_large: false,
            });
        }
        self.position = 0;
        self.end = batch.num_rows();
        self.row_bytes = bytes / self.end.max(1) as u64;
        self.keys = Some(keys);
        self.batches.push(batch);
        self.slots = vec![(0, 0)];
        if self.end == 0 {
            return self.advance_past_empty(context, space);
        }
        Ok(())
    }

    /// Readers give no empty batches; should one come, it ends the run's batch, not the run.
    fn advance_past_empty(&mut self, context: &Context<'a>, space: &K) -> Result<(), Stop> {
        self.keys = None;
        self.advance(context, space)
    }

    /// Appends the next rows to an output batch. `epoch` tells output batches apart.
    fn emit(&mut self, count: usize, out: &mut Gathered, epoch: u64) {
        match &self.order {
            None => {
                let slot = slot(&mut self.slots, &self.batches, 0, out, epoch);
                out.add_rows(slot, self.position, count, self.row_bytes);
            }
            Some(order) => {
                for at in &order[self.position..self.position + count] {
                    let slot = slot(
                        &mut self.slots,
                        &self.batches,
                        at.batch as usize,
                        out,
                        epoch,
                    );
                    out.add_rows(slot, at.row as usize, 1, self.row_bytes);
                }
            }
        }
        self.position += count;
    }
}

fn slot(
    slots: &mut [(u64, u32)],
    batches: &[RecordBatch],
    batch: usize,
    out: &mut Gathered,
    epoch: u64,
) -> u32 {
    let (known_epoch, known_slot) = &mut slots[batch];
    if *known_epoch != epoch {
        *known_epoch = epoch;
        *known_slot = out.add_batch(batches[batch].clone());
    }
    *known_slot
}

/// Merges the runs into `sink` and gives the number of rows. ORDER-KEPT is checked on what
/// goes out, not on what the merge believes.
pub(super) fn merge_runs<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    mut runs: Vec<Cursor<'a, K>>,
    limits: BatchLimits,
    sink: &mut dyn Sink,
) -> Result<u64, Stop> {
    if runs.is_empty() {
        return Ok(0);
    }
    for run in &mut runs {
        if run.is_waiting && run.keys.is_none() {
            run.open(context, space)?;
        }
    }
    let mut tree = LoserTree::new(runs.len(), |a, b| comes_first(space, &runs, a, b));
    let mut out = Output {
        limits,
        rows: Gathered::default(),
        epoch: 1,
        last: None,
        row_count: 0,
    };
    let (mut last_winner, mut streak) = (usize::MAX, 0);
    loop {
        let winner = tree.winner();
        if runs[winner].keys.is_none() {
            break;
        }
        if let (Source::Copyable(part), Some(last)) = (&runs[winner].source, &runs[winner].last) {
            let part = *part;
            let rival = tree.runner_up(winner, |a, b| comes_first(space, &runs, a, b));
            let is_apart = rival.is_none_or(|rival| ends_before(space, last, winner, &runs, rival));
            if is_apart && sink.takes_copy(context.parts[part].row_count) {
                out.flush(context, space, sink)?;
                if context.control.is_cancelled() {
                    return Err(MergeError::Cancelled.into());
                }
                sink.copy(context, &context.parts[part])?;
                out.row_count += context.parts[part].row_count;
                out.last = runs[winner].last.take();
                runs[winner].source = Source::Memory;
                runs[winner].keys = None;
                tree.replay(winner, |a, b| comes_first(space, &runs, a, b));
                continue;
            }
            runs[winner].source = Source::UnopenedStream(part);
            runs[winner].is_waiting = true;
        }
        if runs[winner].is_waiting {
            runs[winner].open(context, space)?;
            tree.replay(winner, |a, b| comes_first(space, &runs, a, b));
            continue;
        }
        streak = if last_winner == winner { streak + 1 } else { 0 };
        last_winner = winner;
        // Looking for the end of a run of rows only pays where there are runs.
        let count = if streak < 2 {
            1
        } else {
            let rival = tree.runner_up(winner, |a, b| comes_first(space, &runs, a, b));
            rows_before(space, &runs, winner, rival)
        };
        let run = &mut runs[winner];
        let count = count.min(out.room_rows(run.row_bytes));
        run.emit(count, &mut out.rows, out.epoch);
        if run.position == run.end {
            run.advance(context, space)?;
        }
        tree.replay(winner, |a, b| comes_first(space, &runs, a, b));
        if out.is_full() {
            out.flush(context, space, sink)?;
        }
    }
    out.flush(context, space, sink)?;
    Ok(out.row_count)
}

/// Whether run `a` goes on before run `b`. A waiting run wins a tie, because what it hides
/// may come first.
#[inline]
fn comes_first<K: KeySpace>(space: &K, runs: &[Cursor<'_, K>], a: usize, b: usize) -> bool {
    let (one, two) = (&runs[a], &runs[b]);
    match (&one.keys, &two.keys) {
        (Some(one_keys), Some(two_keys)) => {
            match space.compare(one_keys, one.position, two_keys, two.position) {
                Ordering::Less => true,
                Ordering::Greater => false,
                Ordering::Equal => (!one.is_waiting, a) < (!two.is_waiting, b),
            }
        }
        (one_keys, two_keys) => (one_keys.is_none(), a) < (two_keys.is_none(), b),
    }
}

/// Whether a row group with this last key, run `own`, ends before the next row of `rival`.
fn ends_before<K: KeySpace>(
    space: &K,
    last: &K::Block,
    own: usize,
    runs: &[Cursor<'_, K>],
    rival: usize,
) -> bool {
    let Some(keys) = &runs[rival].keys else {
        return true;
    };
    match space.compare(last, 0, keys, runs[rival].position) {
        Ordering::Less => true,
        Ordering::Equal => own < rival,
        Ordering::Greater => false,
    }
}

/// How many rows of `winner` come before the next one of `rival`: at least one.
fn rows_before<K: KeySpace>(
    space: &K,
    runs: &[Cursor<'_, K>],
    winner: usize,
    rival: Option<usize>,
) -> usize {
    let run = &runs[winner];
    let left = run.end - run.position;
    let rival = rival.map(|index| (index, &runs[index]));
    let (Some(keys), Some((rival_index, rival))) = (&run.keys, rival) else {
        return left;
    };
    let Some(rival_keys) = &rival.keys else {
        return left;
    };
    let wins_ties = !rival.is_waiting && winner < rival_index;
    let is_before = |offset: usize| match space.compare(
        keys,
        run.position + offset,
        rival_keys,
        rival.position,
    ) {
        Ordering::Less => true,
        Ordering::Greater => false,
        Ordering::Equal => wins_ties,
    };
    // Gallop, then halve: rows up to `low` come before, the row at `high` does not.
    let (mut low, mut step) = (0, 1);
    let mut high = left;
    while low + step < left {
        if is_before(low + step) {
            low += step;
            step *= 2;
        } else {
            high = low + step;
            break;
        }
    }
    while low + 1 < high {
        let middle = usize::midpoint(low, high);
        if is_before(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    low + 1
}

/// The batch that is being filled.
struct Output<B> {
    limits: BatchLimits,
    rows: Gathered,
    epoch: u64,
    /// Keys of the batch before.
    last: Option<B>,
    row_count: u64,
}

impl<B> Output<B> {
    fn is_full(&self) -> bool {
        self.rows.row_count() >= self.limits.rows || self.rows.size_bytes() >= self.limits.bytes
    }

    /// How many rows of this size still fit; at least one, since a full batch is flushed.
    fn room_rows(&self, row_bytes: u64) -> usize {
        let bytes = self.limits.bytes.saturating_sub(self.rows.size_bytes());
        let rows = usize::try_from(bytes / row_bytes.max(1)).unwrap_or(usize::MAX);
        rows.min(self.limits.rows - self.rows.row_count()).max(1)
    }

    fn flush<K: KeySpace<Block = B>>(
        &mut self,
        context: &Context<'_>,
        space: &K,
        sink: &mut dyn Sink,
    ) -> Result<(), Stop> {
        if self.rows.row_count() == 0 {
            return Ok(());
        }
        if context.control.is_cancelled() {
            return Err(MergeError::Cancelled.into());
        }
        let mut rows = std::mem::take(&mut self.rows);
        self.epoch += 1;
        let broken = |reason: String| context.invariant("ORDER-KEPT", reason);
        let columns: Vec<ArrayRef> = context
            .sort_places
            .iter()
            .map(|&place| rows.column(place))
            .collect::<Result<_, _>>()
            .map_err(broken)?;
        let keys = space.encode(&columns).map_err(broken)?;
        if let Some(row) = space.first_disorder(&keys) {
            return Err(broken(format!(
                "row {} is out of order",
                self.row_count + row as u64
            ))
            .into());
        }
        if let Some(last) = &self.last
            && space.compare(last, space.len(last) - 1, &keys, 0) == Ordering::Greater
        {
            return Err(broken(format!("row {} is out of order", self.row_count)).into());
        }
        self.last = Some(keys);
        self.row_count += rows.row_count() as u64;
        for (&place, column) in context.sort_places.iter().zip(columns) {
            rows.keep_column(place, column);
        }
        sink.write(rows)?;
        Ok(())
    }
}
