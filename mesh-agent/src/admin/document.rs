//! The answers of the admin API, shared by the agent and `meshctl`. Field names are an interface: add, do not rename.
//!
//! Times are RFC 3339 in UTC; durations are seconds; bytes are counted as in Istio's metrics (`received` are the client's).

mod kernel;
mod policy;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use mesh_core::model::{SpiffeId, Workload};
use serde::{Deserialize, Serialize};

pub use kernel::{BpfEventEntry, BpfEvents, BpfLog, BpfLogWanted};

pub use policy::{
    EndpointEntry, ExplainQuery, Explanation, MtlsReadiness, MtlsReadinessEntry, PlaintextEntry, Policies,
    PolicyEntry, RefusalEntry, Refusals, ServiceEntry, ServicePortEntry, Services, WayEntry,
};

use crate::settings::SandboxRanges;
use crate::telemetry::connections::{ConnectionInfo, Live, Reporter, Security};

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
    /// Why enrolment is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enrolment_reason: Option<String>,
    /// How its capture stands.
    pub capture: CaptureState,
    /// Why it is not captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capture_reason: Option<String>,
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

/// `GET /connections/older`: connections of captured pods that the agent does not carry, because they are older than capture or were let
/// pass by an exclusion that has ended.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OlderConnections {
    /// By pod.
    pub connections: Vec<OlderConnectionEntry>,
    /// Pods whose connections cannot be listed or closed, and why.
    pub problems: Vec<String>,
    /// How many were closed since the start, because STRICT forbids them.
    pub closed: u64,
}

/// A connection that the agent does not carry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OlderConnectionEntry {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub workload: String,
    /// Who opened it, as far as can be told afterwards.
    pub direction: Direction,
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Why it is to be closed; absent where it may go on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to_close: Option<String>,
}

impl OlderConnectionEntry {
    /// Whether it is of a pod that `filter` asks for.
    pub fn matches(&self, filter: &ConnectionFilter) -> bool {
        let is = |asked: &Option<String>, this: &str| asked.as_deref().is_none_or(|asked| asked == this);
        is(&filter.workload, &self.workload) && is(&filter.namespace, &self.namespace)
    }
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

/// `GET /connections`: the live ones.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Connections {
    /// The connections, the oldest first.
    pub connections: Vec<ConnectionEntry>,
}

/// A live connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConnectionEntry {
    /// Unique within the agent's run.
    pub id: u64,
    /// `outbound` or `inbound`, seen from the local pod.
    pub direction: Direction,
    /// How it travels between the nodes.
    pub security: SecurityState,
    /// The client.
    pub source: PartyEntry,
    /// The server.
    pub destination: PartyEntry,
    /// What the client asked for.
    pub requested: SocketAddr,
    /// The host name of the service that was addressed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// When it was opened.
    pub opened_at: String,
    /// How long it has been open.
    pub age_seconds: f64,
    /// Bytes from the client.
    pub received_bytes: u64,
    /// Bytes from the server.
    pub sent_bytes: u64,
    /// Bytes that the agent holds: read from one side and not yet written to the other.
    #[serde(default)]
    pub held_bytes: u64,
}

/// Direction of a connection, seen from the local pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// A local pod opened it.
    Outbound,
    /// A local pod accepted it.
    Inbound,
}

/// How a connection travels between the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SecurityState {
    /// Through HBONE.
    MutualTls,
    /// As it is.
    None,
}

/// One side of a connection; absent fields are not known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PartyEntry {
    /// The application's address.
    pub address: SocketAddr,
    /// The workload's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its identity: proven by a certificate, or our own pod's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
}

impl PartyEntry {
    fn of(address: SocketAddr, workload: Option<&Workload>, identity: Option<&SpiffeId>) -> Self {
        Self {
            address,
            workload: workload.map(|w| w.name.clone()),
            namespace: workload.map(|w| w.namespace.clone()),
            identity: identity.map(SpiffeId::to_string),
        }
    }
}

impl ConnectionEntry {
    /// As the table of live connections has it.
    pub fn of(live: &Live) -> Self {
        let info = &live.info;
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        let (direction, security, source, destination) = Self::ends(info);
        Self {
            id: live.id,
            direction,
            security,
            source,
            destination,
            requested: info.requested_address,
            service: info.service.as_ref().map(|s| s.hostname.clone()),
            opened_at: timestamp(live.opened_at),
            age_seconds: live.age().as_secs_f64(),
            received_bytes: live.counts.received.load(relaxed),
            sent_bytes: live.counts.sent.load(relaxed),
            held_bytes: live.counts.held(),
        }
    }

    /// Which way it goes, how, and who is at its ends.
    pub fn ends(info: &ConnectionInfo) -> (Direction, SecurityState, PartyEntry, PartyEntry) {
        let direction = match info.reporter {
            Reporter::Source => Direction::Outbound,
            Reporter::Destination => Direction::Inbound,
        };
        let security = match info.security {
            Security::MutualTls => SecurityState::MutualTls,
            Security::None => SecurityState::None,
        };
        let source = PartyEntry::of(
            info.source_address,
            info.source.as_deref(),
            info.source_identity.as_ref(),
        );
        let destination = PartyEntry::of(
            info.destination_address,
            info.destination.as_deref(),
            info.destination_identity.as_ref(),
        );
        (direction, security, source, destination)
    }

    /// Whether one of its sides is what `filter` asks for.
    pub fn matches(&self, filter: &ConnectionFilter) -> bool {
        [&self.source, &self.destination].into_iter().any(|party| {
            (filter.workload.is_none() || party.workload == filter.workload)
                && (filter.namespace.is_none() || party.namespace == filter.namespace)
        })
    }
}

/// The query of `GET /connections`: those of which one side is this workload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConnectionFilter {
    /// The workload's name.
    #[serde(default)]
    pub workload: Option<String>,
    /// Its namespace.
    #[serde(default)]
    pub namespace: Option<String>,
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

/// `GET /bpf`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bpf {
    /// Version of the ABI between the programs and the agent.
    pub abi_version: u32,
    /// Where the pins are.
    pub bpffs: String,
    /// The directory below that with the maps and links in use.
    #[serde(default)]
    pub run: String,
    /// Whether an earlier agent began it.
    #[serde(default)]
    pub adopted: bool,
    /// The cgroup2 mount.
    pub cgroup2: String,
    /// The agent's own cgroup, whose sockets are never captured.
    pub agent_cgroup: String,
    /// The node's programs. Each pod has one more, its `sk_lookup`.
    pub programs: Vec<BpfProgram>,
    /// The pods whose sockets are steered.
    pub pods: Vec<BpfPod>,
    /// The maps.
    pub maps: Vec<BpfMap>,
    /// What the programs have counted.
    pub events: Vec<BpfEvent>,
    /// Whether the programs write debug lines.
    #[serde(default)]
    pub log: BpfLog,
}

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfProgram {
    /// Its name.
    pub name: String,
    /// The kernel's id, as in `bpftool prog`.
    pub id: u32,
}

/// A pod in the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfPod {
    /// The workload's uid.
    pub workload: String,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Its place in the listener map.
    pub slot: u32,
    /// Which of the two banks of its listeners is in use: a successor fills the other one.
    #[serde(default)]
    pub bank: u32,
    /// All addresses of its network namespace.
    pub addresses: Vec<IpAddr>,
    /// What is attached for it.
    pub links: Vec<BpfLink>,
    /// Agent ports on which something in the pod listens: never reached from off the pod.
    pub shadowed_ports: Vec<u16>,
    /// Whether its listeners take data of TCP Fast Open without a cookie, by a setting changed since it was captured.
    #[serde(default)]
    pub believes_first_packets: bool,
    /// Programs of others that see its sockets.
    #[serde(default)]
    pub foreign: Vec<BpfForeign>,
}

/// A program of somebody else that sees the sockets of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BpfForeign {
    /// Where: a hook of the pod's cgroup or of one above it, or `sk_lookup` in its network namespace.
    pub hook: String,
    /// The kernel's id, as in `bpftool prog`.
    pub id: u32,
    /// Its name, where it has one.
    pub name: String,
}

/// A program attached for a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfLink {
    /// Where.
    pub hook: String,
    /// The kernel's id of the link, as in `bpftool link`.
    pub id: u32,
    /// The kernel's id of the program.
    pub program: u32,
}

/// A BPF map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfMap {
    /// Its name.
    pub name: String,
    /// Entries in it; absent where they cannot be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Entries at most.
    pub capacity: u64,
}

/// A counter of the BPF programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfEvent {
    /// What is counted.
    pub event: String,
    /// How often.
    pub count: u64,
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
