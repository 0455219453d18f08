//! Sort keys: one integer-like column is compared as `i64`, any other order in Arrow's row format.
//!
//! Order of values: nulls where the column's order puts them, NaN above every number and
//! equal to every NaN, −0 equal to 0. Descending turns values around, not nulls.

use std::{cmp::Ordering, sync::Arc};

use arrow::{
    array::{Array, ArrayRef, AsArray, Float32Array, Float64Array},
    buffer::ScalarBuffer,
    compute::SortOptions,
    datatypes::{
        DataType, Date32Type, Date64Type, Float32Type, Float64Type, Int8Type, Int16Type, Int32Type,
        Int64Type, Time32MillisecondType, Time32SecondType, Time64MicrosecondType,
        Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
        TimestampNanosecondType, TimestampSecondType, UInt8Type, UInt16Type, UInt32Type,
        UInt64Type,
    },
    row::{RowConverter, Rows, SortField},
};

/// A row among batches that are in memory together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RowRef {
    pub(super) batch: u32,
    pub(super) row: u32,
}

/// Where a key stands by itself, whatever its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    NullFirst,
    Value,
    NullLast,
}

/// How keys of one merge are made and compared.
pub(super) trait KeySpace: Send + Sync {
    /// Keys of consecutive rows.
    type Block: Send;

    /// Keys of the rows whose sort columns these are.
    fn encode(&self, sort_columns: &[ArrayRef]) -> Result<Self::Block, String>;

    /// Whether equal heads mean equal keys.
    const HEADS_ARE_EXACT: bool;

    /// The beginning of a key: where nulls are, and a number of the same order as keys.
    fn head(&self, block: &Self::Block, i: usize) -> (Class, u64);

    /// The order of two keys.
    fn compare(&self, left: &Self::Block, i: usize, right: &Self::Block, j: usize) -> Ordering;

    /// Sorts rows of several blocks, ties in their order; also gives the keys in the new order.
    fn sort(&self, blocks: Vec<Self::Block>) -> (Self::Block, Vec<RowRef>);

    /// A block with one key that no row of an input comes before.
    fn bound(&self, key: i64) -> Option<Self::Block>;

    /// Rows in a block.
    fn len(&self, block: &Self::Block) -> usize;

    /// Bytes that a block takes, and those that sorting it takes besides.
    fn size_bytes(&self, block: &Self::Block) -> u64;

    /// The first place where a key comes before the one ahead of it.
    fn first_disorder(&self, block: &Self::Block) -> Option<usize> {
        (1..self.len(block)).find(|&i| self.compare(block, i - 1, block, i) == Ordering::Greater)
    }
}

/// Whether a single sort column of this type can be compared as `i64`.
pub(super) fn has_integer_order(data_type: &DataType) -> bool {
    data_type.is_integer()
        || data_type.is_floating() && *data_type != DataType::Float16
        || matches!(
            data_type,
            DataType::Date32
                | DataType::Date64
                | DataType::Time32(_)
                | DataType::Time64(_)
                | DataType::Timestamp(_, _)
        )
}

/// Values as integers of the same order; `None` for types without one.
pub(super) fn ordered_integers(array: &ArrayRef, descending: bool) -> Option<ScalarBuffer<i64>> {
    macro_rules! integers {
        ($type:ty) => {{
            let values = array.as_primitive::<$type>().values();
            values
                .iter()
                .map(|&value| i64::from(value))
                .collect::<Vec<i64>>()
                .into()
        }};
    }
    macro_rules! as_they_are {
        ($type:ty) => {
            array.as_primitive::<$type>().values().clone()
        };
    }
    let ascending: ScalarBuffer<i64> = match array.data_type() {
        DataType::Int64 => as_they_are!(Int64Type),
        DataType::Timestamp(TimeUnit::Second, _) => as_they_are!(TimestampSecondType),
        DataType::Timestamp(TimeUnit::Millisecond, _) => as_they_are!(TimestampMillisecondType),
        DataType::Timestamp(TimeUnit::Microsecond, _) => as_they_are!(TimestampMicrosecondType),
        DataType::Timestamp(TimeUnit::Nanosecond, _) => as_they_are!(TimestampNanosecondType),
        DataType::Date64 => as_they_are!(Date64Type),
        DataType::Time64(TimeUnit::Microsecond) => as_they_are!(Time64MicrosecondType),
        DataType::Time64(TimeUnit::Nanosecond) => as_they_are!(Time64NanosecondType),
        DataType::Int8 => integers!(Int8Type),
        DataType::Int16 => integers!(Int16Type),
        DataType::Int32 => integers!(Int32Type),
        DataType::UInt8 => integers!(UInt8Type),
        DataType::UInt16 => integers!(UInt16Type),
        DataType::UInt32 => integers!(UInt32Type),
        DataType::Date32 => integers!(Date32Type),
        DataType::Time32(TimeUnit::Second) => integers!(Time32SecondType),
        DataType::Time32(TimeUnit::Millisecond) => integers!(Time32MillisecondType),
        DataType::UInt64 => {
            let values = array.as_primitive::<UInt64Type>().values();
            values
                .iter()
                .map(|&v| (v ^ (1 << 63)).cast_signed())
                .collect::<Vec<_>>()
                .into()
        }
        DataType::Float64 => {
            let values = array.as_primitive::<Float64Type>().values();
            values
                .iter()
                .map(|&v| ordered_float(v))
                .collect::<Vec<_>>()
                .into()
        }
        DataType::Float32 => {
            let values = array.as_primitive::<Float32Type>().values();
            values
                .iter()
                .map(|&v| ordered_float(f64::from(v)))
                .collect::<Vec<_>>()
                .into()
        }
        _ => return None,
    };
    Some(if descending {
        ascending
            .iter()
            .map(|value| !value)
            .collect::<Vec<_>>()
            .into()
    } else {
        ascending
    })
}

fn ordered_float(value: f64) -> i64 {
    if value.is_nan() {
        return i64::MAX;
    }
    // Adding 0 turns −0 into 0.
    let bits = (value + 0.0).to_bits().cast_signed();
    // A negative float's bits grow with its distance from 0.
    if bits < 0 { bits ^ i64::MAX } else { bits }
}

/// Any list of columns, in Arrow's row format.
#[derive(Debug)]
pub(super) struct RowKeys {
    converter: RowConverter,
}

/// Keys as comparable bytes, in places that `order` gives.
#[derive(Debug)]
pub(super) struct RowBlock {
    rows: Vec<Rows>,
    order: Option<Vec<RowRef>>,
}

impl RowKeys {
    /// Keys for columns of these types; `None` when one of them cannot be ordered.
    pub(super) fn new(columns: &[(DataType, SortOptions)]) -> Option<Self> {
        let fields: Vec<_> = columns
            .iter()
            .map(|(data_type, options)| SortField::new_with_options(data_type.clone(), *options))
            .collect();
        let flat = columns.iter().all(|(data_type, _)| !data_type.is_nested());
        if !flat || !RowConverter::supports_fields(&fields) {
            return None;
        }
        RowConverter::new(fields)
            .ok()
            .map(|converter| Self { converter })
    }
}

impl RowBlock {
    #[inline]
    fn row(&self, position: usize) -> &[u8] {
        match &self.order {
            None => self.rows[0].row(position).data(),
            Some(order) => {
                let at = order[position];
                self.rows[at.batch as usize].row(at.row as usize).data()
            }
        }
    }
}

impl KeySpace for RowKeys {
    type Block = RowBlock;
    const HEADS_ARE_EXACT: bool = false;

    #[inline]
    fn head(&self, block: &RowBlock, i: usize) -> (Class, u64) {
        let row = block.row(i);
        let mut head = [0; 8];
        let length = row.len().min(head.len());
        head[..length].copy_from_slice(&row[..length]);
        (Class::Value, u64::from_be_bytes(head))
    }

    fn encode(&self, sort_columns: &[ArrayRef]) -> Result<RowBlock, String> {
        let columns: Vec<_> = sort_columns.iter().map(plain_floats).collect();
        let rows = self
            .converter
            .convert_columns(&columns)
            .map_err(|e| e.to_string())?;
        Ok(RowBlock {
            rows: vec![rows],
            order: None,
        })
    }

    #[inline]
    fn compare(&self, left: &RowBlock, i: usize, right: &RowBlock, j: usize) -> Ordering {
        left.row(i).cmp(right.row(j))
    }

    fn sort(&self, blocks: Vec<RowBlock>) -> (RowBlock, Vec<RowRef>) {
        let rows: Vec<Rows> = blocks.into_iter().flat_map(|block| block.rows).collect();
        let mut order: Vec<RowRef> = (0_u32..)
            .zip(&rows)
            .flat_map(|(batch, rows)| {
                (0_u32..)
                    .take(rows.num_rows())
                    .map(move |row| RowRef { batch, row })
            })
            .collect();
        let bytes = |at: &RowRef| rows[at.batch as usize].row(at.row as usize).data();
        order.sort_by(|left, right| bytes(left).cmp(bytes(right)));
        (
            RowBlock {
                rows,
                order: Some(order.clone()),
            },
            order,
        )
    }

    fn bound(&self, _key: i64) -> Option<RowBlock> {
        None
    }

    fn len(&self, block: &RowBlock) -> usize {
        block.rows.iter().map(Rows::num_rows).sum()
    }

    fn size_bytes(&self, block: &RowBlock) -> u64 {
        let bytes: usize = block.rows.iter().map(Rows::size).sum();
        (bytes + self.len(block) * 24) as u64
    }
}

/// Floats with one NaN and one zero, as the order wants them; other columns as they are.
fn plain_floats(column: &ArrayRef) -> ArrayRef {
    match column.data_type() {
        DataType::Float32 => {
            let plain: Float32Array = column
                .as_primitive::<Float32Type>()
                .unary(|v| if v.is_nan() { f32::NAN } else { v + 0.0 });
            Arc::new(plain)
        }
        DataType::Float64 => {
            let plain: Float64Array = column
                .as_primitive::<Float64Type>()
                .unary(|v| if v.is_nan() { f64::NAN } else { v + 0.0 });
            Arc::new(plain)
        }
        _ => Arc::clone(column),
    }
}
