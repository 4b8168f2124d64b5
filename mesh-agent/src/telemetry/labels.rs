//! The labels of the TCP metrics, which are Istio's: what they are for a connection, and whether somebody still bears them.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use mesh_core::model::{Service, SpiffeId, Workload};
use mesh_core::snapshot::Snapshot;

use super::UNKNOWN;
use super::connections::{ConnectionInfo, Reporter, Security};

/// The value of `source_cluster` and `destination_cluster`, as in an Istio that does not name its cluster.
pub const CLUSTER: &str = "Kubernetes";

/// What stands in the labels of connections whose own label set found no room.
pub const OTHER: &str = "other";

/// Number of labels of a TCP series.
const LABELS: usize = 22;

/// The label names of the TCP metrics, in the order of [`LabelSet`]. `response_flags` comes behind them.
const NAMES: [&str; LABELS] = [
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

/// Where the labels of the source begin, and those of the destination.
const PARTIES: [usize; 2] = [1, 9];
/// Where the host name of the service is.
const SERVICE: usize = 17;

/// The values of the labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LabelSet([Arc<str>; LABELS]);

impl LabelSet {
    /// The labels of a connection.
    pub(super) fn of(info: &ConnectionInfo) -> Self {
        let source = principal(info.source_identity.as_ref());
        let destination = principal(info.destination_identity.as_ref());
        let [service, service_name, service_namespace] = match info.service.as_deref() {
            Some(Service { hostname, name, .. }) => [hostname.as_str(), &*name.name, &*name.namespace],
            None => [UNKNOWN; 3],
        };
        let security = match (info.reporter, info.security) {
            (Reporter::Source, _) => UNKNOWN,
            (Reporter::Destination, Security::MutualTls) => "mutual_tls",
            (Reporter::Destination, Security::None) => "none",
        };
        let [s0, s1, s2, s3, s4, s5, s6, s7] = party(info.source.as_deref(), &source);
        let [d0, d1, d2, d3, d4, d5, d6, d7] = party(info.destination.as_deref(), &destination);
        Self(
            [
                info.reporter.as_str(),
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

    /// The labels of all connections that share one because theirs found no room.
    pub(super) fn other(reporter: Reporter) -> Self {
        let mut labels = [OTHER; LABELS].map(Arc::from);
        labels[0] = reporter.as_str().into();
        labels[LABELS - 2] = "tcp".into();
        Self(labels)
    }

    /// Names and values.
    pub fn pairs(&self) -> impl Iterator<Item = (&'static str, &str)> {
        NAMES.into_iter().zip(self.0.iter().map(|value| &**value))
    }
}

fn principal(identity: Option<&SpiffeId>) -> String {
    identity.map_or_else(|| UNKNOWN.to_owned(), SpiffeId::to_string)
}

/// Workload, namespace, principal, app, version, cluster, canonical service, canonical revision.
fn party<'a>(workload: Option<&'a Workload>, principal: &'a str) -> [&'a str; 8] {
    let Some(workload) = workload else {
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
        CLUSTER,
        workload.canonical_name(),
        workload.canonical_revision(),
    ]
}

/// A party's labels without its principal, which is not known on every connection.
fn bearer(labels: [&str; 8]) -> [&str; 7] {
    let [workload, namespace, _, app, version, cluster, service, revision] = labels;
    [workload, namespace, app, version, cluster, service, revision]
}

/// Who is in the snapshot in force: by place in memory, and by the labels they bear.
#[derive(Debug, Default)]
pub struct Present<'s> {
    workloads: HashSet<*const Workload>,
    services: HashSet<*const Service>,
    bearers: HashSet<[&'s str; 7]>,
    hostnames: HashSet<&'s str>,
}

impl<'s> Present<'s> {
    /// Those of `snapshot`.
    pub fn of(snapshot: &'s Snapshot) -> Self {
        Self::among(snapshot.workloads(), snapshot.services())
    }

    /// These alone.
    pub fn among(
        workloads: impl IntoIterator<Item = &'s Arc<Workload>>,
        services: impl IntoIterator<Item = &'s Arc<Service>>,
    ) -> Self {
        let mut present = Self::default();
        for workload in workloads {
            present.workloads.insert(Arc::as_ptr(workload));
            present.bearers.insert(bearer(party(Some(&**workload), UNKNOWN)));
        }
        for service in services {
            present.services.insert(Arc::as_ptr(service));
            present.hostnames.insert(&service.hostname);
        }
        present
    }

    /// Whether somebody bears the labels of each side, and of the service; what is unknown cannot leave.
    pub(super) fn bears(&self, labels: &LabelSet) -> bool {
        let sides = PARTIES.into_iter().all(|first| {
            let Some(side) = labels.0.get(first..first + 8) else {
                return false;
            };
            let side: [&str; 8] = std::array::from_fn(|i| side.get(i).map_or(UNKNOWN, |label| &**label));
            let unknown = side[0] == UNKNOWN && side[1] == UNKNOWN;
            unknown || self.bearers.contains(&bearer(side))
        });
        let service = &*labels.0[SERVICE];
        sides && (service == UNKNOWN || self.hostnames.contains(service))
    }

    /// Whether the very values that `key` holds are in force.
    pub(super) fn holds(&self, key: &SeriesKey) -> bool {
        let parties = key.parties();
        parties.source.is_none_or(|at| self.workloads.contains(&at))
            && parties.destination.is_none_or(|at| self.workloads.contains(&at))
            && parties.service.is_none_or(|at| self.services.contains(&at))
    }
}

/// What a label set is made from, for comparison: workloads and services by their place in memory.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Parties<'a> {
    reporter: Reporter,
    security: Security,
    source: Option<*const Workload>,
    source_identity: Option<&'a SpiffeId>,
    destination: Option<*const Workload>,
    destination_identity: Option<&'a SpiffeId>,
    service: Option<*const Service>,
}

/// What has [`Parties`]. A connection can be looked up by them without a key of its own being made.
pub(super) trait HasParties {
    fn parties(&self) -> Parties<'_>;
}

impl HasParties for ConnectionInfo {
    fn parties(&self) -> Parties<'_> {
        Parties {
            reporter: self.reporter,
            security: self.security,
            source: self.source.as_ref().map(Arc::as_ptr),
            source_identity: self.source_identity.as_ref(),
            destination: self.destination.as_ref().map(Arc::as_ptr),
            destination_identity: self.destination_identity.as_ref(),
            service: self.service.as_ref().map(Arc::as_ptr),
        }
    }
}

/// The parties as a key of a map. It holds the workloads and the service, so that a place in memory is not used again, and a workload
/// whose labels changed is another value.
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
}

impl HasParties for SeriesKey {
    fn parties(&self) -> Parties<'_> {
        Parties {
            reporter: self.reporter,
            security: self.security,
            source: self.source.as_ref().map(Arc::as_ptr),
            source_identity: self.source_identity.as_ref(),
            destination: self.destination.as_ref().map(Arc::as_ptr),
            destination_identity: self.destination_identity.as_ref(),
            service: self.service.as_ref().map(Arc::as_ptr),
        }
    }
}

impl<'a> Borrow<dyn HasParties + 'a> for SeriesKey {
    fn borrow(&self) -> &(dyn HasParties + 'a) {
        self
    }
}

impl PartialEq for dyn HasParties + '_ {
    fn eq(&self, other: &Self) -> bool {
        self.parties() == other.parties()
    }
}

impl Eq for dyn HasParties + '_ {}

impl Hash for dyn HasParties + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parties().hash(state);
    }
}

impl PartialEq for SeriesKey {
    fn eq(&self, other: &Self) -> bool {
        self.parties() == other.parties()
    }
}

impl Eq for SeriesKey {}

impl Hash for SeriesKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.parties().hash(state);
    }
}
