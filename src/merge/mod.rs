//! Merges Parquet files into one sorted file.
//!
//! Synchronous: callers run it on threads of their own and stop it through [`MergeControl`].

//!
//! Inputs are opened, their schemas united and a strategy chosen from their footers; then
//! sorted runs are made and merged into the output, which is checked before anybody sees
//! it. Three invariants hold for every output: ROWS-KEPT, ORDER-KEPT, COLUMNS-UNITED.

mod bounds;
mod chunks;
mod context;
mod decode;
mod dedup;
mod delta;
mod encode;
mod error;
mod estimate;
mod footer_shape;
mod footers;
mod gather;
mod guard;
mod hint;
mod inputs;
mod inspect;
mod int96;
mod intervals;
mod keys;
mod loser_tree;
mod order;
mod pages;
mod raw_copy;
mod runs;
mod schema;
mod spill;
mod strategy;
mod thrift;
mod widen;
mod writer;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use arrow::{compute::SortOptions, datatypes::DataType};
use serde_json::Value;

use crate::invariants;

use context::{Context, Shares, Stop};
use decode::DecodeLimits;
use dedup::Collapse;
use inputs::Input;
use keys::{IntKeys, KeySpace, RowKeys};
use raw_copy::Part;
use schema::UnitedSchema;
use strategy::{InputSummary, Limits, Mode, Run};
use writer::{OutputWriter, Written};

pub use error::{BadInput, MergeError, TypeConflict};
pub use estimate::estimate_memory;
pub use inspect::{RowsProblem, inspect_rows};

/// What to merge, where to, and how.
#[derive(Debug, Clone)]
pub struct MergeRequest {
    /// The files, in the order that decides between equal rows. No link is followed on the way to
    /// them: paths are to be as `canonicalize` gives them, or below such a folder.
    pub inputs: Vec<PathBuf>,
    /// Where the output is written. Must not exist; nobody else may know the name yet.
    pub output: PathBuf,
    /// An existing folder for sorted runs that do not fit into memory. Files made there are removed on every exit.
    pub scratch: PathBuf,
    /// How.
    pub options: MergeOptions,
}

/// How a merge sorts and writes.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeOptions {
    /// The sort order, first column first. Not empty.
    pub order_by: Vec<SortColumn>,
    /// How pages are compressed.
    pub compression: Compression,
    /// How those of some columns are compressed instead. Columns that no input has do no harm, here and below.
    pub column_compression: BTreeMap<String, Compression>,
    /// Columns that get bloom filters, unless they are nested or boolean.
    pub bloom_filter_columns: Vec<String>,
    /// Rows with the same key become one; `None` keeps all rows.
    pub dedup: Option<Dedup>,
    /// Rows in a row group, at most.
    pub row_group_rows: usize,
    /// Memory that the merge may use at once, bytes.
    pub memory_budget_bytes: u64,
    /// Threads that work at once: 1, or 2 for any larger number.
    pub thread_count: usize,
    /// Columns whose exact smallest and largest values are reported, where they exist and can be ordered.
    pub bounds_of: Vec<String>,
}

/// Which rows are the same, and which of them stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dedup {
    /// The key: every sort column, and any others. Nulls are equal to each other, and so are NaN and, -0 and 0.
    pub by: Vec<String>,
    /// The row that stays.
    pub keep: Keep,
}

/// Which of the rows with the same key stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keep {
    /// The first one, in the order of the inputs.
    First,
    /// The last one.
    Last,
    /// The one with the largest value in this column, nulls being smallest and NaN largest; of equal ones the last.
    Max(String),
}

impl fmt::Display for Keep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("first"),
            Self::Last => f.write_str("last"),
            Self::Max(column) => write!(f, "max({column})"),
        }
    }
}

/// One column of a sort order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SortColumn {
    /// The column's name.
    pub name: String,
    /// Largest first.
    pub descending: bool,
    /// Nulls before everything else instead of after.
    pub nulls_first: bool,
}

impl MergeOptions {
    /// How pages of a column, or of the parts of a nested one, are compressed.
    fn compression_of(&self, column: &str) -> Compression {
        let own = self.column_compression.get(column);
        own.copied().unwrap_or(self.compression)
    }
}

/// Page compression of an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None,
    /// Snappy.
    Snappy,
    /// LZ4, raw blocks.
    Lz4,
    /// Zstandard at a level from 1 to 22.
    Zstd(i32),
}

/// Stops a merge from outside and tells how far it is.
#[derive(Debug, Default)]
pub struct MergeControl {
    cancelled: AtomicBool,
    rows_read: AtomicU64,
    rows_written: AtomicU64,
    rows_total: AtomicU64,
}

impl MergeControl {
    /// Asks the merge to stop between batches; it then returns [`MergeError::Cancelled`].
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether [`cancel`](Self::cancel) was called.
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Rows of all inputs; 0 until their footers are read.
    pub fn rows_total(&self) -> u64 {
        self.rows_total.load(Ordering::Relaxed)
    }

    /// Rows read and rows written so far.
    pub fn progress(&self) -> (u64, u64) {
        (
            self.rows_read.load(Ordering::Relaxed),
            self.rows_written.load(Ordering::Relaxed),
        )
    }
}

/// What a finished merge did.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeReport {
    /// Rows of the output; by ROWS-KEPT, with those below as many as the inputs have.
    pub row_count: u64,
    /// Rows that were left out because another one with the same key stays.
    pub collapsed_row_count: u64,
    /// Row groups of the output.
    pub row_group_count: u64,
    /// Bytes of the inputs.
    pub input_bytes: u64,
    /// Bytes of the output, on disk.
    pub output_bytes: u64,
    /// Files, or parts of files, that were read in the order in which they are.
    pub streamed_run_count: u64,
    /// Groups of files that were sorted in memory.
    pub sorted_run_count: u64,
    /// Row groups that were copied undecoded, because their keys overlap no other rows.
    pub copied_row_group_count: u64,
    /// Sorted runs that went through scratch.
    pub spilled_run_count: u64,
    /// For each column of `bounds_of` that has a value: name, smallest, largest.
    pub bounds: Vec<ColumnBounds>,
}

/// Smallest and largest value of one column, nulls and NaN not counted. Integers are exact JSON integers.
#[derive(Debug, Clone, PartialEq)]
pub struct ColumnBounds {
    /// The column's name.
    pub column: String,
    /// Smallest value.
    pub min: Value,
    /// Largest value.
    pub max: Value,
}

/// What a file's footer says, without decoding its pages.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSummary {
    /// Rows in the file.
    pub row_count: u64,
    /// Bytes of the file.
    pub size_bytes: u64,
    /// The file declares the wanted order (`sorting_columns` of every row group) and its statistics
    /// agree; and its rows are unique by the wanted key, if any.
    pub is_sorted: bool,
    /// Bounds of the wanted columns; exact ones from statistics, else read from the column itself.
    pub bounds: Vec<ColumnBounds>,
}

/// Merges the inputs into one file sorted by the wanted order, ties in the order of inputs.
///
/// On success the output is complete but not yet synced to disk. On error neither output nor
/// scratch is left behind. An output that exists already is an error and stays as it is.
pub fn merge_files(
    request: &MergeRequest,
    control: &MergeControl,
) -> Result<MergeReport, MergeError> {
    let shares = Shares::of(request.options.memory_budget_bytes)?;
    if request.inputs.is_empty() {
        return Err(MergeError::Encode {
            path: request.output.clone(),
            reason: "no inputs were given".to_owned(),
        });
    }
    let inputs = inputs::open_all(&request.inputs, keep(&shares), request.options.thread_count)?;
    let united = schema::unite(&inputs, |input, column| {
        footers::integer_range(input, column, scan_limits(&shares))
    })?;
    let required_count = request.options.order_by.len();
    let mut request = request.clone();
    request.options.order_by = dedup::full_order(&request.options, &inputs)?;
    let request = &request;
    let order = SortOrder::of(request, required_count, &inputs, &united)?;
    let summaries = describe(request, &inputs, &order, &shares)?;
    let mut context = Context {
        request,
        control,
        inputs: &inputs,
        parts: Vec::new(),
        united: &united,
        shares,
        sort_places: order.places.clone(),
    };
    let rows_total: u64 = inputs.iter().map(|input| input.row_count).sum();
    control.rows_total.store(rows_total, Ordering::Relaxed);
    let key_type = order.first_type.as_ref();
    let merged = match &order.keys {
        Keys::Integers(space) => {
            // What is not decoded may hold rows with the same key.
            let copy_key = key_type.filter(|_| request.options.dedup.is_none());
            merge_trusting(&mut context, space, summaries, copy_key)?
        }
        Keys::Rows(space) => merge_trusting(&mut context, space, summaries, None)?,
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
    let shares = Shares::of(options.memory_budget_bytes)?;
    let bad = |reason| {
        MergeError::BadInputs(vec![BadInput {
            index: 0,
            path: path.to_owned(),
            reason,
        }])
    };
    let input = guard::guarded(|| inputs::open(0, path, shares.page_bytes)).map_err(bad)?;
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
const CANNOT_BE_ORDERED: &str = "has a type that cannot be ordered";
/// After so many footers that lied, none is believed.
const MISLED_COUNT_MAX: usize = 3;

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

/// The order of one merge.
struct SortOrder {
    /// Places of its columns in the united schema; empty when there are no rows to order.
    places: Vec<usize>,
    /// The type of the first column.
    first_type: Option<DataType>,
    keys: Keys,
}

enum Keys {
    Integers(IntKeys),
    Rows(RowKeys),
}

impl SortOrder {
    /// Checks that every input with rows can be ordered, and has the first `required_count` columns.
    fn of(
        request: &MergeRequest,
        required_count: usize,
        inputs: &[Input],
        united: &UnitedSchema,
    ) -> Result<Self, MergeError> {
        let order_by = &request.options.order_by;
        let filled: Vec<&Input> = inputs.iter().filter(|input| input.row_count > 0).collect();
        let (Some(first_input), Some(first_column)) = (filled.first(), order_by.first()) else {
            let keys = Keys::Integers(IntKeys {
                descending: false,
                nulls_first: false,
            });
            return Ok(Self {
                places: Vec::new(),
                first_type: None,
                keys,
            });
        };
        let refuse = |column: &SortColumn, input: &Input, reason: &str| MergeError::SortColumn {
            column: column.name.clone(),
            file: input.path.clone(),
            reason: reason.to_owned(),
        };
        let (mut places, mut types) = (Vec::new(), Vec::new());
        for (index, column) in order_by.iter().enumerate() {
            if index < required_count
                && let Some(input) = filled
                    .iter()
                    .find(|input| input.schema.index_of(&column.name).is_err())
            {
                return Err(refuse(column, input, "is missing"));
            }
            let place = united
                .schema
                .index_of(&column.name)
                .map_err(|_| refuse(column, first_input, "is missing"))?;
            if intervals::is_interval(&united.parquet.root_schema().get_fields()[place]) {
                return Err(refuse(column, first_input, CANNOT_BE_ORDERED));
            }
            let options = SortOptions {
                descending: column.descending,
                nulls_first: column.nulls_first,
            };
            places.push(place);
            types.push((united.schema.field(place).data_type().clone(), options));
        }
        let first_type = types.first().map(|(data_type, _)| data_type.clone());
        let keys = match &types[..] {
            [(data_type, options)] if keys::has_integer_order(data_type) => {
                Keys::Integers(IntKeys {
                    descending: options.descending,
                    nulls_first: options.nulls_first,
                })
            }
            _ => Keys::Rows(RowKeys::new(&types).ok_or_else(|| {
                let nested = types.iter().position(|(data_type, _)| {
                    RowKeys::new(&[(data_type.clone(), SortOptions::default())]).is_none()
                });
                let column = nested.map_or(first_column, |index| &order_by[index]);
                let file = filled
                    .iter()
                    .find(|input| input.schema.index_of(&column.name).is_ok());
                refuse(column, file.unwrap_or(first_input), CANNOT_BE_ORDERED)
            })?),
        };
        Ok(Self {
            places,
            first_type,
            keys,
        })
    }
}

fn describe(
    request: &MergeRequest,
    inputs: &[Input],
    order: &SortOrder,
    shares: &Shares,
) -> Result<Vec<InputSummary>, MergeError> {
    let keys_are_integers = matches!(order.keys, Keys::Integers(_));
    inputs
        .iter()
        .map(|input| {
            let order_by = &request.options.order_by;
            footers::describe(
                input,
                order_by,
                order.first_type.as_ref(),
                keys_are_integers,
                shares,
            )
        })
        .collect()
}

/// A merge that came to its end.
struct Merged {
    written: Written,
    collapsed_row_count: u64,
    streamed_run_count: u64,
    sorted_run_count: u64,
    spilled_run_count: u64,
}

/// Merges by what footers say; starts again, believing less, when one turns out to lie.
/// Row groups are copied where the key is one integer, of type `copy_key`.
fn merge_trusting<K: KeySpace>(
    context: &mut Context<'_>,
    space: &K,
    mut summaries: Vec<InputSummary>,
    copy_key: Option<&DataType>,
) -> Result<Merged, MergeError> {
    let limits = Limits {
        runs_bytes: context.shares.runs_bytes,
        open_files: context::OPEN_FILES_MAX,
    };
    let mut lying = BTreeSet::new();
    loop {
        context.control.rows_read.store(0, Ordering::Relaxed);
        context.control.rows_written.store(0, Ordering::Relaxed);
        let described = match copy_key.filter(|_| lying.is_empty()) {
            Some(key_type) => {
                let rules = raw_copy::Rules {
                    options: &context.request.options,
                    united: context.united,
                    key_type,
                    chunk_bytes: context.shares.page_bytes,
                };
                let is_cancelled = || context.control.is_cancelled();
                let split = raw_copy::split(&rules, context.inputs, &summaries, &is_cancelled)?;
                context.parts = split.0;
                split.1
            }
            None => {
                let inputs = context.inputs.iter().enumerate();
                context.parts = inputs
                    .map(|(index, input)| Part::whole(index, input))
                    .collect();
                summaries.clone()
            }
        };
        let plan = strategy::choose_strategy(&described, limits);
        match merge_planned(context, space, &plan) {
            Ok(done) => return Ok(done),
            Err(Stop::Error(error)) => return Err(error),
            Err(Stop::Misled {
                inputs: parts,
                too_large,
            }) => {
                // Every round distrusts more, and a merge that trusts nobody cannot be misled.
                let misled: Vec<usize> = parts.map(|index| context.parts[index].input).collect();
                lying.extend(misled.iter().copied());
                let distrust_all = lying.len() > MISLED_COUNT_MAX;
                for (index, summary) in summaries.iter_mut().enumerate() {
                    if distrust_all || misled.contains(&index) {
                        summary.seems_sorted = false;
                        summary.key_range = None;
                        if too_large || distrust_all {
                            summary.decoded_bytes = u64::MAX;
                        }
                    }
                }
            }
        }
    }
}

fn merge_planned<K: KeySpace>(
    context: &Context<'_>,
    space: &K,
    plan: &[Run],
) -> Result<Merged, Stop> {
    let request = context.request;
    let mut writer = OutputWriter::create(
        &request.output,
        context.united,
        &request.options,
        &context.shares,
        context.control,
    )?;
    let runs = runs::make_runs(context, space, plan)?;
    let limits = context.shares.output_batch();
    let collapsed_row_count = match &request.options.dedup {
        None => {
            order::merge_runs(context, space, runs.cursors, limits, &mut writer)?;
            0
        }
        Some(dedup) => {
            let mut collapse = Collapse::new(context, space, dedup, &mut writer)?;
            order::merge_runs(context, space, runs.cursors, limits, &mut collapse)?;
            collapse.finish()?
        }
    };
    let count = |mode| plan.iter().filter(|run| run.mode == mode).count() as u64;
    let written = writer.finish()?;
    let copyable = count(Mode::Copy);
    Ok(Merged {
        streamed_run_count: count(Mode::Stream)
            + copyable.saturating_sub(written.copied_row_group_count),
        sorted_run_count: count(Mode::Memory),
        spilled_run_count: runs.spilled_run_count,
        collapsed_row_count,
        written,
    })
}

/// ROWS-KEPT and COLUMNS-UNITED, on what a reader of the output will see. Gives its size.
fn check_output(
    context: &Context<'_>,
    written: &Written,
    collapsed: u64,
) -> Result<u64, MergeError> {
    let rows_in: u64 = context.inputs.iter().map(|input| input.row_count).sum();
    let output = guard::guarded(|| inputs::open_output(&context.request.output))
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
