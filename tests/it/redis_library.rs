//! What a Rust writer or compactor does with the library, on Redis.

use std::{sync::Arc, time::Duration};

use gigamerge::{
    catalog::{
        self, Catalog, CatalogError, ConnectOptions, EntryFilter, LayerRule, Policy,
        redis::RedisCatalog,
    },
    model::{DataPath, IndexEntry, LayerName, TableRef},
};

use crate::{
    catalog_suite::{self, entry},
    support::redis_server::RedisServer,
};

const LEASE: Duration = Duration::from_mins(1);

/// Files stay for a second in "hot", then move to "cold", and are deleted there.
fn policy_with_ttl() -> Policy {
    let layer = |name: &str, next: Option<&str>| LayerRule {
        name: LayerName::parse(name).unwrap(),
        kind: "fs".to_owned(),
        url: format!("file:///{name}"),
        ttl: Some(Duration::from_secs(1)),
        next: next.map(|next| LayerName::parse(next).unwrap()),
    };
    Policy {
        levels: Vec::new(),
        layers: vec![layer("hot", Some("cold")), layer("cold", None)],
        writers: None,
    }
}

#[tokio::test]
async fn a_url_opens_either_catalog() {
    let server = RedisServer::start();
    let folder = tempfile::tempdir().unwrap();
    let urls = [server.url(), format!("file://{}", folder.path().display())];
    for url in urls {
        let options = ConnectOptions {
            policy: catalog_suite::policy(),
            ..ConnectOptions::default()
        };
        let catalog = catalog::connect(&url, options).await.unwrap();
        catalog.batch(&[entry("a.1", 100)], &[]).await.unwrap();
        assert_eq!(catalog.databases().await.unwrap(), ["metrics"], "{url}");
    }
    for url in ["http://host", "redis://", "redis+sentinel://host"] {
        let error = catalog::connect(url, ConnectOptions::default()).await.err();
        assert!(matches!(error, Some(CatalogError::Refused { .. })), "{url}");
    }
}

#[tokio::test]
async fn a_move_is_claimed_prolonged_given_back_and_finished() {
    let server = RedisServer::start();
    let catalog = RedisCatalog::connect(&server.config(), Arc::new(policy_with_ttl())).unwrap();
    let mut cold = entry("b.1", 100);
    cold.layer = LayerName::parse("cold").unwrap();
    catalog
        .batch(&[entry("a.1", 100), cold], &[])
        .await
        .unwrap();
    let mut claims = catalog.claim_moves(10, LEASE).await.unwrap();
    claims.sort_by(|a, b| a.item.path_from.cmp(&b.item.path_from));
    assert_eq!(claims.len(), 2);
    assert_eq!(
        claims[0].item.layer_to,
        Some(LayerName::parse("cold").unwrap())
    );
    assert_eq!(claims[1].item.layer_to, None);
    assert_eq!(claims[0].item.path_from.dir(), claims[0].item.path_to.dir());
    assert_ne!(claims[0].item.path_from, claims[0].item.path_to);
    assert!(catalog.claim_moves(10, LEASE).await.unwrap().is_empty());
    let depths = catalog.queue_depths().await.unwrap();
    assert_eq!(
        (depths.moves_idle_count, depths.moves_processing_count),
        (0, 2)
    );

    let old = claims[0].clone();
    claims[0].lease = catalog.renew_move(&claims[0], LEASE).await.unwrap();
    let lost = catalog.finish_move(&old).await;
    assert!(matches!(lost, Err(CatalogError::LeaseLost { .. })));
    catalog.finish_move(&claims[0]).await.unwrap();
    catalog
        .release_move(&claims[1], Duration::ZERO)
        .await
        .unwrap();
    let again = catalog.claim_moves(10, LEASE).await.unwrap();
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].item.path_from, claims[1].item.path_from);
}

#[tokio::test]
async fn a_move_that_leads_out_of_its_folder_is_set_aside() {
    let server = RedisServer::start();
    let catalog = RedisCatalog::connect(&server.config(), Arc::new(policy_with_ttl())).unwrap();
    let item = r#"{"id":"1","time_s":1,"path_from":"a/x.1.parquet","layer_from":"hot","path_to":"../../x.1.parquet","layer_to":"cold"}"#;
    redis::cmd("RPUSH")
        .arg("move:db:t:hot::idle")
        .arg(item)
        .exec(&mut server.connection())
        .unwrap();
    assert!(catalog.claim_moves(10, LEASE).await.unwrap().is_empty());
    assert_eq!(catalog.queue_depths().await.unwrap().failed_count, 1);
}

#[tokio::test]
async fn a_large_table_is_read_page_by_page() {
    use futures_util::TryStreamExt;
    let server = RedisServer::start();
    let catalog =
        RedisCatalog::connect(&server.config(), Arc::new(catalog_suite::policy())).unwrap();
    let entries: Vec<IndexEntry> = (0..20_000)
        .map(|number| {
            let mut entry = entry("a.9", 100);
            let path = format!("d={}/{number}.9.parquet", number % 4);
            entry.path = DataPath::parse(&path).unwrap();
            entry
        })
        .collect();
    catalog.batch(&entries, &[]).await.unwrap();
    let mut connection = server.connection();
    redis::cmd("CONFIG")
        .arg("RESETSTAT")
        .exec(&mut connection)
        .unwrap();
    let table = TableRef::new("metrics", "cpu").unwrap();
    let mut stream = catalog.query(&table, &EntryFilter::default());
    // What was not asked for stays in the server.
    for _ in 0..10 {
        stream.try_next().await.unwrap().unwrap();
    }
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query(&mut connection)
        .unwrap();
    assert!(info.contains("cmdstat_hscan:calls=1,"), "{info}");
    let rest: Vec<IndexEntry> = stream.try_collect().await.unwrap();
    assert_eq!(rest.len(), 20_000 - 10);
}

#[tokio::test]
async fn a_large_batch_keeps_nobody_waiting_for_long() {
    let server = RedisServer::start();
    let catalog =
        RedisCatalog::connect(&server.config(), Arc::new(catalog_suite::policy())).unwrap();
    let entries: Vec<IndexEntry> = (0..10_000)
        .map(|number| entry(&format!("f{number}.1"), 10))
        .collect();
    catalog.batch(&entries, &[]).await.unwrap();
    catalog.batch(&[], &entries).await.unwrap();
    let info: String = redis::cmd("INFO")
        .arg("commandstats")
        .query(&mut server.connection())
        .unwrap();
    let calls: u64 = info
        .lines()
        .filter(|line| line.starts_with("cmdstat_eval"))
        .map(|line| {
            line.split("calls=")
                .nth(1)
                .unwrap()
                .split(',')
                .next()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        })
        .sum();
    assert!((10..=400).contains(&calls), "{calls} calls");
    assert!(catalog.tables().await.unwrap().is_empty());
}

#[tokio::test]
async fn one_step_has_a_limit() {
    let server = RedisServer::start();
    let catalog =
        RedisCatalog::connect(&server.config(), Arc::new(catalog_suite::policy())).unwrap();
    let entries = vec![entry("a.1", 1); 100_001];
    let error = catalog.batch_atomic(&entries, &[]).await.unwrap_err();
    assert!(error.to_string().contains("at most 100000"), "{error}");
    catalog.batch_atomic(&entries[..5000], &[]).await.unwrap();
}
