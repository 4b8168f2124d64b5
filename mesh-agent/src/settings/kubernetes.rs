//! Whether and how a Kubernetes API server is followed.

use std::path::PathBuf;

use serde::Serialize;

use super::file;

/// How a Kubernetes API server is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kubernetes {
    /// The kubeconfig; `None` for what `KUBECONFIG` names, or what a pod is given.
    pub kubeconfig: Option<PathBuf>,
    /// What says where a pod's sandbox is on the host.
    pub pod_placement: PodPlacement,
}

/// What says where the sandbox of a pod from Kubernetes is: its network namespace and its cgroup.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PodPlacement {
    /// Nothing that a document says: the agent looks for it itself ([`Discovery`](super::Discovery)).
    #[default]
    None,
    /// The annotations mesh-agent.io/netns and mesh-agent.io/cgroup. Whoever may write pods may then name any namespace and cgroup of the
    /// host: for clusters where that is the node's owner alone, such as those of tests.
    Annotations,
}

impl Kubernetes {
    /// From flags, and from the file where they say nothing. A kubeconfig is a wish to use it, unless something says otherwise.
    pub(super) fn of(
        enabled: Option<bool>,
        kubeconfig: Option<PathBuf>,
        pod_placement: Option<PodPlacement>,
        file: file::Kubernetes,
    ) -> Option<Self> {
        let kubeconfig = kubeconfig.or(file.kubeconfig);
        let enabled = enabled.or(file.enabled).unwrap_or(kubeconfig.is_some());
        enabled.then(|| Self {
            kubeconfig,
            pod_placement: pod_placement.or(file.pod_placement).unwrap_or_default(),
        })
    }
}
