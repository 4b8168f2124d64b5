//! The agent's side of the plugin: hears of sandboxes, announces them to discovery, and answers when the enroller has captured them. Decides
//! nothing about who is part of the mesh: the snapshot does.

use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use mesh_core::model::{Enrolment, Workload, WorkloadUid};
use mesh_core::snapshot::Snapshot;
use tokio::net::UnixListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::talk::{self, Answer, PodName, Question};
use crate::admin::{SocketError, private_listener};
use crate::capture::{Announcement, Announcements, Capture, CaptureState};
use crate::state::SnapshotCell;

/// Calls that are answered at once at most; a kubelet starts few pods at a time.
const CALLS: usize = 64;
/// How often a call looks whether its pod is captured.
const LOOK: Duration = Duration::from_millis(10);
/// How long a refusal has to stand before the plugin is told: the pod's network may still be changing.
const SETTLED: Duration = Duration::from_secs(2);
/// The longest that a call may wait, whatever it asks for.
const LONGEST: Duration = Duration::from_secs(120);

/// How many calls ended how.
#[derive(Debug, Default)]
pub struct DeskCounts {
    captured: AtomicU64,
    not_enrolled: AtomicU64,
    refused: AtomicU64,
    unknown: AtomicU64,
}

impl DeskCounts {
    /// By result, for calls with ADD.
    pub fn by_result(&self) -> [(&'static str, u64); 4] {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        [
            ("captured", of(&self.captured)),
            ("not-enrolled", of(&self.not_enrolled)),
            ("refused", of(&self.refused)),
            ("unknown", of(&self.unknown)),
        ]
    }

    fn count(&self, answer: &Answer) {
        let of = match answer {
            Answer::Captured => &self.captured,
            Answer::NotEnrolled => &self.not_enrolled,
            Answer::Refused(_) => &self.refused,
            Answer::Unknown(_) => &self.unknown,
        };
        of.fetch_add(1, Ordering::Relaxed);
    }
}

/// What answers need to know.
pub struct Desk {
    /// What is captured.
    pub capture: Arc<Capture>,
    /// Who is part of the mesh.
    pub snapshots: Arc<SnapshotCell>,
    /// Where discovery looks.
    pub announced: Arc<Announcements>,
    /// How calls ended.
    pub counts: Arc<DeskCounts>,
}

/// The desk's socket. Dropping it removes the file.
#[derive(Debug)]
pub struct DeskSocket {
    path: PathBuf,
    inode: u64,
    listener: UnixListener,
}

impl DeskSocket {
    /// Listens at `path`, for root alone; what listened there before does not any more.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(path: &Path) -> Result<Self, SocketError> {
        let io_error = |action| {
            move |source| SocketError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let listener = private_listener(path)?;
        let inode = fs::symlink_metadata(path).map_err(io_error("look at"))?.ino();
        let listener = UnixListener::from_std(listener).map_err(io_error("listen on"))?;
        Ok(Self {
            path: path.to_owned(),
            inode,
            listener,
        })
    }
}

impl Drop for DeskSocket {
    fn drop(&mut self) {
        // A successor may have put its own there.
        if fs::symlink_metadata(&self.path).is_ok_and(|file| file.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Desk {
    /// Answers until `stop`. Calls that wait then are not answered: the plugin asks the agent that comes next.
    pub async fn run(self, socket: DeskSocket, stop: CancellationToken) {
        let desk = Arc::new(self);
        let places = Arc::new(Semaphore::new(CALLS));
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                accepted = socket.listener.accept() => accepted,
            };
            let stream = accepted.and_then(|(stream, _)| blocking(stream));
            let stream = match stream {
                Ok(stream) => stream,
                Err(error) => {
                    warn!(%error, "a call of the CNI plugin cannot be taken");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).acquire_owned().await else {
                return;
            };
            let (desk, stop) = (Arc::clone(&desk), stop.clone());
            tokio::task::spawn_blocking(move || {
                if let Err(error) = desk.serve(&stream, &stop) {
                    debug!(%error, "a call of the CNI plugin has broken off");
                }
                drop(place);
            });
        }
    }

    fn serve(&self, stream: &UnixStream, stop: &CancellationToken) -> io::Result<()> {
        let (question, netns) = talk::hear(stream)?;
        let answer = match question {
            Question::Add {
                pod,
                container,
                netns: path,
                addresses,
                wait,
            } => {
                let Some(netns) = netns else {
                    return Err(io::ErrorKind::InvalidData.into());
                };
                let call = Add {
                    pod,
                    container,
                    path,
                    addresses,
                    deadline: Instant::now() + Duration::from_millis(wait).min(LONGEST),
                };
                let Some(answer) = self.add(&call, &netns, stop) else {
                    return Ok(());
                };
                self.counts.count(&answer);
                answer
            }
            Question::Check { pod } => self.check(&pod),
            Question::Delete { container } => {
                self.announced.withdraw(&container);
                Answer::Captured
            }
            Question::Collect { containers } => {
                self.announced.keep_only(&containers);
                Answer::Captured
            }
        };
        talk::reply(stream, &answer)
    }

    /// Waits until the pod is known, and captured if it is to be. `None`: this agent leaves.
    fn add(&self, call: &Add, netns: &File, stop: &CancellationToken) -> Option<Answer> {
        let begun = Instant::now();
        let mut announced = None;
        let mut refused: Option<(String, Instant)> = None;
        loop {
            let left = call.deadline.checked_duration_since(Instant::now());
            let snapshot = self.snapshots.load();
            let workload = find(&snapshot, &call.pod);
            let why = match workload.map(|workload| (&workload.enrolment, workload)) {
                None if snapshot.version() == 0 => "its configuration is not complete yet".to_owned(),
                None => "it has not heard of the pod from the API server yet".to_owned(),
                Some((Enrolment::NotEnrolled | Enrolment::Left(_) | Enrolment::Refused(_), _)) => {
                    if announced.is_some() {
                        self.announced.withdraw(&call.container);
                    }
                    return Some(Answer::NotEnrolled);
                }
                Some((Enrolment::Enrolled, workload)) => {
                    let inode = match announced {
                        Some(inode) => inode,
                        None => match self.announce(call, workload, netns) {
                            Ok(inode) => *announced.insert(inode),
                            Err(why) => return Some(Answer::Refused(why)),
                        },
                    };
                    match self.stands(&workload.uid, inode) {
                        Stands::Captured => {
                            info!(
                                workload = %workload.uid, container = call.container, took = ?begun.elapsed(),
                                "captured before its first process"
                            );
                            return Some(Answer::Captured);
                        }
                        Stands::Refused(why) => {
                            let since = match &refused {
                                Some((before, since)) if *before == why => *since,
                                _ => Instant::now(),
                            };
                            if since.elapsed() >= SETTLED {
                                return Some(Answer::Refused(why));
                            }
                            refused = Some((why.clone(), since));
                            why
                        }
                        Stands::Pending(why) => why,
                    }
                }
            };
            if stop.is_cancelled() {
                return None;
            }
            if left.is_none() {
                return Some(match announced {
                    Some(_) => Answer::Refused(why),
                    None => Answer::Unknown(why),
                });
            }
            sleep(LOOK);
        }
    }

    fn announce(&self, call: &Add, workload: &Workload, netns: &File) -> Result<u64, String> {
        if !self.capture.options().discovery.on {
            return Err("pods are not looked for on this node: set --pods-discover".to_owned());
        }
        let Some(uid) = workload.uid.pod_uid() else {
            return Err("it has no metadata.uid".to_owned());
        };
        let said = Announcement {
            pod: uid.to_owned(),
            container: call.container.clone(),
            netns: seen_from_here(&call.path),
            addresses: call.addresses.clone(),
        };
        let netns = netns.try_clone().map_err(|error| error.to_string())?;
        self.announced
            .announce(said, netns, Instant::now())
            .map_err(|error| error.to_string())
    }

    fn stands(&self, uid: &WorkloadUid, inode: u64) -> Stands {
        if self.capture.captured_in(uid) == Some(format!("net:[{inode}]")) {
            return Stands::Captured;
        }
        match self.capture.state_of(uid) {
            Some(CaptureState::Refused(why)) => Stands::Refused(why),
            Some(CaptureState::Pending(why) | CaptureState::Absent(why)) => Stands::Pending(why),
            Some(CaptureState::Captured) | None => {
                Stands::Pending("its sandbox is being captured".to_owned())
            }
        }
    }

    fn check(&self, pod: &PodName) -> Answer {
        let snapshot = self.snapshots.load();
        let Some(workload) = find(&snapshot, pod) else {
            return Answer::Unknown("it has not heard of the pod from the API server".to_owned());
        };
        if !workload.enrolment.is_enrolled() {
            return Answer::NotEnrolled;
        }
        match self.capture.state_of(&workload.uid) {
            Some(CaptureState::Captured) => Answer::Captured,
            Some(CaptureState::Refused(why) | CaptureState::Pending(why) | CaptureState::Absent(why)) => {
                Answer::Refused(why)
            }
            None => Answer::Refused("it was not tried yet".to_owned()),
        }
    }
}

struct Add {
    pod: PodName,
    container: String,
    path: PathBuf,
    addresses: Vec<IpAddr>,
    deadline: Instant,
}

enum Stands {
    Captured,
    Pending(String),
    Refused(String),
}

/// The workload that the runtime means. One without a uid may be the predecessor of the same name: then the newest cannot be told, and the
/// only one counts.
fn find<'s>(snapshot: &'s Snapshot, pod: &PodName) -> Option<&'s Arc<Workload>> {
    if let Some(uid) = &pod.uid {
        return snapshot.workload(&WorkloadUid::new(&pod.namespace, &pod.name, uid));
    }
    let mut named = snapshot
        .workloads()
        .filter(|workload| workload.namespace == pod.namespace && workload.name == pod.name);
    named.next().filter(|_| named.next().is_none())
}

/// Runtimes say `/var/run`, which is `/run` by a link that the agent's image does not have.
fn seen_from_here(path: &Path) -> PathBuf {
    match path.strip_prefix("/var/run") {
        Ok(below) => Path::new("/run").join(below),
        Err(_) => path.to_owned(),
    }
}

fn blocking(stream: tokio::net::UnixStream) -> io::Result<UnixStream> {
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    Ok(stream)
}
