//! Row groups that are copied undecoded: those whose keys overlap no other rows.
//!
//! Footers only propose. Before a row group becomes a part of its own, its order is certain:
//! we wrote it, or its key column was read. Whether it really overlaps nothing is decided by
//! the merge when its turn comes.

use std::{
    collections::{HashMap, hash_map::Entry},
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

use arrow::{
    array::{Array, ArrayRef},
    datatypes::DataType,
};
use parquet::{
    arrow::arrow_reader::ArrowReaderMetadata,
    basic::Compression as ParquetCompression,
    file::metadata::{ColumnChunkMetaData, RowGroupMetaData},
};

use super::{
    MergeError, MergeOptions, SortColumn, bounds,
    footers::{self, GroupKeys},
    inputs::Input,
    keys::ordered_integers,
    parts::{Copyable, Part, PlacedBounds},
    properties::{has_bloom_filter, parquet_compression},
    scan::scan_groups,
    schema::UnitedSchema,
    strategy::InputSummary,
};

/// What copying needs to know of a merge.
pub(super) struct Rules<'a> {
    pub(super) options: &'a MergeOptions,
    pub(super) united: &'a UnitedSchema,
    /// The only sort column's type.
    pub(super) key_type: &'a DataType,
    /// Bytes of one column chunk, at most.
    pub(super) chunk_bytes: u64,
}

/// Row groups with fewer rows than this are always encoded again, together with their neighbours.
pub(super) fn rows_min(row_group_rows: usize) -> u64 {
    (row_group_rows as u64).div_ceil(2)
}

/// Splits inputs into parts; without anything to copy, one part for each input.
pub(super) fn split(
    rules: &Rules<'_>,
    inputs: &[Input],
    summaries: &[InputSummary],
    is_cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<(Vec<Part>, Vec<InputSummary>), MergeError> {
    let candidates = candidates(rules, inputs, is_cancelled)?.unwrap_or_default();
    let checked = check_orders(rules, inputs, candidates, is_cancelled)?;
    let mut checked = checked.into_iter().peekable();
    let (mut parts, mut described) = (Vec::new(), Vec::new());
    for (index, (input, summary)) in inputs.iter().zip(summaries).enumerate() {
        if checked.peek().is_none_or(|next| next.input != index) {
            parts.push(Part::whole(index, input));
            described.push(summary.clone());
            continue;
        }
        let footer = input
            .footer()
            .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
        let rows_of = |group: &RowGroupMetaData| u64::try_from(group.num_rows()).unwrap_or(0);
        let group_rows: Vec<u64> = footer.metadata().row_groups().iter().map(rows_of).collect();
        let mut add = |groups: Range<usize>, copy: Option<(i64, Copyable)>| {
            let row_count: u64 = group_rows[groups.clone()].iter().sum();
            if row_count == 0 {
                return;
            }
            let row_bytes = summary.decoded_bytes / summary.row_count.max(1);
            described.push(InputSummary {
                row_count,
                decoded_bytes: row_bytes.saturating_mul(row_count),
                stream_bytes: summary.stream_bytes,
                seems_sorted: summary.seems_sorted || copy.is_some(),
                key_range: copy
                    .as_ref()
                    .map(|(first, copy)| (*first, copy.last))
                    .or(summary.key_range),
                is_copyable: copy.is_some(),
            });
            parts.push(Part {
                input: index,
                groups,
                row_count,
                copy: copy.map(|(_, copy)| copy),
            });
        };
        let mut done = 0;
        while let Some(found) = checked.next_if(|next| next.input == index) {
            add(done..found.group, None);
            done = found.group + 1;
            let copy = Copyable {
                last: found.last,
                bounds: found.bounds,
                other_bounds: found.other_bounds,
            };
            add(found.group..done, Some((found.first, copy)));
        }
        add(done..group_rows.len(), None);
    }
    narrow(rules, inputs, &parts, &mut described)?;
    Ok((parts, described))
}

/// Gives the parts between copied row groups the key ranges of their own row groups.
fn narrow(
    rules: &Rules<'_>,
    inputs: &[Input],
    parts: &[Part],
    described: &mut [InputSummary],
) -> Result<(), MergeError> {
    let Some(column) = rules.options.order_by.first() else {
        return Ok(());
    };
    let mut known: Option<(usize, Vec<GroupKeys>)> = None;
    for (part, summary) in parts.iter().zip(described) {
        if part.copy.is_some() || part.groups.end == usize::MAX {
            continue;
        }
        if known.as_ref().is_none_or(|(input, _)| *input != part.input) {
            known = footers::keys_of(&inputs[part.input], column, rules.key_type)?
                .map(|keys| (part.input, keys));
        }
        let Some((_, keys)) = &known else { continue };
        let own = || keys.iter().filter(|key| part.groups.contains(&key.index));
        if own().all(|key| !key.may_have_nulls) {
            summary.key_range = own()
                .map(|key| key.first)
                .min()
                .zip(own().map(|key| key.last).max());
        }
    }
    Ok(())
}

/// A row group that seems fit to be copied.
struct Candidate {
    input: usize,
    group: usize,
    first: i64,
    last: i64,
    bounds: [ArrayRef; 2],
    other_bounds: Vec<PlacedBounds>,
}

/// Row groups of the right shape that overlap no other, by their statistics. `None` when
/// statistics of any input are missing.
fn candidates(
    rules: &Rules<'_>,
    inputs: &[Input],
    is_cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Option<Vec<Candidate>>, MergeError> {
    let [column] = &rules.options.order_by[..] else {
        return Ok(None);
    };
    // Further columns whose bounds are wanted.
    let schema = &rules.united.schema;
    let others = rules.options.bounds_of.iter();
    let mut other_bounds = OtherBounds {
        columns: others
            .filter(|name| **name != column.name)
            .filter_map(|name| Some((schema.index_of(name).ok()?, name.as_str())))
            .filter(|(place, _)| bounds::has_bounds(schema.field(*place).data_type()))
            .collect(),
        known: HashMap::new(),
    };
    let mut all: Vec<(i64, i64, usize, GroupKeys)> = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        if is_cancelled() {
            return Err(MergeError::Cancelled);
        }
        if input.row_count == 0 {
            continue;
        }
        let Some(groups) = footers::keys_of(input, column, rules.key_type)? else {
            return Ok(None);
        };
        all.extend(groups.into_iter().map(|group| {
            let (first, last) = match (group.may_have_nulls, column.nulls_first) {
                (false, _) => (group.first, group.last),
                (true, false) => (group.first, i64::MAX),
                (true, true) => (i64::MIN, group.last),
            };
            (first, last, index, group)
        }));
    }
    all.sort_unstable_by_key(|(first, last, input, group)| (*first, *last, *input, group.index));
    let mut found = Vec::new();
    let mut latest = None;
    let next_firsts: Vec<Option<i64>> = (1..=all.len())
        .map(|next| all.get(next).map(|(first, ..)| *first))
        .collect();
    for ((first, last, input, group), next) in all.into_iter().zip(next_firsts) {
        let overlaps =
            latest.is_some_and(|latest| latest > first) || next.is_some_and(|next| next < last);
        latest = latest.max(Some(last));
        if overlaps || group.may_have_nulls || first > last {
            continue;
        }
        if has_shape(rules, &inputs[input], group.index)?
            && let Some(other_bounds) = other_bounds.of(&inputs[input], group.index)?
        {
            found.push(Candidate {
                input,
                group: group.index,
                first,
                last,
                bounds: group.bounds,
                other_bounds,
            });
        }
    }
    found.sort_unstable_by_key(|one| (one.input, one.group));
    Ok(Some(found))
}

/// Bounds of further columns, by input, column and row group; looked up once for each input.
struct OtherBounds<'a> {
    columns: Vec<(usize, &'a str)>,
    known: HashMap<usize, Vec<GroupBounds>>,
}

/// Of each row group, where they are known.
type GroupBounds = Vec<Option<[ArrayRef; 2]>>;

impl OtherBounds<'_> {
    /// Those of one row group; `None` when they would have to be read from its rows.
    fn of(&mut self, input: &Input, group: usize) -> Result<Option<Vec<PlacedBounds>>, MergeError> {
        if self.columns.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let found = match self.known.entry(input.index) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(vacant) => {
                let footer = input
                    .footer()
                    .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
                let columns = self.columns.iter();
                vacant.insert(
                    columns
                        .map(|(_, column)| footers::exact_bounds(&footer, column))
                        .collect(),
                )
            }
        };
        let of_group = |(place, _): &(usize, &str), bounds: &GroupBounds| {
            Some((*place, bounds.get(group)?.clone()?))
        };
        let pairs = self.columns.iter().zip(found.iter());
        Ok(pairs
            .map(|(column, bounds)| of_group(column, bounds))
            .collect())
    }
}

/// Whether a row group could be one of the output: columns, compression, bloom filters, size.
fn has_shape(rules: &Rules<'_>, input: &Input, group: usize) -> Result<bool, MergeError> {
    let row_group_rows = rules.options.row_group_rows.max(1);
    let footer = input
        .footer()
        .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    let group = footer.metadata().row_group(group);
    let rows = u64::try_from(group.num_rows()).unwrap_or(0);
    let is_by_us = footers::is_by_us(&footer);
    // The level of zstd is not in the file.
    let is_compressed_so = |chunk: &ColumnChunkMetaData| {
        let column = chunk.column_path().parts().first();
        let wanted = rules
            .options
            .compression_of(column.map_or("", String::as_str));
        parquet_compression(wanted).is_ok_and(|wanted| {
            std::mem::discriminant(&chunk.compression()) == std::mem::discriminant(&wanted)
                // So we store what compression would hardly make smaller.
                || is_by_us && chunk.compression() == ParquetCompression::UNCOMPRESSED
        })
    };
    let is_filtered_so = |chunk: &ColumnChunkMetaData| {
        chunk.bloom_filter_offset().is_some()
            || !has_bloom_filter(chunk.column_descr(), rules.options)
    };
    let is_small = |chunk: &ColumnChunkMetaData| {
        u64::try_from(chunk.compressed_size()).is_ok_and(|size| size <= rules.chunk_bytes)
    };
    Ok(rows >= rows_min(row_group_rows)
        && rows <= row_group_rows as u64
        && input.parquet_schema.root_schema().get_fields()
            == rules.united.parquet.root_schema().get_fields()
        && group
            .columns()
            .iter()
            .all(|chunk| is_compressed_so(chunk) && is_filtered_so(chunk) && is_small(chunk)))
}

/// Keeps the candidates whose rows are in order and begin and end where statistics say.
fn check_orders(
    rules: &Rules<'_>,
    inputs: &[Input],
    candidates: Vec<Candidate>,
    is_cancelled: &(dyn Fn() -> bool + Sync),
) -> Result<Vec<Candidate>, MergeError> {
    let Some(column) = rules.options.order_by.first() else {
        return Ok(Vec::new());
    };
    let next = AtomicUsize::new(0);
    let check = || {
        let mut sound = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(one) = candidates.get(index) else {
                return Ok(sound);
            };
            if is_cancelled() {
                return Err(MergeError::Cancelled);
            }
            let input = &inputs[one.input];
            let footer = input
                .footer()
                .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
            if is_ours(&footer, column) || is_in_order(input, one, column, rules)? {
                sound.push(index);
            }
        }
    };
    let mut sound = std::thread::scope(|scope| {
        let others: Vec<_> = (1..rules.options.thread_count.clamp(1, 2))
            .map(|_| scope.spawn(check))
            .collect();
        let mut sound = check()?;
        for other in others {
            // A panic of the decoder is caught where it happens; any other one leaves fewer to copy.
            sound.extend(other.join().unwrap_or_else(|_| Ok(Vec::new()))?);
        }
        Ok::<_, MergeError>(sound)
    })?;
    sound.sort_unstable();
    let mut sound = sound.into_iter().peekable();
    Ok(candidates
        .into_iter()
        .enumerate()
        .filter(|(index, _)| sound.next_if_eq(index).is_some())
        .map(|(_, one)| one)
        .collect())
}

/// Whether we wrote a file in this order.
fn is_ours(footer: &ArrowReaderMetadata, column: &SortColumn) -> bool {
    footers::is_by_us(footer)
        && footers::declares_order(footer.metadata(), std::slice::from_ref(column))
}

/// Reads the key column of one row group.
fn is_in_order(
    input: &Input,
    one: &Candidate,
    column: &SortColumn,
    rules: &Rules<'_>,
) -> Result<bool, MergeError> {
    let limits = super::decode::DecodeLimits {
        batch_bytes: 1 << 20,
        page_bytes: rules.chunk_bytes,
    };
    let (mut previous, mut sound) = (None, true);
    scan_groups(
        input,
        &column.name,
        Some(vec![one.group]),
        limits,
        |array| {
            let keys = ordered_integers(array, column.descending);
            let Some(keys) = keys.filter(|_| sound && array.null_count() == 0) else {
                sound = false;
                return Ok(());
            };
            let Some((first, last)) = keys.first().zip(keys.last()) else {
                return Ok(());
            };
            sound = previous.map_or(*first == one.first, |previous| previous <= *first)
                && keys.is_sorted();
            previous = Some(*last);
            Ok(())
        },
    )?;
    Ok(sound && previous == Some(one.last))
}
