//! Which endpoints of a service its clients on a node get, and why the others get none: what `meshctl services` shows, from the code that
//! chooses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::balance::{self, Client};
use crate::model::{Endpoint, Service};
use crate::snapshot::Snapshot;

/// One endpoint of a service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice<'s> {
    /// The endpoint.
    pub endpoint: &'s Endpoint,
    /// Why no new connection goes there; `None` where some do.
    pub why_not: Option<&'static str>,
}

/// The endpoints of `port` of `service`, as clients on `node` see them that connect to a ClusterIP.
pub fn choices<'s>(snapshot: &Snapshot, service: &'s Service, port: u16, node: &str) -> Vec<Choice<'s>> {
    let all = service.endpoints.get(&port).map_or(&[][..], Vec::as_slice);
    let client = Client {
        node,
        zone: snapshot.zone_of_node(node),
    };
    let families: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
    let chosen: Vec<&Endpoint> = families
        .into_iter()
        .flat_map(|ip| {
            let to = SocketAddr::new(ip, port);
            balance::candidates(service, all, client, to, service.node_local)
        })
        .collect();
    let choice = |endpoint: &'s Endpoint| Choice {
        endpoint,
        why_not: (!chosen.contains(&endpoint)).then(|| why_not(service, endpoint, client)),
    };
    all.iter().map(choice).collect()
}

fn why_not(service: &Service, endpoint: &Endpoint, client: Client<'_>) -> &'static str {
    if service.node_local && !client.shares_node(endpoint) {
        return "on another node, and internalTrafficPolicy is Local";
    }
    match (endpoint.ready, endpoint.terminating, endpoint.serving) {
        (true, ..) => "others are nearer (hints or trafficDistribution)",
        (false, true, true) => "terminating, and others are ready",
        (false, true, false) => "terminating, and no longer serving",
        (false, false, _) => "not ready",
    }
}
