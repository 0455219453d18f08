//! Merges Parquet files into one sorted file.
//!
//! Synchronous: callers run it on threads of their own and stop it through [`MergeControl`].
//!
//! Inputs are opened, their schemas united and a strategy chosen from their footers; then
//! sorted runs are made and merged into the output, which is checked before anybody sees
//! it. Three invariants hold for every output: ROWS-KEPT, ORDER-KEPT, COLUMNS-UNITED.

mod ahead;
mod bounds;
mod checker;
mod chunks;
mod context;
mod cursor;
mod decode;
mod dedup;
mod delta;
mod encode;
mod error;
mod estimate;
mod flat;
mod footer_shape;
mod footers;
mod gather;
mod guard;
mod hint;
mod inputs;
mod inspect;
mod int96;
mod int_keys;
mod interner;
mod intervals;
mod keys;
mod load;
mod loser_tree;
mod nearly_sorted;
mod open_footer;
mod order;
mod output_file;
mod page_check;
mod page_counts;
mod pages;
mod parts;
mod peak;
mod picks;
mod piles;
mod properties;
mod queue;
mod race;
mod raw_copy;
mod removed_on_drop;
mod request;
mod runs;
mod scan;
mod schema;
mod sizes;
mod sort_order;
mod sorted_columns;
mod spill;
mod split;
mod strategy;
mod texts;
mod thrift;
mod trusting;
mod widen;
mod writer;

use std::{
    collections::BTreeSet,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use crate::invariants;

use context::{Context, Shares, Stop};
use decode::DecodeLimits;
use sort_order::{Keys, SortOrder};
use strategy::InputSummary;
use texts::WorkSchema;
use trusting::merge_trusting;
use writer::Written;

pub use error::{BadInput, MergeError, TypeConflict};
pub use estimate::estimate_memory;
pub use guard::silence_caught_panics;
pub use inspect::{RowsProblem, inspect_rows};
pub use request::{
    ColumnBounds, Compression, Dedup, FileSummary, Keep, MergeControl, MergeOptions, MergeReport,
    MergeRequest, SortColumn,
};

/// Merges the inputs into one file sorted by the wanted order, ties in the order of inputs.
///
/// On success the output is complete but not yet synced to disk. On error neither output nor
/// scratch is left behind. An output that exists already is an error and stays as it is.
pub fn merge_files(
    request: &MergeRequest,
    control: &MergeControl,
) -> Result<MergeReport, MergeError> {
    let shares = Shares::of(request.options.memory_budget_bytes, request.inputs.len())?;
    if request.inputs.is_empty() {
        return Err(MergeError::Encode {
            path: request.output.clone(),
            reason: "no inputs were given".to_owned(),
        });
    }
    let inputs = inputs::open_all(
        &request.inputs,
        keep(&shares),
        request.options.thread_count,
        control,
    )?;
    let united = schema::unite(&inputs, |input, column| {
        footers::integer_range(input, column, scan_limits(&shares))
    })?;
    let required_count = request.options.order_by.len();
    let mut request = request.clone();
    request.options.order_by = dedup::full_order(&request.options, &inputs)?;
    let request = &request;
    let order = SortOrder::of(request, required_count, &inputs, &united)?;
    let row_bytes = largest_row_bytes(&inputs, control)?;
    let shares = shares.for_rows(row_bytes, request.options.row_group_rows);
    let properties = properties::properties(
        &request.output,
        &united,
        &request.options,
        shares.row_group_bytes,
    )?;
    let work_without = |crowded: &BTreeSet<usize>| {
        WorkSchema::of(
            &inputs,
            &united,
            &request.options,
            &properties,
            crowded,
            control,
        )
        .map(Arc::new)
    };
    let mut context = Context {
        request,
        control,
        inputs: &inputs,
        parts: Vec::new(),
        united: &united,
        work: work_without(&BTreeSet::new())?,
        shares,
        sort_places: order.places.clone(),
        scratch: spill::ScratchFiles::default(),
    };
    let rows_total: u64 = inputs.iter().map(|input| input.row_count).sum();
    control.rows_total.store(rows_total, Ordering::Relaxed);
    let mut crowded = BTreeSet::new();
    let merged = loop {
        let summaries = describe(&context, &order)?;
        let merged = match &order.keys {
            Keys::Integers(space) => {
                let key_type = order.first_type.as_ref();
                merge_trusting(&mut context, space, summaries, key_type)
            }
            Keys::Rows(space) => merge_trusting(&mut context, space, summaries, None),
        };
        match merged {
            Ok(merged) => break merged,
            Err(Stop::Crowded { column }) => {
                crowded.insert(column);
                if crowded.len() > CROWDED_COUNT_MAX {
                    crowded.extend(0..united.schema.fields().len());
                }
                context.work = work_without(&crowded)?;
            }
            Err(Stop::Error(error)) => return Err(error),
            // It is dealt with where it happens.
            Err(Stop::Misled { .. }) => {
                let reason = "a footer was believed that lied before".to_owned();
                return Err(context.invariant("ORDER-KEPT", reason));
            }
        }
    };
    let written = merged.written;
    let output_bytes = check_output(&context, &written, merged.collapsed_row_count)?;
    written.file.keep();
    Ok(MergeReport {
        row_count: written.row_count,
        collapsed_row_count: merged.collapsed_row_count,
        row_group_count: written.row_group_count,
        input_bytes: inputs.iter().map(|input| input.size_bytes).sum(),
        output_bytes,
        streamed_run_count: merged.streamed_run_count,
        sorted_run_count: merged.sorted_run_count,
        copied_row_group_count: written.copied_row_group_count,
        spilled_run_count: merged.spilled_run_count,
        bounds: written.bounds,
    })
}

/// Describes one file from its footer. Only where statistics are missing or not exact are
/// the columns of `bounds_of` decoded.
pub fn summarize(path: &Path, options: &MergeOptions) -> Result<FileSummary, MergeError> {
    let shares = Shares::of(options.memory_budget_bytes, 1)?;
    let input =
        inputs::open(0, path, shares.page_bytes).map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    let footer = input
        .footer()
        .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
    let mut bounds = Vec::new();
    for column in &options.bounds_of {
        if input
            .schema
            .field_with_name(column)
            .is_ok_and(|field| !field.data_type().is_nested())
        {
            let found = footers::column_bounds(&input, &footer, column, scan_limits(&shares))?;
            bounds.extend(found.finish(column));
        }
    }
    let is_unique = options
        .dedup
        .as_ref()
        .is_none_or(|dedup| dedup::is_done(&input, &footer, dedup));
    // Settings that cannot be are the merge's to refuse: a file is described all the same.
    let order_by = dedup::full_order(options, std::slice::from_ref(&input)).unwrap_or_default();
    Ok(FileSummary {
        row_count: input.row_count,
        size_bytes: input.size_bytes,
        is_sorted: footers::is_sorted(&input, &footer, &order_by) && is_unique,
        bounds,
    })
}

/// Small files are read once, as a whole.
const SMALL_FILE_BYTES: u64 = 1 << 20;
/// After so many columns with too many texts to number, none is numbered.
const CROWDED_COUNT_MAX: usize = 3;

fn keep(shares: &Shares) -> inputs::Keep {
    inputs::Keep {
        total_bytes: shares.footers_bytes,
        file_bytes: SMALL_FILE_BYTES,
        footer_bytes: shares.page_bytes,
    }
}

fn scan_limits(shares: &Shares) -> DecodeLimits {
    DecodeLimits {
        batch_bytes: shares.load_batch_bytes,
        page_bytes: shares.page_bytes,
    }
}

/// Bytes of a row in pages, not compressed, of the input where that is most.
fn largest_row_bytes(inputs: &[inputs::Input], control: &MergeControl) -> Result<u64, MergeError> {
    let mut largest = 0;
    for input in inputs {
        control.check()?;
        let footer = input
            .footer()
            .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
        largest = largest.max(footers::stored_row_bytes(footer.metadata()));
    }
    Ok(largest)
}

fn describe(context: &Context<'_>, order: &SortOrder) -> Result<Vec<InputSummary>, MergeError> {
    let keys_are_integers = matches!(order.keys, Keys::Integers(_));
    context
        .inputs
        .iter()
        .map(|input| {
            context.control.check()?;
            footers::describe(
                input,
                &context.request.options.order_by,
                order.first_type.as_ref(),
                keys_are_integers,
                &context.shares,
                &context.work,
            )
        })
        .collect()
}

/// ROWS-KEPT and COLUMNS-UNITED, on what a reader of the output will see. Gives its size.
fn check_output(
    context: &Context<'_>,
    written: &Written,
    collapsed: u64,
) -> Result<u64, MergeError> {
    let rows_in: u64 = context.inputs.iter().map(|input| input.row_count).sum();
    let output = inputs::open_output(&context.request.output)
        .map_err(|reason| context.invariant("ROWS-KEPT", reason))?;
    let is_kept =
        |rows_out| invariants::rows_kept_or_collapsed([rows_in], rows_out, collapsed).is_ok();
    if !is_kept(written.row_count) || !is_kept(output.row_count) {
        let reason = format!(
            "inputs have {rows_in} rows, {} were written and {collapsed} collapsed, the output's footer says {}",
            written.row_count, output.row_count
        );
        return Err(context.invariant("ROWS-KEPT", reason));
    }
    let wanted = context
        .united
        .schema
        .fields()
        .iter()
        .map(|field| field.name());
    if !wanted.eq(output.schema.fields().iter().map(|field| field.name())) {
        return Err(context.invariant("COLUMNS-UNITED", "the output has other columns".to_owned()));
    }
    Ok(output.size_bytes)
}
