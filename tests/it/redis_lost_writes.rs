//! A commit whose answer is lost, a request that arrives in half, a server that comes back without its last
//! second, a replica that takes over without the last writes: rows stay exactly once, and where the truth
//! cannot be known no file is deleted.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use gigamerge::crash_points::CrashPoint::*;
use redis::Connection;

use crate::support::{
    crashing::Stopped,
    program::{self, Program},
    proxy::{Fault, Proxy},
    redis_server::RedisServer,
    world::{LEVELS, World, assert_states},
};

const TIME_MAX: Duration = Duration::from_secs(60);

pub fn sha1_of(name: &str) -> String {
    gigamerge::catalog::redis::scripts::all()
        .into_iter()
        .find(|script| script.name == name)
        .unwrap()
        .sha1
        .clone()
}

/// So that the call that meets a fault is the one that changes something.
pub fn know_scripts(world: &World) {
    for script in gigamerge::catalog::redis::scripts::all() {
        ask(&mut world.redis(), &["SCRIPT", "LOAD", script.text]);
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + TIME_MAX;
    while !is_so() {
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn is_final(world: &World) -> bool {
    // A plan whose attempt ended unheard is split before it is tried again.
    world.is_at_rest()
        && !world.indexed().is_empty()
        && world
            .indexed()
            .iter()
            .all(|name| name.ends_with(".3.parquet"))
}

/// The daemon goes on through everything and ends with final files.
fn assert_heals(world: &World, daemon: &mut Program) {
    daemon.wait_until("final files", |_| is_final(world));
    world.assert_nothing_stray("in the end");
    assert_states(&[world.state("in the end", false)]);
}

#[test]
fn a_fault_in_any_call_of_a_merge_or_a_delete_heals_by_itself() {
    let calls = [
        "end_merge",
        "announce_output",
        "get_merge_plan",
        "claim_drops",
    ];
    std::thread::scope(|scope| {
        for call in calls {
            for fault in [Fault::SwallowAnswer, Fault::CutRequest] {
                scope.spawn(move || {
                    let server = RedisServer::start();
                    let proxy = Proxy::start(&server.socket());
                    let world = World::with(Some(server), LEVELS);
                    let settings = format!("{LEVELS}janitor_interval = \"1s\"\n");
                    let config = world.config_of("proxied.toml", &proxy.url(), &settings);
                    know_scripts(&world);
                    proxy.fail_next(&sha1_of(call), fault);
                    let mut daemon = Program::start(&["run", "--config", &config]);
                    world.write(0..3, 400);
                    daemon.wait_until("the fault", |_| proxy.is_done());
                    assert_heals(&world, &mut daemon);
                });
            }
        }
    });
}

/// The file that the server appends its writes to.
pub fn append_file(server: &RedisServer) -> PathBuf {
    // Before Redis 7 it is a single one.
    let single = server.folder().join("appendonly.aof");
    if single.exists() {
        return single;
    }
    let folder = server.folder().join("appendonlydir");
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.to_str().unwrap().ends_with(".incr.aof"))
        .unwrap()
}

/// Merges up to the commit, and notes how long the server's log was before; then `then`; then the server
/// forgets everything since.
fn forget_a_commit(world: &mut World, then: impl FnOnce(&World)) -> String {
    world.write(0..3, 400);
    std::thread::sleep(Duration::from_millis(1100));
    let log = world.folder.path().join("stopped.log");
    let mut stopped = Stopped::start(MergePublished, &["once", "--config", &world.config], &log);
    let output: Vec<String> = world
        .on_disk()
        .difference(&world.indexed())
        .cloned()
        .collect();
    let server = world.server.as_ref().unwrap();
    let (file, length) = (
        append_file(server),
        fs::metadata(append_file(server)).unwrap().len(),
    );
    stopped.go_on();
    assert_eq!(stopped.wait(), Some(0), "{}", stopped.log());
    assert_eq!(world.indexed().into_iter().collect::<Vec<_>>(), output);
    then(world);
    let server = world.server.as_mut().unwrap();
    server.kill();
    let appended = fs::File::options().write(true).open(file).unwrap();
    assert!(appended.metadata().unwrap().len() > length);
    appended.set_len(length).unwrap();
    server.run();
    assert_eq!(
        world.indexed().len(),
        3,
        "the server still knows the commit"
    );
    output[0].clone()
}

#[test]
fn a_server_that_forgot_a_commit_gets_it_again() {
    let settings = format!("{LEVELS}janitor_interval = \"1s\"\n");
    let mut world = World::with(Some(RedisServer::start()), &settings);
    forget_a_commit(&mut world, |_| {});
    let after = world.state("forgotten", false);
    let mut daemon = Program::start(&["run", "--config", &world.config]);
    assert_heals(&world, &mut daemon);
    assert_states(&[after]);
}

#[test]
fn an_output_stays_when_the_server_forgot_its_commit_after_the_inputs_were_deleted() {
    // The output is not merged on, and the janitor looks all the time.
    let settings = LEVELS.replace(
        "iteration = 2, timeout = \"1s\"",
        "iteration = 2, timeout = \"60s\"",
    );
    let settings = format!("{settings}janitor_interval = \"1s\"\n");
    let mut world = World::with(Some(RedisServer::start()), &settings);
    let output = forget_a_commit(&mut world, |world| {
        wait_until("deletes", || {
            let (code, _, log) = program::run(&["once", "--config", &world.config]);
            assert_eq!(code, 0, "{log}");
            let files = world.on_disk();
            files.iter().all(|name| !name.ends_with(".1.parquet"))
        });
    });
    let kept = world.on_disk();
    assert_eq!(kept.iter().collect::<Vec<_>>(), [&output]);
    let mut daemon = Program::start(&["run", "--config", &world.config]);
    daemon.wait_for_log("are not there");
    // Past the lease, a retry and a pass of the janitor.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(world.on_disk(), kept, "{}", daemon.log());
}

/// The first worker is stopped past its lease with published bytes; the second one took over and is about to
/// remove them, when the server comes back without knowing of that: then the first one's commit is valid.
#[test]
fn a_dead_attempts_output_stays_when_the_server_forgot_who_took_over() {
    let mut world = World::with(Some(RedisServer::start()), LEVELS);
    world.write(0..3, 400);
    std::thread::sleep(Duration::from_millis(1100));
    let log = |name: &str| world.folder.path().join(name);
    let arguments = ["once", "--config", &world.config];
    let mut first = Stopped::start(MergePublished, &arguments, &log("first.log"));
    let file = append_file(world.server.as_ref().unwrap());
    let length = fs::metadata(&file).unwrap().len();
    let output: Vec<String> = world
        .on_disk()
        .difference(&world.indexed())
        .cloned()
        .collect();
    assert_eq!(output.len(), 1);
    // Past its lease.
    std::thread::sleep(Duration::from_millis(6500));
    let mut second = Stopped::start(DeadOutputFound, &arguments, &log("second.log"));
    let server = world.server.as_mut().unwrap();
    server.kill();
    let appended = fs::File::options().write(true).open(&file).unwrap();
    assert!(appended.metadata().unwrap().len() > length);
    appended.set_len(length).unwrap();
    server.run();
    first.go_on();
    assert_eq!(first.wait(), Some(0), "{}", first.log());
    let indexed = world.indexed();
    assert!(indexed.contains(&output[0]), "{}", first.log());
    second.go_on();
    second.wait();
    assert!(second.log().contains("lease"), "{}", second.log());
    assert!(world.on_disk().contains(&output[0]), "{}", second.log());
    let mut daemon = Program::start(&["run", "--config", &world.config]);
    assert_heals(&world, &mut daemon);
}

fn ask(connection: &mut Connection, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    for word in &words[1..] {
        command.arg(word);
    }
    command.exec(connection).unwrap();
}

#[test]
fn a_replica_that_misses_the_commit_takes_over_under_a_running_daemon() {
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let port = port.to_string();
    // The later option wins: a replica needs TCP.
    let primary = RedisServer::start_with(&[
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--repl-diskless-sync-delay",
        "0",
    ]);
    let replica = RedisServer::start_with(&["--replicaof", "127.0.0.1", &port]);
    let proxy = Proxy::start(&primary.socket());
    let mut world = World::with(Some(primary), LEVELS);
    world.write(0..3, 400);
    std::thread::sleep(Duration::from_millis(1100));
    let settings = format!("{LEVELS}janitor_interval = \"1s\"\n");
    let config = world.config_of("proxied.toml", &proxy.url(), &settings);
    let log = world.folder.path().join("daemon.log");
    let daemon = Stopped::start(MergePublished, &["run", "--config", &config], &log);
    let mut on_replica = replica.connection();
    wait_until("copy of everything", || {
        let keys: Vec<String> = redis::cmd("KEYS")
            .arg("announced:*")
            .query(&mut on_replica)
            .unwrap();
        !keys.is_empty()
    });
    ask(&mut on_replica, &["REPLICAOF", "NO", "ONE"]);
    daemon.go_on();
    wait_until("commit", || world.indexed().len() == 1);
    proxy.turn_to(&replica.socket());
    let mut primary = world.server.replace(replica).unwrap();
    primary.kill();
    assert_eq!(world.indexed().len(), 3, "the replica knows the commit");
    let after = world.state("failed over", false);
    wait_until(
        &format!("end: {:?} {}", world.keys("*"), daemon.log()),
        || is_final(&world),
    );
    world.assert_nothing_stray("in the end");
    assert_states(&[after, world.state("in the end", false)]);
}
