//! Columns that are brought into an order that is known, one after the other.

use std::{ops::Range, sync::Arc};

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions};

use super::{
    context::{Context, Stop},
    decode::BATCH_ROWS_MAX,
    gather::{permute, permute_texts},
    keys::RowRef,
    sizes::array_bytes,
};

/// A batch of rows in order.
const SORTED_BATCH_BYTES: u64 = 2 << 20;
/// Up to here the texts of a column are copied in their order: they fit into the cache together.
const COPIED_TEXT_BYTES_MAX: u64 = 4 << 20;
/// Fewer rows are not worth a batch.
const SORTED_BATCH_ROWS_MIN: usize = 256;

/// Columns that are brought into order, one after the other.
pub(super) struct SortedColumns<'a> {
    context: &'a Context<'a>,
    order: &'a [RowRef],
    batches: Vec<Range<usize>>,
    /// For each united column its arrays, one for each batch.
    columns: Vec<Vec<ArrayRef>>,
    bytes: u64,
}

impl<'a> SortedColumns<'a> {
    /// No columns yet. `row_bytes`: of all columns of a row, estimated.
    pub(super) fn new(context: &'a Context<'_>, order: &'a [RowRef], row_bytes: u64) -> Self {
        // A batch is in memory until its last row was merged: the larger, the longer.
        let rows = SORTED_BATCH_BYTES / row_bytes.max(1);
        let rows = usize::try_from(rows).unwrap_or(usize::MAX);
        let rows = rows.clamp(SORTED_BATCH_ROWS_MIN, BATCH_ROWS_MAX);
        let starts = (0..order.len()).step_by(rows);
        let batches = starts.map(|start| start..(start + rows).min(order.len()));
        Self {
            context,
            order,
            batches: batches.collect(),
            columns: vec![Vec::new(); context.work.schema.fields().len()],
            bytes: 0,
        }
    }

    /// Adds a united column, whose rows are in `chunks`.
    pub(super) fn add(&mut self, column: usize, chunks: &[ArrayRef]) -> Result<(), Stop> {
        if !self.columns[column].is_empty() {
            // The order names it twice.
            return Ok(());
        }
        let bytes: u64 = chunks.iter().map(array_bytes).sum();
        if bytes <= COPIED_TEXT_BYTES_MAX
            && let Some(texts) = permute_texts(chunks, self.order)
        {
            self.bytes += array_bytes(&texts);
            let batches = self.batches.iter();
            self.columns[column] = batches
                .map(|rows| texts.slice(rows.start, rows.len()))
                .collect();
            return Ok(());
        }
        for rows in &self.batches {
            let array = permute(chunks, &self.order[rows.clone()])
                .map_err(|reason| self.context.invariant("ROWS-KEPT", reason))?;
            self.bytes += array_bytes(&array);
            self.columns[column].push(array);
        }
        Ok(())
    }

    /// Bytes of what was added.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of a row.
    pub(super) fn row_bytes(&self) -> u64 {
        self.bytes / self.order.len().max(1) as u64
    }

    /// The rows in order.
    pub(super) fn finish(self) -> Result<Vec<RecordBatch>, Stop> {
        let mut columns: Vec<_> = self.columns.into_iter().map(Vec::into_iter).collect();
        let batches = self.batches.iter().map(|rows| {
            let arrays = columns.iter_mut().filter_map(Iterator::next).collect();
            let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
            let schema = Arc::clone(&self.context.work.schema);
            RecordBatch::try_new_with_options(schema, arrays, &options).map_err(|e| {
                self.context
                    .invariant("COLUMNS-UNITED", e.to_string())
                    .into()
            })
        });
        batches.collect()
    }
}
