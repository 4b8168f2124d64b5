//! The immutable view that every decision reads, with its indexes. Built by [`Snapshot::build`] from accepted objects; never changed.

mod addresses;
mod build;
mod endpoints;
mod fronts;
mod meshes;
mod mtls;
mod policies;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use crate::authz::{Applicable, LocalDomain};
use crate::manifest::{Notice, Rejection};
use crate::model::{
    AuthorizationPolicy, MtlsMode, ObjectRef, PeerAuthentication, Service, ServiceRef, TrustDomain, Workload,
    WorkloadUid,
};

pub(crate) use meshes::Meshes;
pub use meshes::{IstioLabel, OtherMesh, Part};
pub use mtls::{Decision, EffectiveMtls};

/// What decisions need to know of the agent's settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshSettings {
    /// This agent's node; workloads with this `spec.nodeName` are local.
    pub node_name: String,
    /// The local trust domain.
    pub trust_domain: TrustDomain,
    /// Other names of the local trust domain.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The namespace whose policies hold mesh-wide.
    pub root_namespace: String,
    /// The suffix of service host names, such as `cluster.local`.
    pub cluster_domain: String,
    /// Whose the label `istio.io/dataplane-mode` is.
    pub istio_label: IstioLabel,
}

/// Those of an agent that is told nothing; of no node.
impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            node_name: String::new(),
            trust_domain: TrustDomain::default(),
            trust_domain_aliases: Vec::new(),
            root_namespace: "istio-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            istio_label: IstioLabel::default(),
        }
    }
}

/// The state of the mesh at one moment. Cheap to share (`Arc<Snapshot>`), never changed.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) version: u64,
    pub(crate) settings: MeshSettings,
    pub(crate) workloads: HashMap<WorkloadUid, Arc<Workload>>,
    /// Addresses that several workloads claim, or that belong to a node, lead to none.
    pub(crate) by_address: HashMap<IpAddr, Arc<Workload>>,
    pub(crate) services: HashMap<ServiceRef, Arc<Service>>,
    pub(crate) by_vip: HashMap<IpAddr, Arc<Service>>,
    /// By the addresses that services have beside ClusterIPs, and their ports. Holds no address of a pod, a node, or a ClusterIP.
    pub(crate) by_external: HashMap<SocketAddr, Arc<Service>>,
    /// By the addresses of endpoints on this node, sorted by name.
    pub(crate) by_endpoint: HashMap<SocketAddr, Vec<Arc<Service>>>,
    /// The zones of nodes, where known.
    pub(crate) zones: HashMap<Arc<str>, Arc<str>>,
    pub(crate) peer_authentications: Vec<PeerAuthentication>,
    /// Addresses that lead to no workload although an enrolled one claims them.
    pub(crate) contested: HashMap<IpAddr, Contested>,
    /// What each workload accepts, after inheritance.
    pub(crate) mtls: HashMap<WorkloadUid, Arc<EffectiveMtls>>,
    pub(crate) authorization_policies: Vec<Arc<AuthorizationPolicy>>,
    /// The policies that select each workload.
    pub(crate) authz: HashMap<WorkloadUid, Arc<Applicable>>,
    /// Parts of other meshes on this agent's node.
    pub(crate) other_meshes: Vec<OtherMesh>,
    pub(crate) namespaces: BTreeMap<String, NamespaceStanding>,
    pub(crate) diagnostics: Diagnostics,
}

/// Whether the pods of a namespace are part of the mesh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct NamespaceStanding {
    /// By its own labels they are.
    pub enrolled: bool,
    /// There is a pod that says otherwise by labels of its own, or was so when this was made.
    pub mixed: bool,
}

/// Why an address that an enrolled workload claims leads to none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Contested {
    /// Who claims it.
    pub claimants: Vec<ObjectRef>,
    /// It is also an address of a node.
    pub node_address: bool,
}

/// What a person should know about the objects behind a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diagnostics {
    /// Documents that are not in force.
    pub rejections: Vec<Rejection>,
    /// Unknown kinds and fields, conflicts, things that are ignored or changed.
    pub notices: Vec<Notice>,
}

impl Snapshot {
    /// A snapshot without objects, version 0.
    pub fn empty(settings: MeshSettings) -> Self {
        Self {
            version: 0,
            settings,
            workloads: HashMap::new(),
            by_address: HashMap::new(),
            services: HashMap::new(),
            by_vip: HashMap::new(),
            by_external: HashMap::new(),
            by_endpoint: HashMap::new(),
            zones: HashMap::new(),
            peer_authentications: Vec::new(),
            contested: HashMap::new(),
            mtls: HashMap::new(),
            authorization_policies: Vec::new(),
            authz: HashMap::new(),
            other_meshes: Vec::new(),
            namespaces: BTreeMap::new(),
            diagnostics: Diagnostics::default(),
        }
    }

    /// Grows by one with each published snapshot.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The settings it was built under.
    pub fn settings(&self) -> &MeshSettings {
        &self.settings
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// The namespaces that are known, by name, and whether their pods are part of the mesh.
    pub fn namespaces(&self) -> &BTreeMap<String, NamespaceStanding> {
        &self.namespaces
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// The one workload that has this address; none when several or none have it.
    pub fn workload_by_address(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&address)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// The service with this name.
    pub fn service(&self, name: &ServiceRef) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The service with this ClusterIP.
    pub fn service_by_vip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.by_vip.get(&address)
    }

    /// The service that has this address and port beside its ClusterIPs.
    pub fn service_by_external(&self, address: SocketAddr) -> Option<&Arc<Service>> {
        self.by_external.get(&address)
    }

    /// The service that a client of the application at `address`, on this node, most likely asked for: the one called `hostname`, where
    /// the client names one that has this endpoint; otherwise the first by name, those with a ClusterIP before headless ones. For
    /// metrics and logs; no decision may rest on it.
    pub fn service_behind(&self, address: SocketAddr, hostname: Option<&str>) -> Option<&Arc<Service>> {
        let behind = self.by_endpoint.get(&address)?;
        let named = |service: &&Arc<Service>| hostname.is_some_and(|name| service.hostname == name);
        let usual = |service: &&Arc<Service>| !service.vips.is_empty();
        let mut found = behind.iter();
        found
            .clone()
            .find(named)
            .or_else(|| found.find(usual))
            .or_else(|| behind.first())
    }

    /// The zone that the node `name` stands in, where known.
    pub fn zone_of_node(&self, name: &str) -> Option<&str> {
        self.zones.get(name).map(|zone| &**zone)
    }

    /// Whether `domain` is the local trust domain or one of its aliases.
    pub fn is_local_trust_domain(&self, domain: &TrustDomain) -> bool {
        *domain == self.settings.trust_domain || self.settings.trust_domain_aliases.contains(domain)
    }

    /// The workloads of this agent's node, in no order.
    pub fn local_workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        let node = self.settings.node_name.as_str();
        self.workloads
            .values()
            .filter(move |workload| workload.node == node)
    }

    /// Set when an enrolled workload claims this address and yet it leads to none: such an address is not dialled at all.
    pub fn contested(&self, address: IpAddr) -> Option<&Contested> {
        self.contested.get(&address)
    }

    /// The PeerAuthentications that were accepted, in no order, with their scopes.
    pub fn peer_authentications(&self) -> &[PeerAuthentication] {
        &self.peer_authentications
    }

    /// The AuthorizationPolicies that were accepted, by name.
    pub fn authorization_policies(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.authorization_policies
    }

    /// The AuthorizationPolicies that select `workload`. `None` for a workload that is not in this snapshot.
    pub fn authorization(&self, workload: &WorkloadUid) -> Option<&Arc<Applicable>> {
        self.authz.get(workload)
    }

    /// The parts of other meshes that run on this agent's node, as far as pods show them, by name.
    pub fn other_meshes(&self) -> &[OtherMesh] {
        &self.other_meshes
    }

    /// Whether the label `istio.io/dataplane-mode` is left to Istio on this agent's node.
    pub fn istio_label_left(&self) -> bool {
        match self.settings.istio_label {
            IstioLabel::Enrol => false,
            IstioLabel::Leave => true,
            IstioLabel::Auto => self.other_meshes.iter().any(|other| other.part.is_istio()),
        }
    }

    /// The names of the local trust domain.
    pub fn local_domain(&self) -> LocalDomain<'_> {
        LocalDomain {
            name: &self.settings.trust_domain,
            aliases: &self.settings.trust_domain_aliases,
        }
    }

    /// What there is to say about the objects behind this snapshot.
    pub fn diagnostics(&self) -> &Diagnostics {
        &self.diagnostics
    }

    /// What `workload` accepts on `port`, after inheritance. Only mutual TLS for a workload that is not in this snapshot.
    pub fn mtls_mode(&self, workload: &Workload, port: u16) -> MtlsMode {
        self.mtls_decision(workload, port)
            .map_or(MtlsMode::Strict, |decision| decision.mode)
    }

    /// What `workload` accepts, by default and on the ports that policies name. `None` for a workload that is not in this snapshot.
    pub fn mtls_decisions(&self, workload: &Workload) -> Option<Vec<&Decision>> {
        Some(self.mtls.get(&workload.uid)?.all().collect())
    }

    /// What `workload` accepts on `port`, and which policy says so. `None` for a workload that is not in this snapshot.
    pub fn mtls_decision(&self, workload: &Workload, port: u16) -> Option<&Decision> {
        Some(self.mtls.get(&workload.uid)?.on(port))
    }
}
