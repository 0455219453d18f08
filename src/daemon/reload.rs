//! New settings for a running daemon.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{
    Access, Daemon, HAND_BACK_TIME, Reload, Signal, context, drained, open_catalog, schedule,
    stop_signal,
};
use crate::{
    catalog::Catalog,
    config::{CatalogConfig, Config},
    worker::{self, WorkContext},
};

impl Daemon {
    /// Valid settings are applied without losing work, invalid ones change nothing. Returns whether a stop
    /// signal came meanwhile.
    pub(super) async fn reload(
        &mut self,
        reload: &Reload,
        signals: &mut mpsc::Receiver<Signal>,
    ) -> bool {
        let config = match reload() {
            Ok(config) => config,
            Err(problems) => {
                tracing::error!("configuration not reloaded, the old one stays: {problems}");
                return false;
            }
        };
        if config == self.context.config && !self.is_stranded {
            tracing::info!("configuration reloaded: nothing changed");
            return false;
        }
        self.context.stop.claims.cancel();
        self.timers.stop().await;
        if !self.is_stranded && keeps_catalog(&self.context.config, &config) {
            self.context.catalog.set_policy(Arc::new(config.policy()));
            let catalog = Arc::clone(&self.context.catalog);
            self.replace(config, catalog).await;
            tracing::info!("configuration reloaded");
            return false;
        }
        let is_stopped = tokio::select! {
            is_drained = self.drain() => {
                if is_drained {
                    self.reopen(config).await;
                } else {
                    tracing::error!("running merges did not stop in time, the old configuration stays");
                    let old = self.context.config.clone();
                    let catalog = Arc::clone(&self.context.catalog);
                    self.replace(old, catalog).await;
                }
                false
            }
            () = stop_signal(signals) => true,
        };
        is_stopped
    }

    /// Opens what the new configuration names, or again what the old one does.
    async fn reopen(&mut self, config: Config) {
        self.context.catalog.close();
        let error = match open_catalog(&config, Access::Work).await {
            Ok(catalog) => {
                self.replace(config, catalog).await;
                return tracing::info!("configuration reloaded");
            }
            Err(error) => error,
        };
        tracing::error!(%error, "the new catalog or layers cannot be opened, the old configuration stays");
        let old = self.context.config.clone();
        match open_catalog(&old, Access::Work).await {
            Ok(catalog) => self.replace(old, catalog).await,
            Err(error) => {
                self.is_stranded = true;
                tracing::error!(%error, "the old catalog cannot be opened again either; trying both again soon");
            }
        }
    }

    /// Ends all running work, also that of earlier configurations: none of it may commit to a catalog
    /// that somebody else opens next. False when they did not end in time.
    async fn drain(&self) -> bool {
        let contexts: Vec<Arc<WorkContext>> = self
            .retired
            .iter()
            .chain([&self.context])
            .cloned()
            .collect();
        if tokio::time::timeout(self.context.config.worker.stop_timeout, drained(&contexts))
            .await
            .is_ok()
        {
            return true;
        }
        for context in &contexts {
            context.stop.merges.cancel();
        }
        tokio::time::timeout(HAND_BACK_TIME, drained(&contexts))
            .await
            .is_ok()
    }

    async fn replace(&mut self, config: Config, catalog: Arc<dyn Catalog>) {
        self.is_stranded = false;
        let mut next = context(
            config,
            catalog,
            Arc::clone(&self.context.totals),
            self.context.gate.clone(),
        );
        if let Some(fresh) = Arc::get_mut(&mut next) {
            let same_worker = fresh.config.worker == self.context.config.worker;
            if same_worker {
                fresh.merge_permits = Arc::clone(&self.context.merge_permits);
                fresh.budgets = Arc::clone(&self.context.budgets);
            }
        }
        if !Arc::ptr_eq(&next.merge_permits, &self.context.merge_permits) {
            self.hold_permits_of_running(&next);
        }
        match schedule::start(&next).await {
            Ok(timers) => self.timers = timers,
            Err(error) => {
                tracing::error!(%error, "timers could not be started; restart the daemon")
            }
        }
        self.retired.retain(|context| !context.is_drained());
        self.retired
            .push(std::mem::replace(&mut self.context, next));
    }

    /// Merges of the old configuration count against the new budget until they end.
    fn hold_permits_of_running(&self, next: &Arc<WorkContext>) {
        let held = self
            .context
            .running
            .len()
            .min(worker::merges_at_once(&next.config));
        let Ok(count) = u32::try_from(held) else {
            return;
        };
        if let Ok(permits) = Arc::clone(&next.merge_permits).try_acquire_many_owned(count) {
            let old = Arc::clone(&self.context);
            tokio::spawn(async move {
                old.running.close();
                old.running.wait().await;
                drop(permits);
            });
        }
    }
}

/// The embedded catalog reads footers by the tables' settings, so these belong to it.
fn keeps_catalog(old: &Config, new: &Config) -> bool {
    old.catalog == new.catalog
        && old.layers == new.layers
        && (old.catalog != CatalogConfig::Json
            || old.table_defaults == new.table_defaults
                && old.table_overrides == new.table_overrides)
}
