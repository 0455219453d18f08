//! Deletes that were claimed: what is asked before each one, and their end.

use std::time::Duration;

use super::{
    RedisCatalog,
    index::stored_entry,
    keys::{self, ListState},
    lease_lost,
    queues::drop_queue_of,
};
use crate::{
    catalog::{CatalogError, DropState},
    model::ClaimedDrop,
};

/// The item's place, the index entry, until when the bytes are kept, the server's clock.
type Answers = (Option<u64>, Option<Vec<u8>>, Option<Vec<u8>>, (u64, u64));

/// Deletes ended in one round trip.
const FINISH_MAX: usize = 1000;

impl RedisCatalog {
    /// All questions in one transaction: only together do their answers say anything.
    pub(super) async fn look_up_held(
        &self,
        claim: &ClaimedDrop,
    ) -> Result<DropState, CatalogError> {
        let (table, path) = (&claim.item.table, &claim.item.path);
        let list = keys::file_list(&drop_queue_of(claim), ListState::Processing);
        let files = keys::files(table, path.first_folder());
        let mut all = redis::pipe();
        all.atomic();
        all.cmd("LPOS").arg(list).arg(&claim.lease.token);
        all.cmd("HGET").arg(&files).arg(path.as_str());
        all.cmd("HGET").arg(keys::kept(table)).arg(path.as_str());
        all.cmd("TIME");
        let (place, stored, kept_until, (now_s, _)): Answers = self
            .connection
            .query_all("asking about a delete", &all)
            .await?;
        if place.is_none() {
            return Err(lease_lost(path));
        }
        if let Some(stored) = stored {
            return match stored_entry(table, path.as_str().as_bytes(), &stored) {
                Ok(entry) => Ok(DropState::Named(Box::new(entry))),
                Err(reason) => Err(CatalogError::Malformed {
                    place: format!("{files} {path}"),
                    reason,
                }),
            };
        }
        // What is no number was not written by us.
        let kept_until = kept_until.and_then(|text| String::from_utf8(text).ok()?.parse().ok());
        let left_s = kept_until.map_or(0, |until: u64| until.saturating_sub(now_s));
        Ok(match left_s {
            0 => DropState::Unnamed,
            left_s => DropState::KeptFor(Duration::from_secs(left_s)),
        })
    }

    /// Together: a server that saves each write before it answers saves these once.
    pub(super) async fn finish_held(&self, claims: &[ClaimedDrop]) -> Result<(), CatalogError> {
        for claims in claims.chunks(FINISH_MAX) {
            let mut all = redis::pipe();
            for claim in claims {
                let list = keys::file_list(&drop_queue_of(claim), ListState::Processing);
                all.cmd("LREM").arg(list).arg(1).arg(&claim.lease.token);
            }
            // One that is not there any more is its new holder's.
            let _: Vec<u64> = self.connection.query_all("ending deletes", &all).await?;
        }
        Ok(())
    }
}
