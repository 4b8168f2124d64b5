//! The workers: threads that carry the pods' connections, each from its accept to its end on one of them. They share the snapshot, the
//! TLS configurations and their session caches, and nothing else that is written.

mod accept;
mod rejudge;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use mesh_common::MAX_WORKERS;
use mesh_common::mutation::{self, Mechanism};
use mesh_core::model::WorkloadUid;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use crate::capture::{Listener, Pod, PodServer};
use crate::tunnel::{Budget, PodContext, Pool, Tasks, Turns};

pub use crate::tunnel::{DataPath, Legs, Limits, Place, Usage};

/// The workers of the agent.
pub struct Workers {
    workers: Vec<Worker>,
    path: Arc<DataPath>,
    drain: CancellationToken,
}

struct Worker {
    runtime: Handle,
    pool: Arc<Pool>,
    tasks: Tasks,
    pods: Arc<Mutex<HashMap<WorkloadUid, Arc<PodContext>>>>,
    /// Cancelled to end the thread.
    end: CancellationToken,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What a worker is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct WorkerStatus {
    /// Which worker.
    pub worker: usize,
    /// Pods that it serves.
    pub pods: usize,
    /// Tasks: connections, listeners, tunnels.
    pub tasks: usize,
    /// Tasks that panicked since the start.
    pub panics: u64,
    /// Pooled tunnel connections that it dialled.
    pub tunnels: usize,
    /// Streams on them.
    pub streams: usize,
}

impl Workers {
    /// Starts `count` workers (1 to [`MAX_WORKERS`]; more and fewer are brought into that range).
    ///
    /// # Errors
    /// When a thread or its runtime cannot be made.
    pub fn start(count: usize, path: DataPath) -> io::Result<Arc<Self>> {
        let path = Arc::new(path);
        let count = count.clamp(1, MAX_WORKERS as usize);
        let workers = (0..count)
            .map(|n| Worker::start(n, &path))
            .collect::<io::Result<_>>()?;
        Ok(Arc::new(Self {
            workers,
            path,
            drain: CancellationToken::new(),
        }))
    }

    /// What each worker is doing.
    pub fn status(&self) -> Vec<WorkerStatus> {
        let status = |(worker, w): (usize, &Worker)| {
            let (tunnels, streams) = w.pool.load();
            WorkerStatus {
                worker,
                pods: w.pods().len(),
                tasks: w.tasks.running(),
                panics: w.tasks.panics(),
                tunnels,
                streams,
            }
        };
        self.workers.iter().enumerate().map(status).collect()
    }

    /// What each pod takes of the workers, over all of them.
    pub fn usage(&self) -> BTreeMap<WorkloadUid, Usage> {
        let mut all = BTreeMap::new();
        for worker in &self.workers {
            for (uid, context) in worker.pods().iter() {
                let sum: &mut Usage = all.entry(uid.clone()).or_default();
                *sum = sum.plus(context.budget.usage());
            }
        }
        all
    }

    /// Ends the workers: accepts nothing more, tells peers to go away, lets live connections end within `drain`, then resets the rest.
    pub async fn shutdown(&self, drain: Duration) {
        self.drain.cancel();
        self.workers.iter().for_each(|w| w.pool.drain());
        let deadline = Instant::now() + drain;
        while Instant::now() < deadline && self.workers.iter().any(|w| w.tasks.running() > 0) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.workers.iter().for_each(|w| w.end.cancel());
        let threads: Vec<_> = self
            .workers
            .iter()
            .filter_map(|w| lock(&w.thread).take())
            .collect();
        // Joining blocks; it takes as long as dropping the connections.
        let joined = tokio::task::spawn_blocking(|| {
            threads
                .into_iter()
                .map(JoinHandle::join)
                .filter(Result::is_err)
                .count()
        });
        if !matches!(joined.await, Ok(0)) {
            tracing::error!("a worker thread had panicked");
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.workers.iter().for_each(|w| w.end.cancel());
    }
}

impl PodServer for Workers {
    fn workers(&self) -> usize {
        self.workers.len()
    }

    fn serve(&self, pod: Arc<Pod>, listeners: Vec<Listener>) {
        for listener in listeners {
            let Some(worker) = self.workers.get(listener.worker) else {
                tracing::error!(pod = %pod.uid, worker = listener.worker, "a listener for a worker that does not exist: closed");
                continue;
            };
            let context = worker.context(&pod, &self.path, &self.drain);
            accept::prepare(&context, &listener);
            let work = accept::run(Arc::clone(&context), listener);
            worker.tasks.spawn_on(&worker.runtime, context.stop.clone(), work);
        }
    }

    fn retire(&self, pod: &WorkloadUid) {
        if mutation::is_off(Mechanism::Retirement) {
            return;
        }
        for worker in &self.workers {
            let context = worker.pods().remove(pod);
            if let Some(context) = context {
                context.stop.cancel();
            }
            worker.pool.retire(pod);
        }
        self.path.affinity.forget(pod);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    fn start(n: usize, path: &Arc<DataPath>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let worker = Self {
            runtime: runtime.handle().clone(),
            pool: Arc::default(),
            tasks: Tasks::default(),
            pods: Arc::default(),
            end: CancellationToken::new(),
            thread: Mutex::default(),
        };
        let (end, pool, path) = (worker.end.clone(), Arc::clone(&worker.pool), Arc::clone(path));
        let pods = Arc::clone(&worker.pods);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{n}"))
            .spawn(move || {
                runtime.block_on(async move {
                    tokio::select! {
                        () = end.cancelled() => {}
                        () = follow(&path, &pool, &pods) => {}
                    }
                });
                // Dropping the runtime drops every connection, which resets it.
            })?;
        *lock(&worker.thread) = Some(thread);
        Ok(worker)
    }

    fn pods(&self) -> MutexGuard<'_, HashMap<WorkloadUid, Arc<PodContext>>> {
        lock(&self.pods)
    }

    /// The pod on this worker; made at its first listener, and again when the pod behind the uid is another one.
    fn context(&self, pod: &Arc<Pod>, path: &Arc<DataPath>, drain: &CancellationToken) -> Arc<PodContext> {
        let mut pods = self.pods();
        if let Some(context) = pods.get(&pod.uid) {
            if Arc::ptr_eq(&context.pod, pod) {
                return Arc::clone(context);
            }
            context.stop.cancel();
            self.pool.retire(&pod.uid);
            path.affinity.forget(&pod.uid);
        }
        let context = Arc::new(PodContext {
            pod: Arc::clone(pod),
            path: Arc::clone(path),
            pool: Arc::clone(&self.pool),
            tasks: self.tasks.clone(),
            stop: CancellationToken::new(),
            drain: drain.clone(),
            handshakes: Turns::new(path.limits.handshakes_per_client),
            budget: Budget::new(path.limits),
            standing: Arc::default(),
        });
        pods.insert(pod.uid.clone(), Arc::clone(&context));
        context
    }
}

/// Drops pooled connections to workloads that have left the snapshot, and has connections judged again where it decides otherwise now.
async fn follow(path: &DataPath, pool: &Pool, pods: &Mutex<HashMap<WorkloadUid, Arc<PodContext>>>) {
    let mut versions = path.snapshots.watch();
    let mut before = path.snapshots.load();
    while versions.changed().await.is_ok() {
        let now = path.snapshots.load();
        pool.prune(&now);
        let all = lock(pods).values().cloned().collect();
        rejudge::rejudge(all, &before, &now).await;
        before = now;
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests;
