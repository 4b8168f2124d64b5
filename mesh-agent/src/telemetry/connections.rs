//! The live connections: each has a guard; dropping the guard counts it, logs it and forgets it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mesh_core::model::{Service, SpiffeId, Workload};

/// Which side of a connection this agent is on; Istio's `reporter` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reporter {
    /// The client's node.
    Source,
    /// The server's node.
    Destination,
}

/// How the bytes of a connection travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Through HBONE.
    MutualTls,
    /// As they are.
    None,
}

/// What is known when a connection is opened.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Which side we are on.
    pub reporter: Reporter,
    /// How it travels.
    pub security: Security,
    /// The client's address.
    pub source_address: SocketAddr,
    /// The client's workload, where known.
    pub source: Option<Arc<Workload>>,
    /// The client's identity: our own pod's (source side) or the proven one (destination side).
    pub source_identity: Option<SpiffeId>,
    /// What the client asked for.
    pub requested_address: SocketAddr,
    /// The application's address that it goes to.
    pub destination_address: SocketAddr,
    /// The destination's workload, where known.
    pub destination: Option<Arc<Workload>>,
    /// The destination's identity: the proven one (source side) or our own pod's (destination side).
    pub destination_identity: Option<SpiffeId>,
    /// The service that was addressed, where known.
    pub service: Option<Arc<Service>>,
}

/// Bytes carried so far. Shared by the copy loops (which add) and the readers of the connection table.
#[derive(Debug, Default)]
pub struct ByteCounts {
    /// From the client to the server: request bytes; Istio's `received`.
    pub received: AtomicU64,
    /// From the server to the client: response bytes; Istio's `sent`.
    pub sent: AtomicU64,
}

impl ByteCounts {
    /// Adds request bytes.
    pub fn add_received(&self, n: u64) {
        self.received.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds response bytes.
    pub fn add_sent(&self, n: u64) {
        self.sent.fetch_add(n, Ordering::Relaxed);
    }
}
