//! Files and rules of the bench.

use std::time::Duration;

use gigamerge::{
    catalog::{LayerRule, Level, Policy},
    model::{DataPath, IndexEntry, Iteration, LayerName, TableRef, WriterId},
};

pub const FILES: usize = 17_280;
pub const LEASE: Duration = Duration::from_mins(1);

pub fn policy(max_size_bytes: u64) -> Policy {
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

pub fn layer() -> LayerName {
    LayerName::parse("hot").unwrap()
}

pub fn entry(number: usize, size_bytes: u64, folders: usize) -> IndexEntry {
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

pub fn entries(size_bytes: u64, folders: usize) -> Vec<IndexEntry> {
    (0..FILES)
        .map(|number| entry(number, size_bytes, folders))
        .collect()
}

pub fn as_json(entry: &IndexEntry, command: &str) -> String {
    serde_json::json!({
        "layer": entry.layer.as_str(), "database": entry.table.database(), "table": entry.table.table(),
        "path": entry.path.as_str(), "size_bytes": entry.size_bytes, "row_count": entry.row_count,
        "chunk_time": 0, "min_time": 0, "max_time": 0, "min": {}, "max": {}, "writer_id": "",
        "str_min_time": entry.min_time_ns.to_string(), "str_max_time": entry.max_time_ns.to_string(),
        "str_chunk_time": entry.chunk_time_ns.to_string(), "cmd": command,
    })
    .to_string()
}
