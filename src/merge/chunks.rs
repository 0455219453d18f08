//! Column chunks that are copied undecoded. What is copied is read here for the last time before
//! its source is deleted, so every page is unpacked once and its checksum compared where it has one.

use std::{io::Write, sync::Arc};

use bytes::{Buf, Bytes, BytesMut, buf::Reader};
use parquet::{
    bloom_filter::Sbbf,
    column::writer::ColumnCloseResult,
    errors::{ParquetError, Result as ParquetResult},
    file::{
        metadata::{
            ColumnChunkMetaData, PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader,
            RowGroupMetaData,
        },
        page_index::offset_index::OffsetIndexMetaData,
        reader::{ChunkReader, Length},
        writer::SerializedRowGroupWriter,
    },
};

use super::{
    MergeError,
    checker::{Checker, Copied},
    context::Context,
    guard::{InputBytes, guarded},
    page_check::PageHeader,
    parts::Part,
    thrift,
};

/// Reads the column chunks of row groups that are copied. The last file stays open, because
/// row groups of one file mostly follow one another.
#[derive(Default)]
pub(super) struct ChunkSource {
    open: Option<(usize, InputBytes, Arc<ParquetMetaData>)>,
}

impl ChunkSource {
    /// Opens the input of a part, with its page index.
    pub(super) fn open(
        &mut self,
        context: &Context<'_>,
        part: &Part,
    ) -> Result<(InputBytes, Arc<ParquetMetaData>), MergeError> {
        if let Some((input, bytes, metadata)) = &self.open
            && *input == part.input
        {
            return Ok((bytes.clone(), Arc::clone(metadata)));
        }
        let input = &context.inputs[part.input];
        let (bytes, footer) = input
            .reopen()
            .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
        let footer = footer.metadata();
        // A page index that cannot be read, or not within the budget, is as good as none.
        let indexed = guarded(|| {
            check_index(&bytes, footer, context.shares.page_bytes)
                .ok_or("its page index is damaged")?;
            ParquetMetaDataReader::new()
                .with_page_index_policy(PageIndexPolicy::Optional)
                .parse_and_finish(&bytes)
                .map_err(|e| e.to_string())
        });
        let metadata = indexed.map_or_else(|_| Arc::clone(footer), Arc::new);
        let bytes = bytes.with_page_limit(context.shares.page_bytes);
        self.open = Some((part.input, bytes.clone(), Arc::clone(&metadata)));
        Ok((bytes, metadata))
    }
}

/// Whether a page index may be read: it is read as one piece, and makes room for as many pages as
/// it claims.
fn check_index(bytes: &InputBytes, footer: &ParquetMetaData, limit_bytes: u64) -> Option<()> {
    let (mut start, mut end, mut held_bytes) = (u64::MAX, 0, 0_u64);
    let chunks = footer
        .row_groups()
        .iter()
        .flat_map(RowGroupMetaData::columns);
    for chunk in chunks {
        let ranges = [
            (chunk.column_index_offset(), chunk.column_index_length()),
            (chunk.offset_index_offset(), chunk.offset_index_length()),
        ];
        for (offset, length) in ranges {
            let (Some(offset), Some(length)) = (offset, length) else {
                continue;
            };
            let (offset, length) = (u64::try_from(offset).ok()?, u64::try_from(length).ok()?);
            (start, end) = (start.min(offset), end.max(offset.checked_add(length)?));
            if length > limit_bytes {
                return None;
            }
            let index = bytes
                .get_bytes(offset, usize::try_from(length).ok()?)
                .ok()?;
            held_bytes = held_bytes.saturating_add(thrift::held_bytes(&index)?);
        }
    }
    (held_bytes.saturating_add(end.saturating_sub(start)) <= limit_bytes).then_some(())
}

/// Why a chunk was not copied.
pub(super) enum CopyError {
    /// The file at this place is to blame.
    Bad { input: usize, reason: String },
    /// It cannot be written.
    Encode(ParquetError),
}

/// Copies the column chunks of a row group. Pages are unpacked meanwhile or later: what turns out
/// bad is thrown away with the whole output.
pub(super) fn copy_chunks<W: Write + Send>(
    target: &mut SerializedRowGroupWriter<'_, W>,
    bytes: &InputBytes,
    checker: &mut Checker,
    metadata: &Arc<ParquetMetaData>,
    (input, group_index): (usize, usize),
) -> Result<(), CopyError> {
    for column in 0..metadata.row_group(group_index).num_columns() {
        let buffer = checker.buffer()?;
        let (read, close) = guarded(|| read_chunk(bytes, buffer, metadata, group_index, column))
            .map_err(|reason| bad(input, metadata.row_group(group_index), column, &reason))?;
        target
            .append_column(&read, close)
            .map_err(CopyError::Encode)?;
        checker.check(Copied {
            input,
            read,
            metadata: Arc::clone(metadata),
            group: group_index,
            column,
        })?;
    }
    Ok(())
}

/// A chunk that cannot be copied, by name.
pub(super) fn bad(
    input: usize,
    group: &RowGroupMetaData,
    column: usize,
    reason: &str,
) -> CopyError {
    let name = group.column(column).column_path().string();
    let reason = format!("column {name:?}: {reason}");
    CopyError::Bad { input, reason }
}

/// One column chunk, whose page headers are sound and fill it.
fn read_chunk(
    bytes: &InputBytes,
    buffer: BytesMut,
    metadata: &ParquetMetaData,
    group_index: usize,
    column: usize,
) -> Result<(ChunkBytes, ColumnCloseResult), String> {
    let group = metadata.row_group(group_index);
    let chunk = group.column(column);
    let start = chunk
        .dictionary_page_offset()
        .unwrap_or_else(|| chunk.data_page_offset());
    let start = u64::try_from(start).map_err(|e| e.to_string())?;
    let length = usize::try_from(chunk.compressed_size()).map_err(|e| e.to_string())?;
    let mut read = ChunkBytes {
        start,
        bytes: bytes
            .read_into(buffer, start, length)
            .map_err(|e| e.to_string())?,
        headers: Vec::new(),
    };
    let rows = u64::try_from(group.num_rows()).map_err(|e| e.to_string())?;
    read.headers = page_headers(&read.bytes, bytes)?;
    let places = page_places(&read)?;
    // An index of other pages than these would lead readers astray.
    let index = metadata.page_index_for_row_group(group_index);
    let offset_index = index
        .offset_index(column)
        .filter(|index| is_index_of(index, &places, rows));
    let column_index = index
        .column_index(column)
        .filter(|index| offset_index.is_some() && index.num_pages() == places.len() as u64);
    let close = ColumnCloseResult {
        bytes_written: length as u64,
        rows_written: rows,
        metadata: chunk.clone(),
        bloom_filter: bloom_filter(bytes, chunk)?,
        column_index: column_index.cloned(),
        offset_index: offset_index.cloned(),
    };
    Ok((read, close))
}

/// The bloom filter of a chunk; one that does not lie in the file, or that says nothing of its
/// length before it is read, is as good as none.
fn bloom_filter(bytes: &InputBytes, chunk: &ColumnChunkMetaData) -> Result<Option<Sbbf>, String> {
    let is_bounded = chunk
        .bloom_filter_length()
        .is_some_and(|length| u64::try_from(length).is_ok_and(|length| bytes.is_page(length)));
    if !is_bounded {
        return Ok(None);
    }
    Sbbf::read_from_column_chunk(chunk, bytes).map_err(|e| e.to_string())
}

/// Where a page starts, and how long it is with its header.
type PagePlace = (i64, i32);

/// The headers of the pages of a chunk, which they fill to the last byte.
fn page_headers(mut rest: &[u8], bytes: &InputBytes) -> Result<Vec<PageHeader>, String> {
    let mut headers = Vec::new();
    while !rest.is_empty() {
        bytes.check_page(rest).map_err(|e| e.to_string())?;
        let header = PageHeader::read(rest)
            .ok_or("a page header is damaged, or its page reaches beyond its column chunk")?;
        rest = &rest[header.header_bytes + header.stored_bytes..];
        headers.push(header);
    }
    Ok(headers)
}

/// The places of the pages of data.
fn page_places(read: &ChunkBytes) -> Result<Vec<PagePlace>, String> {
    let mut places = Vec::new();
    let mut at = read.start;
    for header in &read.headers {
        let length = header.header_bytes + header.stored_bytes;
        if header.is_data() {
            let place = i64::try_from(at).ok().zip(i32::try_from(length).ok());
            places.push(place.ok_or("a page is too large")?);
        }
        at += length as u64;
    }
    Ok(places)
}

/// Whether an index tells where these pages are.
fn is_index_of(index: &OffsetIndexMetaData, places: &[PagePlace], rows: u64) -> bool {
    let told = index.page_locations();
    told.len() == places.len()
        && told.iter().zip(places).all(|(told, (offset, length))| {
            (told.offset, told.compressed_page_size) == (*offset, *length)
        })
        && told.first().is_none_or(|first| first.first_row_index == 0)
        && told
            .windows(2)
            .all(|pair| pair[0].first_row_index < pair[1].first_row_index)
        && told
            .last()
            .is_none_or(|last| u64::try_from(last.first_row_index).is_ok_and(|row| row < rows))
}

/// The bytes of one column chunk, at their places in the file.
#[derive(Clone)]
pub(super) struct ChunkBytes {
    start: u64,
    pub(super) bytes: Bytes,
    pub(super) headers: Vec<PageHeader>,
}

impl ChunkBytes {
    /// Gives the memory back for the next chunk, unless somebody still reads in it.
    pub(super) fn recycle(self) -> BytesMut {
        self.bytes.try_into_mut().unwrap_or_default()
    }
}

impl Length for ChunkBytes {
    fn len(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

impl ChunkReader for ChunkBytes {
    type T = Reader<Bytes>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        let left = self.len().saturating_sub(start);
        Ok(self.get_bytes(start, usize::try_from(left)?)?.reader())
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let outside = || ParquetError::EOF("a page lies outside of its column chunk".into());
        let start = usize::try_from(start.checked_sub(self.start).ok_or_else(outside)?)?;
        let end = start
            .checked_add(length)
            .filter(|end| *end <= self.bytes.len())
            .ok_or_else(outside)?;
        Ok(self.bytes.slice(start..end))
    }
}
