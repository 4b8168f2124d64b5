//! What the enroller reports of the local pods, kept for those who show it.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use mesh_core::model::WorkloadUid;

use super::{Capture, CaptureState};
use crate::capture::discovery::DiscoveryStatus;

impl Capture {
    /// How far each local enrolled workload is captured.
    pub fn states(&self) -> BTreeMap<WorkloadUid, CaptureState> {
        self.state().reported.clone()
    }

    /// How far this one is captured.
    pub fn state_of(&self, uid: &WorkloadUid) -> Option<CaptureState> {
        self.state().reported.get(uid).cloned()
    }

    /// The network namespace in which this one is captured now, as the kernel names it where it was found.
    pub fn captured_in(&self, uid: &WorkloadUid) -> Option<String> {
        let state = self.state();
        let pod = state.pods.get(uid).filter(|pod| pod.is_current())?;
        Some(pod.spec.netns.clone())
    }

    pub(in crate::capture) fn report(&self, states: BTreeMap<WorkloadUid, CaptureState>) {
        self.state().reported = states;
    }

    /// Where the sandboxes of local pods were found, and how the container runtime stands.
    pub fn discovery(&self) -> DiscoveryStatus {
        self.discovery
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(in crate::capture) fn report_discovery(&self, status: DiscoveryStatus) {
        *self.discovery.lock().unwrap_or_else(PoisonError::into_inner) = status;
    }
}
