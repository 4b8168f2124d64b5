//! Which endpoint of a service a client gets: kube-proxy's rules, whose place the agent takes for enrolled clients.

use std::net::SocketAddr;

use mesh_common::mutation::{self, Mechanism};

use crate::model::{Distribution, Endpoint, Service};

/// Where the client stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client<'a> {
    /// Its node; empty where it has none.
    pub(super) node: &'a str,
    /// Its node's zone, where known.
    pub(super) zone: Option<&'a str>,
}

impl Client<'_> {
    /// Whether `endpoint` runs on the client's node.
    pub(super) fn shares_node(self, endpoint: &Endpoint) -> bool {
        !self.node.is_empty() && endpoint.node.as_deref() == Some(self.node)
    }

    fn shares_zone(self, endpoint: &Endpoint) -> bool {
        self.zone.is_some() && endpoint.zone.as_deref() == self.zone
    }
}

/// The endpoints of `all` that may get a connection to `destination`: of its family and ready; without any, those that still serve on
/// their way out. A `node_local` service has only those on the client's node; of ready ones, the preferred come alone.
pub(super) fn candidates<'e>(
    service: &Service,
    all: &'e [Endpoint],
    client: Client<'_>,
    destination: SocketAddr,
    node_local: bool,
) -> Vec<&'e Endpoint> {
    let family = |endpoint: &&Endpoint| endpoint.address.is_ipv4() == destination.is_ipv4();
    let allowed = |endpoint: &&Endpoint| !node_local || client.shares_node(endpoint);
    let usable = || all.iter().filter(family).filter(allowed);
    let leaving = |endpoint: &&Endpoint| endpoint.serving && endpoint.terminating;
    let in_turn = !mutation::is_off(Mechanism::LeavingLast);
    let ready: Vec<&Endpoint> = usable()
        .filter(|endpoint| endpoint.ready || (leaving(endpoint) && !in_turn))
        .collect();
    if ready.is_empty() {
        return usable().filter(leaving).collect();
    }
    if node_local {
        ready
    } else {
        preferred(service.distribution, ready, client)
    }
}

/// Those that hints name for this client, if every endpoint has hints; where no endpoint has any, those that the service's
/// `trafficDistribution` asks for. All of them where that leaves none.
fn preferred<'e>(
    distribution: Distribution,
    ready: Vec<&'e Endpoint>,
    client: Client<'_>,
) -> Vec<&'e Endpoint> {
    let named = |names: &[String], name: &str| names.iter().any(|one| one == name);
    let hinted = ready
        .iter()
        .any(|endpoint| !endpoint.for_nodes.is_empty() || !endpoint.for_zones.is_empty());
    let only = |wanted: &dyn Fn(&Endpoint) -> bool| {
        let some: Vec<&Endpoint> = ready
            .iter()
            .copied()
            .filter(|endpoint| wanted(endpoint))
            .collect();
        (!some.is_empty()).then_some(some)
    };
    let (on_node, in_zone) = if hinted {
        let by_node = ready.iter().all(|endpoint| !endpoint.for_nodes.is_empty());
        let by_zone = ready.iter().all(|endpoint| !endpoint.for_zones.is_empty());
        let zone = client.zone.filter(|_| by_zone);
        let on_node = by_node
            .then(|| only(&|endpoint| named(&endpoint.for_nodes, client.node)))
            .flatten();
        let in_zone = zone.and_then(|zone| only(&|endpoint| named(&endpoint.for_zones, zone)));
        (on_node, in_zone)
    } else {
        let near = distribution == Distribution::SameNode;
        let on_node = near
            .then(|| only(&|endpoint| client.shares_node(endpoint)))
            .flatten();
        let close = distribution != Distribution::Even;
        let in_zone = close
            .then(|| only(&|endpoint| client.shares_zone(endpoint)))
            .flatten();
        (on_node, in_zone)
    };
    on_node.or(in_zone).unwrap_or(ready)
}

/// The one of `candidates` that the client had before, or one by a random number.
pub(super) fn pick(
    candidates: &[&Endpoint],
    previous: Option<SocketAddr>,
    random: u64,
) -> Option<SocketAddr> {
    let still_there = |address: &SocketAddr| candidates.iter().any(|endpoint| endpoint.address == *address);
    if let Some(previous) = previous.filter(still_there) {
        return Some(previous);
    }
    let count = u64::try_from(candidates.len()).ok().filter(|count| *count > 0)?;
    let index = usize::try_from(random % count).ok()?;
    candidates.get(index).map(|endpoint| endpoint.address)
}
