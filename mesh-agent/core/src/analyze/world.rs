//! The documents side by side: the snapshot that they make, and the objects as written.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use super::{Documents, Known, Named};
use crate::manifest::{Accepted, Path};
use crate::model::{
    AuthorizationPolicy, EndpointSlice, Namespace, Object, ObjectRef, PeerAuthentication, Pod, ServiceSpec,
    Wish, Workload, WorkloadUid,
};
use crate::plan::AllowedExclusions;
use crate::snapshot::{Diagnostics, Meshes, Snapshot};

/// A pod that runs, or that a document makes.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) named: Named<'a>,
    pub(super) pod: &'a Pod,
    pub(super) workload: Arc<Workload>,
    pub(super) mesh: Mesh,
}

/// Whether a pod is part of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mesh {
    In,
    Out,
    /// Its namespace's labels decide, and that is not among the documents.
    Unknown,
}

pub(super) struct World<'a> {
    pub(super) known: Known,
    pub(super) allowed: AllowedExclusions,
    pub(super) snapshot: Snapshot,
    pub(super) members: Vec<Member<'a>>,
    pub(super) namespaces: BTreeMap<&'a str, (Named<'a>, &'a Namespace)>,
    pub(super) services: Vec<(Named<'a>, &'a ServiceSpec)>,
    pub(super) slices: Vec<(Named<'a>, &'a EndpointSlice)>,
    pub(super) authorizations: Vec<(Named<'a>, &'a AuthorizationPolicy)>,
    pub(super) authentications: Vec<(Named<'a>, &'a PeerAuthentication)>,
    pub(super) meshes: Meshes,
    /// By namespace, places in `members`.
    by_namespace: HashMap<&'a str, Vec<usize>>,
    /// Namespaces that objects are in.
    inhabited: BTreeSet<&'a str>,
    /// Pods that are shown as what made them.
    owners: HashMap<ObjectRef, ObjectRef>,
    rejected: HashSet<ObjectRef>,
}

impl<'a> World<'a> {
    pub(super) fn new(documents: Documents<'a>) -> Self {
        let Documents {
            settings,
            allowed,
            known,
            accepted,
            templates,
            diagnostics,
        } = documents;
        let rejected = diagnostics.rejections.iter().filter_map(|one| one.object.clone());
        let rejected = rejected.collect();
        let all = accepted
            .iter()
            .chain(templates.iter().map(|template| &template.pod));
        let snapshot = Snapshot::build(settings, 1, all, diagnostics);
        let mut world = Self {
            known,
            allowed,
            meshes: Meshes::default(),
            snapshot,
            members: Vec::new(),
            namespaces: BTreeMap::new(),
            services: Vec::new(),
            slices: Vec::new(),
            authorizations: Vec::new(),
            authentications: Vec::new(),
            by_namespace: HashMap::new(),
            inhabited: BTreeSet::new(),
            owners: HashMap::new(),
            rejected,
        };
        let mut seen = HashSet::new();
        let mut pods = Vec::new();
        for one in accepted {
            if seen.insert(one.object.name()) {
                world.sort(one, &mut pods);
            }
        }
        for template in templates {
            let Object::Pod(pod) = &*template.pod.object else {
                continue;
            };
            world
                .owners
                .insert(template.pod.object.name(), template.owner.clone());
            let named = Named {
                name: template.owner.clone(),
                origin: &template.pod.origin,
                path: template.path.clone(),
            };
            pods.push((named, &**pod));
        }
        world.meshes = Meshes::of(pods.iter().map(|(_, pod)| *pod), world.snapshot.settings());
        world.add_members(pods);
        world
    }

    fn sort(&mut self, one: &'a Accepted, pods: &mut Vec<(Named<'a>, &'a Pod)>) {
        let named = Named {
            name: one.object.name(),
            origin: &one.origin,
            path: Path::default(),
        };
        match &*one.object {
            Object::Namespace(namespace) => drop(self.namespaces.insert(&namespace.name, (named, namespace))),
            Object::Node(_) => {}
            Object::Pod(pod) if pod.finished => {}
            Object::Pod(pod) => {
                let own = ObjectRef::new(&pod.owner.kind, &pod.namespace, &pod.owner.name);
                self.owners.insert(one.object.name(), own.clone());
                pods.push((Named { name: own, ..named }, pod));
            }
            Object::Service(service) => {
                self.inhabited.insert(&service.name.namespace);
                self.services.push((named, service));
            }
            Object::EndpointSlice(slice) => self.slices.push((named, slice)),
            Object::PeerAuthentication(policy) => self.authentications.push((named, policy)),
            Object::AuthorizationPolicy(policy) => self.authorizations.push((named, policy)),
        }
    }

    fn add_members(&mut self, pods: Vec<(Named<'a>, &'a Pod)>) {
        for (named, pod) in pods {
            self.inhabited.insert(&pod.namespace);
            let uid = WorkloadUid::new(&pod.namespace, &pod.name, &pod.uid);
            let Some(workload) = self.snapshot.workload(&uid).cloned() else {
                continue;
            };
            let mesh = self.mesh(pod, &workload);
            let place = self.members.len();
            self.by_namespace.entry(&pod.namespace).or_default().push(place);
            self.members.push(Member {
                named,
                pod,
                workload,
                mesh,
            });
        }
    }

    fn mesh(&self, pod: &Pod, workload: &Workload) -> Mesh {
        let said = pod.wishes.wish(true) == Some(Wish::Disabled);
        let certain = self.known.everything || said || self.namespaces.contains_key(pod.namespace.as_str());
        match &workload.enrolment {
            enrolment if enrolment.is_enrolled() => Mesh::In,
            crate::model::Enrolment::NotEnrolled if !certain => Mesh::Unknown,
            _ => Mesh::Out,
        }
    }

    pub(super) fn diagnostics(&self) -> &Diagnostics {
        self.snapshot.diagnostics()
    }

    /// What an object is called for people: a pod as what made it.
    pub(super) fn shown(&self, object: &ObjectRef) -> ObjectRef {
        self.owners.get(object).unwrap_or(object).clone()
    }

    /// The pods of a namespace.
    pub(super) fn of_namespace<'s>(&'s self, namespace: &str) -> impl Iterator<Item = &'s Member<'a>> {
        let places = self.by_namespace.get(namespace).into_iter().flatten();
        places.filter_map(|place| self.members.get(*place))
    }

    /// The pods of a namespace with these labels.
    pub(super) fn selected<'s>(
        &'s self,
        namespace: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<&'s Member<'a>> {
        self.of_namespace(namespace)
            .filter(|member| {
                let has = |(key, value): (&String, &String)| member.pod.labels.get(key) == Some(value);
                labels.iter().all(has)
            })
            .collect()
    }

    /// Whether it can be said that something selects nothing in `namespace`: all is known, or there is something that could be selected.
    pub(super) fn can_miss(&self, namespace: &str) -> bool {
        self.known.everything || self.of_namespace(namespace).next().is_some()
    }

    /// Whether anything tells of that namespace.
    pub(super) fn knows_namespace(&self, name: &str) -> bool {
        let object = ObjectRef::new("Namespace", "", name);
        self.namespaces.contains_key(name) || self.inhabited.contains(name) || self.rejected.contains(&object)
    }

    /// Whether the object is there and not in force.
    pub(super) fn is_rejected(&self, object: &ObjectRef) -> bool {
        self.rejected.contains(object)
    }
}

/// Whether there are some, and all are outside of the mesh for certain.
pub(super) fn all_out(members: &[&Member<'_>]) -> bool {
    !members.is_empty() && members.iter().all(|member| member.mesh == Mesh::Out)
}
