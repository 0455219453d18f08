//! The stream of lengths in front of delta-encoded texts, read only to know what it claims: the
//! decoder makes room for as many lengths as the stream says, in pages and in columns alike.
//!
//! A stream is a header (values in a block, small blocks in a block, values in all, the first
//! value), then blocks: smallest difference, bits of each small block, and these.

/// Small blocks have a multiple of so many values.
const SMALL_BLOCK_STEP: u64 = 32;

/// Reads the stream at the start of `bytes`: gives each value to `visit` and returns where it
/// ends. `None` when it is damaged or claims more than `count_max` values.
pub(super) fn read_lengths(
    bytes: &[u8],
    count_max: u64,
    mut visit: impl FnMut(i32) -> Option<()>,
) -> Option<usize> {
    let mut reader = Reader { bytes, place: 0 };
    let (block_count, small_count) = (reader.varint()?, reader.varint()?);
    let (count, first) = (reader.varint()?, reader.zigzag()?);
    let small_size = block_count.checked_div(small_count)?;
    let is_shaped = small_size > 0
        && block_count.is_multiple_of(small_count)
        && small_size.is_multiple_of(SMALL_BLOCK_STEP);
    if !is_shaped || count > count_max {
        return None;
    }
    let mut left = count;
    let mut last = i32::try_from(first).ok()?;
    if left > 0 {
        visit(last)?;
        left -= 1;
    }
    while left > 0 {
        let step = i32::try_from(reader.zigzag()?).ok()?;
        let widths = reader.take(usize::try_from(small_count).ok()?)?;
        for &width in widths {
            // What follows the last value has no bytes, whatever its width says.
            if left == 0 {
                break;
            }
            if width > 32 {
                return None;
            }
            let small = reader.small_block(width, small_size)?;
            for index in 0..left.min(small_size) {
                let delta = bits(small, index, width)?;
                last = last.wrapping_add(step).wrapping_add(delta.cast_signed());
                visit(last)?;
            }
            left = left.saturating_sub(small_size);
        }
    }
    Some(reader.place)
}

struct Reader<'a> {
    bytes: &'a [u8],
    place: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.place.checked_add(count)?;
        let taken = self.bytes.get(self.place..end)?;
        self.place = end;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = *self.take(1)?.first_chunk()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    fn zigzag(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// The bytes of a small block; the last one may be cut off after its values.
    fn small_block(&mut self, width: u8, size: u64) -> Option<&'a [u8]> {
        let whole = u64::from(width).checked_mul(size / 8)?;
        let there = (self.bytes.len() - self.place) as u64;
        self.take(usize::try_from(whole.min(there)).ok()?)
    }
}

/// A value of `width` bits, lowest first.
fn bits(bytes: &[u8], index: u64, width: u8) -> Option<u32> {
    if width == 0 {
        return Some(0);
    }
    let first_bit = index.checked_mul(u64::from(width))?;
    let (byte, shift) = (usize::try_from(first_bit / 8).ok()?, first_bit % 8);
    let last = usize::try_from((first_bit + u64::from(width) - 1) / 8).ok()?;
    let taken = bytes.get(byte..=last)?;
    let mut word = [0; 8];
    word.get_mut(..taken.len())?.copy_from_slice(taken);
    let mask = (1_u64 << width) - 1;
    u32::try_from(u64::from_le_bytes(word) >> shift & mask).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8], count_max: u64) -> Option<(Vec<i32>, usize)> {
        let mut values = Vec::new();
        let end = read_lengths(bytes, count_max, |value| {
            values.push(value);
            Some(())
        })?;
        Some((values, end))
    }

    /// 128 values in a block of 4 small ones; 5 values 7, 5, 3, 1, 2 as in the format's text.
    const FIVE: [u8; 18] = [
        0x80,
        1,
        4,
        5,
        14,
        3,
        2,
        0,
        0,
        0,
        0b1100_0000,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    ];

    #[test]
    fn values_follow_from_their_differences() {
        // Differences -2, -2, -2, 1: smallest -2, then 0, 0, 0, 3 in two bits each.
        assert_eq!(read(&FIVE, 5), Some((vec![7, 5, 3, 1, 2], 18)));
        // Cut off after the values.
        assert_eq!(read(&FIVE[..11], 5), Some((vec![7, 5, 3, 1, 2], 11)));
        assert_eq!(read(&FIVE[..10], 5), None);
    }

    #[test]
    fn a_stream_that_claims_more_than_it_may_is_refused_unread() {
        assert_eq!(read(&FIVE, 4), None);
        // 2^40 equal values in one block of as many, in a few bytes.
        let huge = [0x80, 0x80, 0x80, 0x80, 0x80, 0x20];
        let bomb = [&huge[..], &[1], &huge, &[14, 0, 0]].concat();
        assert_eq!(read(&bomb, 1 << 20), None);
    }

    #[test]
    fn shapes_that_no_writer_makes_are_damage() {
        assert_eq!(read(&[0x80, 1, 0, 5, 14], 5), None);
        assert_eq!(read(&[0x80, 1, 3, 5, 14], 5), None);
        assert_eq!(read(&[0, 1, 5, 14], 5), None);
        assert_eq!(read(&[0x80, 1, 4, 5, 14, 3, 33, 0, 0, 0], 5), None);
    }
}
