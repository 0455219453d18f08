//! INSIDE-TABLE against links: none below a table's folder is followed, by whatever command.

use std::{fs, os::unix::fs::symlink, path::Path};

use gigamerge::merge::MergeError;
use parquet::file::properties::WriterProperties;

use crate::{
    merge_files::{Lab, options},
    support::{
        lake::{PARTITION, batch, write_file},
        program::run,
        world::{World, register},
    },
};

const OF_OTHERS: &str = "00000000-0000-4000-8000-000000000077.1.parquet";

fn once(world: &World) -> String {
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let (code, _, log) = run(&["once", "--config", &world.config]);
    assert_eq!(code, 0, "{log}");
    log
}

/// A lake whose table has a file, and a file of another table beside it.
fn world(rows: usize) -> (World, std::path::PathBuf) {
    let world = World::new(true);
    world.write(0..1, rows);
    let secret = world.lake.partition("secret").join(OF_OTHERS);
    fs::create_dir_all(secret.parent().unwrap()).unwrap();
    write_file(&secret, &batch(1, rows));
    (world, secret)
}

fn assert_untouched(secret: &Path, before: &[u8]) {
    assert_eq!(fs::read(secret).unwrap(), before);
    let folder = fs::read_dir(secret.parent().unwrap()).unwrap();
    assert_eq!(folder.count(), 1, "something was written beside it");
}

#[test]
fn a_file_that_is_a_link_is_set_aside_unread_and_undeleted() {
    let (world, secret) = world(50);
    let before = fs::read(&secret).unwrap();
    let link = world.lake.partition("cpu").join(OF_OTHERS);
    symlink(&secret, &link).unwrap();
    register(&mut world.redis(), &world.lake, "cpu", OF_OTHERS, 50);
    let log = once(&world);
    assert!(log.contains("it is a link"), "{log}");
    let (_, out, _) = run(&["quarantine", "ls", "--json", "--config", &world.config]);
    assert!(out.contains(OF_OTHERS), "{out}");
    let (code, out, _) = run(&["verify", "--deep", "--json", "--config", &world.config]);
    assert_eq!(code, 1);
    assert!(out.contains(OF_OTHERS) && out.contains("link"), "{out}");
    let arguments = ["quarantine", "drop", "db", "cpu", "--all", "--yes"];
    let (_, _, log) = run(&[&arguments[..], &["--config", &world.config]].concat());
    once(&world);
    assert!(
        fs::symlink_metadata(&link).is_ok(),
        "the link was deleted: {log}"
    );
    assert_untouched(&secret, &before);
}

#[test]
fn a_partition_that_is_a_link_leads_nowhere() {
    let (world, secret) = world(50);
    let before = fs::read(&secret).unwrap();
    let partition = world.lake.partition("cpu");
    let aside = world.folder.path().join("aside");
    fs::rename(&partition, &aside).unwrap();
    symlink(secret.parent().unwrap(), &partition).unwrap();
    register(&mut world.redis(), &world.lake, "cpu", OF_OTHERS, 50);
    once(&world);
    once(&world);
    assert_untouched(&secret, &before);
    let key = format!("files:db:cpu:{}", PARTITION.split('/').next().unwrap());
    let paths: Vec<String> = redis::Commands::hkeys(&mut world.redis(), key).unwrap();
    assert_eq!(paths.len(), 2, "{paths:?}");
    assert!(paths.iter().all(|path| path.ends_with(".1.parquet")));
}

/// Who has links of his own above his tables keeps them.
#[test]
fn a_lake_behind_a_link_is_merged() {
    for on_redis in [false, true] {
        let world = World::new(on_redis);
        let real = world.folder.path().join("real");
        fs::rename(&world.lake.root, &real).unwrap();
        symlink(&real, &world.lake.root).unwrap();
        world.write(0..3, 50);
        once(&world);
        let indexed = world.indexed();
        assert!(
            // On a slow machine its time for the next iteration may have come, too.
            indexed.len() == 1 && !indexed.iter().any(|name| name.ends_with(".1.parquet")),
            "{indexed:?}"
        );
    }
}

#[test]
fn a_merge_follows_no_link_to_its_inputs() {
    let mut lab = Lab::new();
    let file = lab.add(&batch(1, 10), WriterProperties::default());
    let link = lab.folder.path().join("link.parquet");
    symlink(&file, &link).unwrap();
    lab.inputs.push(link);
    let MergeError::BadInputs(bad) = lab.merge(&options()).unwrap_err() else {
        panic!("the link was followed")
    };
    assert_eq!(bad[0].index, 1);
    assert!(
        bad[0].reason.contains("a link leads to it"),
        "{}",
        bad[0].reason
    );
}
