//! Whether and how a Kubernetes API server is followed.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::file;

/// How a Kubernetes API server is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kubernetes {
    /// The kubeconfig; `None` for what `KUBECONFIG` names, or what a pod is given.
    pub kubeconfig: Option<PathBuf>,
    /// What says where a pod's sandbox is on the host.
    pub pod_placement: PodPlacement,
    /// What the agent is one of.
    pub daemon_set: Option<DaemonSet>,
    /// Whether status conditions are written, and how it is settled who does.
    pub status: StatusWriting,
}

/// Whether status conditions are written: the setting `kubernetes-status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum StatusWriting {
    /// By the agent that holds the Lease in the agents' namespace, where that is known.
    #[default]
    Auto,
    /// Not at all.
    Off,
    /// By the agent that holds the Lease in this namespace.
    In(String),
}

impl fmt::Display for StatusWriting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Off => "off",
            Self::In(namespace) => namespace,
        })
    }
}

impl From<StatusWriting> for String {
    fn from(status: StatusWriting) -> Self {
        status.to_string()
    }
}

impl TryFrom<String> for StatusWriting {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for StatusWriting {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            namespace if is_name(namespace) => Ok(Self::In(namespace.to_owned())),
            _ => Err("expected auto, off, or a namespace"),
        }
    }
}

/// RFC 1123, as the Kubernetes API has names.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    (1..=253).contains(&text.len()) && text.chars().all(plain)
}

/// A DaemonSet, written `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DaemonSet {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for DaemonSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<DaemonSet> for String {
    fn from(daemon_set: DaemonSet) -> Self {
        daemon_set.to_string()
    }
}

impl TryFrom<String> for DaemonSet {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl FromStr for DaemonSet {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            }),
            _ => Err("expected NAMESPACE/NAME"),
        }
    }
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
        daemon_set: Option<DaemonSet>,
        status: Option<StatusWriting>,
        file: file::Kubernetes,
    ) -> Option<Self> {
        let kubeconfig = kubeconfig.or(file.kubeconfig);
        let enabled = enabled.or(file.enabled).unwrap_or(kubeconfig.is_some());
        enabled.then(|| Self {
            kubeconfig,
            pod_placement: pod_placement.or(file.pod_placement).unwrap_or_default(),
            daemon_set: daemon_set.or(file.daemon_set),
            status: status.or(file.status).unwrap_or_default(),
        })
    }
}
