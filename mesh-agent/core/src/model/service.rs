//! Services and their endpoints.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::WorkloadUid;

/// Names a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ServiceRef {
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
}

impl fmt::Display for ServiceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServicePort {
    /// Its name; empty where it has none.
    pub name: String,
    /// The port clients use.
    pub port: u16,
    /// `appProtocol`, where given.
    pub app_protocol: Option<String>,
}

/// Which endpoints of a service clients prefer: `spec.trafficDistribution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distribution {
    /// None over another.
    #[default]
    Even,
    /// Those in the client's zone (`PreferClose`, `PreferSameZone`).
    SameZone,
    /// Those on the client's node, then those in its zone (`PreferSameNode`).
    SameNode,
}

/// What makes an address beside the ClusterIPs one of a service's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExternalKind {
    /// `spec.externalIPs`.
    ExternalIp,
    /// `status.loadBalancer.ingress` with ipMode VIP.
    LoadBalancer,
}

/// An address beside the ClusterIPs at which clients reach a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct ExternalAddress {
    /// The address.
    pub address: IpAddr,
    /// What makes it one of the service's.
    pub kind: ExternalKind,
}

/// One address that serves a service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    /// Where it serves.
    pub address: SocketAddr,
    /// The workload behind it, where the mesh knows one.
    pub workload: Option<WorkloadUid>,
    /// Takes new connections.
    pub ready: bool,
    /// Answers, whether or not it should get new connections.
    pub serving: bool,
    /// Is on its way out; while it serves it is the last resort of a service without ready endpoints.
    pub terminating: bool,
    /// The node it runs on, where known.
    pub node: Option<Arc<str>>,
    /// The zone it runs in, where known.
    pub zone: Option<Arc<str>>,
    /// `hints.forNodes`: the nodes whose clients should use it.
    pub for_nodes: Vec<String>,
    /// `hints.forZones`: the zones whose clients should use it.
    pub for_zones: Vec<String>,
}

/// A Kubernetes Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its name.
    pub name: ServiceRef,
    /// `name.namespace.svc.<cluster domain>`.
    pub hostname: String,
    /// Its ClusterIPs; empty for a headless one.
    pub vips: Vec<IpAddr>,
    /// Its addresses beside these. One that belongs to somebody else leads there; the snapshot knows.
    pub external: Vec<ExternalAddress>,
    /// `spec.loadBalancerSourceRanges`: whose clients its load balancer's addresses serve; empty for everybody's.
    pub source_ranges: Vec<IpNet>,
    /// `spec.sessionAffinity` is `ClientIP`: for how many seconds after its last connection a client gets the same endpoint again.
    pub affinity: Option<u32>,
    /// `spec.internalTrafficPolicy` is `Local`: a ClusterIP leads only to endpoints on the client's node. Other addresses do not care.
    pub node_local: bool,
    /// Which endpoints are preferred.
    pub distribution: Distribution,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// Its endpoints by the service's port number.
    pub endpoints: BTreeMap<u16, Vec<Endpoint>>,
}
