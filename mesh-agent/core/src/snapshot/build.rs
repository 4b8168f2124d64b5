//! From accepted objects to snapshots: each change costs what depends on it. Deterministic: the same objects give the same snapshot,
//! whichever way they came.
//!
//! [`Builder::set`] enters an object in the tables and marks what rests on it; [`Builder::next`] makes that anew, in an order in which
//! nothing rests on what comes later: policies, workloads, what selects them, zones, addresses, services, fronts.

mod enter;
mod services;
mod workloads;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use super::addresses::Claims;
use super::fronts::Fronts;
use super::meshes::Meshes;
use super::mtls::EffectiveMtls;
use super::remarks::{Remarks, Topic};
use super::spaces::Space;
use super::zones::Zones;
use super::{Diagnostics, MeshSettings, Snapshot};
use crate::authz::Applicable;
use crate::manifest::{Accepted, Origin};
use crate::model::{Enrolment, Object, ObjectRef, Pod, Pool, ServiceRef, SpiffeId, Wish, Wishes, Workload};

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

/// Whether a pod is part of the mesh, and why not.
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
