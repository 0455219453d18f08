//! Runs the code of the Python guide for writers, taken from the document, against our scripts;
//! then merges what it registered.

use std::{path::Path, process::Command, sync::Arc, time::Duration};

use gigamerge::{
    catalog::{
        Catalog, CommitOutcome, EntryFilter, MergeCommit, redis::RedisCatalog, redis::scripts,
    },
    model::{Iteration, TableRef},
};

use crate::{catalog_suite::policy, support::redis_server::RedisServer};

/// A batch of the guide: one file each 15 seconds for three days.
const GUIDE_FILES: usize = 17_280;

#[tokio::test]
async fn the_guides_client_registers_files_that_are_then_merged() {
    let python = std::env::var("GIGAMERGE_TEST_PYTHON").expect(
        "GIGAMERGE_TEST_PYTHON must name a Python with redis and python-dateutil; run tests/run, which makes one",
    );
    let server = RedisServer::start();
    let folder = tempfile::tempdir().unwrap();
    for script in scripts::all() {
        let path = folder.path().join(format!("{}.lua", script.name));
        std::fs::write(path, script.text).unwrap();
    }
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guide");
    let result = folder.path().join("result.json");
    let output = Command::new(python)
        .arg(guide.join("run_guide.py"))
        .arg(guide.join("INTEGRATION.md"))
        .arg(server.url())
        .arg(folder.path())
        .arg(&result)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}{errors}");
    assert!(said.contains("Successfully retrieved"), "{said}");
    let result: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(result).unwrap()).unwrap();
    // The guide counts by the clock; the last file may fall on either side.
    let registered = usize::try_from(result["registered"].as_u64().unwrap()).unwrap();
    assert!(registered.abs_diff(GUIDE_FILES) <= 1, "{registered}");
    assert_eq!(result["times_exact"], true);
    assert_eq!(result["missing_is_none"], true);
    let example = "date=2024-01-15/hour=14/event_batch_001.1.parquet";
    assert_eq!(result["example_paths"], serde_json::json!([example]));

    let catalog = RedisCatalog::connect(&server.config(), Arc::new(policy())).unwrap();
    let table = TableRef::new("default", "test").unwrap();
    let everything = EntryFilter::default();
    let before = catalog.entries(&table, &everything).await.unwrap();
    assert_eq!(before.len(), registered);
    assert!(before.iter().all(|entry| entry.layer.as_str().is_empty()));
    // The guide's plans wait for ten seconds.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let due = catalog.due_merges(Iteration(1), 10_000).await.unwrap();
    let planned: usize = due.iter().map(|plan| plan.paths.len()).sum();
    assert_eq!(planned, registered + 1);
    let queue = &due
        .iter()
        .find(|plan| plan.queue.table == table)
        .unwrap()
        .queue;
    let claim = catalog
        .claim_merge(queue, Duration::from_secs(30))
        .await
        .unwrap()
        .unwrap();
    let sources = claim.plan.paths.clone();
    let inputs = catalog.resolve(&table, &sources).await.unwrap();
    let mut merged = inputs[0].clone().unwrap();
    merged.path = queue.dir.file("merged", Iteration(2)).unwrap();
    let commit = MergeCommit {
        output: Some(merged.clone()),
        sources: sources.clone(),
        set_aside: Vec::new(),
        grace: Duration::ZERO,
    };
    let outcome = catalog.commit_merge(&claim, &commit).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed);
    let after = catalog.entries(&table, &everything).await.unwrap();
    assert_eq!(after.len(), registered - sources.len() + 1);
    assert!(after.contains(&merged));
}
