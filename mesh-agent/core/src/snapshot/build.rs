//! From accepted objects to snapshots: each change costs what depends on it. Deterministic: the same objects give the same snapshot,
//! whichever way they came.
//!
//! [`Builder::set`] enters an object in the tables and marks what rests on it; [`Builder::next`] makes that anew, in an order in which
//! nothing rests on what comes later: policies, workloads, what selects them, zones, addresses, services, fronts.

mod enter;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use super::addresses::Claims;
use super::endpoints::Sources;
use super::fronts::{self, Fronts};
use super::meshes::Meshes;
use super::mtls::{EffectiveMtls, Remark};
use super::remarks::{Remarks, Topic};
use super::spaces::Space;
use super::zones::Zones;
use super::{Diagnostics, Member, MeshSettings, Snapshot};
use crate::authz::Applicable;
use crate::manifest::{Accepted, NoticeKind, Origin};
use crate::model::{
    Enrolment, IdentityError, Object, ObjectRef, Pod, Pool, Service, ServiceRef, SpiffeId, Wish, Wishes,
    Workload, WorkloadUid,
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
        let mut objects: BTreeMap<ObjectRef, Vec<&Accepted>> = BTreeMap::new();
        for one in accepted {
            objects.entry(one.object.name()).or_default().push(one);
        }
        let mut builder = Builder::new(settings);
        builder.documents(diagnostics);
        for (name, versions) in objects {
            builder.set(&Arc::new(name), versions);
        }
        builder.next(version).0
    }

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

/// So many identities may be remembered that no pod has.
const IDENTITIES: usize = 1024;

/// Makes one snapshot after another. What a step costs depends on what has changed and what rests on that, not on how much there is.
#[derive(Debug)]
pub struct Builder {
    /// The snapshot made last, and the next one while it is being made.
    made: Snapshot,
    objects: HashMap<Arc<ObjectRef>, InForce>,
    spaces: BTreeMap<Arc<str>, Space>,
    claims: Claims,
    fronts: Fronts,
    zones: Zones,
    meshes: Meshes,
    /// Addresses that enrolled workloads claim.
    meshed: HashSet<IpAddr>,
    /// The services with endpoints at an address, sorted by name.
    services_at: HashMap<IpAddr, Vec<ServiceRef>>,
    /// ClusterIPs of services that lead to somebody enrolled, by service; and how many services make an address one.
    leading: HashMap<ServiceRef, Vec<IpAddr>>,
    leads: HashMap<IpAddr, usize>,
    identities: HashMap<(String, String), SpiffeId>,
    accepting: Pool<EffectiveMtls>,
    selected: Pool<Applicable>,
    remarks: Remarks,
    stale: Stale,
}

/// The version of an object that holds.
#[derive(Debug)]
struct InForce {
    object: Arc<Object>,
    origin: Origin,
}

/// What is to be made anew.
#[derive(Debug, Default)]
struct Stale {
    /// An object has changed.
    objects: bool,
    /// Namespaces whose policies are to be sorted anew.
    policies: BTreeSet<Arc<str>>,
    pods: BTreeSet<Arc<ObjectRef>>,
    /// Pods for which other policies may count.
    selection: BTreeSet<Arc<ObjectRef>>,
    zones: BTreeSet<Arc<str>>,
    addresses: BTreeSet<IpAddr>,
    services: BTreeSet<ServiceRef>,
    /// Addresses of endpoints.
    ends: BTreeSet<IpAddr>,
    enrolled: BTreeSet<IpAddr>,
    /// What other meshes there are on this node.
    meshes: bool,
    /// Namespaces that may stand otherwise, or be empty.
    spaces: BTreeSet<Arc<str>>,
}

impl Builder {
    /// Of no objects.
    pub fn new(settings: MeshSettings) -> Self {
        Self {
            meshes: Meshes::new(&settings),
            made: Snapshot::empty(settings),
            objects: HashMap::new(),
            spaces: BTreeMap::new(),
            claims: Claims::default(),
            fronts: Fronts::default(),
            zones: Zones::default(),
            meshed: HashSet::new(),
            services_at: HashMap::new(),
            leading: HashMap::new(),
            leads: HashMap::new(),
            identities: HashMap::new(),
            accepting: Pool::default(),
            selected: Pool::default(),
            remarks: Remarks::default(),
            stale: Stale::default(),
        }
    }

    /// What there is to say about documents that gave no object.
    pub fn documents(&mut self, diagnostics: Diagnostics) {
        self.remarks.set_documents(diagnostics);
    }

    /// The versions of the object `name` that its sources have now, of which the first holds; none when it is gone.
    pub fn set<'a>(&mut self, name: &Arc<ObjectRef>, versions: impl IntoIterator<Item = &'a Accepted>) {
        let mut versions = versions.into_iter();
        let first = versions.next();
        self.remarks.set_object(name, first, versions);
        let before = self.objects.remove(name);
        if let (Some(old), Some(new)) = (&before, first) {
            self.remarks.moved(old.origin != new.origin);
        }
        let before = before.map(|old| old.object);
        let same = |new: &Accepted| before.as_ref().filter(|old| **old == new.object).cloned();
        let after = first.map(|new| same(new).unwrap_or_else(|| Arc::clone(&new.object)));
        if let (Some(object), Some(new)) = (&after, first) {
            let in_force = InForce {
                object: Arc::clone(object),
                origin: new.origin.clone(),
            };
            self.objects.insert(Arc::clone(name), in_force);
        }
        let unchanged = match (&before, &after) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if !unchanged {
            self.stale.objects = true;
            self.enter(name, before.as_deref(), after.as_deref());
        }
    }

    /// The snapshot of the objects as they are now, and whether that says anything else than the one before it.
    pub fn next(&mut self, version: u64) -> (Snapshot, bool) {
        self.show_meshes();
        self.sort_policies();
        self.make_workloads();
        self.select();
        self.make_zones();
        self.judge_addresses();
        self.make_services();
        self.make_fronts();
        self.make_endpoints();
        let enrolled = self.make_enrolled();
        self.sweep();
        let origin = |name: &ObjectRef| self.objects.get(name).map(|one| one.origin.clone());
        let diagnostics = self.remarks.diagnostics(origin);
        let news = diagnostics.is_some_and(|found| {
            let differs = found != *self.made.diagnostics;
            if differs {
                self.made.diagnostics = Arc::new(found);
            }
            differs
        });
        let changed = mem::take(&mut self.stale.objects) || news;
        self.made.version = version;
        self.made.recent.push(version, &enrolled);
        (self.made.clone(), changed)
    }

    fn space(&mut self, name: &str) -> &mut Space {
        self.spaces.entry(name.into()).or_default()
    }

    /// Whether Istio's label counts on this node says where all namespaces stand.
    fn show_meshes(&mut self) {
        if mem::take(&mut self.stale.meshes) {
            let node = self.made.settings.node_name.as_str();
            self.made.other_meshes = self.meshes.on(node).into();
            self.remarks.set(Topic::Meshes, self.meshes.remarks(node));
            self.stale.spaces.extend(self.spaces.keys().cloned());
        }
    }

    /// Policies of the root namespace are about everybody.
    fn sort_policies(&mut self) {
        let stale = mem::take(&mut self.stale.policies);
        if stale.is_empty() {
            return;
        }
        let root = self.made.settings.root_namespace.clone();
        for name in &stale {
            let remarks = self.space(name).sort_policies(&root);
            self.remarks.set(Topic::Policies(Arc::clone(name)), remarks);
        }
        let mesh_wide = stale.contains(root.as_str());
        let about = |name: &Arc<str>| mesh_wide || stale.contains(name);
        for (_, space) in self.spaces.iter().filter(|(name, _)| about(name)) {
            self.stale.selection.extend(space.pods.keys().cloned());
        }
        let all = || self.spaces.values();
        self.made.peer_authentications = all().flat_map(|space| space.scoped.in_force()).cloned().collect();
        self.made.authorization_policies = all().flat_map(|space| space.policies.values()).cloned().collect();
    }

    fn make_workloads(&mut self) {
        for name in mem::take(&mut self.stale.pods) {
            let Some(space) = self.spaces.get_mut(name.namespace.as_str()) else {
                continue;
            };
            let Some(entry) = space.pods.get_mut(&name) else {
                continue;
            };
            let before = entry.workload.take();
            let made = entry
                .pod
                .as_ref()
                .map(|pod| -> Result<Arc<Workload>, IdentityError> {
                    let enrolment = enrolment(pod, space.wishes, &self.meshes);
                    let key = (pod.namespace.clone(), pod.service_account.clone());
                    let identity = match self.identities.get(&key) {
                        Some(known) => known.clone(),
                        None => {
                            let domain = self.made.settings.trust_domain.clone();
                            let made = SpiffeId::new(domain, &pod.namespace, &pod.service_account)?;
                            self.identities.insert(key, made.clone());
                            made
                        }
                    };
                    let uid = WorkloadUid::new(&pod.namespace, &pod.name, &pod.uid);
                    let same = |old: &&Arc<Workload>| {
                        Arc::ptr_eq(&old.pod, pod) && old.enrolment == enrolment && old.identity == identity
                    };
                    if let Some(same) = before.as_ref().filter(same) {
                        return Ok(Arc::clone(same));
                    }
                    Ok(Arc::new(Workload {
                        uid,
                        identity,
                        enrolment,
                        pod: Arc::clone(pod),
                    }))
                });
            let (after, remarks) = match made.transpose() {
                Ok(after) => (after, Vec::new()),
                Err(error) => (None, vec![unidentified(&name, &error)]),
            };
            entry.workload = after.clone();
            if entry.pod.is_none() {
                space.pods.remove(&name);
            }
            self.remarks.set(Topic::Pod(Arc::clone(&name)), remarks);
            self.replace_workload(&name, before, after);
        }
    }

    fn replace_workload(
        &mut self,
        name: &Arc<ObjectRef>,
        before: Option<Arc<Workload>>,
        after: Option<Arc<Workload>>,
    ) {
        let touched = &mut self.stale.addresses;
        if let (Some(new), Some(old)) = (&after, &before)
            && Arc::ptr_eq(new, old)
        {
            return;
        }
        if let Some(new) = &after {
            self.claims.add(new, touched);
        }
        if let Some(old) = &before {
            self.claims.remove(old, touched);
            if after.as_ref().is_none_or(|new| new.uid != old.uid) {
                self.made.members.remove(&old.uid);
            }
        }
        let node = self.made.settings.node_name.as_str();
        let is_local = |one: &&Arc<Workload>| one.node == node;
        if before.iter().chain(&after).any(|one| is_local(&one)) {
            let local = Arc::make_mut(&mut self.made.local);
            before.iter().for_each(|old| drop(local.remove(&old.uid)));
            let new = after.as_ref().filter(is_local);
            local.extend(new.map(|new| (new.uid.clone(), Arc::clone(new))));
        }
        self.stale.selection.insert(Arc::clone(name));
    }

    /// Works out which policies count for the pods that may have others now.
    fn select(&mut self) {
        let nothing = Space::default();
        let root = self.spaces.get(self.made.settings.root_namespace.as_str());
        let root = root.unwrap_or(&nothing);
        for name in mem::take(&mut self.stale.selection) {
            let mut remarks = Vec::new();
            let space = self.spaces.get(name.namespace.as_str()).unwrap_or(&nothing);
            let entry = space.pods.get(&name);
            if let Some(workload) = entry.and_then(|entry| entry.workload.as_ref()) {
                let labels = &workload.labels;
                let mtls = space.scoped.effective(root.scoped.whole(), labels, &mut remarks);
                let authz = space.selection.applicable(&root.selection.mesh, labels);
                let member = Member {
                    workload: Arc::clone(workload),
                    mtls: self.accepting.one(mtls.into()),
                    authz: self.selected.one(authz.into()),
                };
                self.made.members.insert(workload.uid.clone(), member);
            }
            self.remarks.set(Topic::Overlaps(name), remarks);
        }
    }

    /// A node that stands elsewhere: its endpoints are looked for everywhere, which is rare enough.
    fn make_zones(&mut self) {
        let mut moved = BTreeSet::new();
        for node in mem::take(&mut self.stale.zones) {
            let zone = self.zones.of(&node);
            if zone.as_ref() != self.made.zones.get(&node) {
                self.made.zones.set(Arc::clone(&node), zone);
                moved.insert(node);
            }
        }
        if moved.is_empty() {
            return;
        }
        for service in self.made.services.values() {
            let mut nodes = service
                .endpoints
                .values()
                .flatten()
                .filter_map(|e| e.node.as_ref());
            if nodes.any(|node| moved.contains(node)) {
                self.stale.services.insert(service.name.clone());
            }
        }
    }

    fn judge_addresses(&mut self) {
        for address in &self.stale.addresses {
            let outcome = self.claims.judge(*address);
            let before = self.made.by_address.get(address);
            let shown = |one: Option<&Arc<Workload>>| one.map(|w| (w.uid.clone(), w.node.clone()));
            let enrolled = self.claims.is_enrolled(*address);
            let known = self.meshed.contains(address);
            if shown(before) != shown(outcome.owner.as_ref()) || enrolled != known {
                let services = self.services_at.get(address).into_iter().flatten();
                self.stale.services.extend(services.cloned());
                self.stale.ends.insert(*address);
            }
            if enrolled != known {
                match enrolled {
                    true => self.meshed.insert(*address),
                    false => self.meshed.remove(address),
                };
                self.stale.enrolled.insert(*address);
            }
            self.made.by_address.set(*address, outcome.owner);
            let contested = outcome.contested.map(Arc::new);
            self.made.contested.set(*address, contested);
            self.remarks.set(Topic::Address(*address), outcome.remarks);
        }
    }

    fn make_services(&mut self) {
        for name in mem::take(&mut self.stale.services) {
            let made = self.service(&name);
            let before = self.made.services.get(&name).cloned();
            if before.as_deref() != made.as_ref() {
                let ends = |service: Option<&Service>| -> BTreeSet<IpAddr> {
                    let endpoints = service.into_iter().flat_map(|s| s.endpoints.values().flatten());
                    endpoints.map(|endpoint| endpoint.address.ip()).collect()
                };
                let (old, new) = (ends(before.as_deref()), ends(made.as_ref()));
                for address in old.difference(&new) {
                    if let Some(services) = self.services_at.get_mut(address) {
                        services.retain(|one| *one != name);
                        if services.is_empty() {
                            self.services_at.remove(address);
                        }
                    }
                }
                for address in new.difference(&old) {
                    let services = self
                        .services_at
                        .entry(*address)
                        .or_insert_with(|| Vec::with_capacity(1));
                    let at = services.partition_point(|one| *one < name);
                    services.insert(at, name.clone());
                }
                self.stale.ends.extend(old);
                self.stale.ends.extend(new);
                self.made.services.set(name.clone(), made.map(Arc::new));
            }
            self.lead(&name);
        }
    }

    fn service(&self, name: &ServiceRef) -> Option<Service> {
        let space = self.spaces.get(&name.namespace)?;
        let spec = space
            .services
            .get(&name.name)
            .filter(|spec| !spec.external_name)?;
        let sources = Sources {
            pods: space.live(),
            slices: space.slices.get(&*name.name),
            workload_at: |address| self.made.by_address.get(&address).cloned(),
            zone_of: |node: &str| self.made.zones.get(node).cloned(),
            cluster_domain: &self.made.settings.cluster_domain,
        };
        Some(sources.service(spec))
    }

    /// Keeps the ClusterIPs of a service that leads to somebody enrolled.
    fn lead(&mut self, name: &ServiceRef) {
        let meshed = |service: &&Arc<Service>| {
            let mut endpoints = service.endpoints.values().flatten();
            endpoints.any(|endpoint| self.meshed.contains(&endpoint.address.ip()))
        };
        let service = self.made.services.get(name).filter(meshed);
        let new = service.map_or(Vec::new(), |service| service.vips.clone());
        for vip in &new {
            *self.leads.entry(*vip).or_default() += 1;
            self.stale.enrolled.insert(*vip);
        }
        let old = match new.is_empty() {
            true => self.leading.remove(name),
            false => self.leading.insert(name.clone(), new),
        };
        for vip in old.into_iter().flatten() {
            let count = self.leads.entry(vip).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.leads.remove(&vip);
            }
            self.stale.enrolled.insert(vip);
        }
    }

    fn make_fronts(&mut self) {
        for address in mem::take(&mut self.stale.addresses) {
            let pod = self.made.by_address.get(&address);
            let leads = self.fronts.judge(address, &self.claims, pod);
            self.made.by_vip.set(address, leads.vip);
            let external = (!leads.external.is_empty()).then(|| Arc::new(leads.external));
            self.made.by_external.set(address, external);
            self.remarks.set(Topic::Front(address), leads.remarks);
        }
    }

    fn make_endpoints(&mut self) {
        for address in mem::take(&mut self.stale.ends) {
            let owner = self.made.by_address.get(&address);
            let local = owner.is_some_and(|owner| owner.node == self.made.settings.node_name);
            let names = self.services_at.get(&address).filter(|_| local);
            let services = names
                .into_iter()
                .flatten()
                .filter_map(|name| self.made.services.get(name));
            let behind = fronts::behind(address, services);
            let behind = (!behind.is_empty()).then(|| Arc::new(behind));
            self.made.by_endpoint.set(address, behind);
        }
    }

    /// Returns the addresses that were not enrolled before, or are not any more.
    fn make_enrolled(&mut self) -> BTreeSet<IpAddr> {
        let mut touched = mem::take(&mut self.stale.enrolled);
        touched.retain(|address| {
            let enrolled = self.meshed.contains(address) || self.leads.contains_key(address);
            let before = self.made.enrolled.contains_key(address);
            self.made.enrolled.set(*address, enrolled.then_some(()));
            enrolled != before
        });
        touched
    }

    /// Says where namespaces stand, and forgets those of which nothing is left.
    fn sweep(&mut self) {
        let with_istio = !self.made.istio_label_left();
        for name in mem::take(&mut self.stale.spaces) {
            let standing = self
                .spaces
                .get(&name)
                .and_then(|space| space.standing(with_istio));
            if self.made.namespaces.get(&*name) != standing.as_ref() {
                let all = Arc::make_mut(&mut self.made.namespaces);
                match standing {
                    Some(standing) => drop(all.insert(name.to_string(), standing)),
                    None => drop(all.remove(&*name)),
                }
            }
            if self.spaces.get(&name).is_some_and(Space::is_empty) {
                self.spaces.remove(&name);
            }
        }
        if self.identities.len() > IDENTITIES + 2 * self.made.members.len() {
            self.identities.clear();
        }
    }
}

fn unidentified(name: &ObjectRef, error: &IdentityError) -> Remark {
    let message = format!("it can have no identity and is no workload: {error}");
    (name.clone(), NoticeKind::Ignored, message)
}

pub(super) fn enrolment(pod: &Pod, namespace: Wishes, meshes: &Meshes) -> Enrolment {
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
