//! Metrics of the CNI plugin.

use prometheus::proto::MetricFamily;

use super::{Kind, Row};

/// How the plugin stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CniReading {
    /// Whether the container runtime calls it.
    pub installed: bool,
    /// Announced sandboxes in which no process is yet.
    pub awaited: u64,
    /// Calls by result.
    pub calls: Vec<(String, u64)>,
}

/// Its families; without a metric where the plugin is not wanted.
pub(super) fn families(reading: Option<&CniReading>) -> [MetricFamily; 3] {
    let calls = reading.into_iter().flat_map(|reading| &reading.calls);
    [
        Kind::Gauge.family(
            "mesh_agent_cni_installed",
            "Whether the CNI plugin stands in the network configuration that container runtimes read; absent where it is not wanted.",
            reading
                .map(|reading| Row::new(f64::from(u8::from(reading.installed))))
                .into_iter()
                .collect(),
        ),
        Kind::Gauge.family(
            "mesh_agent_cni_sandboxes_awaited",
            "Sandboxes that the CNI plugin has announced and in which no process is yet.",
            reading.map(|reading| Row::new(reading.awaited as f64)).into_iter().collect(),
        ),
        Kind::Counter.family(
            "mesh_agent_cni_calls_total",
            "Sandboxes that the CNI plugin has asked about, by result: captured, not-enrolled, refused, or unknown.",
            calls.map(|(result, n)| Row::new(*n as f64).label("result", result)).collect(),
        ),
    ]
}
