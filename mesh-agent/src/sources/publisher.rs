//! Puts the reports of all sources together and publishes a snapshot whenever something changed. One thread of its own: building never
//! stalls a worker.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use mesh_core::manifest::{Accepted, Notice, NoticeKind, Rejection};
use mesh_core::model::Object;
use mesh_core::snapshot::{Diagnostics, MeshSettings, Snapshot};

use super::{
    ConfigurationSource, Report, ReportSink, RunningSource, SourceError, SourceState, SourceStatus,
    StatusReader,
};
use crate::state::SnapshotCell;

/// Reports that come within this time make one snapshot.
const COALESCE: Duration = Duration::from_millis(50);

/// What the publisher is told.
#[derive(Debug)]
pub(super) enum Message {
    /// A source's new truth.
    Report { source: usize, report: Report },
    /// The agent goes.
    Stop,
}

/// Keeps the sources and the publishing of snapshots going; both stop when this is dropped.
pub struct Publisher {
    cell: Arc<SnapshotCell>,
    status: StatusReader,
    sources: Vec<Box<dyn RunningSource>>,
    sender: mpsc::Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher")
            .field("sources", &self.sources.len())
            .finish_non_exhaustive()
    }
}

impl Publisher {
    /// Starts the sources and publishes from then on. The first snapshot, version 1, is in force when this returns.
    ///
    /// # Errors
    /// When a source cannot be watched at all.
    pub fn start(
        settings: MeshSettings,
        sources: Vec<Box<dyn ConfigurationSource>>,
    ) -> Result<Self, SourceError> {
        let (sender, inbox) = mpsc::channel();
        let mut names = Vec::new();
        let mut running = Vec::new();
        for (index, source) in sources.into_iter().enumerate() {
            names.push(source.name());
            let sink = ReportSink {
                source: index,
                sender: sender.clone(),
            };
            running.push(source.start(sink)?);
        }
        let mut state = State::new(settings, names);
        while let Ok(message) = inbox.try_recv() {
            state.take(message);
        }
        state.changed = false;
        state.objects = state.objects();
        let first = state.build(1);
        let cell = Arc::new(SnapshotCell::new(first));
        let status = StatusReader::new(state.status(&cell.load()), SystemTime::now());
        state.log(&cell.load());
        let what = "config-publish";
        let (to, reader) = (cell.clone(), status.clone());
        let thread = std::thread::Builder::new()
            .name(what.into())
            .spawn(move || state.run(&inbox, &to, &reader))
            .map_err(|error| SourceError::Thread { what, error })?;
        Ok(Self {
            cell,
            status,
            sources: running,
            sender,
            thread: Some(thread),
        })
    }

    /// Where the snapshots are published.
    pub fn cell(&self) -> &Arc<SnapshotCell> {
        &self.cell
    }

    /// Has all sources look for changes at once.
    pub fn look_now(&self) {
        self.sources.iter().for_each(|source| source.look_now());
    }

    /// What `meshctl` shows of the configuration.
    pub fn status(&self) -> &StatusReader {
        &self.status
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        self.sources.clear();
        drop(self.sender.send(Message::Stop));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct State {
    settings: MeshSettings,
    names: Vec<String>,
    reports: Vec<Option<Report>>,
    changed: bool,
    /// Those of the snapshot in force.
    objects: Vec<Arc<Object>>,
    told: HashSet<Rejection>,
    noted: HashSet<Notice>,
}

impl State {
    fn new(settings: MeshSettings, names: Vec<String>) -> Self {
        Self {
            settings,
            reports: names.iter().map(|_| None).collect(),
            names,
            changed: false,
            objects: Vec::new(),
            told: HashSet::new(),
            noted: HashSet::new(),
        }
    }

    fn run(mut self, inbox: &Receiver<Message>, cell: &SnapshotCell, status: &StatusReader) {
        while let Ok(message) = inbox.recv() {
            if !self.take(message) || !self.coalesce(inbox) {
                return;
            }
            if std::mem::take(&mut self.changed) {
                self.publish(cell, status);
            }
        }
    }

    /// Puts the next snapshot in force, unless it would say the same as the current one (a comment was added, a file was moved).
    fn publish(&mut self, cell: &SnapshotCell, status: &StatusReader) {
        let current = cell.load();
        let objects = self.objects();
        let next = self.build(current.version() + 1);
        if objects == self.objects && next.diagnostics() == current.diagnostics() {
            status.replace(self.status(&current));
            return;
        }
        self.objects = objects;
        self.log(&next);
        let next = Arc::new(next);
        cell.publish(next.clone());
        status.set(self.status(&next), SystemTime::now());
    }

    /// Takes over a message. `false` to stop.
    fn take(&mut self, message: Message) -> bool {
        let Message::Report { source, report } = message else {
            return false;
        };
        if let Some(place) = self.reports.get_mut(source)
            && place.as_ref() != Some(&report)
        {
            *place = Some(report);
            self.changed = true;
        }
        true
    }

    /// Takes over what comes within a moment. `false` to stop.
    fn coalesce(&mut self, inbox: &Receiver<Message>) -> bool {
        let until = Instant::now() + COALESCE;
        loop {
            match inbox.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(message) => {
                    if !self.take(message) {
                        return false;
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => return true,
                Err(mpsc::RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn accepted(&self) -> impl Iterator<Item = &Accepted> {
        self.reports.iter().flatten().flat_map(|report| &report.accepted)
    }

    fn objects(&self) -> Vec<Arc<Object>> {
        self.accepted().map(|one| one.object.clone()).collect()
    }

    fn build(&self, version: u64) -> Snapshot {
        let reports = || self.reports.iter().flatten();
        let diagnostics = Diagnostics {
            rejections: reports()
                .flat_map(|report| report.rejections.iter().cloned())
                .collect(),
            notices: reports()
                .flat_map(|report| report.notices.iter().cloned())
                .collect(),
        };
        Snapshot::build(self.settings.clone(), version, self.accepted(), diagnostics)
    }

    fn status(&self, snapshot: &Snapshot) -> SourceStatus {
        let source = |(name, report): (&String, &Option<Report>)| SourceState {
            name: name.clone(),
            synced: report.is_some(),
            objects: report.as_ref().map_or(0, |report| report.accepted.len()),
            files: report
                .as_ref()
                .map(|report| report.files.clone())
                .unwrap_or_default(),
        };
        SourceStatus {
            version: snapshot.version(),
            age_seconds: 0,
            sources: self.names.iter().zip(&self.reports).map(source).collect(),
            rejections: snapshot.diagnostics().rejections.clone(),
            notices: snapshot.diagnostics().notices.clone(),
        }
    }

    /// One line per snapshot, and one for each rejection and notice that was not there before.
    fn log(&mut self, snapshot: &Snapshot) {
        let diagnostics = snapshot.diagnostics();
        for rejection in &diagnostics.rejections {
            if !self.told.contains(rejection) {
                tracing::warn!(target: "mesh_agent::config", "{rejection}");
            }
        }
        for notice in &diagnostics.notices {
            match notice.kind {
                _ if self.noted.contains(notice) => {}
                NoticeKind::UnknownField => tracing::info!(target: "mesh_agent::config", "{notice}"),
                _ => tracing::warn!(target: "mesh_agent::config", "{notice}"),
            }
        }
        self.told = diagnostics.rejections.iter().cloned().collect();
        self.noted = diagnostics.notices.iter().cloned().collect();
        let policies = self
            .accepted()
            .filter(|one| matches!(*one.object, Object::PeerAuthentication(_)))
            .count();
        tracing::info!(
            target: "mesh_agent::config",
            version = snapshot.version(),
            workloads = snapshot.workloads().count(),
            services = snapshot.services().count(),
            policies,
            rejections = diagnostics.rejections.len(),
            notices = diagnostics.notices.len(),
            "configuration in force"
        );
    }
}
