//! Decodes a whole file and compares its rows with what its footer says of them.

use std::path::Path;

use arrow::{
    array::{Array, ArrayRef, UInt64Array},
    compute::SortOptions,
    record_batch::RecordBatch,
    row::{OwnedRow, RowConverter, SortField},
};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, statistics::StatisticsConverter},
};

use crate::invariants;

use super::{
    MergeError, MergeOptions,
    bounds::BoundsOf,
    context::Shares,
    guard::{InputBytes, guarded},
    inputs,
    pages::{Wanted, read_checked},
    sizes::row_size,
};

/// Rows in a batch, at most.
const BATCH_ROWS_MAX: u64 = 8192;
/// Problems named of one file; one is enough to know that it is not as it says.
const PROBLEMS_MAX: usize = 20;

/// How rows are not what their footer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RowsProblem {
    /// They cannot be decoded, or are more or fewer.
    Rows(String),
    /// They are not in the order that the file declares.
    Order(String),
    /// Statistics leave some of their values out.
    Statistics(String),
}

/// Decodes every row of a file: are there as many as the footer says, in the order that it
/// declares, with values within its statistics?
///
/// # Errors
/// When the file's footer cannot be read, or the budget is too small.
pub fn inspect_rows(path: &Path, options: &MergeOptions) -> Result<Vec<RowsProblem>, MergeError> {
    let shares = Shares::of(options.memory_budget_bytes, 1)?;
    let input =
        inputs::open(0, path, shares.page_bytes).map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    let (bytes, footer) = input
        .reopen()
        .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    let bytes = bytes.with_page_limit(shares.page_bytes);
    let row_bytes = row_size(footer.metadata(), None).bytes.max(1);
    let batch_rows = (shares.load_batch_bytes / row_bytes).clamp(1, BATCH_ROWS_MAX);
    let mut inspection = Inspection {
        batch_rows: usize::try_from(batch_rows).unwrap_or(1),
        limit_bytes: shares.page_bytes,
        order: Order::declared(&footer),
        statistics: Statistics::of(&footer),
        problems: Vec::new(),
    };
    for group in 0..footer.metadata().num_row_groups() {
        // What cannot be decoded is a problem of the rows, not of the look at them.
        if let Err(reason) = guarded(|| inspection.group(&bytes, &footer, group)) {
            let reason = format!("row group {group} cannot be decoded: {reason}");
            inspection.add(RowsProblem::Rows(reason));
        }
    }
    Ok(inspection.problems)
}

struct Inspection {
    batch_rows: usize,
    limit_bytes: u64,
    order: Option<Order>,
    statistics: Vec<Statistics>,
    problems: Vec<RowsProblem>,
}

impl Inspection {
    fn add(&mut self, problem: RowsProblem) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }

    fn group(
        &mut self,
        bytes: &InputBytes,
        footer: &ArrowReaderMetadata,
        group: usize,
    ) -> Result<(), String> {
        let mut row_count = 0_usize;
        let mut found: Vec<(BoundsOf, u64)> = vec![<_>::default(); self.statistics.len()];
        let mut wanted = Wanted {
            groups: vec![group],
            columns: ProjectionMask::all(),
            batch_rows: self.batch_rows,
            skip_rows: 0,
            limit_bytes: self.limit_bytes,
        };
        let open = |wanted: &Wanted| read_checked(bytes, footer, wanted).map_err(|e| e.to_string());
        let mut reader = open(&wanted)?;
        while let Some(batch) = reader.reader.next() {
            let batch = match (batch, reader.fitting_rows()) {
                (Ok(batch), _) => batch,
                (Err(_), Some(rows)) if rows < wanted.batch_rows => {
                    wanted.batch_rows = rows;
                    wanted.skip_rows = row_count;
                    reader = open(&wanted)?;
                    continue;
                }
                (Err(error), _) => return Err(error.to_string()),
            };
            for (statistics, (bounds, null_count)) in self.statistics.iter().zip(&mut found) {
                let column = batch.column(statistics.place);
                bounds.update(column);
                *null_count += column.logical_null_count() as u64;
            }
            if let Some(order) = &mut self.order
                && let Err(reason) = order.check(&batch)
            {
                self.order = None;
                self.add(RowsProblem::Order(format!("row group {group}: {reason}")));
            }
            row_count += batch.num_rows();
        }
        let told = footer.metadata().row_group(group).num_rows();
        if usize::try_from(told) != Ok(row_count) {
            let reason = format!("row group {group} has {row_count} rows, its footer says {told}");
            self.add(RowsProblem::Rows(reason));
        }
        let problems: Vec<_> = self
            .statistics
            .iter()
            .zip(&found)
            .filter_map(|(statistics, found)| statistics.problem(group, found))
            .collect();
        for problem in problems {
            self.add(RowsProblem::Statistics(problem));
        }
        Ok(())
    }
}

/// The order that every row group declares.
struct Order {
    places: Vec<usize>,
    converter: RowConverter,
    last: Option<OwnedRow>,
    /// Rows seen so far.
    row_count: u64,
}

impl Order {
    /// `None` when there is none, or none that can be checked.
    fn declared(footer: &ArrowReaderMetadata) -> Option<Self> {
        let metadata = footer.metadata();
        let first = metadata.row_groups().first()?.sorting_columns()?;
        let is_same = |group: &parquet::file::metadata::RowGroupMetaData| {
            group.sorting_columns().is_some_and(|other| other == first)
        };
        if first.is_empty() || !metadata.row_groups().iter().all(is_same) {
            return None;
        }
        let descr = metadata.file_metadata().schema_descr();
        let (mut places, mut fields) = (Vec::new(), Vec::new());
        for column in first {
            let leaf = usize::try_from(column.column_idx).ok()?;
            if leaf >= descr.num_columns() {
                return None;
            }
            let path = descr.column(leaf);
            let [name] = path.path().parts() else {
                return None;
            };
            let place = footer.schema().index_of(name).ok()?;
            let options = SortOptions {
                descending: column.descending,
                nulls_first: column.nulls_first,
            };
            let data_type = footer.schema().field(place).data_type().clone();
            places.push(place);
            fields.push(SortField::new_with_options(data_type, options));
        }
        RowConverter::supports_fields(&fields)
            .then(|| RowConverter::new(fields).ok())
            .flatten()
            .map(|converter| Self {
                places,
                converter,
                last: None,
                row_count: 0,
            })
    }

    /// ORDER-KEPT, across batches.
    fn check(&mut self, batch: &RecordBatch) -> Result<(), String> {
        let columns: Vec<ArrayRef> = self
            .places
            .iter()
            .map(|&place| batch.column(place).clone())
            .collect();
        let rows = self
            .converter
            .convert_columns(&columns)
            .map_err(|error| error.to_string())?;
        let last = self.last.as_ref().map(OwnedRow::row);
        let first_row = self.row_count - last.iter().len() as u64;
        invariants::order_kept(last.into_iter().chain(&rows), first_row)
            .map_err(|violation| violation.reason)?;
        self.row_count += rows.num_rows() as u64;
        if let Some(last) = rows.num_rows().checked_sub(1) {
            self.last = Some(rows.row(last).owned());
        }
        Ok(())
    }
}

/// Statistics of one column.
struct Statistics {
    column: String,
    place: usize,
    min: ArrayRef,
    max: ArrayRef,
    null_counts: UInt64Array,
}

impl Statistics {
    fn of(footer: &ArrowReaderMetadata) -> Vec<Self> {
        let metadata = footer.metadata();
        let one = |(place, field): (usize, &std::sync::Arc<arrow::datatypes::Field>)| {
            let converter = StatisticsConverter::try_new(
                field.name(),
                footer.schema(),
                footer.parquet_schema(),
            )
            .ok()?
            .with_missing_null_counts_as_zero(false);
            let leaf = converter.parquet_column_index()?;
            let groups = || metadata.row_groups().iter();
            // Old statistics of unsigned numbers compare them as signed ones.
            let is_deprecated = groups().any(|group| {
                let statistics = group.column(leaf).statistics();
                statistics.is_some_and(parquet::file::statistics::Statistics::is_min_max_deprecated)
            });
            if field.data_type().is_nested() || is_deprecated {
                return None;
            }
            Some(Self {
                column: field.name().clone(),
                place,
                min: converter.row_group_mins(groups()).ok()?,
                max: converter.row_group_maxes(groups()).ok()?,
                null_counts: converter.row_group_null_counts(groups()).ok()?,
            })
        };
        footer
            .schema()
            .fields()
            .iter()
            .enumerate()
            .filter_map(one)
            .collect()
    }

    fn problem(&self, group: usize, (found, null_count): &(BoundsOf, u64)) -> Option<String> {
        let column = &self.column;
        if !self.null_counts.is_null(group) && self.null_counts.value(group) != *null_count {
            let told = self.null_counts.value(group);
            return Some(format!(
                "row group {group}: column {column:?} has {null_count} nulls, its statistics say {told}"
            ));
        }
        if self.min.is_null(group) || self.max.is_null(group) {
            return None;
        }
        let mut told = BoundsOf::default();
        let is_known =
            told.update(&self.min.slice(group, 1)) && told.update(&self.max.slice(group, 1));
        (is_known && !told.covers(found)).then(|| {
            format!("row group {group}: column {column:?} has values outside of its statistics")
        })
    }
}
