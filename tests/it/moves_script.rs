//! `end_move` and its library call: all or nothing, and the same when it is repeated.

use std::collections::BTreeMap;

use redis::{Commands, Connection, RedisResult};
use serde_json::{Value, json};

use crate::support::redis_server::{RedisServer, call};

const DIR: &str = "date=2024-01-15/hour=14";
const LEVELS: &str = "[[600,1000,1]]";
const LAYERS: &str = r#"{"hot":{"ttl_sec":60,"layer_to":"warm"},"warm":{"ttl_sec":120,"layer_to":"cold"},"cold":{"ttl_sec":0},"slow":{"ttl_sec":3600,"layer_to":""}}"#;
const FILES: &str = "files:d:t:date=2024-01-15";
const PROCESSING: &str = "move:d:t:hot:w:processing";
const KEYS: [&str; 4] = ["d", "t", "hot", "w"];

fn path(name: &str) -> String {
    format!("{DIR}/{name}.parquet")
}

/// An entry with everything that a careless change of its text would damage.
fn entry_text(name: &str, layer: &str) -> String {
    format!(
        r#"{{ "min" : {{"path":"x","layer":"y","n":-9223372036854775808}},"layer": "{layer}","database":"d","table":"t","size_bytes":9007199254740993,"path":"{}","max":{{"path":"{{\"layer\":\"z\"}}","n":18446744073709551615}},"colour":["path",{{"layer":1}}],"row_count":5,"chunk_time":0,"min_time":0,"max_time":0,"writer_id":"w","str_min_time":"1","str_max_time":"2","str_chunk_time":"1705327215999999999","cmd":"ADD"}}"#,
        path(name)
    )
}

fn everything(redis: &mut Connection) -> BTreeMap<String, Vec<u8>> {
    let keys: Vec<String> = redis.keys("*").unwrap();
    keys.into_iter()
        .map(|key| {
            let dump: Vec<u8> = redis::cmd("DUMP").arg(&key).query(redis).unwrap();
            (key, dump)
        })
        .collect()
}

fn list(redis: &mut Connection, key: &str) -> Vec<Value> {
    let texts: Vec<String> = redis.lrange(key, 0, -1).unwrap();
    let parse = |text: &String| serde_json::from_str(text).unwrap();
    texts.iter().map(parse).collect()
}

fn now_s(redis: &mut Connection) -> i64 {
    let (now_s, _): (i64, i64) = redis::cmd("TIME").query(redis).unwrap();
    now_s
}

fn end(redis: &mut Connection, token: &str, to: (&str, &str)) -> RedisResult<Vec<String>> {
    let arguments = [token, "30", LEVELS, LAYERS, to.1, to.0, "random"];
    call(redis, "end_move", &KEYS, &arguments)
}

/// A file in "hot" whose move is claimed; the claim's proof.
fn claimed(redis: &mut Connection, name: &str) -> String {
    let _: i64 = call(
        redis,
        "patch_index",
        &["[]", LAYERS],
        &[&entry_text(name, "hot")],
    )
    .unwrap();
    let queue = ["move", "d", "t", "", "hot", "w"];
    let served = r#"["hot","warm","cold",""]"#;
    let arguments = ["60", "me", "1", LAYERS, served];
    let mut items: Vec<String> = call(redis, "claim_drops", &queue, &arguments).unwrap();
    assert_eq!(items.len(), 1);
    items.remove(0)
}

#[test]
fn a_move_changes_layer_and_path_of_an_entry_and_no_other_byte() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let token = claimed(redis, "a.1");
    let announced = ["move", "d", "t", "", "hot", "w"];
    let to = path("b-1.1");
    let done: i64 = call(redis, "announce_output", &announced, &[&token, &to, "warm"]).unwrap();
    assert_eq!(done, 1);
    let announcement: BTreeMap<String, String> = redis.hgetall("announced:d:t").unwrap();
    let (field, text) = announcement.first_key_value().unwrap();
    assert!(
        field.starts_with("move:hot:w:") && field.ends_with(&path("a.1")),
        "{field}"
    );
    let announcement: Value = serde_json::from_str(text).unwrap();
    assert_eq!(
        (&announcement["layer"], &announcement["layer_from"]),
        (&json!("warm"), &json!("hot"))
    );
    let mark = r#"{"reason":"it is \"bad\"","at_s":17,"layer":"hot"}"#;
    let _: i64 = redis.hset("quarantine:d:t", path("a.1"), mark).unwrap();

    assert_eq!(end(redis, &token, ("warm", &to)).unwrap(), ["committed"]);
    let files: BTreeMap<String, String> = redis.hgetall(FILES).unwrap();
    let expected = entry_text("a.1", "hot")
        .replace(r#""layer": "hot""#, r#""layer": "warm""#)
        .replace(&path("a.1"), &to);
    let found = &files[&to];
    assert_eq!(files.len(), 1);
    assert_eq!(found.replace("\\/", "/"), expected);
    assert_eq!(redis.hget::<_, _, i64>("folders:d:t", DIR).unwrap(), 1);
    let drops = list(redis, "drop:d:t:hot:w:idle");
    assert_eq!(drops.len(), 1);
    assert_eq!(drops[0]["path"], path("a.1"));
    let wait_s = drops[0]["time_s"].as_i64().unwrap() - now_s(redis);
    assert!((28..=31).contains(&wait_s), "{wait_s}");
    assert!(drops[0].get("replaced_by").is_none());
    // It was set aside: it is not merged in its new layer, and moves on from there.
    let next = list(redis, "move:d:t:warm:w:idle");
    assert_eq!(next.len(), 1);
    assert_eq!(
        (&next[0]["path_from"], &next[0]["layer_to"]),
        (&json!(to), &json!("cold"))
    );
    assert_eq!(next[0]["time_s"], 1_705_327_215 + 120);
    let marks: BTreeMap<String, String> = redis.hgetall("quarantine:d:t").unwrap();
    assert_eq!(marks.keys().collect::<Vec<_>>(), [&to]);
    let mark: Value = serde_json::from_str(&marks[&to]).unwrap();
    assert_eq!(
        mark,
        json!({"reason": "it is \"bad\"", "at_s": 17, "layer": "warm"})
    );
    for key in [PROCESSING, "announced:d:t"] {
        assert!(!redis.exists::<_, bool>(key).unwrap(), "{key}");
    }
    // The answer was lost: asked again.
    let before = everything(redis);
    assert_eq!(end(redis, &token, ("warm", &to)).unwrap(), ["committed"]);
    assert_eq!(everything(redis), before);
}

#[test]
fn a_moved_file_is_merged_in_its_new_layer_where_a_new_one_would_be() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let token = claimed(redis, "a.1");
    let to = path("b-1.1");
    assert_eq!(end(redis, &token, ("cold", &to)).unwrap(), ["committed"]);
    let plans = list(redis, &format!("merge:d:t:1:{DIR}:cold:w:idle"));
    assert_eq!(plans.len(), 1);
    assert_eq!(plans[0]["paths"], json!([to]));
    assert!(redis.keys::<_, Vec<String>>("move:*").unwrap().is_empty());
}

#[test]
fn a_move_that_cannot_be_is_refused_and_changes_nothing() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let token = claimed(redis, "a.1");
    let other = path("b-1.1");
    let unchanged = |redis: &mut Connection, token: &str, to: (&str, &str)| {
        let before = everything(redis);
        let reply = end(redis, token, to);
        assert_eq!(everything(redis), before, "{reply:?}");
        match reply {
            Ok(reply) => reply[0].clone(),
            Err(error) => error.to_string(),
        }
    };
    for (to, reason) in [
        (("nowhere", other.as_str()), "not configured"),
        (("hot", &other), "another layer"),
        (("warm", &path("a.1")), "same folder"),
        (("warm", &path("b.2")), "same folder"),
        (("warm", "date=2024-01-16/b.1.parquet"), "same folder"),
        (("warm", "../b.1.parquet"), "same folder"),
        // It expires nowhere but in a last layer.
        (("", ""), "not a last one"),
    ] {
        let said = unchanged(redis, &token, to);
        assert!(said.contains(reason), "{to:?}: {said}");
    }
    let renewed: String = call(
        redis,
        "renew_lease",
        &["move", "d", "t", "", "hot", "w"],
        &[&token, "60"],
    )
    .unwrap();
    assert_eq!(unchanged(redis, &token, ("warm", &other)), "lease_lost");
    let _: i64 = call(
        redis,
        "patch_index",
        &["[]", LAYERS],
        &[&entry_text("b-1.1", "cold")],
    )
    .unwrap();
    assert_eq!(
        unchanged(redis, &renewed, ("warm", &other)),
        "output_exists"
    );
    let free = path("c-1.1");
    let text: String = redis.hget(FILES, path("a.1")).unwrap();
    for text in [
        text.replace(r#""layer": "hot""#, r#""layer": "cold""#),
        "no JSON".to_owned(),
    ] {
        let _: i64 = redis.hset(FILES, path("a.1"), text).unwrap();
        assert_eq!(unchanged(redis, &renewed, ("warm", &free)), "source_gone");
    }
    // It is not known which of two paths a reader takes.
    let twice = text.replacen('{', r#"{"path":"x","#, 1);
    let _: i64 = redis.hset(FILES, path("a.1"), twice).unwrap();
    assert!(unchanged(redis, &renewed, ("warm", &free)).contains("once each"));
    let _: i64 = redis.hdel(FILES, path("a.1")).unwrap();
    assert_eq!(unchanged(redis, &renewed, ("warm", &free)), "source_gone");
    let _: i64 = redis.hset(FILES, path("a.1"), &text).unwrap();
    let _: i64 = redis.hset("folders:d:t", DIR, "many").unwrap();
    assert!(unchanged(redis, &renewed, ("warm", &free)).contains("is not a number"));
    let _: i64 = redis.hset("folders:d:t", DIR, 2).unwrap();
    assert_eq!(
        end(redis, &renewed, ("warm", &free)).unwrap(),
        ["committed"]
    );
}

#[test]
fn a_file_expires_when_its_time_is_over_and_the_folder_with_its_last_file() {
    let server = RedisServer::start();
    let redis = &mut server.connection();
    let slow = |redis: &mut Connection, chunk: String| {
        let text = entry_text("a.1", "slow").replace("1705327215999999999", &chunk);
        let _: i64 = call(redis, "patch_index", &["[]", LAYERS], &[&text]).unwrap();
        let item = json!({"id": "x", "path_from": path("a.1"), "layer_from": "slow", "path_to": path("p.1"), "layer_to": "", "time_s": 1});
        let _: i64 = redis
            .rpush("move:d:t:slow:w:processing", item.to_string())
            .unwrap();
        item.to_string()
    };
    let expire = |redis: &mut Connection, token: &str| {
        let arguments = [token, "0", LEVELS, LAYERS, "", "", "random"];
        call::<Vec<String>>(redis, "end_move", &["d", "t", "slow", "w"], &arguments)
    };
    let fresh = format!("{}000000000", now_s(redis) - 3000);
    for (chunk, reason) in [
        (fresh, "is not over"),
        ("0".to_owned(), "no str_chunk_time"),
    ] {
        let token = slow(redis, chunk);
        let before = everything(redis);
        let error = expire(redis, &token).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert_eq!(everything(redis), before);
        let _: () = redis::cmd("FLUSHALL").query(redis).unwrap();
    }
    let old = format!("{}000000000", now_s(redis) - 3601);
    let token = slow(redis, old);
    assert_eq!(expire(redis, &token).unwrap(), ["committed"]);
    let mut keys: Vec<String> = redis.keys("*").unwrap();
    keys.sort();
    assert_eq!(keys, ["drop:d:t:slow:w:idle", "move:d:t:slow:w:idle"]);
    assert_eq!(expire(redis, &token).unwrap(), ["lease_lost"]);
}
