//! Which type holds the values of two types unchanged, and the cast that proves it.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, make_array, new_null_array},
    compute::{CastOptions, cast_with_options},
    datatypes::{DataType, Int64Type, TimeUnit, UInt64Type},
};

/// Every integer up to this one, and its negative, is exact in a float64.
pub(super) const FLOAT64_EXACT_MAX: i128 = 1 << 53;

/// The type that holds two types.
#[derive(Debug, PartialEq)]
pub(super) enum Widened {
    /// Every value fits.
    Always(DataType),
    /// It depends on the values; see [`fit`].
    IfValuesFit(DataType),
    /// No type holds both.
    Never(&'static str),
}

/// Values of one input that a type depends on.
#[derive(Debug)]
pub(super) struct Need {
    /// The input, as the caller counts.
    pub(super) place: usize,
    /// Smallest and largest value.
    pub(super) range: (i128, i128),
}

/// A number type: sign and width.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Number {
    Signed(u32),
    Unsigned(u32),
    Float(u32),
}

fn number(data_type: &DataType) -> Option<Number> {
    Some(match data_type {
        DataType::Int8 => Number::Signed(8),
        DataType::Int16 => Number::Signed(16),
        DataType::Int32 => Number::Signed(32),
        DataType::Int64 => Number::Signed(64),
        DataType::UInt8 => Number::Unsigned(8),
        DataType::UInt16 => Number::Unsigned(16),
        DataType::UInt32 => Number::Unsigned(32),
        DataType::UInt64 => Number::Unsigned(64),
        DataType::Float32 => Number::Float(32),
        DataType::Float64 => Number::Float(64),
        _ => return None,
    })
}

fn signed(bits: u32) -> DataType {
    match bits {
        8 => DataType::Int8,
        16 => DataType::Int16,
        32 => DataType::Int32,
        _ => DataType::Int64,
    }
}

/// The type for values of both types. Associative up to [`fit`], so files may come in any order.
pub(super) fn widen(left: &DataType, right: &DataType) -> Widened {
    use Number::{Float, Signed, Unsigned};
    if left.equals_datatype(right) || *right == DataType::Null {
        return Widened::Always(left.clone());
    }
    if *left == DataType::Null {
        return Widened::Always(right.clone());
    }
    let (Some(one), Some(two)) = (number(left), number(right)) else {
        return widen_others(left, right);
    };
    match (one, two) {
        (Signed(a), Signed(b)) => Widened::Always(signed(a.max(b))),
        (Unsigned(a), Unsigned(b)) => {
            Widened::Always(if a > b { left.clone() } else { right.clone() })
        }
        (Signed(_), Unsigned(64)) | (Unsigned(64), Signed(_)) => {
            Widened::IfValuesFit(DataType::Int64)
        }
        (Signed(a), Unsigned(b)) | (Unsigned(b), Signed(a)) => {
            Widened::Always(signed(a.max(b * 2)))
        }
        (Float(_), Signed(64) | Unsigned(64)) | (Signed(64) | Unsigned(64), Float(_)) => {
            Widened::IfValuesFit(DataType::Float64)
        }
        // Two floats of different width, or a float and an integer that it always holds.
        (Float(_), _) | (_, Float(_)) => Widened::Always(DataType::Float64),
    }
}

/// Times take the finer unit, decimals as many digits on both sides of the point as any has.
fn widen_others(left: &DataType, right: &DataType) -> Widened {
    use DataType::{Time32, Time64, Timestamp};
    match (left, right) {
        // A moment and a time on somebody's wall are different things.
        (Timestamp(a, left_zone), Timestamp(b, right_zone)) if left_zone == right_zone => {
            Widened::IfValuesFit(Timestamp(finer(*a, *b), left_zone.clone()))
        }
        (Time32(a) | Time64(a), Time32(b) | Time64(b)) => Widened::Always(Time64(finer(*a, *b))),
        _ => match (decimal(left), decimal(right)) {
            (Some((a, a_scale)), Some((b, b_scale))) => {
                let scale = a_scale.max(b_scale);
                // As signed numbers: a scale may be negative.
                let whole =
                    (i16::from(a) - i16::from(a_scale)).max(i16::from(b) - i16::from(b_scale));
                match u8::try_from(whole + i16::from(scale)) {
                    Ok(digits @ ..=38) => Widened::Always(DataType::Decimal128(digits, scale)),
                    Ok(digits @ ..=76) => Widened::Always(DataType::Decimal256(digits, scale)),
                    _ => Widened::Never("no decimal has so many digits"),
                }
            }
            _ => Widened::Never("no type holds both without changing values"),
        },
    }
}

fn finer(one: TimeUnit, two: TimeUnit) -> TimeUnit {
    let rank = |unit| match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 1,
        TimeUnit::Microsecond => 2,
        TimeUnit::Nanosecond => 3,
    };
    if rank(one) > rank(two) { one } else { two }
}

/// Digits, and how many of them stand after the point.
fn decimal(data_type: &DataType) -> Option<(u8, i8)> {
    match data_type {
        DataType::Decimal128(digits, scale) | DataType::Decimal256(digits, scale) => {
            Some((*digits, *scale))
        }
        _ => None,
    }
}

/// Settles a type that depends on values: `Err` names the input and the value that does not fit.
pub(super) fn fit(wanted: &DataType, needs: &[Need]) -> Result<DataType, (usize, String)> {
    let outside = |limit_low: i128, limit_high: i128| {
        needs.iter().find_map(|need| {
            let (low, high) = need.range;
            if low < limit_low {
                Some((need, low))
            } else if high > limit_high {
                Some((need, high))
            } else {
                None
            }
        })
    };
    match wanted {
        DataType::Float64 => match outside(-FLOAT64_EXACT_MAX, FLOAT64_EXACT_MAX) {
            None => Ok(DataType::Float64),
            Some((need, value)) => {
                Err((need.place, format!("{value} may not be exact as Float64")))
            }
        },
        DataType::Int64 => {
            let Some((need, too_large)) = outside(i128::from(i64::MIN), i128::from(i64::MAX))
            else {
                return Ok(DataType::Int64);
            };
            match needs.iter().find(|need| need.range.0 < 0) {
                None => Ok(DataType::UInt64),
                Some(negative) => Err((
                    need.place,
                    format!(
                        "{too_large} does not fit Int64 and {} does not fit UInt64",
                        negative.range.0
                    ),
                )),
            }
        }
        // Ranges of times are in nanoseconds.
        DataType::Timestamp(unit, _) => {
            let ns = match unit {
                TimeUnit::Second => 1_000_000_000,
                TimeUnit::Millisecond => 1_000_000,
                TimeUnit::Microsecond => 1000,
                TimeUnit::Nanosecond => 1,
            };
            match outside(i128::from(i64::MIN) * ns, i128::from(i64::MAX) * ns) {
                None => Ok(wanted.clone()),
                Some((need, value)) => Err((
                    need.place,
                    format!("{value} ns since 1970 do not fit {wanted}"),
                )),
            }
        }
        other => Ok(other.clone()),
    }
}

/// Casts a column to the united type; an error when a value would change.
pub(super) fn cast(array: &ArrayRef, wanted: &DataType) -> Result<ArrayRef, String> {
    let own = array.data_type();
    if own == wanted {
        return Ok(Arc::clone(array));
    }
    if *own == DataType::Null {
        return Ok(new_null_array(wanted, array.len()));
    }
    if own.equals_datatype(wanted) {
        // Only names or notes of inner fields differ.
        let data = array
            .to_data()
            .into_builder()
            .data_type(wanted.clone())
            .build();
        return data.map(make_array).map_err(|e| e.to_string());
    }
    if *wanted == DataType::Float64 {
        let inexact = match own {
            DataType::Int64 => first_inexact(array.as_primitive::<Int64Type>().iter().flatten()),
            DataType::UInt64 => first_inexact(array.as_primitive::<UInt64Type>().iter().flatten()),
            _ => None,
        };
        if let Some(value) = inexact {
            return Err(format!("{value} may not be exact as Float64"));
        }
    }
    let options = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    cast_with_options(array, wanted, &options).map_err(|e| e.to_string())
}

fn first_inexact(mut values: impl Iterator<Item = impl Into<i128>>) -> Option<i128> {
    values.find_map(|value| {
        let value = value.into();
        (value.abs() > FLOAT64_EXACT_MAX).then_some(value)
    })
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array, UInt64Array};
    use proptest::prelude::*;

    use super::*;

    const NUMBERS: [DataType; 10] = [
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::UInt8,
        DataType::UInt16,
        DataType::UInt32,
        DataType::UInt64,
        DataType::Float32,
        DataType::Float64,
    ];

    #[test]
    fn widening_does_not_depend_on_the_order_of_files() {
        for one in &NUMBERS {
            for two in &NUMBERS {
                assert_eq!(widen(one, two), widen(two, one), "{one} and {two}");
            }
        }
    }

    #[test]
    fn times_take_the_finer_unit_when_it_reaches_far_enough() {
        use TimeUnit::{Microsecond, Millisecond, Nanosecond};
        let moment = |unit| DataType::Timestamp(unit, Some("UTC".into()));
        let wider = moment(Nanosecond);
        for (one, two) in [(Millisecond, Nanosecond), (Nanosecond, Microsecond)] {
            assert_eq!(
                widen(&moment(one), &moment(two)),
                Widened::IfValuesFit(wider.clone())
            );
        }
        let need = |range| [Need { place: 1, range }];
        assert!(fit(&wider, &need((0, i64::MAX.into()))).is_ok());
        assert!(fit(&wider, &need((0, i128::from(i64::MAX) + 1))).is_err());
        assert!(fit(&moment(Microsecond), &need((0, i128::from(i64::MAX) + 1))).is_ok());
        let local = DataType::Timestamp(Nanosecond, None);
        assert!(matches!(widen(&wider, &local), Widened::Never(_)));
        assert_eq!(
            widen(
                &DataType::Time32(Millisecond),
                &DataType::Time64(Microsecond)
            ),
            Widened::Always(DataType::Time64(Microsecond))
        );
    }

    #[test]
    fn decimals_take_the_digits_of_both() {
        let kinds = [(4, 2), (9, 0), (18, 6), (38, 10), (38, 0), (60, 20)];
        let kinds = kinds.map(|(digits, scale)| {
            if digits > 38 {
                DataType::Decimal256(digits, scale)
            } else {
                DataType::Decimal128(digits, scale)
            }
        });
        let united = |one: &DataType, two: &DataType| match widen(one, two) {
            Widened::Always(wider) => Some(wider),
            _ => None,
        };
        assert_eq!(
            united(&kinds[0], &kinds[1]),
            Some(DataType::Decimal128(11, 2))
        );
        assert_eq!(
            united(&kinds[3], &kinds[4]),
            Some(DataType::Decimal256(48, 10))
        );
        for one in &kinds {
            for two in &kinds {
                assert_eq!(united(one, two), united(two, one));
                for three in &kinds {
                    let left = united(one, two).and_then(|both| united(&both, three));
                    let right = united(two, three).and_then(|both| united(one, &both));
                    assert_eq!(left, right, "{one}, {two}, {three}");
                }
            }
        }
    }

    #[test]
    fn integers_of_one_sign_take_the_wider_type() {
        assert_eq!(
            widen(&DataType::Int8, &DataType::Int32),
            Widened::Always(DataType::Int32)
        );
        assert_eq!(
            widen(&DataType::UInt64, &DataType::UInt8),
            Widened::Always(DataType::UInt64)
        );
        assert_eq!(
            widen(&DataType::UInt32, &DataType::Int8),
            Widened::Always(DataType::Int64)
        );
    }

    #[test]
    fn text_and_numbers_never_unite() {
        assert!(matches!(
            widen(&DataType::Utf8, &DataType::Int64),
            Widened::Never(_)
        ));
        assert!(matches!(
            widen(&DataType::Boolean, &DataType::Int8),
            Widened::Never(_)
        ));
    }

    #[test]
    fn nothing_but_nulls_unites_with_anything() {
        let list = DataType::new_list(DataType::Int8, true);
        assert_eq!(widen(&DataType::Null, &list), Widened::Always(list.clone()));
        assert_eq!(widen(&list, &DataType::Null), Widened::Always(list));
    }

    #[test]
    fn signed_and_unsigned_take_the_type_that_holds_both() {
        let need = |place, low, high| Need {
            place,
            range: (low, high),
        };
        let large = i128::from(u64::MAX);
        assert_eq!(
            fit(&DataType::Int64, &[need(0, 0, 7), need(1, -3, 3)]),
            Ok(DataType::Int64)
        );
        assert_eq!(
            fit(&DataType::Int64, &[need(0, 0, large), need(1, 0, 3)]),
            Ok(DataType::UInt64)
        );
        assert_eq!(
            fit(&DataType::Int64, &[need(0, 0, large), need(1, -3, 3)]),
            Err((
                0,
                "18446744073709551615 does not fit Int64 and -3 does not fit UInt64".into()
            ))
        );
    }

    proptest! {
        #[test]
        fn a_cast_to_float_keeps_the_value_or_fails(value: i64) {
            let array: ArrayRef = Arc::new(Int64Array::from(vec![value]));
            match cast(&array, &DataType::Float64) {
                Ok(cast) => {
                    let cast = cast.as_any().downcast_ref::<Float64Array>().map(|a| a.value(0));
                    // Below 2^63 the way back is exact, too.
                    #[expect(clippy::cast_possible_truncation, reason = "that is what is tested")]
                    let back = cast.map(|cast| cast as i64);
                    prop_assert_eq!(back, Some(value));
                }
                Err(_) => prop_assert!(i128::from(value).abs() > FLOAT64_EXACT_MAX),
            }
        }

        #[test]
        fn a_cast_to_signed_keeps_the_value_or_fails(value: u64) {
            let array: ArrayRef = Arc::new(UInt64Array::from(vec![value]));
            let cast = cast(&array, &DataType::Int64);
            prop_assert_eq!(cast.is_ok(), i64::try_from(value).is_ok());
        }
    }
}
