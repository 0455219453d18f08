//! What a merge replaced comes back while its grace lasts, in one step, and not when it is too late.

use std::time::Duration;

use gigamerge::crash_points::CrashPoint::*;
use redis::Commands;
use serde_json::Value;

use crate::support::{
    crashing::{self, Crash},
    lake::PARTITION,
    program,
    redis_server::RedisServer,
    world::{LEVELS, World, assert_states},
};

fn world(on_redis: bool) -> World {
    // Nothing is merged on, and nothing deleted, while the test looks.
    let settings = LEVELS
        .replace(
            "iteration = 2, timeout = \"1s\"",
            "iteration = 2, timeout = \"60s\"",
        )
        .replace("grace = \"1s\"", "grace = \"60s\"");
    let world = World::with(on_redis.then(RedisServer::start), &settings);
    world.write(0..3, 300);
    std::thread::sleep(Duration::from_millis(2100));
    world
}

fn run(world: &World, words: &[&str]) -> (i32, String, String) {
    program::run(&[words, &["--config", &world.config]].concat())
}

fn comes_back(on_redis: bool) {
    let world = world(on_redis);
    let written = world.visible();
    assert_eq!(run(&world, &["once"]).0, 0);
    let merged = world.indexed();
    assert_eq!(merged.len(), 1);
    let before = world.state("merged", false);
    let (code, out, log) = run(&world, &["undelete", "db", "cpu", "--json"]);
    assert_eq!(code, 0, "{log}");
    let listed: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(listed["replaced"].as_array().unwrap().len(), 3);
    let output = listed["output"].as_str().unwrap();
    assert_eq!(
        output,
        format!("{PARTITION}/{}", merged.iter().next().unwrap())
    );
    let (_, table, _) = run(&world, &["undelete", "db", "cpu"]);
    assert!(
        table.contains(output) && table.contains("3 of 3"),
        "{table}"
    );

    let (code, out, log) = run(&world, &["undelete", "db", "cpu", output]);
    assert_eq!(code, 0, "{log}");
    assert!(out.contains("3 files are in the index again"), "{out}");
    assert_eq!(world.visible(), written);
    assert_eq!(world.indexed(), written);
    let after = world.state("brought back", false);
    if on_redis {
        let count: i64 = world.redis().hget("folders:db:cpu", PARTITION).unwrap();
        assert_eq!(count, 3);
    }
    // Its bytes stay for those who have it open.
    assert!(world.on_disk().is_superset(&merged));
    let (code, _, log) = run(&world, &["undelete", "db", "cpu", output]);
    assert!(
        code == 1 && log.contains("no replaced file of it waits"),
        "{log}"
    );

    // Nobody wants the same merge again, until somebody says so.
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(run(&world, &["once"]).0, 0);
    assert_eq!(world.indexed(), written);
    let (code, _, log) = run(&world, &["quarantine", "retry", "db", "cpu", "--all"]);
    assert_eq!(code, 0, "{log}");
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(run(&world, &["once"]).0, 0);
    assert!(
        world
            .indexed()
            .iter()
            .all(|name| name.ends_with(".2.parquet"))
    );
    assert_states(&[before, after, world.state("merged again", false)]);
}

#[test]
fn the_inputs_of_a_merge_come_back_on_a_folder() {
    comes_back(false);
}

#[test]
fn the_inputs_of_a_merge_come_back_on_redis() {
    comes_back(true);
}

fn is_too_late_when_merged_on(on_redis: bool) {
    let settings = LEVELS.replace("grace = \"1s\"", "grace = \"60s\"");
    let world = World::with(on_redis.then(RedisServer::start), &settings);
    world.write(0..3, 300);
    std::thread::sleep(Duration::from_millis(2100));
    run(&world, &["once"]);
    let first = format!("{PARTITION}/{}", world.indexed().iter().next().unwrap());
    std::thread::sleep(Duration::from_millis(2100));
    run(&world, &["once"]);
    let promoted = world.indexed();
    assert!(
        promoted.iter().all(|name| name.ends_with(".3.parquet")),
        "{promoted:?}"
    );
    let (code, _, log) = run(&world, &["undelete", "db", "cpu", &first]);
    assert!(code == 1 && log.contains("merged on"), "{log}");
    assert_eq!(world.indexed(), promoted);
    // The promotion itself can be undone.
    let (_, table, _) = run(&world, &["undelete", "db", "cpu"]);
    assert!(
        !table.contains(&first) && table.contains("1 of 1"),
        "{table}"
    );
    assert_states(&[world.state("as it was", false)]);
}

#[test]
fn the_inputs_of_a_file_that_was_merged_on_do_not_come_back() {
    is_too_late_when_merged_on(false);
    is_too_late_when_merged_on(true);
}

#[test]
fn a_file_that_a_worker_is_about_to_delete_does_not_come_back() {
    let settings = LEVELS.replace(
        "iteration = 2, timeout = \"1s\"",
        "iteration = 2, timeout = \"60s\"",
    );
    let world = World::with(Some(RedisServer::start()), &settings);
    world.write(0..3, 300);
    std::thread::sleep(Duration::from_millis(1100));
    run(&world, &["once"]);
    let output = format!("{PARTITION}/{}", world.indexed().iter().next().unwrap());
    std::thread::sleep(Duration::from_millis(2100));
    let arguments = ["once", "--config", &world.config];
    assert!(crashing::run(Crash::kill(DropsClaimed), &arguments).0);
    let key = world.keys("drop:*:processing").remove(0);
    // One of them came back to the waiting ones, as after a delete that failed.
    let item: String = world.redis().lpop(&key, None).unwrap();
    let _: () = world
        .redis()
        .rpush(key.replace(":processing", ":idle"), item)
        .unwrap();
    let (code, _, log) = run(&world, &["undelete", "db", "cpu", &output]);
    assert!(code == 1 && log.contains("are being deleted"), "{log}");
    assert_eq!(world.indexed().len(), 1);
}
