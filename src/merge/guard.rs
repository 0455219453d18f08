//! Reading bytes that nobody has checked yet: every allocation that a file asks for is
//! compared with what the file can hold, and a panic of the decoder stays with its file.

use std::{
    cell::Cell,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Once,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::{Bytes, BytesMut};
use parquet::{
    errors::{ParquetError, Result as ParquetResult},
    file::reader::{ChunkReader, Length},
};
use rustix::io::Errno;

/// Page headers are a few dozen bytes, with statistics a few hundred.
const HEADER_READ_BYTES: usize = 512;

thread_local! {
    /// Whether a panic of this thread will be caught and reported as an error.
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// From now on a panic that is caught and becomes an error, with the file and the reason in it, is not also
/// printed to stderr. All others go on to whatever was told of them before.
pub fn silence_caught_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let others = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                others(panic);
            }
        }));
    });
}

/// Runs `read`; a panic inside becomes an error, so that one bad file never ends the process.
pub(super) fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    let was_guarded = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(read));
    IS_GUARDED.set(was_guarded);
    result.unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no reason given");
        Err(format!("its bytes confuse the decoder ({text})"))
    })
}

/// Whether this process or its machine lacked something (open files, memory) while one input was
/// read. Whatever error came of it then says nothing about the file.
#[derive(Debug, Clone, Default)]
pub(super) struct Lack(Arc<AtomicBool>);

impl Lack {
    pub(super) fn note(&self, error: &io::Error) {
        let lacks = [Errno::MFILE, Errno::NFILE, Errno::NOMEM];
        if lacks
            .iter()
            .any(|lack| error.raw_os_error() == Some(lack.raw_os_error()))
        {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn was_noted(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One input's bytes: the open file, or a copy when it is small. Reads by position, so no
/// two readers disturb each other.
#[derive(Debug, Clone)]
pub(super) struct InputBytes {
    source: Source,
    size_bytes: u64,
    page_limit_bytes: Option<u64>,
    lack: Lack,
}

#[derive(Debug, Clone)]
enum Source {
    File(Arc<File>),
    Copy(Bytes),
}

impl InputBytes {
    /// Bytes of an open file of a known size.
    pub(super) fn file(file: File, size_bytes: u64, lack: Lack) -> Self {
        Self {
            source: Source::File(Arc::new(file)),
            size_bytes,
            page_limit_bytes: None,
            lack,
        }
    }

    /// Bytes that were read already.
    pub(super) fn copy(bytes: Bytes) -> Self {
        Self {
            size_bytes: bytes.len() as u64,
            source: Source::Copy(bytes),
            page_limit_bytes: None,
            lack: Lack::default(),
        }
    }

    /// Refuses pages that would grow beyond `limit_bytes`. Only for decoding: whatever is
    /// read through `get_read` is then a page header.
    pub(super) fn with_page_limit(mut self, limit_bytes: u64) -> Self {
        self.page_limit_bytes = Some(limit_bytes);
        self
    }

    /// Whether something of this size is within the limit of a page.
    pub(super) fn is_page(&self, bytes: u64) -> bool {
        self.page_limit_bytes.is_none_or(|limit| bytes <= limit)
    }

    /// Refuses a page by its header.
    pub(super) fn check_page(&self, header: &[u8]) -> ParquetResult<()> {
        let Some(limit_bytes) = self.page_limit_bytes else {
            return Ok(());
        };
        let Some((_, uncompressed, compressed)) = page_sizes(header) else {
            return Err(ParquetError::General("a page header is damaged".into()));
        };
        for (what, claimed) in [("", uncompressed), ("compressed ", compressed)] {
            let Ok(claimed) = u64::try_from(claimed) else {
                return Err(ParquetError::General(format!(
                    "a page claims a negative {what}size"
                )));
            };
            if claimed > limit_bytes {
                return Err(ParquetError::General(format!(
                    "a page claims {claimed} {what}bytes, more than the {limit_bytes} bytes that \
                     the memory budget leaves for one page; if the file is sound, raise \
                     worker.memory_budget"
                )));
            }
        }
        if u64::try_from(compressed).unwrap_or(u64::MAX) > self.size_bytes {
            return Err(ParquetError::General(format!(
                "a page claims {compressed} compressed bytes, more than the file has"
            )));
        }
        Ok(())
    }
}

impl InputBytes {
    /// Bytes at a place; those of a file into memory that was used before, since fresh memory
    /// costs more than reading.
    pub(super) fn read_into(
        &self,
        mut buffer: BytesMut,
        start: u64,
        length: usize,
    ) -> ParquetResult<Bytes> {
        let is_inside = start
            .checked_add(length as u64)
            .is_some_and(|end| end <= self.size_bytes);
        match &self.source {
            Source::File(file) if is_inside => {
                buffer.resize(length, 0);
                self.read_exactly(file, &mut buffer, start)?;
                Ok(buffer.freeze())
            }
            _ => self.get_bytes(start, length),
        }
    }

    fn read_exactly(&self, file: &File, buffer: &mut [u8], start: u64) -> io::Result<()> {
        file.read_exact_at(buffer, start)
            .inspect_err(|error| self.lack.note(error))
    }
}

/// Bytes of a file in memory of their own, which is not filled with anything before.
fn read_fresh(file: &File, start: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut buffer = Vec::with_capacity(length);
    while buffer.len() < length {
        let at = start + buffer.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut buffer), at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    // There may be room for more than was asked for.
    buffer.truncate(length);
    Ok(buffer)
}

impl Length for InputBytes {
    fn len(&self) -> u64 {
        self.size_bytes
    }
}

impl ChunkReader for InputBytes {
    type T = InputRead;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        // Nothing is read yet: the decoder also asks for places that it then reads another way.
        Ok(InputRead {
            bytes: self.clone(),
            position: start,
            buffer: Bytes::new(),
            is_checked: false,
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let end = start
            .checked_add(length as u64)
            .filter(|end| *end <= self.size_bytes)
            .ok_or_else(|| {
                ParquetError::EOF(format!(
                    "it points to {length} bytes at {start}, beyond its end at {}",
                    self.size_bytes
                ))
            })?;
        match &self.source {
            Source::Copy(bytes) => {
                let (start, end) = (usize::try_from(start)?, usize::try_from(end)?);
                Ok(bytes.slice(start..end))
            }
            Source::File(file) => {
                let read = read_fresh(file, start, length);
                Ok(read.inspect_err(|error| self.lack.note(error))?.into())
            }
        }
    }
}

/// Reads on from one position, a few hundred bytes at a time.
pub(super) struct InputRead {
    bytes: InputBytes,
    position: u64,
    buffer: Bytes,
    is_checked: bool,
}

impl InputRead {
    fn fill(&mut self, wanted: usize) -> ParquetResult<()> {
        let left = self.bytes.size_bytes.saturating_sub(self.position);
        let length = wanted.min(usize::try_from(left).unwrap_or(usize::MAX));
        self.buffer = self.bytes.get_bytes(self.position, length)?;
        self.position += length as u64;
        if !self.is_checked {
            self.is_checked = true;
            self.bytes.check_page(&self.buffer)?;
        }
        Ok(())
    }
}

impl Read for InputRead {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        if self.buffer.is_empty() {
            self.fill(HEADER_READ_BYTES.max(target.len().min(1 << 20)))
                .map_err(io::Error::other)?;
        }
        let length = target.len().min(self.buffer.len());
        target[..length].copy_from_slice(&self.buffer.split_to(length));
        Ok(length)
    }
}

/// The first fields of a page's Thrift header, all 32-bit integers: its type, its uncompressed and
/// its compressed size.
pub(super) fn page_sizes(header: &[u8]) -> Option<(i64, i64, i64)> {
    const NEXT_FIELD_I32: u8 = 0x15;
    let mut rest = header;
    let mut field = || {
        let (first, tail) = rest.split_first()?;
        rest = tail;
        if *first != NEXT_FIELD_I32 {
            return None;
        }
        let mut value = 0_u64;
        for shift in (0..35).step_by(7) {
            let (byte, tail) = rest.split_first()?;
            rest = tail;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                // Zigzag: the lowest bit is the sign; five bytes hold 35 bits, so it fits.
                let magnitude = i64::try_from(value >> 1).ok()?;
                return Some(if value & 1 == 0 {
                    magnitude
                } else {
                    -magnitude - 1
                });
            }
        }
        None
    };
    Some((field()?, field()?, field()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_read_from_the_first_header_fields() {
        // type 0, 300 uncompressed, 100 compressed
        let header = [0x15, 0x00, 0x15, 0xd8, 0x04, 0x15, 0xc8, 0x01, 0x2c];
        assert_eq!(page_sizes(&header), Some((0, 300, 100)));
        assert_eq!(
            page_sizes(&[0x15, 0x00, 0x15, 0x01, 0x15, 0x02]),
            Some((0, -1, 1))
        );
        assert_eq!(page_sizes(&header[..4]), None);
        assert_eq!(page_sizes(&[0x16, 0x00, 0x15, 0x00, 0x15, 0x00]), None);
    }

    #[test]
    fn a_page_that_claims_too_much_is_refused_before_anything_is_allocated() {
        let mut header = vec![0x15, 0x00, 0x15, 0xd8, 0x04, 0x15, 0xc8, 0x01, 0x2c];
        header.resize(200, 0);
        let read = |limit_bytes| -> Result<usize, String> {
            let bytes = InputBytes::copy(Bytes::copy_from_slice(&header));
            let mut read = bytes
                .with_page_limit(limit_bytes)
                .get_read(0)
                .map_err(|e| e.to_string())?;
            read.read(&mut [0; 4]).map_err(|e| e.to_string())
        };
        assert_eq!(read(300), Ok(4));
        assert!(read(299).is_err_and(|text| text.contains("claims 300 bytes")));
    }

    #[test]
    fn reads_beyond_the_end_are_errors() {
        let bytes = InputBytes::copy(Bytes::from_static(b"0123456789"));
        assert!(bytes.get_bytes(8, 3).is_err());
        assert!(bytes.get_bytes(u64::MAX, 3).is_err());
        assert_eq!(bytes.get_bytes(8, 2).ok(), Some(Bytes::from_static(b"89")));
    }

    #[test]
    fn a_panic_that_is_caught_is_not_also_printed() {
        use std::sync::atomic::AtomicUsize;
        static TOLD: AtomicUsize = AtomicUsize::new(0);
        let (ours, others) = (std::thread::current().id(), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            if std::thread::current().id() == ours {
                TOLD.fetch_add(1, Ordering::Relaxed);
            } else {
                others(panic);
            }
        }));
        silence_caught_panics();
        let result = guarded(|| -> Result<(), String> { panic!("caught") });
        assert!(result.is_err() && TOLD.load(Ordering::Relaxed) == 0);
        let result = catch_unwind(|| panic!("of another kind"));
        assert!(result.is_err() && TOLD.load(Ordering::Relaxed) == 1);
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let result = guarded(|| -> Result<(), String> { panic!("index out of bounds") });
        assert!(result.is_err_and(|text| text.contains("index out of bounds")));
    }
}
