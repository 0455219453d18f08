//! Sorted runs in scratch: Arrow IPC streams, compressed unless the table is very wide, that vanish with their handle.

use std::{
    fs::{File, OpenOptions},
    io::{BufReader, BufWriter, Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, UInt32Array},
    datatypes::{DataType, Field, Schema, SchemaRef},
    ipc::{
        CompressionType,
        reader::StreamReader,
        writer::{IpcWriteOptions, StreamWriter},
    },
};

use super::{MergeError, gather::Gathered, order::Sink};

/// Compressing a column's share of a batch below this costs more than writing it as it is.
const COMPRESSED_FROM_BYTES: u64 = 4 << 10;

/// What the kernel frees in a few milliseconds.
const FREED_AT_ONCE: u64 = 16 << 20;

/// A file that is removed when this is dropped, unless it is kept. Other handles to it are to be
/// closed before.
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
        if self.kept {
            return;
        }
        let open = File::open(&self.path);
        // A file that is gone already is as wanted; nothing else can be done here.
        let _ = std::fs::remove_file(&self.path);
        // Gone from its folder; freeing a large one takes the kernel long, and who stops a merge
        // need not wait for it.
        let is_large = |file: &File| file.metadata().is_ok_and(|meta| meta.len() > FREED_AT_ONCE);
        if let Some(file) = open.ok().filter(is_large) {
            let freeing = std::thread::Builder::new().name("merge-free".into());
            let _ = freeing.spawn(move || drop(file));
        }
    }
}

/// A complete run in scratch.
#[derive(Debug)]
pub(super) struct SpilledRun {
    file: RemovedOnDrop,
    /// The part that all its rows are of, if they are of one.
    part: Option<usize>,
}

/// Writes one run. Behind the columns of the rows stands one more: the part that each row is of,
/// which decides between equal rows of several runs.
pub(super) struct SpillWriter {
    writer: StreamWriter<BufWriter<File>>,
    file: RemovedOnDrop,
    schema: SchemaRef,
    part: Option<usize>,
}

/// The columns of a run in scratch.
pub(super) fn with_part_column(schema: &Schema) -> SchemaRef {
    let part = Field::new("gigamerge.part", DataType::UInt32, false);
    let fields = schema.fields().iter().cloned();
    Arc::new(Schema::new(
        fields.chain([Arc::new(part)]).collect::<Vec<_>>(),
    ))
}

impl SpillWriter {
    /// Starts a run in `folder`. Its rows are all of `part`, or say themselves of which they are.
    pub(super) fn create(
        folder: &Path,
        schema: &SchemaRef,
        batch_bytes: u64,
        part: Option<usize>,
    ) -> Result<Self, MergeError> {
        let name = format!("gigamerge-{}.run", uuid::Uuid::new_v4());
        let (guard, file) = RemovedOnDrop::create(folder.join(name))?;
        let is_compressed =
            batch_bytes / schema.fields().len().max(1) as u64 >= COMPRESSED_FROM_BYTES;
        let schema = with_part_column(schema);
        let options = IpcWriteOptions::default()
            .try_with_compression(is_compressed.then_some(CompressionType::LZ4_FRAME))
            .and_then(|options| {
                StreamWriter::try_new_with_options(BufWriter::new(file), &schema, options)
            });
        match options {
            Ok(writer) => Ok(Self {
                file: guard,
                schema,
                part,
                writer,
            }),
            Err(error) => Err(scratch_error(&guard, &error)),
        }
    }

    /// Ends the run.
    pub(super) fn finish(self) -> Result<SpilledRun, MergeError> {
        let Self {
            file,
            part,
            mut writer,
            ..
        } = self;
        let ended = writer.finish().and_then(|()| Ok(writer.get_mut().flush()?));
        match ended {
            Ok(()) => Ok(SpilledRun { file, part }),
            Err(error) => Err(scratch_error(&file, &error)),
        }
    }

    fn batch(&self, rows: &Gathered) -> Result<RecordBatch, String> {
        let column = |index| match self.part {
            Some(part) if index + 1 == self.schema.fields().len() => {
                let part = u32::try_from(part).map_err(|e| e.to_string())?;
                let parts: ArrayRef = Arc::new(UInt32Array::from_value(part, rows.row_count()));
                Ok(parts)
            }
            // Without the pages that views look into.
            _ => rows.column(index).map(without_pages),
        };
        let columns = (0..self.schema.fields().len()).map(column);
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let options =
            arrow::array::RecordBatchOptions::new().with_row_count(Some(rows.row_count()));
        RecordBatch::try_new_with_options(SchemaRef::clone(&self.schema), columns, &options)
            .map_err(|e| e.to_string())
    }
}

impl Sink for SpillWriter {
    fn write(&mut self, rows: Gathered) -> Result<(), MergeError> {
        let batch = self.batch(&rows).map_err(|reason| MergeError::Encode {
            path: self.file.path().to_owned(),
            reason,
        })?;
        self.writer
            .write(&batch)
            .map_err(|e| scratch_error(&self.file, &e))
    }
}

/// Reads one run; the file is removed with it.
pub(super) struct SpillReader {
    run: SpilledRun,
    place: usize,
    reader: StreamReader<BufReader<Reopened>>,
}

/// A file that is open only while something is read: so any number of runs can be read together.
struct Reopened {
    path: PathBuf,
    position: u64,
}

impl Read for Reopened {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = File::open(&self.path)?.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl SpilledRun {
    /// The part that all its rows are of, if they are of one.
    pub(super) fn part(&self) -> Option<usize> {
        self.part
    }

    /// Opens the run for reading. `place`: among the runs in scratch.
    pub(super) fn open(self, place: usize) -> Result<SpillReader, MergeError> {
        let file = Reopened {
            path: self.file.path().to_owned(),
            position: 0,
        };
        let reader = StreamReader::try_new(BufReader::new(file), None)
            .map_err(|e| scratch_error(&self.file, &e))?;
        Ok(SpillReader {
            run: self,
            place,
            reader,
        })
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

    /// The part that all its rows are of, if they are of one.
    pub(super) fn part(&self) -> Option<usize> {
        self.run.part
    }

    /// Its place among the runs in scratch.
    pub(super) fn place(&self) -> usize {
        self.place
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
