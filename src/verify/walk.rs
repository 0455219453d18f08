//! One table after the other, one first folder after the other: entries, records, plans, files.

use std::collections::BTreeSet;

use super::{
    Difference, Repair, Report, Summary, VerifyError, VerifyOptions,
    accounts::{Accounts, FileKey, Keys},
    records::difference_of_key,
    repair::Repairs,
};
use crate::{
    catalog::audit::{Audit, Record},
    config::{CatalogConfig, Config},
    model::{DataPath, LayerName, TableRef},
    storage::{Layer, Layers},
};

/// One run.
pub(super) struct Walk<'a> {
    pub(super) config: &'a Config,
    pub(super) audit: &'a dyn Audit,
    pub(super) options: &'a VerifyOptions,
    pub(super) layers: Vec<Layer>,
    pub(super) keys: Keys,
    pub(super) summary: Summary,
    pub(super) now_s: i64,
    report: &'a mut Report<'a>,
    pub(super) repairs: Repairs,
}

/// An announcement, until it is known whether it is kept.
pub(super) struct Announcement {
    pub(super) field: String,
    pub(super) text: String,
    pub(super) path: DataPath,
    pub(super) layer: LayerName,
    pub(super) at_s: Option<i64>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(
        config: &'a Config,
        audit: &'a dyn Audit,
        options: &'a VerifyOptions,
        report: &'a mut Report<'_>,
    ) -> Self {
        let mut layers: Vec<Layer> = Layers::new(&config.layers).iter().cloned().collect();
        if config.catalog == CatalogConfig::Json {
            // The others may belong to programs that keep their own metadata.json there.
            layers.truncate(1);
        }
        Self {
            config,
            audit,
            options,
            layers,
            keys: Keys::default(),
            summary: Summary::default(),
            now_s: 0,
            report,
            repairs: Repairs::default(),
        }
    }

    pub(super) async fn run(mut self) -> Result<Summary, VerifyError> {
        self.now_s = self.audit.now_s().await?;
        let (mut tables, strange) = self.audit.tables().await?;
        tables.extend(self.tables_on_disk().await?);
        let wanted = self.options;
        let is_wanted = |table: &TableRef| {
            let database = wanted.database.as_deref();
            let name = wanted.table.as_deref();
            database.is_none_or(|database| database == table.database())
                && name.is_none_or(|name| name == table.table())
        };
        if wanted.database.is_none() {
            for record in strange {
                if let Record::Strange { place, reason } = record {
                    self.emit(Difference {
                        table: None,
                        ..difference_of_key(&place, &reason)
                    })?;
                }
            }
        }
        let tables: Vec<TableRef> = tables.into_iter().filter(is_wanted).collect();
        if let (true, Some(database)) = (tables.is_empty(), &wanted.database) {
            let table = wanted.table.as_ref().map(|table| format!(".{table}"));
            let name = format!("{database}{}", table.unwrap_or_default());
            return Err(VerifyError::Unknown(name));
        }
        for table in tables {
            self.summary.tables += 1;
            self.table(&table).await?;
            self.finish_table(&table).await?;
        }
        Ok(self.summary)
    }

    /// Reports a difference now, or after it was mended.
    pub(super) fn emit(&mut self, difference: Difference) -> Result<(), VerifyError> {
        *self.summary.found.entry(difference.kind).or_default() += 1;
        if self.options.repair != Repair::No && self.repairs.takes(&difference) {
            self.repairs.keep(difference);
            return Ok(());
        }
        self.show(&difference)
    }

    pub(super) fn show(&mut self, difference: &Difference) -> Result<(), VerifyError> {
        (self.report)(difference).map_err(VerifyError::Report)
    }

    pub(super) fn min_age_s(&self) -> i64 {
        i64::try_from(self.options.min_age.as_secs()).unwrap_or(i64::MAX)
    }

    /// Whether a time has passed for so long that somebody should have acted.
    pub(super) fn is_overdue(&self, due_s: i64) -> bool {
        due_s.saturating_add(self.min_age_s()) <= self.now_s
    }

    /// A layer's place and itself; the empty name stands for the first one.
    pub(super) fn layer(&self, name: &LayerName) -> Option<(usize, &Layer)> {
        let is_it = |layer: &&Layer| name.as_str().is_empty() || layer.name() == name;
        let place = self.layers.iter().position(|layer| is_it(&layer))?;
        Some((place, &self.layers[place]))
    }

    /// A key for the bytes of a path in a layer, under whatever name the layer goes.
    pub(super) fn bytes_key(&self, layer: &LayerName, path: &str) -> FileKey {
        let name = self
            .layer(layer)
            .map_or(layer.as_str(), |(_, layer)| layer.name().as_str());
        self.keys.bytes(name, path)
    }

    async fn table(&mut self, table: &TableRef) -> Result<(), VerifyError> {
        let mut firsts: BTreeSet<String> = self.audit.first_folders(table).await?;
        firsts.extend(self.first_folders_on_disk(table).await?);
        let mut accounts = Accounts::default();
        if self.audit.is_table_wide() {
            accounts = self.records(table, "", true).await?;
        }
        for first in firsts {
            self.now_s = self.audit.now_s().await?;
            if !self.audit.is_table_wide() {
                accounts = self.records(table, &first, true).await?;
            }
            self.first_folder(table, &first, &accounts).await?;
        }
        self.scratch(table).await
    }

    async fn first_folder(
        &mut self,
        table: &TableRef,
        first: &str,
        accounts: &Accounts,
    ) -> Result<(), VerifyError> {
        let mut folder = self.entries(table, first).await?;
        if self.audit.has_plans() {
            self.plans(table, first, &mut folder, accounts).await?;
        }
        self.folder_counts(table, first, &folder).await?;
        self.files_on_disk(table, first, &folder, accounts).await
    }
}
