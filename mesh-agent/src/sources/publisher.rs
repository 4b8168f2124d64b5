//! Puts the reports of all sources together and publishes a snapshot whenever something changed. One thread of its own: building never
//! stalls a worker.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use mesh_core::manifest::{Accepted, Notice, NoticeKind, Rejection};
use mesh_core::model::ObjectRef;
use mesh_core::snapshot::{Builder, Diagnostics, MeshSettings, Snapshot};

use super::objects::{AllObjects, Objects};
use super::status::Standing;
use super::{
    Changes, ConfigurationSource, Held, KindBoard, Report, ReportSink, RunningSource, SourceError,
    SourceState, StatusReader,
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
        let first = if state.is_complete() {
            state.build(1).0
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
    /// Where in the report the versions of an object are.
    places: HashMap<Arc<ObjectRef>, Vec<usize>>,
    /// Of a source that says what is different.
    objects: HashMap<Arc<ObjectRef>, Held>,
    /// Those of which a later version is not in force.
    rejected: BTreeSet<Arc<ObjectRef>>,
    notices: BTreeMap<String, Notice>,
    kinds: KindBoard,
}

/// What is different from what was built last.
#[derive(Default)]
struct Different {
    /// Objects of which a source has another version.
    objects: HashSet<Arc<ObjectRef>>,
    /// What there is to say about documents that gave no object.
    documents: bool,
    /// What sources look like: whether they are complete, which files they have.
    sources: bool,
}

impl Holding {
    fn of(source: &dyn ConfigurationSource) -> Self {
        Self {
            name: source.name(),
            complete: false,
            report: Report::default(),
            places: HashMap::new(),
            objects: HashMap::new(),
            rejected: BTreeSet::new(),
            notices: BTreeMap::new(),
            kinds: source.kinds(),
        }
    }

    /// Takes over a report, and says what is different by it.
    fn replace(&mut self, report: Report, different: &mut Different) {
        different.sources |= !self.complete || self.report.files != report.files;
        different.documents |=
            self.report.rejections != report.rejections || self.report.notices != report.notices;
        let mut places: HashMap<Arc<ObjectRef>, Vec<usize>> = HashMap::new();
        for (place, one) in report.accepted.iter().enumerate() {
            places.entry(Arc::new(one.object.name())).or_default().push(place);
        }
        let before = std::mem::replace(&mut self.report, report);
        let before_places = std::mem::replace(&mut self.places, places);
        let versions = |report: &'_ Report, places: Option<&Vec<usize>>| -> Vec<Accepted> {
            let places = places.into_iter().flatten();
            places
                .filter_map(|place| report.accepted.get(*place).cloned())
                .collect()
        };
        for name in before_places.keys().chain(self.places.keys()) {
            let old = versions(&before, before_places.get(name));
            if old != versions(&self.report, self.places.get(name)) {
                different.objects.insert(Arc::clone(name));
            }
        }
        self.complete = true;
    }

    /// Takes over changes, and says what is different by them. Takes as long as there are changes, however much is held.
    fn change(&mut self, changes: Changes, different: &mut Different) {
        different.sources |= changes.complete && !self.complete;
        self.complete |= changes.complete;
        for (name, held) in changes.objects {
            let before = self.objects.get(&name);
            if before == Some(&held) || (before.is_none() && held.is_gone()) {
                continue;
            }
            let rejection = |held: Option<&Held>| held.and_then(|held| held.rejection.clone());
            different.documents |= rejection(before) != rejection(Some(&held));
            match held.rejection.is_some() {
                true => drop(self.rejected.insert(Arc::clone(&name))),
                false => drop(self.rejected.remove(&name)),
            }
            different.objects.insert(Arc::clone(&name));
            if held.is_gone() {
                self.objects.remove(&name);
            } else {
                self.objects.insert(name, held);
            }
        }
        for (subject, notice) in changes.notices {
            different.documents |= self.notices.get(&subject) != notice.as_ref();
            match notice {
                None => drop(self.notices.remove(&subject)),
                Some(notice) => drop(self.notices.insert(subject, notice)),
            }
        }
    }

    /// The versions of an object, of which the first holds.
    fn versions(&self, name: &ObjectRef) -> impl Iterator<Item = &Accepted> {
        let places = self.places.get(name).into_iter().flatten();
        let reported = places.filter_map(|place| self.report.accepted.get(*place));
        reported.chain(self.objects.get(name).and_then(|held| held.accepted.as_ref()))
    }

    /// All objects in force, in order of precedence; of one precedence, by name.
    fn accepted(&self) -> impl Iterator<Item = &Accepted> {
        let mut objects: Vec<_> = self.objects.iter().collect();
        objects.sort_by_key(|(name, _)| *name);
        let objects = objects.into_iter().filter_map(|(_, held)| held.accepted.as_ref());
        self.report.accepted.iter().chain(objects)
    }

    fn rejections(&self) -> impl Iterator<Item = &Rejection> {
        let held = self.rejected.iter().filter_map(|name| self.objects.get(name));
        let held = held.filter_map(|held| held.rejection.as_deref());
        self.report.rejections.iter().chain(held)
    }

    fn notices(&self) -> impl Iterator<Item = &Notice> {
        self.report.notices.iter().chain(self.notices.values())
    }
}

struct State {
    settings: MeshSettings,
    sources: Vec<Holding>,
    builder: Builder,
    different: Different,
    /// What has been logged of what there is to say.
    told: Arc<Diagnostics>,
    /// What making snapshots has taken so far, and the last one of it.
    building: (Duration, Duration),
}

impl State {
    fn new(settings: MeshSettings, sources: Vec<Holding>) -> Self {
        Self {
            builder: Builder::new(settings.clone()),
            settings,
            sources,
            different: Different::default(),
            told: Arc::default(),
            building: Default::default(),
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
            if self.is_complete() {
                self.publish(cell, status);
            } else {
                status.replace(self.status(&cell.load()));
            }
        }
    }

    /// Puts the next snapshot in force, unless it would say the same as the current one (a comment was added, a file was moved).
    fn publish(&mut self, cell: &SnapshotCell, status: &StatusReader) {
        let current = cell.load();
        let looks = std::mem::take(&mut self.different.sources);
        let (next, changed) = self.build(current.version() + 1);
        let known = current.version() > 0;
        if known && !changed {
            if looks {
                status.replace(self.status(&current));
            }
            return;
        }
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
                    holding.replace(report, &mut self.different);
                }
            }
            Message::Changes { source, changes } => {
                if let Some(holding) = self.sources.get_mut(source) {
                    holding.change(changes, &mut self.different);
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

    /// The snapshot of what sources hold now, and whether it says anything else than the one before it.
    fn build(&mut self, version: u64) -> (Snapshot, bool) {
        let began = Instant::now();
        let Different {
            objects, documents, ..
        } = std::mem::take(&mut self.different);
        if documents {
            self.builder.documents(self.diagnostics());
        }
        for name in &objects {
            let versions = self.sources.iter().flat_map(|source| source.versions(name));
            self.builder.set(name, versions);
        }
        let made = self.builder.next(version);
        let took = began.elapsed();
        self.building = (self.building.0 + took, took);
        made
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

    fn held(&self) -> Option<AllObjects> {
        let accepted = self.sources.iter().flat_map(Holding::accepted);
        self.is_complete().then(|| AllObjects {
            accepted: accepted.cloned().collect(),
            diagnostics: self.diagnostics(),
        })
    }

    fn status(&self, snapshot: &Snapshot) -> Standing {
        let source = |holding: &Holding| SourceState {
            name: holding.name.clone(),
            synced: holding.complete,
            objects: holding.report.accepted.len() + holding.objects.len(),
            files: holding.report.files.clone(),
            kinds: Vec::new(),
            server: None,
        };
        Standing {
            version: snapshot.version(),
            sources: self.sources.iter().map(source).collect(),
            diagnostics: Arc::clone(snapshot.diagnostics()),
            building: self.building.0,
        }
    }

    /// One line per snapshot, and one for each rejection and notice that was not there before.
    fn log(&mut self, snapshot: &Snapshot) {
        let diagnostics = snapshot.diagnostics();
        if !Arc::ptr_eq(diagnostics, &self.told) {
            self.log_news(diagnostics);
        }
        tracing::info!(
            target: "mesh_agent::config",
            version = snapshot.version(),
            workloads = snapshot.workload_count(),
            services = snapshot.service_count(),
            policies = snapshot.peer_authentications().len(),
            rejections = diagnostics.rejections.len(),
            notices = diagnostics.notices.len(),
            micros = self.building.1.as_micros() as u64,
            "configuration in force"
        );
    }

    fn log_news(&mut self, diagnostics: &Arc<Diagnostics>) {
        let told: HashSet<&Rejection> = self.told.rejections.iter().collect();
        for rejection in diagnostics.rejections.iter().filter(|one| !told.contains(one)) {
            tracing::warn!(target: "mesh_agent::config", "{rejection}");
        }
        let noted: HashSet<&Notice> = self.told.notices.iter().collect();
        for notice in diagnostics.notices.iter().filter(|one| !noted.contains(one)) {
            match notice.kind {
                NoticeKind::UnknownField => tracing::info!(target: "mesh_agent::config", "{notice}"),
                _ => tracing::warn!(target: "mesh_agent::config", "{notice}"),
            }
        }
        self.told = Arc::clone(diagnostics);
    }
}
