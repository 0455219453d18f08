//! The k-way merge: many sorted runs become one, ties in the order of the runs.
//!
//! A run waits, unopened, behind a key that none of its rows comes before. When it is its
//! turn it is opened and takes part with its real first key; so only runs that overlap are
//! open together.

use std::{cmp::Ordering, collections::VecDeque, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch};

use super::{
    MergeError,
    ahead::Ahead,
    context::{Context, Stop},
    decode::Decoder,
    gather::Gathered,
    keys::KeySpace,
    load::SortedRows,
    race::{Head, Race, Racer, Rank, comes_before},
    raw_copy::Part,
    sizes::array_bytes,
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
pub(super) enum Source<'a, K: KeySpace> {
    /// A sorted input that was not opened yet.
    UnopenedStream(usize),
    /// Inputs that are decoded and sorted when their turn comes.
    UnopenedInputs(Vec<usize>, Arc<Ahead<K>>),
    /// A run in scratch that was not opened yet; the part that it is of, if it is of one.
    UnopenedSpill(SpilledRun, Option<usize>),
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
    source: Source<'a, K>,
    /// Keys of the rows in memory; of a waiting run its bound; `None` when it has no more rows.
    keys: Option<K::Block>,
    /// The last key of a row group that may be copied.
    last: Option<K::Block>,
    position: usize,
    end: usize,
    is_waiting: bool,
    rank: Rank,
    /// The rank of each row, when they are of several inputs.
    ranks: Option<Vec<Rank>>,
    /// Rows in order, the next one in the first batch.
    batches: VecDeque<RecordBatch>,
    /// The place of the first row of the first batch.
    batch_start: usize,
    row_bytes: u64,
    /// In which output batch the first batch was last used, and its slot there.
    slot: (u64, u32),
}

impl<'a, K: KeySpace> Cursor<'a, K> {
    /// A run that waits behind `bound`; without one it is opened at once.
    pub(super) fn waiting(source: Source<'a, K>, bound: Option<K::Block>, rank: Rank) -> Self {
        Self {
            source,
            keys: bound,
            last: None,
            position: 0,
            end: 1,
            is_waiting: true,
            rank,
            ranks: None,
            batches: VecDeque::new(),
            batch_start: 0,
            row_bytes: 0,
            slot: (0, 0),
        }
    }

    /// A row group in order that may be copied; its first key is exact, so it does not wait.
    pub(super) fn copyable(part: usize, first: K::Block, last: K::Block) -> Self {
        Self {
            last: Some(last),
            is_waiting: false,
            ..Self::waiting(Source::Copyable(part), Some(first), Rank::of_part(part))
        }
    }

    /// A run that is in memory and sorted.
    pub(super) fn sorted(space: &K, rows: SortedRows<K>) -> Self {
        let end = space.len(&rows.keys);
        Self {
            keys: (end > 0).then_some(rows.keys),
            end,
            is_waiting: false,
            ranks: rows.ranks,
            batches: rows.batches.into(),
            row_bytes: rows.row_bytes,
            ..Self::waiting(Source::Memory, None, rows.rank)
        }
    }

    /// Whether something must be done before its rows can be taken.
    fn is_closed(&self) -> bool {
        self.is_waiting || matches!(self.source, Source::Copyable(_))
    }

    /// Opens a waiting run; its first key must not come before its bound.
    fn open(&mut self, context: &Context<'a>, space: &K) -> Result<(), Stop> {
        let bound = self.keys.take();
        self.is_waiting = false;
        let mut inputs = Vec::new();
        match std::mem::replace(&mut self.source, Source::Memory) {
            Source::UnopenedStream(index) => {
                inputs.push(index);
                let decoder = context.decoder(index, context.shares.stream_batch_bytes)?;
                self.source = Source::Stream(index, Box::new(decoder));
                self.advance(context, space)?;
            }
            Source::UnopenedSpill(run, part) => {
                inputs.extend(part);
                self.source = Source::Spill(Box::new(run.open()?));
                self.advance(context, space)?;
            }
            Source::UnopenedInputs(parts, ahead) => {
                *self = Self::sorted(space, ahead.take(context, space, &parts)?);
                inputs = parts;
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
        let next = match &mut self.source {
            Source::Stream(_, decoder) => decoder.next()?,
            Source::Spill(reader) => {
                let next = reader.next()?;
                next.map(|batch| {
                    let bytes = batch.columns().iter().map(array_bytes).sum();
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
                inputs: vec![*index],
                too_large: false,
            });
        }
        (self.position, self.batch_start) = (0, 0);
        self.end = batch.num_rows();
        self.row_bytes = bytes / self.end.max(1) as u64;
        self.keys = Some(keys);
        self.batches.push_back(batch);
        self.slot = (0, 0);
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
    fn emit(&mut self, mut count: usize, out: &mut Gathered, epoch: u64) {
        while count > 0
            && let Some(batch) = self.batches.front()
        {
            if self.slot.0 != epoch {
                self.slot = (epoch, out.add_batch(batch.clone()));
            }
            let row = self.position - self.batch_start;
            let rows = count.min(batch.num_rows() - row);
            let is_done = row + rows == batch.num_rows();
            out.add_rows(self.slot.1, row, rows, self.row_bytes);
            self.position += rows;
            count -= rows;
            if is_done && self.batches.len() > 1 {
                self.batches.pop_front();
                self.batch_start = self.position;
                self.slot = (0, 0);
            }
        }
    }

    #[inline]
    fn head_at(&self, space: &K, keys: &K::Block, position: usize) -> Head {
        let rank = match &self.ranks {
            None => self.rank,
            Some(ranks) => ranks[position],
        };
        Head::new(space.head(keys, position), !self.is_waiting, rank)
    }
}

impl<K: KeySpace> Racer<K> for Cursor<'_, K> {
    #[inline]
    fn head(&self, space: &K) -> Head {
        match &self.keys {
            None => Head::END,
            Some(keys) => self.head_at(space, keys, self.position),
        }
    }

    fn key(&self) -> Option<(&K::Block, usize)> {
        self.keys.as_ref().map(|keys| (keys, self.position))
    }
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
    let mut race = Race::new(space, &runs);
    let mut out = Output {
        limits,
        rows: Gathered::default(),
        epoch: 1,
        last: None,
        row_count: 0,
    };
    let (mut last_winner, mut streak) = (usize::MAX, 0);
    while let Some(winner) = race.winner() {
        if runs[winner].is_closed() {
            let rival = race.runner_up(space, &runs);
            if !copy(context, space, &mut runs, winner, rival, &mut out, sink)? {
                runs[winner].open(context, space)?;
            }
            race.replay(space, &runs);
            continue;
        }
        streak = if last_winner == winner { streak + 1 } else { 0 };
        last_winner = winner;
        // Looking for the end of a run of rows only pays where there are runs.
        let count = if streak < 2 {
            1
        } else {
            rows_before(space, &runs, winner, race.runner_up(space, &runs))
        };
        let run = &mut runs[winner];
        let count = count.min(out.room_rows(run.row_bytes));
        run.emit(count, &mut out.rows, out.epoch);
        if run.position == run.end {
            run.advance(context, space)?;
        }
        race.replay(space, &runs);
        if out.is_full() {
            out.flush(context, space, sink)?;
        }
    }
    out.flush(context, space, sink)?;
    Ok(out.row_count)
}

/// Copies the winner's row group, if it may be copied and ends before any other run goes on.
/// Else it is made a stream.
fn copy<'a, K: KeySpace>(
    context: &Context<'a>,
    space: &K,
    runs: &mut [Cursor<'a, K>],
    winner: usize,
    rival: Option<(usize, Head)>,
    out: &mut Output<K::Block>,
    sink: &mut dyn Sink,
) -> Result<bool, Stop> {
    let (Source::Copyable(part), Some(last)) = (&runs[winner].source, &runs[winner].last) else {
        return Ok(false);
    };
    let part = *part;
    let last_head = Head::new(space.head(last, 0), true, runs[winner].rank);
    let is_apart = rival.is_none_or(|(rival, head)| {
        let rival_key = runs[rival].key();
        comes_before(space, (last_head, Some((last, 0))), (head, rival_key))
    });
    if !is_apart || !sink.takes_copy(context.parts[part].row_count) {
        runs[winner].source = Source::UnopenedStream(part);
        runs[winner].is_waiting = true;
        return Ok(false);
    }
    out.flush(context, space, sink)?;
    if context.control.is_cancelled() {
        return Err(MergeError::Cancelled.into());
    }
    sink.copy(context, &context.parts[part])?;
    out.row_count += context.parts[part].row_count;
    out.last = runs[winner].last.take();
    runs[winner].source = Source::Memory;
    runs[winner].keys = None;
    Ok(true)
}

/// How many rows of `winner` come before the next one of `rival`: at least one.
fn rows_before<K: KeySpace>(
    space: &K,
    runs: &[Cursor<'_, K>],
    winner: usize,
    rival: Option<(usize, Head)>,
) -> usize {
    let run = &runs[winner];
    let left = run.end - run.position;
    let (Some(keys), Some((rival, rival_head))) = (&run.keys, rival) else {
        return left;
    };
    let rival_key = runs[rival].key();
    let is_before = |offset: usize| {
        let position = run.position + offset;
        let head = run.head_at(space, keys, position);
        comes_before(
            space,
            (head, Some((keys, position))),
            (rival_head, rival_key),
        )
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
