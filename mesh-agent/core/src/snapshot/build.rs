//! From accepted objects to a snapshot. Deterministic: the same objects in the same order give the same snapshot.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::endpoints::Sources;
use super::meshes::Meshes;
use super::mtls::{Policies, Remark};
use super::policies::Authorization;
use super::{Diagnostics, MeshSettings, NamespaceStanding, Snapshot, addresses, fronts};
use crate::manifest::{Accepted, Notice, NoticeKind, Origin};
use crate::model::{
    AuthorizationPolicy, EndpointSlice, Enrolment, Node, Object, ObjectRef, PeerAuthentication, Pod, Service,
    ServiceSpec, SpiffeId, Wish, Wishes, Workload, WorkloadUid,
};

impl Snapshot {
    /// The snapshot of these objects. Where two have the same kind and name, the first holds and the conflict is reported.
    /// `diagnostics` is what is known of the objects' documents already; what is found here is added.
    pub fn build<'a>(
        settings: MeshSettings,
        version: u64,
        accepted: impl IntoIterator<Item = &'a Accepted>,
        diagnostics: Diagnostics,
    ) -> Self {
        let mut builder = Builder::new(accepted, diagnostics);
        let meshes = Meshes::of(builder.pods.iter().copied(), &settings);
        builder.remarks.extend(meshes.remarks(&settings.node_name));
        let pods = builder.workloads(&settings, &meshes);
        let addresses = addresses::index(&pods, &builder.nodes);
        let policies = Policies::new(
            builder.policies.drain(..).collect(),
            &settings.root_namespace,
            &mut builder.remarks,
        );
        let mut authorization = Authorization::new(
            &builder.authorizations,
            &builder.services,
            &settings.root_namespace,
            &mut builder.remarks,
        );
        let mut authz = HashMap::new();
        let mut mtls = HashMap::new();
        let mut overlaps = BTreeSet::new();
        for (pod, workload) in &pods {
            let effective = policies.effective(&pod.namespace, &pod.labels, &mut overlaps);
            mtls.insert(workload.uid.clone(), Arc::new(effective));
            let applicable = authorization.applicable(&pod.namespace, &pod.labels);
            authz.insert(workload.uid.clone(), applicable);
        }
        builder.remarks.extend(overlaps);
        let zones = builder.zones();
        let services = builder.services(&settings, &zones, |address| {
            addresses.by_address.get(&address).cloned()
        });
        let by_vip = fronts::by_vip(&services, &mut builder.remarks);
        let by_external = fronts::by_external(
            &builder.by_age(&services),
            &by_vip,
            &addresses,
            &mut builder.remarks,
        );
        let is_local = |workload: &Arc<Workload>| workload.node == settings.node_name;
        let by_endpoint = fronts::by_endpoint(&services, |address| {
            addresses.by_address.get(&address).is_some_and(is_local)
        });
        builder.remarks.extend(addresses.remarks);
        Self {
            version,
            workloads: pods
                .into_iter()
                .map(|(_, workload)| (workload.uid.clone(), workload))
                .collect(),
            by_address: addresses.by_address,
            services: services
                .into_iter()
                .map(|service| (service.name.clone(), service))
                .collect(),
            by_vip,
            by_external,
            by_endpoint,
            zones,
            peer_authentications: policies.in_force().cloned().collect(),
            contested: addresses.contested,
            mtls,
            authorization_policies: std::mem::take(&mut builder.authorizations),
            authz,
            other_meshes: meshes.on(&settings.node_name).to_vec(),
            namespaces: builder.namespaces(meshes.istio_label_left(&settings.node_name).is_none()),
            diagnostics: builder.diagnostics(),
            settings,
        }
    }
}

impl Snapshot {
    /// The snapshot of the documents in `yaml`, version 1: for tools and tests that have a text and no source.
    pub fn from_yaml(settings: MeshSettings, yaml: &str) -> Self {
        let contents = crate::manifest::parse("-", yaml.as_bytes());
        let diagnostics = Diagnostics {
            rejections: contents.rejections,
            notices: contents.notices,
        };
        Self::build(settings, 1, &contents.accepted, diagnostics)
    }
}

/// The objects by kind, and what is to be said about them.
struct Builder<'a> {
    origins: HashMap<ObjectRef, &'a Origin>,
    wishes: HashMap<&'a str, Wishes>,
    nodes: Vec<&'a Node>,
    pods: Vec<&'a Pod>,
    services: Vec<&'a ServiceSpec>,
    slices: Vec<&'a EndpointSlice>,
    policies: Vec<PeerAuthentication>,
    authorizations: Vec<Arc<AuthorizationPolicy>>,
    remarks: Vec<Remark>,
    diagnostics: Diagnostics,
}

impl<'a> Builder<'a> {
    fn new(accepted: impl IntoIterator<Item = &'a Accepted>, diagnostics: Diagnostics) -> Self {
        let mut builder = Self {
            origins: HashMap::new(),
            wishes: HashMap::new(),
            nodes: Vec::new(),
            pods: Vec::new(),
            services: Vec::new(),
            slices: Vec::new(),
            policies: Vec::new(),
            authorizations: Vec::new(),
            remarks: Vec::new(),
            diagnostics,
        };
        let mut objects: BTreeMap<ObjectRef, &'a Accepted> = BTreeMap::new();
        for one in accepted {
            let name = one.object.name();
            match objects.get(&name) {
                Some(first) => builder.duplicate(name, first, one),
                None => drop(objects.insert(name, one)),
            }
        }
        for (name, one) in objects {
            builder.diagnostics.notices.extend(one.notices.iter().cloned());
            builder.origins.insert(name, &one.origin);
            match &*one.object {
                Object::Namespace(namespace) => {
                    builder.wishes.insert(&namespace.name, namespace.wishes);
                }
                Object::Node(node) => builder.nodes.push(node),
                Object::Pod(pod) if pod.finished => {}
                Object::Pod(pod) => builder.pods.push(pod),
                Object::Service(service) => builder.services.push(service),
                Object::EndpointSlice(slice) => builder.slices.push(slice),
                Object::PeerAuthentication(policy) => builder.policies.push(policy.clone()),
                Object::AuthorizationPolicy(policy) => builder.authorizations.push(Arc::new(policy.clone())),
            }
        }
        builder
    }

    fn duplicate(&mut self, name: ObjectRef, first: &Accepted, second: &Accepted) {
        self.diagnostics.notices.push(Notice {
            origin: Some(second.origin.clone()),
            object: Some(name),
            kind: NoticeKind::Conflict,
            message: format!(
                "the same object stands in {} already: this one is ignored",
                first.origin
            ),
        });
    }

    /// Where `with_istio` is said, Istio's label counts on this agent's node.
    fn namespaces(&self, with_istio: bool) -> BTreeMap<String, NamespaceStanding> {
        let is_enabled = |wish: Option<Wish>| wish == Some(Wish::Enabled);
        let standing = |(name, wishes): (&&str, &Wishes)| {
            let standing = NamespaceStanding {
                enrolled: is_enabled(wishes.wish(with_istio)),
                mixed: false,
            };
            ((*name).to_owned(), standing)
        };
        let mut all: BTreeMap<String, NamespaceStanding> = self.wishes.iter().map(standing).collect();
        for pod in &self.pods {
            if let (Some(_), Some(namespace)) = (pod.wishes.wish(with_istio), all.get_mut(&pod.namespace)) {
                namespace.mixed |= is_enabled(pod.wishes.wish(with_istio)) != namespace.enrolled;
            }
        }
        all
    }

    fn workloads(&mut self, settings: &MeshSettings, meshes: &Meshes) -> Vec<(&'a Pod, Arc<Workload>)> {
        let mut found = Vec::new();
        for pod in self.pods.clone() {
            let namespace = self
                .wishes
                .get(pod.namespace.as_str())
                .copied()
                .unwrap_or_default();
            let enrolment = enrolment(pod, namespace, meshes);
            let identity = SpiffeId::new(
                settings.trust_domain.clone(),
                &pod.namespace,
                &pod.service_account,
            );
            match identity {
                Ok(identity) => found.push((pod, Arc::new(workload(pod, identity, enrolment)))),
                Err(error) => self.remarks.push((
                    ObjectRef::new("Pod", &pod.namespace, &pod.name),
                    NoticeKind::Ignored,
                    format!("it can have no identity and is no workload: {error}"),
                )),
            }
        }
        found
    }

    /// The zones of nodes: as the Nodes say; of a node that nobody described, as an endpoint on it says.
    fn zones(&self) -> HashMap<Arc<str>, Arc<str>> {
        let mut zones = HashMap::new();
        let endpoints = self.slices.iter().flat_map(|slice| &slice.endpoints);
        let told = endpoints.map(|endpoint| (endpoint.node.as_ref(), endpoint.zone.as_ref()));
        for (node, zone) in told.chain(
            self.nodes
                .iter()
                .map(|node| (Some(&node.name), node.zone.as_ref())),
        ) {
            if let (Some(node), Some(zone)) = (node, zone) {
                zones.insert(Arc::from(node.as_str()), Arc::from(zone.as_str()));
            }
        }
        zones
    }

    fn services(
        &self,
        settings: &MeshSettings,
        zones: &HashMap<Arc<str>, Arc<str>>,
        workload_at: impl Fn(std::net::IpAddr) -> Option<Arc<Workload>>,
    ) -> Vec<Arc<Service>> {
        let sources = Sources::new(self.pods.iter().copied(), self.slices.iter().copied(), zones);
        let real = self.services.iter().filter(|spec| !spec.external_name);
        real.map(|spec| Arc::new(sources.service(spec, &settings.cluster_domain, &workload_at)))
            .collect()
    }

    /// The oldest first; of the same age, as they come.
    fn by_age(&self, services: &[Arc<Service>]) -> Vec<Arc<Service>> {
        let created: HashMap<_, _> = self
            .services
            .iter()
            .map(|spec| (&spec.name, spec.created))
            .collect();
        let mut sorted = services.to_vec();
        sorted.sort_by_key(|service| created.get(&service.name).copied());
        sorted
    }

    fn diagnostics(mut self) -> Diagnostics {
        for (object, kind, message) in self.remarks {
            self.diagnostics.notices.push(Notice {
                origin: self.origins.get(&object).map(|origin| (*origin).clone()),
                object: Some(object),
                kind,
                message,
            });
        }
        self.diagnostics.notices.sort();
        self.diagnostics.rejections.sort();
        self.diagnostics
    }
}

fn enrolment(pod: &Pod, namespace: Wishes, meshes: &Meshes) -> Enrolment {
    let left = meshes.istio_label_left(&pod.node);
    let wish = |with_istio| pod.wishes.wish(with_istio).or(namespace.wish(with_istio));
    match (wish(left.is_none()), &pod.obstacle) {
        (None | Some(Wish::Disabled), _) => match left.filter(|_| wish(true) == Some(Wish::Enabled)) {
            Some(why) => Enrolment::Left(why),
            None => Enrolment::NotEnrolled,
        },
        (Some(Wish::Enabled), Some(obstacle)) => Enrolment::Refused(obstacle.clone()),
        (Some(Wish::Enabled), None) => Enrolment::Enrolled,
    }
}

fn workload(pod: &Pod, identity: SpiffeId, enrolment: Enrolment) -> Workload {
    Workload {
        uid: WorkloadUid::new(&pod.namespace, &pod.name, &pod.uid),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        service_account: pod.service_account.clone(),
        identity,
        node: pod.node.clone(),
        addresses: pod.addresses.clone(),
        host_network: pod.host_network,
        ports: pod.ports.clone(),
        labels: pod.labels.clone(),
        enrolment,
        ready: pod.ready,
        location: pod.location.clone(),
        probe_ports: pod.probe_ports.clone(),
        exclusions: pod.exclusions.clone(),
        owner: pod.owner.clone(),
    }
}
