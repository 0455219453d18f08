//! Files come and go.

use gigamerge::catalog::Catalog;

use crate::{
    Bench,
    data::{as_json, entries},
};

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

pub fn registering(bench: &mut Bench) {
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
