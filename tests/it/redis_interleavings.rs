//! Random interleavings of writers, workers of ours and compactors that follow the original
//! protocol, against one Redis; after them the whole keyspace must add up.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use gigamerge::{
    catalog::{
        Catalog, CommitOutcome, EntryFilter, LayerRule, Level, MergeCommit, Policy,
        redis::{RedisCatalog, scripts},
    },
    model::{
        ClaimedDrop, ClaimedMerge, DataPath, IndexEntry, Iteration, LayerName, PartitionDir,
        SetAside, TableRef, WriterId,
    },
};
use redis::Connection;
use serde_json::Value;

use crate::support::redis_server::RedisServer;

const STEPS: usize = 3000;
/// Steps between two looks at the whole keyspace.
const CHECK_EVERY: usize = 50;
const FINAL_ITERATION: u32 = 3;
const LEASE: Duration = Duration::from_hours(1);

fn policy() -> Policy {
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

struct World<'a> {
    redis: &'a mut Connection,
    catalog: RedisCatalog,
    random: fastrand::Rng,
    table: TableRef,
    files_made: usize,
    /// Rows in the index, by the model.
    rows_indexed: u64,
    claims: Vec<ClaimedMerge>,
    drops: Vec<ClaimedDrop>,
    dropped: BTreeSet<DataPath>,
    /// Items that old compactors hold: queue and text.
    old_claims: Vec<([String; 6], String)>,
    refused_commits: usize,
    commits: usize,
}

impl World<'_> {
    fn fresh_entry(&mut self, dir: &PartitionDir, iteration: u32, row_count: u64) -> IndexEntry {
        self.files_made += 1;
        let stem = format!("f{:05}", self.files_made);
        IndexEntry {
            layer: LayerName::parse("hot").unwrap(),
            table: self.table.clone(),
            path: dir.file(&stem, Iteration(iteration)).unwrap(),
            size_bytes: self.random.u64(1..400),
            row_count,
            chunk_time_ns: 1,
            min_time_ns: 1,
            max_time_ns: 2,
            min: serde_json::Map::new(),
            max: serde_json::Map::new(),
            writer: WriterId::default(),
            extra: serde_json::Map::new(),
        }
    }

    fn random_dir(&mut self) -> PartitionDir {
        PartitionDir::parse(&format!("date=2024-01-15/hour={}", self.random.u8(0..3))).unwrap()
    }

    async fn entries(&self) -> Vec<IndexEntry> {
        let everything = EntryFilter::default();
        self.catalog
            .entries(&self.table, &everything)
            .await
            .unwrap()
    }

    async fn random_entry(&mut self) -> Option<IndexEntry> {
        let entries = self.entries().await;
        self.random.choice(entries.iter()).cloned()
    }

    fn call(&mut self, name: &str, keys: &[String], arguments: &[String]) -> redis::Value {
        let script = scripts::all()
            .into_iter()
            .find(|script| script.name == name)
            .unwrap();
        redis::cmd("EVAL")
            .arg(script.text)
            .arg(keys.len())
            .arg(keys)
            .arg(arguments)
            .query(self.redis)
            .unwrap()
    }

    async fn step(&mut self) {
        match self.random.u8(0..100) {
            0..25 => self.add_files().await,
            25..30 => self.add_again().await,
            30..36 => self.delete().await,
            36..60 => self.claim().await,
            60..80 => self.finish_merge().await,
            80..84 => self.take_over(),
            84..90 => self.old_claim(),
            90..94 => self.old_finish().await,
            94..98 => self.claim_drops().await,
            _ => self.finish_drops().await,
        }
    }

    async fn add_files(&mut self) {
        let dir = self.random_dir();
        let files: Vec<IndexEntry> = (0..self.random.usize(1..6))
            .map(|_| {
                let rows = self.random.u64(1..100);
                self.fresh_entry(&dir, 1, rows)
            })
            .collect();
        self.rows_indexed += files.iter().map(|file| file.row_count).sum::<u64>();
        self.catalog.batch(&files, &[]).await.unwrap();
    }

    async fn add_again(&mut self) {
        if let Some(entry) = self.random_entry().await {
            self.catalog.batch(&[entry], &[]).await.unwrap();
        }
    }

    async fn delete(&mut self) {
        if let Some(entry) = self.random_entry().await {
            self.rows_indexed -= entry.row_count;
            let twice = [entry.clone(), entry];
            self.catalog.batch(&[], &twice).await.unwrap();
        }
    }

    async fn claim(&mut self) {
        let iteration = Iteration(self.random.u32(1..FINAL_ITERATION));
        let due = self.catalog.due_merges(iteration, 20).await.unwrap();
        if let Some(plan) = self.random.choice(due.iter()) {
            let claim = self.catalog.claim_merge(&plan.queue, LEASE).await;
            self.claims.extend(claim.unwrap());
        }
    }

    async fn finish_merge(&mut self) {
        if self.claims.is_empty() {
            return;
        }
        let place = self.random.usize(0..self.claims.len());
        let claim = self.claims.swap_remove(place);
        match self.random.u8(0..12) {
            0 => drop(self.catalog.release_merge(&claim, Duration::ZERO).await),
            1 => drop(self.catalog.fail_merge(&claim, "a reason").await),
            2 => {
                if let Ok(lease) = self.catalog.renew_merge(&claim, LEASE).await {
                    let plan = claim.plan;
                    self.claims.push(ClaimedMerge { plan, lease });
                }
            }
            _ => self.commit(claim).await,
        }
    }

    /// As the worker does: resolve, perhaps set one aside, commit, perhaps twice.
    async fn commit(&mut self, claim: ClaimedMerge) {
        let paths = claim.plan.paths.clone();
        let found = self.catalog.resolve(&self.table, &paths).await.unwrap();
        let mut inputs: Vec<IndexEntry> = found.into_iter().flatten().collect();
        let mut set_aside = Vec::new();
        if self.random.u8(0..8) == 0
            && let Some(bad) = inputs.pop()
        {
            set_aside.push(SetAside {
                path: bad.path,
                reason: "unreadable".to_owned(),
            });
        }
        if self.random.u8(0..8) == 0 {
            self.delete().await;
        }
        let rows = inputs.iter().map(|entry| entry.row_count).sum();
        let queue = claim.plan.queue.clone();
        let output = (!inputs.is_empty())
            .then(|| self.fresh_entry(&queue.dir, queue.iteration.next().0, rows));
        let commit = MergeCommit {
            output,
            sources: inputs.iter().map(|entry| entry.path.clone()).collect(),
            set_aside,
            grace: Duration::ZERO,
        };
        let outcome = self.catalog.commit_merge(&claim, &commit).await.unwrap();
        if outcome == CommitOutcome::Committed {
            self.commits += 1;
            if commit.output.is_some() && self.random.bool() {
                let again = self.catalog.commit_merge(&claim, &commit).await.unwrap();
                assert_eq!(again, CommitOutcome::Committed);
            }
        } else {
            self.refused_commits += 1;
            // Only if it is still ours.
            drop(self.catalog.release_merge(&claim, Duration::ZERO).await);
        }
    }

    /// Time passes for one claimed plan: its lease is over.
    fn take_over(&mut self) {
        let lists: Vec<String> = redis::cmd("KEYS")
            .arg("merge:*:processing")
            .query(self.redis)
            .unwrap();
        let Some(list) = self.random.choice(lists.iter()) else {
            return;
        };
        let items: Vec<String> = redis::cmd("LRANGE")
            .arg(list)
            .arg(0)
            .arg(-1)
            .query(self.redis)
            .unwrap();
        // What an old compactor holds stays valid here: it could not know that it lost it.
        let held = |text: &String| self.old_claims.iter().any(|(_, old)| old == text);
        let Some(place) = items.iter().position(|text| !held(text)) else {
            return;
        };
        let mut item: Value = serde_json::from_str(&items[place]).unwrap();
        item["time_s"] = 1.into();
        redis::cmd("LSET")
            .arg(list)
            .arg(place)
            .arg(item.to_string())
            .exec(self.redis)
            .unwrap();
    }

    fn old_claim(&mut self) {
        let dir = self.random_dir();
        let iteration = self.random.u32(1..FINAL_ITERATION);
        let keys = ["merge", "d", "t", &format!("{iteration}:{dir}"), "hot", ""].map(str::to_owned);
        if let redis::Value::BulkString(text) = self.call("get_merge_plan", &keys, &[])
            && !text.is_empty()
        {
            self.old_claims
                .push((keys, String::from_utf8(text).unwrap()));
        }
    }

    /// An old compactor adds its output, deletes its sources, then ends the plan by its id.
    async fn old_finish(&mut self) {
        let Some((keys, text)) = self.old_claims.pop() else {
            return;
        };
        let item: Value = serde_json::from_str(&text).unwrap();
        let paths: Vec<DataPath> = item["paths"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|path| DataPath::parse(path.as_str().unwrap()).unwrap())
            .collect();
        let found = self.catalog.resolve(&self.table, &paths).await.unwrap();
        let inputs: Vec<IndexEntry> = found.into_iter().flatten().collect();
        if let Some(first) = inputs.first() {
            let dir = first.path.dir();
            let iteration = first.path.iteration().next().0;
            let rows = inputs.iter().map(|entry| entry.row_count).sum();
            let output = self.fresh_entry(&dir, iteration, rows);
            self.catalog.batch(&[output], &inputs).await.unwrap();
        }
        let [_, database, table, suffix, layer, writer] = keys;
        let id = item["id"].as_str().unwrap().to_owned();
        self.call(
            "end_merge",
            &[database, table, suffix, layer, writer, id],
            &[],
        );
    }

    async fn claim_drops(&mut self) {
        let claimed = self.catalog.claim_drops(5, LEASE).await.unwrap();
        self.drops.extend(claimed);
    }

    async fn finish_drops(&mut self) {
        for drop in std::mem::take(&mut self.drops) {
            if self.random.u8(0..5) == 0 {
                let delay = Duration::ZERO;
                self.catalog.release_drop(&drop, delay).await.unwrap();
            } else {
                self.catalog.finish_drop(&drop).await.unwrap();
                let is_new = self.dropped.insert(drop.item.path.clone());
                assert!(is_new, "{} is dropped twice", drop.item.path);
            }
        }
    }

    fn lists(&mut self, pattern: &str) -> Vec<Value> {
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query(self.redis).unwrap();
        let mut items = Vec::new();
        for key in keys {
            let texts: Vec<String> = redis::cmd("LRANGE")
                .arg(key)
                .arg(0)
                .arg(-1)
                .query(self.redis)
                .unwrap();
            items.extend(
                texts
                    .iter()
                    .map(|text| serde_json::from_str::<Value>(text).unwrap()),
            );
        }
        items
    }

    async fn check(&mut self) {
        let entries = self.entries().await;
        let rows: u64 = entries.iter().map(|entry| entry.row_count).sum();
        assert_eq!(rows, self.rows_indexed, "rows were lost or doubled");

        let mut counts: BTreeMap<String, u64> = BTreeMap::new();
        for entry in &entries {
            *counts.entry(entry.path.dir().to_string()).or_default() += 1;
        }
        let folders: BTreeMap<String, u64> = redis::cmd("HGETALL")
            .arg("folders:d:t")
            .query(self.redis)
            .unwrap();
        assert_eq!(folders, counts, "folder counts are wrong");

        let mut planned: BTreeMap<String, u32> = BTreeMap::new();
        let live = self.lists("merge:*:idle").into_iter();
        let running = self.lists("merge:*:processing").into_iter();
        let failed = self
            .lists("merge:*:failed")
            .into_iter()
            .map(|failed| serde_json::from_str::<Value>(failed["item"].as_str().unwrap()).unwrap());
        for plan in live.chain(running).chain(failed) {
            for path in plan["paths"].as_array().into_iter().flatten() {
                *planned
                    .entry(path.as_str().unwrap().to_owned())
                    .or_default() += 1;
            }
        }
        let aside: BTreeMap<String, String> = redis::cmd("HGETALL")
            .arg("quarantine:d:t")
            .query(self.redis)
            .unwrap();
        for path in aside.keys() {
            *planned.entry(path.clone()).or_default() += 1;
        }
        for entry in &entries {
            let wanted = u32::from(entry.path.iteration().0 < FINAL_ITERATION);
            let found = planned.get(entry.path.as_str()).copied().unwrap_or(0);
            assert_eq!(found, wanted, "{} is in {found} plans", entry.path);
        }

        let mut waiting = BTreeSet::new();
        for item in self.lists("drop:*") {
            let path = DataPath::parse(item["path"].as_str().unwrap()).unwrap();
            assert!(!self.dropped.contains(&path), "{path} was dropped before");
            assert!(waiting.insert(path.clone()), "{path} is queued twice");
        }
        for entry in &entries {
            let is_doomed = waiting.contains(&entry.path) || self.dropped.contains(&entry.path);
            assert!(!is_doomed, "{} is indexed and dropped", entry.path);
        }
    }
}

#[tokio::test]
async fn whatever_happens_in_whatever_order_the_keyspace_adds_up() {
    let server = RedisServer::start_with(&["--appendfsync", "no"]);
    let redis = &mut server.connection();
    for seed in [1, 2, fastrand::u64(..)] {
        redis::cmd("FLUSHALL").exec(redis).unwrap();
        println!("seed {seed}");
        let mut world = World {
            redis,
            catalog: RedisCatalog::connect(&server.config(), Arc::new(policy())).unwrap(),
            random: fastrand::Rng::with_seed(seed),
            table: TableRef::new("d", "t").unwrap(),
            files_made: 0,
            rows_indexed: 0,
            claims: Vec::new(),
            drops: Vec::new(),
            dropped: BTreeSet::new(),
            old_claims: Vec::new(),
            refused_commits: 0,
            commits: 0,
        };
        for step in 0..STEPS {
            world.step().await;
            if step % CHECK_EVERY == 0 {
                world.check().await;
            }
        }
        world.check().await;
        // The test must have met both.
        assert!(world.commits > 100, "{} commits", world.commits);
        assert!(
            world.refused_commits > 5,
            "{} refused",
            world.refused_commits
        );
    }
}
