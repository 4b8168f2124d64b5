//! What every connection's task shares: the agent's state, its pod, and the means to start tasks that cost only themselves.

use std::any::Any;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Account, Budget, Carried, Legs, Pool, Standing, Turns};
use crate::affinity::Affinity;
use crate::capture::{FlowTable, Pod};
use crate::identity::Identities;
use crate::state::SnapshotCell;
use crate::telemetry::connections::ConnectionLog;

/// Budgets that keep one pod from using up what all share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// TCP connections of one pod that one worker carries at a time, over all roles. More are reset.
    pub connections_per_pod: usize,
    /// Streams that other agents have opened to one pod on one worker. More are answered with 503.
    pub streams_per_pod: usize,
    /// Bytes that one worker holds for one pod between its sockets. Above it, each connection holds as little as it can.
    pub buffered_per_pod: usize,
    /// Flow-control window of a stream, bytes: what a reader that stalls can make us hold, and what bounds a stream's speed over a
    /// long way: one window per round trip.
    pub stream_window: u32,
    /// How long a tunnel that another agent dialled stays without a stream; then that agent is told to go away.
    pub unused_tunnel: Duration,
    /// TLS handshakes towards one pod under way on one worker. More are closed: clients that never finish cost their pod, not others.
    pub handshakes_per_pod: usize,
    /// How many of those may be with one address: clients that never finish cost themselves, not the pod's other clients.
    pub handshakes_per_client: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_pod: 32_768,
            streams_per_pod: 32_768,
            buffered_per_pod: 64 << 20,
            stream_window: 4 << 20,
            // Longer than peers pool theirs, so that it is theirs to end first.
            unused_tunnel: Duration::from_secs(600),
            handshakes_per_pod: 1024,
            handshakes_per_client: 128,
        }
    }
}

/// What the data path reads and writes of the rest of the agent.
#[derive(Clone)]
pub struct DataPath {
    /// The state of the mesh.
    pub snapshots: Arc<SnapshotCell>,
    /// Which endpoints clients had last.
    pub affinity: Arc<Affinity>,
    /// What captured connections asked for.
    pub flows: Arc<dyn FlowTable>,
    /// The pods' certificates.
    pub identities: Arc<Identities>,
    /// Where connections are counted and logged.
    pub log: Arc<ConnectionLog>,
    /// Budgets.
    pub limits: Limits,
    /// How TCP connections are watched.
    pub legs: Legs,
}

/// Starts tasks; counts those that run and those that panicked.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    panics: Arc<AtomicU64>,
}

impl Tasks {
    /// Runs `work` as a task of the current runtime until it ends or `stop` is cancelled. A panic in it ends it alone.
    pub fn spawn(&self, stop: CancellationToken, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(self.guarded(stop, work));
    }

    /// As [`Tasks::spawn`], on another thread's runtime.
    pub fn spawn_on(
        &self,
        runtime: &Handle,
        stop: CancellationToken,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tracker.spawn_on(self.guarded(stop, work), runtime);
    }

    fn guarded(
        &self,
        stop: CancellationToken,
        work: impl Future<Output = ()> + Send + 'static,
    ) -> impl Future<Output = ()> + Send + 'static {
        let panics = Arc::clone(&self.panics);
        // On the heap: a future that is given to an `async` block and pinned there takes its room twice.
        let mut work = Box::pin(AssertUnwindSafe(work).catch_unwind());
        async move {
            let mut stopped = pin!(stop.cancelled());
            // By hand: `select!` keeps room for what it waits for twice.
            let outcome = poll_fn(|cx| match stopped.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Ok(())),
                Poll::Pending => work.as_mut().poll(cx),
            });
            if let Err(panic) = outcome.await {
                panics.fetch_add(1, Ordering::Relaxed);
                tracing::error!(
                    panic = panic_text(&*panic),
                    "a connection's task panicked; the connection is reset"
                );
            }
        }
    }

    /// How many tasks have panicked.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// How many tasks run.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }
}

/// What is left of a connection's task once the connection is set up. On the heap: each kind with room for itself alone.
pub type Carrying = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection's task in its two parts: `set_up`, whose room is given back when it has ended, and what it leaves to be done, if anything.
/// One after the other in one future they would keep the room of both, and setting up takes several times that of carrying.
pub fn in_two_parts(
    set_up: impl Future<Output = Option<Carrying>> + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let set_up = Box::pin(set_up);
    async move {
        if let Some(carrying) = set_up.await {
            carrying.await;
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}

/// A pod on one worker.
pub struct PodContext {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The agent's state.
    pub path: Arc<DataPath>,
    /// The worker's tunnel connections.
    pub pool: Arc<Pool>,
    /// The worker's tasks.
    pub tasks: Tasks,
    /// Cancelled when the pod is retired or the worker ends: connections end at once.
    pub stop: CancellationToken,
    /// Cancelled when the worker drains: no new connections and streams, live ones go on.
    pub drain: CancellationToken,
    /// The pod's TLS handshakes under way on this worker, by client.
    pub handshakes: Arc<Turns>,
    /// What the pod may take of this worker.
    pub budget: Arc<Budget>,
    /// The pod's inbound connections on this worker, to be judged again when that is due.
    pub standing: Arc<Standing>,
}

impl PodContext {
    /// What `connection` is accounted to.
    pub fn account(&self, connection: &Carried) -> Arc<Account> {
        Account::new(&self.budget, connection.counts(), self.path.legs.idle)
    }
}
