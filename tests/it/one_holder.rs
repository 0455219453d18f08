//! A worker is stopped (`SIGSTOP`) past its lease, another one finishes its work, then it goes on: what it
//! holds is void, and it changes, deletes and overwrites nothing.

use std::{
    fs,
    time::{Duration, Instant},
};

use gigamerge::crash_points::CrashPoint::{self, *};

use crate::support::{
    crashing::Stopped,
    program,
    world::{World, assert_states},
};

const TIME_MAX: Duration = Duration::from_secs(60);

fn due_files(world: &World) {
    world.write(0..3, 400);
    std::thread::sleep(Duration::from_millis(1100));
}

fn once(world: &World) -> String {
    let (_, _, log) = program::run(&["once", "--config", &world.config]);
    log
}

/// Another worker goes on until `is_done`.
fn others_go_on(world: &World, what: &str, is_done: impl Fn() -> bool) {
    let deadline = Instant::now() + TIME_MAX;
    while !is_done() {
        let log = once(world);
        assert!(
            Instant::now() < deadline,
            "{what}: {:?}\n{log}",
            world.keys("*")
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn is_final(world: &World) -> bool {
    let indexed = world.indexed();
    !indexed.is_empty() && indexed.iter().all(|name| name.ends_with(".3.parquet"))
}

fn stop_in_merge(point: CrashPoint) {
    let world = World::new(true);
    due_files(&world);
    let log = world.folder.path().join("stopped.log");
    let mut stopped = Stopped::start(point, &["once", "--config", &world.config], &log);
    others_go_on(&world, point.name(), || is_final(&world));
    let before = world.state("before it goes on", false);
    let indexed = world.indexed();
    stopped.go_on();
    stopped.wait();
    assert!(
        stopped.log().contains("merge abandoned"),
        "{}: {}",
        point.name(),
        stopped.log()
    );
    assert_eq!(world.indexed(), indexed, "{}", point.name());
    let after = world.state("after it went on", false);
    others_go_on(&world, point.name(), || world.is_at_rest());
    world.assert_nothing_stray(point.name());
    assert!(world.lake.leftovers("cpu").is_empty());
    assert_states(&[before, after, world.state("at rest", false)]);
}

#[test]
fn a_worker_that_was_stopped_past_its_lease_in_a_merge_changes_nothing() {
    std::thread::scope(|scope| {
        // With the merge before it, with its name announced, with its bytes in place.
        for point in [MergeResolved, MergeWritten, MergeAnnounced, MergePublished] {
            scope.spawn(move || stop_in_merge(point));
        }
    });
}

#[test]
fn a_worker_that_was_stopped_past_its_lease_before_a_delete_deletes_nothing() {
    std::thread::scope(|scope| {
        for point in [DropsClaimed, DropChecked] {
            scope.spawn(move || {
                let world = World::new(true);
                due_files(&world);
                once(&world);
                std::thread::sleep(Duration::from_millis(2100));
                let log = world.folder.path().join("stopped.log");
                let mut stopped = Stopped::start(point, &["once", "--config", &world.config], &log);
                let replaced: Vec<String> = world
                    .on_disk()
                    .difference(&world.indexed())
                    .cloned()
                    .collect();
                assert!(replaced.len() >= 3, "{replaced:?}");
                others_go_on(&world, point.name(), || world.is_at_rest());
                // Whoever puts bytes back under these names must find them there.
                let files = replaced
                    .iter()
                    .map(|name| world.lake.partition("cpu").join(name));
                let files: Vec<_> = files.collect();
                for file in &files {
                    fs::write(file, "precious").unwrap();
                }
                stopped.go_on();
                stopped.wait();
                for file in &files {
                    assert!(
                        file.exists(),
                        "{}: {} was deleted",
                        point.name(),
                        file.display()
                    );
                }
                assert!(
                    stopped.log().contains("the lease was lost"),
                    "{}",
                    stopped.log()
                );
            });
        }
    });
}

#[test]
fn the_only_worker_of_a_folder_goes_on_after_it_was_stopped_past_its_leases() {
    let world = World::new(false);
    world.write(0..3, 400);
    std::thread::sleep(Duration::from_millis(2100));
    let log = world.folder.path().join("stopped.log");
    let mut stopped = Stopped::start(MergePublished, &["once", "--config", &world.config], &log);
    std::thread::sleep(Duration::from_millis(5500));
    // Its folder is its own all the while.
    assert!(once(&world).contains("another gigamerge works on this folder"));
    stopped.go_on();
    stopped.wait();
    let after = world.state("after it went on", false);
    others_go_on(&world, "a folder", || {
        is_final(&world) && world.is_at_rest()
    });
    world.assert_nothing_stray("a folder");
    assert_states(&[after, world.state("at rest", false)]);
}
