//! What the container runtime says about its sandboxes, followed on its CRI socket by a task of its own: who asks never waits for the runtime.
//! Owns the connection. What is said here is a claim until the kernel has shown the same.

mod client;
mod messages;

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::statfs::{NSFS_MAGIC, statfs};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tracing::{info, warn};

use self::client::{CallError, Client, Details};
use super::choose::Process;
use super::layout::PodKey;
use super::status::RuntimeState;
use crate::settings::CriSocket;

/// Where runtimes listen: containerd, CRI-O, k3s, k0s, MicroK8s, and the bridge to Docker.
const USUAL: [&str; 6] = [
    "/run/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/k0s/containerd.sock",
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/cri-dockerd.sock",
];
/// How often the list is read when nobody asks.
const REGULARLY: Duration = Duration::from_secs(10);
/// The time between two lists when somebody asks: while they change, and at most.
const SPACING: (Duration, Duration) = (Duration::from_millis(150), Duration::from_secs(2));
/// The first and the longest wait before a runtime that does not answer is tried again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// What a runtime says about the sandbox of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    /// The sandbox's first process.
    pid: Option<u32>,
    /// Inode of its network namespace, where its file can be seen from here.
    netns: Option<u64>,
}

impl Claim {
    /// The sandbox's process, if it is one of these and is where the runtime says.
    pub(super) fn among(&self, processes: &[Process]) -> Option<u32> {
        let in_place = |process: &&Process| self.netns.is_none_or(|netns| netns == process.netns);
        let named = |process: &&Process| self.pid == Some(process.pid);
        let said = match self.pid {
            Some(_) => processes.iter().filter(named).find(in_place),
            // Which process does not matter, as long as it is in that namespace.
            None if self.netns.is_some() => processes
                .iter()
                .filter(in_place)
                .min_by_key(|process| process.start),
            None => None,
        };
        said.map(|process| process.pid)
    }
}

/// What is known of the runtime at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct View {
    state: RuntimeState,
    claims: BTreeMap<PodKey, Claim>,
}

impl View {
    /// What it says about the sandbox of this pod.
    pub(super) fn claim(&self, pod: &PodKey) -> Option<&Claim> {
        self.claims.get(pod)
    }

    /// Whether its first answer is still to come.
    pub(super) fn is_asking(&self) -> bool {
        self.state == RuntimeState::Asking
    }
}

/// What is known of the runtime, for all who ask.
#[derive(Debug, Default)]
pub(in crate::capture) struct Runtimes {
    view: Mutex<Arc<View>>,
    asked: Notify,
}

impl Runtimes {
    /// What is known now.
    pub(super) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How the runtime stands.
    pub(in crate::capture) fn state(&self) -> RuntimeState {
        self.view().state.clone()
    }

    /// Somebody waits for a sandbox: the list is read anew soon.
    pub(super) fn ask(&self) {
        self.asked.notify_one();
    }

    fn publish(&self, view: View) {
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
    }
}

/// Follows the runtime until it is dropped.
#[derive(Debug)]
pub(in crate::capture) struct Follower {
    task: JoinHandle<()>,
}

impl Follower {
    /// Follows the runtime that the setting means, unless it means none. To be called within a runtime.
    pub(in crate::capture) fn start(setting: &CriSocket, runtimes: &Arc<Runtimes>) -> Option<Self> {
        let sockets: Vec<PathBuf> = match setting {
            CriSocket::Off => return None,
            CriSocket::At(path) => vec![path.clone()],
            CriSocket::Auto => USUAL.iter().map(PathBuf::from).collect(),
        };
        runtimes.publish(View {
            state: RuntimeState::Asking,
            ..View::default()
        });
        let task = tokio::spawn(follow(sockets, Arc::clone(runtimes)));
        Some(Self { task })
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(sockets: Vec<PathBuf>, runtimes: Arc<Runtimes>) {
    let mut wait = RETRY.0;
    let mut told = String::new();
    loop {
        let why = match reach(&sockets).await {
            Ok((socket, name, mut client)) => {
                info!(socket = %socket.display(), runtime = name, "the container runtime tells where sandboxes are");
                (wait, told) = (RETRY.0, String::new());
                read_on(&mut client, &socket, &name, &runtimes).await.to_string()
            }
            Err(why) => why,
        };
        if why != told {
            warn!(
                why,
                "the container runtime does not answer: pods are found through /proc"
            );
            told.clone_from(&why);
        }
        runtimes.publish(View {
            state: RuntimeState::Down { why },
            ..View::default()
        });
        sleep(wait).await;
        wait = (wait * 2).min(RETRY.1);
    }
}

/// The first runtime that answers.
async fn reach(sockets: &[PathBuf]) -> Result<(PathBuf, String, Client), String> {
    let mut faults = Vec::new();
    for socket in sockets {
        // One of the usual places that is empty is no fault; the only one that is named is.
        if sockets.len() > 1 && !socket.exists() {
            continue;
        }
        match greet(socket).await {
            Ok((name, client)) => return Ok((socket.clone(), name, client)),
            Err(error) => faults.push(error.to_string()),
        }
    }
    if faults.is_empty() {
        let looked: Vec<String> = sockets
            .iter()
            .map(|socket| socket.display().to_string())
            .collect();
        return Err(format!("no socket is there (looked for {})", looked.join(", ")));
    }
    Err(faults.join("; "))
}

async fn greet(socket: &Path) -> Result<(String, Client), CallError> {
    let mut client = Client::connect(socket).await?;
    let name = client.version().await?;
    // Another runtime's socket may be there without the service of sandboxes.
    client.ready_sandboxes().await?;
    Ok((name, client))
}

/// Reads the list whenever somebody asks, until the runtime does not answer. The more rarely the less it changes: those whom it does not
/// know it may never know.
async fn read_on(client: &mut Client, socket: &Path, name: &str, runtimes: &Runtimes) -> CallError {
    let mut details: HashMap<String, Details> = HashMap::new();
    let mut spacing = SPACING.0;
    loop {
        let began = Instant::now();
        let claims = match claims(client, &mut details).await {
            Ok(claims) => claims,
            Err(error) => return error,
        };
        let changed = runtimes.view().claims != claims;
        spacing = if changed {
            SPACING.0
        } else {
            (spacing * 2).min(SPACING.1)
        };
        runtimes.publish(View {
            state: RuntimeState::Up {
                socket: socket.to_owned(),
                name: name.to_owned(),
            },
            claims,
        });
        // Whoever asks while the list is being read is answered by the next one.
        let _ = timeout_at(began + REGULARLY, runtimes.asked.notified()).await;
        sleep_until(began + spacing).await;
    }
}

/// What the runtime says of each pod. A sandbox's details do not change: they are asked for once, but for those without any.
async fn claims(
    client: &mut Client,
    details: &mut HashMap<String, Details>,
) -> Result<BTreeMap<PodKey, Claim>, CallError> {
    let mut sandboxes = client.ready_sandboxes().await?;
    // While a sandbox takes the place of another of its pod, both may be ready: the younger one counts.
    sandboxes.sort_by_key(|sandbox| sandbox.created_at);
    details.retain(|id, known| known.pid.is_some() && sandboxes.iter().any(|sandbox| sandbox.id == *id));
    let mut claims = BTreeMap::new();
    for sandbox in sandboxes {
        let uid = sandbox.metadata.as_ref().map(|metadata| metadata.uid.as_str());
        let Some(pod) = uid.and_then(PodKey::of) else {
            continue;
        };
        let known = match details.get(&sandbox.id) {
            Some(known) => known.clone(),
            None => {
                // One that goes meanwhile is no reason to give up on the others.
                let Ok(found) = client.details(&sandbox.id).await else {
                    continue;
                };
                details.insert(sandbox.id.clone(), found.clone());
                found
            }
        };
        let netns = known.netns.as_deref().and_then(inode);
        claims.insert(
            pod,
            Claim {
                pid: known.pid,
                netns,
            },
        );
    }
    Ok(claims)
}

/// The inode of the namespace at `path`, where that is one and can be seen from here.
fn inode(path: &Path) -> Option<u64> {
    let is_namespace = statfs(path).is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC);
    is_namespace.then(|| std::fs::metadata(path).ok().map(|meta| meta.ino()))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, netns: u64) -> Process {
        Process {
            pid,
            start: u64::from(pid),
            parent: 1,
            is_init: true,
            netns,
        }
    }

    #[test]
    fn a_claim_counts_where_the_kernel_shows_the_same() {
        let pod = [process(10, 7), process(20, 8)];
        let claim = |pid, netns| Claim { pid, netns }.among(&pod);
        assert_eq!(claim(Some(10), Some(7)), Some(10));
        assert_eq!(claim(Some(10), None), Some(10));
        assert_eq!(claim(None, Some(8)), Some(20));
        // Another namespace than the process is in; a process that is none of the pod's; nothing said.
        assert_eq!(claim(Some(10), Some(8)), None);
        assert_eq!(claim(Some(99), Some(7)), None);
        assert_eq!(claim(None, None), None);
    }

    #[test]
    fn only_a_namespaces_file_has_its_inode() {
        assert!(inode(Path::new("/proc/self/ns/net")).is_some());
        assert_eq!(inode(Path::new("/proc/self/status")), None);
        assert_eq!(inode(Path::new("/none")), None);
    }
}
