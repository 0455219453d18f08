//! Pages on their way to the decoder, which makes room for whatever their counts claim.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arrow::datatypes::DataType;
use parquet::{
    arrow::{
        ProjectionMask,
        arrow_reader::{
            ArrowReaderMetadata, ParquetRecordBatchReader, RowGroups, RowSelection, RowSelector,
        },
        parquet_to_arrow_field_levels,
    },
    column::page::{Page, PageIterator, PageMetadata, PageReader},
    errors::Result as ParquetResult,
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData},
        serialized_reader::SerializedPageReader,
    },
};

use super::{
    guard::InputBytes,
    page_counts::{Limits, PageCheck},
};

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
