//! What to do with a connection: the one place that decides. Pure functions of a snapshot and the facts of the connection; the data
//! path, `meshctl` and the tests all call these.

mod balance;
mod choices;
mod exclusions;
mod explain;
mod inbound;
mod outbound;
#[cfg(test)]
mod tests;
mod uncaptured;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::authz::{Judgement, Verdict};
use crate::model::{Service, ServiceRef, SpiffeId, Workload};

pub use choices::{Choice, choices};
pub use exclusions::{AllowedExclusions, ExclusionDecision, RefusedExclusion, exclusions};
pub use explain::{ExplainError, Explained, Explanation, Mode, explain};
pub use inbound::{hbone_authority, inbound, inbound_differs};
pub use outbound::{outbound, session};
pub use uncaptured::{Uncaptured, Way, uncaptured};

/// Why a connection is refused. The names are the `reason` label of metrics and logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The local workload is not (or no longer) in the snapshot.
    UnknownWorkload,
    /// The destination is an agent port or an address that the mesh never forwards to.
    ForbiddenDestination,
    /// Several workloads or a node claim the address, an enrolled one among them.
    ContestedAddress,
    /// The service is known and does not have this port.
    UnknownServicePort,
    /// The service has no endpoint that takes connections.
    NoEndpoints,
    /// The service's load balancer does not serve this client: spec.loadBalancerSourceRanges.
    SourceRange,
    /// Plaintext to a workload whose policy is STRICT.
    PlaintextRefused,
    /// The peer's identity is of another trust domain.
    ForeignTrustDomain,
    /// The tunnel asked for an address that is not the pod it reached.
    WrongAuthority,
    /// An AuthorizationPolicy refuses it, or none of those that select the workload allows it.
    PolicyDenied,
}

impl Reason {
    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::UnknownWorkload => "unknown_workload",
            Reason::ForbiddenDestination => "forbidden_destination",
            Reason::ContestedAddress => "contested_address",
            Reason::UnknownServicePort => "unknown_service_port",
            Reason::NoEndpoints => "no_endpoints",
            Reason::SourceRange => "source_range",
            Reason::PlaintextRefused => "plaintext_refused",
            Reason::ForeignTrustDomain => "foreign_trust_domain",
            Reason::WrongAuthority => "wrong_authority",
            Reason::PolicyDenied => "policy_denied",
        }
    }
}

/// A decision not to carry a connection, with a sentence for the person who reads the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// For machines.
    pub reason: Reason,
    /// For people: who was refused what, by which object, and what to look at.
    pub message: String,
    /// What policies said, where they are the reason.
    pub judgement: Option<Box<Judgement>>,
}

impl Refusal {
    /// For another reason than policies.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            judgement: None,
        }
    }

    /// The verdict of policies, where they are the reason.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.judgement.as_ref().map(|judgement| &judgement.verdict)
    }
}

impl std::error::Error for Refusal {}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Where a captured outbound connection goes.
#[derive(Clone, Debug)]
pub struct Outbound {
    /// The service that was addressed, where one was.
    pub service: Option<Arc<Service>>,
    /// The workload it goes to, where the mesh knows one.
    pub destination: Option<Arc<Workload>>,
    /// The address and port of the application that it goes to.
    pub address: SocketAddr,
    /// How it goes there.
    pub transport: Transport,
}

/// What a client's connections have in common that go to the same endpoint as long as there is one: those to one port of a service with
/// `sessionAffinity: ClientIP`, at whichever of its addresses. The client is the caller's to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session {
    /// The service.
    pub service: ServiceRef,
    /// Its port.
    pub port: u16,
    /// For how long it lasts without a connection.
    pub timeout: Duration,
}

/// How an outbound connection goes to its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Through HBONE to this tunnel address (podIP:15008), where only this identity may answer.
    Tunnel {
        /// podIP:15008.
        gateway: SocketAddr,
        /// The identity that the server must prove.
        expected: SpiffeId,
    },
    /// As it is, from the pod's netns: the destination is not enrolled.
    Passthrough,
    /// Back to the pod itself, without leaving its netns.
    Hairpin,
}

/// Proof that [`inbound`] allowed a delivery. Only this module can make one; `deliver()` takes it.
#[derive(Clone, Debug)]
pub struct Permit {
    destination: Arc<Workload>,
    address: SocketAddr,
    judgement: Judgement,
}

impl Permit {
    /// The workload to deliver to.
    pub fn destination(&self) -> &Arc<Workload> {
        &self.destination
    }

    /// The address and port of the application to deliver to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What policies said: who allowed it, what is to be counted.
    pub fn judgement(&self) -> &Judgement {
        &self.judgement
    }
}

/// What is known of an inbound connection.
#[derive(Clone, Debug)]
pub struct Inbound<'a> {
    /// The client's address: of the TCP connection (plaintext) or of the tunnel's TCP connection.
    pub client: IpAddr,
    /// The client's proven identity; `None` for plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// The address and port that the client asked for: the accepted socket's local address, or the CONNECT authority.
    pub address: SocketAddr,
}
