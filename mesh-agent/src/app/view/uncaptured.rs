//! What of captured pods the agent does not carry: probes, exclusions, connections older than capture. Puts words to it.

use mesh_core::model::{Exclusions, Workload};
use mesh_core::plan::{self, ExclusionDecision, Way};
use mesh_core::snapshot::Snapshot;

use crate::admin::document::{
    Direction, OlderConnectionEntry, OlderConnections, RefusedExclusionEntry, UncapturedEntry, Workloads,
};
use crate::capture::{self, Capture, Rules};

/// Adds it to the captured pods among `workloads`.
pub(super) fn describe(workloads: &mut Workloads, snapshot: &Snapshot, capture: &Capture) {
    let allowed = capture.options().allow_exclusions;
    let older = capture.older();
    for workload in snapshot.local_workloads() {
        let Some(rules) = capture.rules(&workload.uid) else {
            continue;
        };
        let decision = plan::exclusions(snapshot, workload, allowed);
        let count = older
            .iter()
            .filter(|of| of.workload == workload.uid)
            .map(|of| of.connections.len())
            .sum();
        let is_it = |name: &str, namespace: &str| name == workload.name && namespace == workload.namespace;
        let entry = workloads
            .workloads
            .iter_mut()
            .find(|w| is_it(&w.name, &w.namespace));
        if let Some(entry) = entry {
            entry.uncaptured = uncaptured(rules, decision, count);
        }
    }
}

/// `rules` are what the kernel has, `decision` is what it should have.
fn uncaptured(rules: Rules, decision: ExclusionDecision, older_connections: usize) -> UncapturedEntry {
    let Exclusions {
        outbound_ports,
        outbound_cidrs,
        inbound_ports,
        inbound_when_down,
    } = &rules.exclusions;
    let refused = decision.refused.into_iter().map(|one| RefusedExclusionEntry {
        what: one.what,
        why: one.why,
    });
    let mut refused: Vec<_> = refused.collect();
    if rules.exclusions != decision.in_force {
        refused.push(RefusedExclusionEntry {
            what: "a part of what its annotations exclude".to_owned(),
            why:
                "it is being entered into the kernel's maps, or they are full (see `meshctl bpf` and the log)"
                    .to_owned(),
        });
    }
    UncapturedEntry {
        outbound_ports: outbound_ports.iter().copied().collect(),
        outbound_cidrs: outbound_cidrs.iter().map(ToString::to_string).collect(),
        inbound_ports: inbound_ports.iter().copied().collect(),
        inbound_when_down: *inbound_when_down,
        probe_ports: rules.probe_ports.into_iter().collect(),
        refused,
        older_connections,
    }
}

/// The list of older connections, by pod.
pub(super) fn older(snapshot: &Snapshot, all: Vec<capture::OlderConnections>) -> OlderConnections {
    let mut shown = OlderConnections::default();
    for of in all {
        let workload = snapshot.workload(&of.workload);
        if let Some(error) = of.error {
            shown.problems.push(format!("{}: {error}", of.workload));
        }
        let entries = of.connections.iter().map(|connection| OlderConnectionEntry {
            namespace: workload.map(|w| w.namespace.clone()).unwrap_or_default(),
            workload: workload.map_or_else(|| of.workload.to_string(), |w| w.name.clone()),
            direction: match connection.way {
                Way::Inbound => Direction::Inbound,
                Way::Outbound => Direction::Outbound,
            },
            local: connection.local,
            remote: connection.remote,
            to_close: workload
                .and_then(|w: &std::sync::Arc<Workload>| plan::uncaptured(snapshot, w, connection))
                .map(|refusal| refusal.to_string()),
        });
        shown.connections.extend(entries);
    }
    shown
}
