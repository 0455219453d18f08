//! The scripts themselves, called as any client would, and what the catalog makes of data that
//! other programs left.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use gigamerge::{
    catalog::{Catalog, CommitOutcome, EntryFilter, MergeCommit, redis::RedisCatalog},
    model::Iteration,
};
use redis::{Connection, RedisResult};
use serde_json::{Value, json};

use crate::{
    catalog_suite::policy,
    support::redis_server::{RedisServer, call},
};

const DIR: &str = "date=2024-01-15/hour=14";
const LEVELS: &str = "[[0,1000,1],[0,1000,2]]";
const LAYERS: &str = r#"{"":{"ttl_sec":0},"l1":{"ttl_sec":0},"aged":{"ttl_sec":60,"layer_to":"l1"},"last":{"ttl_sec":60,"layer_to":""}}"#;
const IDLE: &str = "merge:d:t:1:date=2024-01-15/hour=14:l1::idle";
const PROCESSING: &str = "merge:d:t:1:date=2024-01-15/hour=14:l1::processing";
const FAILED: &str = "merge:d:t:1:date=2024-01-15/hour=14:l1::failed";
const QUEUE: [&str; 6] = ["merge", "d", "t", "1:date=2024-01-15/hour=14", "l1", ""];

fn patch(connection: &mut Connection, entries: &[Value]) -> RedisResult<i64> {
    let texts: Vec<String> = entries.iter().map(Value::to_string).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    call(connection, "patch_index", &[LEVELS, LAYERS], &texts)
}

fn entry(name: &str) -> Value {
    json!({"layer":"l1","database":"d","table":"t","path":format!("{DIR}/{name}.parquet"),
        "size_bytes":100,"row_count":1,"chunk_time":0,"min_time":0,"max_time":0,"min":{},"max":{},
        "writer_id":"","str_min_time":"1","str_max_time":"2","str_chunk_time":"1705327215999999999","cmd":"ADD"})
}

fn with(mut entry: Value, field: &str, value: Value) -> Value {
    entry[field] = value;
    entry
}

fn list(connection: &mut Connection, key: &str) -> Vec<String> {
    redis::cmd("LRANGE")
        .arg(key)
        .arg(0)
        .arg(-1)
        .query(connection)
        .unwrap()
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

fn push(connection: &mut Connection, key: &str, item: &str) {
    redis::cmd("RPUSH")
        .arg(key)
        .arg(item)
        .exec(connection)
        .unwrap();
}

fn hash(connection: &mut Connection, key: &str) -> BTreeMap<String, String> {
    redis::cmd("HGETALL").arg(key).query(connection).unwrap()
}

fn now_s(connection: &mut Connection) -> i64 {
    let (now_s, _): (i64, i64) = redis::cmd("TIME").query(connection).unwrap();
    now_s
}

/// Everything that is stored, in one text.
fn everything(connection: &mut Connection) -> String {
    let mut keys: Vec<String> = redis::cmd("KEYS").arg("*").query(connection).unwrap();
    keys.sort();
    let mut dump = String::new();
    for key in keys {
        let value: Vec<u8> = redis::cmd("DUMP").arg(&key).query(connection).unwrap();
        dump.extend([key, format!("={value:?};")]);
    }
    dump
}

fn catalog(server: &RedisServer) -> RedisCatalog {
    RedisCatalog::connect(&server.config(), Arc::new(policy())).unwrap()
}

#[test]
fn one_unusable_entry_leaves_a_whole_batch_undone() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    patch(redis, &[entry("a.1")]).unwrap();
    let before = everything(redis);
    let good = entry("b.1");
    let bad = [
        ("not a JSON object", json!([1])),
        ("path is missing", with(entry("x.1"), "path", Value::Null)),
        ("cmd is neither", with(entry("x.1"), "cmd", json!("PUT"))),
        (
            "database is empty",
            with(entry("x.1"), "database", json!("")),
        ),
        (
            "table holds a colon",
            with(entry("x.1"), "table", json!("a:b")),
        ),
        ("table holds", with(entry("x.1"), "table", json!(".."))),
        ("layer is missing", with(entry("x.1"), "layer", Value::Null)),
        (
            "\"cold\" is not configured",
            with(entry("x.1"), "layer", json!("cold")),
        ),
        (
            "writer_id holds a colon",
            with(entry("x.1"), "writer_id", json!("a:b")),
        ),
        (
            "size_bytes is missing",
            with(entry("x.1"), "size_bytes", Value::Null),
        ),
        ("size_bytes is", with(entry("x.1"), "size_bytes", json!(-1))),
        (
            "size_bytes is",
            with(entry("x.1"), "size_bytes", json!("5")),
        ),
        (
            "Invalid file path format",
            with(entry("x.1"), "path", json!("../x.1.parquet")),
        ),
        (
            "Invalid file path format",
            with(entry("x.1"), "path", json!("a/../x.1.parquet")),
        ),
        (
            "Invalid file path format",
            with(entry("x.1"), "path", json!("a//x.1.parquet")),
        ),
        (
            "Invalid file path format",
            with(entry("x.1"), "path", json!("a/x\n.1.parquet")),
        ),
        (
            "Invalid file path format",
            with(entry("x.1"), "path", json!("a/x.0.parquet")),
        ),
        (
            "str_chunk_time",
            with(
                with(entry("x.1"), "layer", json!("aged")),
                "str_chunk_time",
                json!("x"),
            ),
        ),
    ];
    for (reason, bad) in bad {
        let error = patch(redis, &[good.clone(), bad.clone(), good.clone()]).unwrap_err();
        assert!(error.to_string().contains(reason), "{bad}: {error}");
        assert_eq!(everything(redis), before, "{bad}");
    }
    let error = call::<i64>(redis, "patch_index", &[LEVELS, LAYERS], &["{", "]"]).unwrap_err();
    assert!(error.to_string().contains("entry 1"), "{error}");
}

#[test]
fn a_key_of_another_type_leaves_a_batch_undone() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    for (key, command) in [
        ("files:d:t:date=2024-01-15", vec!["SET", "x"]),
        ("folders:d:t", vec!["SET", "x"]),
        ("folders:d:t", vec!["HSET", DIR, "many"]),
        (IDLE, vec!["SET", "x"]),
    ] {
        redis::cmd("FLUSHALL").exec(redis).unwrap();
        redis::cmd(command[0])
            .arg(key)
            .arg(&command[1..])
            .exec(redis)
            .unwrap();
        let before = everything(redis);
        let other = with(entry("a.1"), "table", json!("other"));
        assert!(patch(redis, &[other, entry("b.1")]).is_err(), "{key}");
        assert_eq!(everything(redis), before, "{key}");
    }
}

#[test]
fn an_entry_is_stored_as_the_text_it_came_in() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let text = r#"{ "cmd":"ADD","path":"a/b.1.parquet","layer":"l1","database":"d","table":"t","size_bytes":9007199254740993, "max":{"n":18446744073709551615,"e":[]},"unknown":{"x":1.50}}"#;
    let count: i64 = call(redis, "patch_index", &[LEVELS, LAYERS], &[text]).unwrap();
    assert_eq!(count, 1);
    assert_eq!(hash(redis, "files:d:t:a")["a/b.1.parquet"], text);
}

#[test]
fn the_guides_older_form_plans_with_ten_seconds_and_any_layer() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let mut old = entry("a.1");
    old.as_object_mut().unwrap().remove("writer_id");
    old["layer"] = json!("");
    let text = old.to_string();
    let now = now_s(redis);
    let count: i64 = call(redis, "patch_index", &["1000", "2000"], &[&text]).unwrap();
    assert_eq!(count, 1);
    let plans = list(redis, "merge:d:t:1:date=2024-01-15/hour=14:::idle");
    let due_s = parse(&plans[0])["time_s"].as_i64().unwrap();
    assert!((now + 10..now + 13).contains(&due_s));
    assert!(call::<i64>(redis, "patch_index", &["1000", "x"], &[&text]).is_err());
    assert!(call::<i64>(redis, "patch_index", &[], &[&text]).is_err());
}

#[test]
fn a_plan_that_the_original_wrote_takes_more_files() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let original =
        format!(r#"{{"paths":["{DIR}\/z.1.parquet"],"time_s":5,"size":800,"id":"an-id"}}"#);
    push(redis, IDLE, &original);
    patch(redis, &[entry("a.1"), entry("b.1"), entry("c.1")]).unwrap();
    let plans: Vec<Value> = list(redis, IDLE).iter().map(|text| parse(text)).collect();
    assert_eq!(plans.len(), 2);
    assert_eq!(plans[0]["id"], "an-id");
    assert_eq!(plans[0]["size"], 1000);
    assert_eq!(plans[0]["time_s"], 5);
    let paths: Vec<String> = ["z", "a", "b"]
        .map(|n| format!("{DIR}/{n}.1.parquet"))
        .to_vec();
    assert_eq!(plans[0]["paths"], json!(paths));
    assert_eq!(plans[1]["paths"], json!([format!("{DIR}/c.1.parquet")]));
}

#[test]
fn a_tail_that_cannot_be_understood_or_was_tried_before_is_left_alone() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    for tail in [
        "not json".to_owned(),
        "[]".to_owned(),
        r#"{"id":"x","time_s":1,"size":1,"paths":["a"],"attempts":1}"#.to_owned(),
        r#"{"attempts":1,"id":"x","time_s":1,"size":1,"paths":["a"]}"#.to_owned(),
        r#"{"id":"x","time_s":1,"size":1,"paths":["a"],"extra":["b"]}"#.to_owned(),
        r#"{"id":"x","time_s":1,"size":"1","paths":["a"]}"#.to_owned(),
    ] {
        redis::cmd("FLUSHALL").exec(redis).unwrap();
        push(redis, IDLE, &tail);
        patch(redis, &[entry("a.1")]).unwrap();
        let plans = list(redis, IDLE);
        assert_eq!(plans.len(), 2, "{tail}");
        assert_eq!(plans[0], tail);
    }
}

#[test]
fn the_earlier_of_merge_and_move_takes_a_file() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let aged = |name| with(entry(name), "layer", json!("aged"));
    patch(redis, &[aged("a.1"), aged("b.3")]).unwrap();
    let merges = list(redis, "merge:d:t:1:date=2024-01-15/hour=14:aged::idle");
    assert_eq!(merges.len(), 1);
    let moves = list(redis, "move:d:t:aged::idle");
    assert_eq!(moves.len(), 1);
    let item = parse(&moves[0]);
    assert_eq!(item["path_from"], format!("{DIR}/b.3.parquet"));
    assert_eq!(item["layer_to"], "l1");
    // The second that the chunk lies in, not the one a double would round it to.
    assert_eq!(item["time_s"], 1_705_327_215 + 60);
}

#[test]
fn ids_do_not_repeat_within_a_call_or_between_calls() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let large = |n: usize| with(entry(&format!("f{n}.1")), "size_bytes", json!(2000));
    for round in 0..20 {
        let files: Vec<Value> = (0..100).map(|n| large(round * 100 + n)).collect();
        patch(redis, &files).unwrap();
    }
    let mut ids: Vec<String> = list(redis, IDLE)
        .iter()
        .map(|text| parse(text)["id"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(ids.len(), 2000);
    assert!(ids.iter().all(|id| uuid_like(id)));
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 2000);
}

fn uuid_like(id: &str) -> bool {
    uuid::Uuid::parse_str(id).is_ok_and(|id| id.get_version_num() == 4)
}

#[test]
fn a_claim_changes_nothing_of_an_item_but_its_time_attempts_and_owner() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let item =
        r#"{"big":9007199254740993, "time_s" : 7 ,"paths":["\"time_s\":1"],"none":[],"id":"x"}"#;
    push(redis, IDLE, item);
    let text: String = call(redis, "get_merge_plan", &QUEUE, &["60", "me %1 \"quoted\""]).unwrap();
    let claimed = parse(&text);
    assert_eq!(claimed["attempts"], 1);
    assert_eq!(claimed["owner"], "me %1 \"quoted\"");
    assert!(text.contains("9007199254740993"), "{text}");
    assert!(text.contains(r#""none":[]"#), "{text}");
    assert_eq!(claimed["paths"], json!(["\"time_s\":1"]));
    assert_eq!(list(redis, PROCESSING), [text.as_str()]);
    assert!(list(redis, IDLE).is_empty());
    let renewed: String = call(redis, "renew_lease", &QUEUE, &[&text, "900"]).unwrap();
    assert_ne!(renewed, text);
    let freed: i64 = call(redis, "release_plan", &QUEUE, &[&renewed, "0", "head"]).unwrap();
    assert_eq!(freed, 1);
    let again: String = call(redis, "get_merge_plan", &QUEUE, &["60", "you"]).unwrap();
    assert_eq!(parse(&again)["attempts"], 2);
    assert_eq!(parse(&again)["owner"], "you");
    assert!(again.contains("9007199254740993"), "{again}");
}

#[test]
fn a_renewal_whose_reply_was_lost_can_be_repeated_until_somebody_takes_over() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    push(redis, IDLE, r#"{"id":"x","time_s":7,"paths":[]}"#);
    let text: String = call(redis, "get_merge_plan", &QUEUE, &["60", "me"]).unwrap();
    let renew = |redis: &mut Connection, lease_s: &str| -> String {
        call(redis, "renew_lease", &QUEUE, &[&text, lease_s]).unwrap()
    };
    let unheard = renew(redis, "60");
    assert_ne!(unheard, text);
    let heard = renew(redis, "90");
    assert_eq!(list(redis, PROCESSING), [heard.as_str()]);
    assert_eq!(parse(&heard)["attempts"], 1);
    // An old compactor takes it over: same owner, its own long lease.
    let mut taken = parse(&heard);
    taken["time_s"] = json!(now_s(redis) + 1800);
    redis::cmd("LSET")
        .arg(PROCESSING)
        .arg(0)
        .arg(taken.to_string())
        .exec(redis)
        .unwrap();
    assert_eq!(renew(redis, "90"), "");
    // One of ours takes it over.
    taken["time_s"] = json!(1);
    redis::cmd("LSET")
        .arg(PROCESSING)
        .arg(0)
        .arg(taken.to_string())
        .exec(redis)
        .unwrap();
    let next: String = call(redis, "get_merge_plan", &QUEUE, &["60", "you"]).unwrap();
    assert_eq!(parse(&next)["attempts"], 2);
    assert_eq!(renew(redis, "90"), "");
    assert_eq!(list(redis, PROCESSING), [next]);
}

#[test]
fn a_renewal_never_takes_an_item_back_from_a_program_that_does_not_know_owners() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    push(redis, IDLE, r#"{"id":"x","time_s":7,"paths":[]}"#);
    let text: String = call(redis, "get_merge_plan", &QUEUE, &["60", "me"]).unwrap();
    let unheard: String = call(redis, "renew_lease", &QUEUE, &[&text, "60"]).unwrap();
    // It sets nothing but its time, 1800 s from then: seen at once, and when these are nearly over.
    for left_s in [1800, 100, 80] {
        let mut taken = parse(&unheard);
        taken["time_s"] = json!(now_s(redis) + left_s);
        let taken = taken.to_string();
        redis::cmd("LSET")
            .arg(PROCESSING)
            .arg(0)
            .arg(&taken)
            .exec(redis)
            .unwrap();
        for (proof, lease_s) in [(&text, "120"), (&text, "7200"), (&unheard, "7200")] {
            let renewed: String = call(redis, "renew_lease", &QUEUE, &[proof, lease_s]).unwrap();
            assert_eq!(renewed, "", "{left_s} s before its end");
            assert_eq!(list(redis, PROCESSING), [taken.as_str()]);
        }
    }
}

#[test]
fn an_item_whose_time_cannot_be_set_safely_is_set_aside_and_not_handed_out() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    for item in [
        r#"{"id":"x","time_s":1,"time_s":1}"#,
        r#"{"id":"x","time\u005fs":1}"#,
        r#"{"id":"x","time_s":1,"attempts":"many"}"#,
        r#"{"id":"x","time_s":"1"}"#,
        r"[1]",
        r#""time_s""#,
        "",
    ] {
        redis::cmd("FLUSHALL").exec(redis).unwrap();
        push(redis, IDLE, item);
        let text: String = call(redis, "get_merge_plan", &QUEUE, &["60", "me"]).unwrap();
        assert_eq!(text, "", "{item}");
        let failed = list(redis, FAILED);
        assert_eq!(failed.len(), 1, "{item}");
        assert_eq!(parse(&failed[0])["item"], item);
        assert!(list(redis, IDLE).is_empty());
    }
}

#[test]
fn what_cannot_be_used_does_not_block_what_stands_behind_it() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let later = now_s(redis) + 1000;
    for n in 0..50 {
        push(
            redis,
            IDLE,
            &format!(r#"{{"id":"later{n}","time_s":{later}}}"#),
        );
        push(redis, IDLE, &format!("broken {n}"));
    }
    push(redis, IDLE, r#"{"id":"due","time_s":1}"#);
    let text: String = call(redis, "get_merge_plan", &QUEUE, &[]).unwrap();
    assert_eq!(parse(&text)["id"], "due");
    assert_eq!(list(redis, FAILED).len(), 50);
    assert_eq!(list(redis, IDLE).len(), 50);
    assert!(parse(&text).get("attempts").is_none());
}

#[test]
fn plans_of_dead_workers_do_not_starve_behind_fresh_ones() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let now = now_s(redis);
    push(
        redis,
        PROCESSING,
        &format!(r#"{{"id":"alive","time_s":{}}}"#, now + 1000),
    );
    push(
        redis,
        PROCESSING,
        &format!(r#"{{"id":"dead","time_s":{}}}"#, now - 100),
    );
    push(
        redis,
        IDLE,
        &format!(r#"{{"id":"fresh","time_s":{}}}"#, now - 1),
    );
    let mut ids = Vec::new();
    for _ in 0..3 {
        let text: String = call(redis, "get_merge_plan", &QUEUE, &["60", "me"]).unwrap();
        ids.push(
            serde_json::from_str::<Value>(&text).map_or(Value::Null, |item| item["id"].clone()),
        );
    }
    assert_eq!(ids, [json!("dead"), json!("fresh"), Value::Null]);
}

#[test]
fn a_move_without_time_is_handed_out_but_never_deletes_early() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let keys = |layer| ["move", "d", "t", "", layer, ""];
    let item = |layer: &str, to: &str| {
        format!(
            r#"{{"id":"x","path_from":"{DIR}/a.3.parquet","layer_from":"{layer}","path_to":"p","layer_to":"{to}"}}"#
        )
    };
    let mut fresh = with(entry("a.3"), "layer", json!("last"));
    fresh["str_chunk_time"] = json!(format!("{}000000000", now_s(redis)));
    let text = fresh.to_string();
    call::<i64>(
        redis,
        "patch_index",
        &["[]", r#"{"last":{"ttl_sec":0}}"#],
        &[&text],
    )
    .unwrap();
    push(redis, "move:d:t:last::idle", &item("last", ""));
    push(redis, "move:d:t:aged::idle", &item("aged", "l1"));
    // Unknown TTL, and the move would delete the file: it waits.
    let none: String = call(redis, "get_merge_plan", &keys("last"), &[]).unwrap();
    assert_eq!(none, "");
    // Known TTL, not over.
    let none: String = call(
        redis,
        "get_merge_plan",
        &keys("last"),
        &["60", "me", LAYERS],
    )
    .unwrap();
    assert_eq!(none, "");
    // A move elsewhere loses nothing.
    let text: String = call(redis, "get_merge_plan", &keys("aged"), &[]).unwrap();
    assert_eq!(parse(&text)["id"], "x");
    // TTL over.
    fresh["str_chunk_time"] = json!("1705327215000000000");
    let text = fresh.to_string();
    call::<i64>(
        redis,
        "patch_index",
        &["[]", r#"{"last":{"ttl_sec":0}}"#],
        &[&text],
    )
    .unwrap();
    let text: String = call(
        redis,
        "get_merge_plan",
        &keys("last"),
        &["60", "me", LAYERS],
    )
    .unwrap();
    assert_eq!(parse(&text)["id"], "x");
}

#[test]
fn a_merge_is_ended_by_its_id_only_when_one_plan_has_it() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    for iteration in ["1", "1:date=2024-01-15/hour=14"] {
        redis::cmd("FLUSHALL").exec(redis).unwrap();
        patch(redis, &[entry("a.1")]).unwrap();
        let text: String = call(redis, "get_merge_plan", &QUEUE, &[]).unwrap();
        let id = parse(&text)["id"].as_str().unwrap().to_owned();
        let end = |redis: &mut Connection, id: &str| -> String {
            call(
                redis,
                "end_merge",
                &["d", "t", iteration, "l1", "", id],
                &[],
            )
            .unwrap()
        };
        assert_eq!(end(redis, "another"), "");
        assert_eq!(list(redis, PROCESSING).len(), 1);
        push(redis, PROCESSING, &format!(r#"{{"id":"{id}","time_s":9}}"#));
        assert_eq!(end(redis, &id), "");
        assert_eq!(
            list(redis, PROCESSING).len(),
            2,
            "which of both is not known"
        );
        redis::cmd("RPOP").arg(PROCESSING).exec(redis).unwrap();
        assert_eq!(end(redis, &id), "");
        assert!(list(redis, PROCESSING).is_empty());
    }
}

#[test]
fn a_source_that_is_not_in_the_plan_is_never_removed() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    patch(redis, &[entry("a.1")]).unwrap();
    let text: String = call(redis, "get_merge_plan", &QUEUE, &["60", "me"]).unwrap();
    let id = parse(&text)["id"].as_str().unwrap().to_owned();
    patch(redis, &[entry("b.1")]).unwrap();
    let before = everything(redis);
    let a = format!("{DIR}/a.1.parquet");
    let b = format!("{DIR}/b.1.parquet");
    let keys = ["d", "t", QUEUE[3], "l1", "", &id];
    for sources in [[a.as_str(), b.as_str()], [a.as_str(), a.as_str()]] {
        let arguments = [
            &text, "0", LEVELS, LAYERS, "", "nonce", "2", sources[0], sources[1],
        ];
        let reply = call::<Vec<String>>(redis, "end_merge", &keys, &arguments);
        assert!(reply.is_err(), "{reply:?}");
        assert_eq!(everything(redis), before);
    }
}

#[tokio::test]
async fn a_commit_leaves_counts_queues_and_quarantine_exact() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let hot = |name: &str| with(entry(name), "layer", json!("hot"));
    let texts = ["a.1", "b.1", "c.1"].map(|name| hot(name).to_string());
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let layers = r#"{"hot":{"ttl_sec":0}}"#;
    call::<i64>(redis, "patch_index", &[LEVELS, layers], &texts).unwrap();
    let catalog = catalog(&server);
    let queue = catalog.due_merges(Iteration(1), 9).await.unwrap()[0]
        .queue
        .clone();
    let claim = catalog
        .claim_merge(&queue, Duration::from_mins(1))
        .await
        .unwrap()
        .unwrap();
    let table = queue.table.clone();
    let mut output = catalog.resolve(&table, &claim.plan.paths).await.unwrap()[0]
        .clone()
        .unwrap();
    output.path = queue.dir.file("m", Iteration(2)).unwrap();
    catalog.announce_output(&claim, &output.path).await.unwrap();
    assert_eq!(hash(redis, "announced:d:t").len(), 1);
    let commit = MergeCommit {
        output: Some(output.clone()),
        sources: claim.plan.paths[..2].to_vec(),
        set_aside: vec![gigamerge::model::SetAside {
            path: claim.plan.paths[2].clone(),
            reason: "no footer".to_owned(),
        }],
        grace: Duration::from_mins(5),
    };
    let outcome = catalog.commit_merge(&claim, &commit).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed);
    assert_eq!(hash(redis, "folders:d:t")[DIR], "2");
    let now = now_s(redis);
    let drops = list(redis, "drop:d:t:hot::idle");
    assert_eq!(drops.len(), 2);
    let due_s = parse(&drops[0])["time_s"].as_i64().unwrap();
    assert!((now + 298..=now + 301).contains(&due_s), "{due_s} at {now}");
    let aside = parse(&hash(redis, "quarantine:d:t")[&format!("{DIR}/c.1.parquet")]);
    assert_eq!(aside["reason"], "no footer");
    assert_eq!(aside["layer"], "hot");
    assert!(hash(redis, "announced:d:t").is_empty());
    assert!(list(redis, "merge:d:t:1:date=2024-01-15/hour=14:hot::processing").is_empty());
    assert_eq!(
        list(redis, "merge:d:t:2:date=2024-01-15/hour=14:hot::idle").len(),
        1
    );

    // A late repetition meets the output, changed meanwhile: its bytes are no leftovers.
    output.row_count += 1;
    let late = CommitOutcome::OutputExists;
    catalog.batch(&[output], &[]).await.unwrap();
    assert_eq!(catalog.commit_merge(&claim, &commit).await.unwrap(), late);
}

#[tokio::test]
async fn stored_nonsense_is_reported_and_harms_nobody() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    patch(
        redis,
        &[entry("a.1"), with(entry("b.1"), "table", json!("u"))],
    )
    .unwrap();
    for key in [
        "folders:",
        "folders:x",
        "merge:1:idle",
        "merge:d:t:1:../x:l1::idle",
        "drop:x:idle",
    ] {
        push(redis, key, "nonsense");
    }
    redis::cmd("SET")
        .arg("merge:d:t:1:other:l1::idle")
        .arg("text")
        .exec(redis)
        .unwrap();
    redis::cmd("RPUSH")
        .arg(&b"merge:\xff:1:idle"[..])
        .arg("x")
        .exec(redis)
        .unwrap();
    redis::cmd("HSET")
        .arg("files:d:t:date=2024-01-15")
        .arg("bad")
        .arg("x")
        .exec(redis)
        .unwrap();
    push(
        redis,
        "merge:d:u:1:date=2024-01-15/hour=14:l1::idle",
        r#"{"id":"x","time_s":1,"paths":5}"#,
    );
    push(
        redis,
        "merge:d:t:1:x=1:l1::idle",
        r#"{"id":"y","time_s":1,"paths":["../../etc/x.1.parquet"]}"#,
    );
    push(
        redis,
        "drop:d:t:l1::idle",
        r#"{"id":"x","time_s":1,"path":"../../etc/passwd"}"#,
    );
    push(
        redis,
        "drop:d:t:l1::idle",
        r#"{"id":"x","time_s":1,"path":"a/b.1.parquet"}"#,
    );
    let catalog = catalog(&server);
    assert_eq!(catalog.tables().await.unwrap().len(), 2);
    let due = catalog.due_merges(Iteration(1), 100).await.unwrap();
    let mut claimed = Vec::new();
    for plan in &due {
        if let Some(claim) = catalog
            .claim_merge(&plan.queue, Duration::from_mins(1))
            .await
            .unwrap()
        {
            claimed.push(claim.plan);
        }
    }
    claimed.sort_by_key(|plan| plan.paths.len());
    assert_eq!(claimed.len(), 3, "{claimed:?}");
    assert_eq!(claimed[0].refused_paths.len(), 1);
    let table = gigamerge::model::TableRef::new("d", "t").unwrap();
    assert_eq!(
        catalog
            .entries(&table, &EntryFilter::default())
            .await
            .unwrap()
            .len(),
        1
    );
    let drops = catalog
        .claim_drops(10, Duration::from_mins(1))
        .await
        .unwrap();
    assert_eq!(drops.len(), 1);
    assert_eq!(list(redis, "drop:d:t:l1::failed").len(), 1);
    assert_eq!(
        list(redis, "merge:d:u:1:date=2024-01-15/hour=14:l1::failed").len(),
        1
    );
}

#[tokio::test]
async fn deletes_of_departed_writers_are_done_too() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    for writer in ["", "gone", "w[1]*"] {
        let key = format!("drop:d:t:l1:{writer}:idle");
        push(
            redis,
            &key,
            r#"{"id":"x","time_s":1,"path":"a/b.1.parquet"}"#,
        );
    }
    let catalog = catalog(&server);
    let drops = catalog
        .claim_drops(2, Duration::from_mins(1))
        .await
        .unwrap();
    assert_eq!(drops.len(), 2);
    let more = catalog
        .claim_drops(9, Duration::from_mins(1))
        .await
        .unwrap();
    assert_eq!(more.len(), 1);
    for drop in drops.iter().chain(&more) {
        catalog.finish_drop(drop).await.unwrap();
    }
    let keys: Vec<String> = redis::cmd("KEYS").arg("*").query(redis).unwrap();
    assert_eq!(keys, [""; 0]);
}
