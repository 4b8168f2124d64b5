//! What can be told of the cluster around the agent: other meshes, other agents, its documents.

use std::collections::BTreeMap;

use mesh_core::analyze::{self, Documents, Known};
use mesh_core::plan::AllowedExclusions;
use mesh_core::snapshot::{MeshSettings, Snapshot};

use crate::admin::document::{Analysis, OtherMeshEntry};
use crate::app::checks::AgentPod;
use crate::sources::Objects;

/// Labels of the agents' own pods, as deploy/ has them.
const OURS: [(&str, &str); 2] = [
    ("app.kubernetes.io/name", "mesh-agent"),
    ("app.kubernetes.io/component", "agent"),
];
/// What a DaemonSet's controller tells its versions apart by.
const REVISION: &str = "controller-revision-hash";

/// Parts of other meshes on this node.
pub(super) fn other_meshes(snapshot: &Snapshot) -> Vec<OtherMeshEntry> {
    let entry = |other: &mesh_core::snapshot::OtherMesh| OtherMeshEntry {
        part: other.part.as_str().to_owned(),
        pod: format!("{}/{}", other.pod.namespace, other.pod.name),
        istio: other.part.is_istio(),
    };
    snapshot.other_meshes().iter().map(entry).collect()
}

/// How many pods show each of them.
pub(super) fn parts(snapshot: &Snapshot) -> Vec<(&'static str, u64)> {
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for other in snapshot.other_meshes() {
        *counts.entry(other.part.as_str()).or_default() += 1;
    }
    counts.into_iter().collect()
}

/// The agents' pods of all nodes.
pub(super) fn agents(snapshot: &Snapshot) -> Vec<AgentPod> {
    let ours = snapshot.workloads().filter(|workload| {
        let has = |(key, value): (&str, &str)| workload.labels.get(key).is_some_and(|found| found == value);
        OURS.into_iter().all(has)
    });
    let mut agents: Vec<AgentPod> = ours
        .filter_map(|workload| {
            Some(AgentPod {
                node: workload.node.clone(),
                revision: workload.labels.get(REVISION)?.clone(),
                ready: workload.ready,
            })
        })
        .collect();
    agents.sort();
    agents
}

/// `GET /analyze`.
pub(super) fn analyze(
    objects: &Objects,
    settings: MeshSettings,
    allowed: AllowedExclusions,
) -> Result<Analysis, String> {
    let all = objects.read().map_err(|error| error.to_string())?;
    let findings = analyze::analyze(Documents {
        settings,
        allowed,
        known: Known {
            everything: true,
            settings: true,
        },
        accepted: &all.accepted,
        templates: &[],
        diagnostics: all.diagnostics,
    });
    Ok(Analysis { findings })
}
