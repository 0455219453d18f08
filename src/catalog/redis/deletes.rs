//! Deletes that were claimed: what is asked before each one, and their end.

use super::{
    RedisCatalog,
    index::stored_entry,
    keys::{self, ListState},
    lease_lost,
    queues::drop_queue_of,
};
use crate::{
    catalog::CatalogError,
    model::{ClaimedDrop, IndexEntry},
};

/// Deletes ended in one round trip.
const FINISH_MAX: usize = 1000;

impl RedisCatalog {
    /// Both questions in one transaction: only together do their answers say anything.
    pub(super) async fn look_up_held(
        &self,
        claim: &ClaimedDrop,
    ) -> Result<Option<IndexEntry>, CatalogError> {
        let (table, path) = (&claim.item.table, &claim.item.path);
        let list = keys::file_list(&drop_queue_of(claim), ListState::Processing);
        let files = keys::files(table, path.first_folder());
        let mut both = redis::pipe();
        both.atomic();
        both.cmd("LPOS").arg(list).arg(&claim.lease.token);
        both.cmd("HGET").arg(&files).arg(path.as_str());
        let (place, stored): (Option<u64>, Option<Vec<u8>>) = self
            .connection
            .query_all("asking about a delete", &both)
            .await?;
        if place.is_none() {
            return Err(lease_lost(path));
        }
        let Some(stored) = stored else {
            return Ok(None);
        };
        match stored_entry(table, path.as_str().as_bytes(), &stored) {
            Ok(entry) => Ok(Some(entry)),
            Err(reason) => Err(CatalogError::Malformed {
                place: format!("{files} {path}"),
                reason,
            }),
        }
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
