//! Unpacks the pages of copied column chunks, beside the copying of the next ones.

use std::sync::{Arc, mpsc};

use bytes::BytesMut;
use parquet::{
    column::page::PageReader,
    file::{
        metadata::{ColumnChunkMetaData, ParquetMetaData},
        serialized_reader::SerializedPageReader,
    },
};

use super::{
    chunks::{ChunkBytes, CopyError, bad},
    guard::guarded,
    page_check::Unpacker,
};

/// A chunk whose pages were not unpacked yet.
pub(super) struct Copied {
    /// The place of its input.
    pub(super) input: usize,
    pub(super) read: ChunkBytes,
    pub(super) metadata: Arc<ParquetMetaData>,
    pub(super) group: usize,
    pub(super) column: usize,
}

impl Copied {
    /// Unpacks the pages; gives the memory back.
    fn check(self, unpacker: &mut Unpacker) -> Result<BytesMut, CopyError> {
        let group = self.metadata.row_group(self.group);
        let rows = u64::try_from(group.num_rows()).unwrap_or(0);
        guarded(|| check_pages(&self.read, group.column(self.column), rows, unpacker)).map_err(
            |reason| {
                bad(
                    self.input,
                    self.metadata.row_group(self.group),
                    self.column,
                    &reason,
                )
            },
        )?;
        Ok(self.read.recycle())
    }
}

/// Unpacks copied chunks, a chunk while the next one is read and written if it has a thread.
pub(super) struct Checker {
    beside: Option<Beside>,
    unpacker: Unpacker,
    /// Memory for the next chunk.
    spare: Vec<BytesMut>,
}

/// A thread that unpacks. It ends when nothing can be sent to it any more.
struct Beside {
    to_check: mpsc::SyncSender<Copied>,
    checked: mpsc::Receiver<Result<BytesMut, CopyError>>,
    outstanding: usize,
    /// The input of the chunk that was sent last.
    latest_input: usize,
}

impl Checker {
    /// Without the thread, chunks are unpacked where they are copied.
    pub(super) fn new(in_parallel: bool) -> Self {
        Self {
            beside: in_parallel.then(Beside::start).flatten(),
            unpacker: Unpacker::default(),
            spare: Vec::new(),
        }
    }

    /// Memory for the next chunk.
    pub(super) fn buffer(&mut self) -> Result<BytesMut, CopyError> {
        if self.spare.is_empty()
            && let Some(beside) = &mut self.beside
            && let Ok(done) = beside.checked.try_recv()
        {
            beside.outstanding -= 1;
            return done;
        }
        Ok(self.spare.pop().unwrap_or_default())
    }

    /// Takes a chunk that was copied.
    pub(super) fn check(&mut self, copied: Copied) -> Result<(), CopyError> {
        let Some(beside) = &mut self.beside else {
            self.spare.push(copied.check(&mut self.unpacker)?);
            return Ok(());
        };
        // It waits until the chunk before is done: no more than one is unpacked and one copied.
        beside.latest_input = copied.input;
        let confused = |copied: mpsc::SendError<Copied>| confused(copied.0.input);
        beside.to_check.send(copied).map_err(confused)?;
        beside.outstanding += 1;
        Ok(())
    }

    /// Waits for what is still being unpacked: before that is done, the output is not to be used.
    pub(super) fn finish(mut self) -> Result<(), CopyError> {
        let Some(beside) = &mut self.beside else {
            return Ok(());
        };
        while beside.outstanding > 0 {
            beside.outstanding -= 1;
            let done = beside.checked.recv();
            done.map_err(|_| confused(beside.latest_input))??;
        }
        Ok(())
    }
}

impl Beside {
    fn start() -> Option<Self> {
        let (to_check, copied) = mpsc::sync_channel::<Copied>(0);
        let (give_back, checked) = mpsc::channel();
        let check_all = move || {
            let mut unpacker = Unpacker::default();
            for copied in copied {
                if give_back.send(copied.check(&mut unpacker)).is_err() {
                    // Nobody waits any more.
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("merge-check".into());
        thread.spawn(check_all).ok()?;
        Some(Self {
            to_check,
            checked,
            outstanding: 0,
            latest_input: 0,
        })
    }
}

fn confused(input: usize) -> CopyError {
    let reason = "its bytes confuse the decoder".to_owned();
    CopyError::Bad { input, reason }
}

/// Unpacks every page: together they must hold as many values as the footer says.
fn check_pages(
    read: &ChunkBytes,
    chunk: &ColumnChunkMetaData,
    rows: u64,
    unpacker: &mut Unpacker,
) -> Result<(), String> {
    let value_count = if Unpacker::supports(chunk.compression()) {
        unpacker.check(&read.bytes, &read.headers, chunk)?
    } else {
        values_read(read, chunk, rows)?
    };
    let promised = u64::try_from(chunk.num_values()).map_err(|e| e.to_string())?;
    if value_count != promised {
        return Err(format!(
            "its footer promises {promised} values, its pages hold {value_count}"
        ));
    }
    let is_list = chunk.column_descr().max_rep_level() > 0;
    if value_count < rows || !is_list && value_count > rows {
        return Err(format!("{rows} rows cannot have {value_count} values"));
    }
    Ok(())
}

/// Reads every page with the decoder; gives the values in them.
fn values_read(read: &ChunkBytes, chunk: &ColumnChunkMetaData, rows: u64) -> Result<u64, String> {
    let rows_total = usize::try_from(rows).map_err(|e| e.to_string())?;
    let mut pages = SerializedPageReader::new(Arc::new(read.clone()), chunk, rows_total, None)
        .map_err(|e| e.to_string())?;
    let mut value_count = 0_u64;
    while let Some(page) = pages.get_next_page().map_err(|e| e.to_string())? {
        if page.is_data_page() {
            value_count += u64::from(page.num_values());
        }
    }
    Ok(value_count)
}
