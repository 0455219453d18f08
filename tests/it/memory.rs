//! The memory budget holds for the whole process.

use std::{fs, time::Duration};

use crate::support::{
    lake::Lake,
    program::{Program, config_file},
};

/// What the process needs beside the budget: code, thread stacks, catalog, what the allocator has not given back.
const BESIDE_THE_BUDGET_BYTES: u64 = 96 << 20;

#[test]
fn a_merge_many_times_larger_than_the_budget_stays_within_it() {
    let folder = tempfile::tempdir().unwrap();
    let lake = Lake::new(&folder.path().join("lake"));
    // About 500 MiB once decoded, in unsorted files that all overlap.
    for seed in 0..24 {
        lake.drop_file("cpu", seed * 60, 400_000);
    }
    let budget_bytes: u64 = 96 << 20;
    let text = format!(
        "data_dir = {:?}\n[merge]\nlevels = [{{ iteration = 1, timeout = \"1s\", max_size = \"4 GiB\" }}]\n\
         [worker]\nconcurrency = 1\nmemory_budget = \"96 MiB\"\n",
        lake.root
    );
    std::thread::sleep(Duration::from_secs(2));
    let mut program = Program::start(&["once", "--config", &config_file(folder.path(), &text)]);
    let mut peak_bytes = 0;
    while let Some(bytes) = peak_of(program.process_id()) {
        peak_bytes = bytes.max(peak_bytes);
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        program.wait_for_exit(Duration::from_secs(60)).code(),
        Some(0),
        "{}",
        program.log()
    );
    assert!(program.log().contains("rows=9600000"), "{}", program.log());
    assert!(
        peak_bytes > budget_bytes / 4,
        "the peak was not seen: {peak_bytes}"
    );
    let limit_bytes = budget_bytes + BESIDE_THE_BUDGET_BYTES;
    assert!(
        peak_bytes <= limit_bytes,
        "peak {peak_bytes} is over {limit_bytes}\n{}",
        program.log()
    );
}

/// Peak resident bytes of a process; `None` once it has ended.
fn peak_of(process_id: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process_id}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
