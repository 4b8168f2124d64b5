//! Which PeerAuthentication holds for a workload: Istio's inheritance, worked out once per workload, and again when what
//! it rests on has changed.
//!
//! Workload port over workload over namespace over mesh; a mode that is not set inherits; without any policy a workload accepts both.
//! Within one scope the oldest policy holds alone, ties go by namespace and name; nothing is merged.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::manifest::NoticeKind;
use crate::model::{MtlsMode, ObjectRef, PeerAuthentication, Scope};

/// What is accepted, and by whose word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Decision {
    /// What is accepted.
    pub mode: MtlsMode,
    /// The policy that says so; `None` for the default.
    pub decided_by: Option<ObjectRef>,
}

/// What a workload accepts.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct EffectiveMtls {
    default: Decision,
    ports: BTreeMap<u16, Decision>,
}

impl EffectiveMtls {
    /// By default, and on each port that a policy names.
    pub fn all(&self) -> impl Iterator<Item = &Decision> {
        std::iter::once(&self.default).chain(self.ports.values())
    }

    /// What it accepts on `port`.
    pub fn on(&self, port: u16) -> &Decision {
        self.ports.get(&port).unwrap_or(&self.default)
    }
}

#[cfg(test)]
mod tests;

/// The policies of one namespace, sorted by scope. Of the root namespace, the whole is the mesh.
#[derive(Debug, Default)]
pub(super) struct Scoped {
    whole: Option<PeerAuthentication>,
    /// The oldest first.
    workloads: Vec<PeerAuthentication>,
}

/// Something to report about an object.
pub(super) type Remark = (ObjectRef, NoticeKind, String);

impl Scoped {
    /// Sorts the `policies` of one namespace. Reports those that do not count.
    pub(super) fn new<'a>(
        policies: impl Iterator<Item = &'a PeerAuthentication>,
        root_namespace: &str,
        remarks: &mut Vec<Remark>,
    ) -> Self {
        let mut policies: Vec<_> = policies.cloned().collect();
        policies.sort_by(|a, b| age(a).cmp(&age(b)));
        let mut sorted = Self::default();
        for mut policy in policies {
            let in_root = policy.namespace == root_namespace;
            match policy.scope {
                Scope::Workload(_) if in_root => remarks.push((
                    name(&policy),
                    NoticeKind::Ignored,
                    format!("a policy of the root namespace {root_namespace} holds for the whole mesh and may have no selector: ignored"),
                )),
                Scope::Workload(_) => sorted.workloads.push(policy),
                Scope::Mesh | Scope::Namespace => {
                    let (scope, shown) = match in_root {
                        true => (Scope::Mesh, "the mesh"),
                        false => (Scope::Namespace, "its namespace"),
                    };
                    policy.scope = scope;
                    match &sorted.whole {
                        Some(older) => remarks.push(shadowed(&policy, older, shown)),
                        None => sorted.whole = Some(policy),
                    }
                }
            }
        }
        sorted
    }

    /// The policy for all of the namespace.
    pub(super) fn whole(&self) -> Option<&PeerAuthentication> {
        self.whole.as_ref()
    }

    /// The policies that count, each with its scope.
    pub(super) fn in_force(&self) -> impl Iterator<Item = &PeerAuthentication> {
        self.whole.iter().chain(&self.workloads)
    }

    /// What a workload of this namespace with these labels accepts, where `mesh` holds for the whole mesh. Reports policies that select
    /// it and do not count.
    pub(super) fn effective(
        &self,
        mesh: Option<&PeerAuthentication>,
        labels: &BTreeMap<String, String>,
        remarks: &mut Vec<Remark>,
    ) -> EffectiveMtls {
        let mut default = Decision {
            mode: MtlsMode::Permissive,
            decided_by: None,
        };
        let mut selecting = self.workloads.iter().filter(|p| selects(p, labels));
        let own = selecting.next();
        for policy in mesh.into_iter().chain(&self.whole).chain(own) {
            if let Some(mode) = policy.mode {
                default = decision(mode, policy);
            }
        }
        let mut ports = BTreeMap::new();
        if let Some(own) = own {
            for younger in selecting {
                remarks.push(shadowed(younger, own, "a workload that both select"));
            }
            for (port, mode) in &own.ports {
                let decision = mode.map_or_else(|| default.clone(), |mode| decision(mode, own));
                ports.insert(*port, decision);
            }
        }
        EffectiveMtls { default, ports }
    }
}

fn age(policy: &PeerAuthentication) -> (i64, &str, &str) {
    (policy.created, &policy.namespace, &policy.name)
}

fn name(policy: &PeerAuthentication) -> ObjectRef {
    ObjectRef::new("PeerAuthentication", &policy.namespace, &policy.name)
}

fn decision(mode: MtlsMode, policy: &PeerAuthentication) -> Decision {
    Decision {
        mode,
        decided_by: Some(name(policy)),
    }
}

fn shadowed(policy: &PeerAuthentication, older: &PeerAuthentication, scope: &str) -> Remark {
    let message = format!(
        "{} holds for {scope}, for it is older (or comes first by name): ignored there",
        name(older)
    );
    (name(policy), NoticeKind::Conflict, message)
}

fn selects(policy: &PeerAuthentication, labels: &BTreeMap<String, String>) -> bool {
    match &policy.scope {
        Scope::Workload(wanted) => wanted.iter().all(|(key, value)| labels.get(key) == Some(value)),
        Scope::Mesh | Scope::Namespace => false,
    }
}
