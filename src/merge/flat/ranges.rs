//! The order of words in statistics, and their ranges.

use arrow::datatypes::{DataType, TimeUnit};
use parquet::{
    basic::{SortOrder, Type as PhysicalType},
    schema::types::ColumnDescPtr,
};

use super::dictionary::Word;

/// How values of a column are ordered in statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    Signed,
    Unsigned,
    /// IEEE 754 total order; NaN counts only where there is nothing else.
    Float,
}

/// The order of a column whose values are stored as they are; `None` for all others.
pub(super) fn order_of(descr: &ColumnDescPtr, data_type: &DataType) -> Option<Order> {
    let order = match (descr.physical_type(), data_type) {
        (PhysicalType::DOUBLE, DataType::Float64) | (PhysicalType::FLOAT, DataType::Float32) => {
            return Some(Order::Float);
        }
        (PhysicalType::INT64, DataType::UInt64) | (PhysicalType::INT32, DataType::UInt32) => {
            Order::Unsigned
        }
        (
            PhysicalType::INT64,
            DataType::Int64
            | DataType::Time64(_)
            | DataType::Timestamp(
                TimeUnit::Millisecond | TimeUnit::Microsecond | TimeUnit::Nanosecond,
                _,
            ),
        )
        | (
            PhysicalType::INT32,
            DataType::Int32 | DataType::Date32 | DataType::Time32(TimeUnit::Millisecond),
        ) => Order::Signed,
        _ => return None,
    };
    // What the file's own types say must be the same.
    let declared = match descr.sort_order() {
        SortOrder::SIGNED => Order::Signed,
        SortOrder::UNSIGNED => Order::Unsigned,
        _ => return None,
    };
    (order == declared).then_some(order)
}

impl Order {
    /// Smallest and largest value, and how many NaN there are in a float column.
    pub(super) fn range<T: Word>(self, values: &[T]) -> (Option<(T, T)>, Option<usize>) {
        if self != Self::Float {
            return (self.extremes(values.iter().copied()), None);
        }
        let nans = values.iter().filter(|value| is_nan(**value)).count();
        let range = if nans == 0 || nans == values.len() {
            self.extremes(values.iter().copied())
        } else {
            self.extremes(values.iter().copied().filter(|value| !is_nan(*value)))
        };
        (range, Some(nans))
    }

    fn extremes<T: Word>(self, mut values: impl Iterator<Item = T>) -> Option<(T, T)> {
        let first = values.next()?;
        let key = self.key(first);
        let ((low, _), (high, _)) = values.fold(((first, key), (first, key)), |(low, high), v| {
            let key = self.key(v);
            (
                if key < low.1 { (v, key) } else { low },
                if key > high.1 { (v, key) } else { high },
            )
        });
        Some((low, high))
    }

    /// The range of two ranges.
    pub(super) fn union<T: Word>(self, one: Option<(T, T)>, two: Option<(T, T)>) -> Option<(T, T)> {
        let (Some((low, high)), Some((new_low, new_high))) = (one, two) else {
            return one.or(two);
        };
        // A range of nothing but NaN gives way to any other.
        if self == Self::Float && is_nan(low) != is_nan(new_low) {
            return if is_nan(low) { two } else { one };
        }
        self.extremes([low, high, new_low, new_high].into_iter())
    }

    /// An integer of the same order.
    #[inline]
    pub(super) fn key<T: Word>(self, value: T) -> i64 {
        let bits = value.bits();
        match self {
            Self::Signed => sign_extended(bits, T::BYTES),
            Self::Unsigned => (bits ^ (1 << 63)).cast_signed(),
            Self::Float => {
                let bits = sign_extended(bits, T::BYTES);
                bits ^ ((bits >> 63).cast_unsigned() >> 1).cast_signed()
            }
        }
    }
}

#[inline]
pub(super) fn sign_extended(bits: u64, bytes: usize) -> i64 {
    let shift = 64 - 8 * bytes;
    (bits << shift).cast_signed() >> shift
}

#[inline]
fn is_nan<T: Word>(value: T) -> bool {
    if T::BYTES == 8 {
        f64::from_bits(value.bits()).is_nan()
    } else {
        // Above infinity, without the sign.
        value.bits() & 0x7fff_ffff > 0x7f80_0000
    }
}
