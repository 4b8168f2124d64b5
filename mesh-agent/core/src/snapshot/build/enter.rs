//! Enters a changed object in the tables and marks what rests on it, kind by kind. Makes nothing anew.

use std::sync::Arc;

use super::super::endpoints::picks;
use super::super::spaces::PodEntry;
use super::Builder;
use crate::model::{EndpointSlice, Namespace, Node, Object, ObjectRef, Pod, ServiceRef, ServiceSpec};

impl Builder {
    /// Enters a change in the tables and marks what rests on it.
    pub(super) fn enter(&mut self, name: &Arc<ObjectRef>, before: Option<&Object>, after: Option<&Object>) {
        self.stale.spaces.insert(name_of_space(name));
        match before.or(after) {
            None => {}
            Some(Object::Namespace(_)) => self.enter_namespace(name, namespace(after)),
            Some(Object::Node(_)) => self.enter_node(name, node(before), node(after)),
            Some(Object::Pod(_)) => self.enter_pod(name, pod(before), pod(after)),
            Some(Object::Service(_)) => self.enter_service(name, service(before), service(after)),
            Some(Object::EndpointSlice(_)) => self.enter_slice(name, slice(before), slice(after)),
            Some(Object::PeerAuthentication(_)) => {
                let peers = &mut self.space(&name.namespace).peers;
                match after {
                    Some(Object::PeerAuthentication(policy)) => {
                        drop(peers.insert(Arc::clone(name), policy.clone()))
                    }
                    _ => drop(peers.remove(name)),
                }
                self.stale.policies.insert(name.namespace.as_str().into());
            }
            Some(Object::AuthorizationPolicy(_)) => {
                let policies = &mut self.space(&name.namespace).policies;
                match after {
                    Some(Object::AuthorizationPolicy(policy)) => {
                        drop(policies.insert(Arc::clone(name), Arc::clone(policy)))
                    }
                    _ => drop(policies.remove(name)),
                }
                self.stale.policies.insert(name.namespace.as_str().into());
            }
        }
    }

    fn enter_namespace(&mut self, name: &ObjectRef, after: Option<&Namespace>) {
        let space = self.space(&name.name);
        space.known = after.is_some();
        space.wishes = after.map(|namespace| namespace.wishes).unwrap_or_default();
        // A pod that has its own word by our label asks nobody.
        let asking = |entry: &PodEntry| entry.pod.as_ref().is_some_and(|pod| pod.wishes.ours.is_none());
        let asking = space.pods.iter().filter(|(_, entry)| asking(entry));
        let asking: Vec<_> = asking.map(|(name, _)| Arc::clone(name)).collect();
        self.stale.pods.extend(asking);
    }

    fn enter_node(&mut self, name: &ObjectRef, before: Option<&Node>, after: Option<&Node>) {
        let touched = &mut self.stale.addresses;
        for address in after.iter().flat_map(|node| &node.addresses) {
            self.claims.add_node(*address, touched);
        }
        for address in before.iter().flat_map(|node| &node.addresses) {
            self.claims.remove_node(*address, touched);
        }
        let zone = after.and_then(|node| node.zone.as_deref());
        self.zones.set(&name.name, zone, &mut self.stale.zones);
    }

    fn enter_pod(&mut self, name: &Arc<ObjectRef>, before: Option<&Arc<Pod>>, after: Option<&Arc<Pod>>) {
        let space = self.space(&name.namespace);
        space.pods.entry(Arc::clone(name)).or_default().pod = after.cloned();
        after.into_iter().for_each(|pod| space.asks(pod));
        before.into_iter().for_each(|pod| space.asks_no_more(pod));
        let with_slices = |service: &ServiceSpec| space.slices.contains_key(&*service.name.name);
        let derived = space.services.values().filter(|service| {
            let mut versions = before.into_iter().chain(after);
            versions.any(|pod| picks(service, &pod.labels)) && !with_slices(service)
        });
        let derived: Vec<ServiceRef> = derived.map(|service| service.name.clone()).collect();
        self.stale.services.extend(derived);
        self.stale.pods.insert(Arc::clone(name));
        self.enter_mesh(before, after);
    }

    /// Where a part of Istio comes or goes, its label means another thing to all pods of the node. They are looked for everywhere: that
    /// is rare enough.
    fn enter_mesh(&mut self, before: Option<&Arc<Pod>>, after: Option<&Arc<Pod>>) {
        let nodes = self
            .meshes
            .replace(before.map(|pod| &**pod), after.map(|pod| &**pod));
        if nodes.is_empty() {
            return;
        }
        self.stale.meshes |= nodes.contains(&self.made.settings.node_name);
        for (name, entry) in self.spaces.values().flat_map(|space| &space.pods) {
            if entry.pod.as_ref().is_some_and(|pod| nodes.contains(&pod.node)) {
                self.stale.pods.insert(Arc::clone(name));
            }
        }
    }

    fn enter_service(
        &mut self,
        name: &ObjectRef,
        before: Option<&Arc<ServiceSpec>>,
        after: Option<&Arc<ServiceSpec>>,
    ) {
        let space = self.space(&name.namespace);
        match after {
            Some(spec) => drop(
                space
                    .services
                    .insert(Arc::clone(&spec.name.name), Arc::clone(spec)),
            ),
            None => drop(space.services.remove(name.name.as_str())),
        }
        if space.is_target(&name.name) {
            self.stale.policies.insert(name.namespace.as_str().into());
        }
        if let Some(old) = before {
            self.fronts.remove(old, &mut self.stale.addresses);
        }
        if let Some(new) = after {
            self.fronts.add(new, &mut self.stale.addresses);
        }
        self.stale
            .services
            .insert(service_ref(&name.namespace, &name.name));
    }

    fn enter_slice(
        &mut self,
        name: &Arc<ObjectRef>,
        before: Option<&Arc<EndpointSlice>>,
        after: Option<&Arc<EndpointSlice>>,
    ) {
        let told = |slice: Option<&Arc<EndpointSlice>>| slice.cloned().into_iter();
        for slice in told(after) {
            self.zones.tell(&slice, &mut self.stale.zones);
        }
        for slice in told(before) {
            self.zones.take_back(&slice, &mut self.stale.zones);
        }
        let service = |slice: Option<&Arc<EndpointSlice>>| slice.and_then(|slice| slice.service.clone());
        let space = self.space(&name.namespace);
        if let Some(service) = service(before)
            && let Some(slices) = space.slices.get_mut(&service)
        {
            slices.remove(name);
            if slices.is_empty() {
                space.slices.remove(&service);
            }
        }
        if let (Some(service), Some(slice)) = (service(after), after) {
            let slices = space.slices.entry(service).or_default();
            slices.insert(Arc::clone(name), Arc::clone(slice));
        }
        for service in service(before).into_iter().chain(service(after)) {
            self.stale.services.insert(service_ref(&name.namespace, &service));
        }
    }
}

fn name_of_space(name: &ObjectRef) -> Arc<str> {
    let namespace = name.kind == "Namespace";
    let space = if namespace { &name.name } else { &name.namespace };
    space.as_str().into()
}

fn service_ref(namespace: &str, name: &str) -> ServiceRef {
    ServiceRef {
        namespace: namespace.into(),
        name: name.into(),
    }
}

fn namespace(object: Option<&Object>) -> Option<&Namespace> {
    match object {
        Some(Object::Namespace(namespace)) => Some(namespace),
        _ => None,
    }
}

fn node(object: Option<&Object>) -> Option<&Node> {
    match object {
        Some(Object::Node(node)) => Some(node),
        _ => None,
    }
}

/// A pod that has finished has no processes any more.
fn pod(object: Option<&Object>) -> Option<&Arc<Pod>> {
    match object {
        Some(Object::Pod(pod)) if !pod.finished => Some(pod),
        _ => None,
    }
}

fn service(object: Option<&Object>) -> Option<&Arc<ServiceSpec>> {
    match object {
        Some(Object::Service(service)) => Some(service),
        _ => None,
    }
}

fn slice(object: Option<&Object>) -> Option<&Arc<EndpointSlice>> {
    match object {
        Some(Object::EndpointSlice(slice)) => Some(slice),
        _ => None,
    }
}
