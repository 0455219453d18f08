//! Keys of one column whose values have the order of `i64`.

use std::cmp::Ordering;

use arrow::{
    array::{Array, ArrayRef},
    buffer::{NullBuffer, ScalarBuffer},
};

use super::keys::{Class, KeySpace, RowRef, ordered_integers};

/// One column whose values have the order of `i64`.
#[derive(Debug, Clone, Copy)]
pub(super) struct IntKeys {
    pub(super) descending: bool,
    pub(super) nulls_first: bool,
}

/// Keys as integers. Values under nulls mean nothing.
#[derive(Debug)]
pub(super) struct IntBlock {
    values: ScalarBuffer<i64>,
    nulls: Option<NullBuffer>,
}

impl KeySpace for IntKeys {
    type Block = IntBlock;
    const HEADS_ARE_EXACT: bool = true;

    #[inline]
    fn head(&self, block: &IntBlock, i: usize) -> (Class, u64) {
        match &block.nulls {
            Some(nulls) if nulls.is_null(i) && self.nulls_first => (Class::NullFirst, 0),
            Some(nulls) if nulls.is_null(i) => (Class::NullLast, 0),
            _ => (Class::Value, block.values[i].cast_unsigned() ^ 1 << 63),
        }
    }

    fn encode(&self, sort_columns: &[ArrayRef]) -> Result<IntBlock, String> {
        let column = sort_columns.first().ok_or("there is no sort column")?;
        let values = ordered_integers(column, self.descending)
            .ok_or_else(|| format!("{} has no integer order", column.data_type()))?;
        let nulls = column
            .nulls()
            .filter(|nulls| nulls.null_count() > 0)
            .cloned();
        Ok(IntBlock { values, nulls })
    }

    #[inline]
    fn compare(&self, left: &IntBlock, i: usize, right: &IntBlock, j: usize) -> Ordering {
        if left.nulls.is_none() && right.nulls.is_none() {
            return left.values[i].cmp(&right.values[j]);
        }
        let is_null = |block: &IntBlock, row| block.nulls.as_ref().is_some_and(|n| n.is_null(row));
        match (is_null(left, i), is_null(right, j)) {
            (false, false) => left.values[i].cmp(&right.values[j]),
            (true, true) => Ordering::Equal,
            (left_is_null, _) if left_is_null == self.nulls_first => Ordering::Less,
            _ => Ordering::Greater,
        }
    }

    fn sort(&self, blocks: Vec<IntBlock>) -> (IntBlock, Vec<RowRef>) {
        let count = blocks.iter().map(|block| block.values.len()).sum();
        let (mut values, mut order) = (Vec::with_capacity(count), Vec::with_capacity(count));
        let mut null_rows = Vec::new();
        let mut each_value = |take: &mut dyn FnMut(i64, RowRef)| {
            for (batch, block) in (0_u32..).zip(&blocks) {
                for (row, &key) in (0_u32..).zip(block.values.iter()) {
                    let at = RowRef { batch, row };
                    match &block.nulls {
                        Some(nulls) if nulls.is_null(row as usize) => null_rows.push(at),
                        _ => take(key, at),
                    }
                }
            }
        };
        if let Some(packing) = Packing::of(&blocks) {
            let mut packed = Vec::with_capacity(count);
            each_value(&mut |key, at| packed.push(packing.pack(key, at)));
            // All are different, and places are part of them.
            packed.sort_unstable();
            values.extend(packed.iter().map(|&packed| packing.key(packed)));
            order.extend(packed.iter().map(|&packed| packing.place(packed)));
        } else {
            let mut keyed: Vec<(i64, RowRef)> = Vec::with_capacity(count);
            each_value(&mut |key, at| keyed.push((key, at)));
            keyed.sort_by_key(|(key, _)| *key);
            values.extend(keyed.iter().map(|(key, _)| *key));
            order.extend(keyed.iter().map(|(_, at)| *at));
        }
        drop(blocks);
        let nulls = (!null_rows.is_empty()).then(|| {
            let (value_count, null_count) = (order.len(), null_rows.len());
            let nulls = std::iter::repeat_n(0, null_count);
            let place = if self.nulls_first { 0 } else { value_count };
            values.splice(place..place, nulls);
            order.splice(place..place, null_rows);
            let is_null = place..place + null_count;
            (0..order.len())
                .map(|row| !is_null.contains(&row))
                .collect()
        });
        (
            IntBlock {
                values: values.into(),
                nulls,
            },
            order,
        )
    }

    fn bound(&self, key: i64) -> Option<IntBlock> {
        Some(IntBlock {
            values: vec![key].into(),
            nulls: None,
        })
    }

    fn len(&self, block: &IntBlock) -> usize {
        block.values.len()
    }

    fn size_bytes(&self, block: &IntBlock) -> u64 {
        // Keys, then in sorting (key, place) twice, then the sorted keys and places.
        block.values.len() as u64 * 56
    }
}

/// How a key and its row's place become one word, which is quicker to sort than the two.
#[derive(Debug, Clone, Copy)]
struct Packing {
    smallest: i64,
    batch_bits: u32,
    row_bits: u32,
}

impl Packing {
    /// `None` when keys are too far apart for a word.
    fn of(blocks: &[IntBlock]) -> Option<Self> {
        let keys = || blocks.iter().flat_map(|block| block.values.iter().copied());
        let (smallest, largest) = (keys().min()?, keys().max()?);
        let bits = |value: u64| u64::BITS - value.leading_zeros();
        let rows = blocks.iter().map(|block| block.values.len()).max()?;
        let packing = Self {
            smallest,
            batch_bits: bits(blocks.len() as u64 - 1),
            row_bits: bits(rows as u64),
        };
        let key_bits = bits(largest.abs_diff(smallest));
        (key_bits + packing.place_bits() < u64::BITS).then_some(packing)
    }

    fn place_bits(self) -> u32 {
        self.batch_bits + self.row_bits
    }

    #[inline]
    fn pack(self, key: i64, at: RowRef) -> u64 {
        let place = u64::from(at.batch) << self.row_bits | u64::from(at.row);
        key.abs_diff(self.smallest) << self.place_bits() | place
    }

    #[inline]
    fn key(self, packed: u64) -> i64 {
        self.smallest
            .wrapping_add_unsigned(packed >> self.place_bits())
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "both were 32 bits wide")]
    fn place(self, packed: u64) -> RowRef {
        let place = packed & ((1 << self.place_bits()) - 1);
        RowRef {
            batch: (place >> self.row_bits) as u32,
            row: (place & ((1 << self.row_bits) - 1)) as u32,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int64Array;
    use proptest::prelude::*;

    use super::*;

    fn sorted(chunks: &[Vec<Option<i64>>], nulls_first: bool) -> Vec<(Option<i64>, RowRef)> {
        let space = IntKeys {
            descending: false,
            nulls_first,
        };
        let blocks = chunks.iter().map(|chunk| {
            let column: ArrayRef = Arc::new(Int64Array::from(chunk.clone()));
            space.encode(&[column]).unwrap()
        });
        let (keys, order) = space.sort(blocks.collect());
        let key = |row: usize| (space.head(&keys, row).0 == Class::Value).then(|| keys.values[row]);
        let rows = order.into_iter().enumerate();
        rows.map(|(row, at)| (key(row), at)).collect()
    }

    proptest! {
        #[test]
        fn rows_are_sorted_stably_however_far_apart_keys_are(
            chunks in proptest::collection::vec(proptest::collection::vec(proptest::option::weighted(0.9, any::<i64>()), 0..40), 0..5),
            shift in 0..63_u32,
            nulls_first: bool,
        ) {
            let near = |key: Option<i64>| key.map(|key| key >> shift);
            let chunks: Vec<Vec<_>> = chunks.into_iter().map(|chunk| chunk.into_iter().map(near).collect()).collect();
            let mut expected = Vec::new();
            for (batch, chunk) in (0..).zip(&chunks) {
                expected.extend((0..).zip(chunk).map(|(row, key)| (*key, RowRef { batch, row })));
            }
            expected.sort_by_key(|(key, _)| (key.is_none() != nulls_first, *key));
            prop_assert_eq!(sorted(&chunks, nulls_first), expected);
        }
    }

    #[test]
    fn keys_at_both_ends_are_too_far_apart_for_a_word() {
        let block = |values: Vec<i64>| IntBlock {
            values: values.into(),
            nulls: None,
        };
        assert!(Packing::of(&[block(vec![i64::MIN, i64::MAX])]).is_none());
        let packing = Packing::of(&[block(vec![-5]), block(vec![7, 9])]).unwrap();
        let at = RowRef { batch: 1, row: 1 };
        let packed = packing.pack(9, at);
        assert_eq!((packing.key(packed), packing.place(packed)), (9, at));
    }
}
