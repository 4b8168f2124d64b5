//! Which AuthorizationPolicies select a workload: worked out once per workload, and again when what it
//! rests on has changed.
//!
//! A policy of the root namespace holds for the whole mesh, any other for its namespace; a selector narrows both, and so do targetRefs.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_common::mutation::{self, Mechanism};

use crate::authz::Applicable;
use crate::manifest::NoticeKind;
use crate::model::{AuthorizationPolicy, ServiceSpec};

use super::mtls::Remark;

/// Labels that a workload must have.
type Selector = BTreeMap<String, String>;

/// A policy with what it is about.
#[derive(Debug)]
pub(super) struct Selecting {
    policy: Arc<AuthorizationPolicy>,
    /// One of these must fit.
    selectors: Vec<Selector>,
}

/// The policies of one namespace.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// Those that hold for the whole mesh.
    pub(super) mesh: Vec<Selecting>,
    own: Vec<Selecting>,
}

impl Selection {
    /// Sorts the `policies` of one namespace, which come in the order of their names. `services` are those of the namespace.
    pub(super) fn new<'a>(
        policies: impl Iterator<Item = &'a Arc<AuthorizationPolicy>>,
        services: &BTreeMap<Arc<str>, Arc<ServiceSpec>>,
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
                sorted.own.push(selecting);
            }
        }
        sorted
    }

    /// The policies that select a workload of this namespace with these labels, where those in `mesh` hold for the whole mesh.
    pub(super) fn applicable(&self, mesh: &[Selecting], labels: &Selector) -> Applicable {
        let selecting = mesh.iter().chain(&self.own).filter(|selecting| {
            let mut selectors = selecting.selectors.iter();
            selectors.any(|selector| selector.iter().all(|(key, value)| labels.get(key) == Some(value)))
        });
        Applicable::new(selecting.map(|selecting| Arc::clone(&selecting.policy)))
    }
}

/// What workloads it is about: those that fit one of these.
fn selectors(
    policy: &AuthorizationPolicy,
    services: &BTreeMap<Arc<str>, Arc<ServiceSpec>>,
    remarks: &mut Vec<Remark>,
) -> Vec<Selector> {
    let Some(targets) = &policy.services else {
        return vec![policy.selector.clone()];
    };
    let mut selectors = Vec::new();
    for target in targets {
        match services.get(target.as_str()) {
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
