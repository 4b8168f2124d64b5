//! The enrolled workloads of this node, with where they live: by annotations, or as discovery has found them. Captures nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh_core::model::{Workload, WorkloadUid};
use mesh_core::snapshot::Snapshot;

use super::discovery::{Discovery, FoundBy, Outcome, Sandbox, SandboxStatus};
use super::node::CaptureState;
use super::pod::PodSpec;

/// Why a pod is not looked for.
const NOT_LOOKED_FOR: &str = "it says neither mesh-agent.io/netns nor mesh-agent.io/cgroup, and pods are not looked for: set --pods-discover";
/// Why a pod cannot be looked for.
const NO_UID: &str =
    "it says neither mesh-agent.io/netns nor mesh-agent.io/cgroup, and has no metadata.uid to be found by";

/// The enrolled workloads of this node.
#[derive(Debug, Default)]
pub(super) struct Local {
    /// Those whose place is known.
    pub(super) placed: BTreeMap<WorkloadUid, PodSpec>,
    /// Of these, those that were found.
    pub(super) found: BTreeMap<WorkloadUid, Sandbox>,
    /// Those whose place is not known, and why.
    pub(super) unplaced: BTreeMap<WorkloadUid, CaptureState>,
    /// Whether any configuration has been read yet.
    pub(super) known: bool,
}

impl Local {
    /// Those of `snapshot` on `node`. Without `discovery` only annotations count.
    pub(super) fn of(
        snapshot: &Snapshot,
        node: &str,
        discovery: Option<&mut Discovery>,
        now: Instant,
    ) -> Self {
        let is_local = |w: &&Arc<Workload>| w.node == node && w.enrolment.is_enrolled() && !w.host_network;
        let mut local = Self {
            known: snapshot.version() > 0,
            ..Self::default()
        };
        let mut searched: BTreeMap<&str, &Arc<Workload>> = BTreeMap::new();
        for workload in snapshot.workloads().filter(is_local) {
            if let Some(spec) = PodSpec::of(workload) {
                local.placed.insert(spec.uid.clone(), spec);
                continue;
            }
            let why = match (discovery.is_some(), workload.uid.pod_uid()) {
                (true, Some(uid)) if searched.contains_key(uid) => "another pod bears the same metadata.uid",
                (true, Some(uid)) => {
                    searched.insert(uid, workload);
                    continue;
                }
                (true, None) => NO_UID,
                (false, _) => NOT_LOOKED_FOR,
            };
            let state = CaptureState::Refused(why.to_owned());
            local.unplaced.insert(workload.uid.clone(), state);
        }
        let Some(discovery) = discovery else { return local };
        let outcomes = discovery.locate(searched.keys().copied(), now);
        for (uid, outcome) in outcomes {
            if let Some(workload) = searched.get(uid) {
                local.place(workload, outcome, || discovery.addresses(uid));
            }
        }
        local
    }

    /// `announced`: the addresses that the CNI has given it, for as long as the API does not show any.
    fn place(&mut self, workload: &Workload, outcome: Outcome, announced: impl FnOnce() -> Vec<IpAddr>) {
        let uid = workload.uid.clone();
        let state = match outcome {
            Outcome::Found(sandbox) => {
                let mut spec = PodSpec::at(
                    workload,
                    sandbox.netns_name(),
                    sandbox.cgroup.display().to_string(),
                );
                if spec.addresses.is_empty() {
                    spec.addresses = announced();
                }
                self.placed.insert(uid.clone(), spec);
                self.found.insert(uid, sandbox);
                return;
            }
            Outcome::Absent(why) => CaptureState::Absent(why),
            Outcome::Pending(why) => CaptureState::Pending(why),
            Outcome::Refused(why) => CaptureState::Refused(why),
        };
        self.unplaced.insert(uid, state);
    }

    /// Whether it may still turn out that a pod has a place which is not known yet.
    pub(super) fn is_open(&self) -> bool {
        let pending = |state: &CaptureState| matches!(state, CaptureState::Pending(_));
        self.unplaced.values().any(pending)
    }

    /// Where each sandbox was found.
    pub(super) fn sandboxes(&self) -> BTreeMap<WorkloadUid, SandboxStatus> {
        let status = |(uid, spec): (&WorkloadUid, &PodSpec)| {
            let by = self
                .found
                .get(uid)
                .map_or(FoundBy::Annotation, |sandbox| sandbox.by);
            let status = SandboxStatus {
                by,
                netns: spec.netns.clone(),
                cgroup: spec.cgroup.clone(),
            };
            (uid.clone(), status)
        };
        self.placed.iter().map(status).collect()
    }

    #[cfg(test)]
    pub(super) fn of_specs(specs: impl IntoIterator<Item = PodSpec>) -> Self {
        Self {
            placed: specs.into_iter().map(|spec| (spec.uid.clone(), spec)).collect(),
            known: true,
            ..Self::default()
        }
    }
}
