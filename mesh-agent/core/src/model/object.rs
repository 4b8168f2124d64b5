//! The accepted objects of a configuration source, one by one: everything here passed the checks of a document alone. What depends on
//! other objects or on settings (identities, enrolment, endpoints, inheritance) is decided when a snapshot is built.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::{
    AuthorizationPolicy, Distribution, Exclusions, ExternalAddress, Location, Owner, PeerAuthentication,
    ServiceRef,
};

/// Names an object of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectRef {
    /// Its kind, such as `Pod`.
    pub kind: String,
    /// Its namespace; empty for kinds without one.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// From its parts.
    pub fn new(kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// An accepted object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// v1 Namespace.
    Namespace(Namespace),
    /// v1 Node.
    Node(Node),
    /// v1 Pod.
    Pod(Arc<Pod>),
    /// v1 Service.
    Service(Arc<ServiceSpec>),
    /// discovery.k8s.io/v1 EndpointSlice.
    EndpointSlice(Arc<EndpointSlice>),
    /// security.istio.io PeerAuthentication.
    PeerAuthentication(PeerAuthentication),
    /// security.istio.io AuthorizationPolicy.
    AuthorizationPolicy(Arc<AuthorizationPolicy>),
}

impl Object {
    /// What it is called. Two objects with the same name are two versions of one.
    pub fn name(&self) -> ObjectRef {
        match self {
            Object::Namespace(o) => ObjectRef::new("Namespace", "", &o.name),
            Object::Node(o) => ObjectRef::new("Node", "", &o.name),
            Object::Pod(o) => ObjectRef::new("Pod", &o.namespace, &o.name),
            Object::Service(o) => ObjectRef::new("Service", &o.name.namespace, &o.name.name),
            Object::EndpointSlice(o) => ObjectRef::new("EndpointSlice", &o.namespace, &o.name),
            Object::PeerAuthentication(o) => ObjectRef::new("PeerAuthentication", &o.namespace, &o.name),
            Object::AuthorizationPolicy(o) => o.object(),
        }
    }
}

/// What an object's labels say about being part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wish {
    /// Part of the mesh.
    Enabled,
    /// Not part of the mesh.
    Disabled,
}

/// What each of an object's enrolment labels says; `None` where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Wishes {
    /// `mesh-agent.io/dataplane`.
    pub ours: Option<Wish>,
    /// `istio.io/dataplane-mode`.
    pub istio: Option<Wish>,
}

impl Wishes {
    /// What they come to: ours wins over Istio's, which counts only `with_istio`.
    pub fn wish(self, with_istio: bool) -> Option<Wish> {
        self.ours.or(self.istio.filter(|_| with_istio))
    }
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: String,
    /// What its labels ask for.
    pub wishes: Wishes,
}

/// A Node: of it, only where it stands and what leads to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// `metadata.name`.
    pub name: String,
    /// Label `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// `status.addresses`, those that are IP addresses.
    pub addresses: Vec<IpAddr>,
}

/// A Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`; may be empty.
    pub uid: String,
    /// `spec.serviceAccountName`, `default` where absent.
    pub service_account: String,
    /// `spec.nodeName`; empty where not scheduled.
    pub node: String,
    /// `status.podIPs`, the first one first.
    pub addresses: Vec<IpAddr>,
    /// `status.hostIPs`: addresses of its node.
    pub node_addresses: Vec<IpAddr>,
    /// `spec.hostNetwork`.
    pub host_network: bool,
    /// Named container ports (TCP only).
    pub ports: Arc<BTreeMap<String, u16>>,
    /// `metadata.labels`.
    pub labels: Arc<BTreeMap<String, String>>,
    /// What its labels ask for; where they say nothing, it is left to its namespace.
    pub wishes: Wishes,
    /// Why it cannot be captured, whatever the labels say; `None` where it can.
    pub obstacle: Option<String>,
    /// Its `Ready` condition; true where it has no conditions.
    pub ready: bool,
    /// It has a `metadata.deletionTimestamp`.
    pub terminating: bool,
    /// Its phase is Succeeded or Failed: it has no processes any more.
    pub finished: bool,
    /// Where it lives, on a plain host.
    pub location: Option<Location>,
    /// Ports that its probes and lifecycle hooks name, where these lead to the pod itself.
    pub probe_ports: BTreeSet<u16>,
    /// What its annotations ask to leave uncaptured.
    pub exclusions: Exclusions,
    /// What made it.
    pub owner: Arc<Owner>,
}

/// Where a service port leads on the pods behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// This port.
    Number(u16),
    /// The container port with this name.
    Name(String),
}

/// One TCP port of a Service as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Its name; empty where it has none.
    pub name: String,
    /// The port clients use.
    pub port: u16,
    /// Where it leads.
    pub target: TargetPort,
    /// `appProtocol`, where given.
    pub app_protocol: Option<String>,
}

/// A Service as written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceSpec {
    /// Its name.
    pub name: ServiceRef,
    /// `metadata.creationTimestamp` as seconds since the epoch, 0 where absent: the oldest keeps an external address that several claim.
    pub created: i64,
    /// Its ClusterIPs; empty for a headless one.
    pub vips: Vec<IpAddr>,
    /// `spec.externalIPs`, and the addresses of its load balancer; empty for a headless one.
    pub external: Vec<ExternalAddress>,
    /// `spec.loadBalancerSourceRanges`: whose clients its load balancer's addresses serve; empty for everybody's.
    pub source_ranges: Vec<IpNet>,
    /// `spec.sessionAffinity` is `ClientIP`: for how many seconds after its last connection a client gets the same endpoint again.
    pub affinity: Option<u32>,
    /// Its TCP ports.
    pub ports: Vec<PortSpec>,
    /// Its selector; empty where it selects nothing.
    pub selector: BTreeMap<String, String>,
    /// `spec.publishNotReadyAddresses`: pods count as ready whatever they say.
    pub publish_not_ready: bool,
    /// `spec.internalTrafficPolicy` is `Local`.
    pub node_local: bool,
    /// `spec.trafficDistribution`.
    pub distribution: Distribution,
    /// Type ExternalName: a DNS alias, nothing that the mesh can carry to.
    pub external_name: bool,
    /// The address families it serves; `None` for every family its pods have.
    pub families: Option<Vec<IpFamily>>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamily {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl IpFamily {
    /// The family of `address`.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// Label `kubernetes.io/service-name`: the Service it belongs to.
    pub service: Option<String>,
    /// Its TCP ports by name (empty for the unnamed one).
    pub ports: Vec<(String, u16)>,
    /// Its endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// `conditions.ready`, true where absent.
    pub ready: bool,
    /// `conditions.serving`, as `ready` where absent.
    pub serving: bool,
    /// `conditions.terminating`, false where absent.
    pub terminating: bool,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
    /// `zone`.
    pub zone: Option<Arc<str>>,
    /// `hints.forNodes`.
    pub for_nodes: Vec<String>,
    /// `hints.forZones`.
    pub for_zones: Vec<String>,
}
