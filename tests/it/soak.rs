//! Three workers, two writers, two readers, and everything that can go wrong, at random: no reader ever sees a
//! row missing or twice, and in the end every row is there once and nothing else.
//!
//! Files leave the first layer for a second one: those of the first writer when they are merged, those of the
//! second one before, so that they are merged where they went. None expires.
//!
//! `tests/soak --rounds N [--seed S]` runs it for long; without it, a short form runs with the other tests.

use std::{
    fs,
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{
    lake::{HOUR_START_NS, Lake, next, python, write_file},
    program::Program,
    proxy::Proxy,
    redis_server::RedisServer,
    world::{WRITERS_LEVELS, World, register_by},
};

const ROUNDS: u64 = 12;
const SEED: u64 = 20_260_724;
const WORKERS: usize = 3;
const WRITERS: usize = 2;
const READERS: usize = 2;
const ROWS_PER_FILE: i64 = 60;
const GRACE_S: u64 = 8;
/// Rows of writer n have ids from n of these on.
const IDS_PER_WRITER: i64 = 1_000_000_000;
/// By how writer n plans, its files are merged in the first layer, or move before they are.
const PLANNED_BY: [(&str, &str); WRITERS] = [
    (WRITERS_LEVELS, KEPT),
    ("[[2,104857600,1],[2,419430400,2]]", MOVED),
];
const KEPT: &str = r#"{"hot":{"url":"","name":"hot","type":"fs","ttl_sec":0,"layer_to":""}}"#;
const MOVED: &str = r#"{"hot":{"url":"","name":"hot","type":"fs","ttl_sec":1,"layer_to":"cold"}}"#;
const SETTLE_TIME_MAX: Duration = Duration::from_secs(180);

const SETTINGS: &str = "[merge]\nlevels = [\n\
    { iteration = 1, timeout = \"1s\", max_size = \"100 MiB\" },\n\
    { iteration = 2, timeout = \"1s\", max_size = \"400 MiB\" },\n]\n\
    [drops]\ngrace = \"8s\"\ninterval = \"1s\"\n\
    [worker]\nlease = \"5s\"\njanitor_interval = \"2s\"\nconcurrency = 2\n";

#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    stops: u64,
    restarts: u64,
    cuts: u64,
    bad_weather: u64,
    merges: u64,
    promotions: u64,
    moves: u64,
}

/// What the readers found.
#[derive(Debug, Default)]
struct Seen {
    queries: u64,
    late: u64,
    rows: u64,
    lost: u64,
    doubled: u64,
    wrong: u64,
    errors: Vec<String>,
}

impl Seen {
    fn add(&mut self, text: &str) {
        for line in text.lines() {
            let found: Value = serde_json::from_str(line).unwrap();
            let number = |name: &str| found[name].as_u64().unwrap_or(0);
            self.queries += 1;
            self.late += number("late");
            self.rows += number("rows");
            self.lost += number("lost");
            self.doubled += number("doubled");
            self.wrong += number("wrong");
            self.errors
                .extend(found["error"].as_str().map(str::to_owned));
        }
    }
}

struct Worker {
    config: String,
    proxy: Proxy,
    program: Program,
    stopped_until: Option<Instant>,
}

impl Worker {
    fn new(world: &World, server: &Path, number: usize, seed: u64) -> Self {
        let proxy = Proxy::with_seed(server, seed);
        let settings = format!("{}{SETTINGS}", world.layers);
        let config = world.config_of(&format!("worker-{number}.toml"), &proxy.url(), &settings);
        let program = Program::start(&["run", "--config", &config]);
        Self {
            config,
            proxy,
            program,
            stopped_until: None,
        }
    }

    fn kill(&mut self, tally: &mut Tally) {
        self.program.signal(Signal::KILL);
        self.count(tally);
        self.stopped_until = None;
        self.program = Program::start(&["run", "--config", &self.config]);
    }

    fn count(&self, tally: &mut Tally) {
        let log = self.program.log();
        tally.merges += log.matches(" merged table=").count() as u64;
        tally.promotions += log.matches(" promoted table=").count() as u64;
        tally.moves += log.matches(" moved table=").count() as u64;
        for bad in ["panicked", " expired table=", " given up"] {
            assert!(!log.contains(bad), "{bad}: {log}");
        }
    }

    fn wake(&mut self) {
        if self.stopped_until.take().is_some() {
            self.program.signal(Signal::CONT);
        }
    }
}

/// Writes files and registers them, with nothing but the contract, until it is told to stop.
fn write(
    lake: &Lake,
    socket: &str,
    number: usize,
    (acked, stop): (&[AtomicU64], &AtomicBool),
    (gate, acked_file): (&RwLock<()>, &Path),
) {
    let mut state = SEED + number as u64;
    let first_id = i64::try_from(number).unwrap() * IDS_PER_WRITER;
    while !stop.load(Ordering::SeqCst) {
        let count = acked[number].load(Ordering::SeqCst);
        let name = format!("{number:08}-0000-4000-8000-{count:012}.1.parquet");
        let start = first_id + i64::try_from(count).unwrap() * ROWS_PER_FILE;
        let ids = start..start + ROWS_PER_FILE;
        let column = |values: Vec<i64>| Arc::new(Int64Array::from(values)) as ArrayRef;
        let times = ids.clone().map(|_| {
            HOUR_START_NS + i64::try_from(next(&mut state) % 3_600_000_000).unwrap() * 1000
        });
        let rows = RecordBatch::try_from_iter([
            ("__timestamp", column(times.collect())),
            ("id", column(ids.clone().collect())),
            ("value", column(ids.map(|id| id * 7 % 1_000_003).collect())),
        ])
        .unwrap();
        let aside = lake.root.join("db/cpu/tmp").join(&name);
        fs::create_dir_all(aside.parent().unwrap()).unwrap();
        fs::create_dir_all(lake.partition("cpu")).unwrap();
        write_file(&aside, &rows);
        fs::rename(&aside, lake.partition("cpu").join(&name)).unwrap();
        // A writer whose call fails cannot know what came of it; here it waits for the server.
        let open = gate.read().unwrap();
        let mut redis = redis::Client::open(socket)
            .unwrap()
            .get_connection()
            .unwrap();
        register_by(&mut redis, lake, "cpu", (&name, 60), PLANNED_BY[number]);
        acked[number].fetch_add(1, Ordering::SeqCst);
        drop(open);
        let counts: Vec<String> = acked
            .iter()
            .map(|count| count.load(Ordering::SeqCst).to_string())
            .collect();
        let fresh = acked_file.with_extension(number.to_string());
        fs::write(&fresh, counts.join(" ")).unwrap();
        fs::rename(&fresh, acked_file).unwrap();
        std::thread::sleep(Duration::from_millis(80 + next(&mut state) % 200));
    }
}

/// A reader, and the file that it writes to.
fn reader(world: &World, socket: &Path, name: &str, is_once: bool) -> Child {
    let request = json!({
        "socket": socket, "key": "files:db:cpu:date=2024-01-15",
        "data": {"hot": world.lake.root.join("db/cpu/data"), "cold": world.later[0].1.root.join("db/cpu/data")},
        "acked": world.folder.path().join("acked"), "rows_per_file": ROWS_PER_FILE, "grace_s": GRACE_S, "once": is_once,
    });
    let file = world.folder.path().join(format!("{name}.json"));
    fs::write(&file, request.to_string()).unwrap();
    let out = fs::File::create(world.folder.path().join(format!("{name}.out"))).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/duckdb/soak_reader.py");
    python()
        .arg(script)
        .arg(file)
        .stdin(Stdio::piped())
        .stdout(out)
        .spawn()
        .unwrap()
}

fn number_of(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a whole number"))
}

#[test]
fn readers_never_miss_a_row_and_never_see_one_twice_whatever_happens_to_workers() {
    let rounds = number_of("SOAK_ROUNDS", ROUNDS);
    let seed = number_of("SOAK_SEED", SEED);
    let started = Instant::now();
    println!("soak: {rounds} rounds, seed {seed}");
    let mut state = seed;
    let server = RedisServer::start();
    let (socket, url) = (server.socket(), server.url());
    let later = [("cold", "")];
    let mut world = World::layered(Some(server), SETTINGS, &later, true, WRITERS_LEVELS);
    fs::write(world.folder.path().join("acked"), "0 0").unwrap();
    let mut workers: Vec<Worker> = (0..WORKERS)
        .map(|number| Worker::new(&world, &socket, number, seed + number as u64))
        .collect();
    let acked: Arc<Vec<AtomicU64>> = Arc::new((0..WRITERS).map(|_| AtomicU64::new(0)).collect());
    let (stop, gate) = (Arc::new(AtomicBool::new(false)), Arc::new(RwLock::new(())));
    let writers: Vec<_> = (0..WRITERS)
        .map(|number| {
            let (acked, stop, gate) = (Arc::clone(&acked), Arc::clone(&stop), Arc::clone(&gate));
            let (lake, url) = (Lake::new(&world.lake.root), url.clone());
            let file = world.folder.path().join("acked");
            std::thread::spawn(move || write(&lake, &url, number, (&acked, &stop), (&gate, &file)))
        })
        .collect();
    let mut readers: Vec<Child> = (0..READERS)
        .map(|number| reader(&world, &socket, &format!("reader-{number}"), false))
        .collect();

    let mut tally = Tally::default();
    for round in 1..=rounds {
        misfortune(
            round,
            &mut state,
            &mut workers,
            &mut world,
            &gate,
            &mut tally,
        );
        std::thread::sleep(Duration::from_millis(300 + next(&mut state) % 1200));
        if round % 50 == 0 {
            println!("soak: round {round}, {tally:?}");
        }
    }

    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.join().expect("a writer");
    }
    for worker in &mut workers {
        worker.proxy.bad_one_in(0);
        worker.wake();
    }
    settle(&world, &mut workers);
    let mut seen = Seen::default();
    for (number, reader) in readers.iter_mut().enumerate() {
        // The end of its stdin is its end.
        drop(reader.stdin.take());
        assert!(reader.wait().unwrap().success());
        let out = world.folder.path().join(format!("reader-{number}.out"));
        seen.add(&fs::read_to_string(out).unwrap());
    }
    for worker in &mut workers {
        worker.program.signal(Signal::TERM);
        worker.program.wait_for_exit(Duration::from_secs(40));
        worker.count(&mut tally);
    }
    let mut last = reader(&world, &socket, "last", true);
    assert!(last.wait().unwrap().success());
    let text = fs::read_to_string(world.folder.path().join("last.out")).unwrap();
    seen.add(&text);
    let rows_written: u64 = acked
        .iter()
        .map(|count| count.load(Ordering::SeqCst) * 60)
        .sum();
    let rows_left = serde_json::from_str::<Value>(&text).unwrap()["rows"].as_u64();
    println!(
        "soak: {rounds} rounds in {} s, {} kills, {} stops, {} Redis restarts, {} cuts of all connections, {} spells of bad network, \
         {} merges, {} promotions, {} moves, {rows_written} rows written, {} queries ({} too late to count), {} rows checked, {} rows lost, {} rows doubled",
        started.elapsed().as_secs(),
        tally.kills,
        tally.stops,
        tally.restarts,
        tally.cuts,
        tally.bad_weather,
        tally.merges,
        tally.promotions,
        tally.moves,
        seen.queries,
        seen.late,
        seen.rows,
        seen.lost,
        seen.doubled,
    );
    assert_eq!(
        (seen.lost, seen.doubled, seen.wrong),
        (0, 0, 0),
        "seed {seed}: {seen:?}"
    );
    assert_eq!(rows_left, Some(rows_written), "seed {seed}");
    assert!(
        tally.merges > 0 && tally.moves > 0 && seen.queries > 1,
        "{tally:?} {seen:?}"
    );
    world.assert_nothing_stray("soak");
}

/// Which one comes next is not left to chance, so that a short run has all of them.
fn misfortune(
    round: u64,
    state: &mut u64,
    workers: &mut [Worker],
    world: &mut World,
    gate: &RwLock<()>,
    tally: &mut Tally,
) {
    for worker in &mut *workers {
        worker.proxy.bad_one_in(0);
        if worker
            .stopped_until
            .is_some_and(|until| until <= Instant::now())
        {
            worker.wake();
        }
    }
    let worker = usize::try_from(next(state)).unwrap() % workers.len();
    let worker = &mut workers[worker];
    match round * 7 % 10 {
        0..=3 => {
            worker.kill(tally);
            tally.kills += 1;
        }
        4 | 5 if worker.stopped_until.is_none() => {
            worker.program.signal(Signal::STOP);
            let time = Duration::from_millis(300 + next(state) % 9000);
            worker.stopped_until = Some(Instant::now() + time);
            tally.stops += 1;
        }
        6 => {
            let closed = gate.write().unwrap();
            let server = world.server.as_mut().unwrap();
            server.kill();
            std::thread::sleep(Duration::from_millis(next(state) % 1000));
            server.run();
            drop(closed);
            tally.restarts += 1;
        }
        7 => {
            worker.proxy.cut_all();
            tally.cuts += 1;
        }
        _ => {
            worker.proxy.bad_one_in(3 + next(state) % 20);
            tally.bad_weather += 1;
        }
    }
}

/// Everything that was written is merged and in the last layer, and nothing is left of what went wrong.
fn settle(world: &World, workers: &mut [Worker]) {
    let deadline = Instant::now() + SETTLE_TIME_MAX;
    loop {
        let is_final = world
            .layers_of()
            .iter()
            .all(|(name, layer)| name.ends_with(".3.parquet") && layer == "cold");
        if is_final && world.is_at_rest() && world.leftovers().is_empty() {
            return;
        }
        let logs = || {
            workers
                .iter()
                .map(|worker| worker.program.log())
                .collect::<Vec<_>>()
                .join("\n---\n")
        };
        assert!(
            Instant::now() < deadline,
            "does not come to rest: keys {:?}, disk without index {:?}, index without disk {:?}, scratch {:?}\n{}",
            world.keys("*"),
            world
                .on_disk()
                .difference(&world.indexed())
                .collect::<Vec<_>>(),
            world
                .indexed()
                .difference(&world.on_disk())
                .collect::<Vec<_>>(),
            world.leftovers(),
            logs()
        );
        std::thread::sleep(Duration::from_millis(300));
    }
}
