//! Bounds of texts, cut to the length that statistics keep.

/// A prefix of at most `limit` bytes, which is not larger; of a text, a text.
pub(super) fn trim_low(value: &[u8], limit: usize, is_text: bool) -> &[u8] {
    if value.len() <= limit {
        return value;
    }
    &value[..boundary(value, limit, is_text)]
}

/// At most `limit` bytes that are not smaller; the whole value when there are none.
pub(super) fn trim_high(value: &[u8], limit: usize, is_text: bool) -> Vec<u8> {
    if value.len() <= limit {
        return value.to_vec();
    }
    let mut short = value[..boundary(value, limit, is_text)].to_vec();
    // The last byte that can be raised is; what follows it no longer matters. Of a text only
    // single-byte characters are raised.
    let last = if is_text { 0x7e } else { 0xfe };
    while let Some(byte) = short.last_mut() {
        if *byte <= last {
            *byte += 1;
            return short;
        }
        short.pop();
        while is_text && std::str::from_utf8(&short).is_err() {
            short.pop();
        }
    }
    value.to_vec()
}

/// Where to cut.
fn boundary(value: &[u8], limit: usize, is_text: bool) -> usize {
    if !is_text {
        return limit;
    }
    // The byte after the cut must begin a character.
    (0..=limit)
        .rev()
        .find(|at| value[*at] & 0xc0 != 0x80)
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn bounds_of_texts_are_texts_and_hold(text in "(?s).{0,12}", limit in 1_usize..8) {
            let value = text.as_bytes();
            let (low, high) = (trim_low(value, limit, true), trim_high(value, limit, true));
            prop_assert!(low <= value && *value <= *high);
            prop_assert!(std::str::from_utf8(low).is_ok() && std::str::from_utf8(&high).is_ok());
            prop_assert!(low.len() <= limit && (high.len() <= limit || high == value));
        }

        #[test]
        fn bounds_of_bytes_hold(value in prop::collection::vec(any::<u8>(), 0..12), limit in 1_usize..8) {
            prop_assert!(*trim_low(&value, limit, false) <= *value);
            let high = trim_high(&value, limit, false);
            prop_assert!(high >= value && (high.len() <= limit || high == value));
        }
    }

    #[test]
    fn a_value_without_anything_larger_stays_whole() {
        assert_eq!(trim_high(&[0xff; 9], 4, false), [0xff; 9]);
        assert_eq!(trim_high(b"abcdef", 3, true), b"abd");
        assert_eq!(trim_low("äöü".as_bytes(), 3, true), "ä".as_bytes());
    }
}
