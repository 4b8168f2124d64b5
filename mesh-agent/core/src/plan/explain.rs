//! Why a connection from one place to another would be allowed or refused: what `meshctl explain` shows. Asks [`outbound`] and [`inbound`]
//! for every way that the connection may take, and decides nothing of its own.

mod names;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use thiserror::Error;

use super::{Inbound, Refusal, Transport, inbound, outbound};
use crate::authz::Judgement;
use crate::model::{Service, SpiffeId, Workload};
use crate::snapshot::{Decision, Snapshot};

use names::{Source, Target};

/// Most endpoints of a service that are gone through.
const MOST_WAYS: usize = 64;

/// Why there is nothing to explain.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExplainError {
    /// Nobody is called so.
    #[error(
        "nobody is called {0:?}: expected NAMESPACE/POD, NAMESPACE/SERVICE-ACCOUNT, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME or an \
         address (see `meshctl workloads`)"
    )]
    UnknownSource(String),
    /// Nothing is called so.
    #[error(
        "nothing is called {0:?}: expected NAMESPACE/POD, a Service's host name (NAME.NAMESPACE will do) or an address, each with :PORT \
         (see `meshctl workloads` and `meshctl services`)"
    )]
    UnknownDestination(String),
    /// The port has to be said.
    #[error("which port of {destination}? Write {destination}:PORT (it has {known})")]
    NoPort {
        /// What was asked for.
        destination: String,
        /// Its ports.
        known: String,
    },
    /// A pod without an address.
    #[error("{0} has no address yet, so nothing can connect to it")]
    NoAddress(String),
}

/// How a connection travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Through HBONE, under the client's identity.
    MutualTls,
    /// As it is.
    Plaintext,
    /// Within the pod.
    Local,
}

/// What becomes of a connection.
#[derive(Clone, Debug)]
pub struct Explanation {
    /// The client's workload, where the mesh knows it.
    pub source: Option<Arc<Workload>>,
    /// The identity that the client proves; `None` in plaintext.
    pub identity: Option<SpiffeId>,
    /// The client's address, where it has one.
    pub address: Option<IpAddr>,
    /// The service that is addressed.
    pub service: Option<Arc<Service>>,
    /// The address and port that is addressed.
    pub requested: SocketAddr,
    /// What becomes of it, by endpoint: a service has several.
    pub ways: Vec<Explained>,
    /// What else a person should know.
    pub notes: Vec<String>,
}

/// One way of a connection.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The application's address.
    pub address: SocketAddr,
    /// The workload there.
    pub workload: Option<Arc<Workload>>,
    /// How the connection gets there.
    pub mode: Mode,
    /// The refusal, where it does not.
    pub refusal: Option<Refusal>,
    /// What policies say, where they are asked.
    pub judgement: Option<Judgement>,
    /// What plaintext the destination accepts on that port, where it is enrolled.
    pub mtls: Option<Decision>,
    /// In a sentence.
    pub message: String,
}

/// What becomes of a connection from `source` to `destination`, both as a person names them.
///
/// # Errors
/// When one of the names means nothing.
pub fn explain(snapshot: &Snapshot, source: &str, destination: &str) -> Result<Explanation, ExplainError> {
    let source = Source::named(snapshot, source)?;
    let target = Target::named(snapshot, destination)?;
    let mut notes = source.notes.clone();
    let mut ways = if source.captured {
        captured(snapshot, &source, &target)
    } else {
        uncaptured(snapshot, &source, &target)
    };
    if ways.len() > MOST_WAYS {
        notes.push(format!(
            "only the first {MOST_WAYS} of {} endpoints are shown",
            ways.len()
        ));
        ways.truncate(MOST_WAYS);
    }
    Ok(Explanation {
        source: source.workload,
        identity: source.identity,
        address: source.addresses.first().copied(),
        service: target.service,
        requested: target.address,
        ways,
        notes,
    })
}

/// The ways of a client whose agent plans them.
fn captured(snapshot: &Snapshot, source: &Source, target: &Target) -> Vec<Explained> {
    let Some(workload) = &source.workload else {
        return Vec::new();
    };
    let all = target.endpoints();
    // Each endpoint that may be chosen is chosen when the client had it before.
    let wishes = all.iter().copied().map(Some).chain([None]);
    let headless = target
        .service
        .as_ref()
        .is_some_and(|service| service.vips.is_empty());
    let mut seen = BTreeSet::new();
    let mut ways = Vec::new();
    let mut refused = None;
    for wish in wishes {
        let requested = wish.filter(|_| headless).unwrap_or(target.address);
        match outbound(snapshot, workload, requested, wish, 0) {
            Ok(out) if seen.insert(out.address) => ways.push(arrival(snapshot, source, &out)),
            Ok(_) => {}
            Err(refusal) => refused = Some(refusal),
        }
    }
    match refused {
        Some(refusal) if ways.is_empty() => vec![Explained {
            address: target.address,
            workload: None,
            mode: Mode::Plaintext,
            message: format!("refused at the client's node: {refusal}"),
            refusal: Some(refusal),
            judgement: None,
            mtls: None,
        }],
        _ => ways,
    }
}

/// What becomes of a planned connection.
fn arrival(snapshot: &Snapshot, source: &Source, out: &super::Outbound) -> Explained {
    match (&out.transport, &out.destination) {
        (Transport::Tunnel { .. }, Some(workload)) => {
            asked(snapshot, source, out.address, workload, source.identity.as_ref())
        }
        (Transport::Hairpin, workload) => Explained {
            address: out.address,
            workload: workload.clone(),
            mode: Mode::Local,
            refusal: None,
            judgement: None,
            mtls: None,
            message: "a connection of a pod with itself is not judged".to_owned(),
        },
        (_, workload) => unjudged(out.address, workload.clone()),
    }
}

/// The ways of a client that no agent captures, or of which only the identity is known.
fn uncaptured(snapshot: &Snapshot, source: &Source, target: &Target) -> Vec<Explained> {
    let endpoints = target.endpoints();
    let addresses = if target.service.is_some() {
        endpoints
    } else {
        vec![target.address]
    };
    let way = |address: SocketAddr| match snapshot.workload_by_address(address.ip()) {
        Some(workload) if workload.enrolment.is_enrolled() => {
            asked(snapshot, source, address, workload, source.identity.as_ref())
        }
        workload => unjudged(address, workload.cloned()),
    };
    addresses.into_iter().map(way).collect()
}

/// What the destination's agent says.
fn asked(
    snapshot: &Snapshot,
    source: &Source,
    address: SocketAddr,
    workload: &Arc<Workload>,
    identity: Option<&SpiffeId>,
) -> Explained {
    let question = Inbound {
        client: source.address_towards(address),
        identity,
        address,
    };
    let (refusal, judgement) = match inbound(snapshot, &workload.uid, &question) {
        Ok(permit) => (None, Some(permit.judgement().clone())),
        Err(refusal) => {
            let judgement = refusal.judgement.as_deref().cloned();
            (Some(refusal), judgement)
        }
    };
    let message = match (&refusal, &judgement) {
        (Some(refusal), _) => refusal.to_string(),
        (None, Some(judgement)) => judgement.verdict.to_string(),
        (None, None) => String::new(),
    };
    Explained {
        address,
        workload: Some(Arc::clone(workload)),
        mode: if identity.is_some() {
            Mode::MutualTls
        } else {
            Mode::Plaintext
        },
        refusal,
        judgement,
        mtls: snapshot.mtls_decision(workload, address.port()).cloned(),
        message,
    }
}

/// Where no agent looks.
fn unjudged(address: SocketAddr, workload: Option<Arc<Workload>>) -> Explained {
    let message = match &workload {
        Some(workload) => format!(
            "Pod {}/{} is not enrolled: the connection goes there in plaintext and nothing judges it",
            workload.namespace, workload.name
        ),
        None => format!("{address} is outside the mesh: the connection goes there as it is"),
    };
    Explained {
        address,
        workload,
        mode: Mode::Plaintext,
        refusal: None,
        judgement: None,
        mtls: None,
        message,
    }
}

impl Source {
    /// The address that it connects to `to` from: of that family, as pods do.
    fn address_towards(&self, to: SocketAddr) -> IpAddr {
        let mut of_family = self.addresses.iter().filter(|ip| ip.is_ipv4() == to.is_ipv4());
        let unknown = match to {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        of_family.next().copied().unwrap_or(unknown)
    }
}

impl Target {
    /// The endpoints of the service's port, those of the address's family, ready ones first.
    fn endpoints(&self) -> Vec<SocketAddr> {
        let Some(service) = &self.service else {
            return Vec::new();
        };
        let all = service.endpoints.get(&self.address.port());
        let mut all: Vec<_> = all.into_iter().flatten().collect();
        all.retain(|endpoint| {
            service.vips.is_empty() || endpoint.address.is_ipv4() == self.address.is_ipv4()
        });
        if all.iter().any(|endpoint| endpoint.ready) {
            all.retain(|endpoint| endpoint.ready);
        }
        all.iter().map(|endpoint| endpoint.address).collect()
    }
}
