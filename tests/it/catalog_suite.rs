//! What every catalog promises, run over each of them. Speaks through the trait only.

use std::{any::Any, sync::Arc, time::Duration};

use futures_util::TryStreamExt;
use gigamerge::{
    catalog::{
        Catalog, CatalogError, CommitOutcome, DropState, EntryFilter, LayerRule, Level,
        MergeCommit, Policy, QueueDepths, Retried,
    },
    model::{
        ClaimedMerge, DataPath, IndexEntry, Iteration, LayerName, MergePlan, PlanPart,
        QuarantineKind, Quarantined, SetAside, TableRef, WriterId,
    },
};

/// A catalog, and what must live as long as it does.
pub struct Fixture {
    pub catalog: Arc<dyn Catalog>,
    pub _keep: Box<dyn Any + Send>,
}

const DIR: &str = "date=2024-01-15/hour=14";
const LEASE: Duration = Duration::from_mins(1);
const FIRST: Iteration = Iteration(1);

/// Two levels without waiting; a plan holds at most 1,000 bytes.
pub fn policy() -> Policy {
    let level = |iteration| Level {
        iteration: Iteration(iteration),
        timeout: Duration::ZERO,
        max_size_bytes: 1000,
    };
    Policy {
        levels: vec![level(1), level(2)],
        layers: vec![LayerRule {
            name: LayerName::parse("hot").unwrap(),
            kind: "fs".to_owned(),
            url: "file:///data".to_owned(),
            ttl: None,
            next: None,
        }],
        writers: None,
    }
}

fn table() -> TableRef {
    TableRef::new("metrics", "cpu").unwrap()
}

fn path(name: &str) -> DataPath {
    DataPath::parse(&format!("{DIR}/{name}.parquet")).unwrap()
}

pub fn entry(name: &str, size_bytes: u64) -> IndexEntry {
    let mut max = serde_json::Map::new();
    max.insert("value".to_owned(), u64::MAX.into());
    IndexEntry {
        layer: LayerName::parse("hot").unwrap(),
        table: table(),
        path: path(name),
        size_bytes,
        row_count: 10,
        chunk_time_ns: 1_705_327_215_000_000_001,
        min_time_ns: 1_705_327_215_000_000_001,
        max_time_ns: 1_705_327_216_000_000_003,
        min: serde_json::Map::new(),
        max,
        writer: WriterId::default(),
        extra: serde_json::Map::new(),
    }
}

async fn add(catalog: &dyn Catalog, names: &[&str]) {
    let entries: Vec<IndexEntry> = names.iter().map(|name| entry(name, 100)).collect();
    catalog.batch(&entries, &[]).await.unwrap();
}

async fn due(catalog: &dyn Catalog, iteration: u32) -> Vec<MergePlan> {
    catalog.due_merges(Iteration(iteration), 100).await.unwrap()
}

async fn claim(catalog: &dyn Catalog, lease: Duration) -> ClaimedMerge {
    let plans = due(catalog, 1).await;
    let plan = plans.first().expect("a plan is due");
    catalog
        .claim_merge(&plan.queue, lease)
        .await
        .unwrap()
        .expect("a due plan can be claimed")
}

async fn names(catalog: &dyn Catalog) -> Vec<String> {
    catalog
        .entries(&table(), &EntryFilter::default())
        .await
        .unwrap()
        .iter()
        .map(|entry| entry.path.file_name().to_owned())
        .collect()
}

fn commit_of(claim: &ClaimedMerge, output: &str) -> MergeCommit {
    MergeCommit {
        output: Some(entry(output, 180)),
        sources: claim.plan.paths.clone(),
        set_aside: Vec::new(),
        grace: Duration::ZERO,
    }
}

fn is_lease_lost<T: std::fmt::Debug>(result: &Result<T, CatalogError>) -> bool {
    matches!(result, Err(CatalogError::LeaseLost { .. }))
}

pub mod promises {
    use super::*;

    pub async fn an_empty_catalog_answers(catalog: &dyn Catalog) {
        catalog.ping().await.unwrap();
        assert!(catalog.tables().await.unwrap().is_empty());
        assert!(names(catalog).await.is_empty());
        assert!(due(catalog, 1).await.is_empty());
        assert!(catalog.claim_drops(10, LEASE).await.unwrap().is_empty());
        assert_eq!(
            catalog.queue_depths().await.unwrap(),
            QueueDepths::default()
        );
        catalog.batch(&[], &[]).await.unwrap();
    }

    pub async fn an_added_file_is_found_unchanged(catalog: &dyn Catalog) {
        let added = entry("a.1", 100);
        catalog
            .batch(std::slice::from_ref(&added), &[])
            .await
            .unwrap();
        assert_eq!(catalog.tables().await.unwrap(), [table()]);
        let all = catalog.entries(&table(), &EntryFilter::default()).await;
        assert_eq!(all.unwrap(), std::slice::from_ref(&added));
        let found = catalog
            .resolve(&table(), &[path("b.1"), path("a.1")])
            .await
            .unwrap();
        assert_eq!(found, [None, Some(added)]);
    }

    pub async fn files_gather_in_plans_that_stay_below_the_size_limit(catalog: &dyn Catalog) {
        let files: Vec<IndexEntry> = (0..7).map(|n| entry(&format!("f{n}.1"), 300)).collect();
        catalog.batch(&files, &[]).await.unwrap();
        let plans = due(catalog, 1).await;
        let mut sizes: Vec<(usize, u64)> = plans
            .iter()
            .map(|plan| (plan.paths.len(), plan.size_bytes))
            .collect();
        sizes.sort_unstable();
        assert_eq!(sizes, [(1, 300), (3, 900), (3, 900)]);
        assert_eq!(due(catalog, 2).await, []);
        assert_eq!(catalog.due_merges(FIRST, 1).await.unwrap().len(), 1);
    }

    pub async fn a_repeated_add_replaces_the_entry_and_plans_nothing_twice(catalog: &dyn Catalog) {
        add(catalog, &["a.1"]).await;
        let mut again = entry("a.1", 100);
        again.row_count = 77;
        catalog
            .batch(&[again.clone(), again.clone()], &[])
            .await
            .unwrap();
        let plans = due(catalog, 1).await;
        assert_eq!(plans.len(), 1);
        assert_eq!(plans[0].paths, [path("a.1")]);
        let found = catalog.resolve(&table(), &[path("a.1")]).await.unwrap();
        assert_eq!(found, [Some(again)]);
    }

    pub async fn a_removed_file_waits_for_its_readers(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        catalog.batch(&[], &[entry("a.1", 100)]).await.unwrap();
        assert_eq!(names(catalog).await, ["b.1.parquet"]);
        assert!(catalog.claim_drops(10, LEASE).await.unwrap().is_empty());
        assert_eq!(catalog.queue_depths().await.unwrap().drops_idle_count, 1);
    }

    pub async fn removing_an_absent_file_changes_nothing(catalog: &dyn Catalog) {
        add(catalog, &["a.1"]).await;
        let before = catalog.queue_depths().await.unwrap();
        catalog.batch(&[], &[entry("b.1", 100)]).await.unwrap();
        assert_eq!(names(catalog).await, ["a.1.parquet"]);
        assert_eq!(catalog.tables().await.unwrap(), [table()]);
        assert_eq!(catalog.queue_depths().await.unwrap(), before);
    }

    pub async fn a_claimed_plan_is_nobody_elses(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        assert_eq!(claimed.plan.paths, [path("a.1"), path("b.1")]);
        assert_eq!(claimed.plan.attempts, 1);
        assert!(due(catalog, 1).await.is_empty());
        let second = catalog.claim_merge(&claimed.plan.queue, LEASE).await;
        assert!(second.unwrap().is_none());
        let depths = catalog.queue_depths().await.unwrap();
        assert_eq!(depths.merges_idle_count, 0);
        assert_eq!(depths.merges_processing_count, 1);
    }

    pub async fn a_file_that_comes_after_the_claim_joins_another_plan(catalog: &dyn Catalog) {
        add(catalog, &["a.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        add(catalog, &["b.1"]).await;
        let plans = due(catalog, 1).await;
        assert_eq!(plans.len(), 1);
        assert_eq!(plans[0].paths, [path("b.1")]);
        assert_eq!(claimed.plan.paths, [path("a.1")]);
    }

    pub async fn a_plan_whose_lease_ran_out_goes_to_the_next_worker(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let first = claim(catalog, Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_millis(2200)).await;
        assert_eq!(due(catalog, 1).await.len(), 1);
        let second = claim(catalog, LEASE).await;
        assert_eq!(second.plan.paths, first.plan.paths);
        assert_eq!(second.plan.attempts, 2);
        assert!(is_lease_lost(&catalog.renew_merge(&first, LEASE).await));
        assert!(is_lease_lost(
            &catalog.release_merge(&first, Duration::ZERO).await
        ));
        assert!(is_lease_lost(&catalog.fail_merge(&first, "late").await));
        let late = catalog
            .commit_merge(&first, &commit_of(&first, "x.2"))
            .await;
        assert_eq!(late.unwrap(), CommitOutcome::LeaseLost);
        assert_eq!(names(catalog).await, ["a.1.parquet", "b.1.parquet"]);
        let outcome = catalog
            .commit_merge(&second, &commit_of(&second, "y.2"))
            .await;
        assert_eq!(outcome.unwrap(), CommitOutcome::Committed);
    }

    pub async fn a_renewed_lease_keeps_the_plan(catalog: &dyn Catalog) {
        add(catalog, &["a.1"]).await;
        let mut claimed = claim(catalog, Duration::from_secs(1)).await;
        let old = claimed.clone();
        claimed.lease = catalog.renew_merge(&claimed, LEASE).await.unwrap();
        assert!(claimed.lease.expires_at_s > old.lease.expires_at_s);
        tokio::time::sleep(Duration::from_millis(2200)).await;
        assert!(due(catalog, 1).await.is_empty());
        let late = catalog.commit_merge(&old, &commit_of(&old, "x.2")).await;
        assert_eq!(late.unwrap(), CommitOutcome::LeaseLost);
        let outcome = catalog
            .commit_merge(&claimed, &commit_of(&claimed, "y.2"))
            .await;
        assert_eq!(outcome.unwrap(), CommitOutcome::Committed);
    }

    pub async fn a_commit_replaces_the_sources_by_the_output(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        catalog
            .announce_output(&claimed, &path("m.2"))
            .await
            .unwrap();
        let commit = commit_of(&claimed, "m.2");
        let outcome = catalog.commit_merge(&claimed, &commit).await.unwrap();
        assert_eq!(outcome, CommitOutcome::Committed);
        let all = catalog.entries(&table(), &EntryFilter::default()).await;
        assert_eq!(all.unwrap(), [commit.output.unwrap()]);
        assert!(due(catalog, 1).await.is_empty());
        let next = due(catalog, 2).await;
        assert_eq!(next.len(), 1);
        assert_eq!(next[0].paths, [path("m.2")]);
        let drops = catalog.claim_drops(10, LEASE).await.unwrap();
        let mut dropped: Vec<&DataPath> = drops.iter().map(|drop| &drop.item.path).collect();
        dropped.sort_unstable();
        assert_eq!(dropped, [&path("a.1"), &path("b.1")]);
        for drop in &drops {
            assert_eq!(drop.item.layer.as_str(), "hot");
            catalog.finish_drop(drop).await.unwrap();
        }
        let depths = catalog.queue_depths().await.unwrap();
        assert_eq!(depths.merges_processing_count, 0);
        assert_eq!(depths.drops_idle_count + depths.drops_processing_count, 0);
    }

    pub async fn a_repeated_commit_is_recognized(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        let commit = commit_of(&claimed, "m.2");
        for _ in 0..2 {
            let outcome = catalog.commit_merge(&claimed, &commit).await.unwrap();
            assert_eq!(outcome, CommitOutcome::Committed);
        }
        assert_eq!(names(catalog).await, ["m.2.parquet"]);
        assert_eq!(catalog.claim_drops(10, LEASE).await.unwrap().len(), 2);
    }

    pub async fn replaced_files_stay_for_the_grace_period(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        let mut commit = commit_of(&claimed, "m.2");
        commit.grace = Duration::from_secs(2);
        catalog.commit_merge(&claimed, &commit).await.unwrap();
        assert!(catalog.claim_drops(10, LEASE).await.unwrap().is_empty());
        tokio::time::sleep(Duration::from_millis(3100)).await;
        assert_eq!(catalog.claim_drops(1, LEASE).await.unwrap().len(), 1);
        assert_eq!(catalog.claim_drops(10, LEASE).await.unwrap().len(), 1);
    }

    pub async fn a_delete_is_looked_up_only_while_it_is_held(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        let commit = commit_of(&claimed, "m.2");
        catalog.commit_merge(&claimed, &commit).await.unwrap();
        let mut drops = catalog.claim_drops(10, LEASE).await.unwrap();
        let (mut kept, released) = (drops.remove(0), drops.remove(0));
        assert_eq!(
            catalog.look_up_drop(&kept).await.unwrap(),
            DropState::Unnamed
        );
        let first = kept.clone();
        kept.lease = catalog.renew_drop(&kept, LEASE).await.unwrap();
        assert!(is_lease_lost(&catalog.look_up_drop(&first).await));
        assert_eq!(
            catalog.look_up_drop(&kept).await.unwrap(),
            DropState::Unnamed
        );
        catalog.release_drop(&released, LEASE).await.unwrap();
        assert!(is_lease_lost(&catalog.look_up_drop(&released).await));
        catalog.finish_drop(&kept).await.unwrap();
        assert!(is_lease_lost(&catalog.look_up_drop(&kept).await));
    }

    pub async fn a_path_that_was_used_again_keeps_its_grace_when_it_is_merged(
        catalog: &dyn Catalog,
    ) {
        add(catalog, &["a.1", "b.1"]).await;
        let first = claim(catalog, LEASE).await;
        let mut commit = commit_of(&first, "m.2");
        commit.grace = Duration::from_secs(1);
        catalog.commit_merge(&first, &commit).await.unwrap();
        // The same names live a second time, and are merged with a longer grace.
        add(catalog, &["a.1", "b.1"]).await;
        let second = claim(catalog, LEASE).await;
        // One delete of the first lives is claimed before that merge ends, the other one after it.
        tokio::time::sleep(Duration::from_millis(2100)).await;
        let early = catalog.claim_drops(1, LEASE).await.unwrap().remove(0);
        assert!(matches!(
            catalog.look_up_drop(&early).await,
            Ok(DropState::Named(_))
        ));
        let mut commit = commit_of(&second, "n.2");
        commit.grace = Duration::from_secs(5);
        let committed_at = std::time::Instant::now();
        catalog.commit_merge(&second, &commit).await.unwrap();
        let wait = |state: DropState| match state {
            DropState::KeptFor(time) => time,
            other => panic!("{other:?}"),
        };
        let left = wait(catalog.look_up_drop(&early).await.unwrap());
        assert!(
            left > Duration::from_secs(3) && left <= Duration::from_secs(6),
            "{left:?}"
        );
        catalog.release_drop(&early, left).await.unwrap();
        for late in catalog.claim_drops(10, LEASE).await.unwrap() {
            wait(catalog.look_up_drop(&late).await.unwrap());
            catalog.release_drop(&late, left).await.unwrap();
        }
        // Then all of them may go.
        tokio::time::sleep(Duration::from_millis(7500).saturating_sub(committed_at.elapsed()))
            .await;
        let mut ended = std::collections::BTreeSet::new();
        for drop in catalog.claim_drops(10, LEASE).await.unwrap() {
            let looked = catalog.look_up_drop(&drop).await;
            // Two deletes of one path may end together.
            if !is_lease_lost(&looked) {
                assert_eq!(looked.unwrap(), DropState::Unnamed);
                catalog.finish_drop(&drop).await.unwrap();
            }
            ended.insert(drop.item.path);
        }
        assert_eq!(ended.len(), 2);
    }

    pub async fn a_commit_whose_source_is_gone_changes_nothing(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        catalog.batch(&[], &[entry("b.1", 100)]).await.unwrap();
        let outcome = catalog
            .commit_merge(&claimed, &commit_of(&claimed, "m.2"))
            .await
            .unwrap();
        let gone = path("b.1").as_str().to_owned();
        assert_eq!(outcome, CommitOutcome::SourceGone(gone));
        assert_eq!(names(catalog).await, ["a.1.parquet"]);
        let mut rest = commit_of(&claimed, "m.2");
        rest.sources = vec![path("a.1")];
        let outcome = catalog.commit_merge(&claimed, &rest).await.unwrap();
        assert_eq!(outcome, CommitOutcome::Committed);
        assert_eq!(names(catalog).await, ["m.2.parquet"]);
    }

    pub async fn a_commit_whose_output_exists_changes_nothing(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "m.2"]).await;
        let claimed = claim(catalog, LEASE).await;
        let outcome = catalog
            .commit_merge(&claimed, &commit_of(&claimed, "m.2"))
            .await
            .unwrap();
        assert_eq!(outcome, CommitOutcome::OutputExists);
        assert_eq!(names(catalog).await, ["a.1.parquet", "m.2.parquet"]);
        let depths = catalog.queue_depths().await.unwrap();
        assert_eq!(depths.merges_processing_count, 1);
    }

    pub async fn a_commit_without_output_ends_the_plan(catalog: &dyn Catalog) {
        add(catalog, &["a.1"]).await;
        let claimed = claim(catalog, Duration::from_secs(1)).await;
        let commit = MergeCommit {
            output: None,
            sources: Vec::new(),
            set_aside: vec![SetAside {
                path: path("a.1"),
                reason: "the footer says \"no\"".to_owned(),
            }],
            grace: Duration::ZERO,
        };
        let outcome = catalog.commit_merge(&claimed, &commit).await.unwrap();
        assert_eq!(outcome, CommitOutcome::Committed);
        assert_eq!(names(catalog).await, ["a.1.parquet"]);
        tokio::time::sleep(Duration::from_millis(2200)).await;
        assert!(due(catalog, 1).await.is_empty());
        assert!(catalog.claim_drops(10, LEASE).await.unwrap().is_empty());
    }

    pub async fn a_plan_given_back_is_due_again_and_remembers_its_attempts(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let first = claim(catalog, LEASE).await;
        catalog.release_merge(&first, Duration::ZERO).await.unwrap();
        assert!(is_lease_lost(&catalog.renew_merge(&first, LEASE).await));
        let second = claim(catalog, LEASE).await;
        assert_eq!(second.plan.paths, first.plan.paths);
        assert_eq!(second.plan.attempts, 2);
        catalog
            .release_merge(&second, Duration::from_secs(2))
            .await
            .unwrap();
        assert!(due(catalog, 1).await.is_empty());
        tokio::time::sleep(Duration::from_millis(3100)).await;
        assert_eq!(claim(catalog, LEASE).await.plan.attempts, 3);
    }

    pub async fn how_an_attempt_ended_is_remembered(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let first = claim(catalog, LEASE).await;
        assert_eq!((first.plan.deaths(), first.plan.runs_alone()), (0, false));
        catalog.release_merge(&first, Duration::ZERO).await.unwrap();
        let second = claim(catalog, LEASE).await;
        catalog.retry_merge(&second, Duration::ZERO).await.unwrap();
        let third = claim(catalog, Duration::from_secs(1)).await;
        let plan = &third.plan;
        assert_eq!((plan.attempts, plan.forgiven, plan.failed), (3, 1, 1));
        assert_eq!((plan.counted_attempts(), plan.deaths()), (2, 0));
        // Nobody says what became of the third.
        tokio::time::sleep(Duration::from_millis(2200)).await;
        let fourth = claim(catalog, LEASE).await;
        assert_eq!((fourth.plan.deaths(), fourth.plan.runs_alone()), (1, true));
        assert_eq!(fourth.plan.paths, first.plan.paths);
    }

    pub async fn a_worker_that_lost_its_lease_and_lives_can_say_so(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let first = claim(catalog, Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_millis(2200)).await;
        let second = claim(catalog, LEASE).await;
        assert_eq!(second.plan.deaths(), 1);
        let late = catalog.release_merge(&first, Duration::ZERO).await;
        assert!(is_lease_lost(&late));
        // The holder keeps its claim.
        let mut second = second;
        second.lease = catalog.renew_merge(&second, LEASE).await.unwrap();
        catalog
            .release_merge(&second, Duration::ZERO)
            .await
            .unwrap();
        let third = claim(catalog, LEASE).await;
        assert_eq!((third.plan.attempts, third.plan.forgiven), (3, 2));
        assert_eq!(third.plan.deaths(), 0);
    }

    pub async fn a_split_plan_becomes_suspects_with_no_attempts(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1", "c.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        let parts: Vec<PlanPart> = [&["a.1", "b.1"][..], &["c.1"]]
            .into_iter()
            .map(|names| PlanPart {
                paths: names.iter().map(|name| path(name)).collect(),
                size_bytes: 100 * names.len() as u64,
            })
            .collect();
        catalog.split_merge(&claimed, &parts).await.unwrap();
        let again = catalog.split_merge(&claimed, &parts).await;
        assert!(is_lease_lost(&again));
        add(catalog, &["d.1"]).await;
        let halves = [claim(catalog, LEASE).await, claim(catalog, LEASE).await];
        for (half, part) in halves.iter().zip(&parts) {
            assert_eq!(half.plan.paths, part.paths);
            assert_eq!(half.plan.size_bytes, part.size_bytes);
            assert!(half.plan.is_suspect && half.plan.runs_alone());
            assert_eq!((half.plan.attempts, half.plan.deaths()), (1, 0));
            assert_ne!(half.plan.id, claimed.plan.id);
        }
        assert_ne!(halves[0].plan.id, halves[1].plan.id);
        // A new file joins neither of them.
        assert_eq!(claim(catalog, LEASE).await.plan.paths, [path("d.1")]);
        let outcome = catalog
            .commit_merge(&halves[0], &commit_of(&halves[0], "m.2"))
            .await
            .unwrap();
        assert_eq!(outcome, CommitOutcome::Committed);
    }

    async fn in_quarantine(catalog: &dyn Catalog) -> Vec<Quarantined> {
        catalog.quarantine(Some(&table())).await.unwrap()
    }

    async fn set_aside(catalog: &dyn Catalog, name: &str) {
        add(catalog, &[name]).await;
        let claimed = claim(catalog, LEASE).await;
        let commit = MergeCommit {
            output: None,
            sources: Vec::new(),
            set_aside: vec![SetAside {
                path: path(name),
                reason: "the footer says \"no\"".to_owned(),
            }],
            grace: Duration::ZERO,
        };
        catalog.commit_merge(&claimed, &commit).await.unwrap();
    }

    pub async fn a_file_set_aside_is_listed_and_can_be_retried(catalog: &dyn Catalog) {
        set_aside(catalog, "a.1").await;
        let found = in_quarantine(catalog).await;
        assert_eq!(found, catalog.quarantine(None).await.unwrap());
        assert_eq!(found.len(), 1);
        let bad = &found[0];
        assert_eq!(bad.kind, QuarantineKind::File);
        assert_eq!(bad.id, path("a.1").as_str());
        assert_eq!(bad.paths, [path("a.1")]);
        assert_eq!(bad.reason, "the footer says \"no\"");
        assert!(bad.at_s > 1_700_000_000);
        let other = TableRef::new("metrics", "other").unwrap();
        assert!(catalog.quarantine(Some(&other)).await.unwrap().is_empty());
        let retried = catalog.retry_quarantined(bad).await.unwrap();
        assert_eq!(retried, Retried::Planned);
        assert!(in_quarantine(catalog).await.is_empty());
        let again = catalog.retry_quarantined(bad).await.unwrap();
        assert_eq!(again, Retried::Absent);
        let claimed = claim(catalog, LEASE).await;
        assert_eq!(claimed.plan.paths, [path("a.1")]);
        assert!(claimed.plan.runs_alone());
        assert!(due(catalog, 1).await.is_empty());
    }

    pub async fn a_file_in_quarantine_can_be_dropped_after_its_grace(catalog: &dyn Catalog) {
        set_aside(catalog, "a.1").await;
        add(catalog, &["b.1"]).await;
        let bad = in_quarantine(catalog).await.remove(0);
        let grace = Duration::from_secs(2);
        let dropped = catalog.drop_quarantined(&bad, grace).await.unwrap();
        assert_eq!(dropped, Some(1));
        assert_eq!(names(catalog).await, ["b.1.parquet"]);
        assert!(in_quarantine(catalog).await.is_empty());
        let folders = catalog.folders(&table()).await.unwrap();
        assert_eq!(folders[0].files_count, 1);
        assert!(catalog.claim_drops(10, LEASE).await.unwrap().is_empty());
        tokio::time::sleep(Duration::from_millis(3200)).await;
        let drops = catalog.claim_drops(10, LEASE).await.unwrap();
        assert_eq!(drops.len(), 1);
        assert_eq!(drops[0].item.path, path("a.1"));
        let again = catalog.drop_quarantined(&bad, grace).await.unwrap();
        assert_eq!(again, None);
    }

    pub async fn a_plan_given_up_is_listed_and_comes_back_whole(catalog: &dyn Catalog) {
        add(catalog, &["a.1", "b.1"]).await;
        let first = claim(catalog, Duration::from_secs(1)).await;
        tokio::time::sleep(Duration::from_millis(2200)).await;
        let claimed = claim(catalog, LEASE).await;
        catalog.fail_merge(&claimed, "types differ").await.unwrap();
        let found = in_quarantine(catalog).await;
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].kind, QuarantineKind::Plan);
        assert_eq!(found[0].reason, "types differ");
        assert_eq!(found[0].paths, first.plan.paths);
        let retried = catalog.retry_quarantined(&found[0]).await.unwrap();
        assert_eq!(retried, Retried::Planned);
        assert!(in_quarantine(catalog).await.is_empty());
        let depths = catalog.queue_depths().await.unwrap();
        assert_eq!((depths.failed_count, depths.merges_idle_count), (0, 1));
        let again = claim(catalog, LEASE).await;
        assert_eq!(again.plan.paths, first.plan.paths);
        assert_eq!(again.plan.deaths(), 0);
        assert_eq!(again.plan.counted_attempts(), 1);
        assert!(!again.plan.runs_alone());
        catalog.fail_merge(&again, "types differ").await.unwrap();
        let found = in_quarantine(catalog).await;
        let dropped = catalog.drop_quarantined(&found[0], Duration::ZERO).await;
        assert_eq!(dropped.unwrap(), Some(2));
        assert!(names(catalog).await.is_empty());
        assert!(in_quarantine(catalog).await.is_empty());
    }

    pub async fn a_plan_given_up_leaves_its_files_readable(catalog: &dyn Catalog) {
        add(catalog, &["a.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        catalog.fail_merge(&claimed, "five attempts").await.unwrap();
        assert_eq!(names(catalog).await, ["a.1.parquet"]);
        assert!(due(catalog, 1).await.is_empty());
        assert!(is_lease_lost(&catalog.renew_merge(&claimed, LEASE).await));
        let depths = catalog.queue_depths().await.unwrap();
        assert_eq!(depths.failed_count, 1);
        assert_eq!(depths.merges_processing_count, 0);
    }

    pub async fn a_delete_given_back_is_due_again(catalog: &dyn Catalog) {
        add(catalog, &["a.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        let commit = commit_of(&claimed, "m.2");
        catalog.commit_merge(&claimed, &commit).await.unwrap();
        let drops = catalog.claim_drops(10, LEASE).await.unwrap();
        assert_eq!(drops.len(), 1);
        assert!(catalog.claim_drops(10, LEASE).await.unwrap().is_empty());
        catalog
            .release_drop(&drops[0], Duration::ZERO)
            .await
            .unwrap();
        let again = catalog.claim_drops(10, LEASE).await.unwrap();
        assert_eq!(again.len(), 1);
        assert_eq!(again[0].item.path, path("a.1"));
        catalog.finish_drop(&again[0]).await.unwrap();
        assert!(catalog.claim_drops(10, LEASE).await.unwrap().is_empty());
    }

    pub async fn entries_are_found_by_time_folder_and_iteration(catalog: &dyn Catalog) {
        let mut late = entry("late.2", 100);
        late.min_time_ns += 10_000_000_000;
        late.max_time_ns += 10_000_000_000;
        let early = entry("early.1", 100);
        catalog
            .batch(&[late.clone(), early.clone()], &[])
            .await
            .unwrap();
        let found = |filter: EntryFilter| async move {
            let entries = catalog.entries(&table(), &filter).await.unwrap();
            entries
                .iter()
                .map(|entry| entry.path.file_name().to_owned())
                .collect::<Vec<_>>()
        };
        let after = |after_ns| EntryFilter {
            after_ns: Some(after_ns),
            ..EntryFilter::default()
        };
        let before = |before_ns| EntryFilter {
            before_ns: Some(before_ns),
            ..EntryFilter::default()
        };
        let folder = |folder: &str| EntryFilter {
            folder: Some(folder.to_owned()),
            ..EntryFilter::default()
        };
        let both = ["early.1.parquet", "late.2.parquet"];
        assert_eq!(found(after(early.max_time_ns)).await, both);
        assert_eq!(found(after(early.max_time_ns + 1)).await, both[1..]);
        assert_eq!(found(before(late.min_time_ns)).await, both);
        assert_eq!(found(before(late.min_time_ns - 1)).await, both[..1]);
        assert_eq!(found(folder(DIR)).await, both);
        assert_eq!(found(folder("date=2024-01-15/hour=1")).await, [""; 0]);
        let second = EntryFilter {
            iteration: Some(Iteration(2)),
            ..EntryFilter::default()
        };
        assert_eq!(found(second).await, both[1..]);
    }

    pub async fn final_files_are_not_planned(catalog: &dyn Catalog) {
        add(catalog, &["a.3"]).await;
        assert!(due(catalog, 3).await.is_empty());
        assert_eq!(
            catalog.queue_depths().await.unwrap(),
            QueueDepths::default()
        );
    }

    pub async fn a_new_policy_holds_for_later_calls(catalog: &dyn Catalog) {
        let mut changed = policy();
        changed.levels.clear();
        catalog.set_policy(Arc::new(changed));
        add(catalog, &["a.1"]).await;
        assert!(due(catalog, 1).await.is_empty());
        catalog.set_policy(Arc::new(policy()));
        add(catalog, &["b.1"]).await;
        let plans = due(catalog, 1).await;
        assert!(plans.iter().any(|plan| plan.paths.contains(&path("b.1"))));
    }

    pub async fn only_the_writers_that_are_served_get_work_done(catalog: &dyn Catalog) {
        let mut other = entry("a.1", 100);
        other.writer = WriterId::parse("w1").unwrap();
        catalog
            .batch(&[other, entry("b.1", 100)], &[])
            .await
            .unwrap();
        let mut limited = policy();
        limited.writers = Some(vec![WriterId::parse("w1").unwrap()]);
        catalog.set_policy(Arc::new(limited));
        let plans = due(catalog, 1).await;
        assert_eq!(plans.len(), 1);
        assert_eq!(plans[0].paths, [path("a.1")]);
        assert_eq!(plans[0].queue.writer.as_str(), "w1");
    }

    pub async fn a_file_is_found_by_its_layer_and_path(catalog: &dyn Catalog) {
        add(catalog, &["a.1"]).await;
        let get = async |layer: &str, name: &str| {
            let layer = LayerName::parse(layer).unwrap();
            catalog.get(&table(), &layer, &path(name)).await.unwrap()
        };
        assert_eq!(get("hot", "a.1").await, Some(entry("a.1", 100)));
        assert_eq!(get("", "a.1").await, Some(entry("a.1", 100)));
        assert_eq!(get("cold", "a.1").await, None);
        assert_eq!(get("hot", "b.1").await, None);
    }

    pub async fn databases_and_folders_are_listed(catalog: &dyn Catalog) {
        let mut other = entry("c.1", 100);
        other.table = TableRef::new("logs", "web").unwrap();
        let mut deeper = entry("d.1", 100);
        deeper.path = DataPath::parse("date=2024-01-16/x/y/d.1.parquet").unwrap();
        let added = [entry("a.1", 100), entry("b.1", 100), other, deeper];
        catalog.batch(&added, &[]).await.unwrap();
        assert_eq!(catalog.databases().await.unwrap(), ["logs", "metrics"]);
        let folders = catalog.folders(&table()).await.unwrap();
        let shown: Vec<_> = folders
            .iter()
            .map(|folder| (folder.dir.as_str(), folder.files_count))
            .collect();
        assert_eq!(shown, [(DIR, 2), ("date=2024-01-16/x/y", 1)]);
        catalog.batch(&[], &added[..2]).await.unwrap();
        assert_eq!(catalog.folders(&table()).await.unwrap().len(), 1);
    }

    pub async fn a_query_gives_each_file_once_as_it_comes(catalog: &dyn Catalog) {
        let added: Vec<IndexEntry> = (0..3000)
            .map(|number| {
                let mut entry = entry("a.1", 100);
                let file = format!("day={}/hour={}/{number}.1.parquet", number % 3, number % 5);
                entry.path = DataPath::parse(&file).unwrap();
                entry.min_time_ns = number;
                entry.max_time_ns = number + 9;
                entry
            })
            .collect();
        catalog.batch(&added, &[]).await.unwrap();
        let filter = EntryFilter {
            after_ns: Some(1000),
            before_ns: Some(2000),
            folder: Some("day=1".to_owned()),
            iteration: None,
        };
        let mut found = Vec::new();
        let mut stream = catalog.query(&table(), &filter);
        while let Some(entry) = stream.try_next().await.unwrap() {
            found.push(entry.min_time_ns);
        }
        found.sort_unstable();
        // The first file ends exactly at the edge, the last one starts exactly there.
        let expected: Vec<i64> = (991..=2000).filter(|number| number % 3 == 1).collect();
        assert_eq!(found, expected);
        let all: Vec<IndexEntry> = catalog
            .query(&table(), &EntryFilter::default())
            .try_collect()
            .await
            .unwrap();
        assert_eq!(all.len(), 3000);
    }

    pub async fn one_step_registers_everything_or_nothing(catalog: &dyn Catalog) {
        let entries = [entry("a.1", 100), entry("b.1", 100)];
        catalog.batch_atomic(&entries, &[]).await.unwrap();
        assert_eq!(names(catalog).await, ["a.1.parquet", "b.1.parquet"]);
        let mut unknown = entry("d.1", 100);
        unknown.layer = LayerName::parse("nowhere").unwrap();
        let result = catalog
            .batch_atomic(&[entry("c.1", 100), unknown], &entries)
            .await;
        assert!(
            matches!(result, Err(CatalogError::Refused { .. })),
            "{result:?}"
        );
        assert_eq!(names(catalog).await, ["a.1.parquet", "b.1.parquet"]);
    }

    pub async fn a_delete_can_be_prolonged(catalog: &dyn Catalog) {
        add(catalog, &["a.1"]).await;
        let claimed = claim(catalog, LEASE).await;
        let outcome = catalog
            .commit_merge(&claimed, &commit_of(&claimed, "o.2"))
            .await;
        assert_eq!(outcome.unwrap(), CommitOutcome::Committed);
        let mut drops = catalog.claim_drops(10, LEASE).await.unwrap();
        let mut drop = drops.pop().unwrap();
        let first = drop.lease.token.clone();
        drop.lease = catalog.renew_drop(&drop, LEASE).await.unwrap();
        assert_ne!(drop.lease.token, first);
        catalog.finish_drop(&drop).await.unwrap();
        assert!(is_lease_lost(&catalog.renew_drop(&drop, LEASE).await));
        assert!(catalog.claim_moves(10, LEASE).await.unwrap().is_empty());
    }

    pub async fn many_files_are_registered_in_one_call(catalog: &dyn Catalog) {
        let files: Vec<IndexEntry> = (0..4500).map(|n| entry(&format!("f{n}.1"), 1)).collect();
        catalog.batch(&files, &[]).await.unwrap();
        assert_eq!(names(catalog).await.len(), 4500);
        let plans = due(catalog, 1).await;
        let planned: usize = plans.iter().map(|plan| plan.paths.len()).sum();
        assert_eq!(planned, 4500);
        catalog.batch(&[], &files).await.unwrap();
        assert!(names(catalog).await.is_empty());
        assert!(catalog.tables().await.unwrap().is_empty());
    }
}

/// Makes a test of each promise for one kind of catalog. `$make` gives a fresh [`Fixture`].
macro_rules! keeps_its_promises {
    ($make:path: $($promise:ident)*) => {$(
        #[tokio::test]
        async fn $promise() {
            let fixture = $make().await;
            super::promises::$promise(fixture.catalog.as_ref()).await;
        }
    )*};
    ($make:path) => {
        keeps_its_promises! { $make:
            an_empty_catalog_answers
            an_added_file_is_found_unchanged
            files_gather_in_plans_that_stay_below_the_size_limit
            a_repeated_add_replaces_the_entry_and_plans_nothing_twice
            a_removed_file_waits_for_its_readers
            removing_an_absent_file_changes_nothing
            a_claimed_plan_is_nobody_elses
            a_file_that_comes_after_the_claim_joins_another_plan
            a_plan_whose_lease_ran_out_goes_to_the_next_worker
            a_renewed_lease_keeps_the_plan
            a_commit_replaces_the_sources_by_the_output
            a_repeated_commit_is_recognized
            replaced_files_stay_for_the_grace_period
            a_delete_is_looked_up_only_while_it_is_held
            a_path_that_was_used_again_keeps_its_grace_when_it_is_merged
            a_commit_whose_source_is_gone_changes_nothing
            a_commit_whose_output_exists_changes_nothing
            a_commit_without_output_ends_the_plan
            a_plan_given_back_is_due_again_and_remembers_its_attempts
            a_plan_given_up_leaves_its_files_readable
            how_an_attempt_ended_is_remembered
            a_worker_that_lost_its_lease_and_lives_can_say_so
            a_split_plan_becomes_suspects_with_no_attempts
            a_file_set_aside_is_listed_and_can_be_retried
            a_file_in_quarantine_can_be_dropped_after_its_grace
            a_plan_given_up_is_listed_and_comes_back_whole
            a_delete_given_back_is_due_again
            entries_are_found_by_time_folder_and_iteration
            final_files_are_not_planned
            a_new_policy_holds_for_later_calls
            only_the_writers_that_are_served_get_work_done
            many_files_are_registered_in_one_call
            a_file_is_found_by_its_layer_and_path
            databases_and_folders_are_listed
            a_query_gives_each_file_once_as_it_comes
            one_step_registers_everything_or_nothing
            a_delete_can_be_prolonged
        }
    };
}

mod redis {
    use std::sync::Arc;

    use gigamerge::catalog::redis::RedisCatalog;

    use crate::support::redis_server::RedisServer;

    async fn fixture() -> super::Fixture {
        let server = RedisServer::start();
        let catalog = RedisCatalog::connect(&server.config(), Arc::new(super::policy())).unwrap();
        super::Fixture {
            catalog: Arc::new(catalog),
            _keep: Box::new(server),
        }
    }

    keeps_its_promises!(fixture);
}

mod embedded {
    use std::{path::Path, sync::Arc};

    use gigamerge::{
        catalog::json::JsonCatalog,
        model::{LayerName, TableRef},
    };

    async fn fixture() -> super::Fixture {
        let folder = tempfile::tempdir().unwrap();
        let layers = vec![(LayerName::parse("hot").unwrap(), folder.path().to_owned())];
        // No promise of the suite needs a file to be found.
        let probe = Arc::new(|_: &TableRef, file: &Path| {
            Err(format!("{} is not expected", file.display()))
        });
        let catalog = JsonCatalog::open(layers, Arc::new(super::policy()), probe)
            .await
            .unwrap();
        super::Fixture {
            catalog: Arc::new(catalog),
            _keep: Box::new(folder),
        }
    }

    keeps_its_promises!(fixture);
}
