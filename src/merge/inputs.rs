//! Opening inputs: footers are read and checked, nothing is decoded.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use parquet::{
    arrow::{ARROW_SCHEMA_META_KEY, arrow_reader::ArrowReaderMetadata},
    file::{metadata::KeyValue, reader::ChunkReader},
    schema::types::SchemaDescriptor,
};

use crate::no_links;

use super::{
    BadInput, MergeControl, MergeError,
    guard::{InputBytes, Lack, guarded},
    hint::schema_hint,
    open_footer::{check_footer, own_schema, read_footer},
};

/// Magic at both ends, a footer length, and at least a byte of footer.
const SMALLEST_FILE_BYTES: u64 = 13;
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
