//! The answers of the admin API, shared by the agent and `meshctl`. Field names are an interface: add, do not rename.
//!
//! Times are RFC 3339 in UTC; durations are seconds; bytes are counted as in Istio's metrics (`received` are the client's).

mod connections;
mod discovery;
mod kernel;
mod policy;

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use connections::{
    ConnectionEntry, ConnectionFilter, Connections, Direction, OlderConnectionEntry, OlderConnections,
    PartyEntry, SecurityState,
};
pub use discovery::{ContainerRuntime, RuntimeState, SandboxEntry};
pub use kernel::{
    Bpf, BpfEvent, BpfEventEntry, BpfEvents, BpfForeign, BpfLink, BpfLog, BpfLogWanted, BpfMap, BpfPod,
    BpfProgram,
};

pub use policy::{
    EndpointEntry, ExplainQuery, Explanation, MtlsReadiness, MtlsReadinessEntry, PlaintextEntry, Policies,
    PolicyEntry, RefusalEntry, Refusals, ServiceEntry, ServicePortEntry, Services, WayEntry,
};

use crate::settings::SandboxRanges;
use crate::sources::WriterStatus;

/// `GET /status`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Its node's name.
    pub node: String,
    /// Its trust domain.
    pub trust_domain: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started_at: String,
    /// For how long it has run.
    pub uptime_seconds: u64,
    /// The agent from which this one has taken over, until it has left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predecessor: Option<PredecessorStatus>,
    /// Whether it is ready.
    pub ready: bool,
    /// What holds readiness up.
    pub not_ready: Vec<String>,
    /// The configuration in force.
    pub snapshot: SnapshotStatus,
    /// Local enrolled pods.
    pub pods: PodCounts,
    /// Connections.
    pub connections: ConnectionCounts,
    /// Clients that keep to an endpoint (`sessionAffinity: ClientIP`).
    #[serde(default)]
    pub sessions: SessionCounts,
    /// Certificates.
    pub certificates: CertificateCounts,
    /// Documents that are rejected at present.
    pub rejections: usize,
    /// The container runtime; absent where pods are not looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_runtime: Option<ContainerRuntime>,
    /// Parts of other meshes that run on this node.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_meshes: Vec<OtherMeshEntry>,
    /// The CNI plugin; absent where it is not wanted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cni: Option<CniStatus>,
    /// Who writes status conditions into the cluster; absent where nobody of ours does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_writer: Option<WriterStatus>,
}

/// A part of another mesh on this node.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OtherMeshEntry {
    /// What it is: `istio-cni`, `ztunnel` or `linkerd-cni`.
    pub part: String,
    /// The pod that shows it: namespace and name.
    pub pod: String,
    /// Whether it is Istio's.
    pub istio: bool,
}

/// How the CNI plugin stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CniStatus {
    /// Whether the container runtime calls it.
    pub installed: bool,
    /// The network configuration that names it, or why there is none.
    pub detail: String,
    /// Announced sandboxes in which no process is yet.
    pub awaited: usize,
    /// Sandboxes that it has asked about, by result.
    pub calls: Vec<CniCall>,
}

/// How often the plugin was answered so.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CniCall {
    /// `captured`, `not-enrolled`, `refused` or `unknown`.
    pub result: String,
    /// How often.
    pub calls: u64,
}

/// An agent that was relieved and drains.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PredecessorStatus {
    /// Its version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it was relieved.
    pub relieved_at: String,
    /// Connections that it had left when it last said so: at most a second ago, unless it hangs.
    pub connections: usize,
}

/// What `mesh-agent sandbox` needs to know of this agent and its host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SandboxHost {
    /// The agent's node.
    pub node: String,
    /// The agent's process id.
    pub pid: u32,
    /// Inode of its network namespace.
    pub netns: u64,
    /// The cgroup2 mount.
    pub cgroup_root: PathBuf,
    /// Where the records and documents of sandboxes are.
    pub directory: PathBuf,
    /// The addresses of sandboxes and their services.
    pub ranges: SandboxRanges,
    /// The suffix of service host names.
    pub cluster_domain: String,
}

/// The configuration in force.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SnapshotStatus {
    /// Its version; 0 before the first.
    pub version: u64,
    /// Since when it is in force, in seconds.
    pub age_seconds: u64,
    /// How long ago the API server was last heard about the kind that it was heard about least, in seconds; none without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view_age_seconds: Option<u64>,
    /// Workloads in it, of all nodes.
    pub workloads: usize,
    /// Services in it.
    pub services: usize,
}

/// Local enrolled pods by state of capture.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodCounts {
    /// Enrolled.
    pub enrolled: usize,
    /// Of these, captured.
    pub captured: usize,
    /// Asked for and refused, or failed.
    pub failed: usize,
    /// Asked for by a label that is left to another mesh.
    #[serde(default)]
    pub left: usize,
}

/// Connections now and since the start.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ConnectionCounts {
    /// Live now.
    pub live: usize,
    /// Opened since the start.
    pub opened: u64,
    /// Of these, tried again on another tunnel because the peer had not processed them.
    #[serde(default)]
    pub retried: u64,
}

/// Sessions of services with `sessionAffinity: ClientIP`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// Remembered now.
    pub live: usize,
    /// At most.
    pub capacity: usize,
    /// Forgotten before their time because there were too many, since the start.
    pub evicted: u64,
}

/// Certificates of local identities.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CertificateCounts {
    /// Valid now.
    pub valid: usize,
    /// Missing or past their end.
    pub missing: usize,
    /// When the first of the valid ones ends.
    pub next_expiry: Option<String>,
}

/// `GET /workloads`: all that the snapshot knows, by namespace and name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Workloads {
    /// The workloads.
    pub workloads: Vec<WorkloadEntry>,
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkloadEntry {
    /// Which incarnation it is: namespace, name and, where it has one, the Pod's `metadata.uid`.
    #[serde(default)]
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its node.
    pub node: String,
    /// Whether that node is this agent's.
    pub local: bool,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its identity as a peer.
    pub identity: String,
    /// Whether it is part of the mesh.
    pub enrolment: EnrolmentState,
    /// Why enrolment is refused, or left to another mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment_reason: Option<String>,
    /// How its capture stands.
    pub capture: CaptureState,
    /// Why it is not captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_reason: Option<String>,
    /// Where it lives, as far as this agent knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<SandboxEntry>,
    /// What plaintext it accepts where no port says otherwise: `STRICT` or `PERMISSIVE`.
    pub mtls: String,
    /// The policy that says so; absent for the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls_policy: Option<String>,
    /// What of a captured pod is not carried by the agent.
    #[serde(default)]
    pub uncaptured: UncapturedEntry,
    /// What it takes of this agent, while it is captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<UsageEntry>,
}

/// What of a captured pod is not carried by the agent, by permission or by age.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UncapturedEntry {
    /// Ports that the kubelet's probes may reach.
    pub probe_ports: Vec<u16>,
    /// Exclusions in force: ports that the pod connects to.
    pub outbound_ports: Vec<u16>,
    /// Exclusions in force: networks that the pod connects to.
    pub outbound_cidrs: Vec<String>,
    /// Exclusions in force: ports of the pod.
    pub inbound_ports: Vec<u16>,
    /// Whether connections to it pass while no agent is there.
    #[serde(default)]
    pub inbound_when_down: bool,
    /// Exclusions that were asked for and are not in force.
    pub refused: Vec<RefusedExclusionEntry>,
    /// Connections that are older than capture: `GET /connections/older`.
    pub older_connections: usize,
}

/// An exclusion that is not in force.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RefusedExclusionEntry {
    /// What was asked for.
    pub what: String,
    /// Why it is not in force.
    pub why: String,
}

/// What a workload takes of an agent, over all workers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageEntry {
    /// TCP connections.
    pub connections: usize,
    /// Streams of tunnels to it.
    pub streams: usize,
    /// TLS handshakes with its clients that are under way.
    pub handshakes: usize,
    /// Bytes that the agent holds between its sockets.
    pub held_bytes: usize,
    /// How often a budget has refused, by budget; those that have.
    #[serde(default)]
    pub refused: std::collections::BTreeMap<String, u64>,
}

/// Whether a workload is part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EnrolmentState {
    /// It is.
    Enrolled,
    /// Nobody asked for it.
    NotEnrolled,
    /// It was asked for and refused.
    Refused,
}

/// How the capture of a workload stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CaptureState {
    /// Its sockets are steered into this agent.
    Captured,
    /// It will be captured: work is under way.
    Pending,
    /// It should be captured and is not.
    Failed,
    /// Another node's agent captures it.
    Remote,
    /// It is not to be captured.
    None,
}

/// `GET /certs`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Certificates {
    /// One per local identity.
    pub certificates: Vec<CertificateEntry>,
}

/// The certificate of a local identity. Never the key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CertificateEntry {
    /// The identity.
    pub identity: String,
    /// Whether it can be used now.
    pub state: CertificateState,
    /// Start of validity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<String>,
    /// End of validity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<String>,
    /// Seconds until the end of validity; negative when it has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_seconds: Option<i64>,
    /// When the next renewal, or the next attempt, is due.
    pub next_rotation: String,
    /// Serial number in hex.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Who issues it.
    pub issuer: String,
    /// Why the last attempt to get one failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Whether a certificate can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CertificateState {
    /// It can.
    Valid,
    /// It can, and the last attempt to renew it failed.
    RenewalFailing,
    /// There is none yet.
    Pending,
    /// It is past its end.
    Expired,
}

/// `GET /check`, and what `meshctl check` finds on the host by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Checks {
    /// The checks, in the order in which to read them.
    pub checks: Vec<Check>,
    /// What capture does not see.
    pub limits: Vec<String>,
}

impl Checks {
    /// Whether a check failed.
    pub fn failed(&self) -> bool {
        self.checks.iter().any(|check| check.level == Level::Fail)
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it went.
    pub level: Level,
    /// What was found.
    pub detail: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, and something is worth a look.
    Warn,
    /// It does not work.
    Fail,
}

/// `GET /config`: where the configuration comes from, what is rejected and what else there is to say about it.
pub type Config = crate::sources::SourceStatus;

/// `GET /analyze`, and what `meshctl analyze -f` finds by itself.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// What was found, by place.
    pub findings: Vec<mesh_core::analyze::Finding>,
}

/// What the API answers when it cannot answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Failure {
    /// Why.
    pub error: String,
}

/// A time as the documents have it, to the second.
pub fn timestamp(at: std::time::SystemTime) -> String {
    match jiff::Timestamp::try_from(at) {
        Ok(at) => at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
        Err(_) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests;
