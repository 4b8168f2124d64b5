//! How to capture, and how far it has come.

use std::path::PathBuf;

use mesh_common::MAX_WORKERS;
use mesh_core::plan::AllowedExclusions;
use serde::Serialize;

use crate::capture::bpffs;
use crate::settings::{Discovery, KubeletCgroup};

/// How to capture.
#[derive(Clone, Debug)]
pub struct CaptureOptions {
    /// The node's name; agents of different names share a machine without meeting.
    pub node_name: String,
    /// Where the pins go: on a bpffs, or a place to mount one.
    pub bpffs_dir: PathBuf,
    /// The cgroup2 mount; found in `/proc/self/mountinfo` where not given.
    pub cgroup_root: Option<PathBuf>,
    /// How many workers accept connections, 1 to `mesh_common::MAX_WORKERS`.
    pub workers: usize,
    /// Whose connections pass as probes.
    pub kubelet_cgroup: KubeletCgroup,
    /// Which exclusions pods may ask for.
    pub allow_exclusions: AllowedExclusions,
    /// How pods are found that do not say where they live.
    pub discovery: Discovery,
}

impl CaptureOptions {
    /// The usual ones.
    pub fn new(node_name: &str, workers: usize) -> Self {
        Self {
            node_name: node_name.to_owned(),
            bpffs_dir: bpffs::default_dir(node_name),
            cgroup_root: None,
            workers: workers.clamp(1, MAX_WORKERS as usize),
            kubelet_cgroup: KubeletCgroup::Auto,
            allow_exclusions: AllowedExclusions::default(),
            discovery: Discovery::default(),
        }
    }
}

/// How far a local workload is captured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "reason")]
pub enum CaptureState {
    /// All its TCP connections go through the agent.
    Captured,
    /// Something is missing yet; tried again within a second.
    Pending(String),
    /// It has no sandbox on this node, yet or any more: there is nothing to capture. It is captured once there is.
    Absent(String),
    /// Capture would be a pretence, or is impossible.
    Refused(String),
}
