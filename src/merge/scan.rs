//! Reads single columns of an input.

use arrow::array::ArrayRef;
use parquet::arrow::ProjectionMask;

use super::{
    MergeError,
    decode::{DecodeLimits, rows_for},
    guard::guarded,
    inputs::Input,
    pages::{Wanted, read_checked},
    sizes::row_size,
};

/// Reads one column of an input, batch by batch.
pub(super) fn scan_column(
    input: &Input,
    name: &str,
    limits: DecodeLimits,
    visit: impl FnMut(&ArrayRef) -> Result<(), String>,
) -> Result<(), MergeError> {
    scan_groups(input, name, None, limits, visit)
}

/// Reads one column of some row groups, or of all, batch by batch.
pub(super) fn scan_groups(
    input: &Input,
    name: &str,
    groups: Option<Vec<usize>>,
    limits: DecodeLimits,
    mut visit: impl FnMut(&ArrayRef) -> Result<(), String>,
) -> Result<(), MergeError> {
    let bad = |reason: String| MergeError::BadInputs(vec![input.bad(reason)]);
    let (bytes, footer) = input
        .reopen()
        .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    let bytes = bytes.with_page_limit(limits.page_bytes);
    let index = footer
        .schema()
        .index_of(name)
        .map_err(|e| bad(e.to_string()))?;
    let batch_rows = rows_for(limits.batch_bytes, row_size(footer.metadata(), None).bytes);
    let all = || (0..footer.metadata().num_row_groups()).collect();
    let groups: Vec<usize> = groups.unwrap_or_else(all);
    let rows_of = |&group: &usize| footer.metadata().row_group(group).num_rows();
    let row_count: i64 = groups.iter().map(rows_of).fold(0, i64::saturating_add);
    let mut wanted = Wanted {
        groups,
        columns: ProjectionMask::roots(footer.parquet_schema(), [index]),
        batch_rows,
        skip_rows: 0,
        limit_bytes: limits.page_bytes,
    };
    let open = |wanted: &Wanted| {
        guarded(|| read_checked(&bytes, &footer, wanted).map_err(|e| e.to_string())).map_err(bad)
    };
    let mut reader = open(&wanted)?;
    loop {
        let rows = &mut reader.reader;
        match guarded(|| rows.next().transpose().map_err(|e| e.to_string())) {
            Ok(Some(batch)) => {
                wanted.skip_rows += batch.num_rows();
                visit(batch.column(0)).map_err(bad)?;
            }
            Ok(None) if i64::try_from(wanted.skip_rows) == Ok(row_count) => return Ok(()),
            Ok(None) => {
                return Err(bad(format!(
                    "column {name:?}: its footer promises {row_count} rows, its pages hold {}",
                    wanted.skip_rows
                )));
            }
            Err(reason) => match reader.fitting_rows() {
                Some(rows) if rows < wanted.batch_rows => {
                    wanted.batch_rows = rows;
                    reader = open(&wanted)?;
                }
                _ => return Err(bad(format!("column {name:?} cannot be read: {reason}"))),
            },
        }
    }
}
