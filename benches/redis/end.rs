//! The end of one merge among many.

use std::time::Duration;

use gigamerge::{
    catalog::{Catalog, MergeCommit},
    model::{IndexEntry, Iteration},
};

use crate::{
    Bench,
    data::{LEASE, entry},
};

pub fn ending(bench: &mut Bench) {
    const ITEMS: usize = 10_000;
    println!(
        "\n| 10,000 plans in processing | wall ms | CPU ms | in calls ms | longest call ms |\n| --- | --- | --- | --- | --- |"
    );
    let catalog = bench.catalog(150);
    // Two files of 100 bytes do not fit into one plan, so each file is a plan of its own.
    let entries: Vec<IndexEntry> = (0..ITEMS).map(|number| entry(number, 100, 1)).collect();
    for place in [0, ITEMS - 1] {
        let claim = std::cell::RefCell::new(None);
        bench.rounds = 3;
        bench.row(
            &format!(
                "commit the {}: ours",
                if place == 0 { "first" } else { "last" }
            ),
            |connection, runtime| {
                runtime.block_on(catalog.batch(&entries, &[])).unwrap();
                let idle = "merge:default:test:1:date=2024-01-10/hour=00:hot::idle";
                let (now_s, _): (i64, i64) = redis::cmd("TIME").query(connection).unwrap();
                let texts: Vec<String> = redis::cmd("LRANGE")
                    .arg(idle)
                    .arg(0)
                    .arg(-1)
                    .query(connection)
                    .unwrap();
                let mut pipeline = redis::pipe();
                pipeline.cmd("DEL").arg(idle).ignore();
                for text in &texts {
                    let mut item: serde_json::Value = serde_json::from_str(text).unwrap();
                    item["time_s"] = (now_s - 1).into();
                    pipeline
                        .cmd("RPUSH")
                        .arg(idle)
                        .arg(item.to_string())
                        .ignore();
                }
                pipeline.exec(connection).unwrap();
                let plans = runtime
                    .block_on(catalog.due_merges(Iteration(1), 1))
                    .unwrap();
                for number in 0..ITEMS {
                    let claimed = runtime
                        .block_on(catalog.claim_merge(&plans[0].queue, LEASE))
                        .unwrap()
                        .unwrap();
                    if number == place {
                        claim.replace(Some(claimed));
                    }
                }
            },
            |_, runtime| {
                let claim = claim.borrow();
                let claim = claim.as_ref().unwrap();
                let commit = MergeCommit {
                    output: None,
                    sources: claim.plan.paths.clone(),
                    set_aside: Vec::new(),
                    grace: Duration::ZERO,
                };
                runtime
                    .block_on(catalog.commit_merge(claim, &commit))
                    .unwrap();
            },
        );
    }
}
