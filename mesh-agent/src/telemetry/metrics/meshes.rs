//! Metrics of other meshes on the node.

use prometheus::proto::MetricFamily;

use super::{Kind, Readings, Row};

/// Their families.
pub(super) fn families(readings: &Readings) -> [MetricFamily; 2] {
    let parts = readings.other_meshes.iter();
    [
        Kind::Gauge.family(
            "mesh_agent_pods_left",
            "Pods of this node that ask for the mesh by a label that is left to another mesh.",
            vec![Row::new(readings.pods_left as f64)],
        ),
        Kind::Gauge.family(
            "mesh_agent_other_mesh_pods",
            "Pods of other meshes' data planes on this node, by part: istio-cni, ztunnel, linkerd-cni.",
            parts
                .map(|(part, n)| Row::new(*n as f64).label("part", part))
                .collect(),
        ),
    ]
}
