//! What every step of one merge needs to know.

use std::ops::Range;

use arrow::array::{ArrayRef, RecordBatch};

use super::{
    BadInput, MergeControl, MergeError, MergeRequest,
    decode::{DecodeLimits, Decoder},
    inputs::Input,
    keys::KeySpace,
    order::BatchLimits,
    raw_copy::Part,
    schema::UnitedSchema,
};

/// With less, even one batch of one file has no room.
pub(super) const BUDGET_BYTES_MIN: u64 = 8 << 20;
/// Files that one merge has open at once; several merges share a process's limit.
pub(super) const OPEN_FILES_MAX: usize = 48;

/// Why a merge stops before its end.
#[derive(Debug)]
pub(super) enum Stop {
    /// For good.
    Error(MergeError),
    /// Footers of these parts promised what their rows do not keep: an order or a range,
    /// or a size in memory. The merge is to start again without believing them.
    Misled {
        /// The parts.
        inputs: Range<usize>,
        /// They are larger than they seemed.
        too_large: bool,
    },
}

impl From<MergeError> for Stop {
    fn from(error: MergeError) -> Self {
        Self::Error(error)
    }
}

impl From<BadInput> for Stop {
    fn from(bad: BadInput) -> Self {
        Self::Error(MergeError::BadInputs(vec![bad]))
    }
}

/// How the memory budget is divided, in bytes.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_field_names, reason = "units are part of names")]
pub(super) struct Shares {
    /// Kept footers and small files.
    pub(super) footers_bytes: u64,
    /// Runs that are open together.
    pub(super) runs_bytes: u64,
    /// The row group that is being encoded.
    pub(super) row_group_bytes: u64,
    /// Output batches on their way to the writer.
    pub(super) queue_bytes: u64,
    /// A batch of a streamed file.
    pub(super) stream_batch_bytes: u64,
    /// A batch of a file that is decoded as a whole.
    pub(super) load_batch_bytes: u64,
    /// A batch of a run in scratch.
    pub(super) spill_batch_bytes: u64,
    /// One page.
    pub(super) page_bytes: u64,
}

impl Shares {
    /// Divides a budget.
    pub(super) fn of(budget_bytes: u64) -> Result<Self, MergeError> {
        if budget_bytes < BUDGET_BYTES_MIN {
            return Err(MergeError::Budget {
                budget_bytes,
                reason: format!("a merge needs at least {BUDGET_BYTES_MIN} bytes"),
            });
        }
        let runs_bytes = budget_bytes * 3 / 8;
        Ok(Self {
            footers_bytes: budget_bytes / 8,
            runs_bytes,
            row_group_bytes: budget_bytes / 4,
            queue_bytes: budget_bytes / 16,
            stream_batch_bytes: (runs_bytes / 128).clamp(64 << 10, 1 << 20),
            load_batch_bytes: (runs_bytes / 16).min(4 << 20),
            spill_batch_bytes: (runs_bytes / 128).clamp(64 << 10, 1 << 20),
            page_bytes: budget_bytes / 4,
        })
    }

    /// Runs in scratch that can be read together.
    pub(super) fn fan_in(&self) -> usize {
        // A batch being decoded, the one in use and the one that an output batch still holds.
        let runs = self.runs_bytes / 2 / (3 * self.spill_batch_bytes);
        usize::try_from(runs)
            .unwrap_or(usize::MAX)
            .clamp(2, OPEN_FILES_MAX / 2)
    }

    /// Batches on their way to the writer.
    pub(super) fn output_batch(&self) -> BatchLimits {
        BatchLimits {
            rows: super::decode::BATCH_ROWS_MAX,
            bytes: self.queue_bytes / 2,
        }
    }

    /// Batches on their way to scratch.
    pub(super) fn spill_batch(&self) -> BatchLimits {
        BatchLimits {
            rows: super::decode::BATCH_ROWS_MAX,
            bytes: self.spill_batch_bytes,
        }
    }
}

/// One merge.
pub(super) struct Context<'a> {
    pub(super) request: &'a MergeRequest,
    pub(super) control: &'a MergeControl,
    pub(super) inputs: &'a [Input],
    /// The inputs, or parts of them; runs are made of these.
    pub(super) parts: Vec<Part>,
    pub(super) united: &'a UnitedSchema,
    pub(super) shares: Shares,
    /// Places of the sort columns in the united schema.
    pub(super) sort_places: Vec<usize>,
}

impl<'a> Context<'a> {
    /// Starts decoding a part.
    pub(super) fn decoder(
        &self,
        index: usize,
        batch_bytes: u64,
    ) -> Result<Decoder<'a>, MergeError> {
        let limits = DecodeLimits {
            batch_bytes,
            page_bytes: self.shares.page_bytes,
        };
        let part = &self.parts[index];
        Decoder::open(
            &self.inputs[part.input],
            part,
            &self.united.schema,
            self.control,
            limits,
        )
    }

    /// The keys of a batch.
    pub(super) fn encode<K: KeySpace>(
        &self,
        space: &K,
        batch: &RecordBatch,
    ) -> Result<K::Block, MergeError> {
        let columns: Vec<ArrayRef> = self
            .sort_places
            .iter()
            .map(|&place| ArrayRef::clone(batch.column(place)))
            .collect();
        space
            .encode(&columns)
            .map_err(|reason| self.invariant("ORDER-KEPT", reason))
    }

    /// An invariant that does not hold for the output.
    pub(super) fn invariant(&self, invariant: &'static str, reason: String) -> MergeError {
        MergeError::Invariant {
            invariant,
            output: self.request.output.clone(),
            reason,
        }
    }
}
