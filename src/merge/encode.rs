//! Gathers and encodes the columns of a row group on two threads: the one that merges helps
//! whenever it is ahead, so neither waits for the other.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
};

use arrow::{
    array::ArrayRef,
    datatypes::{DataType, Field, SchemaRef},
};
use parquet::arrow::arrow_writer::{ArrowColumnChunk, ArrowColumnWriter, compute_leaves};

use super::{
    ColumnBounds,
    bounds::BoundsOf,
    flat::{FlatChunk, FlatColumn, Packer, Tools},
    guard::guarded,
    queue::{State, Task, Work},
};

/// The second thread, which ends with this.
pub(super) struct Helper {
    pub(super) encoder: Arc<Encoder>,
    /// Without it the thread that merges does everything.
    thread: Option<JoinHandle<()>>,
}

impl Helper {
    pub(super) fn start(encoder: Encoder, thread_count: usize) -> Self {
        let encoder = Arc::new(encoder);
        let thread = (thread_count > 1).then(|| {
            let own = Arc::clone(&encoder);
            std::thread::Builder::new()
                .name("merge-encode".into())
                .spawn(move || own.help_until_stopped())
        });
        Self {
            encoder,
            thread: thread.and_then(Result::ok),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.encoder.stop();
        if let Some(thread) = self.thread.take() {
            // Panics of its columns are caught where they happen; see `work_until`.
            let _ = thread.join();
        }
    }
}

/// The columns of the row group in progress and the work that waits for them.
pub(super) struct Encoder {
    schema: SchemaRef,
    columns: Vec<Mutex<Column>>,
    /// For each column what compresses its pages, if that goes beside the column's other work.
    packers: Vec<Option<Packer>>,
    memory_bytes: Vec<AtomicUsize>,
    /// Buffers of threads that encode nothing just now.
    tools: Mutex<Vec<Tools>>,
    state: Mutex<State>,
    changed: Condvar,
}

struct Column {
    writer: ColumnWriter,
    bounds: Option<BoundsOf>,
}

/// What turns a column's rows into pages, and what is complete of it.
enum ColumnWriter {
    Flat(FlatColumn, Option<Box<FlatChunk>>),
    /// One writer and chunk for each leaf.
    Arrow(Vec<ArrowColumnWriter>, Vec<ArrowColumnChunk>),
}

/// A complete column chunk.
pub(super) enum ColumnChunk {
    Flat(Box<FlatChunk>),
    Arrow(Box<ArrowColumnChunk>),
}

impl Encoder {
    /// An encoder without a row group. `flat`: the columns that have a writer of ours.
    pub(super) fn new(
        schema: &SchemaRef,
        bounds_of: &[String],
        flat: Vec<Option<FlatColumn>>,
    ) -> Self {
        let packers = flat.iter().map(|flat| flat.as_ref()?.packer()).collect();
        let columns = schema.fields().iter().zip(flat).map(|(field, flat)| {
            Mutex::new(Column {
                writer: match flat {
                    Some(flat) => ColumnWriter::Flat(flat, None),
                    None => ColumnWriter::Arrow(Vec::new(), Vec::new()),
                },
                bounds: bounds_of.contains(field.name()).then(BoundsOf::default),
            })
        });
        Self {
            schema: Arc::clone(schema),
            columns: columns.collect(),
            packers,
            memory_bytes: schema
                .fields()
                .iter()
                .map(|_| AtomicUsize::new(0))
                .collect(),
            tools: Mutex::new(Vec::new()),
            state: Mutex::new(State::new(schema.fields().len())),
            changed: Condvar::new(),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds this lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn column(&self, index: usize) -> MutexGuard<'_, Column> {
        // A panic in a column is caught and becomes an error that ends the merge.
        self.columns[index]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether row groups need writers of `parquet`.
    pub(super) fn needs_writers(&self) -> bool {
        (0..self.columns.len())
            .any(|index| matches!(self.column(index).writer, ColumnWriter::Arrow(..)))
    }

    /// Starts a row group with one writer for each leaf.
    pub(super) fn start_row_group(&self, writers: Vec<ArrowColumnWriter>) {
        let mut writers = writers.into_iter();
        for index in 0..self.columns.len() {
            let leaves = leaf_count(self.schema.field(index).data_type());
            let own = writers.by_ref().take(leaves).collect();
            if let ColumnWriter::Arrow(writers, _) = &mut self.column(index).writer {
                *writers = own;
            }
        }
    }

    /// Queues work for all columns.
    pub(super) fn submit(&self, work: Work) {
        self.state().submit(work);
        self.changed.notify_all();
    }

    fn stop(&self) {
        self.state().is_stopped = true;
        self.changed.notify_all();
    }

    /// Bytes that the row group takes so far.
    pub(super) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
            .iter()
            .map(|bytes| bytes.load(Ordering::Relaxed) as u64)
            .sum()
    }

    /// Whether no row group is being closed.
    pub(super) fn is_closed(&self) -> bool {
        !self.state().is_closing()
    }

    /// The columns of a row group that was closed, in order.
    pub(super) fn take_chunks(&self) -> Vec<ColumnChunk> {
        let mut chunks = Vec::new();
        for index in 0..self.columns.len() {
            match &mut self.column(index).writer {
                ColumnWriter::Flat(_, chunk) => {
                    chunks.extend(chunk.take().map(ColumnChunk::Flat));
                }
                ColumnWriter::Arrow(_, own) => {
                    chunks.extend(
                        own.drain(..)
                            .map(|chunk| ColumnChunk::Arrow(Box::new(chunk))),
                    );
                }
            }
        }
        chunks
    }

    /// Bounds of the wanted columns, over all row groups.
    pub(super) fn take_bounds(&self) -> Vec<ColumnBounds> {
        (0..self.columns.len())
            .filter_map(|index| {
                self.column(index)
                    .bounds
                    .take()?
                    .finish(self.schema.field(index).name())
            })
            .collect()
    }

    /// Takes values of a column into account that are not encoded here.
    pub(super) fn add_bounds(&self, index: usize, array: &ArrayRef) {
        let mut column = self.column(index);
        if column
            .bounds
            .as_mut()
            .is_some_and(|bounds| !bounds.update(array))
        {
            column.bounds = None;
        }
    }

    fn help_until_stopped(&self) {
        // An error is reported by the thread that merges.
        let _ = self.work_until(|state| state.is_stopped);
    }

    /// Encodes columns until `enough`, or until there is an error.
    pub(super) fn work_until(&self, enough: impl Fn(&State) -> bool) -> Result<(), String> {
        let mut state = self.state();
        loop {
            if let Some(error) = &state.error {
                return Err(error.clone());
            }
            if enough(&state) {
                return Ok(());
            }
            let has_pages =
                |index: usize| self.packers[index].as_ref().is_some_and(Packer::has_pages);
            let Some(task) = state.take_task(has_pages) else {
                state = self
                    .changed
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let result = guarded(|| self.run(&task));
            let (index, is_job) = match &task {
                Task::Job(_, index) => (*index, true),
                Task::Pack(index) => (*index, false),
            };
            // Rows may go with it, which takes a while.
            drop(task);
            state = self.state();
            match result {
                Err(error) => {
                    state.jobs.clear();
                    state.error = Some(error);
                    self.changed.notify_all();
                }
                Ok(()) if is_job => {
                    if state.end_task(index) || has_pages(index) {
                        self.changed.notify_all();
                    }
                }
                Ok(()) => state.end_packing(index),
            }
        }
    }

    fn run(&self, task: &Task) -> Result<(), String> {
        let spare = || self.tools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tools = spare().pop().unwrap_or_default();
        let done = match task {
            Task::Job(work, index) => self.run_with(work, *index, &mut tools),
            Task::Pack(index) => match &self.packers[*index] {
                Some(packer) => packer.pack(&mut tools),
                None => Ok(()),
            },
        };
        spare().push(tools);
        done
    }

    fn run_with(&self, work: &Work, index: usize, tools: &mut Tools) -> Result<(), String> {
        let column = &mut *self.column(index);
        let memory_bytes = match work {
            Work::Encode { rows, start, count } => {
                let array = match (&column.bounds, &column.writer) {
                    (None, ColumnWriter::Flat(..)) => None,
                    _ => Some(rows.column(index)?.slice(*start, *count)),
                };
                if let (Some(bounds), Some(array)) = (&mut column.bounds, &array)
                    && !bounds.update(array)
                {
                    column.bounds = None;
                }
                match (&mut column.writer, &array) {
                    (ColumnWriter::Flat(flat, _), _) => {
                        let (arrays, wanted) = rows.pieces(index, *start, *count);
                        flat.write(&arrays, &wanted, tools)?;
                        flat.memory_bytes()
                    }
                    (ColumnWriter::Arrow(writers, _), Some(array)) => {
                        write_leaves(self.schema.field(index), array, writers)?
                    }
                    (ColumnWriter::Arrow(..), None) => 0,
                }
            }
            Work::Close => match &mut column.writer {
                ColumnWriter::Flat(flat, chunk) => {
                    let done = flat.close(tools)?;
                    let bytes = done.size_bytes();
                    *chunk = Some(Box::new(done));
                    bytes
                }
                ColumnWriter::Arrow(writers, chunks) => {
                    let writers = std::mem::take(writers).into_iter();
                    *chunks = writers
                        .map(ArrowColumnWriter::close)
                        .collect::<Result<_, _>>()
                        .map_err(|e| e.to_string())?;
                    0
                }
            },
        };
        self.memory_bytes[index].store(memory_bytes, Ordering::Relaxed);
        Ok(())
    }
}

/// Encodes an array with one writer for each leaf; gives the bytes that they take.
fn write_leaves(
    field: &Field,
    array: &ArrayRef,
    writers: &mut [ArrowColumnWriter],
) -> Result<usize, String> {
    let leaves = compute_leaves(field, array).map_err(|e| e.to_string())?;
    if leaves.len() != writers.len() {
        return Err(format!("column {:?} has unexpected parts", field.name()));
    }
    for (writer, leaf) in writers.iter_mut().zip(&leaves) {
        writer.write(leaf).map_err(|e| e.to_string())?;
    }
    Ok(writers.iter().map(ArrowColumnWriter::memory_size).sum())
}

/// Parquet columns of one Arrow column.
fn leaf_count(data_type: &DataType) -> usize {
    match data_type {
        DataType::Struct(fields) => fields
            .iter()
            .map(|field| leaf_count(field.data_type()))
            .sum(),
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _) => leaf_count(field.data_type()),
        _ => 1,
    }
}
