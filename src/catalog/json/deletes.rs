//! Deletes that wait for their time, of one partition and of all: how they are handed out, and how each
//! of them ends.

use std::{collections::BTreeMap, time::Duration};

use super::{
    index::{Inner, PartitionKey, guard, lease_for, now_s},
    partition::Partition,
};
use crate::{
    catalog::{CatalogError, DropState, Policy},
    model::{ClaimedDrop, DataPath, DropItem, Lease},
};

impl Inner {
    pub(super) fn claim_drops(&self, limit: usize, lease: Duration) -> Vec<ClaimedDrop> {
        let policy = self.policy();
        let mut claimed = Vec::new();
        for partition in guard(&self.partitions).values_mut() {
            let items = partition.claim_drops(limit - claimed.len(), now_s(), lease, &policy);
            claimed.extend(items.into_iter().map(|(item, token)| ClaimedDrop {
                lease: lease_for(&token, lease),
                item,
            }));
            if claimed.len() >= limit {
                break;
            }
        }
        claimed
    }

    pub(super) fn look_up_drop(&self, claim: &ClaimedDrop) -> Result<DropState, CatalogError> {
        let item = &claim.item;
        let kept_for =
            self.with_partition(&item.table, &item.path.dir(), &item.layer, |partition| {
                partition.holds_drop(&claim.lease.token)?;
                Ok(partition.kept_for(&item.path, now_s()))
            })?;
        let mut found = self.resolve(&item.table, std::slice::from_ref(&item.path));
        Ok(match (found.pop().flatten(), kept_for) {
            (Some(entry), _) => DropState::Named(Box::new(entry)),
            (None, Some(time)) => DropState::KeptFor(time),
            (None, None) => DropState::Unnamed,
        })
    }

    /// One replacement of `metadata.json` for each partition.
    pub(super) fn finish_drops(&self, claims: &[ClaimedDrop]) -> Result<(), CatalogError> {
        let mut by_partition: BTreeMap<PartitionKey, Vec<(DataPath, String)>> = BTreeMap::new();
        for ClaimedDrop { item, lease } in claims {
            let key = (item.table.clone(), item.path.dir(), item.layer.clone());
            by_partition
                .entry(key)
                .or_default()
                .push((item.path.clone(), lease.token.clone()));
        }
        for ((table, dir, layer), drops) in by_partition {
            self.with_partition(&table, &dir, &layer, |partition| {
                partition.finish_drops(&drops)
            })?;
        }
        Ok(())
    }

    pub(super) fn renew_drop(
        &self,
        claim: &ClaimedDrop,
        lease: Duration,
    ) -> Result<Lease, CatalogError> {
        let item = &claim.item;
        let token =
            self.with_partition(&item.table, &item.path.dir(), &item.layer, |partition| {
                partition.renew_drop(&claim.lease.token, lease)
            })?;
        Ok(lease_for(&token, lease))
    }

    pub(super) fn release_drop(
        &self,
        claim: &ClaimedDrop,
        delay: Duration,
    ) -> Result<(), CatalogError> {
        let item = &claim.item;
        self.with_partition(&item.table, &item.path.dir(), &item.layer, |partition| {
            partition.release_drop(&claim.lease.token, delay)
        })
    }
}

impl Partition {
    /// Takes due deletes, oldest first; returns each with its lease's token.
    fn claim_drops(
        &mut self,
        limit: usize,
        now_s: i64,
        lease: Duration,
        policy: &Policy,
    ) -> Vec<(DropItem, String)> {
        let taken = self.drops.taken();
        let is_free =
            |path: &DataPath| !taken.contains(path) && !self.finished_drops.contains(path);
        let due: Vec<DropItem> = self
            .metadata
            .drop_queue
            .iter()
            .filter(|drop| {
                drop.due_s <= now_s && policy.serves(&drop.writer) && is_free(&drop.path)
            })
            .take(limit)
            .cloned()
            .collect();
        let (due, reused): (Vec<DropItem>, Vec<DropItem>) = due
            .into_iter()
            .partition(|drop| self.is_the_same_file(drop));
        for drop in reused {
            tracing::warn!(table = %drop.table, file = %drop.path,
                "a writer used this name again; the new file is kept, but names must be unique");
            self.finished_drops.insert(drop.path);
        }
        let drops = &mut self.drops;
        due.into_iter()
            .map(|drop| {
                let token = drops.take(std::slice::from_ref(&drop.path), lease);
                (drop, token)
            })
            .collect()
    }

    /// False when another file lies under the name of a replaced one.
    fn is_the_same_file(&self, drop: &DropItem) -> bool {
        let file = self.folder().join(drop.path.file_name());
        match (
            self.metadata.found_drop_sizes.get(&drop.path),
            std::fs::symlink_metadata(file),
        ) {
            (Some(bytes), Ok(found)) => found.len() == *bytes,
            _ => true,
        }
    }

    fn finish_drops(&mut self, drops: &[(DataPath, String)]) -> Result<(), CatalogError> {
        for (path, token) in drops {
            if self.drops.end(token, None) {
                self.finished_drops.insert(path.clone());
            }
        }
        self.change(|_| {})
    }

    fn holds_drop(&self, token: &str) -> Result<(), CatalogError> {
        match self.drops.paths(token) {
            Some(_) => Ok(()),
            None => Err(self.lease_lost()),
        }
    }

    /// How long a path keeps its bytes for a delete that was queued later than the one that is held.
    fn kept_for(&self, path: &DataPath, now_s: i64) -> Option<Duration> {
        let items = self.metadata.drop_queue.iter();
        let due_s = items
            .filter(|item| item.path == *path)
            .map(|item| item.due_s)
            .max()?;
        let left_s = u64::try_from(due_s.saturating_sub(now_s)).ok()?;
        (left_s > 0).then(|| Duration::from_secs(left_s))
    }

    fn renew_drop(&mut self, token: &str, lease: Duration) -> Result<String, CatalogError> {
        self.drops
            .renew(token, lease)
            .ok_or_else(|| self.lease_lost())
    }

    fn release_drop(&mut self, token: &str, delay: Duration) -> Result<(), CatalogError> {
        if self.drops.end(token, Some(delay)) {
            Ok(())
        } else {
            Err(self.lease_lost())
        }
    }

    pub(super) fn drop_counts(&self) -> (usize, usize) {
        let waiting = self
            .metadata
            .drop_queue
            .iter()
            .filter(|drop| !self.finished_drops.contains(&drop.path))
            .count();
        let claimed = self.drops.live_count();
        (waiting.saturating_sub(claimed), claimed)
    }
}
