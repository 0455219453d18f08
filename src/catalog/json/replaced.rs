//! Files that merges replaced, while they wait for their deletion, and how they come back.

use std::{collections::BTreeMap, time::Duration};

use super::{
    index::{Inner, guard, now_s},
    partition::{Partition, remove_files, set_aside},
};
use crate::{
    catalog::{BROUGHT_BACK, CatalogError, Replacement, Undeleted},
    model::{DataPath, TableRef},
};

impl Partition {
    fn replacements(&self) -> Vec<Replacement> {
        let mut found: BTreeMap<&DataPath, Replacement> = BTreeMap::new();
        for drop in &self.metadata.drop_queue {
            let Some(replaced) = self.metadata.replaced.get(&drop.path) else {
                continue;
            };
            if self.finished_drops.contains(&drop.path) {
                continue;
            }
            let replacement = found.entry(&replaced.by).or_insert_with(|| Replacement {
                table: self.table.clone(),
                layer: self.layer.clone(),
                writer: drop.writer.clone(),
                output: replaced.by.clone(),
                sources: Vec::new(),
                sources_count: replaced.count,
                due_s: drop.due_s,
            });
            replacement.due_s = replacement.due_s.min(drop.due_s);
            replacement.sources.push(drop.path.clone());
        }
        let mut found: Vec<Replacement> = found.into_values().collect();
        for replacement in &mut found {
            replacement.sources.sort();
        }
        found
    }

    fn undelete(&mut self, output: &DataPath, grace: Duration) -> Result<Undeleted, CatalogError> {
        self.reload_if_changed()?;
        if self.entry(output).is_none() {
            return Ok(Undeleted::OutputGone);
        }
        let waiting = self
            .replacements()
            .into_iter()
            .find(|replacement| replacement.output == *output);
        let taken = self.drops.taken();
        let Some(waiting) = waiting.filter(|waiting| {
            waiting.sources.len() == waiting.sources_count
                && waiting.sources.iter().all(|path| !taken.contains(path))
        }) else {
            return Ok(Undeleted::BeingDeleted);
        };
        let grace_s = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        self.change(|metadata| {
            for path in &waiting.sources {
                metadata.drop_queue.retain(|drop| drop.path != *path);
                metadata.found_drop_sizes.remove(path);
                // Each was found above.
                if let Some(replaced) = metadata.replaced.remove(path) {
                    metadata.files.push(replaced.record);
                }
            }
            metadata.files.sort_by_key(|record| record.id);
            let sources: Vec<&DataPath> = waiting.sources.iter().collect();
            set_aside(metadata, &sources, BROUGHT_BACK, None);
            let due_s = now_s().saturating_add(grace_s);
            remove_files(metadata, std::slice::from_ref(output), due_s, None);
        })?;
        Ok(Undeleted::Done)
    }
}

impl Inner {
    pub(super) fn replacements(&self, table: &TableRef) -> Vec<Replacement> {
        let mut found: Vec<Replacement> = guard(&self.partitions)
            .values()
            .filter(|partition| partition.table == *table)
            .flat_map(Partition::replacements)
            .collect();
        found.sort_by(|a, b| (a.due_s, &a.output).cmp(&(b.due_s, &b.output)));
        found
    }

    pub(super) fn undelete(
        &self,
        replacement: &Replacement,
        grace: Duration,
    ) -> Result<Undeleted, CatalogError> {
        let Replacement {
            table,
            layer,
            output,
            ..
        } = replacement;
        self.with_partition(table, &output.dir(), layer, |partition| {
            partition.undelete(output, grace)
        })
    }
}
