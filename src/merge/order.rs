//! The k-way merge: many sorted runs become one, ties in the order of the runs.
//!
//! A run waits, unopened, behind a key that none of its rows comes before. When it is its
//! turn it is opened and takes part with its real first key; so only runs that overlap are
//! open together.

use std::cmp::Ordering;

use arrow::array::ArrayRef;

use super::{
    MergeError,
    context::{Context, Stop},
    cursor::{Cursor, Source},
    gather::Gathered,
    keys::KeySpace,
    parts::Part,
    race::{Head, Race, Racer, comes_before},
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
