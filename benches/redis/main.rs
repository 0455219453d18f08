//! Speed of the catalog in Redis, beside a naive way of working: decode and encode the tail plan
//! for each file, one `SCAN` per table and one call per list.
//!
//! `cargo bench --bench redis` starts a private `redis-server` without persistence and prints one
//! table. CPU is what the server's main thread used; "longest" is the longest single call.
#![allow(
    missing_docs,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench may stop at the first surprise"
)]

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use gigamerge::{
    catalog::{
        Catalog, LayerRule, Level, MergeCommit, Policy,
        redis::{RedisCatalog, scripts},
    },
    config::RedisConfig,
    model::{DataPath, IndexEntry, Iteration, LayerName, TableRef, WriterId},
};
use tokio::runtime::Runtime;

const FILES: usize = 17_280;
const LEASE: Duration = Duration::from_mins(1);

struct Server {
    child: Child,
    folder: tempfile::TempDir,
}

impl Server {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let child = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .args(["--slowlog-log-slower-than", "-1"])
            .arg("--unixsocket")
            .arg(folder.path().join("redis.sock"))
            .arg("--dir")
            .arg(folder.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server must be installed");
        let server = Self { child, folder };
        let deadline = Instant::now() + Duration::from_secs(10);
        while redis::Client::open(server.url())
            .unwrap()
            .get_connection()
            .is_err()
        {
            assert!(Instant::now() < deadline, "redis-server did not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn url(&self) -> String {
        format!("unix://{}", self.folder.path().join("redis.sock").display())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Bench {
    server: Server,
    connection: redis::Connection,
    runtime: Runtime,
    rounds: usize,
}

/// Milliseconds.
#[derive(Clone, Copy)]
struct Cost {
    wall: f64,
    cpu: f64,
    scripts: f64,
    longest: f64,
}

impl Bench {
    fn info(&mut self, section: &str) -> String {
        redis::cmd("INFO")
            .arg(section)
            .query(&mut self.connection)
            .unwrap()
    }

    fn cpu_ms(&mut self) -> f64 {
        let info = self.info("cpu");
        ["used_cpu_sys_main_thread:", "used_cpu_user_main_thread:"]
            .iter()
            .filter_map(|name| {
                info.split(name)
                    .nth(1)?
                    .lines()
                    .next()?
                    .trim()
                    .parse::<f64>()
                    .ok()
            })
            .sum::<f64>()
            * 1000.0
    }

    /// Time of the commands that clients sent themselves; what scripts call is inside of theirs.
    fn scripts_ms(&mut self) -> f64 {
        let info = self.info("commandstats");
        let of = |name: &str| {
            let line = info.split(&format!("cmdstat_{name}:")).nth(1)?;
            line.split("usec=")
                .nth(1)?
                .split(',')
                .next()?
                .parse::<f64>()
                .ok()
        };
        ["evalsha", "eval", "scan", "llen", "time"]
            .iter()
            .filter_map(|name| of(name))
            .sum::<f64>()
            / 1000.0
    }

    fn longest_ms(&mut self) -> f64 {
        let rows: Vec<redis::Value> = redis::cmd("SLOWLOG")
            .arg("GET")
            .arg(-1)
            .query(&mut self.connection)
            .unwrap();
        rows.into_iter()
            .filter_map(|row| match row {
                redis::Value::Array(row) => match row.get(2) {
                    Some(redis::Value::Int(us)) => Some(*us),
                    _ => None,
                },
                _ => None,
            })
            .max()
            .unwrap_or(0) as f64
            / 1000.0
    }

    fn cost(&mut self, work: impl FnOnce(&mut redis::Connection, &Runtime)) -> Cost {
        let set = |connection: &mut redis::Connection, us: i64| {
            redis::cmd("CONFIG")
                .arg("SET")
                .arg("slowlog-log-slower-than")
                .arg(us)
                .exec(connection)
                .unwrap();
        };
        redis::cmd("CONFIG")
            .arg("RESETSTAT")
            .exec(&mut self.connection)
            .unwrap();
        redis::cmd("SLOWLOG")
            .arg("RESET")
            .exec(&mut self.connection)
            .unwrap();
        set(&mut self.connection, 500);
        let cpu = self.cpu_ms();
        let started = Instant::now();
        work(&mut self.connection, &self.runtime);
        let wall = started.elapsed().as_secs_f64() * 1000.0;
        let cost = Cost {
            wall,
            cpu: self.cpu_ms() - cpu,
            scripts: self.scripts_ms(),
            longest: self.longest_ms(),
        };
        set(&mut self.connection, -1);
        cost
    }

    /// The median by CPU of several rounds, each on a keyspace that `prepare` made.
    fn row(
        &mut self,
        name: &str,
        mut prepare: impl FnMut(&mut redis::Connection, &Runtime),
        mut work: impl FnMut(&mut redis::Connection, &Runtime),
    ) {
        let mut costs = Vec::new();
        for _ in 0..self.rounds {
            redis::cmd("FLUSHALL").exec(&mut self.connection).unwrap();
            prepare(&mut self.connection, &self.runtime);
            costs.push(self.cost(&mut work));
        }
        costs.sort_by(|a, b| a.cpu.total_cmp(&b.cpu));
        let Cost {
            wall,
            cpu,
            scripts,
            longest,
        } = costs[costs.len() / 2];
        println!("| {name} | {wall:.1} | {cpu:.1} | {scripts:.1} | {longest:.1} |");
    }

    fn catalog(&self, max_size_bytes: u64) -> Arc<RedisCatalog> {
        let config = RedisConfig {
            timeout: Duration::from_secs(60),
            ..RedisConfig::new(&self.server.url())
        };
        Arc::new(RedisCatalog::connect(&config, Arc::new(policy(max_size_bytes))).unwrap())
    }
}

fn policy(max_size_bytes: u64) -> Policy {
    let level = |iteration, timeout_s| Level {
        iteration: Iteration(iteration),
        timeout: Duration::from_secs(timeout_s),
        max_size_bytes,
    };
    Policy {
        levels: vec![level(1, 10), level(2, 100), level(3, 1000), level(4, 4200)],
        layers: vec![LayerRule {
            name: layer(),
            kind: "fs".to_owned(),
            url: "file:///data".to_owned(),
            ttl: None,
            next: None,
        }],
        writers: None,
    }
}

fn layer() -> LayerName {
    LayerName::parse("hot").unwrap()
}

fn entry(number: usize, size_bytes: u64, folders: usize) -> IndexEntry {
    let folder = number % folders;
    let dir = format!(
        "date=2024-01-{:02}/hour={:02}",
        10 + folder / 24,
        folder % 24
    );
    let time_ns = 1_705_327_200_000_000_000 + i64::try_from(number).unwrap();
    IndexEntry {
        layer: layer(),
        table: TableRef::new("default", "test").unwrap(),
        path: DataPath::parse(&format!(
            "{dir}/{}.1.parquet",
            uuid::Uuid::from_u128(number as u128)
        ))
        .unwrap(),
        size_bytes,
        row_count: 1000,
        chunk_time_ns: time_ns,
        min_time_ns: time_ns,
        max_time_ns: time_ns,
        min: serde_json::Map::new(),
        max: serde_json::Map::new(),
        writer: WriterId::default(),
        extra: serde_json::Map::new(),
    }
}

fn entries(size_bytes: u64, folders: usize) -> Vec<IndexEntry> {
    (0..FILES)
        .map(|number| entry(number, size_bytes, folders))
        .collect()
}

fn as_json(entry: &IndexEntry, command: &str) -> String {
    serde_json::json!({
        "layer": entry.layer.as_str(), "database": entry.table.database(), "table": entry.table.table(),
        "path": entry.path.as_str(), "size_bytes": entry.size_bytes, "row_count": entry.row_count,
        "chunk_time": 0, "min_time": 0, "max_time": 0, "min": {}, "max": {}, "writer_id": "",
        "str_min_time": entry.min_time_ns.to_string(), "str_max_time": entry.max_time_ns.to_string(),
        "str_chunk_time": entry.chunk_time_ns.to_string(), "cmd": command,
    })
    .to_string()
}

fn naive_patch(
    connection: &mut redis::Connection,
    max_size: u64,
    texts: &[String],
    per_call: usize,
) {
    let script = redis::Script::new(include_str!("naive_patch.lua"));
    for texts in texts.chunks(per_call) {
        let mut call = script.key(format!("[[10,{max_size},1]]"));
        for text in texts {
            call.arg(text);
        }
        let _: u64 = call.invoke(connection).unwrap();
    }
}

fn registering(bench: &mut Bench) {
    println!(
        "\n17,280 files | wall ms | CPU ms | in calls ms | longest call ms |\n| --- | --- | --- | --- | --- |"
    );
    for (what, size, max_size, folders, per_call) in [
        (
            "1 MB each, 10 MiB per plan, 72 folders, calls of 2,000",
            1_000_000,
            10 << 20,
            72,
            2000,
        ),
        (
            "10 kB each, 100 MB per plan, 72 folders, calls of 2,000",
            10_000,
            100_000_000,
            72,
            2000,
        ),
        (
            "10 kB each, 100 MB per plan, 1 folder, calls of 100",
            10_000,
            100_000_000,
            1,
            100,
        ),
        (
            "10 kB each, 100 MB per plan, 1 folder, calls of 2,000",
            10_000,
            100_000_000,
            1,
            2000,
        ),
    ] {
        let entries = entries(size, folders);
        let catalog = bench.catalog(max_size);
        bench.row(
            &format!("add {what}: ours"),
            |_, _| (),
            |_, runtime| {
                for entries in entries.chunks(per_call) {
                    runtime.block_on(catalog.batch(entries, &[])).unwrap();
                }
            },
        );
        let rounds = bench.rounds;
        if per_call < 2000 || folders == 1 {
            bench.rounds = 1;
        }
        let texts: Vec<String> = entries.iter().map(|entry| as_json(entry, "ADD")).collect();
        bench.row(
            &format!("add {what}: naive"),
            |_, _| (),
            |connection, _| {
                naive_patch(connection, max_size, &texts, per_call);
            },
        );
        bench.rounds = rounds;
    }
    let entries = entries(1_000_000, 72);
    let catalog = bench.catalog(10 << 20);
    bench.row(
        "delete: ours",
        |_, runtime| runtime.block_on(catalog.batch(&entries, &[])).unwrap(),
        |_, runtime| runtime.block_on(catalog.batch(&[], &entries)).unwrap(),
    );
    let texts: Vec<String> = entries
        .iter()
        .map(|entry| as_json(entry, "DELETE"))
        .collect();
    bench.row(
        "delete: naive",
        |_, runtime| runtime.block_on(catalog.batch(&entries, &[])).unwrap(),
        |connection, _| naive_patch(connection, 10 << 20, &texts, 2000),
    );
}

/// 100 tables with 1,000 lists each; a quarter for each level; the first `due` plans are due.
fn make_lists(connection: &mut redis::Connection, count: usize, due: usize) {
    let (now_s, _): (i64, i64) = redis::cmd("TIME").query(connection).unwrap();
    for first in (0..count).step_by(1000) {
        let mut pipeline = redis::pipe();
        for number in first..(first + 1000).min(count) {
            let (table, iteration) = (number % 100, 1 + number / 100 % 4);
            let dir = format!(
                "date=2024-{:02}-{:02}/hour={:02}",
                1 + number / 40_000,
                1 + number / 2400 % 28,
                number / 100 % 24
            );
            let key = format!(
                "merge:db{}:t{table}:{iteration}:{dir}:hot:{number}:idle",
                table % 3
            );
            let time_s = if number < due {
                now_s - 5
            } else {
                now_s + 3600
            };
            let plan = format!(
                r#"{{"id":"{}","time_s":{time_s},"size":2000,"paths":["{dir}/a.{iteration}.parquet","{dir}/b.{iteration}.parquet"]}}"#,
                uuid::Uuid::from_u128(number as u128)
            );
            pipeline.cmd("RPUSH").arg(key).arg(plan).ignore();
        }
        pipeline.exec(connection).unwrap();
    }
}

fn finding(bench: &mut Bench) {
    const LISTS: usize = 100_000;
    println!(
        "\n| 100,000 merge lists of 100 tables | wall ms | CPU ms | in calls ms | longest call ms |\n| --- | --- | --- | --- | --- |"
    );
    let find = |catalog: &RedisCatalog, runtime: &Runtime| {
        let mut found = Vec::new();
        for iteration in 1..=4 {
            found.extend(
                runtime
                    .block_on(catalog.due_merges(Iteration(iteration), 1000))
                    .unwrap(),
            );
        }
        found
    };
    let prepare = |due| {
        move |connection: &mut redis::Connection, _: &Runtime| make_lists(connection, LISTS, due)
    };
    let fresh = std::cell::RefCell::new(bench.catalog(10 << 20));
    let unused: Vec<_> = (0..bench.rounds).map(|_| bench.catalog(10 << 20)).collect();
    let unused = std::cell::RefCell::new(unused);
    bench.row(
        "none due, one tick of 4 levels, first one: ours",
        |connection, _| {
            make_lists(connection, LISTS, 0);
            // One that has seen nothing yet.
            fresh.replace(unused.borrow_mut().pop().unwrap());
        },
        |_, runtime| assert!(find(&fresh.borrow(), runtime).is_empty()),
    );
    let warm = bench.catalog(10 << 20);
    bench.row(
        "none due, a later tick of 4 levels: ours",
        |connection, runtime| {
            make_lists(connection, LISTS, 0);
            assert!(find(&warm, runtime).is_empty());
        },
        |_, runtime| assert!(find(&warm, runtime).is_empty()),
    );
    let catalog = bench.catalog(10 << 20);
    bench.row(
        "1,000 due, found and claimed: ours",
        prepare(1000),
        |_, runtime| {
            let plans = find(&catalog, runtime);
            assert_eq!(plans.len(), 1000);
            for plan in plans {
                let claim = runtime
                    .block_on(catalog.claim_merge(&plan.queue, LEASE))
                    .unwrap();
                assert!(claim.is_some());
            }
        },
    );
    let script = redis::Script::new(include_str!("naive_claim.lua"));
    let rounds = std::mem::replace(&mut bench.rounds, 1);
    bench.row("none due, one table: naive", prepare(0), |connection, _| {
        let keys: Vec<String> = redis::cmd("SCAN")
            .arg(0)
            .arg("MATCH")
            .arg("merge:db0:t0:*")
            .arg("COUNT")
            .arg(10_000_000)
            .query::<(u64, Vec<String>)>(connection)
            .unwrap()
            .1;
        for key in keys {
            let _: String = script.key(key).invoke(connection).unwrap();
        }
    });
    bench.rounds = rounds;
}

fn ending(bench: &mut Bench) {
    const ITEMS: usize = 10_000;
    println!(
        "\n| 10,000 plans in processing | wall ms | CPU ms | in calls ms | longest call ms |\n| --- | --- | --- | --- | --- |"
    );
    let catalog = bench.catalog(150);
    // Two files of 100 bytes do not fit into one plan, so each file is a plan of its own.
    let entries: Vec<IndexEntry> = (0..ITEMS).map(|number| entry(number, 100, 1)).collect();
    for place in [0, ITEMS - 1] {
        let claim = std::cell::RefCell::new(None);
        bench.rounds = 3;
        bench.row(
            &format!(
                "commit the {}: ours",
                if place == 0 { "first" } else { "last" }
            ),
            |connection, runtime| {
                runtime.block_on(catalog.batch(&entries, &[])).unwrap();
                let idle = "merge:default:test:1:date=2024-01-10/hour=00:hot::idle";
                let (now_s, _): (i64, i64) = redis::cmd("TIME").query(connection).unwrap();
                let texts: Vec<String> = redis::cmd("LRANGE")
                    .arg(idle)
                    .arg(0)
                    .arg(-1)
                    .query(connection)
                    .unwrap();
                let mut pipeline = redis::pipe();
                pipeline.cmd("DEL").arg(idle).ignore();
                for text in &texts {
                    let mut item: serde_json::Value = serde_json::from_str(text).unwrap();
                    item["time_s"] = (now_s - 1).into();
                    pipeline
                        .cmd("RPUSH")
                        .arg(idle)
                        .arg(item.to_string())
                        .ignore();
                }
                pipeline.exec(connection).unwrap();
                let plans = runtime
                    .block_on(catalog.due_merges(Iteration(1), 1))
                    .unwrap();
                for number in 0..ITEMS {
                    let claimed = runtime
                        .block_on(catalog.claim_merge(&plans[0].queue, LEASE))
                        .unwrap()
                        .unwrap();
                    if number == place {
                        claim.replace(Some(claimed));
                    }
                }
            },
            |_, runtime| {
                let claim = claim.borrow();
                let claim = claim.as_ref().unwrap();
                let commit = MergeCommit {
                    output: None,
                    sources: claim.plan.paths.clone(),
                    set_aside: Vec::new(),
                    grace: Duration::ZERO,
                };
                runtime
                    .block_on(catalog.commit_merge(claim, &commit))
                    .unwrap();
            },
        );
    }
}

fn main() {
    let server = Server::start();
    let connection = redis::Client::open(server.url())
        .unwrap()
        .get_connection()
        .unwrap();
    let mut bench = Bench {
        server,
        connection,
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap(),
        rounds: 5,
    };
    let names: Vec<String> = scripts::all()
        .iter()
        .map(|script| script.name.to_owned())
        .collect();
    println!(
        "{} with {}",
        bench
            .info("server")
            .lines()
            .find(|line| line.starts_with("redis_version"))
            .unwrap_or_default(),
        names.join(", ")
    );
    let wanted = std::env::args().nth(1).unwrap_or_default();
    for (name, part) in [
        ("register", registering as fn(&mut Bench)),
        ("find", finding),
        ("end", ending),
    ] {
        if wanted.is_empty() || wanted.starts_with("--") || wanted == name {
            part(&mut bench);
        }
    }
}
