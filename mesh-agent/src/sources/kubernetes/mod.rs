//! A Kubernetes API server as a source: each kind that mesh-core knows is listed and watched by a task of its own, on the runtime that
//! carries no connections.
//!
//! Owns what is known of the cluster, the credentials to ask for it, and the documents kept for the next start. Nothing is in force
//! before every kind has been listed in full (or taken from what an earlier run kept): a policy that is missing would allow. From then
//! on, whatever becomes of the server, what was known stays in force.

mod access;
mod discovery;
mod events;
mod follower;
mod holdings;
mod journal;
mod lines;
mod page;
mod request;
mod status;
#[cfg(test)]
mod tests;
mod trouble;
mod version;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use mesh_core::manifest::{KINDS, Notice};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use self::access::Access;
use self::events::Complaints;
use self::follower::Follower;
use self::holdings::{Holdings, Reading};
use self::request::Requests;
use self::status::{Statuses, Writer};
use super::{Changes, ConfigurationSource, KindBoard, ReportSink, RunningSource, SourceError, StatusReader};

pub use self::access::{AccessError, connect};

/// How to follow a cluster.
#[derive(Clone, Debug)]
pub struct KubernetesOptions {
    /// The kubeconfig to use; `None` for what `KUBECONFIG` names, or what a pod is given.
    pub kubeconfig: Option<PathBuf>,
    /// This agent's node: its own pods are kept in full.
    pub node_name: String,
    /// Whether the annotations that place a pod on its host are taken at their word.
    pub placement: bool,
    /// Where documents are kept for the next start.
    pub state_dir: PathBuf,
    /// The namespace of the Lease by which one agent is chosen to write status conditions; `None` for none are written.
    pub status_namespace: Option<String>,
}

/// The namespace of the pod that this agent runs in, where it runs in one.
pub fn own_namespace() -> Option<String> {
    let text = std::fs::read_to_string("/var/run/secrets/kubernetes.io/serviceaccount/namespace").ok()?;
    let name = text.trim();
    (!name.is_empty()).then(|| name.to_owned())
}

/// The API server that [`KubernetesOptions`] lead to.
pub struct KubernetesSource {
    options: KubernetesOptions,
    runtime: Handle,
    board: KindBoard,
}

impl KubernetesSource {
    /// The source; its tasks run on `runtime`.
    pub fn new(options: KubernetesOptions, runtime: Handle) -> Self {
        Self {
            options,
            runtime,
            board: KindBoard::new(KINDS.iter().map(|kind| kind.name)),
        }
    }
}

impl ConfigurationSource for KubernetesSource {
    fn name(&self) -> String {
        "kubernetes".to_owned()
    }

    fn kinds(&self) -> KindBoard {
        self.board.clone()
    }

    fn start(self: Box<Self>, sink: ReportSink) -> Result<Box<dyn RunningSource>, SourceError> {
        let entered = self.runtime.enter();
        let access = Arc::new(Access::open(self.options.kubeconfig.clone())?);
        tracing::info!(
            target: "mesh_agent::kubernetes",
            server = access.server(), from = access.origin(), "following the API server"
        );
        let reading = Reading {
            node_name: self.options.node_name.clone(),
            placement: self.options.placement,
        };
        let kept = kept_dir(&self.options.state_dir);
        let (complaints, inbox) = Complaints::new();
        let shared = Arc::new(Shared {
            sink,
            board: self.board.clone(),
            open: AtomicUsize::new(KINDS.len()),
            look: Notify::new(),
            complaints,
            statuses: Arc::default(),
        });
        let stop = CancellationToken::new();
        for (index, kind) in KINDS.iter().enumerate() {
            let holdings = Holdings::new(kind, index, reading.clone(), shared.clone(), &kept);
            let holdings = Arc::new(Mutex::new(holdings));
            let follower = Follower::new(kind, index, shared.clone(), access.clone(), holdings);
            let stop = stop.clone();
            self.runtime.spawn(async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = follower.run() => {}
                }
            });
        }
        let (requests, board, look) = (Requests::new(access.clone()), self.board.clone(), shared.clone());
        let stopped = stop.clone();
        self.runtime.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = version::watch(requests, board, look) => {}
            }
        });
        if let Some(namespace) = &self.options.status_namespace {
            let (requests, statuses) = (Requests::new(access.clone()), shared.statuses.clone());
            let node = &self.options.node_name;
            let writer = Writer::new(requests, statuses, self.board.clone(), namespace, node);
            let stopped = stop.clone();
            self.runtime.spawn(async move {
                tokio::select! {
                    () = stopped.cancelled() => {}
                    () = status::run(writer) => {}
                }
            });
        }
        let (requests, node) = (Requests::new(access), self.options.node_name.clone());
        let stopped = stop.clone();
        self.runtime.spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = events::run(requests, node, inbox) => {}
            }
        });
        drop(entered);
        Ok(Box::new(Running { shared, stop }))
    }
}

/// Where the documents of kinds are kept below the state directory.
fn kept_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("kubernetes")
}

struct Running {
    shared: Arc<Shared>,
    stop: CancellationToken,
}

impl RunningSource for Running {
    fn look_now(&self) {
        self.shared.look.notify_waiters();
    }

    fn follow(&self, status: &StatusReader) {
        self.shared.statuses.follow(status);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// What the kinds' tasks have in common.
struct Shared {
    sink: ReportSink,
    board: KindBoard,
    /// Kinds of which nothing has been said yet.
    open: AtomicUsize,
    /// Ends every wait for a better time.
    look: Notify,
    complaints: Complaints,
    statuses: Arc<Statuses>,
}

impl Shared {
    fn change(&self, changes: Changes) {
        self.sink.change(changes);
    }

    /// All objects of one more kind have been said. With the last one the source has said everything: messages keep their order.
    fn kind_is_known(&self) {
        if self.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.change(Changes {
                complete: true,
                ..Changes::default()
            });
        }
    }

    /// Sets or takes back what there is to say about a kind.
    fn note(&self, kind: &str, notice: Option<Notice>) {
        self.change(Changes {
            notices: vec![(kind.to_owned(), notice)],
            ..Changes::default()
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
