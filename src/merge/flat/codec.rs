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

    /// Replaces the content of `into`.
    pub(super) fn compress(
        &mut self,
        compression: Compression,
        from: &[u8],
        into: &mut Vec<u8>,
    ) -> Result<(), String> {
        let length = match compression {
            Compression::SNAPPY => {
                into.resize(snap::raw::max_compress_len(from.len()), 0);
                self.snappy
                    .get_or_insert_with(|| Box::new(snap::raw::Encoder::new()))
                    .compress(from, into)
                    .map_err(|e| e.to_string())?
            }
            Compression::LZ4_RAW => {
                into.resize(lz4_flex::block::get_maximum_output_size(from.len()), 0);
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
                into.resize(zstd::zstd_safe::compress_bound(from.len()), 0);
                encoder
                    .compress_to_buffer(from, into)
                    .map_err(|e| e.to_string())?
            }
            other => return Err(format!("pages cannot be compressed as {other}")),
        };
        into.truncate(length);
        Ok(())
    }
}
