//! What all use cases share: the published state, the store, the forwards, the leases.

use std::sync::Arc;

use futures::future::join_all;
use kftray_commons::api::{EndedBy, Hello, LeaseId, Mode, PROTOCOL};
use kftray_commons::store::Directory;
use kftray_commons::{ForwardId, ForwardSpec, Problem};
use kftray_kube::Environment;
use tokio::sync::watch;

use crate::archive::Archive;
use crate::board::Board;
use crate::configs::{no_config, published};
use crate::forwards::{Fleet, Lifetime};
use crate::history::Chronicle;
use crate::leases::Leases;
use crate::tasks::Tasks;
use crate::{clock, settings};

/// How a host ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its forwards end; those that shall run come back with the next host.
    Stop,
    /// Another host has taken over the listeners; open connections may go on for a while.
    HandOver,
}

/// The host's inside.
#[derive(Debug)]
pub(crate) struct Core {
    pub(crate) directory: Directory,
    pub(crate) mode: Mode,
    pub(crate) version: String,
    started_at: u64,
    board: Arc<Board>,
    archive: Archive,
    chronicle: Chronicle,
    fleet: Arc<Fleet>,
    leases: Leases,
    tasks: Tasks,
    environment: Environment,
    ending: watch::Sender<Option<Ending>>,
}

/// The parts of a core.
pub(crate) struct Parts {
    pub(crate) directory: Directory,
    pub(crate) mode: Mode,
    pub(crate) version: String,
    pub(crate) board: Arc<Board>,
    pub(crate) archive: Archive,
    pub(crate) chronicle: Chronicle,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) leases: Leases,
    pub(crate) environment: Environment,
}

impl Core {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { directory, mode, version, board, archive, chronicle, fleet, leases, environment } = parts;
        Self {
            directory,
            mode,
            version,
            started_at: clock::now(),
            board,
            archive,
            chronicle,
            fleet,
            leases,
            tasks: Tasks::default(),
            environment,
            ending: watch::Sender::new(None),
        }
    }

    /// Who this host is.
    pub(crate) fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            version: self.version.clone(),
            build: option_env!("KFTRAY_BUILD").unwrap_or_default().to_owned(),
            instance: self.board.instance().to_owned(),
            pid: std::process::id(),
            started_at: self.started_at,
            mode: self.mode,
            config_dir: self.directory.path().display().to_string(),
            clients: u32::try_from(*self.board.followers().borrow()).unwrap_or(u32::MAX),
        }
    }

    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }

    pub(crate) fn archive(&self) -> &Archive {
        &self.archive
    }

    pub(crate) fn chronicle(&self) -> &Chronicle {
        &self.chronicle
    }

    pub(crate) fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Environment of kubeconfigs, plugins and proxies.
    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// Asks the host to end. The first word counts.
    pub(crate) fn end(&self, how: Ending) {
        self.ending.send_if_modified(|ending| ending.is_none() && ending.replace(how).is_none());
    }

    /// Whether and how it ends, now and as it changes.
    pub(crate) fn ending(&self) -> watch::Receiver<Option<Ending>> {
        self.ending.subscribe()
    }

    /// A lease has ended, and with it what ran for it alone. Once another host has taken over, it goes on with both: to this
    /// one leases only seem to end, since their connections do.
    pub(crate) async fn end_lease(&self, lease: LeaseId) {
        if *self.ending.borrow() == Some(Ending::HandOver) {
            return;
        }
        let alone = self.fleet.release(lease);
        join_all(alone.into_iter().map(|id| self.fleet.stop(id, EndedBy::Lease))).await;
    }

    /// To be called after a start for a lease: if that ended meanwhile, its end has found nothing to end.
    pub(crate) async fn recheck(&self, lease: Option<LeaseId>) {
        if let Some(lease) = lease.filter(|lease| !self.leases.is_held(*lease)) {
            self.end_lease(lease).await;
        }
    }

    /// Whether a number is a config's.
    #[expect(clippy::unused_self, reason = "numbers belong to a host")]
    pub(crate) fn is_config(&self, id: ForwardId) -> bool {
        id.0 < kftray_commons::api::AD_HOC_IDS
    }

    /// What people call it, as far as it is known.
    pub(crate) fn label(&self, id: ForwardId) -> String {
        let config = || self.board.config(id).map(|config| config.summary.label.clone());
        let forward = self.board.forward(id).map(|forward| forward.label.clone());
        forward.or_else(config).unwrap_or_else(|| id.0.to_string())
    }

    /// When a config's forward ends by itself.
    pub(crate) fn lifetime(&self, id: ForwardId) -> Lifetime {
        let (idle, ttl) = self
            .board
            .config(id)
            .map_or((None, None), |config| (config.summary.idle_minutes, config.summary.ttl_minutes));
        settings::lifetime(idle, ttl, &self.board.settings())
    }

    /// The specs of these configs, each or why it has none.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) async fn specs(
        &self,
        ids: &[ForwardId],
    ) -> Result<Vec<(ForwardId, Result<ForwardSpec, Problem>)>, Problem> {
        let ids = ids.to_vec();
        let read = self.archive.call(move |store| {
            let one = |id: ForwardId| -> Result<_, Problem> {
                let spec = match store.config(id)? {
                    Some(stored) => stored.spec.map_err(|fault| crate::configs::invalid(&fault).problem()),
                    None => Err(no_config(id)),
                };
                Ok((id, spec.map(|spec| ForwardSpec { id, ..spec })))
            };
            ids.into_iter().map(one).collect()
        });
        read.await
    }

    /// Every config that can be read, as a spec.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) async fn all_specs(&self) -> Result<Vec<ForwardSpec>, Problem> {
        let stored = self.archive.call(|store| store.configs()).await?;
        let spec = |config: kftray_commons::store::StoredConfig| {
            config.spec.ok().map(|spec| ForwardSpec { id: config.id, ..spec })
        };
        Ok(stored.into_iter().filter_map(spec).collect())
    }

    /// Notes for the next host whether configs shall run, and tells everybody.
    ///
    /// # Errors
    /// What the store says.
    pub(crate) async fn set_desired(&self, ids: Vec<ForwardId>, desired: bool) -> Result<(), Problem> {
        if ids.is_empty() {
            return Ok(());
        }
        let board = Arc::clone(&self.board);
        let written = self.archive.call(move |store| {
            for id in store.set_desired(&ids, desired)? {
                if let Some(stored) = store.config(id)? {
                    board.put_config(Arc::new(published(&stored)));
                }
            }
            Ok(())
        });
        written.await
    }
}
