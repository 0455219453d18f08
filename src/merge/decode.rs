//! Decoding an input, batch by batch, into the united schema.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
};

use arrow::{
    array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, new_null_array},
    datatypes::DataType,
};
use parquet::arrow::{
    ProjectionMask,
    arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions},
};

use super::{
    MergeControl, MergeError, TypeConflict,
    context::Stop,
    guard::{InputBytes, guarded},
    inputs::Input,
    pages::{CheckedReader, Wanted, read_checked},
    parts::Part,
    sizes::{array_bytes, pages_bytes, row_size},
    texts::{Crowded, Held, Numbering, WorkSchema},
    widen,
};

/// Rows in a batch, at most.
pub(super) const BATCH_ROWS_MAX: usize = 8192;
/// Rows in the first batch of a file whose row size cannot be known from its footer.
const PROBE_ROWS: usize = 128;

/// Limits of one decoder.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeLimits {
    /// Decoded bytes that a batch should have.
    pub(super) batch_bytes: u64,
    /// Bytes that one page may have.
    pub(super) page_bytes: u64,
}

/// Reads one input from its first row to its last.
pub(super) struct Decoder<'a> {
    input: &'a Input,
    control: &'a MergeControl,
    work: Arc<WorkSchema>,
    limits: DecodeLimits,
    bytes: InputBytes,
    footer: ArrowReaderMetadata,
    /// Row groups that are to be read, and how many of them were given to a reader.
    groups: Vec<usize>,
    groups_taken: usize,
    /// Reads the row groups that were given to it last.
    reader: Option<CheckedReader>,
    first_in_reader: usize,
    rows_in_reader: u64,
    batch_rows: usize,
    rows_done: u64,
    row_count: u64,
    /// For each united column its place in the file.
    places: Vec<Option<usize>>,
    holder: Holder,
}

impl<'a> Decoder<'a> {
    /// Opens the file again; nothing is decoded yet.
    pub(super) fn open(
        input: &'a Input,
        part: &Part,
        work: &Arc<WorkSchema>,
        control: &'a MergeControl,
        limits: DecodeLimits,
    ) -> Result<Self, MergeError> {
        let bad = |reason| MergeError::BadInputs(vec![input.bad(reason)]);
        let (bytes, footer) = input
            .reopen()
            .map_err(|bad| MergeError::BadInputs(vec![bad]))?;
        let bytes = bytes.with_page_limit(limits.page_bytes);
        let size = row_size(footer.metadata(), Some(work));
        let batch_rows = if size.is_certain {
            rows_for(limits.batch_bytes, size.bytes)
        } else {
            rows_for(limits.batch_bytes, size.bytes).min(PROBE_ROWS)
        };
        let groups = groups_of(&footer, part);
        let places = places_of(&footer, work);
        let footer = with_types(&footer, work).map_err(bad)?;
        Ok(Self {
            input,
            control,
            holder: Holder::new(work),
            work: Arc::clone(work),
            limits,
            bytes,
            footer,
            groups,
            groups_taken: 0,
            reader: None,
            first_in_reader: 0,
            rows_in_reader: 0,
            batch_rows,
            rows_done: 0,
            row_count: part.row_count,
            places,
        })
    }

    /// The next rows with their size in memory; `None` after the last.
    pub(super) fn next(&mut self) -> Result<Option<(RecordBatch, u64)>, Stop> {
        if self.control.is_cancelled() {
            return Err(MergeError::Cancelled.into());
        }
        let Some(decoded) = self.decode()? else {
            if self.rows_done != self.row_count {
                return Err(self.bad(format!(
                    "its footer promises {} rows, its pages hold {}",
                    self.row_count, self.rows_done
                )));
            }
            return Ok(None);
        };
        let rows = decoded.num_rows();
        self.rows_done += rows as u64;
        self.rows_in_reader += rows as u64;
        if self.rows_done > self.row_count {
            return Err(self.bad("its pages hold more rows than its footer promises".to_owned()));
        }
        self.control
            .rows_read
            .fetch_add(rows as u64, Ordering::Relaxed);
        let united = self.unite(&decoded)?;
        let bytes = united.columns().iter().map(array_bytes).sum();
        self.adapt(rows, bytes)?;
        Ok(Some((united, bytes)))
    }

    /// The next batch of the next row groups, in smaller batches where texts are too long.
    fn decode(&mut self) -> Result<Option<RecordBatch>, Stop> {
        loop {
            if let Some(CheckedReader { reader, .. }) = &mut self.reader {
                match guarded(|| reader.next().transpose().map_err(|e| e.to_string())) {
                    Ok(Some(decoded)) => return Ok(Some(decoded)),
                    Ok(None) => self.reader = None,
                    Err(reason) => {
                        let fitting = self.reader.as_ref().and_then(CheckedReader::fitting_rows);
                        match fitting {
                            Some(rows) if rows < self.batch_rows => self.batch_rows = rows,
                            _ => {
                                let reason = format!("its rows cannot be read: {reason}");
                                return Err(self.bad(reason));
                            }
                        }
                        self.start_reader()?;
                        continue;
                    }
                }
            }
            if self.groups_taken == self.groups.len() {
                return Ok(None);
            }
            // A batch across row groups would lose their dictionaries.
            self.first_in_reader = self.groups_taken;
            self.groups_taken = if self.work.has_numbers() {
                self.groups_taken + 1
            } else {
                self.groups.len()
            };
            self.rows_in_reader = 0;
            self.start_reader()?;
        }
    }

    /// Reads the current row groups from the row on that comes next.
    fn start_reader(&mut self) -> Result<(), Stop> {
        let groups = self.groups[self.first_in_reader..self.groups_taken].to_vec();
        let (bytes, footer, limits) = (&self.bytes, &self.footer, self.limits);
        let (batch_rows, skip) = (self.batch_rows, self.rows_in_reader);
        let reader = guarded(|| build_reader(bytes, footer, groups, batch_rows, skip, limits))
            .map_err(|reason| self.bad(reason))?;
        self.reader = Some(reader);
        Ok(())
    }

    /// Brings a batch into the schema in which rows are held.
    fn unite(&mut self, decoded: &RecordBatch) -> Result<RecordBatch, Stop> {
        let rows = decoded.num_rows();
        let mut columns = Vec::with_capacity(self.places.len());
        for (index, place) in self.places.iter().enumerate() {
            let array = place.map(|place| decoded.column(place));
            columns.push(self.holder.hold(self.input, index, array, rows)?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        RecordBatch::try_new_with_options(Arc::clone(&self.work.schema), columns, &options)
            .map_err(|e| self.bad(format!("its rows do not fit its schema: {e}")))
    }

    /// Reads on in smaller batches when rows turn out larger than thought, in larger ones
    /// when the first batch was only a probe.
    fn adapt(&mut self, rows: usize, decoded_bytes: u64) -> Result<(), Stop> {
        let fitting = rows_for(
            self.limits.batch_bytes,
            (decoded_bytes / rows.max(1) as u64).max(1),
        );
        let too_large = fitting < self.batch_rows / 2;
        let was_probe =
            rows == self.batch_rows && self.batch_rows <= PROBE_ROWS && fitting > 2 * PROBE_ROWS;
        if (too_large || was_probe) && self.rows_done < self.row_count {
            self.batch_rows = fitting;
            self.start_reader()?;
        }
        Ok(())
    }

    /// Bytes of the pages that are held while this reads, estimated.
    pub(super) fn pages_bytes(&self) -> u64 {
        pages_bytes(self.footer.metadata())
    }

    fn bad(&self, reason: String) -> Stop {
        MergeError::BadInputs(vec![self.input.bad(reason)]).into()
    }
}

/// The row groups with rows of a part.
pub(super) fn groups_of(footer: &ArrowReaderMetadata, part: &Part) -> Vec<usize> {
    let metadata = footer.metadata();
    (0..metadata.num_row_groups())
        .filter(|group| part.groups.contains(group))
        .filter(|group| metadata.row_group(*group).num_rows() > 0)
        .collect()
}

/// For each united column its place in a file.
pub(super) fn places_of(footer: &ArrowReaderMetadata, work: &WorkSchema) -> Vec<Option<usize>> {
    let own: HashMap<&str, usize> = footer
        .schema()
        .fields()
        .iter()
        .enumerate()
        .map(|(index, field)| (field.name().as_str(), index))
        .collect();
    let names = work
        .schema
        .fields()
        .iter()
        .map(|field| field.name().as_str());
    names.map(|name| own.get(name).copied()).collect()
}

/// A footer that makes readers decode texts as they are held.
pub(super) fn with_types(
    footer: &ArrowReaderMetadata,
    work: &WorkSchema,
) -> Result<ArrowReaderMetadata, String> {
    guarded(|| {
        let options = ArrowReaderOptions::new()
            .with_skip_arrow_metadata(true)
            .with_schema(work.decoded(footer.schema()));
        ArrowReaderMetadata::try_new(Arc::clone(footer.metadata()), options)
            .map_err(|e| e.to_string())
    })
}

/// Brings the columns of one input into the types in which rows are held.
pub(super) struct Holder {
    work: Arc<WorkSchema>,
    /// For each united column what is known of its dictionaries.
    numberings: Vec<Numbering>,
    /// All-null columns, made once and sliced.
    null_columns: HashMap<DataType, ArrayRef>,
}

impl Holder {
    pub(super) fn new(work: &Arc<WorkSchema>) -> Self {
        let columns = work.schema.fields().iter();
        Self {
            work: Arc::clone(work),
            numberings: columns.map(|_| Numbering::default()).collect(),
            null_columns: HashMap::new(),
        }
    }

    /// A united column of some rows, from the input's own if it has one.
    pub(super) fn hold(
        &mut self,
        input: &Input,
        index: usize,
        array: Option<&ArrayRef>,
        rows: usize,
    ) -> Result<ArrayRef, Stop> {
        let field = self.work.schema.field(index);
        let Some(array) = array else {
            return Ok(null_column(&mut self.null_columns, field.data_type(), rows));
        };
        let numbered = match self.work.held(index) {
            Held::Numbers(interner) => self.numberings[index].number(array, interner),
            _ => None,
        };
        match numbered {
            Some(Ok(numbers)) => Ok(numbers),
            Some(Err(Crowded)) => Err(Stop::Crowded { column: index }),
            None => widen::cast(array, field.data_type()).map_err(|reason| {
                MergeError::TypeConflict(Box::new(TypeConflict {
                    column: field.name().clone(),
                    left_type: array.data_type().to_string(),
                    left_file: input.path.clone(),
                    right_type: field.data_type().to_string(),
                    right_file: input.path.clone(),
                    reason: format!("its statistics say that it fits, but {reason}"),
                }))
                .into()
            }),
        }
    }
}

fn null_column(
    known: &mut HashMap<DataType, ArrayRef>,
    data_type: &DataType,
    rows: usize,
) -> ArrayRef {
    if let Some(column) = known.get(data_type)
        && column.len() >= rows
    {
        return column.slice(0, rows);
    }
    let column = new_null_array(data_type, rows);
    known.insert(data_type.clone(), Arc::clone(&column));
    column
}

pub(super) fn rows_for(batch_bytes: u64, row_bytes: u64) -> usize {
    usize::try_from(batch_bytes / row_bytes.max(1))
        .unwrap_or(usize::MAX)
        .clamp(1, BATCH_ROWS_MAX)
}

/// A reader of the rows of some row groups, from their `first_row` on.
fn build_reader(
    bytes: &InputBytes,
    footer: &ArrowReaderMetadata,
    mut groups: Vec<usize>,
    batch_rows: usize,
    first_row: u64,
    limits: DecodeLimits,
) -> Result<CheckedReader, String> {
    // Row groups that are done are left out, so that a new reader need not walk their pages.
    let mut skip = first_row;
    let rows_of = |group: usize| {
        let rows = footer.metadata().row_group(group).num_rows();
        u64::try_from(rows).unwrap_or(0)
    };
    while let Some(&first) = groups.first()
        && skip >= rows_of(first)
    {
        skip -= rows_of(first);
        groups.remove(0);
    }
    let wanted = Wanted {
        groups,
        columns: ProjectionMask::all(),
        batch_rows,
        skip_rows: usize::try_from(skip).map_err(|e| e.to_string())?,
        limit_bytes: limits.page_bytes,
    };
    read_checked(bytes, footer, &wanted).map_err(|e| e.to_string())
}
