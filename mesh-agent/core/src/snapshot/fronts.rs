//! Which service an address leads to: ClusterIPs first, then the addresses that services have beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::addresses::Claims;
use super::mtls::Remark;
use crate::manifest::NoticeKind;
use crate::model::{ExternalAddress, ExternalKind, ObjectRef, Service, ServiceRef, ServiceSpec, Workload};

/// Which services claim which addresses.
#[derive(Debug, Default)]
pub(super) struct Fronts {
    /// As a ClusterIP; the first by name keeps it.
    vips: HashMap<IpAddr, BTreeSet<ServiceRef>>,
    /// Beside their ClusterIPs; the oldest one keeps what several claim, and the first by name of the same age.
    external: HashMap<IpAddr, BTreeMap<(i64, ServiceRef), Arc<ServiceSpec>>>,
}

/// Where an address leads.
#[derive(Debug, Default)]
pub(super) struct Leads {
    /// The service with this ClusterIP.
    pub(super) vip: Option<ServiceRef>,
    /// The services that have it beside their ClusterIPs, by port.
    pub(super) external: BTreeMap<u16, ServiceRef>,
    pub(super) remarks: Vec<Remark>,
}

impl Fronts {
    /// What `spec` claims. Adds the addresses to `touched`.
    pub(super) fn add(&mut self, spec: &Arc<ServiceSpec>, touched: &mut BTreeSet<IpAddr>) {
        for vip in spec.vips.iter().filter(|_| !spec.external_name) {
            self.vips.entry(*vip).or_default().insert(spec.name.clone());
            touched.insert(*vip);
        }
        for external in spec.external.iter().filter(|_| !spec.external_name) {
            let claimants = self.external.entry(external.address).or_default();
            claimants.insert((spec.created, spec.name.clone()), Arc::clone(spec));
            touched.insert(external.address);
        }
    }

    /// Takes back what [`add`](Self::add) did for an equal value.
    pub(super) fn remove(&mut self, spec: &ServiceSpec, touched: &mut BTreeSet<IpAddr>) {
        for vip in &spec.vips {
            if let Some(claimants) = self.vips.get_mut(vip) {
                claimants.remove(&spec.name);
                if claimants.is_empty() {
                    self.vips.remove(vip);
                }
            }
            touched.insert(*vip);
        }
        for external in &spec.external {
            if let Some(claimants) = self.external.get_mut(&external.address) {
                claimants.remove(&(spec.created, spec.name.clone()));
                if claimants.is_empty() {
                    self.external.remove(&external.address);
                }
            }
            touched.insert(external.address);
        }
    }

    /// Where `address` leads. An address of a pod, of a node, or a ClusterIP leads there and to no service that only names it: nobody
    /// takes over others' traffic that way. `pod` is the workload that has the address.
    pub(super) fn judge(&self, address: IpAddr, claims: &Claims, pod: Option<&Arc<Workload>>) -> Leads {
        let mut leads = Leads::default();
        let mut claimants = self.vips.get(&address).into_iter().flatten();
        leads.vip = claimants.next().cloned();
        if let Some(holder) = &leads.vip {
            for other in claimants {
                let message =
                    format!("clusterIP {address} belongs to Service {holder} already: ignored here");
                leads.remarks.push((object(other), NoticeKind::Conflict, message));
            }
        }
        for spec in self.external.get(&address).into_iter().flat_map(BTreeMap::values) {
            leads.claim(spec, address, claims, pod);
        }
        leads
    }
}

impl Leads {
    fn claim(&mut self, spec: &ServiceSpec, address: IpAddr, claims: &Claims, pod: Option<&Arc<Workload>>) {
        if self.vip.as_ref() == Some(&spec.name) {
            return;
        }
        for external in spec
            .external
            .iter()
            .filter(|external| external.address == address)
        {
            if let Some(owner) = self.owner(address, claims, pod) {
                let message = format!(
                    "{} is {owner}: it leads there and not to this service",
                    shown(external)
                );
                let remark = (object(&spec.name), NoticeKind::Conflict, message);
                self.remarks.push(remark);
                continue;
            }
            for port in &spec.ports {
                match self.external.get(&port.port) {
                    // The same address, once by the one field and once by the other.
                    Some(holder) if *holder == spec.name => {}
                    Some(holder) => {
                        let message = format!(
                            "{}, port {}, belongs to Service {holder} already, which is older (or comes first by name): ignored here",
                            shown(external),
                            port.port,
                        );
                        let remark = (object(&spec.name), NoticeKind::Conflict, message);
                        self.remarks.push(remark);
                    }
                    None => drop(self.external.insert(port.port, spec.name.clone())),
                }
            }
        }
    }

    /// Whose `address` is, if it is not for a service to claim.
    fn owner(&self, address: IpAddr, claims: &Claims, pod: Option<&Arc<Workload>>) -> Option<String> {
        if let Some(other) = &self.vip {
            return Some(format!("the clusterIP of Service {other}"));
        }
        if claims.is_nodes(address) {
            return Some("an address of a node".to_owned());
        }
        let pod = || match pod {
            Some(pod) => format!("the address of Pod {}/{}", pod.namespace, pod.name),
            None => "an address that pods claim".to_owned(),
        };
        claims.is_pods(address).then(pod)
    }
}

/// Services by the ports of their endpoints at `address`; `services` come sorted by name, and so are those of a port.
pub(super) fn behind<'a>(
    address: IpAddr,
    services: impl Iterator<Item = &'a Arc<Service>>,
) -> BTreeMap<u16, Vec<ServiceRef>> {
    let mut found: BTreeMap<u16, Vec<ServiceRef>> = BTreeMap::new();
    for service in services {
        let endpoints = service.endpoints.values().flatten();
        for endpoint in endpoints.filter(|endpoint| endpoint.address.ip() == address) {
            let behind = found.entry(endpoint.address.port()).or_default();
            if behind.last() != Some(&service.name) {
                behind.push(service.name.clone());
            }
        }
    }
    found
}

fn shown(external: &ExternalAddress) -> String {
    let kind = match external.kind {
        ExternalKind::ExternalIp => "externalIP",
        ExternalKind::LoadBalancer => "load-balancer address",
    };
    format!("{kind} {}", external.address)
}

fn object(service: &ServiceRef) -> ObjectRef {
    ObjectRef::new("Service", &service.namespace, &service.name)
}
