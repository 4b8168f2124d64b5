//! Policies: what they decided, whom they refused, and what they would say.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{Direction, PartyEntry, SecurityState};

/// `GET /policies`: the AuthorizationPolicies, by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Policies {
    /// The policies.
    pub policies: Vec<PolicyEntry>,
}

/// An AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PolicyEntry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `ALLOW`, `DENY`, `AUDIT` or `CUSTOM`; empty where the document could not be read.
    pub action: String,
    /// It is judged and counted, and decides nothing.
    pub dry_run: bool,
    /// Whether some version of it is in force.
    pub in_force: bool,
    /// For whom it is meant: `mesh` or `namespace`, with labels or services behind it.
    pub scope: String,
    /// The workloads of this node that it selects, as `namespace/name`.
    pub selects: Vec<String>,
    /// Connections since the start by what it said of them: `allowed`, `denied`, `closed`, `audited`, `dry_run_allowed`, `dry_run_denied`.
    pub counts: BTreeMap<String, u64>,
    /// What is wrong with it.
    pub problems: Vec<String>,
}

/// `GET /refusals`: the latest refusals, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refusals {
    /// The refusals.
    pub refusals: Vec<RefusalEntry>,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusalEntry {
    /// Its name, as in the logs and in the tunnel's answer.
    pub id: String,
    /// When.
    pub at: String,
    /// Seen from the local pod.
    pub direction: Direction,
    /// How the connection came.
    pub security: SecurityState,
    /// The client.
    pub source: PartyEntry,
    /// The server.
    pub destination: PartyEntry,
    /// The class of reason.
    pub reason: String,
    /// The policy that decides, or that came closest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The rule of it, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// The first field of that rule that did not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// In a sentence.
    pub message: String,
    /// How long the connection had stood before a change closed it; absent for one that was never let in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stood_seconds: Option<f64>,
}

/// The query of `GET /explain`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    /// Who connects: `namespace/pod`, `namespace/service-account`, a SPIFFE id or an address.
    pub source: String,
    /// Where to: `namespace/pod`, a service's host name or an address, with `:port`.
    pub destination: String,
}

/// `GET /explain`: what becomes of a connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The client's workload, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The identity that it proves; absent in plaintext.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The host name of the service that is addressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// The address that is addressed; absent only in an empty answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested: Option<SocketAddr>,
    /// Whether every way is open.
    pub allowed: bool,
    /// The ways, one per endpoint.
    pub ways: Vec<WayEntry>,
    /// What else to know.
    pub notes: Vec<String>,
}

/// One way of a connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WayEntry {
    /// The application's address.
    pub address: SocketAddr,
    /// The workload there, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// `mtls`, `plaintext` or `local`.
    pub mode: String,
    /// `allowed` or `refused`.
    pub verdict: String,
    /// The class of reason of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The policy that decides, or that came closest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What that policy does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<String>,
    /// The rule of it, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<usize>,
    /// The first field of that rule that did not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What that field wants, and what the connection has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What plaintext the port accepts: `STRICT` or `PERMISSIVE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<String>,
    /// The PeerAuthentication that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls_policy: Option<String>,
    /// What the verdict would be if the dry-run policies were in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run: Option<String>,
    /// AUDIT rules that match.
    #[serde(default)]
    pub audited: Vec<String>,
    /// In a sentence.
    pub message: String,
}

/// `GET /services`, by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Services {
    /// The node whose clients are meant.
    pub node: String,
    /// The services.
    pub services: Vec<ServiceEntry>,
}

/// A service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceEntry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its host name.
    pub hostname: String,
    /// Its ClusterIPs; none for a headless one.
    pub addresses: Vec<IpAddr>,
    /// Its addresses beside these.
    pub external: Vec<IpAddr>,
    /// For how long a client keeps its endpoint, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity_seconds: Option<u32>,
    /// Its ports.
    pub ports: Vec<ServicePortEntry>,
}

/// A port of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServicePortEntry {
    /// The port that clients use.
    pub port: u16,
    /// Its name; may be empty.
    pub name: String,
    /// What serves it.
    pub endpoints: Vec<EndpointEntry>,
}

/// An endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointEntry {
    /// Where it serves.
    pub address: SocketAddr,
    /// The workload behind it, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether clients of this node are sent there.
    pub chosen: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why_not: Option<String>,
}

/// `GET /mtls/readiness`: who still talks plaintext to the workloads of this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MtlsReadiness {
    /// Since when it was looked at.
    pub since: String,
    /// The captured workloads of this node.
    pub workloads: Vec<MtlsReadinessEntry>,
}

/// One workload.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MtlsReadinessEntry {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it accepts now: `STRICT` or `PERMISSIVE`.
    pub mtls: String,
    /// Whether it may go STRICT without shutting anybody out who came since.
    pub ready: bool,
    /// What stands in the way.
    pub obstacles: Vec<String>,
    /// Who came in plaintext.
    pub sources: Vec<PlaintextEntry>,
}

/// Who came in plaintext.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlaintextEntry {
    /// `namespace/name` of a workload, an address, or `others` for those above the number that is kept apart.
    pub source: String,
    /// Connections.
    pub count: u64,
    /// The last one.
    pub last_seen: String,
    /// Ports that they went to; the first few.
    pub ports: Vec<u16>,
}
