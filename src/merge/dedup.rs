//! Rows with the same key become one: a step between the merge and the writer.
//!
//! Such a table's merge sorts by its sort columns and then by the other columns of the key, so
//! that rows with the same key lie side by side, in the order of the inputs, whatever the number
//! of rows between two keys. So one row is held back, and no more memory is needed.

use std::cmp::Ordering;

use arrow::{
    array::{ArrayRef, RecordBatch},
    compute::SortOptions,
};
use parquet::{arrow::arrow_reader::ArrowReaderMetadata, file::metadata::KeyValue};
use serde_json::json;

use super::{
    Dedup, Keep, MergeError, MergeOptions, SortColumn,
    context::Context,
    footers,
    gather::Gathered,
    inputs::Input,
    keys::{KeySpace, RowKeys},
    order::Sink,
    parts::Part,
    sort_order::CANNOT_BE_ORDERED,
};

/// Key-value note that says how the rows of a file were made unique.
pub(super) const DEDUP_KEY: &str = "gigamerge.dedup";

/// The order by which a merge sorts: the table's, then the other columns of the key that the
/// inputs have. A key column that no input has is null everywhere and tells no rows apart.
pub(super) fn full_order(
    options: &MergeOptions,
    inputs: &[Input],
) -> Result<Vec<SortColumn>, MergeError> {
    let mut order = options.order_by.clone();
    let Some(dedup) = &options.dedup else {
        return Ok(order);
    };
    if let Some(missing) = order.iter().find(|sort| !dedup.by.contains(&sort.name)) {
        return Err(MergeError::DedupKey {
            column: missing.name.clone(),
        });
    }
    for column in &dedup.by {
        let is_there = inputs
            .iter()
            .any(|input| input.schema.index_of(column).is_ok());
        if is_there && !order.iter().any(|sort| sort.name == *column) {
            order.push(SortColumn {
                name: column.clone(),
                descending: false,
                nulls_first: false,
            });
        }
    }
    Ok(order)
}

/// What the output says of its rows.
pub(super) fn note(dedup: &Dedup) -> KeyValue {
    let mut by = dedup.by.clone();
    by.sort_unstable();
    let text = json!({ "by": by, "keep": dedup.keep.to_string() });
    KeyValue::new(DEDUP_KEY.to_owned(), text.to_string())
}

/// Whether we wrote a file whose rows are unique by this key.
pub(super) fn is_done(input: &Input, footer: &ArrowReaderMetadata, dedup: &Dedup) -> bool {
    footers::is_by_us(footer) && input.key_values.contains(&note(dedup))
}

/// Passes on one row of each key.
pub(super) struct Collapse<'a, 'b, K: KeySpace> {
    context: &'a Context<'b>,
    space: &'a K,
    sink: &'a mut dyn Sink,
    choice: Choice,
    /// The row that is kept so far of the last key; the next batch may have more of that key.
    held: Option<RecordBatch>,
    collapsed_row_count: u64,
}

enum Choice {
    First,
    Last,
    /// The largest value of the column at this place, of equal ones the last.
    Max(usize, Box<RowKeys>),
}

/// The row that is kept so far of a key.
#[derive(Clone, Copy)]
enum Best {
    Held,
    Row(usize),
}

impl<'a, 'b, K: KeySpace> Collapse<'a, 'b, K> {
    pub(super) fn new(
        context: &'a Context<'b>,
        space: &'a K,
        dedup: &Dedup,
        sink: &'a mut dyn Sink,
    ) -> Result<Self, MergeError> {
        let choice = match &dedup.keep {
            Keep::First => Choice::First,
            Keep::Last => Choice::Last,
            Keep::Max(column) => match context.united.schema.index_of(column) {
                // Null everywhere.
                Err(_) => Choice::Last,
                Ok(place) => Choice::Max(place, Box::new(values_of(context, place)?)),
            },
        };
        Ok(Self {
            context,
            space,
            sink,
            choice,
            held: None,
            collapsed_row_count: 0,
        })
    }

    /// Passes on the last row and gives the number of rows that were left out.
    pub(super) fn finish(mut self) -> Result<u64, MergeError> {
        self.release()?;
        Ok(self.collapsed_row_count)
    }

    fn release(&mut self) -> Result<(), MergeError> {
        let Some(row) = self.held.take() else {
            return Ok(());
        };
        let bytes = row.get_array_memory_size() as u64;
        let mut rows = Gathered::default();
        let slot = rows.add_batch(row);
        rows.add_rows(slot, 0, 1, bytes);
        self.sink.write(rows)
    }

    fn broken(&self, reason: String) -> MergeError {
        self.context.invariant("ROWS-KEPT", reason)
    }

    /// Keys of rows, and what decides between them.
    fn encode(
        &self,
        column: impl Fn(usize) -> Result<ArrayRef, String>,
    ) -> Result<Encoded<K>, MergeError> {
        let places = self.context.sort_places.iter();
        let columns = places
            .map(|&place| column(place))
            .collect::<Result<Vec<_>, _>>();
        let keys = columns.and_then(|columns| self.space.encode(&columns));
        let values = match &self.choice {
            Choice::First | Choice::Last => Ok(None),
            Choice::Max(place, space) => column(*place)
                .and_then(|values| space.encode(&[values]))
                .map(Some),
        };
        Ok(Encoded {
            keys: keys.map_err(|reason| self.broken(reason))?,
            values: values.map_err(|reason| self.broken(reason))?,
        })
    }

    /// Whether the row `right` is kept rather than the row `left` that comes before it.
    fn replaces(&self, left: (&Encoded<K>, usize), right: (&Encoded<K>, usize)) -> bool {
        match &self.choice {
            Choice::First => false,
            Choice::Last => true,
            Choice::Max(_, space) => match (&left.0.values, &right.0.values) {
                (Some(one), Some(two)) => {
                    space.compare(one, left.1, two, right.1) != Ordering::Greater
                }
                _ => true,
            },
        }
    }
}

struct Encoded<K: KeySpace> {
    keys: K::Block,
    values: Option<<RowKeys as KeySpace>::Block>,
}

/// How values of the column at a place compare: null below everything, NaN above.
fn values_of(context: &Context<'_>, place: usize) -> Result<RowKeys, MergeError> {
    let field = context.united.schema.field(place);
    let options = SortOptions {
        descending: false,
        nulls_first: true,
    };
    let space = RowKeys::new(&[(field.data_type().clone(), options)]);
    space.ok_or_else(|| {
        let inputs = context.inputs.iter();
        let mut having = inputs.filter(|input| input.schema.index_of(field.name()).is_ok());
        MergeError::SortColumn {
            column: field.name().clone(),
            file: having
                .next()
                .map(|input| input.path.clone())
                .unwrap_or_default(),
            reason: CANNOT_BE_ORDERED.to_owned(),
        }
    })
}

impl<K: KeySpace> Sink for Collapse<'_, '_, K> {
    fn write(&mut self, rows: Gathered) -> Result<(), MergeError> {
        let count = rows.row_count();
        let new = self.encode(|place| rows.column(place))?;
        let held = match &self.held {
            None => None,
            Some(row) => Some(self.encode(|place| Ok(ArrayRef::clone(row.column(place))))?),
        };
        let mut kept = vec![false; count];
        let mut best = held.as_ref().map(|_| Best::Held);
        let mut held_is_done = false;
        for row in 0..count {
            let is_same = match (row.checked_sub(1), &held) {
                (Some(before), _) => self.space.compare(&new.keys, before, &new.keys, row),
                (None, Some(held)) => self.space.compare(&held.keys, 0, &new.keys, row),
                (None, None) => Ordering::Less,
            } == Ordering::Equal;
            let is_better = match (best, &held) {
                (Some(Best::Row(other)), _) => self.replaces((&new, other), (&new, row)),
                (Some(Best::Held), Some(held)) => self.replaces((held, 0), (&new, row)),
                _ => true,
            };
            if !is_same {
                match best {
                    Some(Best::Row(done)) => kept[done] = true,
                    Some(Best::Held) => held_is_done = true,
                    None => {}
                }
            }
            if !is_same || is_better {
                best = Some(Best::Row(row));
            }
            self.collapsed_row_count += u64::from(is_same);
        }
        if held_is_done {
            self.release()?;
        }
        if let Some(Best::Row(row)) = best {
            self.held = Some(
                rows.row(row)
                    .ok_or_else(|| self.broken("a row is gone".into()))?,
            );
        }
        let rows = rows.keep_only(&kept);
        if rows.row_count() == 0 {
            return Ok(());
        }
        self.sink.write(rows)
    }

    fn copy(&mut self, context: &Context<'_>, part: &Part) -> Result<(), MergeError> {
        let reason = format!("input {} may hold rows with the same key", part.input);
        Err(context.invariant("ROWS-KEPT", reason))
    }
}
