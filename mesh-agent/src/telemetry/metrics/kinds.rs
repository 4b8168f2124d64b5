//! The families of what is followed at an API server, kind by kind.

use prometheus::proto::MetricFamily;

use super::{Kind, Row};

/// How one kind stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KindReading {
    /// Its name.
    pub kind: String,
    /// The state that it is in.
    pub state: &'static str,
    /// Objects of it.
    pub objects: usize,
    /// Seconds since the server was heard about it.
    pub age_seconds: Option<u64>,
    /// How often it was listed in full.
    pub lists: u64,
    /// How often a watch has begun again.
    pub watch_restarts: u64,
    /// What went wrong, by reason.
    pub errors: Vec<(String, u64)>,
}

/// How status conditions are written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WriterReading {
    /// Whether this agent writes them.
    pub leads: bool,
    /// What it has tried to write, by how it came out.
    pub writes: Vec<(String, u64)>,
}

/// Those of status conditions.
pub(super) fn status_families(writer: &WriterReading) -> Vec<MetricFamily> {
    let writes = writer
        .writes
        .iter()
        .map(|(result, n)| Row::new(*n as f64).label("result", result));
    vec![
        Kind::Gauge.family(
            "mesh_agent_status_leader",
            "1 where this agent writes status conditions for the cluster; one agent does.",
            vec![Row::new(f64::from(u8::from(writer.leads)))],
        ),
        Kind::Counter.family(
            "mesh_agent_status_writes_total",
            "Attempts to write a status condition, by result: written; present, outdated, conflict, gone (it is looked at again); else why not.",
            writes.collect(),
        ),
    ]
}

/// All of them.
pub(super) fn families(kinds: &[KindReading]) -> Vec<MetricFamily> {
    let rows = |value: fn(&KindReading) -> Option<u64>| {
        let row = |kind: &KindReading| Some(Row::new(value(kind)? as f64).label("kind", &kind.kind));
        kinds.iter().filter_map(row).collect::<Vec<_>>()
    };
    let states = kinds
        .iter()
        .map(|kind| Row::new(1.0).label("kind", &kind.kind).label("state", kind.state));
    let errors = kinds.iter().flat_map(|kind| {
        kind.errors.iter().map(|(reason, n)| {
            Row::new(*n as f64)
                .label("kind", &kind.kind)
                .label("reason", reason)
        })
    });
    vec![
        Kind::Gauge.family(
            "mesh_agent_kubernetes_objects",
            "Objects known from the API server, by kind.",
            rows(|kind| Some(kind.objects as u64)),
        ),
        Kind::Gauge.family(
            "mesh_agent_kubernetes_kind_state",
            "Always 1; says how a kind is followed: waiting, stored, watching, lost, absent.",
            states.collect(),
        ),
        Kind::Gauge.family(
            "mesh_agent_kubernetes_view_age_seconds",
            "Seconds since the API server was last heard about a kind; a minute is usual.",
            rows(|kind| kind.age_seconds),
        ),
        Kind::Counter.family(
            "mesh_agent_kubernetes_lists_total",
            "Full lists of a kind.",
            rows(|kind| Some(kind.lists)),
        ),
        Kind::Counter.family(
            "mesh_agent_kubernetes_watch_restarts_total",
            "Watches of a kind that began where another had ended.",
            rows(|kind| Some(kind.watch_restarts)),
        ),
        Kind::Counter.family(
            "mesh_agent_kubernetes_errors_total",
            "Failed lists, watches and discoveries of a kind, by reason.",
            errors.collect(),
        ),
    ]
}
