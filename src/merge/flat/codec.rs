//! Page compression, with memory that is used again.

use parquet::basic::Compression;

/// What a thread needs to compress pages; made when first used.
#[derive(Default)]
pub(super) struct Codecs {
    snappy: Option<Box<snap::raw::Encoder>>,
    zstd: Option<(i32, zstd::bulk::Compressor<'static>)>,
}

impl Codecs {
    /// Whether pages can be compressed so.
    pub(super) fn supports(compression: Compression) -> bool {
        matches!(
            compression,
            Compression::UNCOMPRESSED
                | Compression::SNAPPY
                | Compression::LZ4_RAW
                | Compression::ZSTD(_)
        )
    }

    /// Compresses into the start of `into`, which is made as long as it may have to be and never
    /// shorter; gives the bytes taken.
    pub(super) fn compress(
        &mut self,
        compression: Compression,
        from: &[u8],
        into: &mut Vec<u8>,
    ) -> Result<usize, String> {
        let make_room = |into: &mut Vec<u8>, bytes: usize| {
            if into.len() < bytes {
                into.resize(bytes, 0);
            }
        };
        let length = match compression {
            Compression::SNAPPY => {
                make_room(into, snap::raw::max_compress_len(from.len()));
                self.snappy
                    .get_or_insert_with(|| Box::new(snap::raw::Encoder::new()))
                    .compress(from, into)
                    .map_err(|e| e.to_string())?
            }
            Compression::LZ4_RAW => {
                make_room(into, lz4_flex::block::get_maximum_output_size(from.len()));
                lz4_flex::block::compress_into(from, into).map_err(|e| e.to_string())?
            }
            Compression::ZSTD(level) => {
                let level = level.compression_level();
                if self.zstd.as_ref().is_none_or(|(known, _)| *known != level) {
                    let made = zstd::bulk::Compressor::new(level).map_err(|e| e.to_string())?;
                    self.zstd = Some((level, made));
                }
                let Some((_, encoder)) = &mut self.zstd else {
                    return Err("there is no zstd encoder".to_owned());
                };
                make_room(into, zstd::zstd_safe::compress_bound(from.len()));
                encoder
                    .compress_to_buffer(from, &mut into[..])
                    .map_err(|e| e.to_string())?
            }
            other => return Err(format!("pages cannot be compressed as {other}")),
        };
        Ok(length)
    }
}
