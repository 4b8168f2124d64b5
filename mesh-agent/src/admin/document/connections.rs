//! What is shown of connections.

use std::net::SocketAddr;

use mesh_core::model::{SpiffeId, Workload};
use serde::{Deserialize, Serialize};

use super::timestamp;
use crate::telemetry::connections::{ConnectionInfo, Live, Reporter, Security};

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
