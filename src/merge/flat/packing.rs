//! Integers as Parquet packs them: the RLE/bit-packing hybrid and DELTA_BINARY_PACKED.
//!
//! Formats: <https://parquet.apache.org/docs/file-format/data-pages/encodings/>.

/// From so many equal values on, a run is worth its header.
const GROUP: usize = 8;
/// From so many groups on, a run of flags is worth its header.
const RUN_GROUPS_MIN: usize = 4;
/// Deltas in a block, and in each of its miniblocks.
const BLOCK: usize = 128;
const MINIBLOCK: usize = 32;

/// Bits that hold every value up to `largest`.
pub(super) fn bit_width(largest: u64) -> u32 {
    64 - largest.leading_zeros()
}

fn put_varint(mut value: u64, into: &mut Vec<u8>) {
    loop {
        // The lowest seven bits.
        let low = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        if value == 0 {
            into.push(low);
            return;
        }
        into.push(low | 0x80);
    }
}

fn put_zigzag(value: i64, into: &mut Vec<u8>) {
    put_varint(
        (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned(),
        into,
    );
}

/// Packs values of up to 64 bits, lowest bits first; the last byte is filled with zeros.
fn pack(values: impl Iterator<Item = u64>, width: u32, into: &mut Vec<u8>) {
    let (mut bits, mut filled) = (0_u128, 0);
    for value in values {
        bits |= u128::from(value) << filled;
        filled += width;
        if filled >= 64 {
            // The low half; what is left moves down.
            let [low, high] = halves(bits);
            into.extend_from_slice(&low.to_le_bytes());
            bits = u128::from(high);
            filled -= 64;
        }
    }
    let [low, _] = halves(bits);
    into.extend_from_slice(&low.to_le_bytes()[..filled.div_ceil(8) as usize]);
}

/// Packs values of up to 32 bits, lowest bits first; the last byte is filled with zeros.
fn pack_short(values: &[u32], width: u32, into: &mut Vec<u8>) {
    let (mut bits, mut filled) = (0_u64, 0);
    for &value in values {
        bits |= u64::from(value) << filled;
        filled += width;
        if filled >= 32 {
            into.extend_from_slice(&bits.to_le_bytes()[..4]);
            bits >>= 32;
            filled -= 32;
        }
    }
    into.extend_from_slice(&bits.to_le_bytes()[..filled.div_ceil(8) as usize]);
}

fn halves(bits: u128) -> [u64; 2] {
    #[expect(clippy::cast_possible_truncation, reason = "each half by itself")]
    [bits as u64, (bits >> 64) as u64]
}

fn put_run(value: u32, count: usize, width: u32, into: &mut Vec<u8>) {
    put_varint((count as u64) << 1, into);
    into.extend_from_slice(&value.to_le_bytes()[..width.div_ceil(8) as usize]);
}

fn put_groups(values: &[u32], width: u32, into: &mut Vec<u8>) {
    if values.is_empty() {
        return;
    }
    let groups = values.len().div_ceil(GROUP);
    put_varint((groups as u64) << 1 | 1, into);
    let start = into.len();
    pack_short(values, width, into);
    into.resize(start + groups * width as usize, 0);
}

/// Appends values in the RLE/bit-packing hybrid.
pub(super) fn put_hybrid(values: &[u32], width: u32, into: &mut Vec<u8>) {
    let (mut packed_from, mut at) = (0, 0);
    while at + GROUP <= values.len() {
        let first = values[at];
        if values[at..at + GROUP].iter().any(|value| *value != first) {
            at += GROUP;
            continue;
        }
        let more = values[at + GROUP..]
            .iter()
            .take_while(|value| **value == first);
        let count = GROUP + more.count();
        put_groups(&values[packed_from..at], width, into);
        put_run(first, count, width, into);
        at += count;
        packed_from = at;
    }
    put_groups(&values[packed_from..], width, into);
}

/// Appends the definition levels of an optional column with their length, as pages of version 1
/// want them. `present`: one byte for each row, 1 where there is a value; empty when all are.
pub(super) fn put_levels(rows: usize, present: &[u8], into: &mut Vec<u8>) {
    let start = into.len();
    into.extend_from_slice(&[0; 4]);
    if present.is_empty() {
        put_run(1, rows, 1, into);
    } else {
        put_flags(present, into);
    }
    // A page has far fewer rows than 32 bits count.
    let length = u32::try_from(into.len() - start - 4).unwrap_or(u32::MAX);
    into[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Appends flags, one bit for each, in the RLE/bit-packing hybrid.
fn put_flags(flags: &[u8], into: &mut Vec<u8>) {
    let (groups, rest) = flags.as_chunks::<GROUP>();
    let (mut packed_from, mut at) = (0, 0);
    while at < groups.len() {
        let first = groups[at];
        let is_run = first == [0; GROUP] || first == [1; GROUP];
        let count = groups[at..]
            .iter()
            .take_while(|group| **group == first)
            .count();
        // A run in between costs two headers, so it must spare as many bytes.
        if !is_run || count < RUN_GROUPS_MIN {
            at += if is_run { count } else { 1 };
            continue;
        }
        put_bits(&groups[packed_from..at], &[], into);
        put_run(u32::from(first[0]), count * GROUP, 1, into);
        at += count;
        packed_from = at;
    }
    put_bits(&groups[packed_from..], rest, into);
}

fn put_bits(groups: &[[u8; GROUP]], rest: &[u8], into: &mut Vec<u8>) {
    let count = groups.len() + usize::from(!rest.is_empty());
    if count == 0 {
        return;
    }
    put_varint((count as u64) << 1 | 1, into);
    let byte = |flags: &[u8]| {
        let bits = flags.iter().zip(0_u8..);
        bits.fold(0, |byte, (flag, bit)| byte | flag << bit)
    };
    into.extend(groups.iter().map(|group| byte(group)));
    if !rest.is_empty() {
        into.push(byte(rest));
    }
}

/// Appends values as DELTA_BINARY_PACKED. With `is_short` they are 32-bit values and wrap so.
pub(super) fn put_deltas(values: &[i64], is_short: bool, into: &mut Vec<u8>) {
    put_varint(BLOCK as u64, into);
    put_varint((BLOCK / MINIBLOCK) as u64, into);
    put_varint(values.len() as u64, into);
    put_zigzag(values.first().copied().unwrap_or(0), into);
    let mut deltas = Vec::with_capacity(BLOCK);
    for start in (1..values.len()).step_by(BLOCK) {
        let end = (start + BLOCK).min(values.len());
        deltas.clear();
        deltas.extend((start..end).map(|at| {
            let delta = values[at].wrapping_sub(values[at - 1]);
            // Differences of 32-bit values wrap at 32 bits.
            if is_short {
                i64::from(low_half(delta))
            } else {
                delta
            }
        }));
        let smallest = deltas.iter().copied().min().unwrap_or(0);
        put_zigzag(smallest, into);
        let above = |delta: i64| {
            let above = delta.wrapping_sub(smallest).cast_unsigned();
            if is_short {
                above & u64::from(u32::MAX)
            } else {
                above
            }
        };
        let widths = into.len();
        into.resize(widths + BLOCK / MINIBLOCK, 0);
        for (index, miniblock) in deltas.chunks(MINIBLOCK).enumerate() {
            let largest = miniblock.iter().map(|delta| above(*delta)).max();
            let width = bit_width(largest.unwrap_or(0));
            into[widths + index] = width.to_le_bytes()[0];
            let filler = std::iter::repeat_n(0, MINIBLOCK - miniblock.len());
            pack(
                miniblock.iter().map(|delta| above(*delta)).chain(filler),
                width,
                into,
            );
        }
    }
}

fn low_half(value: i64) -> i32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "it wraps, as the format wants"
    )]
    let low = value as i32;
    low
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn varint(bytes: &[u8], at: &mut usize) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = bytes[*at];
            *at += 1;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }

    fn unpack(bytes: &[u8], width: u32, count: usize) -> Vec<u32> {
        let bit = |at: usize| bytes[at / 8] >> (at % 8) & 1;
        let width = width as usize;
        (0..count)
            .map(|i| (0..width).fold(0, |value, b| value | u32::from(bit(i * width + b)) << b))
            .collect()
    }

    fn decode_hybrid(bytes: &[u8], width: u32, count: usize) -> Vec<u32> {
        let (mut at, mut values) = (0, Vec::new());
        while values.len() < count {
            let header = varint(bytes, &mut at);
            let number = usize::try_from(header >> 1).unwrap();
            if header & 1 == 1 {
                let length = number * width as usize;
                values.extend(unpack(&bytes[at..at + length], width, number * 8));
                at += length;
            } else {
                let length = width.div_ceil(8) as usize;
                let mut value = [0; 4];
                value[..length].copy_from_slice(&bytes[at..at + length]);
                at += length;
                values.extend(std::iter::repeat_n(u32::from_le_bytes(value), number));
            }
        }
        assert_eq!(at, bytes.len());
        values.truncate(count);
        values
    }

    proptest! {
        #[test]
        fn the_hybrid_gives_back_what_went_in(
            runs in prop::collection::vec((0_u32..300, 1_usize..40), 0..40),
            wide in prop::collection::vec(any::<u32>(), 0..40),
        ) {
            let mut values: Vec<u32> = runs.iter().flat_map(|(v, n)| std::iter::repeat_n(*v, *n)).collect();
            for width in [9, 17, 32] {
                let mut bytes = Vec::new();
                put_hybrid(&values, width, &mut bytes);
                prop_assert_eq!(&decode_hybrid(&bytes, width, values.len()), &values);
            }
            values.extend(&wide);
            let mut bytes = Vec::new();
            put_hybrid(&values, 32, &mut bytes);
            prop_assert_eq!(decode_hybrid(&bytes, 32, values.len()), values);
        }

        #[test]
        fn levels_tell_values_from_nulls(runs in prop::collection::vec((0_u8..2, 1_usize..90), 1..20)) {
            let flags = runs.iter().flat_map(|(flag, count)| std::iter::repeat_n(*flag, *count));
            let present: Vec<u8> = flags.collect();
            let mut bytes = Vec::new();
            put_levels(present.len(), &present, &mut bytes);
            let levels: Vec<u32> = present.iter().map(|flag| u32::from(*flag)).collect();
            prop_assert_eq!(decode_hybrid(&bytes[4..], 1, present.len()), levels);
        }
    }

    #[test]
    fn levels_without_nulls_are_one_run() {
        let mut bytes = Vec::new();
        put_levels(1000, &[], &mut bytes);
        assert_eq!(bytes, [3, 0, 0, 0, 0xd0, 0x0f, 1]);
    }

    #[test]
    fn widths_hold_the_largest_value() {
        assert_eq!([0, 1, 2, 255, 256].map(bit_width), [0, 1, 2, 8, 9]);
        assert_eq!(bit_width(u64::MAX), 64);
    }
}
