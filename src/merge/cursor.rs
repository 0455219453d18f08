//! One sorted run, and how far it is: a stream of a file, rows in memory, or a run in scratch.

use std::{cmp::Ordering, collections::VecDeque, sync::Arc};

use arrow::{
    array::{AsArray, RecordBatch},
    buffer::ScalarBuffer,
    datatypes::UInt32Type,
};

use super::{
    ahead::Ahead,
    context::{Context, Stop},
    decode::Decoder,
    gather::Gathered,
    keys::KeySpace,
    load::SortedRows,
    race::{Head, Racer, Rank},
    sizes::array_bytes,
    spill::{SpillReader, SpilledRun},
};

/// Where a run's rows come from.
pub(super) enum Source<'a, K: KeySpace> {
    /// A sorted input that was not opened yet.
    UnopenedStream(usize),
    /// Inputs that are decoded and sorted when their turn comes.
    UnopenedInputs(Vec<usize>, Arc<Ahead<K>>),
    /// A run in scratch that was not opened yet, and its place among them.
    UnopenedSpill(SpilledRun, usize),
    /// A row group that is in order and may be copied.
    Copyable(usize),
    /// A sorted input.
    Stream(usize, Box<Decoder<'a>>),
    /// A run in scratch.
    Spill(Box<SpillReader>),
    /// Nothing but what is in memory.
    Memory,
}

/// Which input each row of a run is of.
enum Ranks {
    /// All of the same.
    One,
    Each(Vec<Rank>),
    /// The parts of the rows of a batch from scratch, and the place of its run.
    InScratch(ScalarBuffer<u32>, usize),
}

/// One run and how far it is.
pub(super) struct Cursor<'a, K: KeySpace> {
    pub(super) source: Source<'a, K>,
    /// Keys of the rows in memory; of a waiting run its bound; `None` when it has no more rows.
    pub(super) keys: Option<K::Block>,
    /// The last key of a row group that may be copied.
    pub(super) last: Option<K::Block>,
    pub(super) position: usize,
    pub(super) end: usize,
    pub(super) is_waiting: bool,
    pub(super) rank: Rank,
    ranks: Ranks,
    /// Rows in order, the next one in the first batch.
    batches: VecDeque<RecordBatch>,
    /// The place of the first row of the first batch.
    batch_start: usize,
    pub(super) row_bytes: u64,
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
            ranks: Ranks::One,
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
            ranks: rows.ranks.map_or(Ranks::One, Ranks::Each),
            batches: rows.batches.into(),
            row_bytes: rows.row_bytes,
            ..Self::waiting(Source::Memory, None, rows.rank)
        }
    }

    /// Whether something must be done before its rows can be taken.
    pub(super) fn is_closed(&self) -> bool {
        self.is_waiting || matches!(self.source, Source::Copyable(_))
    }

    /// Opens a waiting run; its first key must not come before its bound.
    pub(super) fn open(&mut self, context: &Context<'a>, space: &K) -> Result<(), Stop> {
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
            Source::UnopenedSpill(run, place) => {
                self.source = Source::Spill(Box::new(run.open(place)?));
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
    pub(super) fn advance(&mut self, context: &Context<'a>, space: &K) -> Result<(), Stop> {
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
            self.ranks = Ranks::One;
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
        if let Source::Spill(reader) = &self.source
            && reader.part().is_none()
        {
            // The last column, see `SpillWriter`.
            let parts = batch.columns().last();
            let parts = parts.and_then(|parts| parts.as_primitive_opt::<UInt32Type>());
            let parts = parts.filter(|_| batch.num_columns() > context.work.schema.fields().len());
            let Some(parts) = parts else {
                let reason = "a run in scratch does not know its inputs".to_owned();
                return Err(context.invariant("ORDER-KEPT", reason).into());
            };
            self.ranks = Ranks::InScratch(parts.values().clone(), reader.place());
        }
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
    pub(super) fn emit(&mut self, mut count: usize, out: &mut Gathered, epoch: u64) {
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
    pub(super) fn head_at(&self, space: &K, keys: &K::Block, position: usize) -> Head {
        let rank = match &self.ranks {
            Ranks::One => self.rank,
            Ranks::Each(ranks) => ranks[position],
            Ranks::InScratch(parts, place) => {
                Rank::of_part(parts[position] as usize).in_run(*place)
            }
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
