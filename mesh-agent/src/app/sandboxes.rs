//! The agent's side of sandboxes: their directory is one of its sources, and those that have ended are removed.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::admin::document::SandboxHost;
use crate::sandbox::{Registry, SandboxError};
use crate::settings::Settings;

/// How often sandboxes that have ended without a word are looked for.
const SWEEP: Duration = Duration::from_secs(1);

/// The directory of this node's sandboxes, without those that have ended.
pub(super) fn open(settings: &Settings) -> Result<Registry, SandboxError> {
    let registry = Registry::new(settings.sandbox_dir(), settings.cluster_domain.clone());
    sweep_once(&registry)?;
    Ok(registry)
}

/// What a sandbox needs to know.
pub(super) fn host(settings: &Settings, cgroup_root: &Path) -> io::Result<SandboxHost> {
    Ok(SandboxHost {
        node: settings.node_name.clone(),
        pid: std::process::id(),
        netns: std::fs::metadata("/proc/self/ns/net")?.ino(),
        cgroup_root: cgroup_root.to_owned(),
        directory: settings.sandbox_dir(),
        ranges: settings.sandbox_ranges,
        cluster_domain: settings.cluster_domain.clone(),
    })
}

/// Removes sandboxes whose process was killed, until `stopping`.
pub(super) async fn sweep(registry: Registry, stopping: CancellationToken) {
    let mut told = None;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = tokio::time::sleep(SWEEP) => {}
        }
        let registry = registry.clone();
        let Ok(failure) = tokio::task::spawn_blocking(move || sweep_once(&registry).err()).await else {
            warn!(
                "the look for ended sandboxes has panicked: they are left for the next sandbox or agent to remove"
            );
            return;
        };
        let failure = failure.map(|error| error.to_string());
        if let Some(error) = failure.as_ref().filter(|_| failure != told) {
            warn!(error, "sandboxes that have ended cannot be looked for");
        }
        told = failure;
    }
}

fn sweep_once(registry: &Registry) -> Result<(), SandboxError> {
    for record in registry.sweep()? {
        info!(
            sandbox = record.shown(),
            "a sandbox ended without cleaning up: removed"
        );
    }
    Ok(())
}
