//! What the running agent shows of itself: the admin API's documents, the metrics' readings, the facts of readiness. Reads its parts
//! and puts words to them; changes nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use jiff::Timestamp;
use mesh_core::model::{Enrolment, MtlsMode, SpiffeId, Workload, WorkloadUid};
use mesh_core::snapshot::Snapshot;
use tokio_util::sync::CancellationToken;

use crate::admin::View;
use crate::admin::document::{
    Analysis, Bpf, BpfEvents, BpfLog, BpfLogWanted, CaptureState, Certificates, Checks, CniStatus, Config,
    ConnectionCounts, ConnectionEntry, ConnectionFilter, Connections, EnrolmentState, ExplainQuery,
    Explanation, MtlsReadiness, OlderConnections, PodCounts, Policies, PredecessorStatus, Refusals,
    SandboxHost, Services, SessionCounts, SnapshotStatus, Status, UsageEntry, WorkloadEntry, Workloads,
    timestamp,
};
use crate::admin::host;
use crate::affinity::{Affinity, AffinityStatus};
use crate::capture::{self, Capture};
use crate::handover::{Leaving, Ledger};
use crate::identity::{CertificateStatus, Identities};
use crate::sources::{KindState, KindStatus, Objects, StatusReader, WriterStatus};
use crate::state::SnapshotCell;
use crate::telemetry::connections::ConnectionLog;
use crate::telemetry::metrics::{BudgetReading, CniReading, KindReading, Readings, WriterReading};
use crate::telemetry::readiness::{self, PodReadiness, ReadinessFacts};
use crate::worker::{Place, Usage, Workers};

use self::kernel::{bpf, bpf_event, bpf_log, event_reports, map_fill};
use super::checks;
use super::cni::Plugin;
use super::descriptors::Descriptors;

mod certificates;
mod cluster;
mod discovery;
mod kernel;
mod policy;
mod uncaptured;

/// How far each local enrolled workload is captured.
pub(super) type CaptureStates = BTreeMap<WorkloadUid, capture::CaptureState>;

/// The parts of the agent that are shown.
pub(super) struct AgentView {
    pub(super) started: (SystemTime, Instant),
    pub(super) snapshots: Arc<SnapshotCell>,
    pub(super) sources: StatusReader,
    pub(super) objects: Objects,
    pub(super) identities: Arc<Identities>,
    pub(super) capture: Arc<Capture>,
    pub(super) workers: Arc<Workers>,
    pub(super) affinity: Arc<Affinity>,
    pub(super) log: Arc<ConnectionLog>,
    pub(super) descriptors: Descriptors,
    pub(super) handovers: Arc<Ledger>,
    pub(super) plugin: Plugin,
    pub(super) sandbox: SandboxHost,
    /// Cancelled when the agent begins to stop.
    pub(super) stopping: CancellationToken,
}

impl AgentView {
    /// For `/metrics`.
    pub(super) fn readings(&self) -> Readings {
        let snapshot = self.snapshots.load();
        let pods = pod_counts(&snapshot, &self.capture.states());
        let seconds = |(id, at): (SpiffeId, SystemTime)| {
            (
                id.to_string(),
                Timestamp::try_from(at).map_or(0, Timestamp::as_second),
            )
        };
        Readings {
            snapshot_version: snapshot.version(),
            snapshot_building: self.sources.building(),
            config_rejections: snapshot.diagnostics().rejections.len() as u64,
            kinds: self.sources.kinds().into_iter().map(kind_reading).collect(),
            writer: self.sources.writer().map(writer_reading),
            certificates: self.identities.expiries().into_iter().map(seconds).collect(),
            pods_captured: pods.captured as u64,
            pods_failed: pods.failed as u64,
            pods_left: pods.left as u64,
            other_meshes: cluster::parts(&snapshot),
            maps: self.capture.map_fill().into_iter().map(map_fill).collect(),
            events: self.capture.counters().into_iter().collect(),
            older_connections: self
                .capture
                .older()
                .iter()
                .map(|of| of.connections.len() as u64)
                .sum(),
            older_closed: self.capture.older_closed(),
            affinity: self.affinity.status(),
            event_reports: event_reports(&self.capture.event_tallies()),
            debug_log: self.capture.debug_log().is_some(),
            discovery: discovery::reading(&self.capture.discovery()),
            budgets: self.workers.usage().into_iter().map(budget_reading).collect(),
            handovers: self.handovers.counts().by_result().into(),
            cni: self.plugin.status().map(cni_reading),
        }
    }

    /// For readiness probes.
    pub(super) fn readiness_facts(&self) -> ReadinessFacts {
        let snapshot = self.snapshots.load();
        ReadinessFacts {
            configured: snapshot.version() > 0,
            waiting: match snapshot.version() {
                0 => self.sources.read().waiting(),
                _ => Vec::new(),
            },
            draining: self.stopping.is_cancelled(),
            pods: pods_to_wait_for(&snapshot, &self.capture.states(), &self.identities.status()),
        }
    }
}

fn cni_reading(status: CniStatus) -> CniReading {
    CniReading {
        installed: status.installed,
        awaited: status.awaited as u64,
        calls: status
            .calls
            .into_iter()
            .map(|call| (call.result, call.calls))
            .collect(),
    }
}

fn predecessor_status(leaving: Leaving) -> PredecessorStatus {
    PredecessorStatus {
        version: leaving.version,
        pid: leaving.pid,
        relieved_at: timestamp(leaving.since),
        connections: leaving.connections,
    }
}

fn kind_reading(kind: KindStatus) -> KindReading {
    KindReading {
        kind: kind.kind,
        state: kind.state.as_str(),
        objects: kind.objects,
        age_seconds: kind.age_seconds.filter(|_| kind.state != KindState::Absent),
        lists: kind.lists,
        watch_restarts: kind.watch_restarts,
        errors: kind.errors.into_iter().collect(),
    }
}

fn writer_reading(writer: WriterStatus) -> WriterReading {
    WriterReading {
        leads: writer.leads,
        writes: writer.writes.into_iter().collect(),
    }
}

fn budget_reading((uid, usage): (WorkloadUid, Usage)) -> BudgetReading {
    BudgetReading {
        workload: uid.to_string(),
        taken: Place::ALL
            .map(Place::as_str)
            .into_iter()
            .zip(usage.taken)
            .collect(),
        refused: Place::ALL
            .map(Place::as_str)
            .into_iter()
            .zip(usage.refused)
            .collect(),
    }
}

impl View for AgentView {
    fn status(&self) -> Status {
        let snapshot = self.snapshots.load();
        let readiness = readiness::decide(&self.readiness_facts());
        let sources = self.sources.read();
        let (started_at, started) = self.started;
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: snapshot.settings().node_name.clone(),
            trust_domain: snapshot.settings().trust_domain.to_string(),
            pid: std::process::id(),
            started_at: timestamp(started_at),
            uptime_seconds: started.elapsed().as_secs(),
            predecessor: self.handovers.leaving().map(predecessor_status),
            ready: readiness.is_ready(),
            not_ready: readiness.reasons,
            snapshot: SnapshotStatus {
                version: snapshot.version(),
                age_seconds: sources.age_seconds,
                view_age_seconds: sources.view_age(),
                workloads: snapshot.workload_count(),
                services: snapshot.service_count(),
            },
            pods: pod_counts(&snapshot, &self.capture.states()),
            connections: ConnectionCounts {
                live: self.log.len(),
                opened: self.log.opened(),
                retried: self.log.retries().counts().iter().map(|(_, n)| n).sum(),
            },
            sessions: session_counts(self.affinity.status()),
            certificates: certificates::counts(&self.identities.status()),
            rejections: snapshot.diagnostics().rejections.len(),
            container_runtime: discovery::container_runtime(&self.capture.discovery()),
            other_meshes: cluster::other_meshes(&snapshot),
            cni: self.plugin.status(),
            status_writer: self.sources.writer(),
        }
    }

    fn workloads(&self) -> Workloads {
        let snapshot = self.snapshots.load();
        let mut all = workloads(&snapshot, &self.capture.states(), &self.workers.usage());
        uncaptured::describe(&mut all, &snapshot, &self.capture);
        discovery::describe(&mut all, &self.capture.discovery());
        all
    }

    fn older_connections(&self, filter: &ConnectionFilter) -> OlderConnections {
        let mut older = uncaptured::older(&self.snapshots.load(), self.capture.older());
        older.connections.retain(|entry| entry.matches(filter));
        older.closed = self.capture.older_closed();
        older
    }

    fn connections(&self, filter: &ConnectionFilter) -> Connections {
        let mut connections: Vec<_> = self
            .log
            .live()
            .iter()
            .map(|live| ConnectionEntry::of(live))
            .collect();
        connections.retain(|entry| entry.matches(filter));
        connections.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
        Connections { connections }
    }

    fn policies(&self) -> Policies {
        policy::policies(&self.snapshots.load(), self.log.policies())
    }

    fn refusals(&self) -> Refusals {
        policy::refusals(self.log.policies())
    }

    fn explain(&self, query: &ExplainQuery) -> Result<Explanation, String> {
        policy::explain(&self.snapshots.load(), query)
    }

    fn services(&self) -> Services {
        policy::services(&self.snapshots.load())
    }

    fn mtls_readiness(&self) -> MtlsReadiness {
        policy::readiness(
            &self.snapshots.load(),
            timestamp(self.started.0),
            &self.workloads(),
            &self.older_connections(&ConnectionFilter::default()),
            self.log.policies().plaintext(),
        )
    }

    fn certificates(&self) -> Certificates {
        let now = Timestamp::now();
        let all = self.identities.status().into_iter();
        Certificates {
            certificates: all.map(|status| certificates::entry(status, now)).collect(),
        }
    }

    fn bpf(&self) -> Bpf {
        Bpf {
            log: bpf_log(self.capture.debug_log()),
            ..bpf(self.capture.status())
        }
    }

    fn bpf_events(&self) -> BpfEvents {
        BpfEvents {
            events: self.capture.events().into_iter().map(bpf_event).collect(),
            suppressed: self.capture.events_suppressed(),
        }
    }

    fn set_bpf_log(&self, wanted: &BpfLogWanted) -> Result<BpfLog, String> {
        let switched = if wanted.on {
            let time = Duration::from_secs(wanted.seconds);
            self.capture.debug_log_on(time, wanted.pod.as_deref()).map(Some)
        } else {
            self.capture.debug_log_off().map(|()| None)
        };
        switched.map(bpf_log).map_err(|error| error.to_string())
    }

    fn checks(&self) -> Checks {
        let mut checks = host::checks(self.capture.options());
        checks.checks.extend(checks::of_agent(&checks::Facts {
            status: self.status(),
            workloads: self.workloads(),
            certificates: self.certificates(),
            bpf: self.bpf(),
            workers: self.workers.status(),
            descriptors: self.descriptors,
            probes: self.capture.probe_passage(),
            older: self.older_connections(&ConnectionFilter::default()),
            metrics: self.log.traffic().room(),
            kinds: self.sources.kinds(),
            servers: self.sources.servers(),
            agents: cluster::agents(&self.snapshots.load()),
            istio_label: self.snapshots.load().settings().istio_label,
        }));
        checks
    }

    fn config(&self) -> Config {
        self.sources.read()
    }

    fn analyze(&self) -> Result<Analysis, String> {
        let settings = self.snapshots.load().settings().clone();
        cluster::analyze(&self.objects, settings, self.capture.options().allow_exclusions)
    }

    fn sandbox(&self) -> SandboxHost {
        self.sandbox.clone()
    }
}

fn is_ours(snapshot: &Snapshot, workload: &Workload) -> bool {
    workload.node == snapshot.settings().node_name && workload.enrolment.is_enrolled()
}

fn pod_counts(snapshot: &Snapshot, states: &CaptureStates) -> PodCounts {
    let mut counts = PodCounts::default();
    for workload in snapshot.local_workloads() {
        match capture_state(snapshot, workload, states) {
            (CaptureState::Captured, _) => counts.captured += 1,
            (CaptureState::Failed, _) => counts.failed += 1,
            (CaptureState::None, _) if matches!(workload.enrolment, Enrolment::Refused(_)) => {
                counts.failed += 1
            }
            _ => {}
        }
        counts.left += usize::from(matches!(workload.enrolment, Enrolment::Left(_)));
        counts.enrolled += usize::from(workload.enrolment.is_enrolled());
    }
    counts
}

/// Those that can be captured; what is refused will not be, so readiness does not wait for it.
fn pods_to_wait_for(
    snapshot: &Snapshot,
    states: &CaptureStates,
    certificates: &[CertificateStatus],
) -> Vec<PodReadiness> {
    let ours = snapshot
        .local_workloads()
        .filter(|workload| workload.enrolment.is_enrolled());
    let mut pods: Vec<_> = ours
        .filter_map(|workload| {
            let captured = match states.get(&workload.uid) {
                Some(capture::CaptureState::Captured) => Ok(()),
                Some(capture::CaptureState::Pending(why)) => Err(why.clone()),
                Some(capture::CaptureState::Refused(_) | capture::CaptureState::Absent(_)) => return None,
                None => Err("not tried yet".to_owned()),
            };
            let certificate = certificates
                .iter()
                .find(|status| status.identity == workload.identity);
            Some(PodReadiness {
                name: format!("{}/{}", workload.namespace, workload.name),
                captured,
                certificate: certificates::readiness(certificate),
            })
        })
        .collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    pods
}

fn capture_state(
    snapshot: &Snapshot,
    workload: &Workload,
    states: &CaptureStates,
) -> (CaptureState, Option<String>) {
    if !workload.enrolment.is_enrolled() {
        return (CaptureState::None, None);
    }
    if !is_ours(snapshot, workload) {
        return (CaptureState::Remote, None);
    }
    match states.get(&workload.uid) {
        Some(capture::CaptureState::Captured) => (CaptureState::Captured, None),
        Some(capture::CaptureState::Pending(why) | capture::CaptureState::Absent(why)) => {
            (CaptureState::Pending, Some(why.clone()))
        }
        Some(capture::CaptureState::Refused(why)) => (CaptureState::Failed, Some(why.clone())),
        None => (CaptureState::Pending, Some("not tried yet".to_owned())),
    }
}

fn workloads(snapshot: &Snapshot, states: &CaptureStates, usage: &BTreeMap<WorkloadUid, Usage>) -> Workloads {
    let mut all: Vec<&Arc<Workload>> = snapshot.workloads().collect();
    all.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
    let entry = |workload: &Arc<Workload>| {
        let (enrolment, enrolment_reason) = match &workload.enrolment {
            Enrolment::Enrolled => (EnrolmentState::Enrolled, None),
            Enrolment::NotEnrolled => (EnrolmentState::NotEnrolled, None),
            Enrolment::Left(why) => (EnrolmentState::NotEnrolled, Some(why.clone())),
            Enrolment::Refused(why) => (EnrolmentState::Refused, Some(why.clone())),
        };
        let (capture, capture_reason) = capture_state(snapshot, workload, states);
        // No policy names port 0, so this is what holds where no port says otherwise.
        let mtls = snapshot.mtls_decision(workload, 0);
        WorkloadEntry {
            uid: workload.uid.to_string(),
            namespace: workload.namespace.clone(),
            name: workload.name.clone(),
            node: workload.node.clone(),
            local: workload.node == snapshot.settings().node_name,
            addresses: workload.addresses.clone(),
            identity: workload.identity.to_string(),
            enrolment,
            enrolment_reason,
            capture,
            capture_reason,
            mtls: match snapshot.mtls_mode(workload, 0) {
                MtlsMode::Strict => "STRICT".to_owned(),
                MtlsMode::Permissive => "PERMISSIVE".to_owned(),
            },
            usage: usage.get(&workload.uid).map(|usage| usage_entry(*usage)),
            mtls_policy: mtls
                .and_then(|decision| decision.decided_by.as_ref())
                .map(ToString::to_string),
            sandbox: None,
            uncaptured: Default::default(),
        }
    };
    Workloads {
        workloads: all.into_iter().map(entry).collect(),
    }
}

fn session_counts(status: AffinityStatus) -> SessionCounts {
    SessionCounts {
        live: status.sessions,
        capacity: status.capacity,
        evicted: status.evicted,
    }
}

fn usage_entry(usage: Usage) -> UsageEntry {
    let [connections, streams, handshakes, held_bytes] = usage.taken;
    UsageEntry {
        connections,
        streams,
        handshakes,
        held_bytes,
        refused: Place::ALL
            .into_iter()
            .zip(usage.refused)
            .filter(|(_, n)| *n > 0)
            .map(|(place, n)| (place.as_str().to_owned(), n))
            .collect(),
    }
}

#[cfg(test)]
mod tests;
