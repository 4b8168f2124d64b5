//! The ways out: what a stop, a failed start, and `mesh-agent unload` take out of the kernel, and what stays.

use std::sync::PoisonError;

use tracing::warn;

use super::{Capture, CaptureOptions};
use crate::capture::PodServer;
use crate::capture::bpffs::NodeDir;
use crate::capture::cgroup::{self, Cgroup2};
use crate::capture::error::CaptureError;

/// Removes everything that agents of this node have left in the kernel: for when no agent runs any more.
///
/// # Errors
/// When an agent of this node is running, or a pin cannot be removed.
pub fn unload(options: &CaptureOptions) -> Result<usize, CaptureError> {
    let removed = match NodeDir::open_existing(&options.bpffs_dir)? {
        Some(dir) => dir.remove().map_err(CaptureError::io(format!(
            "removing {}",
            options.bpffs_dir.display()
        )))?,
        None => 0,
    };
    if let Ok(cgroup2) = Cgroup2::find(options.cgroup_root.as_deref()) {
        cgroup::remove_leftover(&cgroup2, &options.node_name);
    }
    Ok(removed)
}

impl Capture {
    /// Takes a start back that failed before any pod was captured: removes what this run has put into the kernel. Pods that a crashed run
    /// captured stay as they are, and go on refusing connections.
    pub fn abandon(&self) {
        let leftovers = self.dir.leftovers(&self.run);
        self.end_deliveries();
        let removed = match (self.adopted, leftovers.is_empty()) {
            (true, _) => Ok(0),
            (false, true) => self.dir.remove(),
            (false, false) => self.run.remove(),
        };
        if let Err(error) = removed {
            warn!(dir = %self.dir.path().display(), %error, "pins of ours stay");
        }
        self.agent_cgroup.leave();
    }

    /// Leaves all pods captured, and what captures them in the kernel: their connections are refused until another agent adopts it. Where there is no
    /// pod, nothing is left.
    pub fn keep(&self, server: &dyn PodServer) {
        if self.state().pods.is_empty() {
            return self.stop(server);
        }
        self.end_deliveries();
        self.agent_cgroup.leave();
    }

    /// Lets all pods go and removes everything of ours from the kernel; programs and maps follow when the value is dropped.
    pub fn stop(&self, server: &dyn PodServer) {
        let pods = std::mem::take(&mut self.state().pods);
        for pod in pods.into_values() {
            self.let_go(pod, server);
        }
        self.end_deliveries();
        self.passes.detach();
        if let Err(error) = self.dir.remove() {
            warn!(dir = %self.dir.path().display(), %error, "pins of ours stay");
        }
        self.agent_cgroup.leave();
    }

    fn end_deliveries(&self) {
        let delivery = self
            .delivery
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(delivery);
    }
}
