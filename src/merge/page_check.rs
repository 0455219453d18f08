//! Unpacks pages that nobody decodes, into memory that is used again: what they are said to
//! hold is compared with what they hold.

use parquet::{basic::Compression, file::metadata::ColumnChunkMetaData};

use super::thrift::{Compact, Kind};

/// A page's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PageHeader {
    /// Bytes of the header itself.
    pub(super) header_bytes: usize,
    /// Bytes of the body as it is stored.
    pub(super) stored_bytes: usize,
    /// Bytes of the body, unpacked.
    unpacked_bytes: usize,
    kind: PageKind,
    /// Of the stored body.
    checksum: Option<u32>,
    /// Values and nulls of a page of data.
    value_count: u64,
    /// Of a page of version 2: bytes of levels, which are never compressed.
    level_bytes: usize,
    is_compressed: bool,
}

/// What is in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PageKind {
    Data,
    Dictionary,
    Index,
}

impl PageHeader {
    /// Reads the header at the start of `bytes`; `None` when it is damaged or its body reaches
    /// beyond them. Numbers and meaning of fields: `PageHeader` of the format's `parquet.thrift`.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Compact::new(bytes);
        let (mut kind, mut unpacked, mut stored) = (None, None, None);
        let mut header = Self {
            header_bytes: 0,
            stored_bytes: 0,
            unpacked_bytes: 0,
            kind: PageKind::Index,
            checksum: None,
            value_count: 0,
            level_bytes: 0,
            is_compressed: true,
        };
        let mut field = 0;
        loop {
            let value = reader.field(&mut field)?;
            match (field, value) {
                (_, Kind::Stop) => break,
                (1, Kind::Integer) => kind = Some(reader.zigzag()?),
                (2, Kind::Integer) => unpacked = usize::try_from(reader.zigzag()?).ok(),
                (3, Kind::Integer) => stored = usize::try_from(reader.zigzag()?).ok(),
                (4, Kind::Integer) => {
                    let bits = i32::try_from(reader.zigzag()?).ok()?;
                    header.checksum = Some(bits.cast_unsigned());
                }
                (5 | 8, Kind::Struct) => header.read_data(&mut reader, field == 8)?,
                (_, value) => reader.skip(value)?,
            }
        }
        header.kind = match kind? {
            0 | 3 => PageKind::Data,
            1 => PageKind::Index,
            2 => PageKind::Dictionary,
            _ => return None,
        };
        header.header_bytes = bytes.len() - reader.left();
        (header.unpacked_bytes, header.stored_bytes) = (unpacked?, stored?);
        let is_possible = header.stored_bytes <= reader.left()
            && header.level_bytes <= header.stored_bytes.min(header.unpacked_bytes);
        is_possible.then_some(header)
    }

    /// What only pages of data have.
    fn read_data(&mut self, reader: &mut Compact<'_>, is_second_version: bool) -> Option<()> {
        let mut field = 0;
        loop {
            match (reader.field(&mut field)?, field) {
                (Kind::Stop, _) => return Some(()),
                (Kind::Integer, 1) => self.value_count = u64::try_from(reader.zigzag()?).ok()?,
                (Kind::Integer, 5 | 6) if is_second_version => {
                    let bytes = usize::try_from(reader.zigzag()?).ok()?;
                    self.level_bytes = self.level_bytes.checked_add(bytes)?;
                }
                (Kind::Boolean, 7) if is_second_version => self.is_compressed = reader.flag(),
                (kind, _) => reader.skip(kind)?,
            }
        }
    }

    /// Whether it is a page of data.
    pub(super) fn is_data(&self) -> bool {
        self.kind == PageKind::Data
    }
}

/// Unpacks pages; made once, used for all.
#[derive(Default)]
pub(super) struct Unpacker {
    snappy: snap::raw::Decoder,
    zstd: Option<zstd::bulk::Decompressor<'static>>,
    /// Long enough for the largest page so far.
    unpacked: Vec<u8>,
}

impl Unpacker {
    /// Whether pages can be unpacked here.
    pub(super) fn supports(compression: Compression) -> bool {
        matches!(
            compression,
            Compression::UNCOMPRESSED
                | Compression::SNAPPY
                | Compression::LZ4_RAW
                | Compression::ZSTD(_)
        )
    }

    /// Unpacks the pages of a chunk, whose headers are `headers`; gives the values in them.
    pub(super) fn check(
        &mut self,
        mut bytes: &[u8],
        headers: &[PageHeader],
        chunk: &ColumnChunkMetaData,
    ) -> Result<u64, String> {
        let mut value_count = 0_u64;
        for header in headers {
            let body = bytes.get(header.header_bytes..);
            let page = body.and_then(|body| body.split_at_checked(header.stored_bytes));
            let (page, rest) = page.ok_or("a page reaches beyond its column chunk")?;
            bytes = rest;
            if header
                .checksum
                .is_some_and(|checksum| checksum != crc32fast::hash(page))
            {
                return Err("a page differs from its checksum".to_owned());
            }
            if header.kind == PageKind::Index {
                continue;
            }
            let compression = if header.is_compressed {
                chunk.compression()
            } else {
                Compression::UNCOMPRESSED
            };
            let promised = header.unpacked_bytes - header.level_bytes;
            let packed = &page[header.level_bytes..];
            // A page of nulls only may have no body at all.
            let found = if promised == 0 && compression != Compression::UNCOMPRESSED {
                Ok(0)
            } else {
                self.unpack(compression, packed, promised)
            };
            let found = found.map_err(|e| format!("a page cannot be unpacked: {e}"))?;
            if found != promised {
                return Err(format!(
                    "a page promises {promised} bytes and holds {found}"
                ));
            }
            if header.is_data() {
                value_count = value_count.saturating_add(header.value_count);
            }
        }
        Ok(value_count)
    }

    /// Unpacks a body; gives its length.
    fn unpack(
        &mut self,
        compression: Compression,
        packed: &[u8],
        promised: usize,
    ) -> Result<usize, String> {
        if compression == Compression::UNCOMPRESSED {
            return Ok(packed.len());
        }
        if self.unpacked.len() < promised {
            // Without what was there: it is not moved to a larger place.
            self.unpacked = vec![0; promised];
        }
        let into = &mut self.unpacked[..promised];
        match compression {
            Compression::SNAPPY => {
                let length = snap::raw::decompress_len(packed).map_err(|e| e.to_string())?;
                if length != promised {
                    return Ok(length);
                }
                let done = self.snappy.decompress(packed, into);
                done.map_err(|e| e.to_string())
            }
            Compression::LZ4_RAW => {
                lz4_flex::block::decompress_into(packed, into).map_err(|e| e.to_string())
            }
            Compression::ZSTD(_) => {
                if self.zstd.is_none() {
                    let made = zstd::bulk::Decompressor::new();
                    self.zstd = Some(made.map_err(|e| e.to_string())?);
                }
                let decoder = self.zstd.as_mut().ok_or("there is no zstd decoder")?;
                let done = decoder.decompress_to_buffer(packed, into);
                done.map_err(|e| e.to_string())
            }
            other => Err(format!("its compression is {other}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Type, 300 bytes unpacked, `stored` stored, and the rest.
    fn header(kind: u8, stored: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x15, kind * 2, 0x15, 0xd8, 0x04, 0x15, stored * 2];
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn headers_of_both_versions_are_read() {
        // Field 5, a struct: 7 values.
        let mut first = header(0, 3, &[0x2c, 0x15, 14, 0, 0]);
        let length = first.len();
        first.extend_from_slice(&[0; 3]);
        let read = PageHeader::read(&first).unwrap();
        assert_eq!((read.header_bytes, read.stored_bytes), (length, 3));
        assert_eq!((read.unpacked_bytes, read.value_count), (300, 7));
        assert!(read.is_data() && read.is_compressed);
        // Field 8: 7 values, levels of 2 and 1 bytes, not compressed.
        let levels = [0x5c, 0x15, 14, 0x45, 4, 0x15, 2, 0x12, 0, 0];
        let mut second = header(3, 9, &levels);
        second.extend_from_slice(&[0; 9]);
        let read = PageHeader::read(&second).unwrap();
        assert_eq!((read.level_bytes, read.is_compressed), (3, false));
    }

    #[test]
    fn a_page_that_reaches_beyond_its_bytes_is_damaged() {
        let bytes = header(0, 3, &[0x2c, 0x15, 14, 0, 0, 1, 2]);
        assert_eq!(PageHeader::read(&bytes), None);
        // More levels than body.
        let levels = header(3, 2, &[0x5c, 0x15, 14, 0x45, 40, 0, 0, 1, 2]);
        assert_eq!(PageHeader::read(&levels), None);
        // No size.
        assert_eq!(PageHeader::read(&[0x15, 0, 0]), None);
    }

    #[test]
    fn what_a_page_holds_is_compared_with_what_it_promises() {
        let content = [7_u8; 300];
        let packed = snap::raw::Encoder::new().compress_vec(&content).unwrap();
        let stored = u8::try_from(packed.len()).unwrap();
        let mut unpacker = Unpacker::default();
        let mut unpack =
            |compression, packed: &[u8], promised| unpacker.unpack(compression, packed, promised);
        assert!(stored < 60);
        assert_eq!(unpack(Compression::SNAPPY, &packed, 300), Ok(300));
        assert_eq!(unpack(Compression::SNAPPY, &packed, 299), Ok(300));
        assert!(unpack(Compression::SNAPPY, &packed[..9], 300).is_err());
        let zstd = Compression::ZSTD(parquet::basic::ZstdLevel::default());
        let packed = zstd::bulk::compress(&content, 1).unwrap();
        assert_eq!(unpack(zstd, &packed, 300), Ok(300));
        assert!(unpack(zstd, &packed, 299).is_err());
        assert_eq!(unpack(zstd, &packed, 400), Ok(300));
        let packed = lz4_flex::block::compress(&content);
        assert_eq!(unpack(Compression::LZ4_RAW, &packed, 300), Ok(300));
        assert!(unpack(Compression::LZ4_RAW, &packed, 299).is_err());
        assert_eq!(unpack(Compression::UNCOMPRESSED, &content, 299), Ok(300));
    }
}
