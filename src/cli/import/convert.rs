//! Entries of another catalog, with every field that they have.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::Value;

use super::{
    ImportArgs, ImportError, find,
    importer::{Item, Source},
    io_at,
};
use crate::{
    catalog::{Catalog, EntryFilter, json::JsonCatalog, redis::RedisCatalog},
    config::{CatalogConfig, Config, RedisConfig, Secret},
    model::{IndexEntry, LayerName, PartitionDir, TableRef},
    storage::Layers,
};

/// Longest wait for an answer of a Redis that is converted from.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Whether a source is a server and not a folder.
pub(super) fn is_url(source: &Secret) -> bool {
    source.0.contains("://")
}

/// What other catalogs say of one table.
pub(super) struct Converted {
    pub(super) items: Vec<Item>,
    /// What could not be taken, with the reason.
    pub(super) bad: Vec<(String, String)>,
    /// Embedded sources stay locked until all is registered.
    pub(super) sources: Vec<Arc<dyn Catalog>>,
}

/// Reads the entries of each source, which must be at rest: no merge runs, no delete waits. Otherwise
/// files that were replaced would be taken for live ones, or entries would name files about to go.
pub(super) async fn read(
    args: &ImportArgs,
    config: &Config,
    table: &TableRef,
) -> Result<Converted, ImportError> {
    let mut converted = Converted {
        items: Vec::new(),
        bad: Vec::new(),
        sources: Vec::new(),
    };
    let layers = Layers::new(&config.layers);
    let wanted = match &args.layer {
        Some(name) => Some(LayerName::parse(name)?),
        None => None,
    };
    for source in &args.sources {
        let root = (!is_url(source)).then(|| PathBuf::from(&source.0));
        let (catalog, shown) = match &root {
            Some(root) => folder(root, args, config).await?,
            None => redis(source, config)?,
        };
        check_rest(&*catalog, &shown).await?;
        let entries = catalog.entries(table, &EntryFilter::default()).await?;
        check_rest(&*catalog, &shown).await?;
        if entries.is_empty() {
            return Err(ImportError::NoSource {
                from: shown,
                table: table.clone(),
            });
        }
        if let Some(root) = &root {
            converted.bad.extend(not_understood(root, table, &entries)?);
        }
        for mut entry in entries {
            match target_layer(wanted.as_ref(), root.as_deref(), &layers, &entry) {
                Ok(layer) => entry.layer = layer,
                Err(reason) => {
                    converted.bad.push((entry.path.to_string(), reason));
                    continue;
                }
            }
            match item(root.as_deref(), &layers, entry) {
                Ok(item) => converted.items.push(item),
                Err(bad) => converted.bad.push(bad),
            }
        }
        converted.sources.push(catalog);
    }
    Ok(converted)
}

type Opened = (Arc<dyn Catalog>, String);

/// Locked, unless only a look is wanted, so that no daemon works on it meanwhile.
async fn folder(root: &Path, args: &ImportArgs, config: &Config) -> Result<Opened, ImportError> {
    let real = fs::canonicalize(root).map_err(io_at(root))?;
    let is_root = |layer: &crate::config::LayerConfig| {
        fs::canonicalize(&layer.root).is_ok_and(|layer| layer == real)
    };
    if config.catalog == CatalogConfig::Json && config.layers.iter().any(is_root) {
        return Err(ImportError::SameCatalog);
    }
    let layers = vec![(LayerName::default(), real)];
    let policy = Arc::new(config.policy());
    let only_registered = Arc::new(|_: &TableRef, _: &Path| {
        Err("it is not registered in the catalog that is converted".to_owned())
    });
    let catalog = if args.dry_run {
        JsonCatalog::open_to_look(layers, policy, only_registered).await?
    } else {
        JsonCatalog::open(layers, policy, only_registered).await?
    };
    Ok((Arc::new(catalog), root.display().to_string()))
}

fn redis(url: &Secret, config: &Config) -> Result<Opened, ImportError> {
    if matches!(&config.catalog, CatalogConfig::Redis(own) if own.url == *url) {
        return Err(ImportError::SameCatalog);
    }
    let redis = RedisConfig {
        timeout: TIMEOUT,
        ..RedisConfig::new(&url.0)
    };
    let catalog = RedisCatalog::connect(&redis, Arc::new(config.policy()))?;
    // The URL may hold a password.
    Ok((Arc::new(catalog), "the Redis to convert from".to_owned()))
}

async fn check_rest(catalog: &dyn Catalog, from: &str) -> Result<(), ImportError> {
    let depths = catalog.queue_depths().await?;
    let (merges, moves) = (
        depths.merges_processing_count,
        depths.moves_processing_count,
    );
    let drops = depths.drops_idle_count + depths.drops_processing_count;
    if merges + moves + drops == 0 {
        Ok(())
    } else {
        Err(ImportError::NotAtRest {
            from: from.to_owned(),
            merges,
            moves,
            drops,
        })
    }
}

/// `metadata.json` files of which not every entry was taken: nothing may be left out in silence.
fn not_understood(
    root: &Path,
    table: &TableRef,
    entries: &[IndexEntry],
) -> Result<Vec<(String, String)>, ImportError> {
    let data = root.join(table.database()).join(table.table()).join("data");
    let data = fs::canonicalize(&data).map_err(io_at(&data))?;
    let mut taken: HashMap<PartitionDir, usize> = HashMap::new();
    for entry in entries {
        *taken.entry(entry.path.dir()).or_default() += 1;
    }
    let is_metadata = |path: &Path| path.file_name().is_some_and(|name| name == "metadata.json");
    let mut bad = Vec::new();
    for file in find::files(std::slice::from_ref(&data), &[], is_metadata)? {
        let text = fs::read(&file).map_err(io_at(&file))?;
        let count = serde_json::from_slice::<Value>(&text)
            .ok()
            .and_then(|value| match value.get("files") {
                None => value.is_object().then_some(0),
                Some(files) => files.as_array().map(Vec::len),
            });
        let dir = file
            .parent()
            .and_then(|folder| folder.strip_prefix(&data).ok()?.to_str());
        let taken = dir
            .and_then(|dir| PartitionDir::parse(dir).ok())
            .and_then(|dir| taken.get(&dir).copied())
            .unwrap_or(0);
        let reason = match count {
            None => "it is not what the contract says; nothing of it was taken".to_owned(),
            Some(count) if count > taken => {
                format!("{} of its {count} entries cannot be used", count - taken)
            }
            Some(_) => continue,
        };
        bad.push((file.display().to_string(), reason));
    }
    Ok(bad)
}

/// The layer that was asked for; of a folder else the layer whose root it is, or the first one; of a Redis
/// else the entry's own.
fn target_layer(
    wanted: Option<&LayerName>,
    root: Option<&Path>,
    layers: &Layers,
    entry: &IndexEntry,
) -> Result<LayerName, String> {
    let first = || layers.iter().next().map(|layer| layer.name().clone());
    let found = match (wanted, root) {
        (Some(wanted), _) => Some(wanted.clone()),
        (None, Some(root)) => layers
            .iter()
            .find(
                |layer| match (fs::canonicalize(layer.root()), fs::canonicalize(root)) {
                    (Ok(layer), Ok(root)) => layer == root,
                    _ => false,
                },
            )
            .map(|layer| layer.name().clone())
            .or_else(first),
        (None, None) => {
            let layer = layers
                .get(&entry.layer)
                .map_err(|error| error.to_string())?;
            Some(layer.name().clone())
        }
    };
    found.ok_or_else(|| "no layer is configured".to_owned())
}

/// Bytes that lie in the layer already stay there; others are copied from the source's folder.
fn item(root: Option<&Path>, layers: &Layers, entry: IndexEntry) -> Result<Item, (String, String)> {
    let bad = |reason: String| (entry.path.to_string(), reason);
    let file = layers
        .get(&entry.layer)
        .and_then(|layer| layer.checked_file(&entry.table, &entry.path))
        .map_err(|error| bad(error.to_string()))?;
    let source = match fs::metadata(&file) {
        Ok(meta) if meta.len() == entry.size_bytes => None,
        Ok(meta) => {
            return Err(bad(format!(
                "{} has {} bytes, the entry says {}; it is not registered",
                file.display(),
                meta.len(),
                entry.size_bytes
            )));
        }
        Err(_) => root
            .map(|root| {
                root.join(entry.table.database())
                    .join(entry.table.table())
                    .join("data")
                    .join(entry.path.as_str())
            })
            .filter(|file| fs::symlink_metadata(file).is_ok_and(|meta| meta.is_file()))
            .map(|file| Source { file, read: None }),
    };
    Ok(Item {
        entry,
        source,
        is_vouched: true,
    })
}
