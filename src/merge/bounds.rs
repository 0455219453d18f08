//! Smallest and largest values of columns.

use arrow::{
    array::{Array, ArrayRef, AsArray, new_empty_array},
    compute::{max, max_boolean, max_string, min, min_boolean, min_string},
    datatypes::{
        DataType, Date32Type, Date64Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
        Int64Type, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
        UInt64Type,
    },
};
use serde_json::Value;

use super::ColumnBounds;

const NS_PER_DAY: i128 = 86_400_000_000_000;
/// Longer texts have no place in an index that every reader holds; cut off they would be wrong.
const TEXT_BYTES_MAX: usize = 1024;

/// A value that can be compared.
#[derive(Debug, Clone, PartialEq, PartialOrd)]
enum Bound {
    Integer(i128),
    Float(f64),
    Text(String),
    Flag(bool),
}

/// Whether values of this type have bounds here.
pub(super) fn has_bounds(data_type: &DataType) -> bool {
    let empty = new_empty_array(data_type);
    BoundsOf::default().update(&empty)
}

/// Collects the bounds of one column. Timestamps and dates count in nanoseconds since the epoch.
#[derive(Debug, Clone, Default)]
pub(super) struct BoundsOf {
    range: Option<(Bound, Bound)>,
}

impl BoundsOf {
    /// Takes values into account. `false` when values of this type have no bounds here.
    pub(super) fn update(&mut self, array: &ArrayRef) -> bool {
        macro_rules! integers {
            ($type:ty, $unit:expr) => {{
                let values = array.as_primitive::<$type>();
                min(values).zip(max(values)).map(|(low, high)| {
                    let unit: i128 = $unit;
                    (
                        Bound::Integer(i128::from(low) * unit),
                        Bound::Integer(i128::from(high) * unit),
                    )
                })
            }};
        }
        macro_rules! floats {
            ($type:ty) => {{
                let values = array.as_primitive::<$type>();
                let numbers = || {
                    values
                        .iter()
                        .flatten()
                        .map(f64::from)
                        .filter(|v| !v.is_nan())
                };
                numbers()
                    .reduce(f64::min)
                    .zip(numbers().reduce(f64::max))
                    .map(|(low, high)| (Bound::Float(low), Bound::Float(high)))
            }};
        }
        let range = match array.data_type() {
            DataType::Int8 => integers!(Int8Type, 1),
            DataType::Int16 => integers!(Int16Type, 1),
            DataType::Int32 => integers!(Int32Type, 1),
            DataType::Int64 => integers!(Int64Type, 1),
            DataType::UInt8 => integers!(UInt8Type, 1),
            DataType::UInt16 => integers!(UInt16Type, 1),
            DataType::UInt32 => integers!(UInt32Type, 1),
            DataType::UInt64 => integers!(UInt64Type, 1),
            DataType::Timestamp(TimeUnit::Second, _) => {
                integers!(TimestampSecondType, 1_000_000_000)
            }
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                integers!(TimestampMillisecondType, 1_000_000)
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                integers!(TimestampMicrosecondType, 1000)
            }
            DataType::Timestamp(TimeUnit::Nanosecond, _) => integers!(TimestampNanosecondType, 1),
            DataType::Date32 => integers!(Date32Type, NS_PER_DAY),
            DataType::Date64 => integers!(Date64Type, 1_000_000),
            DataType::Float32 => floats!(Float32Type),
            DataType::Float64 => floats!(Float64Type),
            DataType::Boolean => {
                let values = array.as_boolean();
                min_boolean(values)
                    .zip(max_boolean(values))
                    .map(|(low, high)| (Bound::Flag(low), Bound::Flag(high)))
            }
            DataType::Utf8 => {
                let values = array.as_string::<i32>();
                min_string(values)
                    .zip(max_string(values))
                    .map(|(low, high)| (Bound::Text(low.to_owned()), Bound::Text(high.to_owned())))
            }
            _ => return false,
        };
        if let Some((low, high)) = range {
            self.range = Some(match self.range.take() {
                None => (low, high),
                Some((known_low, known_high)) => (
                    if low < known_low { low } else { known_low },
                    if high > known_high { high } else { known_high },
                ),
            });
        }
        true
    }

    /// Whether every value of `other` lies within; what cannot be compared does.
    pub(super) fn covers(&self, other: &Self) -> bool {
        let (Some((low, high)), Some((other_low, other_high))) = (&self.range, &other.range) else {
            return true;
        };
        let is_after = |left: &Bound, right: &Bound| {
            left.partial_cmp(right) == Some(std::cmp::Ordering::Greater)
        };
        !is_after(low, other_low) && !is_after(other_high, high)
    }

    /// Smallest and largest integer, for integer columns.
    pub(super) fn integers(&self) -> Option<(i128, i128)> {
        match self.range {
            Some((Bound::Integer(low), Bound::Integer(high))) => Some((low, high)),
            _ => None,
        }
    }

    /// The bounds as JSON; `None` without values, or where JSON has no exact form.
    pub(super) fn finish(self, column: &str) -> Option<ColumnBounds> {
        let (low, high) = self.range?;
        Some(ColumnBounds {
            column: column.to_owned(),
            min: json(&low)?,
            max: json(&high)?,
        })
    }
}

fn json(bound: &Bound) -> Option<Value> {
    match bound {
        Bound::Integer(value) => i64::try_from(*value)
            .map(Value::from)
            .or_else(|_| u64::try_from(*value).map(Value::from))
            .ok(),
        Bound::Float(value) => serde_json::Number::from_f64(*value).map(Value::Number),
        Bound::Text(value) => (value.len() <= TEXT_BYTES_MAX).then(|| Value::String(value.clone())),
        Bound::Flag(value) => Some(Value::Bool(*value)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{
        Float64Array, Int64Array, StringArray, TimestampMillisecondArray, UInt64Array,
    };

    use super::*;

    fn array(values: impl Array + 'static) -> ArrayRef {
        Arc::new(values)
    }

    fn bounds(array: &ArrayRef) -> Option<(Value, Value)> {
        let mut bounds = BoundsOf::default();
        assert!(bounds.update(array));
        bounds.finish("c").map(|bounds| (bounds.min, bounds.max))
    }

    #[test]
    fn nulls_and_nan_are_not_counted() {
        let floats = Float64Array::from(vec![None, Some(f64::NAN), Some(-1.5), Some(2.0)]);
        assert_eq!(
            bounds(&array(floats)),
            Some((Value::from(-1.5), Value::from(2.0)))
        );
        assert_eq!(
            bounds(&array(Float64Array::from(vec![None, Some(f64::NAN)]))),
            None
        );
    }

    #[test]
    fn integers_are_exact() {
        let large = Int64Array::from(vec![i64::MAX, i64::MAX - 1]);
        assert_eq!(
            bounds(&array(large)),
            Some((Value::from(i64::MAX - 1), Value::from(i64::MAX)))
        );
        let unsigned = UInt64Array::from(vec![0, u64::MAX]);
        assert_eq!(
            bounds(&array(unsigned)),
            Some((Value::from(0), Value::from(u64::MAX)))
        );
    }

    #[test]
    fn timestamps_count_in_nanoseconds() {
        let times = TimestampMillisecondArray::from(vec![2, 1]);
        assert_eq!(
            bounds(&array(times)),
            Some((Value::from(1_000_000), Value::from(2_000_000)))
        );
    }

    #[test]
    fn a_long_text_is_no_bound() {
        let text = |length| array(StringArray::from(vec!["x".repeat(length)]));
        assert!(bounds(&text(TEXT_BYTES_MAX)).is_some());
        assert_eq!(bounds(&text(TEXT_BYTES_MAX + 1)), None);
        assert!(has_bounds(&DataType::Utf8) && !has_bounds(&DataType::Binary));
    }

    #[test]
    fn parts_add_up() {
        let mut bounds = BoundsOf::default();
        for text in ["b", "a", "c"] {
            let array: ArrayRef = Arc::new(StringArray::from(vec![text]));
            assert!(bounds.update(&array));
        }
        let found = bounds.finish("tag").map(|bounds| (bounds.min, bounds.max));
        assert_eq!(found, Some((Value::from("a"), Value::from("c"))));
    }
}
