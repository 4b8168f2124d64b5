//! Workloads: pods, as the mesh sees them.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Pod, SpiffeId};

/// Identifies one incarnation of a workload: `namespace/name`, and behind a `/` the Pod's `metadata.uid` where it has one, so that a
/// pod made again under the same name is another workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkloadUid(Arc<str>);

impl WorkloadUid {
    /// The uid of the pod `namespace/name` with this `metadata.uid` (may be empty).
    pub fn new(namespace: &str, name: &str, uid: &str) -> Self {
        if uid.is_empty() {
            Self(format!("{namespace}/{name}").into())
        } else {
            Self(format!("{namespace}/{name}/{uid}").into())
        }
    }

    /// The Pod's `metadata.uid`, where it has one.
    pub fn pod_uid(&self) -> Option<&str> {
        self.0.splitn(3, '/').nth(2)
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for WorkloadUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether a workload is part of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "state", content = "reason")]
pub enum Enrolment {
    /// Its sockets are captured by its node's agent; it is never dialled in plaintext.
    Enrolled,
    /// Nobody asked for it.
    NotEnrolled,
    /// It was asked for by a label that is left to another mesh on its node, for this reason.
    Left(String),
    /// It was asked for and is refused, for this reason: capture would be a pretence.
    Refused(String),
}

impl Enrolment {
    /// Whether the workload is enrolled.
    pub fn is_enrolled(&self) -> bool {
        matches!(self, Enrolment::Enrolled)
    }
}

/// Where a local workload lives on a plain host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Location {
    /// Path of a file that is the network namespace, such as `/run/netns/order`.
    pub netns: String,
    /// Path of its cgroup: absolute, or relative to the cgroup2 mount.
    pub cgroup: String,
}

/// What made the workload: the names that metrics and logs use.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Owner {
    /// For instance `Deployment`, or `Pod` where nothing owns it.
    pub kind: String,
    /// For instance `payment` for the pod `payment-5d4f8-x2x9z`.
    pub name: String,
}

/// A pod as a part of the mesh. Everything that its document says is read through it, by [`Deref`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Its identity as an object.
    pub uid: WorkloadUid,
    /// Its identity as a peer.
    pub identity: SpiffeId,
    /// Whether it is part of the mesh.
    pub enrolment: Enrolment,
    /// What its document says. Shared with the source: a cluster has many pods.
    pub pod: Arc<Pod>,
}

impl Deref for Workload {
    type Target = Pod;

    fn deref(&self) -> &Pod {
        &self.pod
    }
}

impl Workload {
    /// Istio's `canonical_service`: `service.istio.io/canonical-name`, `app.kubernetes.io/name`, `app`, or the owner's name.
    pub fn canonical_name(&self) -> &str {
        ["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]
            .iter()
            .find_map(|key| self.labels.get(*key))
            .map_or(&self.owner.name, |name| name)
    }

    /// Istio's `canonical_revision`: `service.istio.io/canonical-revision`, `app.kubernetes.io/version`, `version`, or `latest`.
    pub fn canonical_revision(&self) -> &str {
        [
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ]
        .iter()
        .find_map(|key| self.labels.get(*key))
        .map_or("latest", |name| name)
    }
}
