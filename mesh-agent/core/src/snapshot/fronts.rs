//! Which service an address leads to: ClusterIPs first, then the addresses that services have beside them.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::addresses::Addresses;
use super::mtls::Remark;
use crate::manifest::NoticeKind;
use crate::model::{ExternalAddress, ExternalKind, ObjectRef, Service};

/// Services by ClusterIP; `services` come sorted by name, and the first one keeps a contested address.
pub(super) fn by_vip(services: &[Arc<Service>], remarks: &mut Vec<Remark>) -> HashMap<IpAddr, Arc<Service>> {
    let mut by_vip: HashMap<_, Arc<Service>> = HashMap::new();
    for service in services {
        for vip in &service.vips {
            if let Some(holder) = by_vip.get(vip) {
                let message = format!(
                    "clusterIP {vip} belongs to Service {} already: ignored here",
                    holder.name
                );
                remarks.push((name(service), NoticeKind::Conflict, message));
            } else {
                by_vip.insert(*vip, service.clone());
            }
        }
    }
    by_vip
}

/// Services by the addresses and ports of their endpoints on workloads that `local` picks; `services` come sorted by name, and so are
/// those of an endpoint.
pub(super) fn by_endpoint(
    services: &[Arc<Service>],
    local: impl Fn(IpAddr) -> bool,
) -> HashMap<SocketAddr, Vec<Arc<Service>>> {
    let mut found: HashMap<SocketAddr, Vec<Arc<Service>>> = HashMap::new();
    for service in services {
        let endpoints = service.endpoints.values().flatten();
        for address in endpoints.map(|endpoint| endpoint.address) {
            if local(address.ip()) {
                let behind = found.entry(address).or_default();
                if !behind.iter().any(|known| Arc::ptr_eq(known, service)) {
                    behind.push(service.clone());
                }
            }
        }
    }
    found
}

/// Services by external address and port; `services` come the oldest first, and the first one keeps what several claim. An address of
/// a pod, of a node, or a ClusterIP leads there and to no service that only names it: nobody takes over others' traffic that way.
pub(super) fn by_external(
    services: &[Arc<Service>],
    by_vip: &HashMap<IpAddr, Arc<Service>>,
    addresses: &Addresses,
    remarks: &mut Vec<Remark>,
) -> HashMap<SocketAddr, Arc<Service>> {
    let mut found: HashMap<SocketAddr, Arc<Service>> = HashMap::new();
    for service in services {
        for external in &service.external {
            if by_vip
                .get(&external.address)
                .is_some_and(|holder| holder.name == service.name)
            {
                continue;
            }
            if let Some(owner) = owner(external.address, by_vip, addresses) {
                let message = format!(
                    "{} is {owner}: it leads there and not to this service",
                    shown(external)
                );
                remarks.push((name(service), NoticeKind::Conflict, message));
                continue;
            }
            for port in &service.ports {
                let at = SocketAddr::new(external.address, port.port);
                match found.get(&at) {
                    // The same address, once by the one field and once by the other.
                    Some(holder) if holder.name == service.name => {}
                    Some(holder) => {
                        let message = format!(
                            "{}, port {}, belongs to Service {} already, which is older (or comes first by name): ignored here",
                            shown(external),
                            port.port,
                            holder.name
                        );
                        remarks.push((name(service), NoticeKind::Conflict, message));
                    }
                    None => drop(found.insert(at, service.clone())),
                }
            }
        }
    }
    found
}

/// Whose `address` is, if it is not for a service to claim.
fn owner(address: IpAddr, by_vip: &HashMap<IpAddr, Arc<Service>>, addresses: &Addresses) -> Option<String> {
    if let Some(other) = by_vip.get(&address) {
        return Some(format!("the clusterIP of Service {}", other.name));
    }
    if addresses.of_nodes.contains(&address) {
        return Some("an address of a node".to_owned());
    }
    let pod = || match addresses.by_address.get(&address) {
        Some(pod) => format!("the address of Pod {}/{}", pod.namespace, pod.name),
        None => "an address that pods claim".to_owned(),
    };
    addresses.of_pods.contains(&address).then(pod)
}

fn shown(external: &ExternalAddress) -> String {
    let kind = match external.kind {
        ExternalKind::ExternalIp => "externalIP",
        ExternalKind::LoadBalancer => "load-balancer address",
    };
    format!("{kind} {}", external.address)
}

fn name(service: &Service) -> ObjectRef {
    ObjectRef::new("Service", &service.name.namespace, &service.name.name)
}
