//! The metrics registry: turns the counters and the readings that the agent supplies into the Prometheus text format.
//!
//! Everything is read at the scrape; nothing here runs between scrapes.

mod cni;
mod discovery;
mod kinds;
mod meshes;
mod policy;
mod row;

use std::sync::Arc;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, Registry, TextEncoder};
use thiserror::Error;

use crate::affinity::AffinityStatus;

pub use cni::CniReading;
pub use discovery::DiscoveryReading;

use super::connections::{ConnectionLog, ResponseFlag};
use super::process;
use super::serve::Server;
use super::traffic::{Room, Sample};
pub use kinds::{KindReading, WriterReading};
pub(super) use row::Kind;
use row::Row;

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The state of one BPF map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapFill {
    /// Its name.
    pub name: String,
    /// Entries in it; `None` where they cannot be counted.
    pub entries: Option<u64>,
    /// Entries at most.
    pub capacity: u64,
}

/// Kernel events that were told one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventReport {
    /// What.
    pub event: &'static str,
    /// The namespace of the workload that it befell; empty where that is not known.
    pub namespace: String,
    /// Its name; empty likewise.
    pub workload: String,
    /// How many.
    pub count: u64,
}

/// What the parts of the agent say about themselves at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readings {
    /// Version of the snapshot in force.
    pub snapshot_version: u64,
    /// What making snapshots has taken so far.
    pub snapshot_building: Duration,
    /// Documents that are rejected at present.
    pub config_rejections: u64,
    /// How the kinds of an API server stand.
    pub kinds: Vec<KindReading>,
    /// How status conditions are written; `None` where none are.
    pub writer: Option<WriterReading>,
    /// Identities with the end of their certificate, in seconds since the epoch.
    pub certificates: Vec<(String, i64)>,
    /// Local enrolled pods that are captured.
    pub pods_captured: u64,
    /// Local enrolled pods that are not captured.
    pub pods_failed: u64,
    /// Local pods that are left to another mesh.
    pub pods_left: u64,
    /// Parts of other meshes on this node, by what they are.
    pub other_meshes: Vec<(&'static str, u64)>,
    /// The BPF maps.
    pub maps: Vec<MapFill>,
    /// What the BPF programs counted.
    pub events: Vec<(&'static str, u64)>,
    /// Connections of captured pods that go around the agent.
    pub older_connections: u64,
    /// How many of these were closed.
    pub older_closed: u64,
    /// Clients that keep to an endpoint.
    pub affinity: AffinityStatus,
    /// Events that were told one by one, each kind, namespace and workload at most once.
    pub event_reports: Vec<EventReport>,
    /// Whether the BPF programs write debug lines.
    pub debug_log: bool,
    /// What each captured pod takes of the workers.
    pub budgets: Vec<BudgetReading>,
    /// How handovers between agents of the node ended.
    pub handovers: Vec<(&'static str, u64)>,
    /// Where pods were found.
    pub discovery: DiscoveryReading,
    /// The CNI plugin; `None` where it is not wanted.
    pub cni: Option<CniReading>,
}

/// What one pod takes of the workers, over all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BudgetReading {
    /// The workload's uid.
    pub workload: String,
    /// What is taken of each budget.
    pub taken: Vec<(&'static str, usize)>,
    /// How often each has refused.
    pub refused: Vec<(&'static str, u64)>,
}

/// Supplies [`Readings`]; called at each scrape, off the data path.
pub type ReadingsSource = Arc<dyn Fn() -> Readings + Send + Sync>;

/// Why the metrics could not be rendered.
#[derive(Debug, Error)]
pub enum MetricsError {
    /// The registry or the encoder refused: a fault of the agent.
    #[error("the metrics cannot be rendered: {0}")]
    Render(#[from] prometheus::Error),
}

/// The agent's registry.
pub struct Metrics {
    registry: Registry,
}

impl Metrics {
    /// A registry over the connections of `log` and what `readings` says.
    ///
    /// # Errors
    /// When two collectors describe the same metric: a fault of the agent.
    pub fn new(log: Arc<ConnectionLog>, readings: ReadingsSource) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        registry.register(Box::new(Pulled { log, readings }))?;
        Ok(Self { registry })
    }

    /// The metrics at this moment, in the Prometheus text format.
    ///
    /// # Errors
    /// When a metric is malformed: a fault of the agent.
    pub fn render(&self) -> Result<Vec<u8>, MetricsError> {
        let mut text = Vec::with_capacity(16 << 10);
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

/// One collector that makes every family from what is counted elsewhere.
struct Pulled {
    log: Arc<ConnectionLog>,
    readings: ReadingsSource,
}

impl Collector for Pulled {
    /// Described by the families themselves: the registry checks names at the scrape.
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let mut families = tcp(&self.log.scrape());
        families.extend(room(self.log.traffic().room()));
        families.extend(outcomes(&self.log));
        families.extend(policy::families(self.log.policies()));
        let readings = (self.readings)();
        families.extend(kinds::families(&readings.kinds));
        families.extend(readings.writer.iter().flat_map(kinds::status_families));
        families.extend(agent(&readings));
        families.extend(discovery::families(&readings.discovery));
        families.extend(meshes::families(&readings));
        families.extend(cni::families(readings.cni.as_ref()));
        families.extend(
            process::read()
                .into_iter()
                .map(|p| p.kind.family(p.name, p.help, vec![Row::new(p.value)])),
        );
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

/// What Istio calls a connection without a flag.
const NO_FLAG: &str = "-";

fn tcp(samples: &[Sample]) -> Vec<MetricFamily> {
    let row = |sample: &Sample, flag: Option<ResponseFlag>, value: u64| {
        sample
            .labels
            .pairs()
            .fold(Row::new(value as f64), |row, (name, value)| {
                row.label(name, value)
            })
            .label("response_flags", flag.map_or(NO_FLAG, ResponseFlag::as_str))
    };
    let family = |name: &str, help: &str, value: fn(&Sample) -> u64| {
        let rows = samples.iter().map(|s| row(s, None, value(s))).collect();
        Kind::Counter.family(name, help, rows)
    };
    let closed = samples
        .iter()
        .flat_map(|s| s.closed.iter().map(move |(flag, n)| row(s, *flag, *n)))
        .collect();
    vec![
        family(
            "istio_tcp_connections_opened_total",
            "TCP connections opened.",
            |s| s.opened,
        ),
        Kind::Counter.family(
            "istio_tcp_connections_closed_total",
            "TCP connections closed.",
            closed,
        ),
        family(
            "istio_tcp_received_bytes_total",
            "Bytes that clients sent to servers, live connections included.",
            |s| s.received,
        ),
        family(
            "istio_tcp_sent_bytes_total",
            "Bytes that servers sent to clients, live connections included.",
            |s| s.sent,
        ),
    ]
}

fn room(room: Room) -> [MetricFamily; 2] {
    let one = |n: u64| vec![Row::new(n as f64)];
    [
        Kind::Gauge.family(
            "mesh_agent_label_sets",
            "Label sets of the TCP metrics; there is room for 10000.",
            one(room.used as u64),
        ),
        Kind::Counter.family(
            "mesh_agent_label_set_overflows_total",
            "Label sets that found no room, so that their connections are counted under \"other\".",
            one(room.overflows),
        ),
    ]
}

fn outcomes(log: &ConnectionLog) -> Vec<MetricFamily> {
    let handshakes = log
        .handshakes()
        .counts()
        .into_iter()
        .map(|((role, failure), n)| {
            Row::new(n as f64)
                .label("role", role.as_str())
                .label("result", if failure.is_none() { "success" } else { "failure" })
                .label("reason", failure.unwrap_or_default())
        })
        .collect();
    let tunnel_ends = log
        .tunnel_ends()
        .counts()
        .into_iter()
        .map(|((role, reason), n)| {
            Row::new(n as f64)
                .label("role", role.as_str())
                .label("reason", reason)
        })
        .collect();
    let failures = log
        .failures()
        .counts()
        .into_iter()
        .map(|((reporter, flag, reason), n)| {
            Row::new(n as f64)
                .label("reporter", reporter.as_str())
                .label("flag", flag.as_str())
                .label("reason", reason)
        })
        .collect();
    let retries = log.retries().counts().into_iter();
    let retries = retries
        .map(|(reason, n)| Row::new(n as f64).label("reason", reason))
        .collect();
    vec![
        Kind::Counter.family(
            "mesh_agent_stream_retries_total",
            "Connections that were tried again on another tunnel because the peer had not processed them.",
            retries,
        ),
        Kind::Counter.family(
            "mesh_agent_handshakes_total",
            "TLS handshakes finished or failed.",
            handshakes,
        ),
        Kind::Counter.family(
            "mesh_agent_tunnels_cut_total",
            "Tunnel connections that ended other than in order, by reason.",
            tunnel_ends,
        ),
        Kind::Counter.family(
            "mesh_agent_connection_failures_total",
            "Connections that failed or were refused, by reason.",
            failures,
        ),
        Kind::Gauge.family(
            "mesh_agent_connections",
            "Connections that are live now.",
            vec![Row::new(log.len() as f64)],
        ),
    ]
}

fn agent(readings: &Readings) -> Vec<MetricFamily> {
    let gauge = |name, help, rows| Kind::Gauge.family(name, help, rows);
    let one = |n: u64| vec![Row::new(n as f64)];
    let maps = |value: fn(&MapFill) -> Option<u64>| {
        let filled = readings.maps.iter().filter_map(|map| Some((map, value(map)?)));
        filled
            .map(|(map, n)| Row::new(n as f64).label("map", &map.name))
            .collect()
    };
    let expiry = readings.certificates.iter();
    let events = readings.events.iter();
    let handovers = readings.handovers.iter();
    let budgets = |workload: &str, budget: &str, n: f64| {
        Row::new(n).label("workload", workload).label("budget", budget)
    };
    let each = readings.budgets.iter();
    let taken = each
        .clone()
        .flat_map(|r| r.taken.iter().map(|(b, n)| budgets(&r.workload, b, *n as f64)))
        .collect();
    let refused = each
        .flat_map(|r| r.refused.iter().map(|(b, n)| budgets(&r.workload, b, *n as f64)))
        .collect();
    vec![
        gauge(
            "mesh_agent_budget_used",
            "What a captured workload takes of the workers: connections, streams, handshakes, bytes held.",
            taken,
        ),
        Kind::Counter.family(
            "mesh_agent_budget_refusals_total",
            "Connections, streams and handshakes refused because a workload had used up its budget.",
            refused,
        ),
        gauge(
            "mesh_agent_build_info",
            "Always 1; says which build runs.",
            vec![Row::new(1.0).label("version", env!("CARGO_PKG_VERSION"))],
        ),
        Kind::Counter.family(
            "mesh_agent_handovers_total",
            "How handovers between the agents of this node ended, over all agents that have followed each other.",
            handovers
                .map(|(result, n)| Row::new(*n as f64).label("result", result))
                .collect(),
        ),
        gauge(
            "mesh_agent_snapshot_version",
            "Version of the configuration in force.",
            one(readings.snapshot_version),
        ),
        Kind::Counter.family(
            "mesh_agent_snapshot_build_seconds_total",
            "Time that making snapshots of the configuration has taken.",
            vec![Row::new(readings.snapshot_building.as_secs_f64())],
        ),
        gauge(
            "mesh_agent_config_rejections",
            "Documents that are rejected at present; `meshctl config` lists them.",
            one(readings.config_rejections),
        ),
        gauge(
            "mesh_agent_certificate_expiry_timestamp_seconds",
            "When the certificate of an identity ends, in seconds since the epoch.",
            expiry
                .map(|(id, at)| Row::new(*at as f64).label("identity", id))
                .collect(),
        ),
        gauge(
            "mesh_agent_pods",
            "Enrolled pods of this node by capture state.",
            vec![
                Row::new(readings.pods_captured as f64).label("state", "captured"),
                Row::new(readings.pods_failed as f64).label("state", "failed"),
            ],
        ),
        gauge(
            "mesh_agent_older_connections",
            "Connections of captured pods that the agent does not carry, because they are older than capture.",
            one(readings.older_connections),
        ),
        Kind::Counter.family(
            "mesh_agent_older_connections_closed_total",
            "Such connections that were closed, because STRICT forbids them.",
            one(readings.older_closed),
        ),
        gauge(
            "mesh_agent_bpf_map_entries",
            "Entries in a BPF map.",
            maps(|map| map.entries),
        ),
        gauge(
            "mesh_agent_bpf_map_capacity",
            "Entries that a BPF map can hold.",
            maps(|map| Some(map.capacity)),
        ),
        gauge(
            "mesh_agent_affinity_sessions",
            "Clients of services with sessionAffinity that keep to an endpoint.",
            one(readings.affinity.sessions as u64),
        ),
        Kind::Counter.family(
            "mesh_agent_affinity_evictions_total",
            "Sessions that were forgotten before their time because the table was full.",
            one(readings.affinity.evicted),
        ),
        Kind::Counter.family(
            "mesh_agent_http_connections_cut_total",
            "Connections to the agent's own servers that were cut: too slow, malformed, or one too many.",
            Server::ALL
                .map(|server| Row::new(server.cut() as f64).label("server", server.as_str()))
                .into(),
        ),
        Kind::Counter.family(
            "mesh_agent_bpf_events_total",
            "What the BPF programs counted.",
            events
                .map(|(event, n)| Row::new(*n as f64).label("event", event))
                .collect(),
        ),
        Kind::Counter.family(
            "mesh_agent_bpf_event_reports_total",
            "Events of the BPF programs that were told one by one, by workload: a sample, for there is a limit on each kind.",
            readings.event_reports.iter().map(event_report).collect(),
        ),
        gauge(
            "mesh_agent_bpf_debug_log",
            "Whether the BPF programs write debug lines.",
            one(u64::from(readings.debug_log)),
        ),
    ]
}

fn event_report(report: &EventReport) -> Row {
    Row::new(report.count as f64)
        .label("event", report.event)
        .label("namespace", &report.namespace)
        .label("workload", &report.workload)
}

#[cfg(test)]
mod tests;
