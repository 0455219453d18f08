//! The texts of an array, wherever they are.

use arrow::{
    array::{Array, AsArray},
    datatypes::DataType,
};

/// A line of the processor's cache.
const CACHE_LINE_BYTES: usize = 64;

/// Texts of one array.
pub(super) enum Texts<'a> {
    Offsets(&'a [i32], &'a [u8]),
    Utf8View(&'a arrow::array::StringViewArray),
    BinaryView(&'a arrow::array::BinaryViewArray),
}

impl<'a> Texts<'a> {
    /// Those of an array; `None` when it holds something else.
    pub(super) fn of(array: &'a dyn Array) -> Option<Self> {
        Some(match array.data_type() {
            DataType::Utf8 => {
                let array = array.as_string::<i32>();
                Self::Offsets(array.value_offsets(), array.values())
            }
            DataType::Binary => {
                let array = array.as_binary::<i32>();
                Self::Offsets(array.value_offsets(), array.values())
            }
            DataType::Utf8View => Self::Utf8View(array.as_string_view()),
            DataType::BinaryView => Self::BinaryView(array.as_binary_view()),
            _ => return None,
        })
    }

    #[inline]
    pub(super) fn get(&self, row: usize) -> &'a [u8] {
        match self {
            Self::Offsets(offsets, values) => {
                // Offsets of an array are in order and not negative.
                let at = |row: usize| usize::try_from(offsets[row]).unwrap_or(0);
                &values[at(row)..at(row + 1)]
            }
            Self::Utf8View(array) => array.value(row).as_bytes(),
            Self::BinaryView(array) => array.value(row),
        }
    }
}

/// Brings a text into the cache: rows in order are anywhere in memory, and waiting for many
/// at once takes hardly longer than waiting for one.
#[inline]
pub(super) fn touch(text: &[u8]) {
    let lines = text.iter().step_by(CACHE_LINE_BYTES).take(4);
    std::hint::black_box(lines.fold(0, |seen, byte| seen ^ byte) ^ text.last().unwrap_or(&0));
}
