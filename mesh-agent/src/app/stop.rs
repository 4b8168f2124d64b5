//! The end of an agent: what stands may end, then capture ends, or stays as it is.

use tracing::{error, info, warn};

use super::Agent;
use super::live::Live;
use crate::settings::{OnStop, Settings};

impl Agent {
    /// Lets live connections end, within the drain time or until the signal that `hurry` gives.
    pub(super) async fn drain(&self, live: &Live<'_>, hurry: impl Future<Output = &'static str>) {
        tokio::select! {
            () = self.workers.shutdown(live.drain()) => {}
            signal = hurry => {
                warn!(signal, connections = self.log.len(), "stopping at once");
            }
        }
    }

    /// Lets the pods go, or leaves them captured. An agent whose DaemonSet is gone lets them go in any case; and where they go, the CNI
    /// plugin goes first: it would wait for an agent that does not come.
    pub(super) async fn end_capture(self, settings: &Settings) {
        let on_stop = match (settings.on_stop, self.belonging.is_over()) {
            (OnStop::Keep, true) => {
                info!("the DaemonSet is gone: the pods are let go");
                OnStop::Release
            }
            (on_stop, _) => on_stop,
        };
        if on_stop == OnStop::Release {
            self.plugin.uninstall(settings).await;
        }
        let (capture, workers) = (self.capture.clone(), self.workers.clone());
        let ended = tokio::task::spawn_blocking(move || match on_stop {
            OnStop::Release => capture.stop(&*workers),
            OnStop::Keep => capture.keep(&*workers),
        });
        match (ended.await, on_stop) {
            (Ok(()), OnStop::Release) => info!("stopped: nothing of ours is left in the kernel"),
            (Ok(()), OnStop::Keep) => info!(
                "stopped: the pods stay captured, and their connections are refused until an agent is back or `mesh-agent unload` lets them go"
            ),
            (Err(error), _) => error!(%error, "capture did not stop cleanly: run `mesh-agent unload`"),
        }
    }
}
