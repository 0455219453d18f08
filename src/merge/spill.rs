//! Sorted runs in scratch: Arrow IPC streams, compressed unless the table is very wide, that vanish with their handle.

use std::{
    fs::{File, OpenOptions},
    io::{BufReader, BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch},
    datatypes::{DataType, SchemaRef},
    ipc::{
        CompressionType,
        reader::StreamReader,
        writer::{IpcWriteOptions, StreamWriter},
    },
};

use super::{MergeError, gather::Gathered, order::Sink};

/// Compressing a column's share of a batch below this costs more than writing it as it is.
const COMPRESSED_FROM_BYTES: u64 = 4 << 10;

/// A file that is removed when this is dropped, unless it is kept.
#[derive(Debug)]
pub(super) struct RemovedOnDrop {
    path: PathBuf,
    kept: bool,
}

impl RemovedOnDrop {
    /// Creates a new file; an existing one is an error and stays.
    pub(super) fn create(path: PathBuf) -> Result<(Self, File), MergeError> {
        // Not for everybody: who may read it is decided by its group.
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o640).open(&path);
        let file = file.map_err(|source| MergeError::Io {
            path: path.clone(),
            source,
        })?;
        Ok((Self { path, kept: false }, file))
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves the file where it is.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for RemovedOnDrop {
    fn drop(&mut self) {
        if !self.kept {
            // A file that is gone already is as wanted; nothing else can be done here.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A complete run in scratch.
#[derive(Debug)]
pub(super) struct SpilledRun {
    file: RemovedOnDrop,
}

/// Writes one run.
pub(super) struct SpillWriter {
    file: RemovedOnDrop,
    schema: SchemaRef,
    writer: StreamWriter<BufWriter<File>>,
}

impl SpillWriter {
    /// Starts a run in `folder`.
    pub(super) fn create(
        folder: &Path,
        schema: &SchemaRef,
        batch_bytes: u64,
    ) -> Result<Self, MergeError> {
        let name = format!("gigamerge-{}.run", uuid::Uuid::new_v4());
        let (guard, file) = RemovedOnDrop::create(folder.join(name))?;
        let is_compressed =
            batch_bytes / schema.fields().len().max(1) as u64 >= COMPRESSED_FROM_BYTES;
        let options = IpcWriteOptions::default()
            .try_with_compression(is_compressed.then_some(CompressionType::LZ4_FRAME))
            .and_then(|options| {
                StreamWriter::try_new_with_options(BufWriter::new(file), schema, options)
            });
        match options {
            Ok(writer) => Ok(Self {
                file: guard,
                schema: SchemaRef::clone(schema),
                writer,
            }),
            Err(error) => Err(scratch_error(&guard, &error)),
        }
    }

    /// Ends the run.
    pub(super) fn finish(self) -> Result<SpilledRun, MergeError> {
        let Self {
            file, mut writer, ..
        } = self;
        let ended = writer.finish().and_then(|()| Ok(writer.get_mut().flush()?));
        match ended {
            Ok(()) => Ok(SpilledRun { file }),
            Err(error) => Err(scratch_error(&file, &error)),
        }
    }
}

impl Sink for SpillWriter {
    fn write(&mut self, rows: Gathered) -> Result<(), MergeError> {
        // Without the pages that views look into.
        let columns =
            (0..self.schema.fields().len()).map(|index| rows.column(index).map(without_pages));
        columns
            .collect::<Result<Vec<_>, _>>()
            .and_then(|columns| {
                let options =
                    arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.row_count()));
                let batch = RecordBatch::try_new_with_options(
                    SchemaRef::clone(&self.schema),
                    columns,
                    &options,
                );
                batch.map_err(|e| e.to_string())
            })
            .map_err(|reason| MergeError::Encode {
                path: self.file.path().to_owned(),
                reason,
            })
            .and_then(|batch| {
                self.writer
                    .write(&batch)
                    .map_err(|e| scratch_error(&self.file, &e))
            })
    }
}

/// Reads one run; the file is removed with it.
pub(super) struct SpillReader {
    run: SpilledRun,
    reader: StreamReader<BufReader<File>>,
}

impl SpilledRun {
    /// Opens the run for reading.
    pub(super) fn open(self) -> Result<SpillReader, MergeError> {
        let path = self.file.path();
        let file = File::open(path).map_err(|source| MergeError::Io {
            path: path.to_owned(),
            source,
        })?;
        let reader = StreamReader::try_new(BufReader::new(file), None)
            .map_err(|e| scratch_error(&self.file, &e))?;
        Ok(SpillReader { run: self, reader })
    }
}

impl SpillReader {
    /// The next rows; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<RecordBatch>, MergeError> {
        self.reader
            .next()
            .transpose()
            .map_err(|e| scratch_error(&self.run.file, &e))
    }
}

fn without_pages(column: ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Utf8View => Arc::new(column.as_string_view().gc()),
        DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
        _ => column,
    }
}

fn scratch_error(file: &RemovedOnDrop, error: &arrow::error::ArrowError) -> MergeError {
    let source = match error {
        arrow::error::ArrowError::IoError(text, source) => {
            std::io::Error::new(source.kind(), text.clone())
        }
        other => std::io::Error::other(other.to_string()),
    };
    MergeError::Io {
        path: file.path().to_owned(),
        source,
    }
}
