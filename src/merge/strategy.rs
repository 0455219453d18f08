//! Which inputs are streamed, sorted in memory or sorted through scratch. Pure: decided from
//! footers, tested without files.

use super::{
    peak::{MayWrite, Pile, fit, run_bytes},
    piles::{PILE_ROWS, all_in_scratch, neighbours, some_in_scratch, together},
};

/// What is known of an input before it is decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InputSummary {
    /// Rows.
    pub(super) row_count: u64,
    /// Bytes of its rows decoded and sorted in memory, estimated.
    pub(super) decoded_bytes: u64,
    /// Bytes that reading it row group by row group takes, estimated.
    pub(super) stream_bytes: u64,
    /// It seems to be sorted: by its own words, or by the ranges of its row groups.
    pub(super) seems_sorted: bool,
    /// First and last key of its rows in the wanted order, from statistics.
    pub(super) key_range: Option<(i64, i64)>,
    /// It is one row group that may be copied undecoded.
    pub(super) is_copyable: bool,
}

/// What a merge may use at once.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Bytes of all open runs together.
    pub(super) runs_bytes: u64,
    /// Bytes of inputs that are sorted before the merge begins; two such lots are sorted at a time.
    pub(super) sort_bytes: u64,
    /// Bytes that reading one run from scratch takes, at most.
    pub(super) scratch_bytes: u64,
    /// The same, at least: with smaller batches.
    pub(super) scratch_bytes_min: u64,
    /// Files that may be open at once; of runs in scratch none stays open.
    pub(super) open_files: usize,
}

impl Limits {
    /// Bytes of a part of a large input, at most: a few make a pile, and a row group more fits too.
    pub(super) fn part_bytes(&self) -> u64 {
        self.sort_bytes / 9 * 2
    }
}

/// How a run of inputs becomes sorted rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// One sorted file, read batch by batch.
    Stream,
    /// One row group, copied undecoded if nothing overlaps it, else read as a stream.
    Copy,
    /// Decoded as a whole and sorted when its first key is reached.
    Memory,
    /// What would be too much beside the others: brought into order and written to scratch before
    /// the merge begins, then read batch by batch.
    Scratch(Written),
}

/// How inputs are brought into order on their way to scratch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Written {
    /// One input that is in order.
    Stream,
    /// Sorted as a whole.
    Whole,
    /// Sorted in pieces of what memory holds, each a run of its own.
    Pieces,
}

/// Inputs that are handled together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    /// In the order of inputs.
    pub(super) inputs: Vec<usize>,
    pub(super) mode: Mode,
    /// No row comes before this key; unknown means it may come first.
    pub(super) first_key: Option<i64>,
}

/// How all inputs are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) runs: Vec<Run>,
    /// Runs that may be in memory before their turn comes.
    pub(super) early_max: usize,
    /// Bytes that reading one run from scratch may take.
    pub(super) scratch_bytes: u64,
    /// All runs are in scratch, and more of them than can be read together.
    pub(super) is_crowded: bool,
}

impl Plan {
    /// Piles that are not written are runs by themselves.
    pub(super) fn of(
        piles: Vec<Pile>,
        inputs: &[InputSummary],
        limits: Limits,
        peak_bytes: u64,
    ) -> Self {
        let mut runs = Vec::with_capacity(piles.len());
        for pile in piles {
            match pile.written {
                None => runs.extend(pile.runs),
                Some(written) => runs.push(together(&pile.runs, Mode::Scratch(written))),
            }
        }
        // A quarter stays free: what runs take is estimated.
        let left_bytes = (limits.runs_bytes / 4 * 3).saturating_sub(peak_bytes);
        let sorted = runs.iter().filter(|run| run.mode == Mode::Memory);
        let largest_bytes = sorted.map(|run| run_bytes(run, inputs)).max().unwrap_or(0);
        let early = usize::try_from(left_bytes / largest_bytes.max(1)).unwrap_or(usize::MAX);
        Self {
            runs,
            early_max: early.min(EARLY_MAX),
            scratch_bytes: limits.scratch_bytes,
            is_crowded: false,
        }
    }

    /// How many runs are read so.
    pub(super) fn count(&self, mode: Mode) -> usize {
        self.runs.iter().filter(|run| run.mode == mode).count()
    }

    /// Whether anything goes through scratch.
    pub(super) fn writes(&self) -> bool {
        let mut runs = self.runs.iter();
        runs.any(|run| matches!(run.mode, Mode::Scratch(_)))
    }
}

/// Runs that are sorted in memory before their turn comes, at most.
const EARLY_MAX: usize = 3;
/// Inputs with fewer rows are sorted together with their neighbours in time.
const SMALL_RUN_ROWS: u64 = 16_384;
/// No more of them together.
const SMALL_RUN_FILES: usize = 64;
/// Streaming a file pays from this many rows.
const STREAM_ROWS_MIN: u64 = 16_384;

/// Decides how each input is read. Of equal rows, those of earlier inputs come first, however
/// inputs are put together.
///
/// Runs are opened when the merge reaches their first key, so only those that overlap count
/// against the limits. What does not fit goes through scratch, together with its neighbours in
/// time: first as much as is too much at a time, then everything.
pub(super) fn choose_strategy(inputs: &[InputSummary], limits: Limits) -> Plan {
    let lazy = plan(inputs, limits, Sorted::Streamed);
    let mut alone: Vec<Pile> = lazy.into_iter().map(Pile::of_one).collect();
    if let Some(peak_bytes) = fit(&mut alone, inputs, limits, MayWrite::No) {
        return Plan::of(alone, inputs, limits, peak_bytes);
    }
    // Where streams are too many files, or what they hold of each is too much, they take less
    // sorted together with others.
    let attempts = [
        (Sorted::Streamed, PILE_ROWS),
        (Sorted::Streamed, u64::MAX),
        (Sorted::Again, PILE_ROWS),
        (Sorted::Again, u64::MAX),
    ];
    for (sorted, pile_rows) in attempts {
        let piles = neighbours(plan(inputs, limits, sorted), inputs, limits, pile_rows);
        if let Some(plan) = some_in_scratch(&piles, inputs, limits) {
            return plan;
        }
    }
    let piles = neighbours(
        plan(inputs, limits, Sorted::Again),
        inputs,
        limits,
        u64::MAX,
    );
    all_in_scratch(piles, inputs, limits)
}

/// What is done with inputs that are in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sorted {
    Streamed,
    /// They are sorted like the others.
    Again,
}

fn plan(inputs: &[InputSummary], limits: Limits, sorted: Sorted) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut small: Vec<usize> = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        if input.row_count == 0 {
            continue;
        }
        let mode = if sorted == Sorted::Again {
            Mode::Memory
        } else if input.is_copyable {
            Mode::Copy
        } else if input.seems_sorted
            && input.row_count >= STREAM_ROWS_MIN
            && input.stream_bytes <= limits.runs_bytes / 2
        {
            Mode::Stream
        } else {
            Mode::Memory
        };
        if mode == Mode::Memory && input.row_count < SMALL_RUN_ROWS {
            small.push(index);
            continue;
        }
        runs.push(Run {
            inputs: vec![index],
            mode,
            first_key: input.key_range.map(|(first, _)| first),
        });
    }
    runs.extend(group_small(inputs, small, limits));
    runs
}

/// Puts small inputs together with their neighbours in time.
fn group_small(inputs: &[InputSummary], mut small: Vec<usize>, limits: Limits) -> Vec<Run> {
    small.sort_by_key(|index| (inputs[*index].key_range, *index));
    let mut runs: Vec<Run> = Vec::new();
    let (mut rows, mut bytes) = (0, 0_u64);
    for index in small {
        let input = &inputs[index];
        rows += input.row_count;
        bytes = bytes.saturating_add(input.decoded_bytes);
        match runs.last_mut() {
            // Unknown ranges stand first, and do not hold the known ones up.
            Some(run)
                if rows <= SMALL_RUN_ROWS
                    && run.inputs.len() < SMALL_RUN_FILES
                    && bytes <= limits.runs_bytes / 8
                    && run.first_key.is_some() == input.key_range.is_some() =>
            {
                run.inputs.push(index);
                run.first_key = earlier(run.first_key, input);
            }
            _ => {
                (rows, bytes) = (input.row_count, input.decoded_bytes);
                runs.push(Run {
                    inputs: vec![index],
                    mode: Mode::Memory,
                    first_key: input.key_range.map(|(first, _)| first),
                });
            }
        }
    }
    for run in &mut runs {
        run.inputs.sort_unstable();
    }
    runs
}

fn earlier(known: Option<i64>, input: &InputSummary) -> Option<i64> {
    let (known, (first, _)) = known.zip(input.key_range)?;
    Some(known.min(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        runs_bytes: 1000,
        sort_bytes: 500,
        scratch_bytes: 60,
        scratch_bytes_min: 60,
        open_files: 4,
    };

    fn small(first: i64, last: i64) -> InputSummary {
        InputSummary {
            row_count: 5000,
            decoded_bytes: 300,
            stream_bytes: 100,
            seems_sorted: false,
            key_range: Some((first, last)),
            is_copyable: false,
        }
    }

    fn sorted(first: i64, last: i64) -> InputSummary {
        InputSummary {
            row_count: 500_000,
            decoded_bytes: 100_000,
            seems_sorted: true,
            ..small(first, last)
        }
    }

    fn modes(inputs: &[InputSummary]) -> Vec<(Vec<usize>, Mode)> {
        choose_strategy(inputs, LIMITS)
            .runs
            .into_iter()
            .map(|run| (run.inputs, run.mode))
            .collect()
    }

    #[test]
    fn inputs_that_follow_one_another_are_sorted_in_memory_one_by_one() {
        let inputs: Vec<_> = (0..100).map(|i| small(i * 10, i * 10 + 9)).collect();
        let runs = choose_strategy(&inputs, LIMITS).runs;
        assert_eq!(runs.len(), 100);
        assert!(runs.iter().all(|run| run.mode == Mode::Memory));
        assert_eq!(runs[7].first_key, Some(70));
    }

    #[test]
    fn a_stream_stays_one_beside_inputs_in_scratch() {
        let large = InputSummary {
            decoded_bytes: 5_001,
            ..small(0, 9)
        };
        let inputs = [large.clone(), sorted(0, 9)];
        let limits = Limits {
            scratch_bytes_min: 15,
            ..LIMITS
        };
        let plan = choose_strategy(&inputs, limits);
        let modes: Vec<_> = plan.runs.iter().map(|run| run.mode).collect();
        assert_eq!(modes, [Mode::Stream, Mode::Scratch(Written::Pieces)]);
    }

    #[test]
    fn more_overlapping_streams_than_files_may_be_open_go_through_scratch() {
        let inputs: Vec<_> = (0..5).map(|_| sorted(0, 9)).collect();
        let written = Mode::Scratch(Written::Stream);
        let modes_of: Vec<_> = modes(&inputs).into_iter().map(|(_, mode)| mode).collect();
        assert_eq!(modes_of.iter().filter(|mode| **mode == written).count(), 1);
        let inputs: Vec<_> = (0..50).map(|i| sorted(i * 10, i * 10 + 9)).collect();
        assert!(modes(&inputs).iter().all(|(_, mode)| *mode == Mode::Stream));
    }

    #[test]
    fn a_copyable_row_group_is_a_run_of_its_own_until_everything_goes_through_scratch() {
        let copyable = |first, last| InputSummary {
            is_copyable: true,
            ..sorted(first, last)
        };
        let inputs = [small(0, 9), copyable(10, 19), small(20, 29)];
        assert_eq!(
            modes(&inputs),
            [
                (vec![1], Mode::Copy),
                (vec![0], Mode::Memory),
                (vec![2], Mode::Memory)
            ]
        );
        let inputs: Vec<_> = (0..5).map(|_| copyable(0, 9)).collect();
        let modes = modes(&inputs);
        assert!(
            modes
                .iter()
                .all(|(_, mode)| matches!(mode, Mode::Scratch(_)))
        );
    }

    #[test]
    fn small_neighbours_in_time_share_a_run_and_its_first_key() {
        let tiny = |first| InputSummary {
            row_count: 500,
            decoded_bytes: 10,
            ..small(first, first + 5)
        };
        let inputs: Vec<_> = (0..20).map(|i| tiny(100 - i)).collect();
        let runs = choose_strategy(&inputs, LIMITS).runs;
        let members: Vec<_> = runs.iter().map(|run| run.inputs.clone()).collect();
        assert_eq!(members, [(8..20).collect::<Vec<_>>(), (0..8).collect()]);
        assert_eq!(runs[1].first_key, Some(93));
        // What has no known range is no neighbour of what has one.
        let unknown = InputSummary {
            key_range: None,
            ..tiny(0)
        };
        let runs = choose_strategy(&[tiny(1), unknown, tiny(2)], LIMITS).runs;
        assert_eq!(runs.len(), 2);
        assert_eq!((&runs[0].inputs[..], runs[0].first_key), (&[1][..], None));
    }

    #[test]
    fn inputs_with_unknown_ranges_count_as_open_all_the_time() {
        let unknown = InputSummary {
            key_range: None,
            ..small(0, 0)
        };
        let found = modes(&[unknown.clone(), unknown.clone(), unknown.clone(), unknown]);
        let found: Vec<_> = found.into_iter().map(|(_, mode)| mode).collect();
        let written = Mode::Scratch(Written::Whole);
        assert_eq!(found, [Mode::Memory, Mode::Memory, Mode::Memory, written]);
    }

    #[test]
    fn runs_are_sorted_early_where_memory_is_left() {
        let early = |bytes, overlap| {
            let input = |i: i64| InputSummary {
                decoded_bytes: bytes,
                ..small(i * 10, i * 10 + overlap)
            };
            let inputs: Vec<_> = (0..20).map(input).collect();
            choose_strategy(&inputs, LIMITS).early_max
        };
        assert_eq!([early(100, 9), early(300, 9), early(300, 15)], [3, 1, 0]);
    }

    #[test]
    fn inputs_without_rows_are_in_no_run_of_their_own() {
        let empty = InputSummary {
            row_count: 0,
            ..small(0, 9)
        };
        let plan = choose_strategy(std::slice::from_ref(&empty), LIMITS);
        assert!(plan.runs.is_empty());
        assert_eq!(modes(&[empty, small(0, 9)]), [(vec![1], Mode::Memory)]);
    }

    #[test]
    fn an_input_larger_than_memory_goes_through_scratch() {
        let large = InputSummary {
            decoded_bytes: 60_000,
            ..small(0, 9)
        };
        let pieces = Mode::Scratch(Written::Pieces);
        assert_eq!(modes(&[large]), [(vec![0], pieces)]);
    }
}
