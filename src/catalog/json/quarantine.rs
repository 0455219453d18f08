//! Files that are not merged any more, and how they come back. Each stands in its own
//! `metadata.json`; those of a plan that was given up share its id.

use std::time::Duration;

use super::{
    index::{Inner, PartitionKey, guard, now_s},
    partition::{Partition, remove_files},
    records::{FileRecord, TriedPlan},
};
use crate::{
    catalog::{CatalogError, Policy, Retried},
    model::{DataPath, PlanId, QuarantineKind, Quarantined, TableRef},
};

impl Partition {
    fn quarantine(&self) -> Vec<Quarantined> {
        let mut found: Vec<Quarantined> = Vec::new();
        for record in &self.metadata.files {
            let Some(aside) = &record.set_aside else {
                continue;
            };
            let path = record.entry.path.clone();
            let plan = aside.plan.as_ref();
            if let Some(plan) = plan
                && let Some(known) = found.iter_mut().find(|known| known.id == plan.as_str())
            {
                known.paths.push(path);
                continue;
            }
            found.push(Quarantined {
                kind: match plan {
                    Some(_) => QuarantineKind::Plan,
                    None => QuarantineKind::File,
                },
                table: self.table.clone(),
                id: plan.map_or_else(|| path.to_string(), PlanId::to_string),
                paths: vec![path],
                reason: aside.reason.clone(),
                at_s: aside.at_s,
                place: self
                    .folder()
                    .join(super::metadata_file::FILE_NAME)
                    .display()
                    .to_string(),
                text: String::new(),
            });
        }
        found
    }

    /// The records that an operator means: they may have come back, or gone, meanwhile.
    fn meant(&self, what: &Quarantined) -> Vec<&FileRecord> {
        let is_meant = |record: &&FileRecord| {
            record
                .set_aside
                .as_ref()
                .is_some_and(|aside| match what.kind {
                    QuarantineKind::File => record.entry.path.as_str() == what.id,
                    _ => aside
                        .plan
                        .as_ref()
                        .is_some_and(|plan| plan.as_str() == what.id),
                })
        };
        self.metadata.files.iter().filter(is_meant).collect()
    }

    fn retry(&mut self, what: &Quarantined, policy: &Policy) -> Result<Retried, CatalogError> {
        self.reload_if_changed()?;
        let meant = self.meant(what);
        let Some(first) = meant.first().map(|record| record.entry.clone()) else {
            return Ok(Retried::Absent);
        };
        let paths: Vec<DataPath> = meant
            .iter()
            .map(|record| record.entry.path.clone())
            .collect();
        let iteration = first.path.iteration();
        let is_final = policy.level(iteration).is_none();
        self.change(|metadata| {
            for record in &mut metadata.files {
                if paths.contains(&record.entry.path) {
                    record.set_aside = None;
                }
            }
            if !is_final {
                metadata.plans.push(TriedPlan {
                    id: PlanId::random(),
                    iteration,
                    writer: first.writer,
                    paths,
                    due_s: now_s(),
                    attempts: 0,
                    forgiven: 0,
                    failed: 0,
                    is_suspect: what.kind == QuarantineKind::File,
                });
            }
        })?;
        Ok(if is_final {
            Retried::Final
        } else {
            Retried::Planned
        })
    }

    fn drop_aside(
        &mut self,
        what: &Quarantined,
        grace: Duration,
    ) -> Result<Option<u64>, CatalogError> {
        self.reload_if_changed()?;
        let meant = self.meant(what);
        let paths: Vec<DataPath> = meant
            .iter()
            .map(|record| record.entry.path.clone())
            .collect();
        if paths.is_empty() {
            return Ok(None);
        }
        let grace_s = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        self.change(|metadata| {
            remove_files(metadata, &paths, now_s().saturating_add(grace_s), None);
        })?;
        Ok(Some(paths.len() as u64))
    }
}

impl Inner {
    pub(super) fn quarantine(&self, table: Option<&TableRef>) -> Vec<Quarantined> {
        let mut refused = guard(&self.scan).refused(table);
        // Somebody else may have registered one since.
        refused.retain(|one| self.resolve(&one.table, &one.paths) == [None]);
        let partitions = guard(&self.partitions);
        let of_table = partitions
            .values()
            .filter(|partition| table.is_none_or(|table| *table == partition.table));
        let mut found: Vec<Quarantined> = of_table.flat_map(Partition::quarantine).collect();
        found.append(&mut refused);
        found.sort_by(|a, b| (a.at_s, &a.id).cmp(&(b.at_s, &b.id)));
        found
    }

    fn partition_of(&self, what: &Quarantined) -> Option<PartitionKey> {
        let partitions = guard(&self.partitions);
        let mut of_table = partitions
            .iter()
            .filter(|(_, partition)| partition.table == what.table);
        of_table
            .find(|(_, partition)| !partition.meant(what).is_empty())
            .map(|(key, _)| key.clone())
    }

    pub(super) fn retry_quarantined(&self, what: &Quarantined) -> Result<Retried, CatalogError> {
        let policy = self.policy();
        match self.partition_of(what) {
            Some((table, dir, layer)) => self.with_partition(&table, &dir, &layer, |partition| {
                partition.retry(what, &policy)
            }),
            None => Ok(Retried::Absent),
        }
    }

    pub(super) fn drop_quarantined(
        &self,
        what: &Quarantined,
        grace: Duration,
    ) -> Result<Option<u64>, CatalogError> {
        match self.partition_of(what) {
            Some((table, dir, layer)) => self.with_partition(&table, &dir, &layer, |partition| {
                partition.drop_aside(what, grace)
            }),
            None => Ok(None),
        }
    }
}
