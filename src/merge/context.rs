//! What every step of one merge needs to know.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch};

use super::{
    BadInput, MergeControl, MergeError, MergeRequest,
    decode::{DecodeLimits, Decoder},
    inputs::Input,
    keys::KeySpace,
    order::BatchLimits,
    parts::Part,
    schema::UnitedSchema,
    spill::ScratchFiles,
    texts::WorkSchema,
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
        inputs: Vec<usize>,
        /// They are larger than they seemed.
        too_large: bool,
    },
    /// This column has too many texts to number them. The merge is to start again without.
    Crowded {
        /// Its place in the united schema.
        column: usize,
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
    /// All of it.
    pub(super) budget_bytes: u64,
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
    /// A batch of a run in scratch, unless so many of them are read together that it must be smaller.
    pub(super) spill_batch_bytes: u64,
    /// One page.
    pub(super) page_bytes: u64,
}

/// A batch of a run in scratch, at least.
const SPILL_BATCH_BYTES_MIN: u64 = 64 << 10;
/// Batches that are in memory while a run is read from scratch.
const BATCHES_OF_SPILLED_RUN: u64 = 3;
/// The least that reading one takes.
pub(super) const SPILLED_RUN_BYTES_MIN: u64 = BATCHES_OF_SPILLED_RUN * SPILL_BATCH_BYTES_MIN;

/// With more inputs, their footers take a larger part.
const MANY_INPUTS: usize = 256;

impl Shares {
    /// Divides a budget, before anything is known of the inputs but their number.
    pub(super) fn of(budget_bytes: u64, input_count: usize) -> Result<Self, MergeError> {
        if budget_bytes < BUDGET_BYTES_MIN {
            return Err(MergeError::Budget {
                budget_bytes,
                reason: format!("a merge needs at least {BUDGET_BYTES_MIN} bytes"),
            });
        }
        let part = if input_count > MANY_INPUTS { 8 } else { 32 };
        Ok(Self::divided(
            budget_bytes,
            budget_bytes / part,
            budget_bytes / 5,
        ))
    }

    /// Gives runs what a row group does not need. `row_bytes`: of a row in pages, not compressed.
    pub(super) fn for_rows(self, row_bytes: u64, row_group_rows: usize) -> Self {
        let budget_bytes = self.budget_bytes;
        let wanted = row_bytes.saturating_mul(row_group_rows as u64) / 4 * 5;
        let row_group_bytes = wanted.clamp(budget_bytes / 16, budget_bytes / 5);
        Self::divided(budget_bytes, self.footers_bytes, row_group_bytes)
    }

    fn divided(budget_bytes: u64, footers_bytes: u64, row_group_bytes: u64) -> Self {
        let queue_bytes = budget_bytes / 16;
        // What is being decoded, compressed or handed over has a part of its own.
        let under_way_bytes = budget_bytes / 8;
        let runs_bytes =
            budget_bytes - footers_bytes - row_group_bytes - queue_bytes - under_way_bytes;
        Self {
            budget_bytes,
            footers_bytes,
            runs_bytes,
            row_group_bytes,
            queue_bytes,
            stream_batch_bytes: (runs_bytes / 128).clamp(64 << 10, 1 << 20),
            load_batch_bytes: (runs_bytes / 16).min(4 << 20),
            spill_batch_bytes: (runs_bytes / 128).clamp(SPILL_BATCH_BYTES_MIN, 1 << 20),
            page_bytes: budget_bytes / 4,
        }
    }

    /// Bytes of one of two inputs that are sorted while nothing is encoded yet.
    pub(super) fn sort_bytes(&self) -> u64 {
        (self.runs_bytes + self.row_group_bytes + self.queue_bytes) / 2
    }

    /// Bytes that reading a run from scratch takes, at most: a batch being decoded, the one in use
    /// and the one that an output batch still holds.
    pub(super) fn spilled_run_bytes(&self) -> u64 {
        BATCHES_OF_SPILLED_RUN * self.spill_batch_bytes
    }

    /// Runs in scratch that can be read together, when each takes so many bytes.
    pub(super) fn fan_in(&self, scratch_bytes: u64) -> usize {
        let runs = self.runs_bytes / 4 * 3 / scratch_bytes.max(1);
        usize::try_from(runs).unwrap_or(usize::MAX).max(2)
    }

    /// Batches on their way to the writer.
    pub(super) fn output_batch(&self) -> BatchLimits {
        BatchLimits {
            rows: super::decode::BATCH_ROWS_MAX,
            bytes: self.queue_bytes / 2,
        }
    }
}

/// Batches on their way to scratch, when reading their run may take so many bytes.
pub(super) fn spill_batch(scratch_bytes: u64) -> BatchLimits {
    BatchLimits {
        rows: super::decode::BATCH_ROWS_MAX,
        bytes: scratch_bytes / BATCHES_OF_SPILLED_RUN,
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
    /// The united schema as rows are held.
    pub(super) work: Arc<WorkSchema>,
    pub(super) shares: Shares,
    /// Places of the sort columns in the united schema.
    pub(super) sort_places: Vec<usize>,
    pub(super) scratch: ScratchFiles,
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
            &self.work,
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
