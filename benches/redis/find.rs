//! Due plans among many lists.

use gigamerge::{
    catalog::{Catalog, redis::RedisCatalog},
    model::Iteration,
};
use tokio::runtime::Runtime;

use crate::{Bench, data::LEASE};

/// 100 tables with 1,000 lists each; a quarter for each level; the first `due` plans are due.
fn make_lists(connection: &mut redis::Connection, count: usize, due: usize) {
    let (now_s, _): (i64, i64) = redis::cmd("TIME").query(connection).unwrap();
    for first in (0..count).step_by(1000) {
        let mut pipeline = redis::pipe();
        for number in first..(first + 1000).min(count) {
            let (table, iteration) = (number % 100, 1 + number / 100 % 4);
            let dir = format!(
                "date=2024-{:02}-{:02}/hour={:02}",
                1 + number / 40_000,
                1 + number / 2400 % 28,
                number / 100 % 24
            );
            let key = format!(
                "merge:db{}:t{table}:{iteration}:{dir}:hot:{number}:idle",
                table % 3
            );
            let time_s = if number < due {
                now_s - 5
            } else {
                now_s + 3600
            };
            let plan = format!(
                r#"{{"id":"{}","time_s":{time_s},"size":2000,"paths":["{dir}/a.{iteration}.parquet","{dir}/b.{iteration}.parquet"]}}"#,
                uuid::Uuid::from_u128(number as u128)
            );
            pipeline.cmd("RPUSH").arg(key).arg(plan).ignore();
        }
        pipeline.exec(connection).unwrap();
    }
}

pub fn finding(bench: &mut Bench) {
    const LISTS: usize = 100_000;
    println!(
        "\n| 100,000 merge lists of 100 tables | wall ms | CPU ms | in calls ms | longest call ms |\n| --- | --- | --- | --- | --- |"
    );
    let find = |catalog: &RedisCatalog, runtime: &Runtime| {
        let mut found = Vec::new();
        for iteration in 1..=4 {
            found.extend(
                runtime
                    .block_on(catalog.due_merges(Iteration(iteration), 1000))
                    .unwrap(),
            );
        }
        found
    };
    let prepare = |due| {
        move |connection: &mut redis::Connection, _: &Runtime| make_lists(connection, LISTS, due)
    };
    let fresh = std::cell::RefCell::new(bench.catalog(10 << 20));
    let unused: Vec<_> = (0..bench.rounds).map(|_| bench.catalog(10 << 20)).collect();
    let unused = std::cell::RefCell::new(unused);
    bench.row(
        "none due, one tick of 4 levels, first one: ours",
        |connection, _| {
            make_lists(connection, LISTS, 0);
            // One that has seen nothing yet.
            fresh.replace(unused.borrow_mut().pop().unwrap());
        },
        |_, runtime| assert!(find(&fresh.borrow(), runtime).is_empty()),
    );
    let warm = bench.catalog(10 << 20);
    bench.row(
        "none due, a later tick of 4 levels: ours",
        |connection, runtime| {
            make_lists(connection, LISTS, 0);
            assert!(find(&warm, runtime).is_empty());
        },
        |_, runtime| assert!(find(&warm, runtime).is_empty()),
    );
    let catalog = bench.catalog(10 << 20);
    bench.row(
        "1,000 due, found and claimed: ours",
        prepare(1000),
        |_, runtime| {
            let plans = find(&catalog, runtime);
            assert_eq!(plans.len(), 1000);
            for plan in plans {
                let claim = runtime
                    .block_on(catalog.claim_merge(&plan.queue, LEASE))
                    .unwrap();
                assert!(claim.is_some());
            }
        },
    );
    let script = redis::Script::new(include_str!("naive_claim.lua"));
    let rounds = std::mem::replace(&mut bench.rounds, 1);
    bench.row("none due, one table: naive", prepare(0), |connection, _| {
        let keys: Vec<String> = redis::cmd("SCAN")
            .arg(0)
            .arg("MATCH")
            .arg("merge:db0:t0:*")
            .arg("COUNT")
            .arg(10_000_000)
            .query::<(u64, Vec<String>)>(connection)
            .unwrap()
            .1;
        for key in keys {
            let _: String = script.key(key).invoke(connection).unwrap();
        }
    });
    bench.rounds = rounds;
}
