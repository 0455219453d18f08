//! Calls that see a plan of many files: for how long one of them keeps the server from others.

use gigamerge::{
    catalog::{Catalog, redis::scripts},
    model::IndexEntry,
};

use crate::{
    Bench,
    data::{as_json, entry},
};

/// Writers' entries hold the least and the greatest value of each column.
const COLUMNS: usize = 8;
/// Files of each part into which a plan is split.
const PART_FILES: usize = 2000;
/// Files that are registered beside a plan.
const MORE_FILES: usize = 1000;
const ROUNDS: usize = 5;

const QUEUE: [&str; 6] = [
    "merge",
    "default",
    "test",
    "1:date=2024-01-10/hour=00",
    "hot",
    "",
];
const LIST: &str = "merge:default:test:1:date=2024-01-10/hour=00:hot:";
const LEVELS: &str = "[[10,1099511627776,1],[100,1099511627776,2]]";
const LAYERS: &str =
    r#"{"hot":{"url":"file:///data","name":"hot","type":"fs","ttl_sec":0,"layer_to":""}}"#;
const OUTPUT: &str = "date=2024-01-10/hour=00/merged.2.parquet";

fn entries(first: usize, count: usize) -> Vec<IndexEntry> {
    let with_columns = |number: usize| {
        let mut entry = entry(number, 100, 1);
        for column in 0..COLUMNS {
            let name = format!("column_{column}");
            entry.min.insert(name.clone(), number.into());
            entry.max.insert(name, (number + 1000).into());
        }
        entry
    };
    (first..first + count).map(with_columns).collect()
}

fn paths_json(entries: &[IndexEntry]) -> String {
    let paths: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
    serde_json::json!(paths).to_string()
}

struct Calls<'a> {
    bench: &'a mut Bench,
    plan: String,
    /// Name of each call and its times in milliseconds.
    times: Vec<(&'static str, Vec<f64>)>,
}

impl Calls<'_> {
    fn call<T: redis::FromRedisValue>(
        &mut self,
        label: &'static str,
        name: &str,
        keys: &[&str],
        arguments: &[&str],
    ) -> T {
        let script = scripts::all()
            .into_iter()
            .find(|script| script.name == name);
        let connection = &mut self.bench.connection;
        let sha1: String = redis::cmd("SCRIPT")
            .arg("LOAD")
            .arg(script.unwrap().text)
            .query(connection)
            .unwrap();
        redis::cmd("CONFIG")
            .arg("RESETSTAT")
            .exec(connection)
            .unwrap();
        let mut command = redis::cmd("EVALSHA");
        command.arg(sha1).arg(keys.len()).arg(keys).arg(arguments);
        let reply = command.query(connection).unwrap();
        let ms = self.bench.scripts_ms();
        match self.times.iter_mut().find(|(known, _)| *known == label) {
            Some((_, times)) => times.push(ms),
            None => self.times.push((label, vec![ms])),
        }
        reply
    }

    /// The plan waits as it was first, and is due.
    fn reset(&mut self) {
        let connection = &mut self.bench.connection;
        for state in ["idle", "processing"] {
            redis::cmd("DEL")
                .arg(format!("{LIST}:{state}"))
                .exec(connection)
                .unwrap();
        }
        redis::cmd("RPUSH")
            .arg(format!("{LIST}:idle"))
            .arg(&self.plan)
            .exec(connection)
            .unwrap();
    }

    fn claim(&mut self) -> String {
        self.call("claim", "get_merge_plan", &QUEUE, &["60", "someone"])
    }

    fn round(&mut self, files: &[IndexEntry]) {
        self.reset();
        let more: Vec<String> = entries(files.len(), MORE_FILES)
            .iter()
            .map(|entry| as_json(entry, "ADD"))
            .collect();
        let more: Vec<&str> = more.iter().map(String::as_str).collect();
        let _: i64 = self.call(
            "register 1,000 more",
            "patch_index",
            &[LEVELS, LAYERS, "x"],
            &more,
        );
        self.reset();
        let idle = format!("{LIST}:idle");
        let _: redis::Value = self.call("look for what is due", "peek_plans", &[&idle], &["128"]);
        let token = self.claim();
        let token: String = self.call("renew", "renew_lease", &QUEUE, &[&token, "60"]);
        let _: i64 = self.call("announce", "announce_output", &QUEUE, &[&token, OUTPUT]);
        let _: i64 = self.call(
            "give back",
            "release_plan",
            &QUEUE,
            &[&token, "0", "head", "forgiven"],
        );
        let token = self.claim();
        let _: i64 = self.call(
            "give up",
            "fail_plan",
            &QUEUE,
            &[&token, "it cannot succeed"],
        );
        let failed: String = redis::cmd("LPOP")
            .arg(format!("{LIST}:failed"))
            .query(&mut self.bench.connection)
            .unwrap();
        redis::cmd("RPUSH")
            .arg(format!("{LIST}:failed"))
            .arg(&failed)
            .exec(&mut self.bench.connection)
            .unwrap();
        let _: i64 = self.call(
            "retry what was given up",
            "retry_failed",
            &QUEUE,
            &[&failed],
        );
        let token = self.claim();
        let parts: Vec<String> = files
            .chunks(PART_FILES)
            .map(|part| format!(r#"{{"size":1,"paths":{}}}"#, paths_json(part)))
            .collect();
        let mut arguments = vec![token.as_str(), "x"];
        arguments.extend(parts.iter().map(String::as_str));
        let _: i64 = self.call(
            "split into plans of 2,000",
            "split_plan",
            &QUEUE,
            &arguments,
        );
        self.reset();
        let _ = self.claim();
        let [_, database, table, suffix, layer, writer] = QUEUE;
        let _: String = self.call(
            "end by id",
            "end_merge",
            &[database, table, suffix, layer, writer, "p"],
            &[],
        );
        self.reset();
        let token = self.claim();
        let mut output = files[0].clone();
        output.path = gigamerge::model::DataPath::parse(OUTPUT).unwrap();
        let (output, count) = (as_json(&output, "ADD"), files.len().to_string());
        let mut arguments = vec![token.as_str(), "600", LEVELS, LAYERS, &output, "x", &count];
        arguments.extend(files.iter().map(|file| file.path.as_str()));
        let done: Vec<String> = self.call(
            "commit",
            "end_merge",
            &[database, table, suffix, layer, writer, "p"],
            &arguments,
        );
        assert_eq!(done, ["committed"]);
        let done: String = self.call(
            "undelete",
            "undelete",
            &[database, table, layer, writer],
            &[OUTPUT, "0", "x", "why"],
        );
        assert_eq!(done, "done");
    }
}

pub fn long_plans(bench: &mut Bench) {
    println!(
        "\n| one call, ms | files of the plan | median | longest |\n| --- | --- | --- | --- |"
    );
    for count in [2000, 10_000, 100_000] {
        let files = entries(0, count);
        let catalog = bench.catalog(1 << 40);
        let plan = format!(
            r#"{{"id":"p","time_s":1,"size":{},"paths":{}}}"#,
            100 * count,
            paths_json(&files)
        );
        let mut calls = Calls {
            bench,
            plan,
            times: Vec::new(),
        };
        for _ in 0..ROUNDS {
            redis::cmd("FLUSHALL")
                .exec(&mut calls.bench.connection)
                .unwrap();
            calls
                .bench
                .runtime
                .block_on(catalog.batch(&files, &[]))
                .unwrap();
            calls.round(&files);
        }
        for (label, mut times) in calls.times {
            times.sort_by(f64::total_cmp);
            let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
            println!("| {label} | {count} | {median:.1} | {longest:.1} |");
        }
    }
}
