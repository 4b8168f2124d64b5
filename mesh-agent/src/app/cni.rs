//! The agent's part of the CNI plugin: its installation, its desk, and its removal at the end.

use std::sync::Arc;
use std::time::Instant;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use super::{Agent, AppError};
use crate::admin::document::{CniCall, CniStatus};
use crate::capture::Announcements;
use crate::cni::{self, Desk, DeskCounts, DeskSocket, Installation, InstallationStatus};
use crate::settings::Settings;

/// What the plugin needs of the agent.
#[derive(Clone)]
pub(super) struct Plugin {
    /// What it has announced.
    pub(super) announced: Arc<Announcements>,
    /// `None`: it is not wanted.
    installation: Option<Installation>,
    counts: Arc<DeskCounts>,
}

impl Plugin {
    pub(super) fn of(settings: &Settings) -> Self {
        let installation = Installation::of(settings);
        let announced = match &installation {
            Some(_) => Announcements::kept_in(cni::announcements_dir(&settings.admin_socket), Instant::now()),
            None => Announcements::default(),
        };
        Self {
            announced: Arc::new(announced),
            installation,
            counts: Arc::default(),
        }
    }

    /// Its socket, where it is wanted.
    pub(super) fn open(&self, settings: &Settings) -> Result<Option<DeskSocket>, AppError> {
        let wanted = self.installation.as_ref();
        let open = |_| DeskSocket::open(&cni::socket_beside(&settings.admin_socket));
        Ok(wanted.map(open).transpose()?)
    }

    /// As it is shown.
    pub(super) fn status(&self) -> Option<CniStatus> {
        let (installed, detail) = match self.installation.as_ref()?.status() {
            InstallationStatus::Unknown => (false, "its files are being looked at".to_owned()),
            InstallationStatus::Installed(path) => (true, path.display().to_string()),
            InstallationStatus::Missing(why) => (false, why),
        };
        let call = |(result, calls): (&str, u64)| CniCall {
            result: result.to_owned(),
            calls,
        };
        Some(CniStatus {
            installed,
            detail,
            awaited: self.announced.awaited(),
            calls: self.counts.by_result().map(call).to_vec(),
        })
    }

    /// Removes what was installed.
    pub(super) async fn uninstall(&self, settings: &Settings) {
        let Some(cni) = settings.cni.clone() else { return };
        let state_dir = settings.state_dir.clone();
        match tokio::task::spawn_blocking(move || cni::uninstall(&cni, &state_dir)).await {
            Ok(Ok(removed)) => info!(files = removed.len(), "removed the CNI plugin"),
            Ok(Err(error)) => {
                error!(%error, "the CNI plugin is still installed: run `mesh-agent cni uninstall`")
            }
            Err(error) => error!(%error, "the CNI plugin was not removed: run `mesh-agent cni uninstall`"),
        }
    }
}

impl Agent {
    /// Answers the plugin and keeps it installed, until `stop`.
    pub(super) fn serve_plugin(
        &self,
        socket: Option<DeskSocket>,
        tasks: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) {
        let Some((socket, installation)) = socket.zip(self.plugin.installation.clone()) else {
            return;
        };
        let desk = Desk {
            capture: self.capture.clone(),
            snapshots: self.publisher.cell().clone(),
            announced: self.plugin.announced.clone(),
            counts: self.plugin.counts.clone(),
        };
        tasks.spawn(desk.run(socket, stop.clone()));
        tasks.spawn(cni::keep(
            installation,
            self.publisher.cell().clone(),
            stop.clone(),
        ));
    }
}
