//! Why a connection could not be carried, and what the log and the metrics call it.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mesh_core::model::SpiffeId;
use thiserror::Error;

use super::Carried;
use crate::identity::reason;
use crate::telemetry::connections::ResponseFlag;

/// Why there is no connection to carry bytes over. Cloned to everybody who waited for the same dial.
#[derive(Clone, Debug, Error)]
pub enum TunnelError {
    /// No socket in the pod's namespace.
    #[error(
        "no socket in the pod's network namespace for {address}: {why} (is the pod gone, or are descriptors used up?)"
    )]
    Socket {
        /// What was to be dialled.
        address: SocketAddr,
        /// The kernel's words.
        why: String,
    },
    /// TCP connect failed.
    #[error("connect to {address} failed: {why} ({hint})")]
    Connect {
        /// What was dialled.
        address: SocketAddr,
        /// The kernel's words.
        why: String,
        /// What to look at.
        hint: &'static str,
    },
    /// Nothing answered in time.
    #[error("connection to {address} timed out after {} s while waiting for {step}: {hint}", .after.as_secs())]
    Timeout {
        /// What was dialled.
        address: SocketAddr,
        /// How far it came.
        step: &'static str,
        /// How long we waited.
        after: Duration,
        /// What to look at.
        hint: &'static str,
    },
    /// We have no valid certificate for our own pod.
    #[error("no valid certificate for {0}: is the certificate issuer away? (see `meshctl certs`)")]
    NoCertificate(SpiffeId),
    /// TLS failed, or the peer is somebody else.
    #[error("{message}")]
    Peer {
        /// Short fixed word.
        reason: &'static str,
        /// For people.
        message: String,
    },
    /// HTTP/2 failed.
    #[error("the HBONE connection to {address} failed: {why} (is another program listening there?)")]
    Http2 {
        /// What was dialled.
        address: SocketAddr,
        /// h2's words.
        why: String,
    },
    /// Too many connections to one destination.
    #[error("{connections} tunnel connections to {address} are all busy: its readers may have stalled")]
    PoolFull {
        /// The destination.
        address: SocketAddr,
        /// How many there are.
        connections: usize,
    },
    /// The pod was retired meanwhile.
    #[error("the pod left the mesh while its connection to {0} was dialled")]
    Retired(SocketAddr),
}

impl TunnelError {
    /// From a failed `connect`.
    pub fn connect(address: SocketAddr, error: &io::Error) -> Self {
        let hint = match (error.kind(), address.port()) {
            (io::ErrorKind::ConnectionRefused, mesh_common::HBONE_PORT) => {
                "is the agent of that node running, and the pod enrolled there?"
            }
            (io::ErrorKind::ConnectionRefused, _) => "nothing listens there",
            (io::ErrorKind::NetworkUnreachable | io::ErrorKind::HostUnreachable, _) => {
                "the pod's network has no way there"
            }
            (io::ErrorKind::AddrNotAvailable, _) => "the pod's local ports may be used up",
            _ => "see the pod's network and NetworkPolicy",
        };
        TunnelError::Connect {
            address,
            why: error.to_string(),
            hint,
        }
    }

    /// From a dial that took too long.
    pub fn timeout(address: SocketAddr, step: &'static str, after: Duration) -> Self {
        let hint = if address.port() == mesh_common::HBONE_PORT {
            "is a NetworkPolicy blocking HBONE (TCP 15008)?"
        } else {
            "is a NetworkPolicy or a firewall dropping it?"
        };
        TunnelError::Timeout {
            address,
            step,
            after,
            hint,
        }
    }

    /// What Istio's `response_flags` and ours call it.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            TunnelError::Socket { .. }
            | TunnelError::Connect { .. }
            | TunnelError::Timeout { .. }
            | TunnelError::PoolFull { .. }
            | TunnelError::Retired(_) => ResponseFlag::Connect,
            TunnelError::NoCertificate(_) => ResponseFlag::IdentityError,
            TunnelError::Peer { reason, .. } if is_identity(reason) => ResponseFlag::IdentityError,
            TunnelError::Peer { .. } => ResponseFlag::TlsFailure,
            TunnelError::Http2 { .. } => ResponseFlag::H2HandshakeFailure,
        }
    }

    /// A short fixed word: the metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            TunnelError::Socket { .. } => "no_socket",
            TunnelError::Connect { .. } => "connect_failed",
            TunnelError::Timeout { .. } => "connect_timeout",
            TunnelError::NoCertificate(_) => "no_certificate_of_ours",
            TunnelError::Peer { reason, .. } => reason,
            TunnelError::Http2 { .. } => "http2_failed",
            TunnelError::PoolFull { .. } => "pool_full",
            TunnelError::Retired(_) => "pod_retired",
        }
    }

    /// Marks `connection` as failed by this.
    pub fn mark(&self, connection: &mut Carried) {
        connection.fail(self.flag(), self.reason(), self.to_string());
    }
}

/// Whether a peer's failure is about who it is, rather than about TLS itself.
fn is_identity(word: &str) -> bool {
    !matches!(
        word,
        reason::TLS | reason::IO | reason::HANDSHAKE_TIMEOUT | reason::INCOMPATIBLE | reason::ALPN
    )
}
