//! Pages of texts that wait to be compressed. Compressing takes longer than everything else
//! that is done for them: so another thread may do it, while the column takes further rows.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    Tools,
    chunk::{Chunk, Compressing, PageFacts},
};

/// Pages that may wait, at most.
const WAITING_MAX: usize = 2;

/// The chunk of a column and the pages on their way to it.
#[derive(Clone, Default)]
pub(in crate::merge) struct Packer(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Whoever holds it compresses; pages enter it in order.
    chunk: Mutex<Option<Chunk>>,
    waiting: Mutex<Waiting>,
    waiting_count: AtomicUsize,
    chunk_bytes: AtomicUsize,
    waiting_bytes: AtomicUsize,
}

#[derive(Default)]
struct Waiting {
    pages: VecDeque<WaitingPage>,
    /// Memory of pages that are done.
    spare: Vec<Vec<u8>>,
}

/// A page that is not compressed yet.
pub(super) struct WaitingPage {
    pub(super) facts: PageFacts,
    /// How its range compares with that of the page before; see [`Chunk::add_page`].
    pub(super) follows: Option<(bool, bool)>,
    /// Its body, from `start` on.
    pub(super) memory: Vec<u8>,
    pub(super) start: usize,
}

impl Packer {
    /// Starts a chunk.
    pub(super) fn start(&self, chunk: Chunk) {
        *self.chunk() = Some(chunk);
    }

    /// Whether pages wait.
    pub(in crate::merge) fn has_pages(&self) -> bool {
        self.0.waiting_count.load(Ordering::Relaxed) > 0
    }

    /// Bytes of the chunk and of the pages that wait.
    pub(super) fn memory_bytes(&self) -> usize {
        let bytes = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        bytes(&self.0.chunk_bytes) + bytes(&self.0.waiting_bytes)
    }

    /// Appends a page; gives memory for the next one.
    pub(super) fn push(
        &self,
        page: WaitingPage,
        tools: &mut Compressing,
    ) -> Result<Vec<u8>, String> {
        let bytes = page.memory.capacity();
        self.0.waiting_bytes.fetch_add(bytes, Ordering::Relaxed);
        let mut waiting = self.waiting();
        waiting.pages.push_back(page);
        let mut count = waiting.pages.len();
        self.0.waiting_count.store(count, Ordering::Relaxed);
        drop(waiting);
        while count > WAITING_MAX {
            self.pack_one(tools)?;
            count = self.waiting().pages.len();
        }
        Ok(self.waiting().spare.pop().unwrap_or_default())
    }

    /// Compresses the oldest page that waits, if there is one.
    pub(in crate::merge) fn pack(&self, tools: &mut Tools) -> Result<(), String> {
        self.pack_one(&mut tools.compressing)
    }

    fn pack_one(&self, tools: &mut Compressing) -> Result<(), String> {
        let mut chunk = self.chunk();
        let Some(chunk) = chunk.as_mut() else {
            return Ok(());
        };
        let mut waiting = self.waiting();
        let Some(mut page) = waiting.pages.pop_front() else {
            return Ok(());
        };
        let count = waiting.pages.len();
        self.0.waiting_count.store(count, Ordering::Relaxed);
        drop(waiting);
        chunk.add_page(page.facts, &page.memory[page.start..], page.follows, tools)?;
        self.0
            .chunk_bytes
            .store(chunk.size_bytes(), Ordering::Relaxed);
        let bytes = page.memory.capacity();
        self.0.waiting_bytes.fetch_sub(bytes, Ordering::Relaxed);
        page.memory.clear();
        let spare = &mut self.waiting().spare;
        if spare.len() < WAITING_MAX {
            spare.push(page.memory);
        }
        Ok(())
    }

    /// Does something with the chunk, when all pages before are in it.
    pub(super) fn with_chunk<T>(
        &self,
        tools: &mut Compressing,
        act: impl FnOnce(&mut Chunk, &mut Compressing) -> Result<T, String>,
    ) -> Result<T, String> {
        while self.has_pages() {
            self.pack_one(tools)?;
        }
        let mut chunk = self.chunk();
        let chunk = chunk.as_mut().ok_or("a column has no chunk")?;
        let done = act(chunk, tools)?;
        self.0
            .chunk_bytes
            .store(chunk.size_bytes(), Ordering::Relaxed);
        Ok(done)
    }

    /// Ends the chunk.
    pub(super) fn take(&self, tools: &mut Compressing) -> Result<Chunk, String> {
        self.with_chunk(tools, |_, _| Ok(()))?;
        self.waiting().spare.clear();
        self.0.chunk_bytes.store(0, Ordering::Relaxed);
        self.chunk()
            .take()
            .ok_or_else(|| "a row group has no rows".to_owned())
    }

    fn chunk(&self) -> MutexGuard<'_, Option<Chunk>> {
        // A panic meanwhile becomes an error that ends the merge.
        let chunk = self.0.chunk.lock();
        chunk.unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing panics while it holds this lock.
        let waiting = self.0.waiting.lock();
        waiting.unwrap_or_else(PoisonError::into_inner)
    }
}
