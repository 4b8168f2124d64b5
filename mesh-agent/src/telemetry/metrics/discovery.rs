//! Metrics of where pods were found.

use prometheus::proto::MetricFamily;

use super::{Kind, Row};

/// Where local pods were found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiscoveryReading {
    /// How many by whom.
    pub found: Vec<(&'static str, u64)>,
    /// Whether the container runtime answers; `None` where it is not asked.
    pub runtime_up: Option<bool>,
}

/// Its families.
pub(super) fn families(reading: &DiscoveryReading) -> [MetricFamily; 2] {
    let found = reading.found.iter();
    let up = reading.runtime_up.iter();
    [
        Kind::Gauge.family(
            "mesh_agent_sandboxes_found",
            "Enrolled pods of this node whose sandbox is known, by who told: annotation, cri, proc or cni.",
            found.map(|(by, n)| Row::new(*n as f64).label("by", by)).collect(),
        ),
        Kind::Gauge.family(
            "mesh_agent_container_runtime_up",
            "Whether the container runtime answers on its CRI socket; absent where it is not asked.",
            up.map(|up| Row::new(f64::from(u8::from(*up)))).collect(),
        ),
    ]
}
