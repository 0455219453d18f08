//! Speed of the catalog in Redis, beside a naive way of working: decode and encode the tail plan
//! for each file, one `SCAN` per table and one call per list.
//!
//! `cargo bench --bench redis` starts a private `redis-server` without persistence and prints one
//! table. CPU is what the server's main thread used; "longest" is the longest single call.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a bench may stop at the first surprise"
)]

mod data;
mod end;
mod find;
mod long_plan;
mod register;

use std::{
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use gigamerge::{
    catalog::redis::{RedisCatalog, scripts},
    config::RedisConfig,
};
use tokio::runtime::Runtime;

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
        ["evalsha", "eval", "scan", "llen", "lrange", "time"]
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
        Arc::new(RedisCatalog::connect(&config, Arc::new(data::policy(max_size_bytes))).unwrap())
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
        ("register", register::registering as fn(&mut Bench)),
        ("find", find::finding),
        ("end", end::ending),
        ("long", long_plan::long_plans),
    ] {
        if wanted.is_empty() || wanted.starts_with("--") || wanted == name {
            part(&mut bench);
        }
    }
}
