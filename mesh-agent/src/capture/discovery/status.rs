//! What discovery shows of itself.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mesh_core::model::WorkloadUid;

/// Who has told where a pod lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FoundBy {
    /// Annotations of the Pod's document, on plain hosts.
    Annotation,
    /// The container runtime, and the kernel shows the same.
    Cri,
    /// The cgroup tree and `/proc`.
    Proc,
    /// The CNI plugin: no process is there yet.
    Cni,
}

impl FoundBy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Annotation, Self::Cri, Self::Proc, Self::Cni];

    /// Its name in documents and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Annotation => "annotation",
            Self::Cri => "cri",
            Self::Proc => "proc",
            Self::Cni => "cni",
        }
    }
}

/// Where a local pod's sandbox was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxStatus {
    /// Who has told.
    pub by: FoundBy,
    /// Its network namespace: a path, or as the kernel names it.
    pub netns: String,
    /// Its cgroup.
    pub cgroup: String,
}

/// How the container runtime stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum RuntimeState {
    /// It is not asked: the settings say so, or discovery is off.
    #[default]
    Off,
    /// It was not reached yet.
    Asking,
    /// It answers.
    Up {
        /// Its socket.
        socket: PathBuf,
        /// What it calls itself, with its version.
        name: String,
    },
    /// It does not answer: pods are found through `/proc`.
    Down {
        /// Why not.
        why: String,
    },
}

/// What discovery knows.
#[derive(Clone, Debug, Default)]
pub struct DiscoveryStatus {
    /// Whether pods without annotations are looked for.
    pub on: bool,
    /// The container runtime.
    pub runtime: RuntimeState,
    /// Local pods whose sandbox was found.
    pub sandboxes: BTreeMap<WorkloadUid, SandboxStatus>,
}
