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

/// Runs that go to scratch together, as one sorted run, if any of them must.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pile {
    pub(super) runs: Vec<Run>,
    /// How it is written, if it is.
    pub(super) written: Option<Written>,
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

impl Pile {
    pub(super) fn of_one(run: Run) -> Self {
        Self {
            runs: vec![run],
            written: None,
        }
    }

    /// How it would be written; `None` when it may not be.
    pub(super) fn way(&self, inputs: &[InputSummary], limits: Limits) -> Option<Written> {
        match self.runs.first()?.mode {
            Mode::Stream => Some(Written::Stream),
            Mode::Memory if self.bytes(inputs) <= limits.sort_bytes => Some(Written::Whole),
            Mode::Memory => Some(Written::Pieces),
            Mode::Copy | Mode::Scratch(_) => None,
        }
    }

    fn bytes(&self, inputs: &[InputSummary]) -> u64 {
        let bytes = self.runs.iter().map(|run| run_bytes(run, inputs));
        bytes.fold(0, u64::saturating_add)
    }

    /// Whether a run of it has no room beside a merge.
    fn is_too_large(&self, inputs: &[InputSummary], limits: Limits) -> bool {
        let mut runs = self.runs.iter();
        runs.any(|run| !is_file(run.mode) && run_bytes(run, inputs) > limits.runs_bytes / 2)
    }

    /// Bytes that reading it from scratch takes. Pieces have at least a quarter of what runs may
    /// use each.
    fn scratch_bytes(&self, inputs: &[InputSummary], limits: Limits) -> u64 {
        let pieces = match self.written {
            Some(Written::Pieces) => {
                (self.bytes(inputs) / (limits.runs_bytes / 4).max(1)).saturating_add(1)
            }
            _ => 1,
        };
        pieces.saturating_mul(limits.scratch_bytes)
    }
}

/// Goes along the keys and gives the bytes of the runs that are open together at the worst moment;
/// `None` when that does not fit. Where it would not, piles are written if they may: always the
/// one that frees most.
pub(super) fn fit(
    piles: &mut [Pile],
    inputs: &[InputSummary],
    limits: Limits,
    may_write: MayWrite,
) -> Option<u64> {
    for pile in piles.iter_mut() {
        if pile.is_too_large(inputs, limits) {
            if may_write == MayWrite::No {
                return None;
            }
            pile.written = pile.way(inputs, limits);
        }
    }
    let changes = changes(piles, inputs);
    let count = |piles: &[Pile]| piles.iter().filter(|pile| pile.written.is_some()).count();
    loop {
        let written = count(piles);
        let peak_bytes = sweep(piles, inputs, limits, may_write, &changes)?;
        // A pile is open from its first run on: what was written late takes some room before.
        if count(piles) == written {
            return Some(peak_bytes);
        }
    }
}

/// Something opens or closes at a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    key: i64,
    /// What opens at a key does so before others close there.
    closes: bool,
    pile: usize,
    /// The run in the pile; `None` for the whole of it.
    run: Option<usize>,
}

fn changes(piles: &[Pile], inputs: &[InputSummary]) -> Vec<Change> {
    let mut changes = Vec::new();
    for (pile, runs) in piles.iter().enumerate() {
        let mut whole = (i64::MAX, i64::MIN);
        let mut add = |(first, last): (i64, i64), run| {
            for (key, closes) in [(first, false), (last, true)] {
                changes.push(Change {
                    key,
                    closes,
                    pile,
                    run,
                });
            }
        };
        for (index, run) in runs.runs.iter().enumerate() {
            let members = run.inputs.iter().map(|index| &inputs[*index]);
            let last = members
                .filter(|input| input.row_count > 0)
                .map(|input| input.key_range.map(|(_, last)| last))
                .try_fold(i64::MIN, |latest, last| Some(latest.max(last?)));
            let range = (run.first_key.unwrap_or(i64::MIN), last.unwrap_or(i64::MAX));
            whole = (whole.0.min(range.0), whole.1.max(range.1));
            add(range, Some(index));
        }
        add(whole, None);
    }
    changes.sort_unstable();
    changes
}

/// What a pile takes at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Open {
    /// Of its runs, while it is not written.
    bytes: u64,
    files: usize,
    /// It is being read from scratch.
    is_read: bool,
}

fn sweep(
    piles: &mut [Pile],
    inputs: &[InputSummary],
    limits: Limits,
    may_write: MayWrite,
    changes: &[Change],
) -> Option<u64> {
    let mut open = vec![Open::default(); piles.len()];
    let (mut open_bytes, mut open_files, mut peak) = (0_u64, 0, 0);
    // Open piles that may be written, by what that frees.
    let mut writable: BTreeSet<(u64, usize)> = BTreeSet::new();
    for change in changes {
        let (pile, now) = (&piles[change.pile], &mut open[change.pile]);
        if pile.written.is_some() {
            if now.is_read == change.closes && change.run.is_none() {
                let bytes = pile.scratch_bytes(inputs, limits);
                now.is_read = !change.closes;
                open_bytes = if change.closes {
                    open_bytes.saturating_sub(bytes)
                } else {
                    open_bytes.saturating_add(bytes)
                };
            }
        } else if let Some(run) = change.run {
            let run = &pile.runs[run];
            let (bytes, files) = (run_bytes(run, inputs), usize::from(is_file(run.mode)));
            writable.remove(&(now.bytes, change.pile));
            if change.closes {
                open_bytes = open_bytes.saturating_sub(bytes);
                now.bytes = now.bytes.saturating_sub(bytes);
                open_files -= files;
                now.files -= files;
            } else {
                open_bytes = open_bytes.saturating_add(bytes);
                now.bytes = now.bytes.saturating_add(bytes);
                open_files += files;
                now.files += files;
            }
            if now.bytes > limits.scratch_bytes && run.mode != Mode::Copy {
                writable.insert((now.bytes, change.pile));
            }
        }
        while (open_bytes > limits.runs_bytes || open_files > limits.open_files)
            && may_write == MayWrite::Yes
        {
            let (bytes, largest) = writable.pop_last()?;
            let way = piles[largest].way(inputs, limits);
            piles[largest].written = way;
            let taken = piles[largest].scratch_bytes(inputs, limits);
            let now = &mut open[largest];
            open_bytes = (open_bytes - bytes).saturating_add(taken);
            open_files -= now.files;
            *now = Open {
                is_read: true,
                ..Open::default()
            };
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
        scratch_bytes_min: 5,
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

    fn runs(inputs: &[InputSummary], mode: Mode) -> Vec<Pile> {
        let runs = inputs.iter().enumerate().map(|(index, input)| Run {
            inputs: vec![index],
            mode,
            first_key: input.key_range.map(|(first, _)| first),
        });
        runs.map(Pile::of_one).collect()
    }

    fn written(piles: &[Pile]) -> Vec<usize> {
        let piles = piles.iter().enumerate();
        let written = piles.filter(|(_, pile)| pile.written.is_some());
        written.map(|(index, _)| index).collect()
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
        assert_eq!(memory[2].written, Some(Written::Whole));
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
        // In pieces, as long as they may be read together.
        assert_eq!([fits(61), fits(100)], [Some(15), Some(25)]);
        assert_eq!(fits(600), None);
    }

    #[test]
    fn of_streams_that_all_overlap_some_are_written() {
        let inputs = vec![input(0, 99); 4];
        let mut streams = runs(&inputs, Mode::Stream);
        let peak = fit(&mut streams, &inputs, LIMITS, MayWrite::Yes);
        assert_eq!((peak, written(&streams).len()), (Some(95), 1));
    }

    #[test]
    fn a_pile_is_written_as_a_whole_and_takes_its_room_from_its_first_run_on() {
        // Three of the four runs of the pile overlap a stream that leaves room for one.
        let mut inputs = vec![input(0, 1), input(10, 40), input(20, 40), input(30, 40)];
        inputs.push(InputSummary {
            stream_bytes: 58,
            ..input(0, 40)
        });
        let mut piles = runs(&inputs, Mode::Memory);
        let stream = Run {
            inputs: vec![4],
            mode: Mode::Stream,
            first_key: Some(0),
        };
        let four = piles.drain(..4).flat_map(|pile| pile.runs).collect();
        let mut piles = vec![
            Pile {
                runs: four,
                written: None,
            },
            Pile::of_one(stream),
        ];
        let limits = Limits {
            sort_bytes: 200,
            ..LIMITS
        };
        let peak = fit(&mut piles, &inputs, limits, MayWrite::Yes);
        assert_eq!((peak, written(&piles)), (Some(63), vec![0]));
        assert_eq!(piles[0].written, Some(Written::Whole));
    }

    #[test]
    fn what_cannot_be_written_makes_it_not_fit() {
        let inputs = vec![input(0, 99); 30];
        // Even in scratch they are too much together.
        let mut streams = runs(&inputs, Mode::Stream);
        assert_eq!(fit(&mut streams, &inputs, LIMITS, MayWrite::Yes), None);
        let inputs = vec![input(0, 99); 4];
        let mut copies = runs(&inputs, Mode::Copy);
        assert_eq!(fit(&mut copies, &inputs, LIMITS, MayWrite::Yes), None);
    }
}
