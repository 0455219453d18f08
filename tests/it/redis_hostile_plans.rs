//! Plans that no sound writer makes: whatever can be used of them is used, nothing is lost, and what
//! is refused is named.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use gigamerge::{
    catalog::{Catalog, redis::RedisCatalog},
    model::{ClaimedMerge, DataPath, Iteration},
};
use serde_json::{Value, json};

use crate::{catalog_suite::policy, support::redis_server::RedisServer};

const QUEUE: &str = "merge:d:t:1:a/b:l1::idle";

async fn claim_all(server: &RedisServer) -> Vec<ClaimedMerge> {
    let catalog = RedisCatalog::connect(&server.config(), Arc::new(policy())).unwrap();
    let mut claimed = Vec::new();
    while let Some(plan) = catalog.due_merges(Iteration(1), 10).await.unwrap().first() {
        let claim = catalog
            .claim_merge(&plan.queue, Duration::from_mins(1))
            .await;
        claimed.extend(claim.unwrap());
    }
    claimed
}

fn push(server: &RedisServer, item: &Value) {
    redis::cmd("RPUSH")
        .arg(QUEUE)
        .arg(item.to_string())
        .exec(&mut server.connection())
        .unwrap();
}

#[tokio::test]
async fn ten_megabytes_of_bad_paths_leave_the_good_one() {
    let server = RedisServer::start();
    let mut paths = vec![
        json!("x".repeat(10 << 20)),
        json!(7),
        json!(["a/b/x.1.parquet"]),
        json!({"path": "a/b/x.1.parquet"}),
        Value::Null,
        json!("a/b/\u{0}.1.parquet"),
        json!("/a/b/x.1.parquet"),
        json!("a/b/../../../u/data/a/b/x.1.parquet"),
        json!("a/c/x.1.parquet"),
        json!("a/b/x.2.parquet"),
    ];
    paths.extend((0..200_000).map(|number| json!(format!("../../{number:040}.1.parquet"))));
    paths.push(json!("a/b/good.1.parquet"));
    push(
        &server,
        &json!({"id": "evil", "time_s": 1, "size": 5, "paths": paths}),
    );
    let claimed = claim_all(&server).await;
    assert_eq!(claimed.len(), 1);
    let plan = &claimed[0].plan;
    let used: Vec<&str> = plan.paths.iter().map(DataPath::as_str).collect();
    assert_eq!(used, ["a/b/good.1.parquet"]);
    // Enough of them are named, shortened.
    let named: usize = plan
        .refused_paths
        .iter()
        .map(|(path, why)| path.len() + why.len())
        .sum();
    assert!(plan.refused_paths.len() >= 10 && named < 100_000, "{named}");
}

#[tokio::test]
async fn a_plan_of_half_a_million_files_becomes_several_and_loses_none() {
    const FILES: usize = 500_001;
    let server = RedisServer::start();
    let paths: Vec<String> = (0..FILES).map(|n| format!("a/b/{n}.1.parquet")).collect();
    push(
        &server,
        &json!({"id": "long", "time_s": 1, "size": FILES, "paths": paths}),
    );
    let claimed = claim_all(&server).await;
    assert_eq!(claimed.len(), 251);
    let planned: BTreeSet<&str> = claimed
        .iter()
        .flat_map(|claim| claim.plan.paths.iter().map(DataPath::as_str))
        .collect();
    assert_eq!(planned.len(), FILES);
    assert!(claimed.iter().all(|claim| claim.plan.paths.len() <= 2000));
    assert!(claimed.iter().all(|claim| !claim.plan.is_suspect));
}
