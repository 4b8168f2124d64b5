//! Puts the reports of all sources together and publishes a snapshot whenever something changed. One thread of its own: building never
//! stalls a worker.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use mesh_core::manifest::{Accepted, Notice, NoticeKind, Rejection};
use mesh_core::model::{Object, ObjectRef};
use mesh_core::snapshot::{Diagnostics, MeshSettings, Snapshot};

use super::objects::{AllObjects, Objects};
use super::{
    Changes, ConfigurationSource, Held, KindBoard, Report, ReportSink, RunningSource, SourceError,
    SourceState, SourceStatus, StatusReader,
};
use crate::state::SnapshotCell;

/// Reports that come within this time make one snapshot.
const COALESCE: Duration = Duration::from_millis(50);
/// Those after a quiet time need not wait so long: one change alone is the usual case.
const COALESCE_QUIET: Duration = Duration::from_millis(10);
/// What counts as a quiet time.
const QUIET: Duration = Duration::from_secs(1);

/// What the publisher is told.
#[derive(Debug)]
pub(super) enum Message {
    /// A source's new truth.
    Report { source: usize, report: Report },
    /// What is different in a source.
    Changes { source: usize, changes: Changes },
    /// Somebody wants to know all that is held.
    Tell(mpsc::Sender<Option<AllObjects>>),
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
    /// Starts the sources and publishes from then on. The first snapshot, version 1, is in force when this returns, if each source could
    /// say what it holds by then. Otherwise nothing is in force before the last of them has: the cell holds an empty snapshot, version 0.
    ///
    /// # Errors
    /// When a source cannot be watched at all.
    pub fn start(
        settings: MeshSettings,
        sources: Vec<Box<dyn ConfigurationSource>>,
    ) -> Result<Self, SourceError> {
        let (sender, inbox) = mpsc::channel();
        let mut holdings = Vec::new();
        let mut running = Vec::new();
        for (index, source) in sources.into_iter().enumerate() {
            holdings.push(Holding::of(&*source));
            let sink = ReportSink {
                source: index,
                sender: sender.clone(),
            };
            running.push(source.start(sink)?);
        }
        let boards = holdings.iter().map(|holding| holding.kinds.clone()).collect();
        let mut state = State::new(settings, holdings);
        while let Ok(message) = inbox.try_recv() {
            state.take(message);
        }
        state.changed = false;
        let first = if state.is_complete() {
            state.objects = state.objects();
            state.build(1)
        } else {
            Snapshot::empty(state.settings.clone())
        };
        let cell = Arc::new(SnapshotCell::new(first));
        let status = StatusReader::new(state.status(&cell.load()), SystemTime::now(), boards);
        running.iter().for_each(|source| source.follow(&status));
        if state.is_complete() {
            state.log(&cell.load());
        }
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

    /// Who knows all objects behind the snapshots.
    pub fn objects(&self) -> Objects {
        Objects::new(self.sender.clone())
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

/// What one source has said.
struct Holding {
    name: String,
    /// It has said everything.
    complete: bool,
    /// Of a source that says everything each time.
    report: Report,
    /// Of a source that says what is different.
    objects: BTreeMap<ObjectRef, Held>,
    notices: BTreeMap<String, Notice>,
    kinds: KindBoard,
}

impl Holding {
    fn of(source: &dyn ConfigurationSource) -> Self {
        Self {
            name: source.name(),
            complete: false,
            report: Report::default(),
            objects: BTreeMap::new(),
            notices: BTreeMap::new(),
            kinds: source.kinds(),
        }
    }

    /// Whether that is different from before.
    fn replace(&mut self, report: Report) -> bool {
        let changed = !self.complete || self.report != report;
        self.report = report;
        self.complete = true;
        changed
    }

    /// Whether that is different from before. Takes as long as there are changes, however much is held.
    fn change(&mut self, changes: Changes) -> bool {
        let mut changed = changes.complete && !self.complete;
        self.complete |= changes.complete;
        for (name, held) in changes.objects {
            if self.objects.get(&name) == Some(&held) {
                continue;
            }
            changed |= if held.is_gone() {
                self.objects.remove(&name).is_some()
            } else {
                self.objects.insert(name, held);
                true
            };
        }
        for (subject, notice) in changes.notices {
            changed |= match notice {
                None => self.notices.remove(&subject).is_some(),
                Some(notice) if self.notices.get(&subject) == Some(&notice) => false,
                Some(notice) => {
                    self.notices.insert(subject, notice);
                    true
                }
            };
        }
        changed
    }

    fn accepted(&self) -> impl Iterator<Item = &Accepted> {
        let objects = self.objects.values().filter_map(|held| held.accepted.as_ref());
        self.report.accepted.iter().chain(objects)
    }

    fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        let objects = self.objects.values().filter_map(|held| held.rejection.as_ref());
        self.report.rejections.iter().chain(objects)
    }

    fn notices(&self) -> impl Iterator<Item = &Notice> {
        self.report.notices.iter().chain(self.notices.values())
    }
}

struct State {
    settings: MeshSettings,
    sources: Vec<Holding>,
    changed: bool,
    /// Those of the snapshot in force.
    objects: Vec<Arc<Object>>,
    told: HashSet<Rejection>,
    noted: HashSet<Notice>,
}

impl State {
    fn new(settings: MeshSettings, sources: Vec<Holding>) -> Self {
        Self {
            settings,
            sources,
            changed: false,
            objects: Vec::new(),
            told: HashSet::new(),
            noted: HashSet::new(),
        }
    }

    /// Whether every source has said all that it holds. Before, a fact may be missing that refuses a connection.
    fn is_complete(&self) -> bool {
        self.sources.iter().all(|source| source.complete)
    }

    fn run(mut self, inbox: &Receiver<Message>, cell: &SnapshotCell, status: &StatusReader) {
        let mut last = Instant::now();
        while let Ok(message) = inbox.recv() {
            let wait = match last.elapsed() {
                quiet if quiet > QUIET => COALESCE_QUIET,
                _ => COALESCE,
            };
            if !self.take(message) || !self.coalesce(inbox, wait) {
                return;
            }
            last = Instant::now();
            if !self.is_complete() {
                status.replace(self.status(&cell.load()));
            } else if std::mem::take(&mut self.changed) {
                self.publish(cell, status);
            }
        }
    }

    /// Puts the next snapshot in force, unless it would say the same as the current one (a comment was added, a file was moved).
    fn publish(&mut self, cell: &SnapshotCell, status: &StatusReader) {
        let current = cell.load();
        let objects = self.objects();
        let next = self.build(current.version() + 1);
        let known = current.version() > 0;
        if known && objects == self.objects && next.diagnostics() == current.diagnostics() {
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
        match message {
            Message::Stop => return false,
            Message::Tell(to) => drop(to.send(self.held())),
            Message::Report { source, report } => {
                if let Some(holding) = self.sources.get_mut(source) {
                    self.changed |= holding.replace(report);
                }
            }
            Message::Changes { source, changes } => {
                if let Some(holding) = self.sources.get_mut(source) {
                    self.changed |= holding.change(changes);
                }
            }
        }
        true
    }

    /// Takes over what comes within a moment. `false` to stop.
    fn coalesce(&mut self, inbox: &Receiver<Message>, wait: Duration) -> bool {
        let until = Instant::now() + wait;
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
        self.sources.iter().flat_map(Holding::accepted)
    }

    fn objects(&self) -> Vec<Arc<Object>> {
        self.accepted().map(|one| one.object.clone()).collect()
    }

    fn held(&self) -> Option<AllObjects> {
        self.is_complete().then(|| AllObjects {
            accepted: self.accepted().cloned().collect(),
            diagnostics: self.diagnostics(),
        })
    }

    fn build(&self, version: u64) -> Snapshot {
        Snapshot::build(
            self.settings.clone(),
            version,
            self.accepted(),
            self.diagnostics(),
        )
    }

    /// What was said about documents one by one.
    fn diagnostics(&self) -> Diagnostics {
        Diagnostics {
            rejections: self
                .sources
                .iter()
                .flat_map(Holding::rejections)
                .cloned()
                .collect(),
            notices: self.sources.iter().flat_map(Holding::notices).cloned().collect(),
        }
    }

    fn status(&self, snapshot: &Snapshot) -> SourceStatus {
        let source = |holding: &Holding| SourceState {
            name: holding.name.clone(),
            synced: holding.complete,
            objects: holding.report.accepted.len() + holding.objects.len(),
            files: holding.report.files.clone(),
            kinds: Vec::new(),
            server: None,
        };
        SourceStatus {
            version: snapshot.version(),
            age_seconds: 0,
            sources: self.sources.iter().map(source).collect(),
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
