//! Where a captured connection goes. A destination that the snapshot knows as enrolled is never dialled in plaintext.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_common::{HBONE_PORT, is_agent_port};

use super::{Outbound, Reason, Refusal, Transport};
use crate::manifest::special;
use crate::model::{Endpoint, Service, Workload};
use crate::snapshot::Snapshot;

/// Where a connection that a process of `source` opened to `destination` goes. `random` picks among equal endpoints.
///
/// # Errors
/// When it is not to be carried; see [`Reason`].
pub fn outbound(
    snapshot: &Snapshot,
    source: &Workload,
    destination: SocketAddr,
    random: u64,
) -> Result<Outbound, Refusal> {
    let destination = SocketAddr::new(destination.ip().to_canonical(), destination.port());
    let source = snapshot
        .workload(&source.uid)
        .ok_or_else(|| unknown_source(source))?;
    if let Some(what) = special(destination.ip()) {
        let message = format!(
            "{} was refused a connection to {destination}: {what} address, which the mesh never forwards to",
            who(source)
        );
        return Err(Refusal::new(Reason::ForbiddenDestination, message));
    }
    let Some(service) = snapshot.service_by_vip(destination.ip()) else {
        return to_address(snapshot, source, destination, None);
    };
    let address = endpoint(service, source, destination, random)?;
    to_address(snapshot, source, address, Some(service))
}

/// One of the endpoints behind the service's port.
fn endpoint(
    service: &Service,
    source: &Workload,
    destination: SocketAddr,
    random: u64,
) -> Result<SocketAddr, Refusal> {
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
    pick(all, destination.ip(), random).ok_or_else(|| {
        let ready = all.iter().filter(|endpoint| endpoint.ready).count();
        let message = format!(
            "{} was refused a connection to {destination}: Service {} has no endpoint for it that takes connections \
             ({} known, {ready} ready, over both address families); see the pods behind its selector, their Ready conditions and \
             its EndpointSlices",
            who(source),
            service.name,
            all.len(),
        );
        Refusal::new(Reason::NoEndpoints, message)
    })
}

/// A ready endpoint of the destination's family; without any, one that still serves on its way out, as kube-proxy does.
fn pick(all: &[Endpoint], vip: IpAddr, random: u64) -> Option<SocketAddr> {
    let family = |endpoint: &&Endpoint| endpoint.address.is_ipv4() == vip.is_ipv4();
    let ready: Vec<&Endpoint> = all
        .iter()
        .filter(family)
        .filter(|endpoint| endpoint.ready)
        .collect();
    let candidates = if ready.is_empty() {
        let last_resort = |endpoint: &&Endpoint| endpoint.serving && endpoint.terminating;
        all.iter().filter(family).filter(last_resort).collect()
    } else {
        ready
    };
    let count = u64::try_from(candidates.len()).ok().filter(|count| *count > 0)?;
    let index = usize::try_from(random % count).ok()?;
    candidates.get(index).map(|endpoint| endpoint.address)
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
        Some(workload) if enrolled => Transport::Tunnel {
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
