//! A page of texts in the making.

use parquet::{
    basic::{ConvertedType, Encoding, LogicalType},
    data_type::ByteArray,
    file::statistics::{Statistics, ValueStatistics},
    schema::types::ColumnDescPtr,
};

use super::{
    chunk::PageFacts,
    trim::{trim_high, trim_low},
};

/// Room for the levels of a page without nulls, ahead of its values: a length, a run and its level.
pub(super) const LEVELS_ROOM: usize = 16;
/// Statistics and indexes hold no more bytes of a text.
pub(super) const STATISTICS_BYTES_MAX: usize = 64;

/// The page in progress: places in the dictionary, or texts.
#[derive(Default)]
pub(super) struct Page {
    pub(super) rows: usize,
    /// For each row 1 where there is a value; empty while there are no nulls.
    pub(super) present: Vec<u8>,
    /// With a dictionary: for each value its entry.
    pub(super) indexes: Vec<u32>,
    /// Without: values as they are stored, behind room for levels.
    pub(super) body: Vec<u8>,
    pub(super) value_count: usize,
    pub(super) text_bytes: usize,
    pub(super) low: Vec<u8>,
    pub(super) high: Vec<u8>,
}

impl Page {
    #[inline]
    pub(super) fn put(&mut self, text: &[u8]) {
        if self.body.is_empty() {
            self.body.resize(LEVELS_ROOM, 0);
        }
        put_text(text, &mut self.body);
        if self.value_count == 0 {
            self.low = text.to_vec();
            self.high = text.to_vec();
        } else if text < &self.low[..] {
            replace(&mut self.low, text);
        } else if text > &self.high[..] {
            replace(&mut self.high, text);
        }
        self.value_count += 1;
        self.text_bytes += text.len();
    }

    #[inline]
    pub(super) fn count_row(&mut self) {
        self.rows += 1;
        if !self.present.is_empty() {
            self.present.resize(self.rows, 1);
        }
    }

    pub(super) fn facts(&self, encoding: Encoding) -> PageFacts {
        PageFacts {
            rows: self.rows,
            nulls: self.rows - self.value_count,
            nans: None,
            range: None,
            encoding,
            text_bytes: Some(self.text_bytes),
        }
    }

    pub(super) fn clear(&mut self) {
        (self.rows, self.value_count, self.text_bytes) = (0, 0, 0);
        self.present.clear();
        self.indexes.clear();
        self.body.clear();
    }
}

fn replace(known: &mut Vec<u8>, text: &[u8]) {
    known.clear();
    known.extend_from_slice(text);
}

pub(super) fn put_text(text: &[u8], into: &mut Vec<u8>) {
    // A page, and so a text, has fewer bytes than 32 bits count: see `Texts::of`.
    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
    into.extend_from_slice(&length.to_le_bytes());
    into.extend_from_slice(text);
}

/// The smallest and largest text.
pub(super) type Range = Option<(Vec<u8>, Vec<u8>)>;

/// Completes what is known of a page by its range, and that of the chunk by the page's. Says how
/// the range compares with that of the page before.
pub(super) fn judge_range(
    facts: &mut PageFacts,
    range: Range,
    (of_chunk, before): (&mut Range, &mut Range),
    is_text: bool,
) -> Option<(bool, bool)> {
    let follows = before.as_ref().zip(range.as_ref()).map(|(before, new)| {
        (
            before.0 <= new.0 && before.1 <= new.1,
            new.0 <= before.0 && new.1 <= before.1,
        )
    });
    facts.range = range.as_ref().map(|(low, high)| {
        (
            trim_low(low, STATISTICS_BYTES_MAX, is_text).to_vec(),
            trim_high(high, STATISTICS_BYTES_MAX, is_text),
        )
    });
    if let Some((low, high)) = &range {
        match of_chunk {
            None => *of_chunk = Some((low.clone(), high.clone())),
            Some((known_low, known_high)) => {
                if low < known_low {
                    replace(known_low, low);
                }
                if high > known_high {
                    replace(known_high, high);
                }
            }
        }
        *before = range;
    }
    follows
}

/// The statistics of a chunk.
pub(super) fn statistics(
    range: Option<&(Vec<u8>, Vec<u8>)>,
    null_count: usize,
    descr: &ColumnDescPtr,
) -> Statistics {
    let nulls = Some(null_count as u64);
    let Some((low, high)) = range else {
        let none = ValueStatistics::<ByteArray>::new(None, None, None, nulls, false);
        return Statistics::ByteArray(none);
    };
    let is_text = is_text(descr);
    let short_low = trim_low(low, STATISTICS_BYTES_MAX, is_text);
    let short_high = trim_high(high, STATISTICS_BYTES_MAX, is_text);
    let is_exact = (short_low.len() == low.len(), short_high == *high);
    let (low, high) = (
        ByteArray::from(short_low.to_vec()),
        ByteArray::from(short_high),
    );
    let statistics = ValueStatistics::new(Some(low), Some(high), None, nulls, false)
        .with_min_is_exact(is_exact.0)
        .with_max_is_exact(is_exact.1);
    Statistics::ByteArray(statistics)
}

/// Whether statistics must be text, too.
pub(super) fn is_text(descr: &ColumnDescPtr) -> bool {
    matches!(
        descr.logical_type_ref(),
        Some(LogicalType::String | LogicalType::Json | LogicalType::Enum)
    ) || descr.converted_type() == ConvertedType::UTF8
}
