//! Opening inputs: footers are read and checked, nothing is decoded.

use std::{
    collections::HashSet,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::{
    arrow::{
        ARROW_SCHEMA_META_KEY,
        arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
    },
    basic::Type as PhysicalType,
    errors::ParquetError,
    file::{
        metadata::{KeyValue, ParquetMetaData, RowGroupMetaData},
        reader::{ChunkReader, Length},
    },
    schema::types::SchemaDescriptor,
};

use crate::no_links;

use super::{
    BadInput, MergeControl, MergeError,
    footer_shape::footer_shape,
    guard::{InputBytes, Lack, guarded},
    hint::schema_hint,
    int96, intervals,
    thrift::NESTING_MAX,
};

/// Magic at both ends, a footer length, and at least a byte of footer.
const SMALLEST_FILE_BYTES: u64 = 13;
/// Footer length and magic.
const TAIL_BYTES: u64 = 8;
/// The magic of a file whose footer is encrypted.
const ENCRYPTED_MAGIC: [u8; 4] = *b"PARE";
/// More rows for each byte than any encoding reaches.
const ROWS_PER_BYTE_MAX: u64 = 1 << 20;
/// A footer of one table has a few hundred columns; beyond this it is an attack or an accident.
const COLUMN_COUNT_MAX: usize = 20_000;
/// Threads that read footers, at most: opening costs more than parsing.
const FOOTER_THREAD_COUNT_MAX: usize = 2;

/// An input whose footer was read and found sound.
#[derive(Debug)]
pub(super) struct Input {
    /// Its place in the request.
    pub(super) index: usize,
    pub(super) path: PathBuf,
    pub(super) size_bytes: u64,
    pub(super) row_count: u64,
    /// Its columns as its Parquet types say, without Arrow's hints.
    pub(super) schema: SchemaRef,
    /// The Arrow schema that its writer embedded, if any.
    pub(super) hint: Option<SchemaRef>,
    /// Its Parquet types.
    pub(super) parquet_schema: Arc<SchemaDescriptor>,
    /// Its key-value metadata without Arrow's schema.
    pub(super) key_values: Vec<KeyValue>,
    footer: Option<ArrowReaderMetadata>,
    bytes: Option<Bytes>,
    footer_limit_bytes: u64,
    lack: Lack,
}

/// How much of what was read may be kept for later.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "units are part of names")]
pub(super) struct Keep {
    /// Bytes of footers and small files together.
    pub(super) total_bytes: u64,
    /// Files up to this size are kept whole.
    pub(super) file_bytes: u64,
    /// Memory that one footer may take, kept or not.
    pub(super) footer_bytes: u64,
}

/// Reads the footers of all inputs; the bad ones are reported together.
pub(super) fn open_all(
    paths: &[PathBuf],
    keep: Keep,
    thread_count: usize,
    control: &MergeControl,
) -> Result<Vec<Input>, MergeError> {
    let thread_count = thread_count.clamp(1, FOOTER_THREAD_COUNT_MAX);
    let keep = Keep {
        total_bytes: keep.total_bytes / thread_count as u64,
        ..keep
    };
    let share = paths.len().div_ceil(thread_count).max(1);
    let results: Vec<Result<Input, BadInput>> = std::thread::scope(|scope| {
        let threads: Vec<_> = paths
            .chunks(share)
            .enumerate()
            .map(|(part, chunk)| scope.spawn(move || open_part(chunk, part * share, keep, control)))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_default())
            .collect()
    });
    control.check()?;
    let (mut inputs, mut bad) = (Vec::with_capacity(results.len()), Vec::new());
    for result in results {
        match result {
            Ok(input) => inputs.push(input),
            Err(reason) => bad.push(reason),
        }
    }
    if bad.is_empty() && inputs.len() == paths.len() {
        Ok(inputs)
    } else {
        Err(MergeError::BadInputs(bad))
    }
}

/// Stops early when the merge is to stop.
fn open_part(
    paths: &[PathBuf],
    first_index: usize,
    keep: Keep,
    control: &MergeControl,
) -> Vec<Result<Input, BadInput>> {
    let mut kept_bytes = 0;
    let mut known: Vec<(SchemaRef, Arc<SchemaDescriptor>)> = Vec::new();
    paths
        .iter()
        .enumerate()
        .take_while(|_| !control.is_cancelled())
        .map(|(offset, path)| {
            let index = first_index + offset;
            let room = keep.total_bytes.saturating_sub(kept_bytes);
            let copy_bytes = keep.file_bytes.min(room);
            let mut input = open_guarded(index, path, copy_bytes, keep.footer_bytes)?;
            let footer_bytes = input
                .footer
                .as_ref()
                .map_or(0, |footer| footer.metadata().memory_size() as u64);
            let copy_bytes = input.bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
            if footer_bytes + copy_bytes > room {
                (input.footer, input.bytes) = (None, None);
            } else {
                kept_bytes += footer_bytes + copy_bytes;
            }
            share_schema(&mut input, &mut known);
            Ok(input)
        })
        .collect()
}

/// Thousands of inputs have a handful of schemas: keep each once.
fn share_schema(input: &mut Input, known: &mut Vec<(SchemaRef, Arc<SchemaDescriptor>)>) {
    const KNOWN_COUNT_MAX: usize = 32;
    let same = known.iter().find(|(schema, parquet)| {
        *schema == input.schema && parquet.root_schema() == input.parquet_schema.root_schema()
    });
    match same {
        Some((schema, parquet)) => {
            input.schema = Arc::clone(schema);
            input.parquet_schema = Arc::clone(parquet);
        }
        None if known.len() < KNOWN_COUNT_MAX => {
            known.push((Arc::clone(&input.schema), Arc::clone(&input.parquet_schema)));
        }
        None => {}
    }
}

/// Opens one file and reads its footer, which may take so much memory.
pub(super) fn open(index: usize, path: &Path, footer_limit_bytes: u64) -> Result<Input, BadInput> {
    open_guarded(index, path, 0, footer_limit_bytes)
}

/// Opens what was just written, wherever the caller wanted it.
pub(super) fn open_output(path: &Path) -> Result<Input, String> {
    let path = std::fs::canonicalize(path).map_err(|e| format!("it cannot be examined: {e}"))?;
    open(0, &path, u64::MAX).map_err(|bad| bad.reason)
}

/// As [`open`]; a small file's bytes are kept.
fn open_guarded(
    index: usize,
    path: &Path,
    copy_limit_bytes: u64,
    footer_limit_bytes: u64,
) -> Result<Input, BadInput> {
    let lack = Lack::default();
    guarded(|| open_copied(index, path, copy_limit_bytes, footer_limit_bytes, &lack)).map_err(
        |reason| BadInput {
            index,
            path: path.to_owned(),
            reason,
            is_lack: lack.was_noted(),
        },
    )
}

fn open_copied(
    index: usize,
    path: &Path,
    copy_limit_bytes: u64,
    footer_limit_bytes: u64,
    lack: &Lack,
) -> Result<Input, String> {
    let (file, size_bytes) = open_file(path, lack)?;
    let mut bytes = InputBytes::file(file, size_bytes, lack.clone());
    let mut copy = None;
    if size_bytes <= copy_limit_bytes {
        let whole = bytes
            .get_bytes(0, usize::try_from(size_bytes).map_err(|e| e.to_string())?)
            .map_err(|e| e.to_string())?;
        bytes = InputBytes::copy(whole.clone());
        copy = Some(whole);
    }
    let footer = read_footer(&bytes, footer_limit_bytes)?;
    let metadata = footer.metadata();
    let row_count = check_footer(metadata, size_bytes)?;
    let file_metadata = metadata.file_metadata();
    Ok(Input {
        index,
        path: path.to_owned(),
        size_bytes,
        row_count,
        schema: Arc::clone(footer.schema()),
        hint: schema_hint(file_metadata),
        parquet_schema: own_schema(metadata),
        key_values: file_metadata
            .key_value_metadata()
            .into_iter()
            .flatten()
            .filter(|pair| pair.key != ARROW_SCHEMA_META_KEY)
            .cloned()
            .collect(),
        footer: Some(footer),
        bytes: copy,
        footer_limit_bytes,
        lack: lack.clone(),
    })
}

impl Input {
    /// The footer, read again when it was not kept.
    pub(super) fn footer(&self) -> Result<ArrowReaderMetadata, BadInput> {
        if let Some(footer) = &self.footer {
            return Ok(footer.clone());
        }
        let limit_bytes = self.footer_limit_bytes;
        guarded(|| read_footer(&self.open_bytes()?, limit_bytes)).map_err(|reason| self.bad(reason))
    }

    /// The bytes and the footer, for decoding.
    pub(super) fn reopen(&self) -> Result<(InputBytes, ArrowReaderMetadata), BadInput> {
        let bytes = self.open_bytes().map_err(|reason| self.bad(reason))?;
        let footer = match &self.footer {
            Some(footer) => footer.clone(),
            None => guarded(|| read_footer(&bytes, self.footer_limit_bytes))
                .map_err(|reason| self.bad(reason))?,
        };
        Ok((bytes, footer))
    }

    /// The bytes alone, for whoever has the footer.
    pub(super) fn reopen_bytes(&self) -> Result<InputBytes, BadInput> {
        self.open_bytes().map_err(|reason| self.bad(reason))
    }

    /// This input as one that cannot be read.
    pub(super) fn bad(&self, reason: impl Into<String>) -> BadInput {
        BadInput {
            index: self.index,
            path: self.path.clone(),
            reason: reason.into(),
            is_lack: self.lack.was_noted(),
        }
    }

    fn open_bytes(&self) -> Result<InputBytes, String> {
        if let Some(bytes) = &self.bytes {
            return Ok(InputBytes::copy(bytes.clone()));
        }
        let (file, size_bytes) = open_file(&self.path, &self.lack)?;
        if size_bytes != self.size_bytes {
            return Err(format!(
                "its size changed from {} to {size_bytes} bytes while it was merged",
                self.size_bytes
            ));
        }
        Ok(InputBytes::file(file, size_bytes, self.lack.clone()))
    }
}

fn open_file(path: &Path, lack: &Lack) -> Result<(File, u64), String> {
    let file = no_links::open(path).map_err(|error| {
        lack.note(&error);
        if no_links::is_link(&error) {
            "a link leads to it; links are not followed".to_owned()
        } else {
            format!("it cannot be opened: {error}")
        }
    })?;
    let metadata = file
        .metadata()
        .map_err(|e| format!("it cannot be examined: {e}"))?;
    if !metadata.is_file() {
        return Err("it is not a regular file".into());
    }
    match metadata.len() {
        0 => Err("it is empty (0 bytes)".into()),
        size if size < SMALLEST_FILE_BYTES => {
            Err(format!("{size} bytes are too few for a Parquet file"))
        }
        size => Ok((file, size)),
    }
}

fn read_footer(bytes: &InputBytes, limit_bytes: u64) -> Result<ArrowReaderMetadata, String> {
    check_shape(bytes, limit_bytes)?;
    // Types come from Parquet alone: a hint must not turn one column of two files into two types.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let unreadable = |e: ParquetError| format!("its footer cannot be read: {e}");
    let footer = ArrowReaderMetadata::load(bytes, options.clone()).map_err(unreadable)?;
    let footer = match intervals::as_bytes(footer.metadata()).map_err(unreadable)? {
        None => footer,
        Some(metadata) => {
            ArrowReaderMetadata::try_new(Arc::new(metadata), options.clone()).map_err(unreadable)?
        }
    };
    let columns = footer.parquet_schema().columns();
    if !columns
        .iter()
        .any(|c| c.physical_type() == PhysicalType::INT96)
    {
        return Ok(footer);
    }
    // Columns are read here, so what is read has to be possible.
    check_footer(footer.metadata(), bytes.len())?;
    match int96::exact_schema(bytes, &footer)? {
        None => Ok(footer),
        Some(schema) => {
            let metadata = Arc::clone(footer.metadata());
            ArrowReaderMetadata::try_new(metadata, options.with_schema(schema)).map_err(unreadable)
        }
    }
}

/// Refuses footers that would take too much memory, or whose schema is too deep to be walked,
/// before the decoder sees them.
fn check_shape(bytes: &InputBytes, limit_bytes: u64) -> Result<(), String> {
    let tail_start = bytes.len().saturating_sub(TAIL_BYTES);
    let tail = bytes.get_bytes(tail_start, 8).map_err(|e| e.to_string())?;
    let Some((length, magic)) = tail.split_first_chunk::<4>() else {
        return Err("it has no footer".into());
    };
    if magic == ENCRYPTED_MAGIC {
        return Err("it is encrypted; it can only be merged by who has its keys".into());
    }
    if magic != b"PAR1" {
        return Err(
            "it does not end as a Parquet file does (PAR1); it was cut off, or is none".into(),
        );
    }
    let length_bytes = u64::from(u32::from_le_bytes(*length));
    let Some(start) = tail_start.checked_sub(length_bytes) else {
        return Err(format!(
            "it claims a footer of {length_bytes} bytes, more than the file has"
        ));
    };
    let too_large = |held_bytes: u64| {
        format!(
            "its footer takes {held_bytes} bytes of memory, more than the {limit_bytes} bytes that \
             the memory budget leaves for one; if the file is sound, raise worker.memory_budget"
        )
    };
    if length_bytes > limit_bytes {
        return Err(too_large(length_bytes));
    }
    let length = usize::try_from(length_bytes).map_err(|e| e.to_string())?;
    let footer = bytes.get_bytes(start, length).map_err(|e| e.to_string())?;
    let shape = footer_shape(&footer).ok_or("its footer is damaged")?;
    if shape.depth > NESTING_MAX {
        return Err(format!(
            "its schema is nested {} levels deep; {NESTING_MAX} are supported",
            shape.depth
        ));
    }
    if shape.has_secrets {
        return Err(
            "columns of it are encrypted; it can only be merged by who has their keys".into(),
        );
    }
    let held_bytes = shape.held_bytes.saturating_add(length_bytes);
    if held_bytes > limit_bytes {
        return Err(too_large(held_bytes));
    }
    Ok(())
}

/// The types as the writer gave them, whatever was changed for the decoder.
fn own_schema(metadata: &ParquetMetaData) -> Arc<SchemaDescriptor> {
    metadata.row_groups().first().map_or_else(
        || metadata.file_metadata().schema_descr_ptr(),
        RowGroupMetaData::schema_descr_ptr,
    )
}

/// The row count, when everything the footer claims is possible.
fn check_footer(metadata: &ParquetMetaData, size_bytes: u64) -> Result<u64, String> {
    let descr = metadata.file_metadata().schema_descr();
    if descr.num_columns() > COLUMN_COUNT_MAX {
        return Err(format!(
            "it claims {} columns; {COLUMN_COUNT_MAX} are supported",
            descr.num_columns()
        ));
    }
    if descr.num_columns() == 0 {
        return Err("it has no columns".into());
    }
    let mut names = HashSet::new();
    for field in descr.root_schema().get_fields() {
        if !names.insert(field.name()) {
            return Err(format!("it has two columns named {:?}", field.name()));
        }
    }
    let mut row_count = 0_u64;
    for group in metadata.row_groups() {
        let rows = u64::try_from(group.num_rows())
            .map_err(|_| "a row group claims a negative number of rows")?;
        row_count = row_count
            .checked_add(rows)
            .ok_or("it claims more rows than can be counted")?;
        if group.columns().len() != descr.num_columns() {
            return Err("a row group lacks columns".into());
        }
        for column in group.columns() {
            if column.uncompressed_size() < 0 || column.num_values() < 0 {
                return Err(format!(
                    "column {:?} claims a negative size",
                    column.column_path().string()
                ));
            }
            let first = column
                .dictionary_page_offset()
                .unwrap_or(column.data_page_offset());
            let first =
                u64::try_from(first).map_err(|_| "a column chunk starts before the file")?;
            let length = u64::try_from(column.compressed_size())
                .map_err(|_| "a column chunk claims a negative size")?;
            if first.checked_add(length).is_none_or(|end| end > size_bytes) {
                return Err(format!(
                    "column {:?} reaches beyond the end of the file",
                    column.column_path().string()
                ));
            }
        }
    }
    if i64::try_from(row_count) != Ok(metadata.file_metadata().num_rows()) {
        return Err(format!(
            "it claims {} rows, its row groups {row_count}",
            metadata.file_metadata().num_rows()
        ));
    }
    if row_count > size_bytes.saturating_mul(ROWS_PER_BYTE_MAX) {
        return Err(format!("it claims {row_count} rows in {size_bytes} bytes"));
    }
    Ok(row_count)
}
