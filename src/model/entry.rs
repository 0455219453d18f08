//! What the catalog knows of one file.

use serde_json::{Map, Value};

use super::{DataPath, LayerName, TableRef, WriterId};

/// One file of the index. Times are nanoseconds since the epoch, UTC.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexEntry {
    /// The layer whose bytes these are; empty for the first one.
    pub layer: LayerName,
    /// The table.
    pub table: TableRef,
    /// Where the file lies inside its table.
    pub path: DataPath,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// Rows in the file.
    pub row_count: u64,
    /// When the file's rows were collected; a layer's TTL counts from here.
    pub chunk_time_ns: i64,
    /// Smallest time in the file, inclusive.
    pub min_time_ns: i64,
    /// Largest time in the file, inclusive.
    pub max_time_ns: i64,
    /// Column → smallest value.
    pub min: Map<String, Value>,
    /// Column → largest value.
    pub max: Map<String, Value>,
    /// Who wrote it.
    pub writer: WriterId,
    /// Fields that this version does not know, kept as they came.
    pub extra: Map<String, Value>,
}
