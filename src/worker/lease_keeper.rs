//! Holds a claim of a merge or a move: renews it while work goes on, and shows it to the calls that
//! need its newest proof.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use tokio::{sync::Mutex, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    catalog::{Catalog, CatalogError},
    merge::MergeControl,
    model::{ClaimedMerge, ClaimedMove, DataPath, LayerName, Lease},
};

/// A claim that can be prolonged.
#[async_trait]
pub(super) trait Claim: Clone + Send + Sync + 'static {
    async fn renew(&self, catalog: &dyn Catalog, lease: Duration) -> Result<Lease, CatalogError>;

    /// Announces an output in this layer.
    async fn announce(
        &self,
        catalog: &dyn Catalog,
        layer: &LayerName,
        output: &DataPath,
    ) -> Result<(), CatalogError>;

    fn lease(&mut self) -> &mut Lease;

    /// For messages.
    fn name(&self) -> String;
}

#[async_trait]
impl Claim for ClaimedMerge {
    async fn renew(&self, catalog: &dyn Catalog, lease: Duration) -> Result<Lease, CatalogError> {
        catalog.renew_merge(self, lease).await
    }

    /// The layer is that of the plan.
    async fn announce(
        &self,
        catalog: &dyn Catalog,
        _layer: &LayerName,
        output: &DataPath,
    ) -> Result<(), CatalogError> {
        catalog.announce_output(self, output).await
    }

    fn lease(&mut self) -> &mut Lease {
        &mut self.lease
    }

    fn name(&self) -> String {
        self.plan.queue.to_string()
    }
}

#[async_trait]
impl Claim for ClaimedMove {
    async fn renew(&self, catalog: &dyn Catalog, lease: Duration) -> Result<Lease, CatalogError> {
        catalog.renew_move(self, lease).await
    }

    async fn announce(
        &self,
        catalog: &dyn Catalog,
        layer: &LayerName,
        output: &DataPath,
    ) -> Result<(), CatalogError> {
        catalog.announce_move(self, layer, output).await
    }

    fn lease(&mut self) -> &mut Lease {
        &mut self.lease
    }

    fn name(&self) -> String {
        format!("{} {}", self.item.table, self.item.path_from)
    }
}

/// The claim with its newest lease. Whoever calls the catalog with it keeps the lock meanwhile:
/// a renewal in between would make the proof void.
struct Held<C> {
    claim: C,
    /// By this machine's clock, which runs on while the process is stopped. Never later than the
    /// catalog's own reckoning.
    ours_until: Instant,
    /// False after a renewal whose answer was lost: it may have replaced the lease.
    is_answered: bool,
}

impl<C: Claim> Held<C> {
    async fn renew(&mut self, catalog: &dyn Catalog, lease: Duration) -> Result<(), CatalogError> {
        let asked_at = Instant::now();
        self.is_answered = false;
        let renewed = self.claim.renew(catalog, lease).await;
        self.is_answered = renewed.is_ok();
        *self.claim.lease() = renewed?;
        self.ours_until = asked_at + lease;
        Ok(())
    }
}

/// Renews until it is stopped or the lease is lost.
pub(super) struct LeaseKeeper<C = ClaimedMerge> {
    catalog: Arc<dyn Catalog>,
    lease: Duration,
    held: Arc<Mutex<Held<C>>>,
    stop: CancellationToken,
    task: JoinHandle<bool>,
}

impl<C: Claim> LeaseKeeper<C> {
    /// Renews three times per lease. A lost lease stops the merge through `control`.
    pub(super) fn start(
        catalog: Arc<dyn Catalog>,
        (claim, claimed_at): (C, Instant),
        lease: Duration,
        control: Arc<MergeControl>,
    ) -> Self {
        let held = Arc::new(Mutex::new(Held {
            claim,
            ours_until: claimed_at + lease,
            is_answered: true,
        }));
        let stop = CancellationToken::new();
        let task = tokio::spawn(keep(
            Arc::clone(&catalog),
            Arc::clone(&held),
            lease,
            stop.clone(),
            control,
        ));
        Self {
            catalog,
            lease,
            held,
            stop,
            task,
        }
    }

    /// Announces the output under the newest lease. Returns until when the claim is ours at least.
    pub(super) async fn announce(
        &self,
        layer: &LayerName,
        output: &DataPath,
    ) -> Result<Instant, CatalogError> {
        let mut held = self.held.lock().await;
        let catalog = self.catalog.as_ref();
        if !held.is_answered || held.ours_until < Instant::now() + self.lease / 2 {
            held.renew(catalog, self.lease).await?;
        }
        held.claim.announce(catalog, layer, output).await?;
        Ok(held.ours_until)
    }

    /// Renews now: an answer says that the catalog knows this claim, so that no earlier holder committed
    /// before. Returns until when the claim is ours at least.
    pub(super) async fn confirm(&self) -> Result<Instant, CatalogError> {
        let mut held = self.held.lock().await;
        held.renew(self.catalog.as_ref(), self.lease).await?;
        Ok(held.ours_until)
    }

    /// Ends renewing, after a renewal under way. Says with the newest lease whether it is still held.
    pub(super) async fn stop(self) -> (C, bool) {
        self.stop.cancel();
        // A panicked keeper may have renewed or not: the commit decides.
        let is_held = self.task.await.unwrap_or(true);
        (self.held.lock().await.claim.clone(), is_held)
    }
}

/// False when the lease was lost.
async fn keep<C: Claim>(
    catalog: Arc<dyn Catalog>,
    held: Arc<Mutex<Held<C>>>,
    lease: Duration,
    stopped: CancellationToken,
    control: Arc<MergeControl>,
) -> bool {
    loop {
        tokio::select! {
            () = stopped.cancelled() => {}
            () = tokio::time::sleep(lease / 3) => {}
        }
        let mut held = held.lock().await;
        // A renewal whose answer was lost may have replaced the lease: ask once more.
        if stopped.is_cancelled() && held.is_answered {
            return true;
        }
        match held.renew(catalog.as_ref(), lease).await {
            Ok(()) => {}
            Err(CatalogError::LeaseLost { .. }) => {
                control.cancel();
                return false;
            }
            // The commit is fenced: a lease that ran out meanwhile is noticed there.
            Err(_) if stopped.is_cancelled() => return true,
            Err(error) => {
                tracing::warn!(plan = held.claim.name(), %error, "lease could not be renewed; trying again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::{ConnectOptions, Level, Policy, connect},
        model::{IndexEntry, Iteration, LayerName, TableRef, WriterId},
    };

    fn entry(name: &str) -> IndexEntry {
        IndexEntry {
            layer: LayerName::default(),
            table: TableRef::new("db", "cpu").unwrap(),
            path: DataPath::parse(&format!("date=2024-01-15/hour=14/{name}.parquet")).unwrap(),
            size_bytes: 1,
            row_count: 1,
            chunk_time_ns: 1,
            min_time_ns: 1,
            max_time_ns: 1,
            min: serde_json::Map::new(),
            max: serde_json::Map::new(),
            writer: WriterId::default(),
            extra: serde_json::Map::new(),
        }
    }

    #[tokio::test]
    async fn an_output_is_announced_under_the_newest_lease_of_a_long_merge() {
        let folder = tempfile::tempdir().unwrap();
        let policy = Policy {
            levels: vec![Level {
                iteration: Iteration(1),
                timeout: Duration::ZERO,
                max_size_bytes: 1000,
            }],
            layers: Vec::new(),
            writers: None,
        };
        let options = ConnectOptions {
            policy,
            ..ConnectOptions::default()
        };
        let root = folder.path().to_str().unwrap();
        let catalog = connect(root, options).await.unwrap();
        let files = ["a.1", "b.1"].map(entry);
        catalog.batch(&files, &[]).await.unwrap();
        let lease = Duration::from_millis(600);
        let queue = catalog.due_merges(Iteration(1), 1).await.unwrap()[0]
            .queue
            .clone();
        let claimed_at = Instant::now();
        let claim = catalog.claim_merge(&queue, lease).await.unwrap().unwrap();
        let control = Arc::new(MergeControl::default());
        let first = claim.lease.token.clone();
        let keeper = LeaseKeeper::start(
            Arc::clone(&catalog),
            (claim, claimed_at),
            lease,
            Arc::clone(&control),
        );
        // Longer than the first lease: it was renewed meanwhile, and its first proof is void.
        tokio::time::sleep(lease * 2).await;
        let layer = LayerName::default();
        let ours_until = keeper.announce(&layer, &entry("m.2").path).await.unwrap();
        assert!(ours_until > Instant::now());
        let (claim, is_held) = keeper.stop().await;
        assert!(is_held && !control.is_cancelled());
        assert_ne!(claim.lease.token, first);
    }
}
