//! The objects, and what they come to, kind by kind.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::super::MeshSettings;
use super::super::build::enrolment;
use super::super::meshes::Meshes;
use super::{PORTS, Plain};
use crate::manifest::{Notice, NoticeKind};
use crate::model::{
    AuthorizationPolicy, Endpoint, EndpointSlice, ExternalKind, IpFamily, MtlsMode, Node, ObjectRef,
    PeerAuthentication, Pod, PortSpec, Scope, ServiceRef, ServiceSpec, TargetPort, Wish, Wishes, WorkloadUid,
};

/// The objects that hold, by kind, sorted by name.
#[derive(Default)]
pub(super) struct World<'a> {
    pub(super) wishes: BTreeMap<&'a str, Wishes>,
    pub(super) nodes: Vec<&'a Node>,
    pub(super) pods: Vec<&'a Pod>,
    pub(super) services: Vec<&'a ServiceSpec>,
    pub(super) slices: Vec<&'a EndpointSlice>,
    pub(super) peers: Vec<&'a PeerAuthentication>,
    pub(super) policies: Vec<&'a AuthorizationPolicy>,
    pub(super) notices: Vec<Notice>,
    pub(super) remarks: Vec<(ObjectRef, NoticeKind, String)>,
    pub(super) overlaps: Vec<(ObjectRef, NoticeKind, String)>,
}

fn uid(pod: &Pod) -> String {
    let name = format!("{}/{}", pod.namespace, pod.name);
    if pod.uid.is_empty() {
        name
    } else {
        format!("{name}/{}", pod.uid)
    }
}

fn has(labels: &BTreeMap<String, String>, selector: &BTreeMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn of_pod(pod: &Pod) -> ObjectRef {
    ObjectRef::new("Pod", &pod.namespace, &pod.name)
}

impl World<'_> {
    pub(super) fn plain(&mut self, settings: &MeshSettings) -> Plain {
        let mut plain = Plain::default();
        let is_name = |text: &str| {
            text.bytes()
                .all(|c| matches!(c, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-'))
        };
        let known: Vec<&Pod> = self
            .pods
            .iter()
            .copied()
            .filter(|pod| is_name(&pod.service_account))
            .collect();
        assert_eq!(known.len(), self.pods.len(), "the fixtures' pods have identities");
        let meshes = Meshes::of(self.pods.iter().copied(), settings);
        for pod in &known {
            let namespace = self.wishes.get(pod.namespace.as_str()).copied();
            let wishes: Wishes = namespace.unwrap_or_default();
            let identity = format!(
                "spiffe://{}/ns/{}/sa/{}",
                settings.trust_domain.as_str(),
                pod.namespace,
                pod.service_account
            );
            let local = pod.node == settings.node_name;
            let shown = (identity, enrolment(pod, wishes, &meshes), pod.node.clone(), local);
            plain.workloads.insert(uid(pod), shown);
        }
        let with_istio = meshes.istio_label_left(&settings.node_name).is_none();
        self.remarks.extend(meshes.remarks(&settings.node_name));
        for (name, wishes) in &self.wishes {
            let enrolled = wishes.wish(with_istio) == Some(Wish::Enabled);
            let own = self.pods.iter().filter(|pod| pod.namespace == *name);
            let mixed = own
                .filter_map(|pod| pod.wishes.wish(with_istio))
                .any(|wish| (wish == Wish::Enabled) != enrolled);
            plain.namespaces.insert((*name).to_owned(), (enrolled, mixed));
        }
        self.addresses(&mut plain);
        self.mtls(settings, &mut plain);
        self.authz(settings, &mut plain);
        for (node, zone) in self.zones() {
            plain.zones.insert(node, zone);
        }
        let real: Vec<&ServiceSpec> = self
            .services
            .iter()
            .copied()
            .filter(|spec| !spec.external_name)
            .collect();
        let services: Vec<(&ServiceSpec, BTreeMap<u16, Vec<Endpoint>>)> = real
            .iter()
            .map(|spec| (*spec, self.endpoints(spec, &plain)))
            .collect();
        self.fronts(&services, &mut plain);
        for (spec, endpoints) in services {
            let hostname = format!(
                "{}.{}.svc.{}",
                spec.name.name, spec.name.namespace, settings.cluster_domain
            );
            for endpoint in endpoints.values().flatten() {
                let owner = plain.by_address.get(&endpoint.address.ip());
                if owner.is_some_and(|owner| plain.workloads[owner].3) {
                    let behind = plain.by_endpoint.entry(endpoint.address).or_default();
                    if !behind.contains(&spec.name) {
                        behind.push(spec.name.clone());
                    }
                }
            }
            let meshed = |pod: &&Pod| plain.workloads[&uid(pod)].1.is_enrolled();
            let addresses: BTreeSet<IpAddr> = known
                .iter()
                .copied()
                .filter(meshed)
                .flat_map(|pod| pod.addresses.clone())
                .collect();
            if endpoints
                .values()
                .flatten()
                .any(|one| addresses.contains(&one.address.ip()))
            {
                plain.enrolled.extend(&spec.vips);
            }
            let shown = |all: &Vec<Endpoint>| all.iter().map(|one| format!("{one:?}")).collect();
            let shown = endpoints.iter().map(|(port, all)| (*port, shown(all))).collect();
            plain
                .services
                .insert(spec.name.clone(), (hostname, spec.vips.clone(), shown));
        }
        for pod in &known {
            if plain.workloads[&uid(pod)].1.is_enrolled() {
                plain.enrolled.extend(&pod.addresses);
            }
        }
        plain
    }

    fn node_addresses(&self) -> BTreeSet<IpAddr> {
        let mut all: BTreeSet<IpAddr> = self
            .nodes
            .iter()
            .flat_map(|node| node.addresses.clone())
            .collect();
        for pod in &self.pods {
            all.extend(&pod.node_addresses);
            if pod.host_network {
                all.extend(&pod.addresses);
            }
        }
        all
    }

    fn claims(&self) -> BTreeMap<IpAddr, Vec<&Pod>> {
        let mut claims: BTreeMap<IpAddr, Vec<&Pod>> = BTreeMap::new();
        for pod in self.pods.iter().filter(|pod| !pod.host_network) {
            for address in &pod.addresses {
                claims.entry(*address).or_default().push(pod);
            }
        }
        claims
    }

    fn addresses(&mut self, plain: &mut Plain) {
        let nodes = self.node_addresses();
        let mut remarks = Vec::new();
        for (address, claimants) in self.claims() {
            let enrolled = |pod: &&&Pod| plain.workloads[&uid(pod)].1.is_enrolled();
            let any_enrolled = claimants.iter().filter(enrolled).count() > 0;
            let live: Vec<&Pod> = claimants.iter().copied().filter(|pod| !pod.terminating).collect();
            let owner = match (claimants.as_slice(), live.as_slice()) {
                ([only], _) => Some(*only),
                (_, [only]) if enrolled(&only) || !any_enrolled => Some(*only),
                _ => None,
            };
            if let (Some(owner), false) = (owner, nodes.contains(&address)) {
                plain.by_address.insert(address, uid(owner));
                continue;
            }
            let names: Vec<ObjectRef> = claimants.iter().copied().map(of_pod).collect();
            let outcome = if any_enrolled {
                "it leads to no workload, and connections to it are refused, for an enrolled one is among them"
            } else {
                "it leads to no workload"
            };
            for name in &names {
                let others = names
                    .iter()
                    .filter(|other| *other != name)
                    .map(ToString::to_string);
                let with = match nodes.contains(&address) {
                    true => "a node".to_owned(),
                    false => others.collect::<Vec<_>>().join(", "),
                };
                let message = format!("address {address} is shared with {with}: {outcome}");
                remarks.push((name.clone(), NoticeKind::Conflict, message));
            }
            if any_enrolled {
                plain.contested.insert(address, (names, nodes.contains(&address)));
            }
        }
        self.remarks.extend(remarks);
    }

    fn mtls(&mut self, settings: &MeshSettings, plain: &mut Plain) {
        let mut sorted = self.peers.clone();
        sorted.sort_by_key(|policy| (policy.created, &policy.namespace, &policy.name));
        let name = |p: &PeerAuthentication| ObjectRef::new("PeerAuthentication", &p.namespace, &p.name);
        let shadowed = |policy: &PeerAuthentication, older: &PeerAuthentication, scope: &str| {
            let older = name(older);
            let message =
                format!("{older} holds for {scope}, for it is older (or comes first by name): ignored there");
            (name(policy), NoticeKind::Conflict, message)
        };
        let root = &settings.root_namespace;
        let mut wide: BTreeMap<&str, PeerAuthentication> = BTreeMap::new();
        let mut narrow: Vec<&PeerAuthentication> = Vec::new();
        for policy in sorted {
            let in_root = policy.namespace == *root;
            match (&policy.scope, wide.get(policy.namespace.as_str())) {
                (Scope::Workload(_), _) if in_root => self.remarks.push((
                    name(policy),
                    NoticeKind::Ignored,
                    format!("a policy of the root namespace {root} holds for the whole mesh and may have no selector: ignored"),
                )),
                (Scope::Workload(_), _) => narrow.push(policy),
                (_, Some(older)) => {
                    let scope = if in_root { "the mesh" } else { "its namespace" };
                    self.remarks.push(shadowed(policy, older, scope));
                }
                (_, None) => {
                    let scope = if in_root { Scope::Mesh } else { Scope::Namespace };
                    let scoped = PeerAuthentication {
                        scope,
                        ..policy.clone()
                    };
                    wide.insert(&policy.namespace, scoped);
                }
            }
        }
        plain.peers = wide
            .values()
            .chain(narrow.iter().copied())
            .map(|p| format!("{p:?}"))
            .collect();
        for pod in &self.pods {
            let picks = |p: &&&PeerAuthentication| match &p.scope {
                Scope::Workload(labels) => p.namespace == pod.namespace && has(&pod.labels, labels),
                _ => false,
            };
            let selecting: Vec<&PeerAuthentication> = narrow.iter().filter(picks).copied().collect();
            let own = selecting.first().copied();
            for younger in selecting.iter().skip(1) {
                let scope = "a workload that both select";
                self.overlaps.extend(own.map(|own| shadowed(younger, own, scope)));
            }
            let scopes = [wide.get(root.as_str()), wide.get(pod.namespace.as_str()), own];
            for port in PORTS {
                let mut holds = (MtlsMode::Permissive, None);
                for policy in scopes.into_iter().flatten() {
                    holds = policy.mode.map_or(holds, |mode| (mode, Some(name(policy))));
                }
                if let Some((own, Some(mode))) = own.and_then(|own| Some((own, *own.ports.get(&port)?))) {
                    holds = (mode, Some(name(own)));
                }
                plain.mtls.insert((uid(pod), port), holds);
            }
        }
    }

    fn authz(&mut self, settings: &MeshSettings, plain: &mut Plain) {
        plain.policies = self
            .policies
            .iter()
            .map(|policy| policy.object().to_string())
            .collect();
        let mut selected: BTreeMap<String, BTreeSet<String>> =
            self.pods.iter().map(|pod| (uid(pod), BTreeSet::new())).collect();
        for policy in &self.policies {
            let mut selectors = Vec::new();
            for target in policy.services.iter().flatten() {
                let services = self.services.iter();
                let mut named =
                    services.filter(|s| *s.name.namespace == *policy.namespace && *s.name.name == **target);
                match named.next().filter(|service| !service.selector.is_empty()) {
                    Some(service) => selectors.push(&service.selector),
                    None => self.remarks.push((
                        policy.object(),
                        NoticeKind::Ignored,
                        format!(
                            "it targets Service {}/{target}, which does not exist or has no selector: it selects no workload there",
                            policy.namespace
                        ),
                    )),
                }
            }
            if policy.services.is_none() {
                selectors.push(&policy.selector);
            }
            let everywhere = policy.namespace == settings.root_namespace && policy.services.is_none();
            for pod in self
                .pods
                .iter()
                .filter(|pod| everywhere || pod.namespace == policy.namespace)
            {
                if selectors.iter().any(|selector| has(&pod.labels, selector)) {
                    selected
                        .entry(uid(pod))
                        .or_default()
                        .insert(policy.object().to_string());
                }
            }
        }
        plain.authz = selected;
    }

    fn zones(&self) -> BTreeMap<String, String> {
        let mut zones: BTreeMap<String, String> = BTreeMap::new();
        for endpoint in self.slices.iter().flat_map(|slice| &slice.endpoints) {
            if let (Some(node), Some(zone)) = (&endpoint.node, &endpoint.zone) {
                let known = zones.entry(node.to_string()).or_insert(zone.to_string());
                if **zone < **known {
                    *known = zone.to_string();
                }
            }
        }
        let described = self
            .nodes
            .iter()
            .filter_map(|node| Some((node.name.clone(), node.zone.clone()?)));
        zones.extend(described);
        zones
    }

    fn endpoints(&self, spec: &ServiceSpec, plain: &Plain) -> BTreeMap<u16, Vec<Endpoint>> {
        let owned = |slice: &&&EndpointSlice| {
            *slice.namespace == *spec.name.namespace && slice.service.as_deref() == Some(&*spec.name.name)
        };
        let slices: Vec<&EndpointSlice> = self.slices.iter().filter(owned).copied().collect();
        let mut all = BTreeMap::new();
        for port in &spec.ports {
            let mut found = match slices.is_empty() {
                true => self.derived(spec, port),
                false => listed(&slices, port),
            };
            for endpoint in &mut found {
                if let Some(uid) = plain.by_address.get(&endpoint.address.ip()) {
                    let (_, _, node, _) = &plain.workloads[uid];
                    if endpoint.node.is_none() && !node.is_empty() {
                        endpoint.node = Some(node.as_str().into());
                    }
                    let mut parts = uid.splitn(3, '/');
                    let (namespace, name) = (parts.next().unwrap(), parts.next().unwrap());
                    let pod_uid = parts.next().unwrap_or_default();
                    endpoint.workload = Some(WorkloadUid::new(namespace, name, pod_uid));
                }
                if let (None, Some(node)) = (&endpoint.zone, &endpoint.node) {
                    endpoint.zone = plain.zones.get(&**node).map(|zone| zone.as_str().into());
                }
            }
            found.sort_by_key(|one| (one.address, !one.ready, !one.serving));
            found.dedup_by_key(|one| one.address);
            all.insert(port.port, found);
        }
        all
    }

    fn derived(&self, spec: &ServiceSpec, port: &PortSpec) -> Vec<Endpoint> {
        let mut found = Vec::new();
        let picked = |pod: &&&Pod| {
            *pod.namespace == *spec.name.namespace
                && !spec.selector.is_empty()
                && has(&pod.labels, &spec.selector)
        };
        for pod in self.pods.iter().filter(picked) {
            let target = match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(name) => pod.ports.get(name).copied(),
            };
            for family in [IpFamily::V4, IpFamily::V6] {
                let served = match &spec.families {
                    Some(families) => families.contains(&family),
                    None => spec.vips.is_empty() || spec.vips.iter().any(|vip| IpFamily::of(*vip) == family),
                };
                let address = pod
                    .addresses
                    .iter()
                    .find(|address| IpFamily::of(**address) == family);
                let (Some(address), Some(target), true) = (address, target, served) else {
                    continue;
                };
                let serving = pod.ready || spec.publish_not_ready;
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

    fn fronts(&mut self, services: &[(&ServiceSpec, BTreeMap<u16, Vec<Endpoint>>)], plain: &mut Plain) {
        let object = |name: &ServiceRef| ObjectRef::new("Service", &name.namespace, &name.name);
        for (spec, _) in services {
            for vip in &spec.vips {
                match plain.by_vip.get(vip) {
                    None => drop(plain.by_vip.insert(*vip, spec.name.clone())),
                    Some(holder) => {
                        let message =
                            format!("clusterIP {vip} belongs to Service {holder} already: ignored here");
                        self.remarks
                            .push((object(&spec.name), NoticeKind::Conflict, message));
                    }
                }
            }
        }
        let (nodes, pods) = (self.node_addresses(), self.claims());
        let mut by_age: Vec<&ServiceSpec> = services.iter().map(|(spec, _)| *spec).collect();
        by_age.sort_by_key(|spec| spec.created);
        let mut remarks = Vec::new();
        for spec in by_age {
            for external in &spec.external {
                let address = external.address;
                let kind = match external.kind {
                    ExternalKind::ExternalIp => "externalIP",
                    ExternalKind::LoadBalancer => "load-balancer address",
                };
                let owner = match plain.by_vip.get(&address) {
                    Some(own) if *own == spec.name => continue,
                    Some(other) => Some(format!("the clusterIP of Service {other}")),
                    None if nodes.contains(&address) => Some("an address of a node".to_owned()),
                    None if pods.contains_key(&address) => Some(match plain.by_address.get(&address) {
                        None => "an address that pods claim".to_owned(),
                        Some(uid) => {
                            let name: Vec<&str> = uid.splitn(3, '/').take(2).collect();
                            format!("the address of Pod {}", name.join("/"))
                        }
                    }),
                    None => None,
                };
                if let Some(owner) = owner {
                    let message =
                        format!("{kind} {address} is {owner}: it leads there and not to this service");
                    remarks.push((object(&spec.name), NoticeKind::Conflict, message));
                    continue;
                }
                for port in spec.ports.iter().map(|port| port.port) {
                    let holder = plain.by_external.entry(SocketAddr::new(address, port));
                    let holder = holder.or_insert(spec.name.clone());
                    if *holder != spec.name {
                        let message = format!(
                            "{kind} {address}, port {port}, belongs to Service {holder} already, which is older (or comes first by \
                             name): ignored here"
                        );
                        remarks.push((object(&spec.name), NoticeKind::Conflict, message));
                    }
                }
            }
        }
        self.remarks.extend(remarks);
    }
}

fn listed(slices: &[&EndpointSlice], port: &PortSpec) -> Vec<Endpoint> {
    let mut found = Vec::new();
    for slice in slices {
        for (_, target) in slice.ports.iter().filter(|(name, _)| *name == port.name) {
            for one in &slice.endpoints {
                found.push(Endpoint {
                    address: SocketAddr::new(one.address, *target),
                    workload: None,
                    ready: one.ready,
                    serving: one.serving,
                    terminating: one.terminating,
                    node: one.node.clone(),
                    zone: one.zone.clone(),
                    for_nodes: one.for_nodes.clone(),
                    for_zones: one.for_zones.clone(),
                });
            }
        }
    }
    found
}
