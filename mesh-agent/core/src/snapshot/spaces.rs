//! The objects in force, by namespace, and what each namespace's policies come to.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::NamespaceStanding;
use super::mtls::{Remark, Scoped};
use super::policies::Selection;
use crate::model::{
    AuthorizationPolicy, EndpointSlice, ObjectRef, PeerAuthentication, Pod, ServiceSpec, Wish, Wishes,
    Workload,
};

/// A pod.
#[derive(Debug, Default)]
pub(super) struct PodEntry {
    /// As it is now; `None` for one that is gone.
    pub(super) pod: Option<Arc<Pod>>,
    /// As it was when the workload was made last.
    pub(super) workload: Option<Arc<Workload>>,
}

/// One namespace.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// There is a Namespace object.
    pub(super) known: bool,
    /// What that asks for.
    pub(super) wishes: Wishes,
    /// How many pods have a word of their own: without Istio's label and with it, those that ask for the mesh and those that decline.
    own: [[usize; 2]; 2],
    pub(super) pods: BTreeMap<Arc<ObjectRef>, PodEntry>,
    /// By name.
    pub(super) services: BTreeMap<Arc<str>, Arc<ServiceSpec>>,
    /// By the service they belong to.
    pub(super) slices: BTreeMap<String, BTreeMap<Arc<ObjectRef>, Arc<EndpointSlice>>>,
    pub(super) peers: BTreeMap<Arc<ObjectRef>, PeerAuthentication>,
    pub(super) policies: BTreeMap<Arc<ObjectRef>, Arc<AuthorizationPolicy>>,
    /// What `peers` come to.
    pub(super) scoped: Scoped,
    /// What `policies` come to.
    pub(super) selection: Selection,
}

impl Space {
    /// Whether nothing is left of it.
    pub(super) fn is_empty(&self) -> bool {
        !self.known
            && self.pods.is_empty()
            && self.services.is_empty()
            && self.slices.is_empty()
            && self.peers.is_empty()
            && self.policies.is_empty()
    }

    /// What `pod` asks for by labels of its own counts from now on.
    pub(super) fn asks(&mut self, pod: &Pod) {
        for (own, with_istio) in self.own.iter_mut().zip([false, true]) {
            match pod.wishes.wish(with_istio) {
                Some(Wish::Enabled) => own[0] += 1,
                Some(Wish::Disabled) => own[1] += 1,
                None => {}
            }
        }
    }

    /// Takes back what [`asks`](Self::asks) did for the same value.
    pub(super) fn asks_no_more(&mut self, pod: &Pod) {
        for (own, with_istio) in self.own.iter_mut().zip([false, true]) {
            match pod.wishes.wish(with_istio) {
                Some(Wish::Enabled) => own[0] -= 1,
                Some(Wish::Disabled) => own[1] -= 1,
                None => {}
            }
        }
    }

    /// Whether its pods are part of the mesh; `None` without a Namespace object. Where `with_istio` is said, Istio's label counts.
    pub(super) fn standing(&self, with_istio: bool) -> Option<NamespaceStanding> {
        let enrolled = self.wishes.wish(with_istio) == Some(Wish::Enabled);
        let [asking, declining] = self.own[usize::from(with_istio)];
        let others = if enrolled { declining } else { asking };
        self.known.then_some(NamespaceStanding {
            enrolled,
            mixed: others > 0,
        })
    }

    /// Sorts the policies anew. Returns what there is to say about them.
    pub(super) fn sort_policies(&mut self, root_namespace: &str) -> Vec<Remark> {
        let mut remarks = Vec::new();
        self.scoped = Scoped::new(self.peers.values(), root_namespace, &mut remarks);
        let policies = self.policies.values();
        self.selection = Selection::new(policies, &self.services, root_namespace, &mut remarks);
        remarks
    }

    /// The pods that are there.
    pub(super) fn live(&self) -> impl Iterator<Item = &Arc<Pod>> + Clone {
        self.pods.values().filter_map(|entry| entry.pod.as_ref())
    }

    /// Whether a policy is about the workloads behind the service `name`.
    pub(super) fn is_target(&self, name: &str) -> bool {
        let mut targets = self
            .policies
            .values()
            .filter_map(|policy| policy.services.as_ref());
        targets.any(|targets| targets.iter().any(|target| target == name))
    }
}
