//! Decoding an input, batch by batch, into the united schema.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, atomic::Ordering},
};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::{DataType, SchemaRef},
};
use parquet::{
    arrow::{ProjectionMask, arrow_reader::ArrowReaderMetadata},
    basic::Type as PhysicalType,
    file::metadata::{ColumnChunkMetaData, ParquetMetaData, RowGroupMetaData},
    schema::types::Type,
};

use super::{
    MergeControl, MergeError, TypeConflict,
    guard::{InputBytes, guarded},
    inputs::Input,
    pages::{CheckedReader, Wanted, read_checked},
    raw_copy::Part,
    widen,
};

/// Rows in a batch, at most.
pub(super) const BATCH_ROWS_MAX: usize = 8192;
/// Rows in the first batch of a file whose row size cannot be known from its footer.
const PROBE_ROWS: usize = 128;
/// A page of most writers together with a dictionary.
const USUAL_PAGES_BYTES: u64 = 2 << 20;
/// Statistics of strings this long or longer may be cut off.
const TRUNCATED_FROM_BYTES: usize = 64;

/// Limits of one decoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeLimits {
    /// Decoded bytes that a batch should have.
    pub(super) batch_bytes: u64,
    /// Bytes that one page may have.
    pub(super) page_bytes: u64,
}

/// Reads one input from its first row to its last.
pub(super) struct Decoder<'a> {
    input: &'a Input,
    control: &'a MergeControl,
    schema: SchemaRef,
    limits: DecodeLimits,
    bytes: InputBytes,
    footer: ArrowReaderMetadata,
    reader: CheckedReader,
    batch_rows: usize,
    rows_done: u64,
    row_count: u64,
    groups: Range<usize>,
    /// For each united column its place in the file.
    places: Vec<Option<usize>>,
    /// All-null columns, made once and sliced.
    null_columns: HashMap<DataType, ArrayRef>,
}

impl<'a> Decoder<'a> {
    /// Opens the file again; nothing is decoded yet.
    pub(super) fn open(
        input: &'a Input,
        part: &Part,
        schema: &SchemaRef,
        control: &'a MergeControl,
        limits: DecodeLimits,
    ) -> Result<Self, MergeError> {
        let (bytes, footer) = input
            .reopen()
            .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
        let bytes = bytes.with_page_limit(limits.page_bytes);
        let own: HashMap<&str, usize> = footer
            .schema()
            .fields()
            .iter()
            .enumerate()
            .map(|(index, field)| (field.name().as_str(), index))
            .collect();
        let places = schema
            .fields()
            .iter()
            .map(|field| own.get(field.name().as_str()).copied())
            .collect();
        let size = row_size(footer.metadata());
        let batch_rows = if size.is_certain {
            rows_for(limits.batch_bytes, size.bytes)
        } else {
            rows_for(limits.batch_bytes, size.bytes).min(PROBE_ROWS)
        };
        let reader = guarded(|| build_reader(&bytes, &footer, &part.groups, batch_rows, 0, limits))
            .map_err(|reason| MergeError::BadInputs(vec![input.bad(reason)]))?;
        Ok(Self {
            input,
            control,
            schema: Arc::clone(schema),
            limits,
            bytes,
            footer,
            reader,
            batch_rows,
            rows_done: 0,
            row_count: part.row_count,
            groups: part.groups.clone(),
            places,
            null_columns: HashMap::new(),
        })
    }

    /// The next rows with their size in memory; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<(RecordBatch, u64)>, MergeError> {
        if self.control.is_cancelled() {
            return Err(MergeError::Cancelled);
        }
        let Some(decoded) = self.decode()? else {
            if self.rows_done != self.row_count {
                return Err(self.bad(format!(
                    "its footer promises {} rows, its pages hold {}",
                    self.row_count, self.rows_done
                )));
            }
            return Ok(None);
        };
        let rows = decoded.num_rows();
        self.rows_done += rows as u64;
        if self.rows_done > self.row_count {
            return Err(self.bad("its pages hold more rows than its footer promises".to_owned()));
        }
        self.control
            .rows_read
            .fetch_add(rows as u64, Ordering::Relaxed);
        let decoded_bytes = decoded.get_array_memory_size() as u64;
        self.adapt(rows, decoded_bytes)?;
        Ok(Some((self.unite(&decoded)?, decoded_bytes)))
    }

    /// The next rows as the file has them, in smaller batches where its texts are too long.
    fn decode(&mut self) -> Result<Option<RecordBatch>, MergeError> {
        loop {
            let reader = &mut self.reader.reader;
            let reason = match guarded(|| reader.next().transpose().map_err(|e| e.to_string())) {
                Ok(decoded) => return Ok(decoded),
                Err(reason) => reason,
            };
            match self.reader.fitting_rows() {
                Some(rows) if rows < self.batch_rows => self.restart(rows)?,
                _ => return Err(self.bad(format!("its rows cannot be read: {reason}"))),
            }
        }
    }

    /// Brings a batch into the united schema.
    fn unite(&mut self, decoded: &RecordBatch) -> Result<RecordBatch, MergeError> {
        let rows = decoded.num_rows();
        let mut columns = Vec::with_capacity(self.places.len());
        for (field, place) in self.schema.fields().iter().zip(&self.places) {
            columns.push(match place {
                Some(index) => {
                    widen::cast(decoded.column(*index), field.data_type()).map_err(|reason| {
                        MergeError::TypeConflict(Box::new(TypeConflict {
                            column: field.name().clone(),
                            left_type: decoded.column(*index).data_type().to_string(),
                            left_file: self.input.path.clone(),
                            right_type: field.data_type().to_string(),
                            right_file: self.input.path.clone(),
                            reason: format!("its statistics say that it fits, but {reason}"),
                        }))
                    })?
                }
                None => null_column(&mut self.null_columns, field.data_type(), rows),
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
            .map_err(|e| self.bad(format!("its rows do not fit its schema: {e}")))
    }

    /// Reads on in smaller batches when rows turn out larger than thought, in larger ones
    /// when the first batch was only a probe.
    fn adapt(&mut self, rows: usize, decoded_bytes: u64) -> Result<(), MergeError> {
        let fitting = rows_for(
            self.limits.batch_bytes,
            (decoded_bytes / rows.max(1) as u64).max(1),
        );
        let too_large = fitting < self.batch_rows / 2;
        let was_probe =
            rows == self.batch_rows && self.batch_rows <= PROBE_ROWS && fitting > 2 * PROBE_ROWS;
        if (too_large || was_probe) && self.rows_done < self.row_count {
            self.restart(fitting)?;
        }
        Ok(())
    }

    /// Reads on in batches of another size.
    fn restart(&mut self, batch_rows: usize) -> Result<(), MergeError> {
        let (bytes, footer, rows_done) = (&self.bytes, &self.footer, self.rows_done);
        let (groups, limits) = (&self.groups, self.limits);
        self.reader =
            guarded(|| build_reader(bytes, footer, groups, batch_rows, rows_done, limits))
                .map_err(|reason| self.bad(reason))?;
        self.batch_rows = batch_rows;
        Ok(())
    }

    /// Bytes of the pages that are held while this reads, estimated.
    pub(super) fn pages_bytes(&self) -> u64 {
        pages_bytes(self.footer.metadata())
    }

    fn bad(&self, reason: String) -> MergeError {
        MergeError::BadInputs(vec![self.input.bad(reason)])
    }
}

fn null_column(
    known: &mut HashMap<DataType, ArrayRef>,
    data_type: &DataType,
    rows: usize,
) -> ArrayRef {
    if let Some(column) = known.get(data_type)
        && column.len() >= rows
    {
        return column.slice(0, rows);
    }
    let column = new_null_array(data_type, rows);
    known.insert(data_type.clone(), Arc::clone(&column));
    column
}

fn rows_for(batch_bytes: u64, row_bytes: u64) -> usize {
    usize::try_from(batch_bytes / row_bytes.max(1))
        .unwrap_or(usize::MAX)
        .clamp(1, BATCH_ROWS_MAX)
}

/// A reader of the rows of some row groups, from their `first_row` on.
fn build_reader(
    bytes: &InputBytes,
    footer: &ArrowReaderMetadata,
    wanted: &Range<usize>,
    batch_rows: usize,
    first_row: u64,
    limits: DecodeLimits,
) -> Result<CheckedReader, String> {
    // Row groups that are done are left out, so that a new reader need not walk their pages.
    let mut skip = first_row;
    let mut groups = Vec::new();
    for (index, group) in footer.metadata().row_groups().iter().enumerate() {
        let rows = u64::try_from(group.num_rows()).unwrap_or(0);
        if !wanted.contains(&index) {
            continue;
        }
        if groups.is_empty() && skip >= rows {
            skip -= rows;
        } else {
            groups.push(index);
        }
    }
    let wanted = Wanted {
        groups,
        columns: ProjectionMask::all(),
        batch_rows,
        skip_rows: usize::try_from(skip).map_err(|e| e.to_string())?,
        limit_bytes: limits.page_bytes,
    };
    read_checked(bytes, footer, &wanted).map_err(|e| e.to_string())
}

/// Reads one column of an input, batch by batch.
pub(super) fn scan_column(
    input: &Input,
    name: &str,
    limits: DecodeLimits,
    visit: impl FnMut(&ArrayRef) -> Result<(), String>,
) -> Result<(), MergeError> {
    scan_groups(input, name, None, limits, visit)
}

/// Reads one column of some row groups, or of all, batch by batch.
pub(super) fn scan_groups(
    input: &Input,
    name: &str,
    groups: Option<Vec<usize>>,
    limits: DecodeLimits,
    mut visit: impl FnMut(&ArrayRef) -> Result<(), String>,
) -> Result<(), MergeError> {
    let bad = |reason: String| MergeError::BadInputs(vec![input.bad(reason)]);
    let (bytes, footer) = input
        .reopen()
        .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    let bytes = bytes.with_page_limit(limits.page_bytes);
    let index = footer
        .schema()
        .index_of(name)
        .map_err(|e| bad(e.to_string()))?;
    let batch_rows = rows_for(limits.batch_bytes, row_size(footer.metadata()).bytes);
    let all = || (0..footer.metadata().num_row_groups()).collect();
    let groups: Vec<usize> = groups.unwrap_or_else(all);
    let rows_of = |&group: &usize| footer.metadata().row_group(group).num_rows();
    let row_count: i64 = groups.iter().map(rows_of).fold(0, i64::saturating_add);
    let mut wanted = Wanted {
        groups,
        columns: ProjectionMask::roots(footer.parquet_schema(), [index]),
        batch_rows,
        skip_rows: 0,
        limit_bytes: limits.page_bytes,
    };
    let open = |wanted: &Wanted| {
        guarded(|| read_checked(&bytes, &footer, wanted).map_err(|e| e.to_string())).map_err(bad)
    };
    let mut reader = open(&wanted)?;
    loop {
        let rows = &mut reader.reader;
        match guarded(|| rows.next().transpose().map_err(|e| e.to_string())) {
            Ok(Some(batch)) => {
                wanted.skip_rows += batch.num_rows();
                visit(batch.column(0)).map_err(bad)?;
            }
            Ok(None) if i64::try_from(wanted.skip_rows) == Ok(row_count) => return Ok(()),
            Ok(None) => {
                return Err(bad(format!(
                    "column {name:?}: its footer promises {row_count} rows, its pages hold {}",
                    wanted.skip_rows
                )));
            }
            Err(reason) => match reader.fitting_rows() {
                Some(rows) if rows < wanted.batch_rows => {
                    wanted.batch_rows = rows;
                    reader = open(&wanted)?;
                }
                _ => return Err(bad(format!("column {name:?} cannot be read: {reason}"))),
            },
        }
    }
}

/// Bytes of the pages that a reader of all columns holds at once, estimated.
pub(super) fn pages_bytes(metadata: &ParquetMetaData) -> u64 {
    // DuckDB writes one page for each column of a row group.
    let by_duckdb = metadata
        .file_metadata()
        .created_by()
        .is_some_and(|by| by.starts_with("DuckDB"));
    let limit = if by_duckdb {
        u64::MAX
    } else {
        USUAL_PAGES_BYTES
    };
    let group_bytes = |group: &RowGroupMetaData| {
        let sizes = group
            .columns()
            .iter()
            .map(ColumnChunkMetaData::uncompressed_size);
        sizes
            .map(|size| u64::try_from(size).unwrap_or(0).min(limit))
            .fold(0, u64::saturating_add)
    };
    metadata
        .row_groups()
        .iter()
        .map(group_bytes)
        .max()
        .unwrap_or(0)
}

/// What a decoded row takes in memory, from a footer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowSize {
    pub(super) bytes: u64,
    /// False when strings hide behind dictionaries whose entries may have any length.
    pub(super) is_certain: bool,
}

/// Estimates the size of a decoded row.
pub(super) fn row_size(metadata: &ParquetMetaData) -> RowSize {
    let rows: u64 = metadata
        .row_groups()
        .iter()
        .map(|group| u64::try_from(group.num_rows()).unwrap_or(0))
        .sum();
    let mut size = RowSize {
        bytes: 0,
        is_certain: true,
    };
    if rows == 0 {
        return RowSize {
            bytes: 1,
            is_certain: true,
        };
    }
    let mut total_bytes = 0_u64;
    for group in metadata.row_groups() {
        for column in group.columns() {
            let (bytes, is_certain) = chunk_size(column);
            total_bytes = total_bytes.saturating_add(bytes);
            size.is_certain &= is_certain;
        }
    }
    size.bytes = (total_bytes / rows).max(1);
    size
}

/// Decoded bytes of a column chunk, and whether that is more than a guess.
fn chunk_size(column: &ColumnChunkMetaData) -> (u64, bool) {
    let values = u64::try_from(column.num_values()).unwrap_or(0);
    let fixed = |bytes: u64| {
        (
            values.saturating_mul(bytes).saturating_add(values / 8),
            true,
        )
    };
    match column.column_type() {
        PhysicalType::BOOLEAN => fixed(1),
        PhysicalType::INT32 | PhysicalType::FLOAT => fixed(4),
        PhysicalType::INT64 | PhysicalType::INT96 | PhysicalType::DOUBLE => fixed(8),
        PhysicalType::FIXED_LEN_BYTE_ARRAY => {
            let length = match column.column_descr().self_type() {
                Type::PrimitiveType { type_length, .. } => u64::try_from(*type_length).unwrap_or(0),
                Type::GroupType { .. } => 0,
            };
            // Decimals are decoded to at least 16 bytes.
            fixed(length.max(16))
        }
        PhysicalType::BYTE_ARRAY => {
            let around = values.saturating_mul(5);
            if let Some(bytes) = column.unencoded_byte_array_data_bytes() {
                return (
                    around.saturating_add(u64::try_from(bytes).unwrap_or(0)),
                    true,
                );
            }
            let stored = u64::try_from(column.uncompressed_size()).unwrap_or(0);
            if column.dictionary_page_offset().is_none() {
                return (around.saturating_add(stored), true);
            }
            let longest = column.statistics().and_then(|statistics| {
                let length = statistics
                    .min_bytes_opt()?
                    .len()
                    .max(statistics.max_bytes_opt()?.len());
                // Writers cut long values off; short ones are what they seem.
                Some((length as u64, length < TRUNCATED_FROM_BYTES))
            });
            let (length, is_certain) = longest.unwrap_or((32, false));
            (
                around.saturating_add(stored.max(values.saturating_mul(length))),
                is_certain,
            )
        }
    }
}
