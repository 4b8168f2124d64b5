//! Services with their endpoints: from EndpointSlices where a service has any, from its selector and the pods where not.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{
    Endpoint, EndpointSlice, IpFamily, Pod, PortSpec, Service, ServicePort, ServiceSpec, TargetPort, Workload,
};

/// What endpoints are made of.
pub(super) struct Sources<'a> {
    pods: HashMap<&'a str, Vec<&'a Pod>>,
    slices: HashMap<(&'a str, &'a str), Vec<&'a EndpointSlice>>,
    zones: &'a HashMap<Arc<str>, Arc<str>>,
}

impl<'a> Sources<'a> {
    /// Indexes pods by namespace and slices by service.
    pub(super) fn new(
        pods: impl Iterator<Item = &'a Pod>,
        slices: impl Iterator<Item = &'a EndpointSlice>,
        zones: &'a HashMap<Arc<str>, Arc<str>>,
    ) -> Self {
        let mut sources = Self {
            pods: HashMap::new(),
            slices: HashMap::new(),
            zones,
        };
        for pod in pods {
            sources.pods.entry(pod.namespace.as_str()).or_default().push(pod);
        }
        for slice in slices {
            if let Some(service) = slice.service.as_deref() {
                sources
                    .slices
                    .entry((slice.namespace.as_str(), service))
                    .or_default()
                    .push(slice);
            }
        }
        sources
    }

    /// The service that `spec` describes. `workload_at` says who has an address.
    pub(super) fn service(
        &self,
        spec: &ServiceSpec,
        cluster_domain: &str,
        workload_at: impl Fn(IpAddr) -> Option<Arc<Workload>>,
    ) -> Service {
        let name = &spec.name;
        let slices = self.slices.get(&(&*name.namespace, &*name.name));
        let mut endpoints = BTreeMap::new();
        for port in &spec.ports {
            let mut found = match slices {
                Some(slices) => from_slices(slices, port),
                None => self.derived(spec, port),
            };
            for endpoint in &mut found {
                if let Some(workload) = workload_at(endpoint.address.ip()) {
                    let node = || (!workload.node.is_empty()).then(|| workload.node.as_str().into());
                    endpoint.node = endpoint.node.take().or_else(node);
                    endpoint.workload = Some(workload.uid.clone());
                }
                let zone = || self.zones.get(endpoint.node.as_deref()?).cloned();
                endpoint.zone = endpoint.zone.take().or_else(zone);
            }
            // The same endpoint may stand in several slices while the controller moves it; the better word counts.
            found.sort_by_key(|endpoint| (endpoint.address, !endpoint.ready, !endpoint.serving));
            found.dedup_by_key(|endpoint| endpoint.address);
            endpoints.insert(port.port, found);
        }
        let port = |port: &PortSpec| ServicePort {
            name: port.name.clone(),
            port: port.port,
            app_protocol: port.app_protocol.clone(),
        };
        Service {
            name: name.clone(),
            hostname: format!("{}.{}.svc.{cluster_domain}", name.name, name.namespace),
            vips: spec.vips.clone(),
            external: spec.external.clone(),
            source_ranges: spec.source_ranges.clone(),
            affinity: spec.affinity,
            node_local: spec.node_local,
            distribution: spec.distribution,
            ports: spec.ports.iter().map(port).collect(),
            endpoints,
        }
    }

    /// As the EndpointSlice controller would: one endpoint per pod that the selector picks and family that the service serves.
    fn derived(&self, spec: &ServiceSpec, port: &PortSpec) -> Vec<Endpoint> {
        if spec.selector.is_empty() {
            return Vec::new();
        }
        let candidates = self.pods.get(&*spec.name.namespace).into_iter().flatten();
        let picked = candidates.filter(|pod| spec.selector.iter().all(|(k, v)| pod.labels.get(k) == Some(v)));
        let mut found = Vec::new();
        for pod in picked {
            let target = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => pod.ports.get(name).copied(),
            };
            let Some(target) = target else { continue };
            let serving = pod.ready || spec.publish_not_ready;
            for family in families(spec) {
                // One address per family, the first, as in the pod's status.
                let Some(address) = pod
                    .addresses
                    .iter()
                    .find(|address| IpFamily::of(**address) == family)
                else {
                    continue;
                };
                found.push(Endpoint {
                    address: SocketAddr::new(*address, target),
                    workload: None,
                    ready: serving && (!pod.terminating || spec.publish_not_ready),
                    serving,
                    terminating: pod.terminating,
                    node: (!pod.node.is_empty()).then(|| pod.node.as_str().into()),
                    zone: None,
                    for_nodes: Vec::new(),
                    for_zones: Vec::new(),
                });
            }
        }
        found
    }
}

/// The families that `spec` serves: as written, or those of its addresses, or both for a headless one.
fn families(spec: &ServiceSpec) -> Vec<IpFamily> {
    let of_vips = || {
        [IpFamily::V4, IpFamily::V6]
            .into_iter()
            .filter(|f| spec.vips.iter().any(|vip| IpFamily::of(*vip) == *f))
    };
    match &spec.families {
        Some(families) => families.clone(),
        None if spec.vips.is_empty() => vec![IpFamily::V4, IpFamily::V6],
        None => of_vips().collect(),
    }
}

/// The endpoints behind `port`: slices match by the port's name.
fn from_slices(slices: &[&EndpointSlice], port: &PortSpec) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        for (_, target) in slice.ports.iter().filter(|(name, _)| *name == port.name) {
            found.extend(slice.endpoints.iter().map(|endpoint| Endpoint {
                address: SocketAddr::new(endpoint.address, *target),
                workload: None,
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                node: endpoint.node.as_deref().map(Into::into),
                zone: endpoint.zone.as_deref().map(Into::into),
                for_nodes: endpoint.for_nodes.clone(),
                for_zones: endpoint.for_zones.clone(),
            }));
        }
    }
    found
}
