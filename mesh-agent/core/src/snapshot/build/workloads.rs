//! Workloads made anew, and which policies count for them.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;

use super::super::Member;
use super::super::mtls::Remark;
use super::super::remarks::Topic;
use super::super::spaces::Space;
use super::{Builder, enrolment};
use crate::manifest::NoticeKind;
use crate::model::{IdentityError, ObjectRef, Pod, SpiffeId, TrustDomain, Workload, WorkloadUid};

impl Builder {
    /// Policies of the root namespace are about everybody.
    pub(super) fn sort_policies(&mut self) {
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

    pub(super) fn make_workloads(&mut self) {
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
                    let identity = identity(&mut self.identities, &self.made.settings.trust_domain, pod)?;
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
    pub(super) fn select(&mut self) {
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
}

fn identity(
    known: &mut HashMap<(String, String), SpiffeId>,
    domain: &TrustDomain,
    pod: &Pod,
) -> Result<SpiffeId, IdentityError> {
    let key = (pod.namespace.clone(), pod.service_account.clone());
    if let Some(known) = known.get(&key) {
        return Ok(known.clone());
    }
    let made = SpiffeId::new(domain.clone(), &pod.namespace, &pod.service_account)?;
    known.insert(key, made.clone());
    Ok(made)
}

fn unidentified(name: &ObjectRef, error: &IdentityError) -> Remark {
    let message = format!("it can have no identity and is no workload: {error}");
    (name.clone(), NoticeKind::Ignored, message)
}
