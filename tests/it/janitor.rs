//! What dead workers left is removed, and nothing that the index or a living claim names.

use std::{fs, sync::Arc, time::Duration};

use gigamerge::{
    catalog::{Catalog, MergeCommit, redis::RedisCatalog},
    crash_points::CrashPoint::*,
    model::Iteration,
};
use redis::Commands;

use crate::{
    catalog_suite::{entry, policy},
    support::{
        crashing::{self, Crash, Stopped},
        program::{self, Program},
        redis_server::RedisServer,
        world::{LEVELS, World},
    },
};

/// A worker died after it had published; its plan was taken out of the queue by somebody else.
fn orphan(world: &World) -> String {
    world.write(0..3, 400);
    std::thread::sleep(Duration::from_millis(1100));
    let arguments = ["once", "--config", &world.config];
    assert!(crashing::run(Crash::kill(MergePublished), &arguments).0);
    for key in world.keys("merge:*") {
        let _: () = world.redis().del(key).unwrap();
    }
    let output: Vec<String> = world
        .on_disk()
        .difference(&world.indexed())
        .cloned()
        .collect();
    assert_eq!(output.len(), 1);
    output[0].clone()
}

fn once(world: &World) -> String {
    program::run(&["once", "--config", &world.config]).2
}

#[test]
fn an_output_that_nobody_can_commit_any_more_is_removed_after_a_lease() {
    let world = World::new(true);
    let output = orphan(&world);
    once(&world);
    assert!(world.on_disk().contains(&output), "too early");
    std::thread::sleep(Duration::from_millis(5100));
    let log = once(&world);
    assert!(
        log.contains("removed what dead workers left") && log.contains("outputs=1"),
        "{log}"
    );
    assert_eq!(world.on_disk(), world.indexed());
    assert_eq!(world.keys("announced:*"), Vec::<String>::new());
    world.assert_nothing_stray("an orphan");
}

#[test]
fn an_output_that_may_hold_the_only_copy_of_rows_is_kept() {
    let world = World::new(true);
    let output = orphan(&world);
    // As a server that forgot its last second leaves it: it names a file whose bytes are deleted.
    let source = world.indexed().into_iter().next().unwrap();
    fs::remove_file(world.lake.partition("cpu").join(source)).unwrap();
    std::thread::sleep(Duration::from_millis(5100));
    for _ in 0..2 {
        let log = once(&world);
        assert!(
            log.contains("may hold its only copy") && log.contains(&output),
            "{log}"
        );
        assert!(world.on_disk().contains(&output));
    }
}

#[test]
fn scratch_of_a_living_worker_stays_and_that_of_a_dead_one_goes() {
    let world = World::new(true);
    world.write(0..3, 400);
    std::thread::sleep(Duration::from_millis(1100));
    let arguments = ["once", "--config", &world.config];
    assert!(crashing::run(Crash::kill(MergeWritten), &arguments).0);
    let dead = world.lake.leftovers("cpu");
    assert_eq!(dead.len(), 1);
    std::thread::sleep(Duration::from_millis(6500));
    let log = world.folder.path().join("stopped.log");
    let mut stopped = Stopped::start(MergeWritten, &arguments, &log);
    let living = world.lake.leftovers("cpu");
    assert!(living.len() == 1 && living != dead, "{living:?}");
    once(&world);
    assert_eq!(world.lake.leftovers("cpu"), living);
    stopped.go_on();
    stopped.wait();
    assert!(world.lake.leftovers("cpu").is_empty());
}

#[test]
fn the_daemon_cleans_again_and_again() {
    let settings = format!("{LEVELS}janitor_interval = \"1s\"\n");
    let world = World::with(Some(RedisServer::start()), &settings);
    let mut daemon = Program::start(&["run", "--config", &world.config]);
    daemon.wait_for_log("gigamerge starts");
    let tmp = world
        .lake
        .root
        .join("db/cpu/tmp/gigamerge-of-a-dead-process");
    fs::create_dir_all(&tmp).unwrap();
    fs::write(tmp.join("lock"), "").unwrap();
    daemon.wait_until("scratch to be gone", |_| !tmp.exists());
    daemon.wait_for_log("scratch_folders=1");
}

#[tokio::test]
async fn only_an_announcement_whose_claim_has_ended_is_dead() {
    let server = RedisServer::start();
    let catalog = RedisCatalog::connect(&server.config(), Arc::new(policy())).unwrap();
    let files = ["a.1", "b.1"].map(|name| entry(name, 100));
    catalog.batch(&files, &[]).await.unwrap();
    let queue = catalog.due_merges(Iteration(1), 1).await.unwrap()[0]
        .queue
        .clone();
    let lease = Duration::from_secs(1);
    let claim = catalog.claim_merge(&queue, lease).await.unwrap().unwrap();
    let output = entry("m.2", 180);
    catalog.announce_output(&claim, &output.path).await.unwrap();
    let dead = async || catalog.dead_outputs(Duration::ZERO, 10).await.unwrap();
    assert_eq!(dead().await, []);
    // Nobody took over: its holder may still commit.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    assert_eq!(dead().await, []);
    let again = catalog.claim_merge(&queue, lease).await.unwrap().unwrap();
    let found = dead().await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].path, output.path);
    assert_eq!(found[0].sources, claim.plan.paths);
    assert_eq!(
        catalog
            .dead_outputs(Duration::from_secs(60), 10)
            .await
            .unwrap(),
        []
    );

    // The second attempt announces and commits: its announcement is gone with the claim.
    let second = entry("n.2", 180);
    catalog.announce_output(&again, &second.path).await.unwrap();
    let commit = MergeCommit {
        output: Some(second),
        sources: again.plan.paths.clone(),
        set_aside: Vec::new(),
        grace: Duration::ZERO,
    };
    catalog.commit_merge(&again, &commit).await.unwrap();
    assert_eq!(dead().await, found);
    catalog.forget_output(&found[0]).await.unwrap();
    assert_eq!(dead().await, []);
    let announced: bool = server.connection().exists("announced:metrics:cpu").unwrap();
    assert!(!announced);
}
