//! A catalog by its URL.

use std::{path::PathBuf, sync::Arc, time::Duration};

use super::{
    Catalog, CatalogError, Level, Policy,
    json::{JsonCatalog, Probe},
    redis::RedisCatalog,
};
use crate::{
    config::{RedisConfig, Secret, TlsConfig},
    model::{Iteration, LayerName},
};

/// What [`connect`] cannot know from the URL.
pub struct ConnectOptions {
    /// Levels and layers, which must be those of the other programs of the lake: files are put
    /// into plans by them. By default the four usual levels, and no named layer.
    pub policy: Policy,
    /// Longest wait for a connection or an answer.
    pub timeout: Duration,
    /// Certificates for `rediss://`.
    pub tls: TlsConfig,
    /// Embedded catalog: reads the footers of files that nobody registered. Without it such
    /// files are left alone.
    pub probe: Option<Probe>,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        let level = |iteration, timeout_s, size_mib: u64| Level {
            iteration: Iteration(iteration),
            timeout: Duration::from_secs(timeout_s),
            max_size_bytes: size_mib << 20,
        };
        Self {
            policy: Policy {
                levels: vec![
                    level(1, 10, 100),
                    level(2, 100, 400),
                    level(3, 1000, 4096),
                    level(4, 4200, 4096),
                ],
                layers: Vec::new(),
                writers: None,
            },
            timeout: Duration::from_secs(5),
            tls: TlsConfig::default(),
            probe: None,
        }
    }
}

/// Opens the catalog that a URL names.
///
/// - `redis://[user:password@]host[:port][/database]`, `rediss://…` (TLS, verified),
///   `unix:///path/to/socket`, `redis+sentinel://[user:password@]host[:port],…/master[/database]`,
///   `rediss+sentinel://…`: Redis or Valkey. The first call connects.
/// - `file:///absolute/folder`, or a path: the embedded catalog of that folder, which is locked
///   against other processes.
///
/// # Errors
/// [`CatalogError::Refused`] when the URL cannot be used; [`CatalogError::Locked`] when another
/// process owns the folder; I/O errors name the file.
pub async fn connect(url: &str, options: ConnectOptions) -> Result<Arc<dyn Catalog>, CatalogError> {
    let policy = Arc::new(options.policy);
    let root = match url.split_once("://") {
        None => url,
        Some(("file", path)) => path,
        Some(_) => {
            let config = RedisConfig {
                url: Secret(url.to_owned()),
                timeout: options.timeout,
                tls: options.tls,
            };
            return Ok(Arc::new(RedisCatalog::connect(&config, policy)?));
        }
    };
    let name = match policy.layers.first() {
        Some(layer) => layer.name.clone(),
        None => LayerName::default(),
    };
    let probe = options
        .probe
        .unwrap_or_else(|| Arc::new(|_, _| Err("it is not registered".to_owned())));
    let layers = vec![(name, PathBuf::from(root))];
    Ok(Arc::new(JsonCatalog::open(layers, policy, probe).await?))
}
