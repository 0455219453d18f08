//! How due plans are found among many lists, and at what price.

use std::{sync::Arc, time::Duration};

use gigamerge::{
    catalog::{Catalog, Policy, redis::RedisCatalog},
    model::{Iteration, MergePlan},
};
use redis::Connection;

use crate::{catalog_suite, support::redis_server::RedisServer};

/// Two levels that wait for a minute.
fn policy() -> Policy {
    let mut policy = catalog_suite::policy();
    for level in &mut policy.levels {
        level.timeout = Duration::from_mins(1);
    }
    policy
}

struct Lists {
    server: RedisServer,
    connection: Connection,
    catalog: RedisCatalog,
    now_s: i64,
}

impl Lists {
    fn new() -> Self {
        let server = RedisServer::start();
        let mut connection = server.connection();
        let (now_s, _): (i64, i64) = redis::cmd("TIME").query(&mut connection).unwrap();
        Self {
            catalog: RedisCatalog::connect(&server.config(), Arc::new(policy())).unwrap(),
            server,
            connection,
            now_s,
        }
    }

    fn list(table: usize, iteration: u32) -> String {
        format!("merge:db:t{table}:{iteration}:a=1:hot::idle")
    }

    /// A plan that is due `in_s` from the start.
    fn push(&mut self, list: &str, iteration: u32, in_s: i64) {
        let plan = format!(
            r#"{{"id":"{}","time_s":{},"size":1,"paths":["a=1/x.{iteration}.parquet"]}}"#,
            uuid::Uuid::new_v4(),
            self.now_s + in_s
        );
        redis::cmd("RPUSH")
            .arg(list)
            .arg(plan)
            .exec(&mut self.connection)
            .unwrap();
    }

    async fn due(&self, iteration: u32) -> Vec<MergePlan> {
        let due = self.catalog.due_merges(Iteration(iteration), 100).await;
        due.unwrap()
    }

    /// Calls of a command since the last question.
    fn calls(&mut self, command: &str) -> u64 {
        let info: String = redis::cmd("INFO")
            .arg("commandstats")
            .query(&mut self.connection)
            .unwrap();
        redis::cmd("CONFIG")
            .arg("RESETSTAT")
            .exec(&mut self.connection)
            .unwrap();
        info.split(&format!("cmdstat_{command}:calls="))
            .nth(1)
            .map_or(0, |rest| rest.split(',').next().unwrap().parse().unwrap())
    }
}

#[tokio::test]
async fn levels_that_tick_together_share_one_scan() {
    let mut lists = Lists::new();
    for table in 0..10 {
        lists.push(&Lists::list(table, 1), 1, -1);
        lists.push(&Lists::list(table, 2), 2, -1);
    }
    lists.calls("scan");
    assert_eq!(lists.due(1).await.len(), 10);
    assert_eq!(lists.due(2).await.len(), 10);
    assert_eq!(lists.calls("scan"), 1);
    // The same level again: it wants to see what is new.
    lists.push(&Lists::list(99, 2), 2, -1);
    assert_eq!(lists.due(2).await.len(), 11);
    assert_eq!(lists.calls("scan"), 1);
}

#[tokio::test]
async fn a_list_that_is_not_due_is_not_read_again_before_its_time() {
    let mut lists = Lists::new();
    for table in 0..50 {
        lists.push(&Lists::list(table, 1), 1, 3600);
    }
    lists.push(&Lists::list(50, 1), 1, 4);
    assert!(lists.due(1).await.is_empty());
    lists.calls("lrange");
    assert!(lists.due(1).await.is_empty());
    assert!(lists.calls("lrange") <= 1);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(lists.due(1).await.len(), 1);
    assert!(lists.calls("lrange") <= 2);
}

#[tokio::test]
async fn a_plan_with_a_shorter_timeout_is_found_behind_one_that_waits() {
    let mut lists = Lists::new();
    let list = Lists::list(0, 1);
    lists.push(&list, 1, 3600);
    assert!(lists.due(1).await.is_empty());
    lists.push(&list, 1, -1);
    assert_eq!(lists.due(1).await.len(), 1);
}

#[tokio::test]
async fn a_plan_that_was_given_back_is_found_at_once() {
    let mut lists = Lists::new();
    let list = Lists::list(0, 1);
    lists.push(&list, 1, 3600);
    lists.push(&list, 1, -1);
    let plan = lists.due(1).await.pop().unwrap();
    let claimed = lists
        .catalog
        .claim_merge(&plan.queue, Duration::from_mins(1))
        .await
        .unwrap()
        .unwrap();
    assert!(lists.due(1).await.is_empty());
    lists
        .catalog
        .release_merge(&claimed, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(lists.due(1).await.len(), 1);
}

#[tokio::test]
async fn a_plan_of_a_dead_worker_is_found_when_its_lease_ran_out() {
    let mut lists = Lists::new();
    let list = Lists::list(0, 1).replace(":idle", ":processing");
    lists.push(&list, 1, 2);
    assert!(lists.due(1).await.is_empty());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(lists.due(1).await.len(), 1);
    // One ended, another one claimed: as long as before, and still seen.
    redis::cmd("DEL")
        .arg(&list)
        .exec(&mut lists.connection)
        .unwrap();
    lists.push(&list, 1, -1);
    assert_eq!(lists.due(1).await.len(), 1);
}

#[tokio::test]
async fn a_list_that_became_something_else_stops_nobody() {
    let mut lists = Lists::new();
    lists.push(&Lists::list(0, 1), 1, 3600);
    assert!(lists.due(1).await.is_empty());
    let broken = Lists::list(0, 1);
    redis::cmd("SET")
        .arg(&broken)
        .arg("x")
        .exec(&mut lists.connection)
        .unwrap();
    lists.push(&Lists::list(1, 1), 1, -1);
    assert_eq!(lists.due(1).await.len(), 1);
    assert!(lists.server.process_id() > 0);
}

#[tokio::test]
async fn the_first_look_reads_each_waiting_list_once_for_all_levels() {
    let mut lists = Lists::new();
    for table in 0..50 {
        lists.push(&Lists::list(table, 1), 1, 3600);
        lists.push(&Lists::list(table, 2), 2, 3600);
    }
    lists.push(&Lists::list(50, 2), 2, -1);
    lists.calls("scan");
    assert!(lists.due(1).await.is_empty());
    assert_eq!(lists.due(2).await.len(), 1);
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query(&mut lists.connection)
        .unwrap();
    assert!(!info.contains("cmdstat_llen"), "{info}");
    // The due one was read again, to be shown.
    assert_eq!(lists.calls("lrange"), 102);
    // From then on, lengths tell what is new.
    lists.push(&Lists::list(3, 1), 1, -1);
    assert_eq!(lists.due(1).await.len(), 1);
    // Its two items, and that there is no third.
    assert_eq!(lists.calls("lrange"), 2);
}

#[tokio::test]
async fn the_first_look_misses_nothing_in_long_lists_and_odd_ones() {
    let mut lists = Lists::new();
    for (table, before) in [0, 1, 2, 3, 4, 40].into_iter().enumerate() {
        for _ in 0..before {
            lists.push(&Lists::list(table, 1), 1, 3600);
        }
        lists.push(&Lists::list(table, 1), 1, -1);
    }
    for (table, item) in ["not JSON", "{}", "\u{fffd}"].into_iter().enumerate() {
        redis::cmd("RPUSH")
            .arg(Lists::list(10 + table, 1))
            .arg(item)
            .exec(&mut lists.connection)
            .unwrap();
    }
    redis::cmd("SET")
        .arg(Lists::list(20, 1))
        .arg("no list")
        .exec(&mut lists.connection)
        .unwrap();
    assert_eq!(lists.due(1).await.len(), 6 + 3);
}

#[tokio::test]
async fn large_plans_are_read_in_several_calls_and_none_is_missed() {
    let mut lists = Lists::new();
    let paths = format!("\"a=1/{}.1.parquet\",", "x".repeat(200)).repeat(5000);
    for table in 0..40 {
        // Lists of plans that were handed out are read in each look.
        for (state, due_in_s) in [
            ("idle", 3600),
            ("processing", if table % 3 == 0 { -1 } else { 3600 }),
        ] {
            let plan = format!(
                r#"{{"id":"{}","time_s":{},"size":1,"paths":[{paths}"a=1/y.1.parquet"]}}"#,
                uuid::Uuid::new_v4(),
                lists.now_s + due_in_s
            );
            redis::cmd("RPUSH")
                .arg(Lists::list(table, 1).replace(":idle", &format!(":{state}")))
                .arg(plan)
                .exec(&mut lists.connection)
                .unwrap();
        }
    }
    // 40 plans of 1.1 MB that were handed out, 8 MiB in a call.
    for _ in 0..2 {
        lists.calls("evalsha");
        assert_eq!(lists.due(1).await.len(), 14);
        let calls = lists.calls("evalsha");
        assert!((5..=8).contains(&calls), "{calls} calls");
    }
}
