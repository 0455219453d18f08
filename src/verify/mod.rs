//! Compares index, queues, storage and footers, both ways, and mends what can be mended safely.
//!
//! Runs beside daemons and writers. What it sees changes while it looks, so nothing is reported
//! from one look: a suspicion is looked at again, in an order in which a change under way cannot
//! look like damage (bytes before index, queues in one step), and where only time can tell,
//! things younger than [`VerifyOptions::min_age`] are not judged.
//!
//! Memory: about 50 bytes for each file of one first folder, some of a queue's items, and what the
//! allocator keeps; a table is never held as a whole.

mod accounts;
mod disk;
mod entries;
mod files;
mod kind;
mod plans;
mod records;
mod repair;
mod walk;

use std::{path::PathBuf, sync::Arc, time::Duration};

pub use kind::Kind;

use crate::{
    catalog::{
        CatalogError,
        audit::{Audit, Mend},
        json::JsonAudit,
        redis::RedisCatalog,
    },
    config::{CatalogConfig, Config},
    model::{LayerName, TableRef},
};

/// What to look at, and what to do about it.
#[derive(Debug, Clone)]
pub struct VerifyOptions {
    /// Only this database.
    pub database: Option<String>,
    /// Only this table of it.
    pub table: Option<String>,
    /// Decode every file.
    pub deep: bool,
    /// What is younger is not judged where only time can tell.
    pub min_age: Duration,
    /// What to do with what is found.
    pub repair: Repair,
    /// Files of a table, of a hundred, that one run may forget, rewrite or queue for deletion.
    pub share_max_percent: f64,
    /// Entries whose files are not there may be forgotten.
    pub forget_missing: bool,
}

/// What to do with what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Report.
    No,
    /// Report, and say what a repair would do.
    Show,
    /// Mend.
    Act,
}

/// What became of a difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It stands.
    Found,
    /// A repair would do this.
    WouldRepair(String),
    /// This was done.
    Repaired(String),
    /// A repair was not made, for this reason.
    NotRepaired(String),
}

/// One difference.
#[derive(Debug, Clone)]
pub struct Difference {
    /// Its kind.
    pub kind: Kind,
    /// The table, where it is known.
    pub table: Option<TableRef>,
    /// The layer, where it matters.
    pub layer: Option<LayerName>,
    /// The file, key or folder.
    pub place: String,
    /// What was found.
    pub detail: String,
    /// What was done about it.
    pub outcome: Outcome,
    /// How it could be mended.
    mends: Vec<Fix>,
}

/// A step of a repair.
#[derive(Debug, Clone)]
enum Fix {
    Catalog(Mend),
    RemoveScratch(PathBuf),
}

impl Difference {
    fn new(kind: Kind, table: &TableRef, place: &str, detail: impl Into<String>) -> Self {
        Self {
            kind,
            table: Some(table.clone()),
            layer: None,
            place: place.to_owned(),
            detail: detail.into(),
            outcome: Outcome::Found,
            mends: Vec::new(),
        }
    }

    fn in_layer(mut self, layer: &LayerName) -> Self {
        self.layer = Some(layer.clone());
        self
    }

    fn mended_by(mut self, mend: Mend) -> Self {
        self.mends.push(Fix::Catalog(mend));
        self
    }
}

/// What a run saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Tables looked at.
    pub tables: u64,
    /// Index entries.
    pub entries: u64,
    /// Data files on disk.
    pub files: u64,
    /// Items of queues.
    pub items: u64,
    /// Differences by kind.
    pub found: std::collections::BTreeMap<Kind, u64>,
    /// Of these, those that were repaired.
    pub repaired: u64,
    /// What could not be judged, with the reason.
    pub unjudged: Vec<String>,
}

impl Summary {
    /// Differences that were found.
    pub fn differences(&self) -> u64 {
        self.found.values().sum()
    }
}

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The catalog could not be asked.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// Nothing is known of what was named.
    #[error("neither the catalog nor a layer knows {0}; `gigamerge ls` shows what there is")]
    Unknown(String),
    /// A look at files panicked.
    #[error("a look at files did not end: {0}")]
    Panicked(String),
    /// A difference could not be reported.
    #[error("a difference could not be printed: {0}")]
    Report(std::io::Error),
}

/// Takes each difference as it is found.
pub type Report<'a> = dyn FnMut(&Difference) -> std::io::Result<()> + Send + 'a;

/// Opens the catalog of a configuration; one that is to be mended is locked as a daemon locks it,
/// where it is embedded.
///
/// # Errors
/// Those of opening the catalog.
pub fn open(config: &Config, to_mend: bool) -> Result<Arc<dyn Audit>, CatalogError> {
    match (&config.catalog, config.layers.first()) {
        (CatalogConfig::Redis(redis), _) => {
            let policy = Arc::new(config.policy());
            Ok(Arc::new(RedisCatalog::connect(redis, policy)?))
        }
        (CatalogConfig::Json, Some(layer)) => Ok(Arc::new(JsonAudit::open(
            layer.name.clone(),
            layer.root.clone(),
            to_mend,
        )?)),
        (CatalogConfig::Json, None) => Err(CatalogError::Refused {
            context: "the embedded catalog".to_owned(),
            reason: "no layer is configured".to_owned(),
        }),
    }
}

/// Looks at everything that `options` name and reports each difference.
///
/// # Errors
/// Whatever kept it from looking to the end.
pub async fn run(
    config: &Config,
    audit: &dyn Audit,
    options: &VerifyOptions,
    report: &mut Report<'_>,
) -> Result<Summary, VerifyError> {
    walk::Walk::new(config, audit, options, report).run().await
}
