//! The immutable view that every decision reads, with its indexes. Made by a [`Builder`] from accepted objects; never changed. One
//! snapshot shares with the next what is the same in both.

mod addresses;
mod build;
mod endpoints;
mod fronts;
mod map;
mod meshes;
mod mtls;
mod policies;
mod recent;
#[cfg(test)]
mod reference;
mod remarks;
mod spaces;
#[cfg(test)]
mod tests;
mod zones;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use map::Map;
use recent::Recent;

use crate::authz::{Applicable, LocalDomain};
use crate::manifest::{Notice, Rejection};
use crate::model::{
    AuthorizationPolicy, MtlsMode, ObjectRef, PeerAuthentication, Service, ServiceRef, TrustDomain, Workload,
    WorkloadUid,
};

pub use build::Builder;
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

/// A workload and what is worked out for it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) workload: Arc<Workload>,
    /// What it accepts, after inheritance.
    pub(crate) mtls: Arc<EffectiveMtls>,
    /// The policies that select it.
    pub(crate) authz: Arc<Applicable>,
}

/// The state of the mesh at one moment. Cheap to copy and to share, never changed.
#[derive(Clone, Debug)]
pub struct Snapshot {
    version: u64,
    settings: Arc<MeshSettings>,
    members: Map<WorkloadUid, Member>,
    /// The workloads of this node.
    local: Arc<BTreeMap<WorkloadUid, Arc<Workload>>>,
    /// Addresses that several workloads claim, or that belong to a node, lead to none.
    by_address: Map<IpAddr, Arc<Workload>>,
    services: Map<ServiceRef, Arc<Service>>,
    by_vip: Map<IpAddr, ServiceRef>,
    /// By the addresses that services have beside ClusterIPs, and their ports. Holds no address of a pod, a node, or a ClusterIP.
    by_external: Map<IpAddr, Arc<BTreeMap<u16, ServiceRef>>>,
    /// By the addresses of endpoints on this node, sorted by name.
    by_endpoint: Map<IpAddr, Arc<BTreeMap<u16, Vec<ServiceRef>>>>,
    /// The zones of nodes, where known.
    zones: Map<Arc<str>, Arc<str>>,
    peer_authentications: Arc<[PeerAuthentication]>,
    /// Addresses that lead to no workload although an enrolled one claims them.
    contested: Map<IpAddr, Arc<Contested>>,
    authorization_policies: Arc<[Arc<AuthorizationPolicy>]>,
    /// Addresses of enrolled workloads, contested ones too, and ClusterIPs of services that lead to one of them.
    enrolled: Map<IpAddr, ()>,
    recent: Recent,
    /// Parts of other meshes on this agent's node.
    other_meshes: Arc<[OtherMesh]>,
    namespaces: Arc<BTreeMap<String, NamespaceStanding>>,
    diagnostics: Arc<Diagnostics>,
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
            settings: Arc::new(settings),
            members: Map::default(),
            local: Arc::default(),
            by_address: Map::default(),
            services: Map::default(),
            by_vip: Map::default(),
            by_external: Map::default(),
            by_endpoint: Map::default(),
            zones: Map::default(),
            peer_authentications: Arc::default(),
            contested: Map::default(),
            authorization_policies: Arc::default(),
            enrolled: Map::default(),
            recent: Recent::default(),
            other_meshes: Arc::default(),
            namespaces: Arc::default(),
            diagnostics: Arc::default(),
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
        self.members.values().map(|member| &member.workload)
    }

    /// The namespaces that are known, by name, and whether their pods are part of the mesh.
    pub fn namespaces(&self) -> &BTreeMap<String, NamespaceStanding> {
        &self.namespaces
    }

    /// How many workloads there are.
    pub fn workload_count(&self) -> usize {
        self.members.len()
    }

    /// The workload with this uid.
    pub fn workload(&self, uid: &WorkloadUid) -> Option<&Arc<Workload>> {
        self.members.get(uid).map(|member| &member.workload)
    }

    /// The one workload that has this address; none when several or none have it.
    pub fn workload_by_address(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.by_address.get(&address)
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The service with this name.
    pub fn service(&self, name: &ServiceRef) -> Option<&Arc<Service>> {
        self.services.get(name)
    }

    /// The service with this ClusterIP.
    pub fn service_by_vip(&self, address: IpAddr) -> Option<&Arc<Service>> {
        self.service(self.by_vip.get(&address)?)
    }

    /// The service that has this address and port beside its ClusterIPs.
    pub fn service_by_external(&self, address: SocketAddr) -> Option<&Arc<Service>> {
        self.service(self.by_external.get(&address.ip())?.get(&address.port())?)
    }

    /// The service that a client of the application at `address`, on this node, most likely asked for: the one called `hostname`, where
    /// the client names one that has this endpoint; otherwise the first by name, those with a ClusterIP before headless ones. For
    /// metrics and logs; no decision may rest on it.
    pub fn service_behind(&self, address: SocketAddr, hostname: Option<&str>) -> Option<&Arc<Service>> {
        let behind = self.by_endpoint.get(&address.ip())?.get(&address.port())?;
        let named = |service: &&Arc<Service>| hostname.is_some_and(|name| service.hostname == name);
        let usual = |service: &&Arc<Service>| !service.vips.is_empty();
        let found = || behind.iter().filter_map(|name| self.service(name));
        found()
            .find(named)
            .or_else(|| found().find(usual))
            .or_else(|| found().next())
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
        self.local.values()
    }

    /// Whether somebody enrolled is at `address`, or behind it: contested addresses count, and ClusterIPs.
    pub fn is_enrolled_at(&self, address: IpAddr) -> bool {
        self.enrolled.contains_key(&address)
    }

    /// All addresses for which [`is_enrolled_at`](Self::is_enrolled_at) holds, in no order.
    pub fn enrolled_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.enrolled.iter().map(|(address, ())| *address)
    }

    /// How many these are.
    pub fn enrolled_count(&self) -> usize {
        self.enrolled.len()
    }

    /// The addresses for which that has changed after `version`; `None` when that is too long ago to tell.
    pub fn enrolled_since(&self, version: u64) -> Option<BTreeSet<IpAddr>> {
        self.recent.since(version)
    }

    /// Set when an enrolled workload claims this address and yet it leads to none: such an address is not dialled at all.
    pub fn contested(&self, address: IpAddr) -> Option<&Contested> {
        self.contested.get(&address).map(|contested| &**contested)
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
        self.members.get(workload).map(|member| &member.authz)
    }

    /// What `workload` accepts. `None` for a workload that is not in this snapshot.
    pub(crate) fn accepted_by(&self, workload: &WorkloadUid) -> Option<&Arc<EffectiveMtls>> {
        self.members.get(workload).map(|member| &member.mtls)
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
    pub fn diagnostics(&self) -> &Arc<Diagnostics> {
        &self.diagnostics
    }

    /// What `workload` accepts on `port`, after inheritance. Only mutual TLS for a workload that is not in this snapshot.
    pub fn mtls_mode(&self, workload: &Workload, port: u16) -> MtlsMode {
        self.mtls_decision(workload, port)
            .map_or(MtlsMode::Strict, |decision| decision.mode)
    }

    /// What `workload` accepts, by default and on the ports that policies name. `None` for a workload that is not in this snapshot.
    pub fn mtls_decisions(&self, workload: &Workload) -> Option<Vec<&Decision>> {
        Some(self.accepted_by(&workload.uid)?.all().collect())
    }

    /// What `workload` accepts on `port`, and which policy says so. `None` for a workload that is not in this snapshot.
    pub fn mtls_decision(&self, workload: &Workload, port: u16) -> Option<&Decision> {
        Some(self.accepted_by(&workload.uid)?.on(port))
    }
}
