//! PeerAuthentication: what plaintext a workload accepts.

use std::collections::BTreeMap;

use serde::Serialize;

/// What a workload's port accepts. `UNSET` never reaches this type: it inherits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum MtlsMode {
    /// Mutual TLS and plaintext.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// How far a policy reaches.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scope {
    /// The whole mesh: it stands in the root namespace without a selector.
    Mesh,
    /// Its namespace.
    Namespace,
    /// The workloads of its namespace that carry these labels.
    Workload(BTreeMap<String, String>),
}

/// A `security.istio.io` PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerAuthentication {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.creationTimestamp` as seconds since the epoch, 0 where absent: the oldest wins within a scope.
    pub created: i64,
    /// How far it reaches.
    pub scope: Scope,
    /// `spec.mtls.mode`; `None` inherits.
    pub mode: Option<MtlsMode>,
    /// `spec.portLevelMtls`, by workload port; `None` inherits.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}
