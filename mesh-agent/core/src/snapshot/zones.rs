//! Where nodes stand: as the Nodes say; a node that nobody describes, as the endpoints on it say, and where these differ, in the first
//! zone by name.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::EndpointSlice;

/// The words of all objects.
#[derive(Debug, Default)]
pub(super) struct Zones {
    nodes: HashMap<Arc<str>, Arc<str>>,
    /// By node and zone: how many endpoints say so.
    endpoints: HashMap<Arc<str>, BTreeMap<Arc<str>, usize>>,
}

impl Zones {
    /// What the Node `name` says now. Adds its name to `touched`.
    pub(super) fn set(&mut self, name: &str, zone: Option<&str>, touched: &mut BTreeSet<Arc<str>>) {
        match zone {
            Some(zone) => drop(self.nodes.insert(name.into(), zone.into())),
            None => drop(self.nodes.remove(name)),
        }
        touched.insert(name.into());
    }

    /// What the endpoints of `slice` say.
    pub(super) fn tell(&mut self, slice: &EndpointSlice, touched: &mut BTreeSet<Arc<str>>) {
        for (node, zone) in told(slice) {
            let zones = self.endpoints.entry(Arc::clone(node)).or_default();
            let count = zones.entry(Arc::clone(zone)).or_default();
            *count += 1;
            if *count == 1 {
                touched.insert(Arc::clone(node));
            }
        }
    }

    /// Takes back what [`tell`](Self::tell) did for an equal value.
    pub(super) fn take_back(&mut self, slice: &EndpointSlice, touched: &mut BTreeSet<Arc<str>>) {
        for (node, zone) in told(slice) {
            let Some(zones) = self.endpoints.get_mut(node) else {
                continue;
            };
            let count = zones.entry(Arc::clone(zone)).or_default();
            *count = count.saturating_sub(1);
            if *count == 0 {
                zones.remove(zone);
                touched.insert(Arc::clone(node));
            }
            if zones.is_empty() {
                self.endpoints.remove(node);
            }
        }
    }

    /// Where a node stands, if anybody says.
    pub(super) fn of(&self, node: &str) -> Option<Arc<str>> {
        let told = || self.endpoints.get(node)?.keys().next();
        self.nodes.get(node).or_else(told).cloned()
    }
}

fn told(slice: &EndpointSlice) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
    let endpoints = slice.endpoints.iter();
    endpoints.filter_map(|endpoint| endpoint.node.as_ref().zip(endpoint.zone.as_ref()))
}
