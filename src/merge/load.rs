//! Inputs that are not in order, decoded and sorted in memory as wholes.
//!
//! Keys come first and give the order; then a few columns at a time are decoded and written
//! in that order. So hardly more than the rows themselves is in memory, the rows of a column
//! are in the cache while they are moved, and batches can go as soon as they were merged.

use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, RecordBatch};
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ArrowReaderMetadata},
    file::reader::{ChunkReader, Length},
};

use super::{
    MergeError,
    context::{Context, Stop},
    decode::{Holder, groups_of, places_of, with_types},
    guard::{InputBytes, guarded},
    inputs::Input,
    keys::{KeySpace, RowRef},
    pages::{Wanted, read_checked},
    parts::Part,
    race::Rank,
    sorted_columns::SortedColumns,
};

/// Columns are decoded together as long as they take no more bytes.
const TOGETHER_BYTES: u64 = 2 << 20;
/// A file that is read as a whole when it is sorted together with others.
const HELD_FILE_BYTES_MAX: u64 = 256 << 10;

/// Rows in order.
pub(super) struct SortedRows<K: KeySpace> {
    /// Each of up to [`BATCH_ROWS_MAX`](super::decode::BATCH_ROWS_MAX) rows.
    pub(super) batches: Vec<RecordBatch>,
    pub(super) keys: K::Block,
    pub(super) rank: Rank,
    /// The rank of each row, when they are of several inputs.
    pub(super) ranks: Option<Vec<Rank>>,
    pub(super) row_bytes: u64,
}

/// One input on its way into memory.
struct Loading<'a> {
    part: usize,
    input: &'a Input,
    limit_bytes: u64,
    /// The file, unless others are loaded with it: then it is opened for each look.
    bytes: Option<InputBytes>,
    footer: ArrowReaderMetadata,
    groups: Vec<usize>,
    /// For each united column its place in the file.
    places: Vec<Option<usize>>,
    holder: Holder,
}

/// Decodes and sorts inputs as a whole. `parts` are in the order that decides between equal rows;
/// with more than `limit_bytes` they are not what their footers promised.
pub(super) fn load_sorted<K: KeySpace>(
    context: &Context<'_>,
    space: &K,
    parts: &[usize],
    limit_bytes: u64,
) -> Result<SortedRows<K>, Stop> {
    let too_large = || Stop::Misled {
        inputs: parts.to_vec(),
        too_large: true,
    };
    let mut loading: Vec<Loading<'_>> = Vec::with_capacity(parts.len());
    let mut part_of_chunk: Vec<usize> = Vec::new();
    for &part in parts {
        let one = match loading.last() {
            Some(before) if before.input.index == context.parts[part].input => {
                before.other_part(context, part)?
            }
            _ => Loading::open(context, part, parts.len() == 1)?,
        };
        part_of_chunk.extend(one.groups.iter().map(|_| part));
        loading.push(one);
    }
    // Key columns of all rows, chunk by chunk.
    let places = &context.sort_places;
    let decoded = decode(context, &mut loading, places)?;
    let mut blocks = Vec::with_capacity(part_of_chunk.len());
    for chunk in 0..part_of_chunk.len() {
        let columns: Vec<ArrayRef> = decoded
            .iter()
            .map(|column| ArrayRef::clone(&column[chunk]))
            .collect();
        blocks.push(
            space
                .encode(&columns)
                .map_err(|reason| context.invariant("ORDER-KEPT", reason))?,
        );
    }
    let key_bytes: u64 = blocks.iter().map(|block| space.size_bytes(block)).sum();
    if key_bytes > limit_bytes {
        return Err(too_large());
    }
    let (keys, order) = space.sort(blocks);
    let groups = groups_of_columns(context, &loading, order.len());
    let all_bytes: u64 = groups.iter().map(|(_, bytes)| bytes).sum();
    let row_bytes = all_bytes / order.len().max(1) as u64;
    let mut done = SortedColumns::new(context, &order, row_bytes);
    for (&place, chunks) in places.iter().zip(decoded) {
        done.add(place, &chunks)?;
    }
    for (together, _) in groups {
        if context.control.is_cancelled() {
            return Err(MergeError::Cancelled.into());
        }
        let decoded = decode(context, &mut loading, &together)?;
        for (&place, chunks) in together.iter().zip(decoded) {
            done.add(place, &chunks)?;
        }
        if done.bytes() > limit_bytes {
            return Err(too_large());
        }
    }
    context
        .control
        .rows_read
        .fetch_add(order.len() as u64, Ordering::Relaxed);
    let rank_of = |at: &RowRef| Rank::of_part(part_of_chunk[at.batch as usize]);
    Ok(SortedRows {
        keys,
        rank: Rank::of_part(parts.first().copied().unwrap_or(0)),
        ranks: (parts.len() > 1).then(|| order.iter().map(rank_of).collect()),
        row_bytes: done.row_bytes(),
        batches: done.finish()?,
    })
}

fn own_groups(
    footer: &ArrowReaderMetadata,
    part: &Part,
    input: &Input,
) -> Result<Vec<usize>, Stop> {
    let groups = groups_of(footer, part);
    let rows = groups
        .iter()
        .map(|group| footer.metadata().row_group(*group).num_rows());
    if u64::try_from(rows.sum::<i64>()) != Ok(part.row_count) {
        return Err(input.bad("its footer changed while it was merged").into());
    }
    Ok(groups)
}

/// A small file as a whole, a large one as it is if it is alone: else too many would be open.
fn hold(bytes: InputBytes, is_alone: bool) -> Result<Option<InputBytes>, String> {
    if is_alone {
        return Ok(Some(bytes));
    }
    if bytes.len() > HELD_FILE_BYTES_MAX {
        return Ok(None);
    }
    let length = usize::try_from(bytes.len()).map_err(|e| e.to_string())?;
    let whole = bytes.get_bytes(0, length).map_err(|e| e.to_string())?;
    Ok(Some(InputBytes::copy(whole)))
}

impl<'a> Loading<'a> {
    fn open(context: &Context<'a>, index: usize, is_alone: bool) -> Result<Self, Stop> {
        let part = &context.parts[index];
        let input = &context.inputs[part.input];
        let (bytes, footer) = input.reopen()?;
        let groups = own_groups(&footer, part, input)?;
        Ok(Self {
            part: index,
            input,
            limit_bytes: context.shares.page_bytes,
            bytes: hold(bytes, is_alone)
                .map_err(|reason| input.bad(reason))?
                .map(|bytes| bytes.with_page_limit(context.shares.page_bytes)),
            places: places_of(&footer, &context.work),
            footer: with_types(&footer, &context.work).map_err(|reason| input.bad(reason))?,
            groups,
            holder: Holder::new(&context.work),
        })
    }

    /// Another part of the same input, whose footer is in memory once.
    fn other_part(&self, context: &Context<'a>, index: usize) -> Result<Self, Stop> {
        Ok(Self {
            part: index,
            input: self.input,
            limit_bytes: self.limit_bytes,
            bytes: self.bytes.clone(),
            places: self.places.clone(),
            groups: own_groups(&self.footer, &context.parts[index], self.input)?,
            footer: self.footer.clone(),
            holder: Holder::new(&context.work),
        })
    }

    /// Some united columns of one row group.
    fn decode(&mut self, group: usize, columns: &[usize]) -> Result<Vec<ArrayRef>, Stop> {
        let rows = self.footer.metadata().row_group(group).num_rows();
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        let own: Vec<usize> = columns
            .iter()
            .filter_map(|column| self.places[*column])
            .collect();
        let batch = self.read(group, rows, &own)?;
        // The file's order of columns is not that of the united schema.
        let mut sorted = own.clone();
        sorted.sort_unstable();
        let mut held = Vec::with_capacity(columns.len());
        for &column in columns {
            let array = self.places[column].and_then(|place| {
                let index = sorted.binary_search(&place).ok()?;
                Some(batch.as_ref()?.column(index))
            });
            held.push(self.holder.hold(self.input, column, array, rows)?);
        }
        Ok(held)
    }
}

impl Loading<'_> {
    /// Some of the file's columns of one row group, as one batch.
    fn read(&self, group: usize, rows: usize, own: &[usize]) -> Result<Option<RecordBatch>, Stop> {
        if own.is_empty() {
            return Ok(None);
        }
        let bad = |reason| self.input.bad(format!("its rows cannot be read: {reason}"));
        let wanted = Wanted {
            groups: vec![group],
            columns: ProjectionMask::roots(self.footer.parquet_schema(), own.iter().copied()),
            batch_rows: rows,
            skip_rows: 0,
            limit_bytes: self.limit_bytes,
        };
        let bytes = match &self.bytes {
            Some(bytes) => bytes.clone(),
            None => self.input.reopen_bytes()?.with_page_limit(self.limit_bytes),
        };
        let mut checked =
            guarded(|| read_checked(&bytes, &self.footer, &wanted).map_err(|e| e.to_string()))
                .map_err(bad)?;
        let read = guarded(|| {
            let reader = &mut checked.reader;
            let batch = reader.next().transpose().map_err(|e| e.to_string())?;
            let rows_read = batch.as_ref().map_or(0, RecordBatch::num_rows);
            if rows_read != rows || reader.next().is_some() {
                return Err(format!(
                    "the footer promises {rows} rows in row group {group}, its pages hold other ones"
                ));
            }
            Ok(batch)
        });
        match read {
            Ok(batch) => Ok(batch),
            // In smaller batches it may do.
            Err(_) if checked.fitting_rows().is_some() => Err(Stop::Misled {
                inputs: vec![self.part],
                too_large: true,
            }),
            Err(reason) => Err(bad(reason).into()),
        }
    }
}

/// Decodes some columns of all inputs: for each its chunks, one for each row group.
fn decode(
    context: &Context<'_>,
    loading: &mut [Loading<'_>],
    columns: &[usize],
) -> Result<Vec<Vec<ArrayRef>>, Stop> {
    let mut decoded: Vec<Vec<ArrayRef>> = columns.iter().map(|_| Vec::new()).collect();
    if columns.is_empty() {
        return Ok(decoded);
    }
    for one in loading {
        for group in one.groups.clone() {
            if context.control.is_cancelled() {
                return Err(MergeError::Cancelled.into());
            }
            let arrays = one.decode(group, columns)?;
            for (column, array) in decoded.iter_mut().zip(arrays) {
                column.push(array);
            }
        }
    }
    Ok(decoded)
}

/// The columns that are no keys, so many together as memory allows, and their bytes.
fn groups_of_columns(
    context: &Context<'_>,
    loading: &[Loading<'_>],
    rows: usize,
) -> Vec<(Vec<usize>, u64)> {
    let mut groups: Vec<(Vec<usize>, u64)> = Vec::new();
    for (index, field) in context.work.schema.fields().iter().enumerate() {
        if context.sort_places.contains(&index) {
            continue;
        }
        let width = field.data_type().primitive_width();
        let own_bytes = match width {
            Some(width) => (width * rows) as u64,
            // Whatever it is: what the files hold of it.
            None => loading.iter().map(|one| one.stored_bytes(index)).sum(),
        };
        match groups.last_mut() {
            Some((columns, bytes)) if bytes.saturating_add(own_bytes) <= TOGETHER_BYTES => {
                columns.push(index);
                *bytes += own_bytes;
            }
            _ => groups.push((vec![index], own_bytes)),
        }
    }
    groups
}

impl Loading<'_> {
    fn stored_bytes(&self, column: usize) -> u64 {
        let Some(place) = self.places[column] else {
            return 0;
        };
        let metadata = self.footer.metadata();
        let descr = self.footer.parquet_schema();
        let groups = self.groups.iter().map(|group| {
            let columns = metadata.row_group(*group).columns().iter().enumerate();
            let own = columns.filter(|(leaf, _)| descr.get_column_root_idx(*leaf) == place);
            own.map(|(_, chunk)| u64::try_from(chunk.uncompressed_size()).unwrap_or(0))
                .sum::<u64>()
        });
        groups.sum()
    }
}
