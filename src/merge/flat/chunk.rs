//! A column chunk in the making: its pages, their index and its metadata.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use parquet::{
    basic::{BoundaryOrder, Compression, Encoding, PageType},
    column::{
        page::{CompressedPage, Page, PageWriter},
        writer::ColumnCloseResult,
    },
    errors::{ParquetError, Result as ParquetResult},
    file::{
        metadata::{
            ColumnChunkMetaData, ColumnIndexBuilder, OffsetIndexBuilder, PageEncodingStats,
        },
        reader::{ChunkReader, Length},
        statistics::Statistics,
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnDescPtr,
};

use super::{Tools, packing::put_levels};

/// A page is stored compressed when that saves more than this part of it.
const SAVED_PART_MIN: usize = 16;

/// A page's header and what its writer holds back, about.
const HEADER_BYTES: usize = 256;

/// What is known of a finished page.
pub(super) struct PageFacts {
    pub(super) rows: usize,
    pub(super) nulls: usize,
    /// `Some` for floating-point columns.
    pub(super) nans: Option<usize>,
    /// Smallest and largest value as the column index wants them; `None` without values.
    pub(super) range: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) encoding: Encoding,
    /// Bytes of texts, not counting their lengths.
    pub(super) text_bytes: Option<usize>,
}

/// Pages of one column and row group.
pub(super) struct Chunk {
    descr: ColumnDescPtr,
    compression: Compression,
    /// Whether pages are compressed, decided by the first one.
    is_compressed: Option<bool>,
    pages: Pages,
    column_index: ColumnIndexBuilder,
    offset_index: OffsetIndexBuilder,
    rows: usize,
    nulls: usize,
    nans: Option<usize>,
    text_bytes: Option<usize>,
    uncompressed_bytes: usize,
    page_counts: Vec<(Encoding, i32)>,
    is_ascending: bool,
    is_descending: bool,
}

/// Pages as they are stored, each in memory of its own: nothing is moved when they grow.
#[derive(Default)]
struct Pages {
    pages: Vec<Bytes>,
    bytes: usize,
}

/// A complete column chunk and what its footer will say.
pub(in crate::merge) struct FlatChunk {
    /// In the order of the file.
    pages: Vec<Bytes>,
    bytes: usize,
    pub(in crate::merge) close: ColumnCloseResult,
}

impl Chunk {
    pub(super) fn new(descr: ColumnDescPtr, compression: Compression) -> Self {
        let column_index = ColumnIndexBuilder::new(descr.physical_type());
        Self {
            descr,
            compression,
            is_compressed: (compression == Compression::UNCOMPRESSED).then_some(false),
            pages: Pages::default(),
            column_index,
            offset_index: OffsetIndexBuilder::new(),
            rows: 0,
            nulls: 0,
            nans: None,
            text_bytes: None,
            uncompressed_bytes: 0,
            page_counts: Vec::new(),
            is_ascending: true,
            is_descending: true,
        }
    }

    /// Bytes so far.
    pub(super) fn size_bytes(&self) -> usize {
        self.pages.bytes
    }

    pub(super) fn nulls(&self) -> usize {
        self.nulls
    }

    pub(super) fn nans(&self) -> Option<usize> {
        self.nans
    }

    /// Adds the page whose body is `body`. `follows` compares its range with the page before:
    /// whether it is not smaller, and whether it is not larger.
    pub(super) fn add_page(
        &mut self,
        facts: PageFacts,
        body: &[u8],
        follows: Option<(bool, bool)>,
        tools: &mut Compressing,
    ) -> Result<(), String> {
        let start = self.pages.bytes;
        let values = u32::try_from(facts.rows).map_err(|e| e.to_string())?;
        // Behind a dictionary there is little to compress, but later pages may go without.
        let may_decide = facts.encoding != Encoding::RLE_DICTIONARY && facts.rows > facts.nulls;
        self.write(body, may_decide, tools, |buf| Page::DataPage {
            buf,
            num_values: values,
            encoding: facts.encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        })?;
        let length = self.pages.bytes - start;
        self.offset_index.append_offset_and_size(
            i64::try_from(start).map_err(|e| e.to_string())?,
            i32::try_from(length).map_err(|e| e.to_string())?,
        );
        self.offset_index.append_row_count(i64::from(values));
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.offset_index
            .append_unencoded_byte_array_data_bytes(facts.text_bytes.map(count));
        let (low, high) = facts.range.unwrap_or_default();
        let is_null_page = facts.rows == facts.nulls;
        let (nulls, nans) = (count(facts.nulls), facts.nans.map(count));
        self.column_index
            .append(is_null_page, low, high, nulls, nans);
        if let Some((not_smaller, not_larger)) = follows {
            self.is_ascending &= not_smaller;
            self.is_descending &= not_larger;
        }
        self.rows += facts.rows;
        self.nulls += facts.nulls;
        add(&mut self.nans, facts.nans);
        add(&mut self.text_bytes, facts.text_bytes);
        match self
            .page_counts
            .iter_mut()
            .find(|(encoding, _)| *encoding == facts.encoding)
        {
            Some((_, count)) => *count += 1,
            None => self.page_counts.push((facts.encoding, 1)),
        }
        Ok(())
    }

    /// Compresses and writes one page. `may_decide`: later pages are like this one, so that it
    /// says whether compression pays.
    fn write(
        &mut self,
        body: &[u8],
        may_decide: bool,
        tools: &mut Compressing,
        page: impl FnOnce(Bytes) -> Page,
    ) -> Result<(), String> {
        let (memory, length) = self.stored(body, may_decide, tools)?;
        let stored = memory.slice(..length);
        let mut target = TrackedWrite::new(Vec::with_capacity(length + HEADER_BYTES));
        let written = SerializedPageWriter::new(&mut target)
            .write_page(CompressedPage::new(page(stored), body.len()))
            .map_err(|e| e.to_string())?;
        let whole = target.into_inner().map_err(|e| e.to_string())?;
        self.pages.bytes += whole.len();
        self.pages.pages.push(whole.into());
        // Nobody else reads in it any more, so that this is the same memory.
        tools.packed = memory.into();
        self.uncompressed_bytes += written.uncompressed_size;
        Ok(())
    }

    /// The body as it is stored, at the start of some memory, and its length.
    fn stored(
        &mut self,
        body: &[u8],
        may_decide: bool,
        tools: &mut Compressing,
    ) -> Result<(Bytes, usize), String> {
        let mut packed = std::mem::take(&mut tools.packed);
        if self.is_compressed != Some(false) {
            let length = tools.codecs.compress(self.compression, body, &mut packed)?;
            let pays = !may_decide || length < body.len() - body.len() / SAVED_PART_MIN;
            if *self.is_compressed.get_or_insert(pays) {
                return Ok((packed.into(), length));
            }
        }
        packed.clear();
        packed.extend_from_slice(body);
        Ok((packed.into(), body.len()))
    }

    /// Ends the chunk. `dictionary`: the values that pages refer to, as one page, and their number.
    pub(super) fn finish(
        mut self,
        dictionary: Option<(&[u8], usize)>,
        statistics: Option<Statistics>,
        tools: &mut Compressing,
    ) -> Result<FlatChunk, String> {
        let data = std::mem::take(&mut self.pages);
        let mut encoding_stats: Vec<PageEncodingStats> = Vec::new();
        let mut encodings = vec![Encoding::RLE];
        if let Some((values, count)) = dictionary {
            let count = u32::try_from(count).map_err(|e| e.to_string())?;
            self.write(values, false, tools, |buf| Page::DictionaryPage {
                buf,
                num_values: count,
                encoding: Encoding::PLAIN,
                is_sorted: false,
            })?;
            encodings.push(Encoding::PLAIN);
            encoding_stats.push(PageEncodingStats {
                page_type: PageType::DICTIONARY_PAGE,
                encoding: Encoding::PLAIN,
                count: 1,
            });
        }
        for (encoding, count) in &self.page_counts {
            encodings.push(*encoding);
            encoding_stats.push(PageEncodingStats {
                page_type: PageType::DATA_PAGE,
                encoding: *encoding,
                count: *count,
            });
        }
        let Pages {
            mut pages,
            bytes: dictionary_bytes,
        } = std::mem::take(&mut self.pages);
        pages.extend(data.pages);
        let bytes = dictionary_bytes + data.bytes;
        let signed = |bytes: usize| i64::try_from(bytes).map_err(|e| e.to_string());
        let compression = if self.is_compressed == Some(true) {
            self.compression
        } else {
            Compression::UNCOMPRESSED
        };
        let mut metadata = ColumnChunkMetaData::builder(self.descr)
            .set_compression(compression)
            .set_encodings(encodings)
            .set_page_encoding_stats(encoding_stats)
            .set_total_compressed_size(signed(bytes)?)
            .set_total_uncompressed_size(signed(self.uncompressed_bytes)?)
            .set_num_values(signed(self.rows)?)
            .set_unencoded_byte_array_data_bytes(self.text_bytes.map(signed).transpose()?)
            .set_data_page_offset(0)
            .set_dictionary_page_offset(None);
        if let Some(statistics) = statistics {
            metadata = metadata.set_statistics(statistics);
        }
        self.column_index
            .set_boundary_order(match (self.is_ascending, self.is_descending) {
                (true, _) => BoundaryOrder::ASCENDING,
                (false, true) => BoundaryOrder::DESCENDING,
                (false, false) => BoundaryOrder::UNORDERED,
            });
        let close = ColumnCloseResult {
            bytes_written: bytes as u64,
            rows_written: self.rows as u64,
            metadata: metadata.build().map_err(|e| e.to_string())?,
            bloom_filter: None,
            column_index: Some(self.column_index.build().map_err(|e| e.to_string())?),
            offset_index: Some(self.offset_index.build()),
        };
        let close = close
            .update_dictionary_location(dictionary_bytes)
            .map_err(|e| e.to_string())?;
        Ok(FlatChunk {
            pages,
            bytes,
            close,
        })
    }
}

/// Starts the body of a page: its levels, if the column is optional.
pub(super) fn start_body(descr: &ColumnDescPtr, rows: usize, present: &[u8], body: &mut Vec<u8>) {
    body.clear();
    if descr.max_def_level() > 0 {
        put_levels(rows, present, body);
    }
}

/// What compresses, apart from the rest of [`Tools`], so that both can be used at once.
#[derive(Default)]
pub(super) struct Compressing {
    pub(super) codecs: super::codec::Codecs,
    pub(super) packed: Vec<u8>,
}

impl Compressing {
    /// What compression leaves of these bytes: 1 when it leaves all of them.
    pub(super) fn part_left(&mut self, compression: Compression, bytes: &[u8]) -> f64 {
        let mut packed = std::mem::take(&mut self.packed);
        let done = self.codecs.compress(compression, bytes, &mut packed);
        let left = done.unwrap_or(bytes.len());
        self.packed = packed;
        (left as f64 / bytes.len().max(1) as f64).min(1.0)
    }
}

fn add(sum: &mut Option<usize>, more: Option<usize>) {
    if let Some(more) = more {
        *sum = Some(sum.unwrap_or(0) + more);
    }
}

impl FlatChunk {
    /// Bytes in memory.
    pub(in crate::merge) fn size_bytes(&self) -> usize {
        self.bytes
    }
}

impl Length for FlatChunk {
    fn len(&self) -> u64 {
        self.bytes as u64
    }
}

/// Reads one page after the other.
pub(in crate::merge) struct PagesRead {
    pages: std::vec::IntoIter<Bytes>,
    page: Bytes,
}

impl Read for PagesRead {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        while self.page.is_empty() {
            let Some(next) = self.pages.next() else {
                return Ok(0);
            };
            self.page = next;
        }
        let count = target.len().min(self.page.len());
        self.page
            .split_to(count)
            .copy_to_slice(&mut target[..count]);
        Ok(count)
    }
}

impl ChunkReader for FlatChunk {
    type T = PagesRead;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        if start > 0 {
            return Err(ParquetError::General(
                "a chunk is only read as a whole".into(),
            ));
        }
        Ok(PagesRead {
            pages: self.pages.clone().into_iter(),
            page: Bytes::new(),
        })
    }

    fn get_bytes(&self, _start: u64, _length: usize) -> ParquetResult<Bytes> {
        Err(ParquetError::General(
            "a chunk is only read as a whole".into(),
        ))
    }
}

impl Tools {
    /// The parts that a column uses at once.
    pub(super) fn parts(&mut self) -> (&mut super::Scratch, &mut Compressing) {
        (&mut self.scratch, &mut self.compressing)
    }
}
