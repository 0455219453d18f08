//! How long a merge takes to end after it was told to stop, by what it was doing then.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use gigamerge::merge::{MergeControl, MergeError, MergeOptions, MergeRequest, merge_files};

use crate::rows::Random;

/// Moments that are tried for each lot of files, as long as that does not take too long.
const STOP_COUNT: u64 = 60;
const STOP_TIME: Duration = Duration::from_secs(300);

/// What a merge is doing, as far as can be seen from outside.
fn phase(control: &MergeControl) -> &'static str {
    let (rows_read, rows_written) = control.progress();
    match control.rows_total() {
        0 => "opening",
        total if rows_written >= total => "ending the file",
        _ if rows_written > 0 => "writing",
        _ if rows_read > 0 => "sorting, scratch",
        _ => "before the first row",
    }
}

/// Stops merges of all files in `folder` at random moments and prints the delays.
pub(crate) fn measure(folder: &Path, options: &MergeOptions) {
    let files = std::fs::read_dir(folder).expect("a folder of inputs");
    let mut inputs: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    inputs.retain(|path| path.extension().is_some_and(|name| name == "parquet"));
    inputs.sort();
    let beside = tempfile::tempdir_in(folder).expect("a folder for the output");
    let request = MergeRequest {
        inputs,
        output: beside.path().join("out"),
        scratch: beside.path().to_owned(),
        options: options.clone(),
    };
    let merge = |stop_after: Duration| {
        let control = MergeControl::default();
        std::thread::scope(|scope| {
            let merge = scope.spawn(|| {
                let result = merge_files(&request, &control);
                (result, Instant::now())
            });
            let started = Instant::now();
            while started.elapsed() < stop_after && !merge.is_finished() {
                std::thread::sleep(Duration::from_micros(200));
            }
            let phase = phase(&control);
            let stopped = Instant::now();
            control.cancel();
            let (result, ended) = merge.join().expect("no panic");
            match result {
                Ok(_) => std::fs::remove_file(&request.output).expect("the output is removed"),
                Err(MergeError::Cancelled) => {}
                Err(other) => panic!("{other}"),
            }
            (
                phase,
                ended.saturating_duration_since(stopped),
                started.elapsed(),
            )
        })
    };
    let (_, _, whole) = merge(Duration::MAX);
    let mut random = Random::new(17);
    let mut delays: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let started = Instant::now();
    for _ in 0..STOP_COUNT {
        if started.elapsed() > STOP_TIME {
            break;
        }
        let micros = u64::try_from(whole.as_micros()).expect("a short merge");
        let (phase, delay, _) = merge(Duration::from_micros(random.below(micros)));
        delays
            .entry(phase)
            .or_default()
            .push(delay.as_secs_f64() * 1e3);
    }
    println!(
        "{} ({:.2} s, {} MiB)",
        folder.display(),
        whole.as_secs_f64(),
        options.memory_budget_bytes >> 20
    );
    for (phase, mut delays) in delays {
        delays.sort_by(f64::total_cmp);
        println!(
            "  {phase:<24} {:>3} stops, median {:>7.1} ms, worst {:>7.1} ms",
            delays.len(),
            delays[delays.len() / 2],
            delays[delays.len() - 1]
        );
    }
}
