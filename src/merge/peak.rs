//! What runs take in memory at the worst moment, and which of them go through scratch so that
//! this fits.

use std::collections::BTreeSet;

use super::strategy::{InputSummary, Limits, Mode, Run, Written};

/// Whether runs may be written to scratch so that the rest fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum MayWrite {
    No,
    Yes,
}

/// Bytes of a run while it is open, unless it is read from scratch.
pub(super) fn run_bytes(run: &Run, inputs: &[InputSummary]) -> u64 {
    let is_stream = is_file(run.mode);
    let members = run.inputs.iter().map(|index| &inputs[*index]);
    let bytes = members.map(|input| {
        if is_stream {
            input.stream_bytes
        } else {
            input.decoded_bytes
        }
    });
    bytes.fold(0, u64::saturating_add)
}

/// Whether its input is open as long as the run is.
fn is_file(mode: Mode) -> bool {
    matches!(mode, Mode::Stream | Mode::Copy)
}

/// Pieces in which an input is written, at most: each has at least a quarter of what runs may use.
fn pieces_max(bytes: u64, limits: Limits) -> u64 {
    bytes / (limits.runs_bytes / 4).max(1) + 1
}

/// Goes along the keys and gives the bytes of the runs that are open together at the worst moment;
/// `None` when that does not fit. Where it would not, runs become [`Mode::Scratch`] if they may:
/// always the one that frees most.
pub(super) fn fit(
    runs: &mut [Run],
    inputs: &[InputSummary],
    limits: Limits,
    may_write: MayWrite,
) -> Option<u64> {
    // What opens at a key does so before others close there.
    let mut changes: Vec<(i64, bool, usize)> = Vec::with_capacity(runs.len() * 2);
    // What each takes while it is open: bytes and files.
    let mut takes: Vec<(u64, usize)> = Vec::with_capacity(runs.len());
    for (index, run) in runs.iter_mut().enumerate() {
        let bytes = run_bytes(run, inputs);
        takes.push((bytes, usize::from(is_file(run.mode))));
        if !is_file(run.mode) && bytes > limits.runs_bytes / 2 {
            if may_write == MayWrite::No || run.inputs.len() > 1 {
                return None;
            }
            let (pieces, written) = if bytes <= limits.sort_bytes {
                (1, Written::Whole)
            } else {
                (pieces_max(bytes, limits), Written::Pieces)
            };
            run.mode = Mode::Scratch(written);
            takes[index] = (
                pieces.saturating_mul(limits.scratch_bytes),
                usize::try_from(pieces).unwrap_or(usize::MAX),
            );
        }
        let members = run.inputs.iter().map(|index| &inputs[*index]);
        let last = members
            .filter(|input| input.row_count > 0)
            .map(|input| input.key_range.map(|(_, last)| last))
            .try_fold(i64::MIN, |latest, last| Some(latest.max(last?)));
        changes.push((run.first_key.unwrap_or(i64::MIN), false, index));
        changes.push((last.unwrap_or(i64::MAX), true, index));
    }
    changes.sort_unstable();
    let (mut open_bytes, mut open_files, mut peak) = (0_u64, 0, 0);
    // Open runs that may be written, by what that frees.
    let mut writable: BTreeSet<(u64, usize)> = BTreeSet::new();
    for (_, closes, index) in changes {
        let (bytes, files) = takes[index];
        let freed = bytes.saturating_sub(limits.scratch_bytes);
        if closes {
            writable.remove(&(freed, index));
            open_bytes = open_bytes.saturating_sub(bytes);
            open_files -= files;
            continue;
        }
        open_bytes = open_bytes.saturating_add(bytes);
        open_files = files.saturating_add(open_files);
        // Rows of several inputs would lose which of them came first.
        let is_alone = runs[index].inputs.len() == 1;
        if is_alone && freed > 0 && matches!(runs[index].mode, Mode::Stream | Mode::Memory) {
            writable.insert((freed, index));
        }
        while open_bytes > limits.runs_bytes && may_write == MayWrite::Yes {
            let (freed, largest) = writable.pop_last()?;
            let is_stream = runs[largest].mode == Mode::Stream;
            runs[largest].mode = Mode::Scratch(if is_stream {
                Written::Stream
            } else {
                Written::Whole
            });
            takes[largest] = (limits.scratch_bytes, 1);
            open_bytes -= freed;
            open_files += usize::from(!is_stream);
        }
        if open_bytes > limits.runs_bytes || open_files > limits.open_files {
            return None;
        }
        peak = peak.max(open_bytes);
    }
    Some(peak)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        runs_bytes: 100,
        sort_bytes: 60,
        scratch_bytes: 5,
        open_files: 4,
    };

    fn input(first: i64, last: i64) -> InputSummary {
        InputSummary {
            row_count: 5000,
            decoded_bytes: 40,
            stream_bytes: 30,
            seems_sorted: false,
            key_range: Some((first, last)),
            is_copyable: false,
        }
    }

    fn runs(inputs: &[InputSummary], mode: Mode) -> Vec<Run> {
        let runs = inputs.iter().enumerate().map(|(index, input)| Run {
            inputs: vec![index],
            mode,
            first_key: input.key_range.map(|(first, _)| first),
        });
        runs.collect()
    }

    fn written(runs: &[Run]) -> Vec<usize> {
        let is_written = |run: &Run| matches!(run.mode, Mode::Scratch(_));
        let runs = runs.iter().enumerate();
        runs.filter(|(_, run)| is_written(run))
            .map(|(i, _)| i)
            .collect()
    }

    #[test]
    fn only_as_many_runs_are_written_as_are_too_much_at_a_time() {
        // Three at a time are too much, two are not.
        let inputs: Vec<_> = (0..6).map(|i| input(i * 10, i * 10 + 25)).collect();
        let mut memory = runs(&inputs, Mode::Memory);
        assert_eq!(fit(&mut memory, &inputs, LIMITS, MayWrite::No), None);
        assert!(written(&memory).is_empty());
        let peak = fit(&mut memory, &inputs, LIMITS, MayWrite::Yes);
        assert_eq!((peak, written(&memory)), (Some(85), vec![2, 5]));
        assert_eq!(memory[2].mode, Mode::Scratch(Written::Whole));
    }

    #[test]
    fn what_is_too_large_beside_a_merge_may_be_sorted_before_it() {
        let large = |bytes| InputSummary {
            decoded_bytes: bytes,
            ..input(0, 9)
        };
        let fits = |bytes| {
            let inputs = [large(bytes)];
            fit(
                &mut runs(&inputs, Mode::Memory),
                &inputs,
                LIMITS,
                MayWrite::Yes,
            )
        };
        assert_eq!([fits(50), fits(60)], [Some(50), Some(5)]);
        // In pieces, as long as their files may be open together.
        assert_eq!([fits(61), fits(100)], [Some(15), None]);
    }

    #[test]
    fn of_streams_that_all_overlap_some_are_written() {
        let inputs = vec![input(0, 99); 4];
        let mut streams = runs(&inputs, Mode::Stream);
        let peak = fit(&mut streams, &inputs, LIMITS, MayWrite::Yes);
        assert_eq!((peak, written(&streams).len()), (Some(95), 1));
    }

    #[test]
    fn what_cannot_be_written_makes_it_not_fit() {
        let inputs = vec![input(0, 99); 6];
        // More files than may be open.
        let mut streams = runs(&inputs, Mode::Stream);
        assert_eq!(fit(&mut streams, &inputs, LIMITS, MayWrite::Yes), None);
        let inputs = vec![input(0, 99); 4];
        let mut copies = runs(&inputs, Mode::Copy);
        assert_eq!(fit(&mut copies, &inputs, LIMITS, MayWrite::Yes), None);
    }
}
