//! Writes flat columns (numbers, times, texts) straight from the batches of runs into pages.
//!
//! `parquet`'s own writer wants one array for each batch of rows; rows of a merge come from
//! many. Here they are picked from where they are into the page in progress, so that a value
//! is copied once. Dictionary and page stay in the cache meanwhile, because a column takes
//! many rows before it is the next one's turn. Everything else (lists, decimals, flags, …) and
//! all of the file around goes through `parquet`.

mod chunk;
mod codec;
mod dictionary;
mod packer;
mod packing;
mod ranges;
mod text_page;
mod text_values;
mod texts;
mod trim;
mod words;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arrow::{array::ArrayRef, datatypes::DataType};
use parquet::{
    basic::Type as PhysicalType, file::properties::WriterProperties, schema::types::ColumnDescPtr,
};

use super::{interner::SharedInterner, picks::Rows};

use chunk::Compressing;
use codec::Codecs;
use ranges::{Order, order_of};
use texts::TextColumn;
use words::WordColumn;

pub(in crate::merge) use chunk::FlatChunk;
pub(in crate::merge) use dictionary::TextDictionary;
pub(in crate::merge) use packer::Packer;
pub(in crate::merge) use words::words;

/// Rows of a page, at most.
const PAGE_ROWS_MAX: usize = 16_384;
/// Rows of a page, however little memory there is.
const PAGE_ROWS_MIN: usize = 1024;
/// A page of texts ends when it has so many bytes.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// One column's dictionary, at most.
const DICTIONARY_BYTES_MAX: usize = 1 << 20;

/// Memory that a thread needs while it encodes a column; made once, used for all.
#[derive(Default)]
pub(in crate::merge) struct Tools {
    scratch: Scratch,
    compressing: Compressing,
}

/// Buffers of one page.
#[derive(Default)]
struct Scratch {
    body: Vec<u8>,
    indexes: Vec<u32>,
    longs: Vec<u64>,
    shorts: Vec<u32>,
    deltas: Vec<i64>,
    present: Vec<u8>,
}

/// What all columns of one output share.
#[derive(Debug, Clone)]
pub(in crate::merge) struct Limits {
    /// Bytes that one column may use for a page in progress.
    pub(in crate::merge) column_bytes: usize,
    /// Rows of a row group, at most.
    pub(in crate::merge) row_group_rows: usize,
    /// Bytes that are left for the dictionaries of all columns.
    dictionary_bytes: Arc<AtomicUsize>,
}

impl Limits {
    pub(in crate::merge) fn new(
        column_bytes: usize,
        row_group_rows: usize,
        dictionary_bytes: usize,
    ) -> Self {
        Self {
            column_bytes,
            row_group_rows,
            dictionary_bytes: Arc::new(AtomicUsize::new(dictionary_bytes)),
        }
    }

    fn page_rows(&self) -> usize {
        (self.column_bytes / 8).clamp(PAGE_ROWS_MIN, PAGE_ROWS_MAX)
    }

    fn page_bytes(&self) -> usize {
        self.column_bytes.clamp(PAGE_ROWS_MIN, PAGE_BYTES_MAX)
    }

    /// Takes memory for a dictionary, if there is any left.
    fn take(&self, bytes: usize) -> bool {
        let left = &self.dictionary_bytes;
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(bytes)
        })
        .is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.dictionary_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// One flat column of an output, over all its row groups.
pub(in crate::merge) struct FlatColumn(Kind);

enum Kind {
    Long(Box<WordColumn<u64>>),
    Short(Box<WordColumn<u32>>),
    Text(Box<TextColumn>),
}

impl FlatColumn {
    /// Whether a column of this type can be written here.
    pub(in crate::merge) fn supports(
        descr: &ColumnDescPtr,
        data_type: &DataType,
        properties: &WriterProperties,
    ) -> bool {
        let path = descr.path();
        let has_type = match descr.physical_type() {
            PhysicalType::INT64
            | PhysicalType::DOUBLE
            | PhysicalType::INT32
            | PhysicalType::FLOAT => order_of(descr, data_type).is_some(),
            PhysicalType::BYTE_ARRAY => matches!(
                data_type,
                DataType::Utf8 | DataType::Binary | DataType::Utf8View | DataType::BinaryView
            ),
            _ => false,
        };
        has_type
            && descr.max_rep_level() == 0
            && descr.max_def_level() <= 1
            && path.parts().len() == 1
            && properties.bloom_filter_properties(path).is_none()
            && Codecs::supports(properties.compression(path))
    }

    /// A column without rows, of a type that is supported. `interner`: where its texts are, when
    /// its values are their numbers. `has_small_steps`: its values are in order.
    pub(in crate::merge) fn new(
        descr: &ColumnDescPtr,
        data_type: &DataType,
        properties: &WriterProperties,
        limits: &Limits,
        interner: Option<SharedInterner>,
        has_small_steps: bool,
    ) -> Option<Self> {
        let compression = properties.compression(descr.path());
        let descr = descr.clone();
        let order = order_of(&descr, data_type).unwrap_or(Order::Signed);
        Some(Self(match descr.physical_type() {
            PhysicalType::INT64 | PhysicalType::DOUBLE => Kind::Long(Box::new(WordColumn::new(
                descr,
                compression,
                order,
                has_small_steps,
                limits.clone(),
            ))),
            PhysicalType::INT32 | PhysicalType::FLOAT => Kind::Short(Box::new(WordColumn::new(
                descr,
                compression,
                order,
                has_small_steps,
                limits.clone(),
            ))),
            PhysicalType::BYTE_ARRAY => Kind::Text(Box::new(TextColumn::new(
                descr,
                compression,
                limits.clone(),
                interner,
            ))),
            _ => return None,
        }))
    }

    /// Appends rows of the arrays.
    pub(in crate::merge) fn write(
        &mut self,
        arrays: &[ArrayRef],
        rows: &Rows<'_>,
        tools: &mut Tools,
    ) -> Result<(), String> {
        match &mut self.0 {
            Kind::Long(column) => column.write(arrays, rows, tools),
            Kind::Short(column) => column.write(arrays, rows, tools),
            Kind::Text(column) => column.write(arrays, rows, tools),
        }
    }

    /// Ends the row group.
    pub(in crate::merge) fn close(&mut self, tools: &mut Tools) -> Result<FlatChunk, String> {
        match &mut self.0 {
            Kind::Long(column) => column.close(tools),
            Kind::Short(column) => column.close(tools),
            Kind::Text(column) => column.close(tools),
        }
    }

    /// What compresses its pages, where that may be done beside [`write`](Self::write).
    pub(in crate::merge) fn packer(&self) -> Option<Packer> {
        match &self.0 {
            Kind::Text(column) => Some(column.packer.clone()),
            Kind::Long(_) | Kind::Short(_) => None,
        }
    }

    /// Bytes that the row group takes so far.
    pub(in crate::merge) fn memory_bytes(&self) -> usize {
        match &self.0 {
            Kind::Long(column) => column.memory_bytes(),
            Kind::Short(column) => column.memory_bytes(),
            Kind::Text(column) => column.memory_bytes(),
        }
    }
}
