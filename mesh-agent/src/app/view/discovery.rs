//! Where pods were found, in the documents' words.

use crate::admin::document::{ContainerRuntime, RuntimeState, SandboxEntry, Workloads};
use crate::capture::{self, DiscoveryStatus, FoundBy, SandboxStatus};
use crate::telemetry::metrics::DiscoveryReading;

/// Adds to each local workload where it lives.
pub(super) fn describe(all: &mut Workloads, status: &DiscoveryStatus) {
    for (uid, sandbox) in &status.sandboxes {
        if let Some(entry) = all.workloads.iter_mut().find(|entry| entry.uid == uid.as_str()) {
            entry.sandbox = Some(sandbox_entry(sandbox));
        }
    }
}

fn sandbox_entry(sandbox: &SandboxStatus) -> SandboxEntry {
    SandboxEntry {
        found_by: sandbox.by.as_str().to_owned(),
        netns: sandbox.netns.clone(),
        cgroup: sandbox.cgroup.clone(),
    }
}

/// The container runtime, where pods are looked for.
pub(super) fn container_runtime(status: &DiscoveryStatus) -> Option<ContainerRuntime> {
    use capture::RuntimeState::{Asking, Down, Off, Up};
    let (state, detail) = match &status.runtime {
        Off => (
            RuntimeState::Off,
            "not asked: pods are found through /proc".to_owned(),
        ),
        Asking => (RuntimeState::Asking, "its answer is still to come".to_owned()),
        Up { socket, name } => (RuntimeState::Up, format!("{name} at {}", socket.display())),
        Down { why } => (RuntimeState::Down, format!("pods are found through /proc: {why}")),
    };
    status.on.then_some(ContainerRuntime { state, detail })
}

/// For the metrics.
pub(super) fn reading(status: &DiscoveryStatus) -> DiscoveryReading {
    let count = |by: FoundBy| {
        status
            .sandboxes
            .values()
            .filter(|sandbox| sandbox.by == by)
            .count() as u64
    };
    let runtime = container_runtime(status).map(|runtime| runtime.state);
    DiscoveryReading {
        found: FoundBy::ALL.map(|by| (by.as_str(), count(by))).into(),
        runtime_up: runtime
            .filter(|state| *state != RuntimeState::Off)
            .map(|state| state == RuntimeState::Up),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_that_does_not_answer_is_shown_with_the_reason_and_only_where_pods_are_looked_for() {
        let mut status = DiscoveryStatus {
            on: true,
            runtime: capture::RuntimeState::Down {
                why: "/run/x.sock: no such file".into(),
            },
            ..DiscoveryStatus::default()
        };
        let shown = container_runtime(&status).unwrap();
        assert_eq!(shown.state, RuntimeState::Down);
        assert!(shown.detail.ends_with("/run/x.sock: no such file"));
        assert_eq!(reading(&status).runtime_up, Some(false));
        status.on = false;
        assert_eq!(container_runtime(&status), None);
        assert_eq!(reading(&status).runtime_up, None);
    }

    #[test]
    fn sandboxes_stand_with_their_workloads_and_are_counted_by_who_told() {
        let sandbox = |by| SandboxStatus {
            by,
            netns: "net:[7]".into(),
            cgroup: "/cg/pod1".into(),
        };
        let uid = mesh_core::model::WorkloadUid::new("shop", "order", "u1");
        let status = DiscoveryStatus {
            sandboxes: [(uid, sandbox(FoundBy::Cri))].into(),
            ..DiscoveryStatus::default()
        };
        assert_eq!(
            reading(&status).found,
            [("annotation", 0), ("cri", 1), ("proc", 0), ("cni", 0)]
        );
    }
}
