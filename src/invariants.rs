//! What must always hold, one predicate each: the same for the code that works, for `verify`
//! and for tests. Pure; `ARCHITECTURE.md` has the same names.

use crate::model::DataPath;

/// ROWS-KEPT: a merge's output has exactly the rows of the inputs whose paths the commit removes;
/// of rows that the table's `dedup` calls the same, one.
pub const ROWS_KEPT: &str = "ROWS-KEPT";
/// ORDER-KEPT: an output is sorted by its table's order, equal rows in the order of the inputs.
pub const ORDER_KEPT: &str = "ORDER-KEPT";
/// COLUMNS-UNITED: an output has every column of every input.
pub const COLUMNS_UNITED: &str = "COLUMNS-UNITED";
/// BYTES-BEFORE-INDEX: the index names only files whose bytes are there.
pub const BYTES_BEFORE_INDEX: &str = "BYTES-BEFORE-INDEX";
/// ONE-HOLDER: at most one holder of a plan can commit it.
pub const ONE_HOLDER: &str = "ONE-HOLDER";
/// DROP-AFTER-COMMIT: bytes are deleted only when no entry names them and their grace is over.
pub const DROP_AFTER_COMMIT: &str = "DROP-AFTER-COMMIT";
/// INSIDE-TABLE: no path leads out of its table's folder.
pub const INSIDE_TABLE: &str = "INSIDE-TABLE";

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{invariant}: {reason}")]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// What was found.
    pub reason: String,
}

fn check(
    invariant: &'static str,
    holds: bool,
    reason: impl FnOnce() -> String,
) -> Result<(), Violation> {
    if holds {
        return Ok(());
    }
    Err(Violation {
        invariant,
        reason: reason(),
    })
}

/// ROWS-KEPT: as many rows came out as went in.
pub fn rows_kept(rows_in: impl IntoIterator<Item = u64>, rows_out: u64) -> Result<(), Violation> {
    rows_kept_or_collapsed(rows_in, rows_out, 0)
}

/// ROWS-KEPT of a table with `dedup`: as many rows came out, or collapsed into others, as went in.
pub fn rows_kept_or_collapsed(
    rows_in: impl IntoIterator<Item = u64>,
    rows_out: u64,
    rows_collapsed: u64,
) -> Result<(), Violation> {
    let rows_in: u128 = rows_in.into_iter().map(u128::from).sum();
    let accounted = u128::from(rows_out) + u128::from(rows_collapsed);
    check(ROWS_KEPT, rows_in == accounted, || {
        format!("{rows_in} rows went in, {rows_out} are there, {rows_collapsed} collapsed")
    })
}

/// ORDER-KEPT: no key is smaller than the one before it. The reason names the first that is, where
/// the first of all counts as `first_row`.
pub fn order_kept<K: PartialOrd>(
    keys: impl IntoIterator<Item = K>,
    first_row: u64,
) -> Result<(), Violation> {
    let mut before: Option<K> = None;
    for (row, key) in (first_row..).zip(keys) {
        let in_order = before.as_ref().is_none_or(|before| *before <= key);
        check(ORDER_KEPT, in_order, || {
            format!("row {row} comes before the row ahead of it")
        })?;
        before = Some(key);
    }
    Ok(())
}

/// COLUMNS-UNITED: every column of an input is a column of the output.
pub fn columns_united<'a>(
    inputs: impl IntoIterator<Item = &'a str>,
    output: &[&str],
) -> Result<(), Violation> {
    for column in inputs {
        check(COLUMNS_UNITED, output.contains(&column), || {
            format!("column {column:?} of an input is missing")
        })?;
    }
    Ok(())
}

/// BYTES-BEFORE-INDEX: what the index names is there. `has_bytes` was looked at before
/// `is_indexed`: bytes go only after their entry.
pub fn bytes_before_index(is_indexed: bool, has_bytes: bool) -> Result<(), Violation> {
    check(BYTES_BEFORE_INDEX, !is_indexed || has_bytes, || {
        "the index names a file that is not there".to_owned()
    })
}

/// ONE-HOLDER: of all who think that they hold a plan, at most one can commit.
pub fn one_holder(holder_count: usize) -> Result<(), Violation> {
    check(ONE_HOLDER, holder_count <= 1, || {
        format!("{holder_count} plans or holders could commit the same file")
    })
}

/// DROP-AFTER-COMMIT: whether a file's bytes may be deleted now.
pub fn drop_after_commit(is_indexed: bool, due_s: i64, now_s: i64) -> Result<(), Violation> {
    check(DROP_AFTER_COMMIT, !is_indexed, || {
        "the index names the file".to_owned()
    })?;
    check(DROP_AFTER_COMMIT, due_s <= now_s, || {
        format!("its grace lasts {} s more", due_s.saturating_sub(now_s))
    })
}

/// INSIDE-TABLE: the path, below its table's folder, stays there.
pub fn inside_table(path: &str) -> Result<(), Violation> {
    DataPath::parse(path).map(drop).map_err(|error| Violation {
        invariant: INSIDE_TABLE,
        reason: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_invariant_tells_what_holds_from_what_does_not() {
        assert!(rows_kept([1, 2], 3).is_ok());
        assert!(rows_kept([u64::MAX, 1], 0).is_err());
        assert!(rows_kept_or_collapsed([1, 2], 2, 1).is_ok());
        assert!(rows_kept_or_collapsed([1, 2], u64::MAX, u64::MAX).is_err());
        assert!(order_kept([1, 1, 2], 0).is_ok());
        let unsorted = order_kept([1, 3, 2], 10).unwrap_err();
        assert_eq!(unsorted.invariant, ORDER_KEPT);
        assert!(unsorted.reason.contains("row 12"), "{unsorted}");
        assert!(columns_united(["a", "b"], &["b", "a", "c"]).is_ok());
        assert!(columns_united(["a", "d"], &["a"]).is_err());
        assert!(bytes_before_index(false, false).is_ok());
        assert!(bytes_before_index(true, true).is_ok());
        assert!(bytes_before_index(true, false).is_err());
        assert!(one_holder(0).is_ok() && one_holder(1).is_ok());
        assert!(one_holder(2).is_err());
        assert!(drop_after_commit(false, 5, 5).is_ok());
        assert!(drop_after_commit(false, 6, 5).is_err());
        assert!(drop_after_commit(true, 0, 5).is_err());
        assert!(inside_table("a/b.1.parquet").is_ok());
        assert!(inside_table("../b.1.parquet").is_err());
    }
}
