//! What stands beside the index: deletes, moves, announcements, files that were set aside.

use futures_util::TryStreamExt;

use super::{
    Difference, Kind, Outcome, VerifyError,
    accounts::Accounts,
    walk::{Announcement, Walk},
};
use crate::{
    catalog::audit::{ItemFate, ItemState, Mend, Record, Work},
    model::{MoveItem, TableRef},
};

impl Walk<'_> {
    /// What the queues say, beside merges; with `judge` also what is wrong with them.
    pub(super) async fn records(
        &mut self,
        table: &TableRef,
        first: &str,
        judge: bool,
    ) -> Result<Accounts, VerifyError> {
        let mut accounts = Accounts::default();
        let mut announced = Vec::new();
        let audit = self.audit;
        let mut records = audit.records(table, first);
        while let Some(record) = records.try_next().await? {
            match record {
                Record::Item {
                    place,
                    state,
                    text,
                    work,
                    ..
                } => {
                    match &work {
                        Ok(Work::Drop(item)) if state != ItemState::Failed => {
                            let key = self.bytes_key(&item.layer, item.path.as_str());
                            accounts.drops.insert(key);
                        }
                        Ok(Work::Move(item)) if state != ItemState::Failed => {
                            accounts
                                .moves
                                .insert(self.keys.path(item.path_from.as_str()));
                            let to = item.layer_to.as_ref().unwrap_or(&item.layer_from);
                            let key = self.bytes_key(to, item.path_to.as_str());
                            accounts.outputs.insert(key);
                        }
                        _ => {}
                    }
                    if judge {
                        self.summary.items += 1;
                        self.file_item(table, place, state, text, work).await?;
                    }
                }
                Record::Announced {
                    field,
                    text,
                    path,
                    layer,
                    at_s,
                } => announced.push(Announcement {
                    field,
                    text,
                    path,
                    layer,
                    at_s,
                }),
                Record::SetAside { path } => {
                    accounts.set_aside.insert(self.keys.path(&path));
                }
                Record::Sums { dir, reason } if judge => {
                    let difference =
                        Difference::new(Kind::PartitionSums, table, dir.as_str(), reason);
                    self.emit(difference.mended_by(Mend::Folder(dir)))?;
                }
                Record::Strange { place, reason } if judge => {
                    let mut difference = difference_of_key(&place, &reason);
                    difference.table = Some(table.clone());
                    self.emit(difference)?;
                }
                Record::Sums { .. } | Record::Strange { .. } => {}
            }
        }
        for announcement in announced {
            let key = self.bytes_key(&announcement.layer, announcement.path.as_str());
            if judge && self.is_stale(table, &announcement).await? {
                self.stale_announcement(table, announcement).await?;
            }
            // A dead output is named once, as such.
            accounts.outputs.insert(key);
        }
        Ok(accounts)
    }

    /// A delete or a move.
    async fn file_item(
        &mut self,
        table: &TableRef,
        place: String,
        state: ItemState,
        text: String,
        work: Result<Work, String>,
    ) -> Result<(), VerifyError> {
        if state == ItemState::Failed {
            return Ok(());
        }
        let mend = |fate| Mend::Item {
            place: place.clone(),
            seen: text.clone(),
            fate,
        };
        let new = |kind, detail: String| Difference::new(kind, table, &place, detail);
        let (path, layer, writer, due_s) = match &work {
            Err(reason) => {
                let fate = ItemFate::Fail(reason.clone());
                return self.emit(new(Kind::BrokenItem, reason.clone()).mended_by(mend(fate)));
            }
            Ok(Work::Drop(item)) => (&item.path, &item.layer, &item.writer, item.due_s),
            Ok(Work::Move(item)) => (&item.path_from, &item.layer_from, &item.writer, item.due_s),
            Ok(Work::Merge(_)) => return Ok(()),
        };
        let is_stuck = state == ItemState::Idle || self.is_overdue(due_s);
        let stored = self.audit.stored(table, path.as_str()).await?;
        match (&work, stored.map(|stored| stored.entry)) {
            (Ok(Work::Drop(_)), Some(Ok(entry))) if is_stuck => {
                let is_same = self.bytes_key(&entry.layer, path.as_str())
                    == self.bytes_key(layer, path.as_str());
                if is_same {
                    let detail = format!("{path} is to be deleted, and the index names it");
                    let difference = new(Kind::DropOfIndexedFile, detail).in_layer(layer);
                    return self.emit(difference.mended_by(mend(ItemFate::Remove)));
                }
            }
            (Ok(Work::Move(_)), None) if is_stuck => {
                let detail = format!("{path} is to be moved, and is not in the index");
                let difference = new(Kind::MoveOfUnknownFile, detail).in_layer(layer);
                return self.emit(difference.mended_by(mend(ItemFate::Remove)));
            }
            _ => {}
        }
        if !self.is_overdue(due_s) {
            return Ok(());
        }
        if state == ItemState::Processing {
            let detail = format!("the claim on {path} ran out, and nobody took over");
            return self.emit(new(Kind::StaleClaim, detail).mended_by(mend(ItemFate::Release)));
        }
        let why = if !self.config.policy().serves(writer) {
            format!("worker.writers does not name {:?}", writer.as_str())
        } else if let Ok(Work::Move(item)) = &work
            && let Some(why) = self.why_unserved(item)
        {
            why
        } else {
            return Ok(());
        };
        self.emit(new(Kind::UnservedItem, format!("{path}: {why}")))
    }

    /// Why no daemon with this configuration makes a move.
    fn why_unserved(&self, item: &MoveItem) -> Option<String> {
        let layer = |name| self.config.layers.iter().find(|layer| layer.name == name);
        let Some(from) = layer(item.layer_from.clone()) else {
            return Some(format!("layers has no {:?}", item.layer_from.as_str()));
        };
        match &item.layer_to {
            Some(to) if layer(to.clone()).is_none() => {
                Some(format!("layers has no {:?}", to.as_str()))
            }
            None if from.ttl.is_none() => Some(format!(
                "it would be deleted, and layer {:?} has no ttl in the settings",
                from.name.as_str()
            )),
            _ => None,
        }
    }
}

/// A key or file that is not what its name says.
pub(super) fn difference_of_key(place: &str, reason: &str) -> Difference {
    Difference {
        kind: Kind::StrangeKey,
        table: None,
        layer: None,
        place: place.to_owned(),
        detail: reason.to_owned(),
        outcome: Outcome::Found,
        mends: Vec::new(),
    }
}
