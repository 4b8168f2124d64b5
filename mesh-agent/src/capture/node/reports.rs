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
