//! The program is killed (`SIGKILL`) at each named step, and started again. No row is lost or doubled at any
//! moment, every invariant of ARCHITECTURE.md holds, and in the end nothing is left behind.

use std::{
    fs,
    sync::Mutex,
    time::{Duration, Instant},
};

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use gigamerge::crash_points::CrashPoint::{self, *};
use redis::Commands;
use serde_json::{Value, json};

use crate::support::{
    crashing::{self, Crash},
    lake::{HOUR_START_NS, PARTITION, batch, write_file},
    program,
    redis_server::RedisServer,
    world::{World, assert_states, register},
};

/// Cases that run at a time: they mostly wait.
const CASES_AT_A_TIME: usize = 8;
/// Longer than a lease, a retry and every timeout of the configuration together.
const TIME_MAX: Duration = Duration::from_secs(60);
const ROWS: usize = 400;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scenario {
    /// Three files that are due.
    Merge,
    /// They were merged; now the output is due to be promoted, and the inputs to be deleted.
    After,
    /// An input is not there for a while.
    Missing,
    /// Types that do not unite.
    Conflict,
    /// An earlier worker died after it had published its output.
    DeadWorker,
    /// Files from elsewhere.
    Import,
    /// Three files whose time in their layer is over, and an item of a file that is gone.
    Move,
    /// Three files whose time in the last layer is over.
    Expire,
    /// A file that is due to move is not there for a while.
    MoveMissing,
    /// A file that is due to move is a link.
    MoveLink,
    /// An earlier worker died after it had published its copy.
    DeadMove,
}

#[derive(Debug, Clone, Copy)]
struct Case {
    scenario: Scenario,
    point: CrashPoint,
    count: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Both,
    Folder,
    Redis,
}

/// Which scenario leads to each point, and on which catalog. A new point does not compile without its line.
fn scenarios(point: CrashPoint) -> (On, &'static [(Scenario, u32)]) {
    use Scenario::*;
    match point {
        MergeClaimed | MergeResolved | MergeWritten | MergeAnnounced | MergePublished
        | MergeCommitted => (On::Both, &[(Merge, 1)]),
        MergeReleased => (On::Both, &[(Missing, 1)]),
        MergeJudged => (On::Both, &[(DeadWorker, 1)]),
        MergeGivenUp => (On::Both, &[(Conflict, 1)]),
        PromoteAnnounced | PromotePublished | DropsClaimed | DropChecked | DropsFinished => {
            (On::Both, &[(After, 1)])
        }
        // The first of three, and the last.
        DropDeleted => (On::Both, &[(After, 1), (After, 3)]),
        // On a folder, the start itself removes them.
        DeadOutputFound | DeadOutputRemoved => (On::Redis, &[(DeadWorker, 1), (DeadMove, 1)]),
        // The first and the last of three.
        MoveClaimed => (On::Redis, &[(Move, 1), (Move, 3), (Expire, 1)]),
        MoveCopied | MoveAnnounced | MoveEnded => (On::Redis, &[(Move, 1)]),
        MovePublished => (On::Redis, &[(Move, 1), (Move, 3)]),
        MoveCommitted => (On::Redis, &[(Move, 1), (Move, 3), (Expire, 1), (Expire, 3)]),
        MoveReleased => (On::Redis, &[(MoveMissing, 1)]),
        MoveGivenUp => (On::Redis, &[(MoveLink, 1)]),
        // Files found, output announced, commit; then a promotion's and the deletes'.
        MetadataWritten | MetadataSynced | MetadataRenamed => (
            On::Folder,
            &[
                (Merge, 1),
                (Merge, 2),
                (Merge, 3),
                (After, 1),
                (After, 2),
                (After, 3),
            ],
        ),
        ImportCopied | ImportRecorded | ImportRegistered | ImportFinished => {
            (On::Both, &[(Import, 1)])
        }
        ImportPublished => (On::Both, &[(Import, 1), (Import, 2)]),
    }
}

/// Nothing is merged; what is replaced goes soon.
const NO_MERGES: &str = "[merge]\nenabled = false\n[drops]\ngrace = \"1s\"\ninterval = \"1s\"\n[worker]\nlease = \"5s\"\n";

impl Scenario {
    fn world(self, on_redis: bool) -> World {
        let later: &[(&str, &str)] = match self {
            Self::Move | Self::MoveMissing | Self::MoveLink | Self::DeadMove => &[("cold", "")],
            Self::Expire => &[],
            _ => return World::new(on_redis),
        };
        World::layered(Some(RedisServer::start()), NO_MERGES, later, true, "[]")
    }

    fn is_final(self, world: &World) -> bool {
        match self {
            Self::Conflict | Self::MoveLink => true,
            Self::Expire => world.indexed().is_empty(),
            Self::Move | Self::MoveMissing | Self::DeadMove => {
                world.layers_of().values().all(|layer| layer == "cold")
            }
            _ => world
                .indexed()
                .iter()
                .all(|name| name.ends_with(".3.parquet")),
        }
    }
}

fn cases(on_redis: bool) -> Vec<Case> {
    let other = if on_redis { On::Folder } else { On::Redis };
    CrashPoint::ALL
        .iter()
        .filter(|point| scenarios(**point).0 != other)
        .flat_map(|&point| {
            let of = scenarios(point).1.iter();
            of.map(move |&(scenario, count)| Case {
                scenario,
                point,
                count,
            })
        })
        .collect()
}

#[test]
fn every_crash_point_is_in_the_matrix() {
    for point in CrashPoint::ALL {
        let (_, scenarios) = scenarios(*point);
        assert!(!scenarios.is_empty(), "{} is in no case", point.name());
    }
    let mut names: Vec<&str> = CrashPoint::ALL.iter().map(|point| point.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(
        names.len(),
        CrashPoint::ALL.len(),
        "two points share a name"
    );
}

#[test]
fn a_kill_at_any_step_loses_and_doubles_nothing_on_a_folder() {
    run_all(false);
}

#[test]
fn a_kill_at_any_step_loses_and_doubles_nothing_on_redis() {
    run_all(true);
}

#[test]
fn nothing_in_the_environment_makes_the_shipped_program_die() {
    let world = World::new(false);
    world.write(0..3, ROWS);
    std::thread::sleep(Duration::from_millis(2100));
    let crash = Crash::kill(MergePublished);
    let child = crashing::command(crash, &["once", "--config", &world.config]);
    let mut shipped = program::command();
    shipped.args(["once", "--config", &world.config]);
    shipped.envs(
        child
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    assert!(shipped.output().unwrap().status.success());
    assert_eq!(world.indexed().len(), 1);
}

fn run_all(on_redis: bool) {
    let waiting = Mutex::new(cases(on_redis));
    let states = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..CASES_AT_A_TIME {
            scope.spawn(|| {
                while let Some(case) = { waiting.lock().unwrap().pop() } {
                    let found = run_case(case, on_redis);
                    states.lock().unwrap().push(found);
                }
            });
        }
    });
    let states = states.into_inner().unwrap();
    assert_eq!(states.len(), cases(on_redis).len());
    let all: Vec<Value> = states
        .iter()
        .flat_map(|(_, states)| states.clone())
        .collect();
    assert_states(&all);
}

/// The states that the case went through; their files live as long as the world.
fn run_case(case: Case, on_redis: bool) -> (World, Vec<Value>) {
    let what = format!("{:?} {} {}", case.scenario, case.point.name(), case.count);
    let world = case.scenario.world(on_redis);
    let task = prepare(case.scenario, &world);
    let task: Vec<&str> = task.iter().map(String::as_str).collect();
    let crash = Crash {
        count: case.count,
        ..Crash::kill(case.point)
    };
    let mut logs = String::new();
    let started = Instant::now();
    loop {
        let (died, output) = crashing::run(crash, &task);
        if died {
            break;
        }
        logs.push_str(&String::from_utf8_lossy(&output.stderr));
        assert!(
            started.elapsed() < TIME_MAX,
            "{what} was not reached:\n{logs}"
        );
        std::thread::sleep(Duration::from_millis(250));
    }
    let mut states = vec![look(&world, &format!("{what} crashed"), case.scenario)];
    mend(case.scenario, &world);
    settle(&world, case.scenario, &what, &mut states);
    if case.scenario == Scenario::Import {
        // IMPORTED-ONCE
        let (code, out, log) = program::run(&task);
        assert_eq!(code, 0, "{what}: {out}{log}");
        settle(&world, case.scenario, &format!("{what} again"), &mut states);
    }
    world.assert_nothing_stray(&what);
    let left = world.leftovers();
    assert!(left.is_empty(), "{what}: scratch was left: {left:?}");
    (world, states)
}

/// What the crashing program is to do.
fn prepare(scenario: Scenario, world: &World) -> Vec<String> {
    let once = vec![
        "once".to_owned(),
        "--config".to_owned(),
        world.config.clone(),
    ];
    match scenario {
        Scenario::Import => {
            let from = world.folder.path().join("in").join(PARTITION);
            fs::create_dir_all(&from).unwrap();
            fs::create_dir_all(world.copies()).unwrap();
            for seed in 0..3 {
                write_file(&from.join(format!("{seed}.parquet")), &batch(seed, ROWS));
                write_file(
                    &world.copies().join(format!("{seed}.parquet")),
                    &batch(seed, ROWS),
                );
            }
            let from = world.folder.path().join("in").display().to_string();
            return [
                vec!["import".to_owned(), "db".to_owned(), "cpu".to_owned(), from],
                once[1..].to_vec(),
            ]
            .concat();
        }
        Scenario::Conflict => {
            world.write(1..3, ROWS);
            write_conflict(world);
        }
        _ => world.write(0..3, ROWS),
    }
    if scenario == Scenario::Missing {
        // Registered, but not due yet.
        run_once(world);
    }
    if matches!(
        scenario,
        Scenario::Missing | Scenario::MoveMissing | Scenario::MoveLink
    ) {
        let name = world.lake.files("cpu").remove(0);
        let file = world.lake.partition("cpu").join(&name);
        let hidden = world.folder.path().join("hidden");
        fs::rename(&file, &hidden).unwrap();
        if scenario == Scenario::MoveLink {
            std::os::unix::fs::symlink(&hidden, &file).unwrap();
        }
    }
    if scenario == Scenario::Move {
        let item = json!({"id": "gone", "writer_id": "", "database": "db", "table": "cpu",
            "path_from": format!("{PARTITION}/gone.1.parquet"), "layer_from": "hot",
            "path_to": format!("{PARTITION}/to.1.parquet"), "layer_to": "cold", "time_s": 1});
        let list = "move:db:cpu:hot::idle";
        let _: i64 = world.redis().rpush(list, item.to_string()).unwrap();
    }
    std::thread::sleep(Duration::from_millis(2100));
    if scenario == Scenario::After {
        run_once(world);
        std::thread::sleep(Duration::from_millis(2100));
    }
    let dead = match scenario {
        Scenario::DeadWorker => Some(MergePublished),
        Scenario::DeadMove => Some(MovePublished),
        _ => None,
    };
    if let Some(point) = dead {
        let task = ["once", "--config", &world.config];
        assert!(crashing::run(Crash::kill(point), &task).0);
    }
    once
}

/// A file whose column `host` holds numbers, where others hold texts.
fn write_conflict(world: &World) {
    let name = "00000000-0000-4000-8000-00000000c0de.1.parquet";
    let times: ArrayRef =
        std::sync::Arc::new(Int64Array::from(vec![HOUR_START_NS, HOUR_START_NS + 1]));
    let hosts: ArrayRef = std::sync::Arc::new(Int64Array::from(vec![7, 8]));
    let texts: ArrayRef = std::sync::Arc::new(StringArray::from(vec!["7", "8"]));
    let rows = |hosts| {
        RecordBatch::try_from_iter([("host", hosts), ("__timestamp", times.clone())]).unwrap()
    };
    let aside = world.folder.path().join("aside");
    write_file(&aside, &rows(hosts));
    fs::rename(aside, world.lake.partition("cpu").join(name)).unwrap();
    // The copies' reader shows values as text.
    write_file(&world.copies().join("conflict.parquet"), &rows(texts));
    if world.server.is_some() {
        register(&mut world.redis(), &world.lake, "cpu", name, 2);
    }
}

fn mend(scenario: Scenario, world: &World) {
    if matches!(scenario, Scenario::Missing | Scenario::MoveMissing) {
        let name = world
            .indexed()
            .difference(&world.on_disk())
            .next()
            .unwrap()
            .clone();
        fs::rename(
            world.folder.path().join("hidden"),
            world.lake.partition("cpu").join(name),
        )
        .unwrap();
    }
}

fn run_once(world: &World) {
    let (_, _, log) = program::run(&["once", "--config", &world.config]);
    assert!(!log.contains("panicked"), "{log}");
}

/// What must hold at every moment.
fn look(world: &World, what: &str, scenario: Scenario) -> Value {
    world.assert_one_holder(what);
    let hides = matches!(scenario, Scenario::Missing | Scenario::MoveMissing);
    if hides && !world.indexed().is_subset(&world.on_disk()) {
        // The test itself hides a file.
        return serde_json::json!({"name": what, "outputs": [], "inputs": [], "may_lack": true});
    }
    world.assert_bytes_are_there(what);
    world.state(
        what,
        matches!(scenario, Scenario::Import | Scenario::Expire),
    )
}

/// The shipped program goes on until everything is done.
fn settle(world: &World, scenario: Scenario, what: &str, states: &mut Vec<Value>) {
    let started = Instant::now();
    let mut seen = None;
    loop {
        if scenario == Scenario::Import && world.indexed().is_empty() {
            let from = world.folder.path().join("in").display().to_string();
            let (code, out, log) =
                program::run(&["import", "db", "cpu", &from, "--config", &world.config]);
            assert_eq!(code, 0, "{what}: {out}{log}");
        }
        run_once(world);
        let visible = world.visible();
        if seen.as_ref() != Some(&visible) {
            states.push(look(world, &format!("{what} {}", states.len()), scenario));
            seen = Some(visible);
        }
        let is_empty = world.indexed().is_empty() && scenario != Scenario::Expire;
        if scenario.is_final(world) && world.is_at_rest() && !is_empty {
            break;
        }
        assert!(
            started.elapsed() < TIME_MAX,
            "{what} does not come to rest: index {:?}, disk {:?}, {:?}",
            world.indexed(),
            world.on_disk(),
            world.server.as_ref().map(|_| world.keys("*"))
        );
        std::thread::sleep(Duration::from_millis(400));
    }
    let mut last = look(world, &format!("{what} at rest"), scenario);
    last["may_lack"] = (scenario == Scenario::Expire).into();
    states.push(last);
}
