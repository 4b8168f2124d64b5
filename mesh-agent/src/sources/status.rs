//! What `meshctl` shows of the configuration.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_core::manifest::{Notice, Rejection};
use mesh_core::snapshot::Diagnostics;
use serde::{Deserialize, Serialize};

/// One file of a directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStatus {
    /// Its path.
    pub path: String,
    /// Objects it gives.
    pub accepted: usize,
    /// Objects of which an earlier version stays in force.
    pub held: usize,
    /// Documents that are not in force.
    pub rejected: usize,
    /// Why it cannot be read.
    pub error: Option<String>,
}

/// One source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceState {
    /// What it is called.
    pub name: String,
    /// Whether it has reported at all.
    pub synced: bool,
    /// Objects in force from it.
    pub objects: usize,
    /// Its files.
    pub files: Vec<FileStatus>,
    /// Its kinds, for sources that follow each kind by itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<KindStatus>,
    /// The API server that it follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerStatus>,
}

/// An API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerStatus {
    /// Where it is.
    pub address: String,
    /// Its version, as it tells it, such as `v1.33.1`; none before it was heard.
    pub version: Option<String>,
    /// Why it does not tell.
    pub problem: Option<String>,
}

/// Who writes status conditions into the objects of an API server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WriterStatus {
    /// The Lease that says it, as `namespace/name`.
    pub lease: String,
    /// Whether it is this agent.
    pub leads: bool,
    /// Who holds the Lease: the name of the agent's node, and a number.
    pub leader: Option<String>,
    /// What this agent has tried to write, by how it came out.
    pub writes: BTreeMap<String, u64>,
    /// What is in the way.
    pub problem: Option<String>,
}

/// How a kind is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KindState {
    /// It has not been listed yet: nothing of its source is in force.
    Waiting,
    /// What is in force was kept from an earlier run; the server has not been heard yet.
    Stored,
    /// What is in force is what the server says.
    Watching,
    /// What is in force is what the server said last; it cannot be heard at the moment.
    Lost,
    /// The server does not know the kind.
    Absent,
}

impl KindState {
    /// As it is serialized.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Stored => "stored",
            Self::Watching => "watching",
            Self::Lost => "lost",
            Self::Absent => "absent",
        }
    }
}

/// One kind of a source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindStatus {
    /// Its name.
    pub kind: String,
    /// The version in which it is followed.
    pub api_version: Option<String>,
    /// How it is followed.
    pub state: KindState,
    /// Objects of it, in force or rejected.
    pub objects: usize,
    /// Seconds since the server was last heard about it, by this run or by the one that kept it; `None` before the first time.
    pub age_seconds: Option<u64>,
    /// How often it was listed in full.
    pub lists: u64,
    /// How often a watch has begun again.
    pub watch_restarts: u64,
    /// What went wrong so far, by reason.
    pub errors: BTreeMap<String, u64>,
    /// What is wrong now, and what to do.
    pub problem: Option<String>,
    /// The reason of that, as in `errors`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

#[derive(Debug)]
struct Entry {
    status: KindStatus,
    /// The server was heard at that instant; or so long before it, as far as is known.
    heard: Option<(Instant, Duration)>,
}

/// How the kinds of a source stand at any moment: written by the source, read for `meshctl`, readiness and metrics.
#[derive(Clone, Debug, Default)]
pub struct KindBoard {
    entries: Arc<Mutex<Vec<Entry>>>,
    server: Arc<Mutex<Option<ServerStatus>>>,
    writer: Arc<Mutex<Option<WriterStatus>>>,
}

impl KindBoard {
    /// A board of these kinds, of which nothing is known yet.
    pub(super) fn new<'a>(kinds: impl IntoIterator<Item = &'a str>) -> Self {
        let entry = |kind: &str| Entry {
            status: KindStatus {
                kind: kind.to_owned(),
                api_version: None,
                state: KindState::Waiting,
                objects: 0,
                age_seconds: None,
                lists: 0,
                watch_restarts: 0,
                errors: BTreeMap::new(),
                problem: None,
                reason: None,
            },
            heard: None,
        };
        Self {
            entries: Arc::new(Mutex::new(kinds.into_iter().map(entry).collect())),
            server: Arc::default(),
            writer: Arc::default(),
        }
    }

    /// Who writes status conditions.
    pub(super) fn set_writer(&self, status: WriterStatus) {
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// Who writes status conditions, where any are written.
    pub fn writer(&self) -> Option<WriterStatus> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What is known of the server.
    pub(super) fn set_server(&self, status: ServerStatus) {
        *self.server.lock().unwrap_or_else(PoisonError::into_inner) = Some(status);
    }

    /// The server, where one is followed.
    pub fn server(&self) -> Option<ServerStatus> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is known of the kind in place `index`.
    pub(super) fn update(&self, index: usize, change: impl FnOnce(&mut KindStatus)) {
        if let Some(entry) = self
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(index)
        {
            change(&mut entry.status);
        }
    }

    /// The server has been heard about that kind.
    pub(super) fn heard(&self, index: usize) {
        if let Some(entry) = self
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(index)
        {
            entry.heard = Some((Instant::now(), Duration::ZERO));
        }
    }

    /// What is known about that kind was heard so long ago.
    pub(super) fn kept(&self, index: usize, ago: Duration) {
        if let Some(entry) = self
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(index)
        {
            entry.heard = Some((Instant::now(), ago));
        }
    }

    /// The state of all kinds.
    pub fn read(&self) -> Vec<KindStatus> {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |entry: &Entry| KindStatus {
            age_seconds: entry.heard.map(|(at, before)| (at.elapsed() + before).as_secs()),
            ..entry.status.clone()
        };
        entries.iter().map(read).collect()
    }
}

/// The configuration in force and what there is to say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Version of the snapshot in force.
    pub version: u64,
    /// Seconds since it was published.
    pub age_seconds: u64,
    /// Where it comes from.
    pub sources: Vec<SourceState>,
    /// Documents that are not in force.
    pub rejections: Vec<Rejection>,
    /// Unknown kinds and fields, conflicts, things that are ignored or changed.
    pub notices: Vec<Notice>,
}

impl SourceStatus {
    /// Seconds since an API server was last heard about the kind of which that is longest ago; `None` where no kind is followed at one.
    pub fn view_age(&self) -> Option<u64> {
        let kinds = self.sources.iter().flat_map(|source| &source.kinds);
        kinds
            .filter(|kind| kind.state != KindState::Absent)
            .filter_map(|kind| kind.age_seconds)
            .max()
    }

    /// Why nothing is in force yet, for each source and kind that holds it up.
    pub fn waiting(&self) -> Vec<String> {
        let open = self.sources.iter().filter(|source| !source.synced);
        let reasons = |source: &SourceState| {
            let name = source.name.clone();
            let kinds = source
                .kinds
                .iter()
                .filter(|kind| kind.state == KindState::Waiting);
            let why = |kind: &KindStatus| {
                let problem = kind.problem.as_deref().unwrap_or("it is being listed");
                format!("{name}: {} is not known yet: {problem}", kind.kind)
            };
            kinds.map(why).collect::<Vec<_>>()
        };
        open.flat_map(reasons).collect()
    }
}

/// What the publisher knows of a snapshot and of where it comes from. Costs little to make, however much there is to say.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) version: u64,
    pub(super) sources: Vec<SourceState>,
    pub(super) diagnostics: Arc<Diagnostics>,
    /// What making snapshots has taken so far.
    pub(super) building: Duration,
}

#[derive(Debug)]
struct Current {
    standing: Standing,
    published: SystemTime,
}

/// Reads the status; cheap to clone. Not for the data path.
#[derive(Clone, Debug)]
pub struct StatusReader {
    current: Arc<Mutex<Current>>,
    boards: Arc<[KindBoard]>,
}

impl StatusReader {
    /// Of `boards` there is one for each source.
    pub(super) fn new(standing: Standing, published: SystemTime, boards: Vec<KindBoard>) -> Self {
        Self {
            current: Arc::new(Mutex::new(Current { standing, published })),
            boards: boards.into(),
        }
    }

    /// How the kinds of all sources stand.
    pub fn kinds(&self) -> Vec<KindStatus> {
        self.boards.iter().flat_map(KindBoard::read).collect()
    }

    /// The API servers that are followed.
    pub fn servers(&self) -> Vec<ServerStatus> {
        self.boards.iter().filter_map(KindBoard::server).collect()
    }

    /// Who writes status conditions; `None` where none are written.
    pub fn writer(&self) -> Option<WriterStatus> {
        self.boards.iter().find_map(KindBoard::writer)
    }

    pub(super) fn set(&self, standing: Standing, published: SystemTime) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Current { standing, published };
    }

    /// Another word on the same snapshot.
    pub(super) fn replace(&self, standing: Standing) {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .standing = standing;
    }

    /// What making snapshots has taken so far.
    pub fn building(&self) -> Duration {
        self.current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .standing
            .building
    }

    /// The status now.
    pub fn read(&self) -> SourceStatus {
        let current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let age = SystemTime::now()
            .duration_since(current.published)
            .unwrap_or_default();
        let standing = &current.standing;
        let mut status = SourceStatus {
            version: standing.version,
            age_seconds: age.as_secs(),
            sources: standing.sources.clone(),
            rejections: standing.diagnostics.rejections.clone(),
            notices: standing.diagnostics.notices.clone(),
        };
        drop(current);
        for (source, board) in status.sources.iter_mut().zip(self.boards.iter()) {
            source.kinds = board.read();
            source.server = board.server();
        }
        status
    }
}
