//! The immutable view that every decision reads, with its indexes. Built by [`Builder`]-like code from accepted objects; never changed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{MtlsMode, PeerAuthentication, Service, ServiceRef, TrustDomain, Workload, WorkloadUid};

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
    pub(crate) peer_authentications: Vec<PeerAuthentication>,
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
            peer_authentications: Vec::new(),
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

    /// Whether `domain` is the local trust domain or one of its aliases.
    pub fn is_local_trust_domain(&self, domain: &TrustDomain) -> bool {
        *domain == self.settings.trust_domain || self.settings.trust_domain_aliases.contains(domain)
    }

    /// What `workload` accepts on `port`, after inheritance.
    pub fn mtls_mode(&self, _workload: &Workload, _port: u16) -> MtlsMode {
        MtlsMode::Strict // placeholder, fails closed
    }
}
