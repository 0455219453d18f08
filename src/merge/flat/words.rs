//! Columns of fixed width: numbers, dates, times.

use std::ops::Range;

use arrow::{
    array::{Array, ArrayRef, AsArray},
    buffer::NullBuffer,
    datatypes::{
        ArrowNativeType, DataType, Date32Type, Float32Type, Float64Type, Int32Type, Int64Type,
        Time32MillisecondType, Time64MicrosecondType, Time64NanosecondType, TimeUnit,
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, UInt32Type,
        UInt64Type,
    },
};
use parquet::{
    basic::{Compression, Encoding, Type as PhysicalType},
    file::statistics::{Statistics, ValueStatistics},
    schema::types::ColumnDescPtr,
};

use super::{
    FlatChunk, Limits, Tools,
    chunk::{Chunk, PageFacts, start_body},
    dictionary::{EARLY_ROWS, Offer, Policy, Word, WordDictionary},
    packing::{bit_width, put_deltas, put_hybrid},
    ranges::{Order, sign_extended},
};
use crate::merge::picks::{Rows, fetch_words};

/// One column of words.
pub(super) struct WordColumn<T: Word> {
    descr: ColumnDescPtr,
    compression: Compression,
    order: Order,
    has_small_steps: bool,
    limits: Limits,
    policy: Policy,
    dictionary: WordDictionary<T>,
    /// The page in progress, nulls as any value.
    values: Vec<T>,
    /// For each row 1 where there is a value; empty while there are no nulls.
    present: Vec<u8>,
    chunk: Option<Chunk>,
    /// Entries that pages refer to.
    used_entries: usize,
    /// Smallest and largest of the chunk and of the page before, as ordered words.
    range: Option<(T, T)>,
    page_range: Option<(T, T)>,
}

impl<T: Word + ArrowNativeType> WordColumn<T>
where
    Tools: Buffers<T>,
{
    pub(super) fn new(
        descr: ColumnDescPtr,
        compression: Compression,
        order: Order,
        has_small_steps: bool,
        limits: Limits,
    ) -> Self {
        Self {
            descr,
            compression,
            order,
            has_small_steps,
            policy: Policy::new(limits.clone()),
            limits,
            dictionary: WordDictionary::default(),
            values: Vec::new(),
            present: Vec::new(),
            chunk: None,
            used_entries: 0,
            range: None,
            page_range: None,
        }
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.values.capacity() * T::BYTES
            + self.present.capacity()
            + self.dictionary.memory_bytes()
            + self.chunk.as_ref().map_or(0, Chunk::size_bytes)
    }

    pub(super) fn write(
        &mut self,
        arrays: &[ArrayRef],
        rows: &Rows<'_>,
        tools: &mut Tools,
    ) -> Result<(), String> {
        let values = arrays.iter().map(|array| words(array.as_ref()));
        let values: Vec<&[T]> = values
            .collect::<Option<_>>()
            .ok_or("a column has an unexpected type")?;
        let nulls = arrays.iter().map(|array| array.nulls());
        let nulls: Vec<Option<&NullBuffer>> = nulls
            .map(|nulls| nulls.filter(|nulls| nulls.null_count() > 0))
            .collect();
        let has_nulls = nulls.iter().any(Option::is_some);
        if has_nulls && self.descr.max_def_level() == 0 {
            return Err("a column that holds no nulls has one".to_owned());
        }
        let page_rows = self.limits.page_rows();
        self.values.reserve_exact(page_rows - self.values.len());
        match *rows {
            Rows::Runs(ref picks) => {
                for pick in picks.iter() {
                    let (slot, row) = (pick.slot as usize, pick.row as usize);
                    self.add_run(
                        values[slot],
                        nulls[slot],
                        row..row + pick.count as usize,
                        tools,
                    )?;
                }
            }
            Rows::Scattered(mut rest) => {
                while !rest.is_empty() {
                    let count = rest.len().min(page_rows - self.values.len());
                    let (rows, others) = rest.split_at(count);
                    rest = others;
                    if has_nulls {
                        self.present.resize(self.values.len(), 1);
                        self.present.extend(rows.iter().map(|at| {
                            let nulls = nulls[at.batch as usize];
                            u8::from(nulls.is_none_or(|nulls| nulls.is_valid(at.row as usize)))
                        }));
                    } else if !self.present.is_empty() {
                        self.present.resize(self.values.len() + count, 1);
                    }
                    fetch_words(&values, rows, &mut self.values);
                    if self.values.len() == page_rows {
                        self.end_page(tools)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Appends rows that follow one another.
    fn add_run(
        &mut self,
        values: &[T],
        nulls: Option<&NullBuffer>,
        mut rows: Range<usize>,
        tools: &mut Tools,
    ) -> Result<(), String> {
        let page_rows = self.limits.page_rows();
        while !rows.is_empty() {
            let count = rows.len().min(page_rows - self.values.len());
            let part = rows.start..rows.start + count;
            rows.start = part.end;
            match nulls {
                Some(nulls) => {
                    self.present.resize(self.values.len(), 1);
                    let flags = part.clone().map(|row| u8::from(nulls.is_valid(row)));
                    self.present.extend(flags);
                }
                None if !self.present.is_empty() => {
                    self.present.resize(self.values.len() + count, 1);
                }
                None => {}
            }
            self.values.extend_from_slice(&values[part]);
            if self.values.len() == page_rows {
                self.end_page(tools)?;
            }
        }
        Ok(())
    }

    fn end_page(&mut self, tools: &mut Tools) -> Result<(), String> {
        let rows = self.values.len();
        if rows == 0 {
            return Ok(());
        }
        if self.chunk.is_none() {
            self.chunk = Some(Chunk::new(self.descr.clone(), self.compression));
            self.policy.start_group();
            self.policy.is_on &= !self.has_small_steps;
        }
        let mut present_values = tools.take_words();
        let values: &[T] = if self.present.is_empty() {
            &self.values
        } else {
            present_values.clear();
            let flagged = self.values.iter().zip(&self.present);
            present_values.extend(flagged.filter(|(_, flag)| **flag == 1).map(|(v, _)| *v));
            &present_values
        };
        let nulls = rows - values.len();
        let (range, nans) = self.order.range(values);
        let follows = self
            .page_range
            .zip(range)
            .map(|((low, high), (new_low, new_high))| {
                let at_most = |a: T, b: T| self.order.key(a) <= self.order.key(b);
                (
                    at_most(low, new_low) && at_most(high, new_high),
                    at_most(new_low, low) && at_most(new_high, high),
                )
            });
        let (scratch, compressing) = tools.parts();
        let Some(chunk) = &mut self.chunk else {
            return Err("a column has no chunk".to_owned());
        };
        start_body(&self.descr, rows, &self.present, &mut scratch.body);
        let body = &mut scratch.body;
        let encoding = if self.policy.is_on
            && !values.is_empty()
            && let Some(width) = index_page(
                values,
                &mut self.dictionary,
                &mut self.policy,
                self.used_entries,
                &mut scratch.indexes,
                |plain| compressing.part_left(self.compression, plain),
            ) {
            self.used_entries = self.dictionary.values.len();
            body.push(width.to_le_bytes()[0]);
            put_hybrid(&scratch.indexes, width, body);
            Encoding::RLE_DICTIONARY
        } else if self.has_small_steps {
            scratch.deltas.clear();
            let signed = |value: T| sign_extended(value.bits(), T::BYTES);
            scratch
                .deltas
                .extend(values.iter().map(|value| signed(*value)));
            put_deltas(&scratch.deltas, T::BYTES == 4, body);
            Encoding::DELTA_BINARY_PACKED
        } else {
            body.reserve(values.len() * T::BYTES);
            for value in values {
                value.put(body);
            }
            Encoding::PLAIN
        };
        let bytes = |value: T| {
            let mut bytes = Vec::with_capacity(T::BYTES);
            value.put(&mut bytes);
            bytes
        };
        let facts = PageFacts {
            rows,
            nulls,
            nans,
            range: range.map(|(low, high)| (bytes(low), bytes(high))),
            encoding,
            text_bytes: None,
        };
        chunk.add_page(facts, body, follows, compressing)?;
        self.range = self.order.union(self.range, range);
        if range.is_some() {
            self.page_range = range;
        }
        if !self.policy.is_on && self.used_entries == 0 {
            self.dictionary = WordDictionary::default();
        }
        tools.give_words(present_values);
        self.values.clear();
        self.present.clear();
        Ok(())
    }

    pub(super) fn close(&mut self, tools: &mut Tools) -> Result<FlatChunk, String> {
        self.end_page(tools)?;
        let Some(chunk) = self.chunk.take() else {
            return Err("a row group has no rows".to_owned());
        };
        let statistics = self.statistics(&chunk);
        self.dictionary.values.truncate(self.used_entries);
        let (scratch, compressing) = tools.parts();
        let body = &mut scratch.body;
        body.clear();
        for value in &self.dictionary.values {
            value.put(body);
        }
        let count = self.dictionary.values.len();
        let dictionary = (count > 0).then_some((&body[..], count));
        let done = chunk.finish(dictionary, statistics, compressing);
        self.dictionary = WordDictionary::default();
        self.policy.end_group();
        (self.used_entries, self.range, self.page_range) = (0, None, None);
        done
    }

    fn statistics(&self, chunk: &Chunk) -> Option<Statistics> {
        let (low, high) = self.range.unzip();
        let nulls = Some(chunk.nulls() as u64);
        let signed = |value: T| sign_extended(value.bits(), T::BYTES);
        macro_rules! statistics {
            ($kind:ident, $of:expr) => {
                Statistics::$kind(
                    ValueStatistics::new(low.map($of), high.map($of), None, nulls, false)
                        .with_nan_count(chunk.nans().map(|nans| nans as u64))
                        .with_backwards_compatible_min_max(self.order != Order::Unsigned),
                )
            };
        }
        let short = |value: T| u32::try_from(value.bits()).unwrap_or(0);
        Some(match self.descr.physical_type() {
            PhysicalType::INT64 => statistics!(Int64, signed),
            PhysicalType::INT32 => statistics!(Int32, |value| short(value).cast_signed()),
            PhysicalType::DOUBLE => statistics!(Double, |value: T| f64::from_bits(value.bits())),
            PhysicalType::FLOAT => statistics!(Float, |value| f32::from_bits(short(value))),
            _ => return None,
        })
    }
}

/// Gives the places of a page's values and the width of one, when the dictionary pays.
fn index_page<T: Word>(
    values: &[T],
    dictionary: &mut WordDictionary<T>,
    policy: &mut Policy,
    known_entries: usize,
    indexes: &mut Vec<u32>,
    part_left: impl FnOnce(&[u8]) -> f64,
) -> Option<u32> {
    indexes.clear();
    let (first, rest) = values.split_at(values.len().min(EARLY_ROWS));
    indexes.extend(first.iter().map(|value| dictionary.index(*value)));
    if policy.is_hopeless(first.len(), dictionary.values.len()) {
        policy.give_up();
        dictionary.values.truncate(known_entries);
        return None;
    }
    indexes.extend(rest.iter().map(|value| dictionary.index(*value)));
    let entries = dictionary.values.len();
    let offer = Offer {
        values: values.len(),
        plain_bytes: values.len() * T::BYTES,
        entries,
        new_bytes: (entries - known_entries) * T::BYTES,
        bytes: dictionary.bytes(),
        memory_bytes: dictionary.memory_bytes(),
    };
    if policy.asks_for_plain_part(&offer) {
        let mut plain = Vec::with_capacity(offer.plain_bytes);
        for value in values {
            value.put(&mut plain);
        }
        policy.set_plain_part(part_left(&plain));
    }
    if policy.accepts(&offer) {
        Some(bit_width(entries.saturating_sub(1) as u64).max(1))
    } else {
        None
    }
}

/// The values of an array of a type that [`order_of`] knows.
pub(in crate::merge) fn words<T: ArrowNativeType>(array: &dyn Array) -> Option<&[T]> {
    macro_rules! of {
        ($type:ty) => {
            array
                .as_primitive_opt::<$type>()?
                .values()
                .inner()
                .typed_data()
        };
    }
    let wide = array.data_type().primitive_width()?;
    if wide != size_of::<T>() {
        return None;
    }
    Some(match array.data_type() {
        DataType::Int64 => of!(Int64Type),
        DataType::UInt64 => of!(UInt64Type),
        DataType::Float64 => of!(Float64Type),
        DataType::Int32 => of!(Int32Type),
        DataType::UInt32 => of!(UInt32Type),
        DataType::Float32 => of!(Float32Type),
        DataType::Date32 => of!(Date32Type),
        DataType::Time32(TimeUnit::Millisecond) => of!(Time32MillisecondType),
        DataType::Time64(TimeUnit::Microsecond) => of!(Time64MicrosecondType),
        DataType::Time64(TimeUnit::Nanosecond) => of!(Time64NanosecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => of!(TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => of!(TimestampMicrosecondType),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => of!(TimestampNanosecondType),
        _ => return None,
    })
}

/// Buffers for the values of a page that are not null.
pub(super) trait Buffers<T> {
    fn take_words(&mut self) -> Vec<T>;
    fn give_words(&mut self, words: Vec<T>);
}

impl Buffers<u64> for Tools {
    fn take_words(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.scratch.longs)
    }

    fn give_words(&mut self, words: Vec<u64>) {
        self.scratch.longs = words;
    }
}

impl Buffers<u32> for Tools {
    fn take_words(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.scratch.shorts)
    }

    fn give_words(&mut self, words: Vec<u32>) {
        self.scratch.shorts = words;
    }
}
