//! Writes the output file, row group by row group.

use std::{
    io::{BufWriter, Write},
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use parquet::{
    arrow::arrow_writer::ArrowRowGroupWriterFactory, errors::ParquetError,
    file::writer::SerializedFileWriter,
};

use super::{
    ColumnBounds, MergeControl, MergeError, MergeOptions,
    checker::Checker,
    chunks::{ChunkSource, CopyError, copy_chunks},
    context::{Context, Shares},
    encode::{ColumnChunk, Encoder, Helper},
    gather::Gathered,
    order::Sink,
    output_file::OutputFile,
    parts::Part,
    properties::{flat_columns, properties},
    queue::{Job, State, Work},
    raw_copy::rows_min,
    removed_on_drop::RemovedOnDrop,
    schema::UnitedSchema,
    texts::WorkSchema,
};

/// Output batches that may wait for the encoder.
const QUEUED_BATCHES_MAX: usize = 10;

/// Writes one output file, which vanishes unless it is finished and kept.
pub(super) struct OutputWriter<'a> {
    control: &'a MergeControl,
    writer: SerializedFileWriter<BufWriter<OutputFile>>,
    file: RemovedOnDrop,
    /// Set when columns need writers of `parquet`.
    factory: Option<ArrowRowGroupWriterFactory>,
    helper: Helper,
    row_group_rows: usize,
    row_group_bytes: u64,
    queue_bytes: u64,
    rows_in_group: usize,
    /// A row group was ended and is not written yet.
    is_closing: bool,
    row_count: u64,
    copied_row_group_count: u64,
    chunks: ChunkSource,
    /// Made for the first row group that is copied.
    checker: Option<Checker>,
}

/// What was written.
pub(super) struct Written {
    pub(super) file: RemovedOnDrop,
    pub(super) row_count: u64,
    pub(super) row_group_count: u64,
    pub(super) copied_row_group_count: u64,
    pub(super) bounds: Vec<ColumnBounds>,
}

impl<'a> OutputWriter<'a> {
    /// Creates the file.
    pub(super) fn create(
        path: &Path,
        united: &UnitedSchema,
        work: &WorkSchema,
        options: &MergeOptions,
        shares: &Shares,
        control: &'a MergeControl,
    ) -> Result<Self, MergeError> {
        let properties = properties(path, united, options, shares.row_group_bytes)?;
        let (file, handle) = RemovedOnDrop::create(path.to_owned())?;
        let writer = SerializedFileWriter::new(
            BufWriter::with_capacity(1 << 20, OutputFile::new(handle)),
            united.parquet.root_schema_ptr(),
            Arc::new(properties),
        )
        .map_err(|e| encode_error(path, &e))?;
        let factory = ArrowRowGroupWriterFactory::new(&writer, Arc::clone(&work.schema));
        let flat = flat_columns(united, work, options, writer.properties(), shares);
        let encoder = Encoder::new(&work.schema, &options.bounds_of, flat);
        let needs_writers = encoder.needs_writers();
        let helper = Helper::start(encoder, options.thread_count);
        Ok(Self {
            control,
            file,
            writer,
            factory: needs_writers.then_some(factory),
            helper,
            row_group_rows: options.row_group_rows.max(1),
            row_group_bytes: shares.row_group_bytes,
            queue_bytes: shares.queue_bytes,
            rows_in_group: 0,
            is_closing: false,
            row_count: 0,
            copied_row_group_count: 0,
            chunks: ChunkSource::default(),
            checker: None,
        })
    }

    /// Ends the file.
    pub(super) fn finish(mut self, context: &Context<'_>) -> Result<Written, MergeError> {
        self.end_row_group()?;
        self.write_closed()?;
        if let Some(checker) = self.checker.take() {
            let checked = checker.finish();
            checked.map_err(|error| copy_error(context, self.file.path(), error))?;
        }
        let path = self.file.path().to_owned();
        let bounds = self.helper.encoder.take_bounds();
        let Self {
            file,
            mut writer,
            row_count,
            copied_row_group_count,
            ..
        } = self;
        let row_group_count = writer.flushed_row_groups().len() as u64;
        writer.finish().map_err(|e| encode_error(&path, &e))?;
        let output = writer.inner_mut();
        output
            .flush()
            .and_then(|()| output.get_mut().finish())
            .map_err(|source| MergeError::Io {
                path: path.clone(),
                source,
            })?;
        Ok(Written {
            file,
            row_count,
            row_group_count,
            copied_row_group_count,
            bounds,
        })
    }

    fn encode(
        &mut self,
        rows: &Arc<Gathered>,
        start: usize,
        count: usize,
    ) -> Result<(), MergeError> {
        if self.rows_in_group == 0
            && let Some(factory) = &self.factory
        {
            let group = self.writer.flushed_row_groups().len();
            let writers = factory
                .create_column_writers(group)
                .map_err(|e| encode_error(self.file.path(), &e))?;
            self.helper.encoder.start_row_group(writers);
        }
        let limit_bytes = self.queue_bytes;
        self.wait(|state| {
            state.jobs.len() < QUEUED_BATCHES_MAX
                && state.jobs.iter().map(Job::size_bytes).sum::<u64>() <= limit_bytes
        })?;
        self.helper.encoder.submit(Work::Encode {
            rows: Arc::clone(rows),
            start,
            count,
        });
        self.rows_in_group += count;
        if self.is_closing && self.helper.encoder.is_closed() {
            self.write_closed()?;
        }
        if self.rows_in_group >= self.row_group_rows
            || self.helper.encoder.memory_bytes() >= self.row_group_bytes
        {
            self.end_row_group()?;
        }
        Ok(())
    }

    /// Ends the row group in progress. It is written when its last column is ready; meanwhile
    /// the next one may begin.
    fn end_row_group(&mut self) -> Result<(), MergeError> {
        if self.rows_in_group == 0 {
            return Ok(());
        }
        self.write_closed()?;
        self.helper.encoder.submit(Work::Close);
        self.is_closing = true;
        self.row_count += self.rows_in_group as u64;
        self.rows_in_group = 0;
        // Writers of `parquet` take one row group at a time, and memory may hold no more.
        let is_large = self.helper.encoder.memory_bytes() > self.row_group_bytes / 2;
        if self.factory.is_some() || is_large {
            self.write_closed()?;
        }
        Ok(())
    }

    /// Writes the row group that was ended, when its columns are ready.
    fn write_closed(&mut self) -> Result<(), MergeError> {
        if !self.is_closing {
            return Ok(());
        }
        self.wait(|state| !state.is_closing())?;
        self.is_closing = false;
        let path = self.file.path();
        let mut group = self
            .writer
            .next_row_group()
            .map_err(|e| encode_error(path, &e))?;
        for chunk in self.helper.encoder.take_chunks() {
            match chunk {
                ColumnChunk::Arrow(chunk) => chunk
                    .append_to_row_group(&mut group)
                    .map_err(|e| encode_error(path, &e))?,
                ColumnChunk::Flat(chunk) => group
                    .append_column(chunk.as_ref(), chunk.close.clone())
                    .map_err(|e| encode_error(path, &e))?,
            }
        }
        group.close().map_err(|e| encode_error(path, &e))?;
        Ok(())
    }

    /// Helps with encoding until `enough`.
    fn wait(&self, enough: impl Fn(&State) -> bool) -> Result<(), MergeError> {
        self.helper
            .encoder
            .work_until(enough)
            .map_err(|reason| MergeError::Encode {
                path: self.file.path().to_owned(),
                reason,
            })
    }
}

impl Sink for OutputWriter<'_> {
    fn write(&mut self, rows: Gathered) -> Result<(), MergeError> {
        let rows = Arc::new(rows);
        let mut start = 0;
        while start < rows.row_count() {
            let count = (rows.row_count() - start).min(self.row_group_rows - self.rows_in_group);
            self.encode(&rows, start, count)?;
            start += count;
        }
        self.control
            .rows_written
            .fetch_add(rows.row_count() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Copying ends the row group in progress. It may leave it small only while row groups
    /// have half of the wanted rows on average, because small ones make readers slow.
    fn takes_copy(&self, row_count: u64) -> bool {
        let rows_min = rows_min(self.row_group_rows);
        let in_progress = self.rows_in_group as u64;
        let closing = u64::from(self.is_closing);
        let groups = self.writer.flushed_row_groups().len() as u64 + closing + 2;
        in_progress == 0
            || in_progress >= rows_min
            || self.row_count + in_progress + row_count >= groups * rows_min
    }

    fn copy(&mut self, context: &Context<'_>, part: &Part) -> Result<(), MergeError> {
        let (Some(copy), Some(&place)) = (&part.copy, context.sort_places.first()) else {
            return Err(context.invariant("ORDER-KEPT", "a copied row group has no key".into()));
        };
        self.end_row_group()?;
        self.write_closed()?;
        let (bytes, metadata) = self.chunks.open(context, part)?;
        let path = self.file.path();
        let mut group = self
            .writer
            .next_row_group()
            .map_err(|e| encode_error(path, &e))?;
        let in_parallel = context.request.options.thread_count > 1;
        let checker = self
            .checker
            .get_or_insert_with(|| Checker::new(in_parallel));
        let from = (part.input, part.groups.start);
        copy_chunks(&mut group, &bytes, checker, &metadata, from)
            .map_err(|error| copy_error(context, path, error))?;
        group.close().map_err(|e| encode_error(path, &e))?;
        let others = copy
            .other_bounds
            .iter()
            .map(|(other, bounds)| (*other, bounds));
        for (place, bounds) in others.chain([(place, &copy.bounds)]) {
            for array in bounds {
                self.helper.encoder.add_bounds(place, array);
            }
        }
        self.row_count += part.row_count;
        self.copied_row_group_count += 1;
        for rows in [&self.control.rows_read, &self.control.rows_written] {
            rows.fetch_add(part.row_count, Ordering::Relaxed);
        }
        Ok(())
    }
}

fn copy_error(context: &Context<'_>, output: &Path, error: CopyError) -> MergeError {
    match error {
        CopyError::Bad { input, reason } => {
            MergeError::BadInputs(vec![context.inputs[input].bad(reason)])
        }
        CopyError::Encode(error) => encode_error(output, &error),
    }
}

/// An error of `parquet`, or the one of the disk that is behind it.
pub(super) fn encode_error(path: &Path, error: &ParquetError) -> MergeError {
    if let ParquetError::External(source) = error
        && let Some(io) = source.downcast_ref::<std::io::Error>()
    {
        let source = match io.raw_os_error() {
            Some(code) => std::io::Error::from_raw_os_error(code),
            None => std::io::Error::new(io.kind(), io.to_string()),
        };
        return MergeError::Io {
            path: path.to_owned(),
            source,
        };
    }
    MergeError::Encode {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
