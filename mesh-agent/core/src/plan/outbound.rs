//! Where a captured connection goes. A destination that the snapshot knows as enrolled is never dialled in plaintext.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_common::mutation::{self, Mechanism};
use mesh_common::{HBONE_PORT, is_agent_port};

use super::balance::{self, Client};
use super::{Outbound, Reason, Refusal, Session, Transport};
use crate::manifest::special;
use crate::model::{Endpoint, ExternalKind, Service, Workload};
use crate::snapshot::Snapshot;

/// The service that has an address, and what kind of address it is.
#[derive(Clone, Copy)]
struct Front<'s> {
    service: &'s Arc<Service>,
    /// A ClusterIP; otherwise one of the addresses that the service has beside them.
    cluster_ip: bool,
}

impl<'s> Front<'s> {
    fn of(snapshot: &'s Snapshot, destination: SocketAddr) -> Option<Self> {
        let at_vip = snapshot
            .service_by_vip(destination.ip())
            .map(|service| (service, true));
        let beside = || Some((snapshot.service_by_external(destination)?, false));
        let (service, cluster_ip) = at_vip.or_else(beside)?;
        Some(Self { service, cluster_ip })
    }

    /// kube-proxy's rule for connections from pods: internalTrafficPolicy holds for ClusterIPs; at other addresses neither traffic policy
    /// holds, as if the connection went out to the load balancer and came back in from wherever.
    fn node_local(self) -> bool {
        self.cluster_ip && self.service.node_local && !mutation::is_off(Mechanism::NodeLocal)
    }
}

/// The session that a connection to `destination` belongs to; `None` where each connection may go elsewhere.
pub fn session(snapshot: &Snapshot, destination: SocketAddr) -> Option<Session> {
    let destination = canonical(destination);
    let service = Front::of(snapshot, destination)?.service;
    Some(Session {
        timeout: Duration::from_secs(service.affinity?.into()),
        service: service.name.clone(),
        port: destination.port(),
    })
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Where a connection that a process of `source` opened to `destination` goes. `previous` is the endpoint that the client had before in
/// the same [`Session`], honoured while it is among those that may be picked; `random` picks otherwise.
///
/// # Errors
/// When it is not to be carried; see [`Reason`].
pub fn outbound(
    snapshot: &Snapshot,
    source: &Workload,
    destination: SocketAddr,
    previous: Option<SocketAddr>,
    random: u64,
) -> Result<Outbound, Refusal> {
    let destination = canonical(destination);
    let source = snapshot
        .workload(&source.uid)
        .ok_or_else(|| unknown_source(source))?;
    if let Some(what) = special(destination.ip()).filter(|_| !is_link_local4(destination.ip())) {
        let message = format!(
            "{} was refused a connection to {destination}: {what} address, which the mesh never forwards to",
            who(source)
        );
        return Err(Refusal::new(Reason::ForbiddenDestination, message));
    }
    let Some(front) = Front::of(snapshot, destination) else {
        return to_address(snapshot, source, destination, None);
    };
    admits(front, source, destination)?;
    let address = endpoint(snapshot, front, source, destination, previous, random)?;
    to_address(snapshot, source, address, Some(front.service))
}

/// Whether the service serves this client at this address: a load balancer's source ranges hold for pods, too. A family without a range
/// of its own is refused where the other one has any.
fn admits(front: Front<'_>, source: &Workload, destination: SocketAddr) -> Result<(), Refusal> {
    let service = front.service;
    let by_load_balancer = service
        .external
        .iter()
        .any(|external| external.kind == ExternalKind::LoadBalancer && external.address == destination.ip());
    if front.cluster_ip || !by_load_balancer || service.source_ranges.is_empty() {
        return Ok(());
    }
    let mut of_family = source
        .addresses
        .iter()
        .filter(|own| own.is_ipv4() == destination.is_ipv4());
    if of_family.any(|own| service.source_ranges.iter().any(|range| range.contains(own))) {
        return Ok(());
    }
    let ranges: Vec<String> = service.source_ranges.iter().map(ToString::to_string).collect();
    let message = format!(
        "{} was refused a connection to {destination}: the load balancer of Service {} serves clients from {} only; see its \
         spec.loadBalancerSourceRanges",
        who(source),
        service.name,
        ranges.join(", "),
    );
    Err(Refusal::new(Reason::SourceRange, message))
}

/// Cloud metadata and node-local services live at such addresses. They are dialled from the pod's own namespace and address, so the pod
/// reaches nothing that it could not reach by itself; as addresses of endpoints they are rejected all the same.
fn is_link_local4(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if v4.is_link_local())
}

/// One of the endpoints behind the service's port.
fn endpoint(
    snapshot: &Snapshot,
    front: Front<'_>,
    source: &Workload,
    destination: SocketAddr,
    previous: Option<SocketAddr>,
    random: u64,
) -> Result<SocketAddr, Refusal> {
    let service = front.service;
    let Some(all) = service.endpoints.get(&destination.port()) else {
        let ports: Vec<String> = service.ports.iter().map(|port| port.port.to_string()).collect();
        let message = format!(
            "{} was refused a connection to {destination}: Service {} has no TCP port {}, only {}; see its spec.ports",
            who(source),
            service.name,
            destination.port(),
            if ports.is_empty() {
                "none at all".to_owned()
            } else {
                ports.join(", ")
            },
        );
        return Err(Refusal::new(Reason::UnknownServicePort, message));
    };
    let client = Client {
        node: &source.node,
        zone: snapshot.zone_of_node(&source.node),
    };
    let candidates = balance::candidates(service, all, client, destination, front.node_local());
    balance::pick(&candidates, previous, random)
        .ok_or_else(|| no_endpoints(front, source, destination, all, client))
}

fn no_endpoints(
    front: Front<'_>,
    source: &Workload,
    destination: SocketAddr,
    all: &[Endpoint],
    client: Client<'_>,
) -> Refusal {
    let count = |of: &dyn Fn(&Endpoint) -> bool| all.iter().filter(|endpoint| of(endpoint)).count();
    let known = format!("{} known, {} ready", all.len(), count(&|endpoint| endpoint.ready));
    let service = front.service;
    let why = if front.node_local() {
        format!(
            "has no endpoint for it that takes connections on {}, and its spec.internalTrafficPolicy is Local ({known}, {} on this node)",
            if source.node.is_empty() {
                "the client's node, which is not known"
            } else {
                &source.node
            },
            count(&|endpoint| client.shares_node(endpoint)),
        )
    } else {
        format!("has no endpoint for it that takes connections ({known}, over both address families)")
    };
    let message = format!(
        "{} was refused a connection to {destination}: Service {} {why}; see the pods behind its selector, their Ready conditions and \
         its EndpointSlices",
        who(source),
        service.name,
    );
    Refusal::new(Reason::NoEndpoints, message)
}

/// How to reach `address`, with no service in the way any more.
fn to_address(
    snapshot: &Snapshot,
    source: &Arc<Workload>,
    address: SocketAddr,
    service: Option<&Arc<Service>>,
) -> Result<Outbound, Refusal> {
    if let Some(contested) = snapshot.contested(address.ip()) {
        let claimants: Vec<String> = contested.claimants.iter().map(ToString::to_string).collect();
        let message = format!(
            "{} was refused a connection to {address}: {}{} claim its address, so nobody can tell whose identity to expect; give each pod \
             its own address or remove the stale object",
            who(source),
            claimants.join(", "),
            if contested.node_address { " and a node" } else { "" },
        );
        return Err(Refusal::new(Reason::ContestedAddress, message));
    }
    let own = source.addresses.contains(&address.ip()) && !source.host_network;
    let destination = if own {
        Some(source)
    } else {
        snapshot.workload_by_address(address.ip())
    };
    let enrolled = own || destination.is_some_and(|workload| workload.enrolment.is_enrolled());
    if enrolled && is_agent_port(address.port()) {
        let message = format!(
            "{} was refused a connection to {address}: port {} belongs to the mesh agent in every enrolled pod",
            who(source),
            address.port()
        );
        return Err(Refusal::new(Reason::ForbiddenDestination, message));
    }
    let transport = match destination {
        Some(_) if own => Transport::Hairpin,
        Some(workload) if enrolled && !mutation::is_off(Mechanism::TunnelToEnrolled) => Transport::Tunnel {
            gateway: SocketAddr::new(address.ip(), HBONE_PORT),
            expected: workload.identity.clone(),
        },
        _ => Transport::Passthrough,
    };
    Ok(Outbound {
        service: service.cloned(),
        destination: destination.cloned(),
        address,
        transport,
    })
}

fn unknown_source(source: &Workload) -> Refusal {
    let message = format!(
        "{} was refused its connections: it is not (or no longer) among the pods of the configuration; see `meshctl workloads`",
        who(source)
    );
    Refusal::new(Reason::UnknownWorkload, message)
}

fn who(workload: &Workload) -> String {
    format!("Pod {}/{}", workload.namespace, workload.name)
}
