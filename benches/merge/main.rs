//! Speed of what a merge is made of, one part at a time, through the library's public interface.
//!
//! `cargo bench --bench merge [-- [--save] [NAME]]` prints for each case the median time, how far
//! the middle half of the samples is apart, and rows in a second; and, where a run with `--save`
//! was kept in `target/bench-merge.json`, the change since then. NAME picks cases whose names hold
//! it. A case takes about two seconds; inputs are made once, from fixed seeds.
//!
//! `cargo bench --bench merge -- --stop FOLDER [MIB]` merges the Parquet files of a folder again and
//! again, stops each merge at a random moment, and prints how long it takes to end.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench may stop at the first surprise"
)]

mod cases;
mod rows;
mod stops;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cases::Case;

/// Time for the samples of one case.
const CASE_TIME: Duration = Duration::from_millis(1500);
const WARM_UP_COUNT: usize = 2;
const SAMPLE_COUNT_MIN: usize = 5;
const SAMPLE_COUNT_MAX: usize = 200;
/// Smaller changes than the spread of both runs, or than this, are noise.
const CHANGE_MIN: f64 = 0.02;

/// Of one case, in seconds.
#[derive(Debug, Clone, Copy, serde::Serialize, serde::Deserialize)]
struct Measured {
    median_s: f64,
    /// Half of the samples lie within so much.
    spread_s: f64,
}

fn measure(case: &Case) -> Measured {
    for _ in 0..WARM_UP_COUNT {
        case.run();
    }
    let started = Instant::now();
    let mut samples = Vec::new();
    while samples.len() < SAMPLE_COUNT_MIN
        || started.elapsed() < CASE_TIME && samples.len() < SAMPLE_COUNT_MAX
    {
        samples.push(case.run().as_secs_f64());
    }
    samples.sort_by(f64::total_cmp);
    let at = |share: usize| samples[(samples.len() - 1) * share / 4];
    Measured {
        median_s: at(2),
        spread_s: at(3) - at(1),
    }
}

fn change(now: Measured, before: Option<&Measured>) -> String {
    let Some(before) = before else {
        return String::new();
    };
    let share = now.median_s / before.median_s - 1.0;
    let noise = (now.spread_s + before.spread_s) / before.median_s;
    if share.abs() < noise.max(CHANGE_MIN) {
        "same".to_owned()
    } else {
        format!("{:+.1} %", share * 100.0)
    }
}

fn saved_file() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
        PathBuf::from,
    );
    target.join("bench-merge.json")
}

fn main() {
    let mut arguments = std::env::args()
        .skip_while(|argument| argument != "--stop")
        .skip(1);
    if let Some(folder) = arguments.next() {
        let budget_mib = arguments.next().and_then(|mib| mib.parse().ok());
        return stops::measure(
            Path::new(&folder),
            &cases::with_budget(budget_mib.unwrap_or(256)),
        );
    }
    let (mut is_saving, mut filter) = (false, String::new());
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            "--save" => is_saving = true,
            // Cargo's own.
            "--bench" => {}
            name => name.clone_into(&mut filter),
        }
    }
    let path = saved_file();
    let saved = std::fs::read(&path).unwrap_or_default();
    let mut saved: BTreeMap<String, Measured> = serde_json::from_slice(&saved).unwrap_or_default();
    println!(
        "{:<44} {:>10} {:>9} {:>12}  since --save",
        "case", "median ms", "± ms", "rows/s"
    );
    let folder = tempfile::tempdir().expect("a folder for the inputs");
    for case in cases::all(folder.path(), &filter) {
        let now = measure(&case);
        println!(
            "{:<44} {:>10.3} {:>9.3} {:>12.0}  {}",
            case.name,
            now.median_s * 1e3,
            now.spread_s * 1e3 / 2.0,
            case.rows as f64 / now.median_s,
            change(now, saved.get(case.name))
        );
        if is_saving {
            saved.insert(case.name.to_owned(), now);
        }
    }
    if is_saving {
        let text = serde_json::to_vec_pretty(&saved).expect("figures are JSON");
        std::fs::write(&path, text).expect("the figures are written");
    }
}
