//! Runs that must be sorted and do not fit into memory: which of them are sorted together for
//! scratch. Pure, as the strategy is.
//!
//! Runs in scratch are read together as far as they overlap. So neighbours in time make a pile,
//! which overlaps few others, and a pile has as many rows as are quickly brought into order.

use super::{
    peak::{MayWrite, Pile, fit, run_bytes},
    strategy::{InputSummary, Limits, Mode, Plan, Run},
};

/// More inputs are not sorted together for scratch: their footers are in memory meanwhile.
const PILE_FILES: usize = 256;
/// Nor more rows, unless there would be too many piles: of so many a column is in the processor's
/// cache while it is brought into order.
pub(super) const PILE_ROWS: u64 = 131_072;
/// Runs to which inputs of unknown size are divided.
const UNKNOWN_RUNS: usize = 8;
/// Runs for which room is left beside those in scratch, so that they are sorted before their turn
/// comes.
const EARLY_RUNS: u64 = 2;

/// Puts runs that are to be sorted together with their neighbours in time.
pub(super) fn neighbours(
    runs: Vec<Run>,
    inputs: &[InputSummary],
    limits: Limits,
    pile_rows: u64,
) -> Vec<Pile> {
    let (mut sorted, others): (Vec<Run>, Vec<Run>) =
        runs.into_iter().partition(|run| run.mode == Mode::Memory);
    let mut piles: Vec<Pile> = others.into_iter().map(Pile::of_one).collect();
    sorted.sort_by_key(|run| (run.first_key, run.inputs.first().copied()));
    let (unknown, sorted): (Vec<Run>, Vec<Run>) = sorted
        .into_iter()
        .partition(|run| run_bytes(run, inputs) == u64::MAX);
    let share = unknown.len().div_ceil(UNKNOWN_RUNS).max(1);
    piles.extend(unknown.chunks(share).map(|runs| Pile {
        runs: runs.to_vec(),
        written: None,
    }));
    let (mut bytes, mut rows, mut files, mut last) = (0_u64, 0_u64, 0, None);
    for run in sorted {
        bytes = bytes.saturating_add(run_bytes(&run, inputs));
        let own_rows: u64 = run
            .inputs
            .iter()
            .map(|input| inputs[*input].row_count)
            .sum();
        rows += own_rows;
        files += run.inputs.len();
        match last.and_then(|last: usize| piles.get_mut(last)) {
            // Unknown ranges stand first, and do not hold the known ones up.
            Some(pile)
                if bytes <= limits.sort_bytes
                    && rows <= pile_rows
                    && files <= PILE_FILES
                    && pile.runs[0].first_key.is_some() == run.first_key.is_some() =>
            {
                pile.runs.push(run);
            }
            _ => {
                (bytes, rows) = (run_bytes(&run, inputs), own_rows);
                files = run.inputs.len();
                last = Some(piles.len());
                piles.push(Pile::of_one(run));
            }
        }
    }
    for pile in &mut piles {
        // Many small runs at a time are slow to merge, whether any are written or not.
        let bytes = pile.runs.iter().map(|run| run_bytes(run, inputs));
        let bytes = bytes.fold(0, u64::saturating_add);
        if pile.runs.len() > 1 && bytes <= limits.runs_bytes / 8 {
            *pile = Pile::of_one(together(&pile.runs, Mode::Memory));
        }
    }
    piles
}

/// Writes as many piles as must be, read in as large batches as have room.
pub(super) fn some_in_scratch(
    piles: &[Pile],
    inputs: &[InputSummary],
    limits: Limits,
) -> Option<Plan> {
    // Streams need no such room: nothing is made of them before their turn.
    let roomy_bytes = match largest_in_memory(piles, inputs, limits) {
        0 => limits.runs_bytes,
        largest => (limits.runs_bytes / 4 * 3).saturating_sub(EARLY_RUNS * largest),
    };
    for runs_bytes in [roomy_bytes, limits.runs_bytes] {
        let mut scratch_bytes = limits.scratch_bytes;
        loop {
            let within = Limits {
                runs_bytes,
                scratch_bytes,
                ..limits
            };
            let mut tried = piles.to_vec();
            if let Some(peak_bytes) = fit(&mut tried, inputs, within, MayWrite::Yes) {
                let limits = Limits {
                    scratch_bytes,
                    ..limits
                };
                return Some(Plan::of(tried, inputs, limits, peak_bytes));
            }
            if scratch_bytes <= limits.scratch_bytes_min {
                break;
            }
            scratch_bytes = (scratch_bytes / 2).max(limits.scratch_bytes_min);
        }
    }
    None
}

/// The last resort: everything is written, and then runs are merged with their neighbours until
/// there are few enough.
pub(super) fn all_in_scratch(
    mut piles: Vec<Pile>,
    inputs: &[InputSummary],
    limits: Limits,
) -> Plan {
    for pile in &mut piles {
        pile.written = pile.way(inputs, limits);
    }
    let limits = Limits {
        scratch_bytes: limits.scratch_bytes_min,
        ..limits
    };
    Plan {
        is_crowded: true,
        ..Plan::of(piles, inputs, limits, limits.runs_bytes)
    }
}

/// One run of the inputs of several.
pub(super) fn together(runs: &[Run], mode: Mode) -> Run {
    let members = runs.iter().flat_map(|run| run.inputs.iter().copied());
    let mut members: Vec<usize> = members.collect();
    members.sort_unstable();
    let firsts = runs.iter().map(|run| run.first_key);
    let first_key = firsts.reduce(|one, two| Some(one?.min(two?)));
    Run {
        inputs: members,
        mode,
        first_key: first_key.flatten(),
    }
}

/// Bytes of the largest run that may be sorted while the merge goes on.
fn largest_in_memory(piles: &[Pile], inputs: &[InputSummary], limits: Limits) -> u64 {
    let runs = piles.iter().flat_map(|pile| &pile.runs);
    let bytes = runs
        .filter(|run| run.mode == Mode::Memory)
        .map(|run| run_bytes(run, inputs));
    let fitting = bytes.filter(|bytes| *bytes <= limits.runs_bytes / 2);
    fitting.max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::strategy::{Written, choose_strategy};

    const LIMITS: Limits = Limits {
        runs_bytes: 1000,
        sort_bytes: 500,
        scratch_bytes: 60,
        scratch_bytes_min: 15,
        open_files: 4,
    };

    fn unsorted(first: i64, last: i64) -> InputSummary {
        InputSummary {
            row_count: 20_000,
            decoded_bytes: 100,
            stream_bytes: 100,
            seems_sorted: false,
            key_range: Some((first, last)),
            is_copyable: false,
        }
    }

    fn written(plan: &Plan) -> Vec<(Vec<usize>, Written)> {
        let runs = plan.runs.iter().filter_map(|run| match run.mode {
            Mode::Scratch(written) => Some((run.inputs.clone(), written)),
            _ => None,
        });
        runs.collect()
    }

    #[test]
    fn neighbours_in_time_go_to_scratch_together_wherever_they_stand() {
        // Fifty at a time, in any order.
        let inputs: Vec<_> = (0..100)
            .map(|i| unsorted(i * 37 % 100, i * 37 % 100 + 50))
            .collect();
        let plan = choose_strategy(&inputs, LIMITS);
        assert!(!plan.is_crowded);
        let mut all: Vec<usize> = plan
            .runs
            .iter()
            .flat_map(|run| run.inputs.clone())
            .collect();
        all.sort_unstable();
        assert_eq!(all, (0..100).collect::<Vec<_>>());
        for (members, how) in written(&plan) {
            assert_eq!((members.len(), how), (5, Written::Whole));
            assert!(members.is_sorted());
            let firsts = || members.iter().filter_map(|input| inputs[*input].key_range);
            let first = firsts().map(|(first, _)| first).min();
            let latest = firsts().map(|(first, _)| first).max();
            assert_eq!(latest, first.map(|first| first + 4));
        }
        assert!(written(&plan).len() >= 17, "{plan:?}");
    }

    #[test]
    fn batches_are_smaller_where_many_runs_are_read_together() {
        let inputs = vec![unsorted(0, 9); 200];
        let plan = choose_strategy(&inputs, LIMITS);
        assert!(!plan.is_crowded);
        // Forty piles of five, all of them at once.
        assert_eq!((written(&plan).len(), plan.scratch_bytes), (40, 15));
    }

    #[test]
    fn piles_are_larger_where_too_many_would_be_read_together() {
        let many_rows = InputSummary {
            row_count: PILE_ROWS,
            decoded_bytes: 50,
            ..unsorted(0, 9)
        };
        let plan = choose_strategy(&vec![many_rows; 300], LIMITS);
        let written = written(&plan);
        assert!(!plan.is_crowded);
        assert!(written.iter().all(|(members, _)| members.len() == 10));
    }

    #[test]
    fn what_is_too_much_even_in_scratch_is_all_written_and_merged_before() {
        let inputs = vec![unsorted(0, 9); 2000];
        let plan = choose_strategy(&inputs, LIMITS);
        assert!(plan.is_crowded);
        assert_eq!((written(&plan).len(), plan.runs.len()), (400, 400));
    }

    #[test]
    fn sorted_files_that_are_too_many_are_sorted_again_together() {
        let sorted = InputSummary {
            seems_sorted: true,
            ..unsorted(0, 9)
        };
        // Neither as streams nor as streams from scratch do they fit.
        let plan = choose_strategy(&vec![sorted; 100], LIMITS);
        let written = written(&plan);
        assert!(!plan.is_crowded);
        assert!(!written.is_empty());
        assert!(written.iter().all(|(_, how)| *how == Written::Whole));
    }

    #[test]
    fn inputs_of_unknown_size_are_sorted_in_pieces_apart_from_the_others() {
        let unknown = InputSummary {
            decoded_bytes: u64::MAX,
            key_range: None,
            ..unsorted(0, 0)
        };
        let mut inputs = vec![unknown; 20];
        inputs.push(unsorted(0, 9));
        let plan = choose_strategy(&inputs, LIMITS);
        let mut expected: Vec<_> = (0..20_usize)
            .collect::<Vec<_>>()
            .chunks(3)
            .map(|chunk| (chunk.to_vec(), Written::Pieces))
            .collect();
        expected.push((vec![20], Written::Whole));
        assert!(plan.is_crowded);
        assert_eq!(written(&plan), expected);
    }

    #[test]
    fn small_runs_of_a_pile_are_one_run_written_or_not() {
        let inputs: Vec<_> = (0..60)
            .map(|i| InputSummary {
                decoded_bytes: 10,
                ..unsorted(i, 60)
            })
            .collect();
        let plan = |runs_bytes| {
            let limits = Limits {
                runs_bytes,
                ..LIMITS
            };
            choose_strategy(&inputs, limits)
        };
        // With room for all each stays by itself.
        assert_eq!(plan(1000).runs.len(), 60);
        let fewer = plan(490).runs;
        let members: Vec<usize> = fewer.iter().map(|run| run.inputs.len()).collect();
        assert_eq!(members, [6; 10]);
        assert!(fewer.iter().any(|run| run.mode == Mode::Memory));
        assert!(fewer.iter().any(|run| run.mode != Mode::Memory));
    }

    #[test]
    fn known_and_unknown_ranges_are_not_sorted_together() {
        let unknown = InputSummary {
            key_range: None,
            ..unsorted(0, 0)
        };
        let mut inputs = vec![unsorted(5, 9); 3];
        inputs.extend(vec![unknown; 3]);
        let runs = |range: std::ops::Range<usize>| {
            let run = |input: usize| Run {
                inputs: vec![input],
                mode: Mode::Memory,
                first_key: inputs[input].key_range.map(|(first, _)| first),
            };
            range.map(run).collect::<Vec<_>>()
        };
        let piles = neighbours(runs(0..6), &inputs, LIMITS, PILE_ROWS);
        let piles: Vec<_> = piles.into_iter().map(|pile| pile.runs).collect();
        assert_eq!(piles, [runs(3..6), runs(0..3)]);
        assert_eq!(together(&piles[0], Mode::Memory).first_key, None);
        assert_eq!(together(&piles[1], Mode::Memory).first_key, Some(5));
    }
}
