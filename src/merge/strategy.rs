//! Which inputs are streamed, sorted in memory or sorted through scratch. Pure: decided from
//! footers, tested without files.

use std::ops::Range;

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
    /// Files that may be open at once.
    pub(super) open_files: usize,
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
    /// Sorted in pieces of what memory holds, which go through scratch.
    Spill,
}

/// Consecutive inputs that are handled together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) inputs: Range<usize>,
    pub(super) mode: Mode,
    /// No row comes before this key; unknown means it may come first.
    pub(super) first_key: Option<i64>,
}

/// Inputs with fewer rows are sorted together with their neighbours.
const SMALL_RUN_ROWS: u64 = 8192;
/// Streaming a file pays from this many rows.
const STREAM_ROWS_MIN: u64 = 16_384;
/// With more groups of spilled inputs between streamed ones, their runs would need too many files.
const SPILLED_GROUP_COUNT_MAX: usize = 8;

/// Decides how each input is read. Runs keep the order of inputs, on which ties depend.
///
/// Runs are opened when the merge reaches their first key, so only those that overlap count
/// against the limits. What does not fit goes through scratch: first what must be sorted,
/// then everything.
pub(super) fn choose_strategy(inputs: &[InputSummary], limits: Limits) -> Vec<Run> {
    let lazy = plan(inputs, limits, Mode::Memory);
    if fits(&lazy, inputs, limits) {
        return lazy;
    }
    let spilled = plan(inputs, limits, Mode::Spill);
    let streams: Vec<Run> = spilled
        .iter()
        .filter(|run| matches!(run.mode, Mode::Stream | Mode::Copy))
        .cloned()
        .collect();
    let half = Limits {
        runs_bytes: limits.runs_bytes / 2,
        open_files: limits.open_files / 2,
    };
    if fits(&streams, inputs, half) && spilled.len() - streams.len() <= SPILLED_GROUP_COUNT_MAX {
        return spilled;
    }
    vec![Run {
        inputs: 0..inputs.len(),
        mode: Mode::Spill,
        first_key: None,
    }]
}

fn plan(inputs: &[InputSummary], limits: Limits, unsorted: Mode) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    // Rows and bytes of the last run, while neighbours may still join it.
    let mut open: Option<(u64, u64)> = None;
    for (index, input) in inputs.iter().enumerate() {
        if input.row_count == 0 {
            continue;
        }
        let mode = if input.is_copyable {
            Mode::Copy
        } else if input.seems_sorted
            && input.row_count >= STREAM_ROWS_MIN
            && input.stream_bytes <= limits.runs_bytes / 2
        {
            Mode::Stream
        } else {
            unsorted
        };
        let streams = mode != unsorted;
        let joins = !streams
            && match open {
                None => false,
                Some(_) if unsorted == Mode::Spill => true,
                Some((rows, bytes)) => {
                    rows + input.row_count <= SMALL_RUN_ROWS
                        && bytes.saturating_add(input.decoded_bytes) <= limits.runs_bytes / 8
                }
            };
        if joins && let Some(run) = runs.last_mut() {
            run.inputs.end = index + 1;
            run.first_key = run
                .first_key
                .zip(input.key_range)
                .map(|(known, (first, _))| known.min(first));
            open = open.map(|(rows, bytes)| {
                (
                    rows + input.row_count,
                    bytes.saturating_add(input.decoded_bytes),
                )
            });
        } else {
            runs.push(Run {
                inputs: index..index + 1,
                mode,
                first_key: input.key_range.map(|(first, _)| first),
            });
            open = (!streams).then_some((input.row_count, input.decoded_bytes));
        }
    }
    runs
}

/// Whether the runs that are open at one moment fit, for every moment.
fn fits(runs: &[Run], inputs: &[InputSummary], limits: Limits) -> bool {
    // Changes of (bytes, files) along the keys; what opens at a key does so before others close there.
    let mut changes: Vec<(i64, bool, u64, usize)> = Vec::with_capacity(runs.len() * 2);
    for run in runs {
        let members = &inputs[run.inputs.clone()];
        let is_stream = matches!(run.mode, Mode::Stream | Mode::Copy);
        let bytes = members
            .iter()
            .map(|input| {
                if is_stream {
                    input.stream_bytes
                } else {
                    input.decoded_bytes
                }
            })
            .fold(0, u64::saturating_add);
        if !is_stream && bytes > limits.runs_bytes / 2 {
            return false;
        }
        let files = usize::from(is_stream);
        let last = members
            .iter()
            .filter(|input| input.row_count > 0)
            .map(|input| input.key_range.map(|(_, last)| last))
            .try_fold(i64::MIN, |latest, last| Some(latest.max(last?)));
        changes.push((run.first_key.unwrap_or(i64::MIN), false, bytes, files));
        changes.push((last.unwrap_or(i64::MAX), true, bytes, files));
    }
    changes.sort_unstable();
    let (mut open_bytes, mut open_files) = (0_u64, 0);
    for (_, closes, bytes, files) in changes {
        if closes {
            open_bytes = open_bytes.saturating_sub(bytes);
            open_files -= files;
        } else {
            open_bytes = open_bytes.saturating_add(bytes);
            open_files += files;
            if open_bytes > limits.runs_bytes || open_files > limits.open_files {
                return false;
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        runs_bytes: 1000,
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

    fn modes(inputs: &[InputSummary]) -> Vec<(Range<usize>, Mode)> {
        choose_strategy(inputs, LIMITS)
            .into_iter()
            .map(|run| (run.inputs, run.mode))
            .collect()
    }

    #[test]
    fn inputs_that_follow_one_another_are_sorted_in_memory_one_by_one() {
        let inputs: Vec<_> = (0..100).map(|i| small(i * 10, i * 10 + 9)).collect();
        let runs = choose_strategy(&inputs, LIMITS);
        assert_eq!(runs.len(), 100);
        assert!(runs.iter().all(|run| run.mode == Mode::Memory));
        assert_eq!(runs[7].first_key, Some(70));
    }

    #[test]
    fn unsorted_inputs_that_overlap_too_much_go_through_scratch_together() {
        let inputs: Vec<_> = (0..100).map(|i| small(i, i + 50)).collect();
        assert_eq!(modes(&inputs), [(0..100, Mode::Spill)]);
    }

    #[test]
    fn sorted_inputs_are_streamed_between_runs_that_are_spilled() {
        let inputs = [
            small(0, 9),
            small(0, 9),
            small(0, 9),
            sorted(0, 9),
            small(0, 9),
        ];
        assert_eq!(
            modes(&inputs),
            [
                (0..3, Mode::Spill),
                (3..4, Mode::Stream),
                (4..5, Mode::Spill)
            ]
        );
    }

    #[test]
    fn more_overlapping_streams_than_files_may_be_open_go_through_scratch() {
        let inputs: Vec<_> = (0..5).map(|_| sorted(0, 9)).collect();
        assert_eq!(modes(&inputs), [(0..5, Mode::Spill)]);
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
                (0..1, Mode::Memory),
                (1..2, Mode::Copy),
                (2..3, Mode::Memory)
            ]
        );
        let inputs: Vec<_> = (0..5).map(|_| copyable(0, 9)).collect();
        assert_eq!(modes(&inputs), [(0..5, Mode::Spill)]);
    }

    #[test]
    fn small_neighbours_share_a_run_and_its_first_key() {
        let tiny = |first| InputSummary {
            row_count: 500,
            decoded_bytes: 10,
            ..small(first, first + 5)
        };
        let inputs: Vec<_> = (0..20).map(|i| tiny(100 - i)).collect();
        let runs = choose_strategy(&inputs, LIMITS);
        assert_eq!(
            runs.iter()
                .map(|run| run.inputs.clone())
                .collect::<Vec<_>>(),
            [0..12, 12..20]
        );
        assert_eq!(runs[0].first_key, Some(89));
    }

    #[test]
    fn inputs_with_unknown_ranges_count_as_open_all_the_time() {
        let unknown = InputSummary {
            key_range: None,
            ..small(0, 0)
        };
        let inputs = vec![unknown; 4];
        assert_eq!(modes(&inputs), [(0..4, Mode::Spill)]);
    }

    #[test]
    fn inputs_without_rows_are_in_no_run_of_their_own() {
        let empty = InputSummary {
            row_count: 0,
            ..small(0, 9)
        };
        assert!(choose_strategy(std::slice::from_ref(&empty), LIMITS).is_empty());
        assert_eq!(modes(&[empty, small(0, 9)]), [(1..2, Mode::Memory)]);
    }

    #[test]
    fn an_input_larger_than_memory_goes_through_scratch() {
        let large = InputSummary {
            decoded_bytes: 600,
            ..small(0, 9)
        };
        assert_eq!(modes(&[large]), [(0..1, Mode::Spill)]);
    }
}
