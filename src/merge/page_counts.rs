//! What pages claim: their counts are compared with their bytes and with what one batch may take.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use bytes::Bytes;
use parquet::{
    basic::{Encoding, Type as PhysicalType},
    column::page::Page,
    errors::{ParquetError, Result as ParquetResult},
    schema::types::ColumnDescPtr,
};

use super::delta::read_lengths;

/// Room for the levels of one value of a list.
const LEVELS_BYTES: u64 = 4;
/// Room that the decoder makes for the lengths of one delta-encoded text.
const LENGTHS_BYTES: u64 = 8;

/// What a batch may take.
#[derive(Clone)]
pub(super) struct Limits {
    pub(super) batch_rows: usize,
    pub(super) bytes: u64,
    /// Rows with which the texts that were too long would have fitted.
    pub(super) fitting: Arc<AtomicUsize>,
}

/// What is known of the pages of one column chunk.
pub(super) struct PageCheck {
    pub(super) column: ColumnDescPtr,
    pub(super) limits: Limits,
    /// Values that the footer promises beyond those of the pages passed.
    pub(super) values_left: u64,
    /// The longest text of the dictionary.
    pub(super) longest_bytes: u64,
    /// Rows take no memory for texts of the dictionary.
    pub(super) is_shared: bool,
}

impl PageCheck {
    /// Refuses a page whose counts are not those of its bytes, or take too much memory.
    pub(super) fn check(&mut self, page: &Page) -> ParquetResult<()> {
        match page {
            Page::DictionaryPage {
                buf, num_values, ..
            } => self.check_dictionary(buf, u64::from(*num_values)),
            Page::DataPage {
                buf,
                num_values,
                encoding,
                def_level_encoding,
                rep_level_encoding,
                ..
            } => {
                let count = u64::from(*num_values);
                self.pass_values(count)?;
                let levels = [
                    (self.column.max_rep_level(), *rep_level_encoding),
                    (self.column.max_def_level(), *def_level_encoding),
                ];
                self.check_data(*encoding, count, || after_levels(buf, count, levels))
            }
            Page::DataPageV2 {
                buf,
                num_values,
                encoding,
                def_levels_byte_len,
                rep_levels_byte_len,
                ..
            } => {
                let count = u64::from(*num_values);
                self.pass_values(count)?;
                let levels = u64::from(*def_levels_byte_len) + u64::from(*rep_levels_byte_len);
                let start = usize::try_from(levels)?;
                self.check_data(*encoding, count, || buf.get(start..))
            }
        }
    }

    fn error(&self, what: &str) -> ParquetError {
        ParquetError::General(format!("column {:?}: {what}", self.column.path().string()))
    }

    /// Counts the values of a page.
    pub(super) fn pass_values(&mut self, count: u64) -> ParquetResult<()> {
        self.values_left = self
            .values_left
            .checked_sub(count)
            .ok_or_else(|| self.error("its pages claim more values than its footer"))?;
        let is_list = self.column.max_rep_level() > 0;
        if is_list && count.saturating_mul(LEVELS_BYTES) > self.limits.bytes {
            return Err(self.error(&format!(
                "a page claims {count} values of lists, too many for the memory budget; if the \
                 file is sound, raise worker.memory_budget"
            )));
        }
        Ok(())
    }

    fn check_dictionary(&mut self, buf: &Bytes, count: u64) -> ParquetResult<()> {
        let entry_bits = match self.column.physical_type() {
            PhysicalType::BOOLEAN => 1,
            PhysicalType::INT32 | PhysicalType::FLOAT | PhysicalType::BYTE_ARRAY => 32,
            PhysicalType::INT64 | PhysicalType::DOUBLE => 64,
            PhysicalType::INT96 => 96,
            PhysicalType::FIXED_LEN_BYTE_ARRAY => {
                8 * u64::try_from(self.column.type_length()).unwrap_or(0)
            }
        };
        if count.saturating_mul(entry_bits.max(1)) > 8 * buf.len() as u64 {
            return Err(self.error(&format!(
                "a dictionary claims {count} entries in {} bytes",
                buf.len()
            )));
        }
        if self.column.physical_type() == PhysicalType::BYTE_ARRAY {
            self.longest_bytes = longest_text(buf);
        }
        Ok(())
    }

    fn check_data<'a>(
        &self,
        encoding: Encoding,
        count: u64,
        values: impl FnOnce() -> Option<&'a [u8]>,
    ) -> ParquetResult<()> {
        let longest_bytes = match encoding {
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY if self.is_shared => {
                return Ok(());
            }
            Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY => self.longest_bytes,
            Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY => {
                if count.saturating_mul(LENGTHS_BYTES) > self.limits.bytes {
                    return Err(self.error(&format!(
                        "a page claims {count} texts, too many for the memory budget; if the \
                         file is sound, raise worker.memory_budget"
                    )));
                }
                values()
                    .and_then(|values| longest_delta(values, encoding, count))
                    .ok_or_else(|| self.error("the lengths of a page's texts are damaged"))?
            }
            _ => return Ok(()),
        };
        let fitting = usize::try_from(self.limits.bytes / longest_bytes.max(1))
            .unwrap_or(usize::MAX)
            .max(1);
        if fitting < self.limits.batch_rows {
            self.limits.fitting.fetch_min(fitting, Ordering::Relaxed);
            return Err(self.error(&format!(
                "texts of {longest_bytes} bytes are too long for {} rows at a time",
                self.limits.batch_rows
            )));
        }
        Ok(())
    }
}

/// Bytes of the longest text of a dictionary, as far as it is sound.
fn longest_text(mut buf: &[u8]) -> u64 {
    let mut longest = 0;
    while let Some((length, rest)) = buf.split_first_chunk() {
        let length = u32::from_le_bytes(*length);
        let Some(rest) = usize::try_from(length).ok().and_then(|at| rest.get(at..)) else {
            break;
        };
        longest = longest.max(u64::from(length));
        buf = rest;
    }
    longest
}

/// Bytes of the longest of `count` delta-encoded texts. Their lengths make room for as many
/// values as they claim, which are no more than those of the page.
fn longest_delta(values: &[u8], encoding: Encoding, count: u64) -> Option<u64> {
    let mut longest = 0;
    if encoding == Encoding::DELTA_LENGTH_BYTE_ARRAY {
        read_lengths(values, count, |length| {
            longest = longest.max(u64::try_from(length).ok()?);
            Some(())
        })?;
        return Some(longest);
    }
    let mut prefixes = Vec::new();
    let end = read_lengths(values, count, |prefix| {
        prefixes.push(u64::try_from(prefix).ok()?);
        Some(())
    })?;
    let mut prefixes = prefixes.into_iter();
    let mut previous = 0;
    read_lengths(values.get(end..)?, count, |suffix| {
        let prefix: u64 = prefixes.next()?;
        if prefix > previous {
            return None;
        }
        previous = prefix + u64::try_from(suffix).ok()?;
        longest = longest.max(previous);
        Some(())
    })?;
    prefixes.next().is_none().then_some(longest)
}

/// What follows the levels of a first version's page.
fn after_levels(buf: &[u8], count: u64, levels: [(i16, Encoding); 2]) -> Option<&[u8]> {
    let mut rest = buf;
    for (level_max, encoding) in levels {
        if level_max <= 0 {
            continue;
        }
        #[expect(deprecated, reason = "old files have it")]
        let length = if encoding == Encoding::BIT_PACKED {
            let width = u64::from(i16::BITS - level_max.leading_zeros());
            count.checked_mul(width)?.div_ceil(8)
        } else {
            let (length, behind) = rest.split_first_chunk()?;
            rest = behind;
            u64::from(u32::from_le_bytes(*length))
        };
        rest = rest.get(usize::try_from(length).ok()?..)?;
    }
    Some(rest)
}
