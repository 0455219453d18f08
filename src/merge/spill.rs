//! Sorted runs in scratch: Arrow IPC streams, compressed unless the table is very wide, several in
//! a file that vanishes with the last of them.

use std::{
    fs::File,
    io::{BufReader, BufWriter, Read, Seek},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
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

use super::{MergeError, gather::Gathered, order::Sink, removed_on_drop::RemovedOnDrop};

/// Compressing a column's share of a batch below this costs more than writing it as it is.
const COMPRESSED_FROM_BYTES: u64 = 4 << 10;

/// A file takes runs up to here, or to a part of all that was written if that is more: so a merge
/// has a few dozen files, whatever its size.
const FILE_BYTES: u64 = 64 << 20;
const FILE_PART: u64 = 16;

/// The files of one merge that take more runs.
#[derive(Debug, Default)]
pub(super) struct ScratchFiles(Mutex<Unfilled>);

#[derive(Debug, Default)]
struct Unfilled {
    files: Vec<ScratchFile>,
    /// Of all runs so far.
    written_bytes: u64,
}

/// A file of runs. Its handle is closed before it is removed.
#[derive(Debug)]
struct ScratchFile {
    handle: File,
    size_bytes: u64,
    guard: Arc<RemovedOnDrop>,
}

impl ScratchFiles {
    /// A file for one more run; whoever has it is alone with it.
    fn take(&self, folder: &Path) -> Result<ScratchFile, MergeError> {
        let unfilled = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .files
            .pop();
        if let Some(file) = unfilled {
            return Ok(file);
        }
        let name = format!("gigamerge-{}.runs", uuid::Uuid::new_v4());
        let (guard, handle) = RemovedOnDrop::create(folder.join(name))?;
        Ok(ScratchFile {
            handle,
            size_bytes: 0,
            guard: Arc::new(guard),
        })
    }

    /// Takes a file back, to which a run was added.
    fn give_back(&self, file: ScratchFile, run_bytes: u64) {
        let mut unfilled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unfilled.written_bytes += run_bytes;
        if file.size_bytes < FILE_BYTES.max(unfilled.written_bytes / FILE_PART) {
            unfilled.files.push(file);
        }
    }

    /// No more runs are coming: files go as soon as theirs are read.
    pub(super) fn close(&self) {
        let mut unfilled = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        unfilled.files.clear();
    }
}

/// A complete run in scratch.
#[derive(Debug)]
pub(super) struct SpilledRun {
    file: Arc<RemovedOnDrop>,
    /// Where it starts in the file.
    start: u64,
    /// The part that all its rows are of, if they are of one.
    part: Option<usize>,
}

/// Writes one run. Behind the columns of the rows stands one more: the part that each row is of,
/// which decides between equal rows of several runs.
pub(super) struct SpillWriter {
    writer: StreamWriter<BufWriter<File>>,
    file: Arc<RemovedOnDrop>,
    start: u64,
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
    /// Starts a run in a file of `folder`. Its rows are all of `part`, or say themselves of which
    /// they are.
    pub(super) fn create(
        files: &ScratchFiles,
        folder: &Path,
        schema: &SchemaRef,
        batch_bytes: u64,
        part: Option<usize>,
    ) -> Result<Self, MergeError> {
        let ScratchFile {
            handle,
            size_bytes,
            guard,
        } = files.take(folder)?;
        let is_compressed =
            batch_bytes / schema.fields().len().max(1) as u64 >= COMPRESSED_FROM_BYTES;
        let schema = with_part_column(schema);
        let options = IpcWriteOptions::default()
            .try_with_compression(is_compressed.then_some(CompressionType::LZ4_FRAME))
            .and_then(|options| {
                StreamWriter::try_new_with_options(BufWriter::new(handle), &schema, options)
            });
        match options {
            Ok(writer) => Ok(Self {
                writer,
                file: guard,
                start: size_bytes,
                schema,
                part,
            }),
            Err(error) => Err(scratch_error(&guard, &error)),
        }
    }

    /// Ends the run; its file may take another one.
    pub(super) fn finish(self, files: &ScratchFiles) -> Result<SpilledRun, MergeError> {
        let Self {
            file,
            start,
            part,
            writer,
            ..
        } = self;
        let ended = writer.into_inner().and_then(|buffered| {
            let mut handle = buffered
                .into_inner()
                .map_err(std::io::IntoInnerError::into_error)?;
            let size_bytes = handle.stream_position()?;
            Ok((handle, size_bytes))
        });
        let (handle, size_bytes) = ended.map_err(|error| scratch_error(&file, &error))?;
        let written = ScratchFile {
            handle,
            size_bytes,
            guard: Arc::clone(&file),
        };
        files.give_back(written, size_bytes - start);
        Ok(SpilledRun { file, start, part })
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

/// Reads one run; its file is removed with the last one in it.
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
            position: self.start,
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

#[cfg(test)]
mod tests {
    use arrow::{array::Int64Array, datatypes::Int64Type};

    use super::*;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false)]))
    }

    fn write(files: &ScratchFiles, folder: &Path, values: &[i64]) -> SpilledRun {
        let column: ArrayRef = Arc::new(Int64Array::from(values.to_vec()));
        let mut rows = Gathered::default();
        let slot = rows.add_batch(RecordBatch::try_new(schema(), vec![column]).unwrap());
        rows.add_rows(slot, 0, values.len(), 8);
        let mut writer = SpillWriter::create(files, folder, &schema(), 1 << 20, Some(7)).unwrap();
        writer.write(rows).unwrap();
        writer.finish(files).unwrap()
    }

    fn read(run: SpilledRun) -> Vec<i64> {
        let mut reader = run.open(0).unwrap();
        let mut values = Vec::new();
        while let Some(batch) = reader.next().unwrap() {
            assert_eq!(
                batch
                    .column(1)
                    .as_primitive::<arrow::datatypes::UInt32Type>()
                    .value(0),
                7
            );
            values.extend_from_slice(batch.column(0).as_primitive::<Int64Type>().values());
        }
        values
    }

    fn file_count(folder: &Path) -> usize {
        std::fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn runs_share_a_file_that_goes_with_the_last_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let files = ScratchFiles::default();
        let runs = [&[1, 2, 3][..], &[4], &[5, 6]];
        let mut written = runs
            .map(|values| write(&files, folder.path(), values))
            .into_iter();
        assert_eq!(file_count(folder.path()), 1);
        let first = written.next().unwrap();
        let last = written.next_back().unwrap();
        drop(written);
        files.close();
        assert_eq!(read(last), [5, 6]);
        assert_eq!(file_count(folder.path()), 1);
        assert_eq!(read(first), [1, 2, 3]);
        assert_eq!(file_count(folder.path()), 0);
    }

    #[test]
    fn a_file_that_others_write_to_or_that_is_closed_takes_no_run() {
        let folder = tempfile::tempdir().unwrap();
        let files = ScratchFiles::default();
        let under_way = SpillWriter::create(&files, folder.path(), &schema(), 1 << 20, None);
        let beside = write(&files, folder.path(), &[1]);
        assert_eq!(file_count(folder.path()), 2);
        drop(under_way);
        assert_eq!(file_count(folder.path()), 1);
        files.close();
        let other = write(&files, folder.path(), &[2]);
        assert_eq!(file_count(folder.path()), 2);
        assert_eq!((read(beside), read(other)), (vec![1], vec![2]));
    }

    #[test]
    fn an_attempt_that_was_given_up_leaves_its_file_to_the_runs_in_it() {
        let folder = tempfile::tempdir().unwrap();
        let files = ScratchFiles::default();
        let kept = write(&files, folder.path(), &[1, 2]);
        drop(SpillWriter::create(&files, folder.path(), &schema(), 1 << 20, None).unwrap());
        assert_eq!(file_count(folder.path()), 1);
        assert_eq!(read(kept), [1, 2]);
        assert_eq!(file_count(folder.path()), 0);
    }
}
