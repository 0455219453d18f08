//! Files move from layer to layer and expire: by the real program, on a real Redis.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use gigamerge::crash_points::CrashPoint::{self, *};
use redis::Commands;
use serde_json::{Value, json};

use crate::{
    redis_lost_writes::{append_file, know_scripts, sha1_of},
    support::{
        crashing::Stopped,
        lake::{Lake, PARTITION},
        program::{Program, run},
        proxy::{Fault, Proxy},
        redis_server::RedisServer,
        tmpfs::Tmpfs,
        world::{WRITERS_LEVELS, World, assert_states},
    },
};

const NO_MERGES: &str = "[merge]\nenabled = false\n[drops]\ngrace = \"1s\"\ninterval = \"1s\"\n[worker]\nlease = \"5s\"\n";
/// Merges of one level.
const MERGES: &str = "[merge]\nlevels = [{ iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" }]\n\
    [drops]\ngrace = \"4s\"\ninterval = \"1s\"\n[worker]\nlease = \"30s\"\n";
const ONE_LEVEL: &str = "[[1,104857600,1]]";
const IDLE: &str = "move:db:cpu:hot::idle";
const FAILED: &str = "move:db:cpu:hot::failed";
const TIME_MAX: Duration = Duration::from_secs(60);

/// Files of "hot" that are due to move to "cold".
fn due_to_move() -> World {
    let server = Some(RedisServer::start());
    let world = World::layered(server, NO_MERGES, &[("cold", "")], true, "[]");
    world.write(0..3, 400);
    world
}

fn once(world: &World) -> String {
    run(&["once", "--config", &world.config]).2
}

fn until(world: &World, what: &str, is_done: impl Fn() -> bool) {
    let deadline = Instant::now() + TIME_MAX;
    while !is_done() {
        let log = once(world);
        let keys = world.keys("*");
        assert!(Instant::now() < deadline, "{what}: {keys:?}\n{log}");
        std::thread::sleep(Duration::from_millis(300));
    }
}

fn all_in(world: &World, layer: &str) -> bool {
    world.layers_of().values().all(|of| of == layer)
}

fn items(world: &World, list: &str) -> Vec<Value> {
    let texts: Vec<String> = world.redis().lrange(list, 0, -1).unwrap();
    let parse = |text: &String| serde_json::from_str(text).unwrap();
    texts.iter().map(parse).collect()
}

fn push(world: &World, list: &str, item: &str) {
    let _: i64 = world.redis().rpush(list, item).unwrap();
}

fn item(path_from: &str) -> Value {
    json!({"id": "by hand", "writer_id": "", "database": "db", "table": "cpu",
        "path_from": format!("{PARTITION}/{path_from}"), "layer_from": "hot",
        "path_to": format!("{PARTITION}/to.1.parquet"), "layer_to": "cold", "time_s": 1})
}

#[test]
fn files_are_merged_and_move_along_two_layers_and_their_rows_are_readable_all_the_time() {
    let later = [("warm", "ttl = \"1s\"\n"), ("cold", "")];
    let server = Some(RedisServer::start());
    let mut world = World::layered(server, MERGES, &later, true, ONE_LEVEL);
    world.write(0..6, 400);
    let mut program = Program::start(&["run", "--config", &world.config]);
    let mut states = Vec::new();
    let mut seen = Value::Null;
    let started = Instant::now();
    while !(all_in(&world, "cold") && world.is_at_rest()) {
        let now = json!(world.layers_of());
        if now != seen {
            // Every file of the list is opened within the grace.
            states.push(world.state(&format!("{}", states.len()), false));
            seen = now;
        }
        assert!(started.elapsed() < TIME_MAX, "{seen}\n{}", program.log());
        program.wait_until("a while", |_| true);
        std::thread::sleep(Duration::from_millis(5));
    }
    states.push(world.state("at rest", false));
    assert!(states.len() >= 4, "{}", states.len());
    assert_states(&states);
    let layers = world.layers_of();
    assert_eq!(layers.len(), 1, "{layers:?}");
    let log = program.log();
    assert!(log.contains("to=warm") && log.contains("to=cold"), "{log}");
    world.assert_nothing_stray("two layers");
    assert!(world.leftovers().is_empty());
    let (code, out, log) = run(&[
        "verify",
        "--deep",
        "--min-age",
        "1s",
        "--config",
        &world.config,
    ]);
    assert_eq!(code, 0, "{out}{log}");
    drop(program);
    // Nothing is left to do for another one.
    world.config = world.config_of(
        "again.toml",
        &world.server.as_ref().unwrap().url(),
        &format!("{}{MERGES}", world.layers),
    );
    let log = once(&world);
    assert!(
        log.contains("moves=0") && log.contains("nothing more is due"),
        "{log}"
    );
}

#[test]
fn a_file_of_the_last_layer_expires_when_its_time_is_over_by_both_and_not_before() {
    let server = Some(RedisServer::start());
    let mut world = World::layered(server, NO_MERGES, &[], true, "[]");
    world.write(0..2, 100);
    let url = world.server.as_ref().unwrap().url();
    let expiring = world.config.clone();
    // By these settings files stay for ever, or much longer: what writers queued does not count.
    for ttl in ["", "ttl = \"36500d\"\n"] {
        world.config = world.config_of("keeps.toml", &url, &format!("{ttl}{NO_MERGES}"));
        let log = once(&world);
        assert!(log.contains("expired=0"), "{log}");
        assert_eq!((world.indexed().len(), items(&world, IDLE).len()), (2, 2));
    }
    let waiting = items(&world, IDLE);
    let later_s = waiting[0]["time_s"].as_i64().unwrap();
    assert!(later_s > 1_705_327_215 + 36_500, "{waiting:?}");
    // Whoever shortens the lifetime need not wait for the old one.
    let list: Vec<String> = world.redis().lrange(IDLE, 0, -1).unwrap();
    let _: () = world.redis().del(IDLE).unwrap();
    for text in list {
        let mut item: Value = serde_json::from_str(&text).unwrap();
        item["time_s"] = json!(1);
        push(&world, IDLE, &item.to_string());
    }
    world.config = expiring;
    let log = once(&world);
    assert!(log.contains("expired=2"), "{log}");
    assert!(world.indexed().is_empty());
    // Readers that took their list before.
    assert_eq!(world.on_disk().len(), 2);
    until(&world, "the bytes go", || world.is_at_rest());
    assert!(world.on_disk().is_empty());
    let (code, out, log) = run(&["verify", "--min-age", "0s", "--config", &world.config]);
    assert_eq!(code, 0, "{out}{log}");
}

fn stop_in_move(point: CrashPoint) {
    let world = due_to_move();
    let log = world.folder.path().join("stopped.log");
    let mut stopped = Stopped::start(point, &["once", "--config", &world.config], &log);
    until(&world, point.name(), || all_in(&world, "cold"));
    let layers = world.layers_of();
    let before = world.state("before it goes on", false);
    stopped.go_on();
    stopped.wait();
    // Before it looked, the file was there no more; later, the claim was void.
    let said = ["move abandoned", "move ended"][usize::from(point == MoveClaimed)];
    assert!(
        stopped.log().contains(said),
        "{}: {}",
        point.name(),
        stopped.log()
    );
    assert_eq!(world.layers_of(), layers, "{}", point.name());
    let after = world.state("after it went on", false);
    until(&world, point.name(), || world.is_at_rest());
    world.assert_nothing_stray(point.name());
    assert!(world.leftovers().is_empty(), "{}", point.name());
    assert_states(&[before, after, world.state("at rest", false)]);
}

#[test]
fn a_worker_that_was_stopped_past_its_lease_in_a_move_changes_nothing() {
    std::thread::scope(|scope| {
        for point in [MoveClaimed, MoveCopied, MoveAnnounced, MovePublished] {
            scope.spawn(move || stop_in_move(point));
        }
    });
}

/// Three files that are due to be merged, one of which is due to move as well.
fn due_to_both() -> (World, String) {
    let server = Some(RedisServer::start());
    let world = World::layered(server, MERGES, &[("cold", "")], false, WRITERS_LEVELS);
    world.write(0..3, 400);
    let name = world.lake.files("cpu").remove(0);
    push(&world, IDLE, &item(&name).to_string());
    std::thread::sleep(Duration::from_millis(1100));
    let url = world.server.as_ref().unwrap().url();
    let mover = world.config_of("mover.toml", &url, &format!("{}{NO_MERGES}", world.layers));
    (world, mover)
}

fn settle_both(world: &World, what: &str, states: &mut Vec<Value>) {
    until(world, what, || world.is_at_rest());
    states.push(world.state("at rest", false));
    world.assert_nothing_stray(what);
    assert!(world.leftovers().is_empty(), "{what}");
    assert_states(states);
}

#[test]
fn a_file_that_is_merged_while_it_moves_stays_merged_and_its_copy_goes() {
    let (world, mover) = due_to_both();
    let log = world.folder.path().join("mover.log");
    let mut stopped = Stopped::start(MovePublished, &["once", "--config", &mover], &log);
    let log = once(&world);
    assert!(log.contains("merges=1"), "{log}");
    let mut states = vec![world.state("merged", false)];
    stopped.go_on();
    stopped.wait();
    assert!(
        stopped.log().contains("left the index"),
        "{}",
        stopped.log()
    );
    assert!(stopped.log().contains("move ended"), "{}", stopped.log());
    states.push(world.state("the move ended", false));
    assert!(world.layers_of().values().all(|layer| layer == "hot"));
    settle_both(&world, "merged first", &mut states);
}

#[test]
fn a_file_that_moves_while_it_is_merged_stays_moved_and_the_others_are_merged() {
    let (world, mover) = due_to_both();
    let log = world.folder.path().join("merger.log");
    let task = ["once", "--config", &world.config];
    let mut stopped = Stopped::start(MergePublished, &task, &log);
    let (_, _, moved) = run(&["once", "--config", &mover]);
    assert!(moved.contains("moves=1"), "{moved}");
    let mut states = vec![world.state("moved", false)];
    stopped.go_on();
    stopped.wait();
    assert!(
        stopped.log().contains("left the index"),
        "{}",
        stopped.log()
    );
    states.push(world.state("the merge went on", false));
    settle_both(&world, "moved first", &mut states);
    let layers: Vec<String> = world.layers_of().into_values().collect();
    assert_eq!(layers.iter().filter(|layer| *layer == "cold").count(), 1);
    assert_eq!(layers.len(), 2, "{layers:?}");
}

#[test]
fn items_that_no_sound_writer_makes_are_refused_by_name_and_harm_nothing() {
    let world = due_to_move();
    let names = world.lake.files("cpu");
    let before: Vec<Vec<u8>> = names
        .iter()
        .map(|name| fs::read(world.lake.partition("cpu").join(name)).unwrap())
        .collect();
    // The sound ones wait.
    let _: () = world.redis().rename(IDLE, "aside").unwrap();
    let with = |field: &str, value: Value| {
        let mut item = item(&names[0]);
        item[field] = value;
        item.to_string()
    };
    let mut without_layer = item(&names[0]);
    without_layer.as_object_mut().unwrap().remove("layer_to");
    let hostile = [
        with("path_from", json!("../../../../etc/passwd.1.parquet")),
        with("path_from", json!("/etc/x.1.parquet")),
        with(
            "path_from",
            json!(format!("{PARTITION}/../../../other/data/a/b.1.parquet")),
        ),
        with("path_from", json!(7)),
        with("path_from", json!("a/\u{0}.1.parquet")),
        with("path_to", json!(format!("../{PARTITION}/x.1.parquet"))),
        with("path_to", json!("date=1/x.1.parquet")),
        with("path_to", json!(format!("{PARTITION}/x.2.parquet"))),
        with("path_to", Value::Null),
        with("layer_from", json!("cold")),
        with("layer_to", json!("hot")),
        with("layer_to", json!(["cold"])),
        with("layer_to", Value::Null),
        without_layer.to_string(),
        with("database", json!("other")),
        with("table", json!("other")),
        with("time_s", json!("soon")),
        "[1]".to_owned(),
        "no JSON".to_owned(),
    ];
    for text in &hostile {
        push(&world, IDLE, text);
    }
    // For somebody who knows that layer; it hides nothing behind it.
    let mut elsewhere = item(&names[1]);
    elsewhere["layer_to"] = json!("elsewhere");
    push(&world, IDLE, &elsewhere.to_string());
    push(&world, IDLE, &with("time_s", json!(1)));
    let log = once(&world);
    let failed = items(&world, FAILED);
    assert_eq!(failed.len(), hostile.len(), "{failed:#?}\n{log}");
    assert!(
        failed
            .iter()
            .all(|item| item["reason"].as_str().unwrap().len() > 10)
    );
    assert!(log.contains("elsewhere"), "{log}");
    let left = items(&world, IDLE);
    assert_eq!(left.len(), 1, "{left:?}");
    assert_eq!(left[0]["layer_to"], "elsewhere");
    assert!(left[0].get("attempts").is_none());
    assert_eq!(
        world
            .layers_of()
            .values()
            .filter(|layer| *layer == "cold")
            .count(),
        1
    );
    for (name, bytes) in names.iter().zip(&before) {
        let file = world.lake.partition("cpu").join(name);
        assert!(fs::read(file).is_ok_and(|now| now == *bytes), "{name}");
    }
    assert!(!Path::new("/etc/passwd.1.parquet").exists());
    let (_, out, _) = run(&["verify", "--min-age", "0s", "--config", &world.config]);
    assert!(
        out.contains("unserved_item") && out.contains("elsewhere"),
        "{out}"
    );
    let (_, out, _) = run(&["quarantine", "ls", "--config", &world.config]);
    assert!(out.contains("layer_to is the layer"), "{out}");
    let (_, out, _) = run(&["plan", "--config", &world.config]);
    assert!(out.contains("moves: 1 waiting, 0 running"), "{out}");
}

#[test]
fn items_of_the_original_that_share_id_and_path_or_have_no_time_all_move() {
    let world = due_to_move();
    let names = world.lake.files("cpu");
    let _: () = world.redis().del(IDLE).unwrap();
    for name in &names {
        let mut item = item(name);
        item.as_object_mut().unwrap().remove("time_s");
        push(&world, IDLE, &item.to_string());
    }
    // A file of that name is there already, and is nobody's to overwrite.
    let cold = world.later[0].1.partition("cpu");
    fs::create_dir_all(&cold).unwrap();
    fs::write(cold.join("to.1.parquet"), "precious").unwrap();
    let log = once(&world);
    assert!(log.contains("moves=3"), "{log}");
    assert!(all_in(&world, "cold"));
    let layers = world.layers_of();
    assert_eq!(layers.len(), 3);
    assert_eq!(fs::read(cold.join("to.1.parquet")).unwrap(), b"precious");
    fs::remove_file(cold.join("to.1.parquet")).unwrap();
    until(&world, "at rest", || world.is_at_rest());
    world.assert_nothing_stray("shared names");
    assert_states(&[world.state("at rest", false)]);
}

#[test]
fn a_file_that_is_not_there_is_given_up_and_moves_after_a_retry() {
    let mut world = due_to_move();
    let url = world.server.as_ref().unwrap().url();
    let settings = format!("{}{NO_MERGES}max_attempts = 1\n", world.layers);
    world.config = world.config_of("impatient.toml", &url, &settings);
    let name = world.lake.files("cpu").remove(0);
    let (file, hidden) = (
        world.lake.partition("cpu").join(&name),
        world.folder.path().join("hidden"),
    );
    fs::rename(&file, &hidden).unwrap();
    let (code, _, log) = run(&["once", "--config", &world.config]);
    assert_eq!(code, 1, "{log}");
    assert!(
        log.contains("move given up") && log.contains(&name),
        "{log}"
    );
    assert!(
        log.contains("1 file did not leave its layer") && !log.contains("not merged"),
        "{log}"
    );
    let failed = items(&world, FAILED);
    assert_eq!(failed.len(), 1);
    assert!(
        failed[0]["reason"]
            .as_str()
            .unwrap()
            .contains("is not there"),
        "{failed:?}"
    );
    assert_eq!(world.layers_of()[&name], "hot");
    fs::rename(&hidden, &file).unwrap();
    let (_, out, _) = run(&[
        "quarantine",
        "ls",
        "db",
        "cpu",
        "--json",
        "--config",
        &world.config,
    ]);
    let shown: Value = serde_json::from_str(out.lines().next().unwrap()).unwrap();
    let id = shown["id"].as_str().unwrap().to_owned();
    let retry = [
        "quarantine",
        "retry",
        "db",
        "cpu",
        &id,
        "--config",
        &world.config,
    ];
    let (code, out, log) = run(&retry);
    assert_eq!(code, 0, "{out}{log}");
    until(&world, "the retried move", || {
        all_in(&world, "cold") && world.is_at_rest()
    });
    world.assert_nothing_stray("retried");
    assert_states(&[world.state("at rest", false)]);
}

/// A world whose layer "cold" is a file system of its own.
fn on_disk(disk: &Tmpfs, min_free: &str) -> World {
    let mut world = due_to_move();
    let url = world.server.as_ref().unwrap().url();
    let root = world.later[0].1.root.display().to_string();
    let cold = disk.path().display().to_string();
    let settings =
        format!("{}{NO_MERGES}min_free = \"{min_free}\"\n", world.layers).replace(&root, &cold);
    world.config = world.config_of("disk.toml", &url, &settings);
    world.later[0].1 = Lake::new(disk.path());
    world
}

/// The state's files are copied: links do not lead from one file system to another.
fn rows_of(world: &World) -> Value {
    let layers = world.layers_of();
    let file = |(name, layer): (&String, &String)| {
        let lake = if layer == "hot" {
            &world.lake
        } else {
            &world.later[0].1
        };
        lake.partition("cpu").join(name).display().to_string()
    };
    let outputs: Vec<String> = layers.iter().map(file).collect();
    let copies = fs::read_dir(world.copies()).unwrap();
    let inputs: Vec<String> = copies
        .map(|copy| copy.unwrap().path().display().to_string())
        .collect();
    json!({"name": "now", "outputs": outputs, "inputs": inputs, "may_lack": false})
}

#[test]
fn with_too_little_room_in_the_next_layer_files_stay_and_move_by_themselves_later() {
    let Some(disk) = Tmpfs::mount("1m") else {
        return;
    };
    let world = on_disk(&disk, "4 MiB");
    let mut program = Program::start(&["run", "--config", &world.config]);
    program.wait_for_log("too little free space: no move starts");
    std::thread::sleep(Duration::from_secs(2));
    assert!(all_in(&world, "hot"));
    assert!(
        fs::read_dir(disk.path()).unwrap().next().is_none(),
        "nothing was begun"
    );
    let waiting = items(&world, IDLE);
    let charged = |item: &&Value| item["attempts"] != item["forgiven"];
    assert_eq!(waiting.iter().filter(charged).count(), 0, "{waiting:?}");
    assert_states(&[rows_of(&world)]);
    drop(program);
    let make_due = || {
        let waiting = items(&world, IDLE);
        let _: () = world.redis().del(IDLE).unwrap();
        for mut item in waiting {
            item["time_s"] = json!(1);
            push(&world, IDLE, &item.to_string());
        }
    };
    make_due();
    let (code, _, log) = run(&["once", "--config", &world.config]);
    // Not always all three: the first one that finds no room ends the run.
    let said = log.contains("did not leave") && log.contains("for want of free space");
    assert!(code == 1 && said, "{code}: {log}");
    disk.resize("64m");
    make_due();
    until(&world, "room again", || {
        all_in(&world, "cold") && world.is_at_rest()
    });
    assert_states(&[rows_of(&world)]);
}

#[test]
fn a_next_layer_that_is_really_full_leaves_no_trace_of_the_attempt() {
    // Room for bytes, but none for the copy's name: folders db, cpu, tmp, the work folder and its lock.
    let Some(disk) = Tmpfs::mount("16m,nr_inodes=6") else {
        return;
    };
    let world = on_disk(&disk, "1 KiB");
    let (code, _, log) = run(&["once", "--config", &world.config]);
    assert_eq!(code, 1, "{log}");
    assert!(
        log.contains("move failed") && log.contains("No space left"),
        "{log}"
    );
    assert!(world.leftovers().is_empty(), "{:?}", world.leftovers());
    assert!(all_in(&world, "hot"));
    let waiting = items(&world, IDLE);
    assert_eq!(waiting.len(), 3, "{waiting:?}");
    assert!(
        waiting.iter().any(|item| item["forgiven"] == 1),
        "{waiting:?}"
    );
    assert!(
        waiting
            .iter()
            .all(|item| item["attempts"] == item["forgiven"]),
        "{waiting:?}"
    );
    assert_states(&[rows_of(&world)]);
    disk.resize("16m,nr_inodes=1000");
    until(&world, "inodes again", || {
        all_in(&world, "cold") && world.is_at_rest()
    });
    assert!(world.leftovers().is_empty());
    assert_states(&[rows_of(&world)]);
}

#[test]
fn a_fault_in_any_call_of_a_move_heals_by_itself() {
    std::thread::scope(|scope| {
        for call in ["claim_drops", "announce_output", "end_move"] {
            for fault in [Fault::SwallowAnswer, Fault::CutRequest] {
                scope.spawn(move || {
                    let server = RedisServer::start();
                    let proxy = Proxy::start(&server.socket());
                    let world =
                        World::layered(Some(server), NO_MERGES, &[("cold", "")], true, "[]");
                    let settings =
                        format!("{}{NO_MERGES}janitor_interval = \"1s\"\n", world.layers);
                    let config = world.config_of("proxied.toml", &proxy.url(), &settings);
                    know_scripts(&world);
                    proxy.fail_next(&sha1_of(call), fault);
                    let mut daemon = Program::start(&["run", "--config", &config]);
                    world.write(0..3, 400);
                    daemon.wait_until("the fault", |_| proxy.is_done());
                    daemon.wait_until("moved files", |_| {
                        let layers = world.layers_of();
                        layers.len() == 3 && all_in(&world, "cold") && world.is_at_rest()
                    });
                    world.assert_nothing_stray(call);
                    assert_states(&[world.state("in the end", false)]);
                });
            }
        }
    });
}

#[test]
fn a_copy_stays_when_the_server_forgot_its_commit_after_the_original_was_deleted() {
    let settings = format!("{NO_MERGES}janitor_interval = \"1s\"\n");
    let server = Some(RedisServer::start());
    let mut world = World::layered(server, &settings, &[("cold", "")], true, "[]");
    world.write(0..1, 400);
    let log = world.folder.path().join("stopped.log");
    let mut stopped = Stopped::start(MovePublished, &["once", "--config", &world.config], &log);
    let file = append_file(world.server.as_ref().unwrap());
    let length = fs::metadata(&file).unwrap().len();
    stopped.go_on();
    assert_eq!(stopped.wait(), Some(0), "{}", stopped.log());
    until(&world, "the original's end", || world.is_at_rest());
    let copy = world.on_disk();
    assert_eq!(copy, world.indexed());
    let server = world.server.as_mut().unwrap();
    server.kill();
    let appended = fs::File::options().write(true).open(&file).unwrap();
    assert!(appended.metadata().unwrap().len() > length);
    appended.set_len(length).unwrap();
    server.run();
    assert!(all_in(&world, "hot"), "the server still knows the commit");
    let mut daemon = Program::start(&["run", "--config", &world.config]);
    daemon.wait_for_log("is not there");
    // Past a retry and passes of the janitor.
    std::thread::sleep(Duration::from_secs(12));
    assert_eq!(world.on_disk(), copy, "{}", daemon.log());
    assert!(
        daemon.log().contains("may hold its only copy"),
        "{}",
        daemon.log()
    );
}
