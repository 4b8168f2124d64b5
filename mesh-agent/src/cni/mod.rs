//! The CNI plugin (`mesh-agent-cni`, this same binary under another name), what the agent answers it, and its installation on the node.
//! A container runtime calls it behind the cluster's own plugins, after they have made a pod's network and before any process of the pod
//! runs. It hands the pod's network namespace to the agent and returns when the pod is captured, so that the first packet of a pod is
//! captured or the pod does not start. Changes nothing in the namespace itself.
//!
//! Protocol: [CNI specification 1.1.0](https://www.cni.dev/docs/spec/), chained: the result of the plugins before is passed on as it is.

mod call;
mod chain;
mod cluster;
mod desk;
mod install;
mod plugin;
mod table;
mod talk;
mod verdict;

use std::path::{Path, PathBuf};

pub use desk::{Desk, DeskCounts, DeskSocket};
pub use install::{InstallError, Installation, InstallationStatus, keep, uninstall};
pub use plugin::run as run_plugin;

/// The plugin's name: its `type` in network configurations, and its file below the runtime's directory of plugins.
pub const PLUGIN: &str = "mesh-agent-cni";

/// Where the agent with this admin socket listens for its plugin.
pub fn socket_beside(admin_socket: &Path) -> PathBuf {
    let mut path = admin_socket.as_os_str().to_owned();
    path.push(".cni");
    PathBuf::from(path)
}

/// Where the agent keeps announced sandboxes over restarts.
pub fn announcements_dir(admin_socket: &Path) -> PathBuf {
    let mut path = admin_socket.as_os_str().to_owned();
    path.push(".sandboxes");
    PathBuf::from(path)
}
