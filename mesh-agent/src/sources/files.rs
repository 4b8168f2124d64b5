//! A directory of ordinary Kubernetes YAML as a source: watched, and looked at every second besides, for a notification may get lost.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::ledger::Ledger;
use super::scan::Directory;
use super::{ConfigurationSource, ReportSink, RunningSource, SourceError};
use mesh_core::manifest::{Origin, Rejection};

/// Between looks when nothing is heard.
const RESCAN: Duration = Duration::from_secs(1);
/// Until the next look when a file was caught half-written.
const UNFINISHED: Duration = Duration::from_millis(150);
/// Quiet time after a notification before files are read: writers rarely write once.
const SETTLE: Duration = Duration::from_millis(50);
/// Longest wait for that quiet.
const SETTLE_LIMIT: Duration = Duration::from_millis(400);

/// A directory of documents: `*.yaml`, `*.yml` and `*.json` in it and below.
#[derive(Debug)]
pub struct FileSource {
    directory: PathBuf,
}

impl FileSource {
    /// The source that `directory` is.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
        }
    }
}

impl ConfigurationSource for FileSource {
    fn name(&self) -> String {
        format!("directory {}", self.directory.display())
    }

    fn start(self: Box<Self>, sink: ReportSink) -> Result<Box<dyn RunningSource>, SourceError> {
        let (events, inbox) = mpsc::channel();
        let mut watch = Watch {
            directory: Directory::new(self.directory.clone()),
            root: self.directory.clone(),
            ledger: Ledger::default(),
            sink,
            events: events.clone(),
            watcher: None,
            trouble: None,
            reported: false,
        };
        watch.follow();
        watch.look().map_err(|error| SourceError::Directory {
            path: self.directory,
            error,
        })?;
        let what = "config-files";
        let thread = std::thread::Builder::new()
            .name(what.into())
            .spawn(move || watch.run(&inbox))
            .map_err(|error| SourceError::Thread { what, error })?;
        Ok(Box::new(Running {
            events,
            thread: Some(thread),
        }))
    }
}

enum Event {
    Changed,
    Stop,
}

struct Running {
    events: Sender<Event>,
    thread: Option<JoinHandle<()>>,
}

impl RunningSource for Running {
    fn look_now(&self) {
        drop(self.events.send(Event::Changed));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.events.send(Event::Stop));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// A watcher and the directory that it watches, which a rename may replace under the same name.
struct Following {
    _watcher: RecommendedWatcher,
    identity: Option<(u64, u64)>,
}

struct Watch {
    root: PathBuf,
    directory: Directory,
    ledger: Ledger,
    sink: ReportSink,
    events: Sender<Event>,
    watcher: Option<Following>,
    /// Why the directory cannot be listed at the moment.
    trouble: Option<String>,
    reported: bool,
}

impl Watch {
    fn run(mut self, inbox: &Receiver<Event>) {
        let mut wait = RESCAN;
        loop {
            match inbox.recv_timeout(wait) {
                Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Event::Changed) => {
                    if settle(inbox).is_err() {
                        return;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.follow();
            wait = match self.look() {
                Ok(true) => UNFINISHED,
                Ok(false) => RESCAN,
                Err(error) => {
                    self.cannot_list(&error.to_string());
                    RESCAN
                }
            };
        }
    }

    /// Looks at the files, and reports when something is different. Says whether a file was half-written.
    fn look(&mut self) -> std::io::Result<bool> {
        let look = self.directory.look(SystemTime::now())?;
        let recovered = self.trouble.take().is_some();
        if look.changed || recovered || !self.reported {
            self.reported = true;
            self.sink.send(self.ledger.apply(&self.directory.outcomes()));
        }
        Ok(look.unfinished)
    }

    /// Reports once that the directory is out of reach. What it held stays in force.
    fn cannot_list(&mut self, error: &str) {
        if self.trouble.as_deref() == Some(error) {
            return;
        }
        self.trouble = Some(error.to_owned());
        let mut report = self.ledger.apply(&self.directory.outcomes());
        report.rejections.push(Rejection {
            origin: Origin {
                file: self.root.to_string_lossy().into(),
                line: 0,
                column: 0,
            },
            object: None,
            message: format!(
                "the configuration directory cannot be listed: {error}; what it held before stays in force"
            ),
        });
        self.sink.send(report);
    }

    /// Makes sure that the directory which now has our name is the one that is watched.
    fn follow(&mut self) {
        let identity = fs::metadata(&self.root).ok().map(|meta| (meta.dev(), meta.ino()));
        if self
            .watcher
            .as_ref()
            .is_some_and(|following| following.identity == identity)
            || identity.is_none()
        {
            return;
        }
        match watcher(&self.root, self.events.clone()) {
            Ok(watcher) => {
                self.watcher = Some(Following {
                    _watcher: watcher,
                    identity,
                });
            }
            Err(error) => {
                if self.watcher.take().is_some() || !self.reported {
                    tracing::warn!(
                        directory = %self.root.display(), %error,
                        "no notifications for the configuration directory (is fs.inotify.max_user_watches reached?): it is looked \
                         at every second"
                    );
                }
            }
        }
    }
}

fn watcher(directory: &Path, events: Sender<Event>) -> notify::Result<RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is an access, too.
        let ours = |event: &notify::Event| matches!(event.kind, EventKind::Access(kind) if kind != AccessKind::Close(AccessMode::Write));
        if !event.as_ref().is_ok_and(ours) {
            drop(events.send(Event::Changed));
        }
    })?;
    watcher.watch(directory, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Waits until nothing was heard for a moment. `Err` to stop.
fn settle(inbox: &Receiver<Event>) -> Result<(), ()> {
    let limit = Instant::now() + SETTLE_LIMIT;
    while Instant::now() < limit {
        match inbox.recv_timeout(SETTLE) {
            Ok(Event::Changed) => {}
            Ok(Event::Stop) | Err(RecvTimeoutError::Disconnected) => return Err(()),
            Err(RecvTimeoutError::Timeout) => return Ok(()),
        }
    }
    Ok(())
}
