//! Which AuthorizationPolicies select a workload: worked out once per workload when a snapshot is built.
//!
//! A policy of the root namespace holds for the whole mesh, any other for its namespace; a selector narrows both, and so do targetRefs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use mesh_common::mutation::{self, Mechanism};

use crate::authz::Applicable;
use crate::manifest::NoticeKind;
use crate::model::{AuthorizationPolicy, ServiceSpec};

use super::mtls::Remark;

/// Labels that a workload must have.
type Selector = BTreeMap<String, String>;

/// The policies of a mesh, by namespace.
#[derive(Debug, Default)]
pub(super) struct Authorization {
    mesh: Vec<Selecting>,
    namespaces: HashMap<String, Vec<Selecting>>,
    /// Workloads that are selected alike share one list.
    shared: HashSet<Arc<Applicable>>,
}

#[derive(Debug)]
struct Selecting {
    policy: Arc<AuthorizationPolicy>,
    /// One of these must fit.
    selectors: Vec<Selector>,
}

impl Authorization {
    /// Sorts `policies`, which come in the order of their names.
    pub(super) fn new(
        policies: &[Arc<AuthorizationPolicy>],
        services: &[&ServiceSpec],
        root_namespace: &str,
        remarks: &mut Vec<Remark>,
    ) -> Self {
        let mut sorted = Self::default();
        for policy in policies {
            let selecting = Selecting {
                policy: Arc::clone(policy),
                selectors: selectors(policy, services, remarks),
            };
            let of_the_mesh =
                policy.namespace == root_namespace && !mutation::is_off(Mechanism::RootPolicies);
            if of_the_mesh && policy.services.is_none() {
                sorted.mesh.push(selecting);
            } else {
                let namespace = sorted.namespaces.entry(policy.namespace.clone());
                namespace.or_default().push(selecting);
            }
        }
        sorted
    }

    /// The policies that select a workload of `namespace` with these labels.
    pub(super) fn applicable(&mut self, namespace: &str, labels: &Selector) -> Arc<Applicable> {
        let own = self.namespaces.get(namespace).into_iter().flatten();
        let selecting = self.mesh.iter().chain(own).filter(|selecting| {
            let mut selectors = selecting.selectors.iter();
            selectors.any(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
        });
        let found = Applicable::new(selecting.map(|selecting| Arc::clone(&selecting.policy)));
        if let Some(same) = self.shared.get(&found) {
            return Arc::clone(same);
        }
        let found = Arc::new(found);
        self.shared.insert(Arc::clone(&found));
        found
    }
}

/// What workloads it is about: those that fit one of these.
fn selectors(
    policy: &AuthorizationPolicy,
    services: &[&ServiceSpec],
    remarks: &mut Vec<Remark>,
) -> Vec<Selector> {
    let Some(targets) = &policy.services else {
        return vec![policy.selector.clone()];
    };
    let mut selectors = Vec::new();
    for target in targets {
        let service = services
            .iter()
            .find(|service| *service.name.namespace == *policy.namespace && *service.name.name == **target);
        match service {
            Some(service) if !service.selector.is_empty() => selectors.push(service.selector.clone()),
            _ => remarks.push((
                policy.object(),
                NoticeKind::Ignored,
                format!(
                    "it targets Service {}/{target}, which does not exist or has no selector: it selects no workload there",
                    policy.namespace
                ),
            )),
        }
    }
    selectors
}
