//! Services with their endpoints: from EndpointSlices where a service has any, from its selector and the pods where not.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::model::{
    Endpoint, EndpointSlice, IpFamily, ObjectRef, Pod, PortSpec, Service, ServicePort, ServiceSpec,
    TargetPort, Workload,
};

/// What a service's endpoints are made of.
pub(super) struct Sources<'a, Pods, At, Zone> {
    /// The pods of its namespace.
    pub(super) pods: Pods,
    /// Its EndpointSlices; `None` where it has none.
    pub(super) slices: Option<&'a BTreeMap<Arc<ObjectRef>, Arc<EndpointSlice>>>,
    /// Who has an address.
    pub(super) workload_at: At,
    /// Where a node stands.
    pub(super) zone_of: Zone,
    /// The suffix of host names.
    pub(super) cluster_domain: &'a str,
}

impl<'a, Pods, At, Zone> Sources<'a, Pods, At, Zone>
where
    Pods: Iterator<Item = &'a Arc<Pod>> + Clone,
    At: Fn(IpAddr) -> Option<Arc<Workload>>,
    Zone: Fn(&str) -> Option<Arc<str>>,
{
    /// The service that `spec` describes.
    pub(super) fn service(&self, spec: &ServiceSpec) -> Service {
        let name = &spec.name;
        let mut endpoints = BTreeMap::new();
        for port in &spec.ports {
            let mut found = match self.slices {
                Some(slices) => from_slices(slices.values(), port),
                None => derived(self.pods.clone(), spec, port),
            };
            for endpoint in &mut found {
                if let Some(workload) = (self.workload_at)(endpoint.address.ip()) {
                    let node = || (!workload.node.is_empty()).then(|| workload.node.as_str().into());
                    endpoint.node = endpoint.node.take().or_else(node);
                    endpoint.workload = Some(workload.uid.clone());
                }
                let zone = || (self.zone_of)(endpoint.node.as_deref()?);
                endpoint.zone = endpoint.zone.take().or_else(zone);
            }
            // The same endpoint may stand in several slices while the controller moves it; the better word counts.
            found.sort_by_key(|endpoint| (endpoint.address, !endpoint.ready, !endpoint.serving));
            found.dedup_by_key(|endpoint| endpoint.address);
            found.shrink_to_fit();
            endpoints.insert(port.port, found);
        }
        let port = |port: &PortSpec| ServicePort {
            name: port.name.clone(),
            port: port.port,
            app_protocol: port.app_protocol.clone(),
        };
        Service {
            name: name.clone(),
            hostname: format!("{}.{}.svc.{}", name.name, name.namespace, self.cluster_domain),
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
}

/// Whether the selector of `spec` picks pods with these labels. Without a selector it picks none.
pub(super) fn picks(spec: &ServiceSpec, labels: &BTreeMap<String, String>) -> bool {
    !spec.selector.is_empty() && spec.selector.iter().all(|(k, v)| labels.get(k) == Some(v))
}

/// As the EndpointSlice controller would: one endpoint per pod that the selector picks and family that the service serves.
fn derived<'a>(
    pods: impl Iterator<Item = &'a Arc<Pod>>,
    spec: &ServiceSpec,
    port: &PortSpec,
) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for pod in pods.filter(|pod| picks(spec, &pod.labels)) {
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
fn from_slices<'a>(slices: impl Iterator<Item = &'a Arc<EndpointSlice>>, port: &PortSpec) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        for (_, target) in slice.ports.iter().filter(|(name, _)| *name == port.name) {
            found.extend(slice.endpoints.iter().map(|endpoint| Endpoint {
                address: SocketAddr::new(endpoint.address, *target),
                workload: None,
                ready: endpoint.ready,
                serving: endpoint.serving,
                terminating: endpoint.terminating,
                node: endpoint.node.clone(),
                zone: endpoint.zone.clone(),
                for_nodes: endpoint.for_nodes.clone(),
                for_zones: endpoint.for_zones.clone(),
            }));
        }
    }
    found
}
