//! Services made anew: their endpoints, and what is known by the addresses of these.

use std::collections::BTreeSet;
use std::mem;
use std::net::IpAddr;
use std::sync::Arc;

use super::super::endpoints::Sources;
use super::super::fronts;
use super::Builder;
use crate::model::{Service, ServiceRef};

impl Builder {
    /// A node that stands elsewhere: its endpoints are looked for everywhere, which is rare enough.
    pub(super) fn make_zones(&mut self) {
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

    pub(super) fn make_services(&mut self) {
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

    pub(super) fn make_endpoints(&mut self) {
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
}
