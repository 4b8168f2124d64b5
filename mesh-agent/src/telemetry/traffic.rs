//! The counters over connections and their label sets: Istio's TCP metrics, and ours for failures and handshakes.
//!
//! A label set is resolved once per combination of source, destination, service and identities, then shared: events are additions to
//! atomic numbers. Label sets of workloads that are gone expire after [`GRACE`].

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_core::model::{Service, SpiffeId, Workload};

use super::UNKNOWN;
use super::connections::{ConnectionInfo, HandshakeRole, Reporter, ResponseFlag, Security};

/// How long the counters of a label set stay after the last workload and connection that used it is gone.
pub const GRACE: Duration = Duration::from_secs(600);

/// The value of `source_cluster` and `destination_cluster` where none is configured, as in Istio.
pub const DEFAULT_CLUSTER: &str = "Kubernetes";

/// Number of labels of a TCP series.
const LABELS: usize = 22;

/// The label names of the TCP metrics, in the order of [`LabelSet`]. `response_flags` comes behind them.
pub(super) const LABEL_NAMES: [&str; LABELS] = [
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "source_canonical_service",
    "source_canonical_revision",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_cluster",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "connection_security_policy",
];

/// The values of [`LABEL_NAMES`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelSet([Arc<str>; LABELS]);

impl LabelSet {
    /// The labels of a connection.
    fn of(info: &ConnectionInfo) -> Self {
        let reporter = info.reporter.as_str();
        let source = Party::of(info.source.as_deref(), info.source_identity.as_ref());
        let destination = Party::of(info.destination.as_deref(), info.destination_identity.as_ref());
        let [service, service_name, service_namespace] = match info.service.as_deref() {
            Some(Service { hostname, name, .. }) => [hostname.as_str(), &*name.name, &*name.namespace],
            None => [UNKNOWN; 3],
        };
        let security = match (info.reporter, info.security) {
            (Reporter::Source, _) => UNKNOWN,
            (Reporter::Destination, Security::MutualTls) => "mutual_tls",
            (Reporter::Destination, Security::None) => "none",
        };
        let [s0, s1, s2, s3, s4, s5, s6, s7] = source.labels();
        let [d0, d1, d2, d3, d4, d5, d6, d7] = destination.labels();
        Self(
            [
                reporter,
                s0,
                s1,
                s2,
                s3,
                s4,
                s5,
                s6,
                s7,
                d0,
                d1,
                d2,
                d3,
                d4,
                d5,
                d6,
                d7,
                service,
                service_name,
                service_namespace,
                "tcp",
                security,
            ]
            .map(Arc::from),
        )
    }

    /// Names and values.
    pub(super) fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        LABEL_NAMES.into_iter().zip(self.0.iter().map(|value| &**value))
    }
}

/// One side of a connection.
struct Party<'a> {
    workload: Option<&'a Workload>,
    principal: Option<String>,
}

impl<'a> Party<'a> {
    fn of(workload: Option<&'a Workload>, identity: Option<&SpiffeId>) -> Self {
        Self {
            workload,
            principal: identity.map(SpiffeId::to_string),
        }
    }

    /// Workload, namespace, principal, app, version, cluster, canonical service, canonical revision.
    fn labels(&self) -> [&str; 8] {
        let principal = self.principal.as_deref().unwrap_or(UNKNOWN);
        let Some(workload) = self.workload else {
            let mut labels = [UNKNOWN; 8];
            labels[2] = principal;
            return labels;
        };
        let label = |key| workload.labels.get(key).map(String::as_str);
        [
            &workload.owner.name,
            &workload.namespace,
            principal,
            label("app").unwrap_or_else(|| workload.canonical_name()),
            label("version").unwrap_or_else(|| workload.canonical_revision()),
            DEFAULT_CLUSTER,
            workload.canonical_name(),
            workload.canonical_revision(),
        ]
    }
}

/// What a label set is resolved from. Compares workloads and services by their place in memory: it holds them, so a place is not used
/// again, and a workload whose labels changed is another value.
#[derive(Debug)]
pub(super) struct SeriesKey {
    reporter: Reporter,
    security: Security,
    source: Option<Arc<Workload>>,
    source_identity: Option<SpiffeId>,
    destination: Option<Arc<Workload>>,
    destination_identity: Option<SpiffeId>,
    service: Option<Arc<Service>>,
}

impl SeriesKey {
    pub(super) fn of(info: &ConnectionInfo) -> Self {
        Self {
            reporter: info.reporter,
            security: info.security,
            source: info.source.clone(),
            source_identity: info.source_identity.clone(),
            destination: info.destination.clone(),
            destination_identity: info.destination_identity.clone(),
            service: info.service.clone(),
        }
    }

    /// The workloads it holds.
    pub(super) fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.source.iter().chain(self.destination.iter())
    }

    fn comparable(&self) -> impl Hash + Eq + '_ {
        (
            self.reporter,
            self.security,
            self.source.as_ref().map(Arc::as_ptr),
            &self.source_identity,
            self.destination.as_ref().map(Arc::as_ptr),
            &self.destination_identity,
            self.service.as_ref().map(Arc::as_ptr),
        )
    }
}

impl PartialEq for SeriesKey {
    fn eq(&self, other: &Self) -> bool {
        self.comparable() == other.comparable()
    }
}

impl Eq for SeriesKey {}

impl Hash for SeriesKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.comparable().hash(state);
    }
}

/// The numbers of one label set.
#[derive(Debug, Default)]
pub(super) struct Series {
    opened: AtomicU64,
    /// Without a flag first, then by [`ResponseFlag::ALL`].
    closed: [AtomicU64; ResponseFlag::ALL.len() + 1],
    received: AtomicU64,
    sent: AtomicU64,
}

impl Series {
    pub(super) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, flag: Option<ResponseFlag>) {
        let index = flag.map_or(0, |flag| flag as usize + 1);
        if let Some(count) = self.closed.get(index) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn add_bytes(&self, received: u64, sent: u64) {
        if received > 0 {
            self.received.fetch_add(received, Ordering::Relaxed);
        }
        if sent > 0 {
            self.sent.fetch_add(sent, Ordering::Relaxed);
        }
    }
}

/// One label set with its numbers at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The labels.
    pub labels: LabelSet,
    /// Connections opened.
    pub opened: u64,
    /// Connections closed, by flag (`None`: without failure); only those above zero.
    pub closed: Vec<(Option<ResponseFlag>, u64)>,
    /// Request bytes.
    pub received: u64,
    /// Response bytes.
    pub sent: u64,
}

#[derive(Debug, Default)]
struct Entry {
    series: Arc<Series>,
    /// Since when nothing refers to the series but this entry.
    alone_since: Option<Instant>,
}

/// The TCP counters by label set.
#[derive(Debug, Default)]
pub struct Traffic(Mutex<HashMap<LabelSet, Entry>>);

impl Traffic {
    /// The series of a connection. Called once per combination of parties and shard: takes a lock.
    pub(super) fn resolve(&self, info: &ConnectionInfo) -> Arc<Series> {
        let mut map = locked(&self.0);
        let entry = map.entry(LabelSet::of(info)).or_default();
        entry.alone_since = None;
        entry.series.clone()
    }

    /// All label sets with their numbers, in no order.
    pub fn samples(&self) -> Vec<Sample> {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let flags = || std::iter::once(None).chain(ResponseFlag::ALL.map(Some));
        locked(&self.0)
            .iter()
            .map(|(labels, Entry { series, .. })| Sample {
                labels: labels.clone(),
                opened: load(&series.opened),
                closed: flags()
                    .zip(series.closed.iter().map(load))
                    .filter(|(_, n)| *n > 0)
                    .collect(),
                received: load(&series.received),
                sent: load(&series.sent),
            })
            .collect()
    }

    /// Drops the series that nothing has referred to for [`GRACE`].
    pub(super) fn expire(&self, now: Instant) {
        locked(&self.0).retain(|_, entry| {
            // References are given out under this lock only, so a count of one cannot grow meanwhile.
            if Arc::strong_count(&entry.series) > 1 {
                entry.alone_since = None;
                return true;
            }
            let since = *entry.alone_since.get_or_insert(now);
            now.saturating_duration_since(since) < GRACE
        });
    }
}

/// Failed connections by reporter, flag and reason.
#[derive(Debug, Default)]
pub struct Failures(Mutex<HashMap<(Reporter, ResponseFlag, &'static str), u64>>);

impl Failures {
    pub(super) fn count(&self, reporter: Reporter, flag: ResponseFlag, reason: &'static str) {
        *locked(&self.0).entry((reporter, flag, reason)).or_default() += 1;
    }

    /// The counts, in no order.
    pub fn counts(&self) -> Vec<((Reporter, ResponseFlag, &'static str), u64)> {
        locked(&self.0).iter().map(|(key, n)| (*key, *n)).collect()
    }
}

/// TLS handshakes by role and outcome.
#[derive(Debug, Default)]
pub struct Handshakes(Mutex<HashMap<(HandshakeRole, Option<&'static str>), u64>>);

impl Handshakes {
    pub(super) fn count(&self, role: HandshakeRole, outcome: Result<(), &'static str>) {
        *locked(&self.0).entry((role, outcome.err())).or_default() += 1;
    }

    /// The counts by role and reason of failure (`None`: succeeded), in no order.
    pub fn counts(&self) -> Vec<((HandshakeRole, Option<&'static str>), u64)> {
        locked(&self.0).iter().map(|(key, n)| (*key, *n)).collect()
    }
}

/// Streams that were tried again on another tunnel connection, by reason.
#[derive(Debug, Default)]
pub struct Retries(Mutex<HashMap<&'static str, u64>>);

impl Retries {
    pub(super) fn count(&self, reason: &'static str) {
        *locked(&self.0).entry(reason).or_default() += 1;
    }

    /// The counts, in no order.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        locked(&self.0).iter().map(|(key, n)| (*key, *n)).collect()
    }
}

/// A panic elsewhere cannot leave these maps half-changed: every change is one step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_numbered_in_the_order_of_their_list() {
        for (i, flag) in ResponseFlag::ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, i);
        }
    }
}
