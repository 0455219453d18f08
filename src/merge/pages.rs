//! Pages on their way to the decoder, which makes room for whatever their counts claim. Here the
//! counts are compared with the bytes of the page and with what one batch may take.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arrow::datatypes::DataType;
use bytes::Bytes;
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{
            ArrowReaderMetadata, ParquetRecordBatchReader, RowGroups, RowSelection, RowSelector,
        },
        parquet_to_arrow_field_levels,
    },
    basic::{Encoding, Type as PhysicalType},
    column::page::{Page, PageIterator, PageMetadata, PageReader},
    errors::{ParquetError, Result as ParquetResult},
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData},
        serialized_reader::SerializedPageReader,
    },
    schema::types::ColumnDescPtr,
};

use super::{delta::read_lengths, guard::InputBytes};

/// Room for the levels of one value of a list.
const LEVELS_BYTES: u64 = 4;
/// Room that the decoder makes for the lengths of one delta-encoded text.
const LENGTHS_BYTES: u64 = 8;

/// What one reader reads, and how.
pub(super) struct Wanted {
    /// Row groups, in order.
    pub(super) groups: Vec<usize>,
    /// Which columns.
    pub(super) columns: ProjectionMask,
    /// Rows in a batch, at most.
    pub(super) batch_rows: usize,
    /// Rows that are passed over first.
    pub(super) skip_rows: usize,
    /// Bytes that the texts of one batch, or the counts of one page, may take.
    pub(super) limit_bytes: u64,
}

/// A reader, and what it found out about its batches.
pub(super) struct CheckedReader {
    pub(super) reader: ParquetRecordBatchReader,
    fitting: Arc<AtomicUsize>,
}

impl CheckedReader {
    /// After an error: with so many rows in a batch, fewer than were wanted, it would not have
    /// come to it.
    pub(super) fn fitting_rows(&self) -> Option<usize> {
        Some(self.fitting.load(Ordering::Relaxed)).filter(|rows| *rows < usize::MAX)
    }
}

/// Builds a reader whose pages are checked.
pub(super) fn read_checked(
    bytes: &InputBytes,
    footer: &ArrowReaderMetadata,
    wanted: &Wanted,
) -> ParquetResult<CheckedReader> {
    // Types as the footer was read with, which may be others than the usual ones.
    let levels = parquet_to_arrow_field_levels(
        footer.parquet_schema(),
        wanted.columns.clone(),
        Some(footer.schema().fields()),
    )?;
    let fitting = Arc::new(AtomicUsize::new(usize::MAX));
    let shared = footer.parquet_schema().columns().iter().enumerate();
    let shared = shared.map(|(leaf, _)| {
        let root = footer.parquet_schema().get_column_root_idx(leaf);
        matches!(
            footer.schema().field(root).data_type(),
            DataType::Utf8View | DataType::BinaryView | DataType::Dictionary(..)
        )
    });
    let source = Source {
        shared: shared.collect(),
        bytes: Arc::new(bytes.clone()),
        metadata: Arc::clone(footer.metadata()),
        groups: wanted.groups.clone(),
        limits: Limits {
            batch_rows: wanted.batch_rows,
            bytes: wanted.limit_bytes,
            fitting: Arc::clone(&fitting),
        },
    };
    let row_count = source.num_rows();
    let selection = (wanted.skip_rows > 0).then(|| {
        let skipped = wanted.skip_rows.min(row_count);
        RowSelection::from(vec![
            RowSelector::skip(skipped),
            RowSelector::select(row_count - skipped),
        ])
    });
    let batch_rows = wanted.batch_rows.min(row_count.max(1));
    let reader =
        ParquetRecordBatchReader::try_new_with_row_groups(&levels, &source, batch_rows, selection)?;
    Ok(CheckedReader { reader, fitting })
}

#[derive(Clone)]
struct Limits {
    batch_rows: usize,
    bytes: u64,
    fitting: Arc<AtomicUsize>,
}

/// The wanted row groups of a file.
struct Source {
    bytes: Arc<InputBytes>,
    metadata: Arc<ParquetMetaData>,
    groups: Vec<usize>,
    /// For each column whether its rows share the texts of its dictionaries.
    shared: Vec<bool>,
    limits: Limits,
}

impl RowGroups for Source {
    fn num_rows(&self) -> usize {
        let rows = |group: &RowGroupMetaData| usize::try_from(group.num_rows()).unwrap_or(0);
        self.row_groups().map(rows).fold(0, usize::saturating_add)
    }

    fn column_chunks(&self, column: usize) -> ParquetResult<Box<dyn PageIterator>> {
        Ok(Box::new(Chunks {
            bytes: Arc::clone(&self.bytes),
            metadata: Arc::clone(&self.metadata),
            groups: self.groups.clone().into_iter(),
            column,
            is_shared: self.shared.get(column) == Some(&true),
            limits: self.limits.clone(),
        }))
    }

    fn row_groups(&self) -> Box<dyn Iterator<Item = &RowGroupMetaData> + '_> {
        let groups = self.groups.iter();
        Box::new(groups.map(|&group| self.metadata.row_group(group)))
    }

    fn metadata(&self) -> &ParquetMetaData {
        &self.metadata
    }
}

/// One column of these row groups.
struct Chunks {
    bytes: Arc<InputBytes>,
    metadata: Arc<ParquetMetaData>,
    groups: std::vec::IntoIter<usize>,
    column: usize,
    is_shared: bool,
    limits: Limits,
}

impl Iterator for Chunks {
    type Item = ParquetResult<Box<dyn PageReader>>;

    fn next(&mut self) -> Option<Self::Item> {
        let group = self.metadata.row_group(self.groups.next()?);
        let chunk = group.column(self.column);
        let rows = usize::try_from(group.num_rows()).unwrap_or(0);
        let limits = self.limits.clone();
        let pages = CheckedPages::new(&self.bytes, chunk, rows, limits, self.is_shared);
        Some(pages.map(|pages| Box::new(pages) as Box<dyn PageReader>))
    }
}

impl PageIterator for Chunks {}

/// The pages of one column chunk.
struct CheckedPages {
    pages: SerializedPageReader<InputBytes>,
    check: PageCheck,
}

impl CheckedPages {
    fn new(
        bytes: &Arc<InputBytes>,
        chunk: &ColumnChunkMetaData,
        rows: usize,
        limits: Limits,
        is_shared: bool,
    ) -> ParquetResult<Self> {
        Ok(Self {
            pages: SerializedPageReader::new(Arc::clone(bytes), chunk, rows, None)?,
            check: PageCheck {
                column: chunk.column_descr_ptr(),
                limits,
                values_left: u64::try_from(chunk.num_values()).unwrap_or(0),
                longest_bytes: 0,
                is_shared,
            },
        })
    }
}

/// The pages of one column chunk of numbers, whose counts may take so much memory.
pub(super) fn checked_pages(
    bytes: &Arc<InputBytes>,
    chunk: &ColumnChunkMetaData,
    rows: usize,
    limit_bytes: u64,
) -> ParquetResult<Box<dyn PageReader>> {
    let limits = Limits {
        batch_rows: 1,
        bytes: limit_bytes,
        fitting: Arc::default(),
    };
    Ok(Box::new(CheckedPages::new(
        bytes, chunk, rows, limits, false,
    )?))
}

impl Iterator for CheckedPages {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for CheckedPages {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        let page = self.pages.get_next_page()?;
        if let Some(page) = &page {
            self.check.check(page)?;
        }
        Ok(page)
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        self.pages.peek_next_page()
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        if let Some(page) = self.pages.peek_next_page()? {
            let values = page.num_levels.filter(|_| !page.is_dict).unwrap_or(0);
            self.check.pass_values(values as u64)?;
        }
        self.pages.skip_next_page()
    }

    fn supports_deferred_dictionary(&self) -> bool {
        self.pages.supports_deferred_dictionary()
    }

    fn take_deferred_dictionary(&mut self) -> ParquetResult<Option<Page>> {
        let page = self.pages.take_deferred_dictionary()?;
        if let Some(page) = &page {
            self.check.check(page)?;
        }
        Ok(page)
    }

    fn at_record_boundary(&mut self) -> ParquetResult<bool> {
        self.pages.at_record_boundary()
    }
}

struct PageCheck {
    column: ColumnDescPtr,
    limits: Limits,
    /// Values that the footer promises beyond those of the pages passed.
    values_left: u64,
    /// The longest text of the dictionary.
    longest_bytes: u64,
    /// Rows take no memory for texts of the dictionary.
    is_shared: bool,
}

impl PageCheck {
    fn check(&mut self, page: &Page) -> ParquetResult<()> {
        match page {
            Page::DictionaryPage {
                buf, num_values, ..
            } => self.check_dictionary(buf, u64::from(*num_values)),
            Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                ..
            } => {
                let count = u64::from(*num_values);
                self.pass_values(count)?;
                let levels = [
                    (self.column.max_rep_level(), *rep_level_encoding),
                    (self.column.max_def_level(), *def_level_encoding),
                ];
                self.check_data(*encoding, count, || after_levels(buf, count, levels))
            }
            Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                def_levels_byte_len,
                rep_levels_byte_len,
                ..
            } => {
                let count = u64::from(*num_values);
                self.pass_values(count)?;
                let levels = u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len);
                let start = usize::try_from(levels)?;
                self.check_data(*encoding, count, || buf.get(start..))
            }
        }
    }

    fn error(&self, what: &str) -> ParquetError {
        ParquetError::General(format!("column {:?}: {what}", self.column.path().string()))
    }

    fn pass_values(&mut self, count: u64) -> ParquetResult<()> {
        self.values_left = self
            .values_left
            .checked_sub(count)
            .ok_or_else(|| self.error("its pages claim more values than its footer"))?;
        let is_list = self.column.max_rep_level() > 0;
        if is_list && count.saturating_mul(LEVELS_BYTES) > self.limits.bytes {
            return Err(self.error(&format!(
                "a page claims {count} values of lists, too many for the memory budget; if the \
                 file is sound, raise worker.memory_budget"
            )));
        }
        Ok(())
    }

    fn check_dictionary(&mut self, buf: &Bytes, count: u64) -> ParquetResult<()> {
        let entry_bits = match self.column.physical_type() {
            PhysicalType::BOOLEAN => 1,
            PhysicalType::INT32 | PhysicalType::FLOAT | PhysicalType::BYTE_ARRAY => 32,
            PhysicalType::INT64 | PhysicalType::DOUBLE => 64,
            PhysicalType::INT96 => 96,
            PhysicalType::FIXED_LEN_BYTE_ARRAY => {
                8 * u64::try_from(self.column.type_length()).unwrap_or(0)
            }
        };
        if count.saturating_mul(entry_bits.max(1)) > 8 * buf.len() as u64 {
            return Err(self.error(&format!(
                "a dictionary claims {count} entries in {} bytes",
                buf.len()
            )));
        }
        if self.column.physical_type() == PhysicalType::BYTE_ARRAY {
            self.longest_bytes = longest_text(buf);
        }
        Ok(())
    }

    fn check_data<'a>(
        &self,
        encoding: Encoding,
        count: u64,
        values: impl FnOnce() -> Option<&'a [u8]>,
    ) -> ParquetResult<()> {
        let longest_bytes = match encoding {
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY if self.is_shared => {
                return Ok(());
            }
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY => self.longest_bytes,
            Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY => {
                if count.saturating_mul(LENGTHS_BYTES) > self.limits.bytes {
                    return Err(self.error(&format!(
                        "a page claims {count} texts, too many for the memory budget; if the \
                         file is sound, raise worker.memory_budget"
                    )));
                }
                values()
                    .and_then(|values| longest_delta(values, encoding, count))
                    .ok_or_else(|| self.error("the lengths of a page's texts are damaged"))?
            }
            _ => return Ok(()),
        };
        let fitting = usize::try_from(self.limits.bytes / longest_bytes.max(1))
            .unwrap_or(usize::MAX)
            .max(1);
        if fitting < self.limits.batch_rows {
            self.limits.fitting.fetch_min(fitting, Ordering::Relaxed);
            return Err(self.error(&format!(
                "texts of {longest_bytes} bytes are too long for {} rows at a time",
                self.limits.batch_rows
            )));
        }
        Ok(())
    }
}

/// Bytes of the longest text of a dictionary, as far as it is sound.
fn longest_text(mut buf: &[u8]) -> u64 {
    let mut longest = 0;
    while let Some((length, rest)) = buf.split_first_chunk() {
        let length = u32::from_le_bytes(*length);
        let Some(rest) = usize::try_from(length).ok().and_then(|at| rest.get(at..)) else {
            break;
        };
        longest = longest.max(u64::from(length));
        buf = rest;
    }
    longest
}

/// Bytes of the longest of `count` delta-encoded texts. Their lengths make room for as many
/// values as they claim, which are no more than those of the page.
fn longest_delta(values: &[u8], encoding: Encoding, count: u64) -> Option<u64> {
    let mut longest = 0;
    if encoding == Encoding::DELTA_LENGTH_BYTE_ARRAY {
        read_lengths(values, count, |length| {
            longest = longest.max(u64::try_from(length).ok()?);
            Some(())
        })?;
        return Some(longest);
    }
    let mut prefixes = Vec::new();
    let end = read_lengths(values, count, |prefix| {
        prefixes.push(u64::try_from(prefix).ok()?);
        Some(())
    })?;
    let mut prefixes = prefixes.into_iter();
    let mut previous = 0;
    read_lengths(values.get(end..)?, count, |suffix| {
        let prefix: u64 = prefixes.next()?;
        if prefix > previous {
            return None;
        }
        previous = prefix + u64::try_from(suffix).ok()?;
        longest = longest.max(previous);
        Some(())
    })?;
    prefixes.next().is_none().then_some(longest)
}

/// What follows the levels of a first version's page.
fn after_levels(buf: &[u8], count: u64, levels: [(i16, Encoding); 2]) -> Option<&[u8]> {
    let mut rest = buf;
    for (level_max, encoding) in levels {
        if level_max <= 0 {
            continue;
        }
        #[expect(deprecated, reason = "old files have it")]
        let length = if encoding == Encoding::BIT_PACKED {
            let width = u64::from(i16::BITS - level_max.leading_zeros());
            count.checked_mul(width)?.div_ceil(8)
        } else {
            let (length, behind) = rest.split_first_chunk()?;
            rest = behind;
            u64::from(u32::from_le_bytes(*length))
        };
        rest = rest.get(usize::try_from(length).ok()?..)?;
    }
    Some(rest)
}
