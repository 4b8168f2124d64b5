//! What passes from one agent of the node to the next: the run with its maps and links, adopted by the successor; and what an agent that
//! leaves keeps until its connections have ended. Never leaves a pod uncaptured between the two.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;

use mesh_common::ABI_VERSION;
use mesh_common::mutation::{self, Mechanism};
use tracing::{info, warn};

use super::Capture;
use crate::capture::bpffs::{NodeDir, Run};
use crate::capture::error::{CaptureError, EnrolError};
use crate::capture::links;
use crate::capture::objects::NodeObject;
use crate::capture::pod::CapturedPod;

/// How an agent begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Beginning {
    /// No other agent of this node runs. What an earlier one has left is that of a dead one.
    #[default]
    Alone,
    /// Another agent of this node still carries connections, and leaves when this one has taken over.
    Beside {
        /// The id of the cgroup that its sockets are made in.
        agent_cgroup: u64,
    },
}

impl Beginning {
    /// Whether another agent still carries connections.
    pub fn is_beside(&self) -> bool {
        matches!(self, Self::Beside { .. })
    }
}

/// The run to go on with: the latest one of our ABI, if its maps are as the programs declare them.
pub(super) fn adoptable(dir: &NodeDir) -> Option<Run> {
    let run = dir.adoptable(ABI_VERSION)?;
    match NodeObject::fits(&run.maps()) {
        Ok(()) => Some(run),
        Err((map, why)) => {
            warn!(
                run = run.name(),
                map, why, "the maps of an earlier agent do not fit: its pods are captured anew"
            );
            None
        }
    }
}

impl Capture {
    /// After the maps have been opened: what a dead agent had under way is over. What a live one has is not touched.
    pub(super) fn begin(&self) {
        if !self.adopted {
            return;
        }
        if let Err(error) = self.debug_log.off() {
            warn!(%error, "debug lines that were on stay on until their time ends");
        }
        if self.beginning == Beginning::Alone {
            self.flows.sweep_all();
            self.passes.forget_probes();
        }
    }

    /// Whether the run with its maps and links is an earlier agent's.
    pub fn is_adopted(&self) -> bool {
        self.adopted
    }

    /// Whether an earlier agent had captured pods of which this one does not know yet whose they are.
    pub(in crate::capture) fn has_unnamed_pods(&self) -> bool {
        if !self.adopted {
            return false;
        }
        let named: BTreeSet<u64> = self.each_pod(|pod| pod.netns.cookie()).into_iter().collect();
        let pods = self.pods.keys().unwrap_or_default();
        pods.iter().any(|cookie| !named.contains(cookie))
    }

    /// The id of the cgroup that this agent's sockets are made in; 0 where it cannot be told.
    pub fn agent_cgroup_id(&self) -> u64 {
        self.agent_cgroup.file().metadata().map_or(0, |meta| meta.ino())
    }

    /// The cgroups that agents' sockets are made in.
    pub(super) fn agent_cgroups(&self) -> Vec<u64> {
        let mut ids = vec![self.agent_cgroup_id()];
        if let Beginning::Beside { agent_cgroup } = self.beginning {
            ids.push(agent_cgroup);
        }
        ids
    }

    /// Lets another agent of this node have the pins. Everything stays in force, and this agent goes on accepting, until that one has
    /// put itself in its place.
    pub fn give_up(&self) {
        if let Err(error) = self.debug_log.off() {
            warn!(%error, "debug lines that were on stay on until their time ends");
        }
        self.dir.give_up();
    }

    /// Takes back what was given up, when the other agent has failed: the pods' entries lead to this agent's listeners again, and its
    /// programs are in all links.
    ///
    /// # Errors
    /// When yet another agent has the node.
    pub fn take_back(&self) -> Result<(), CaptureError> {
        self.dir.take_back()?;
        for pod in self.state().pods.values_mut() {
            if let Err(error) = self.reassert(pod) {
                warn!(workload = %pod.spec.uid, %error, "a pod cannot be taken back: its connections are refused until it is");
            }
        }
        Ok(())
    }

    fn reassert(&self, pod: &mut CapturedPod) -> Result<(), EnrolError> {
        let cookie = pod.netns.cookie();
        let dir = self
            .run
            .make_pod(cookie)
            .map_err(EnrolError::kernel("making the directory of its pins"))?;
        self.put_entry(&pod.spec, cookie, super::Seat::of(pod), self.options.workers)?;
        pod.links = self.attach(&pod.netns, &pod.cgroup, &dir)?;
        Ok(())
    }

    /// Every new connection is this agent's now: what earlier ones have left may go.
    pub fn took_over(&self) {
        self.alone.store(true, Ordering::Release);
    }

    /// Whether pins of earlier agents may be removed: not while one of them might have to take its pods back.
    pub(in crate::capture) fn may_drop_leftovers(&self) -> bool {
        self.alone.load(Ordering::Acquire)
    }

    /// A successor has taken over: nothing new is sent here by links that are this agent's alone. What stands lives on.
    pub fn stop_sending(&self) {
        for pod in self.state().pods.values_mut() {
            pod.links.stop_sending();
        }
    }

    /// Lets pods go that an earlier agent of this run had captured and that nobody wants captured any more.
    pub(super) fn drop_unwanted(&self) {
        if !self.adopted || mutation::is_off(Mechanism::AdoptedLeftovers) {
            return;
        }
        let mut found: BTreeSet<u64> = self.run.pods().into_iter().collect();
        found.extend(self.pods.keys().unwrap_or_default());
        let state = self.state();
        let captured: BTreeSet<u64> = state.pods.values().map(|pod| pod.netns.cookie()).collect();
        for cookie in found.difference(&captured).copied() {
            let slot = self.pods.get(&cookie).ok().flatten().map(|entry| entry.slot);
            links::detach_pinned(&self.run.pod(cookie));
            if let Err(error) = self.run.remove_pod(cookie) {
                warn!(netns = cookie, %error, "pins of an earlier agent stay");
            }
            let is_free = |slot: &u32| !state.pods.values().any(|pod| pod.pod.slot == *slot);
            if let Some(slot) = slot.filter(is_free) {
                self.unlist(slot);
            }
            self.forget(cookie);
            info!(
                netns = cookie,
                "released a pod that an earlier agent had captured"
            );
        }
    }

    /// Removes the pins of other runs for a pod that this run has captured now.
    pub(super) fn replace_leftovers(&self, cookie: u64) {
        if !self.may_drop_leftovers() {
            return;
        }
        for run in self.dir.leftovers(&self.run) {
            if let Err(error) = run.remove_pod(cookie) {
                warn!(%error, "pins of an earlier run stay");
            }
        }
    }
}
