//! A worker's HBONE connections, by who they are from and to. Shared by the pod's connections of this worker, by no others.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_common::mutation::{self, Mechanism};
use mesh_core::model::{SpiffeId, WorkloadUid};
use mesh_core::snapshot::Snapshot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::client::{Driver, Slot};
use super::meter::Room;
use super::{Connection, DIAL_TIMEOUT, PodContext, Pressure, TunnelError};
use crate::telemetry::connections::HandshakeRole;

/// Most connections under one key.
const MOST_CONNECTIONS: usize = 256;
/// With this many connections under a key, a congested one is taken rather than another dialled.
const SPREAD: usize = 4;

/// Which connections may carry a stream. The destination is one incarnation of a workload, not an address: a pod that comes to an
/// address after another never meets the other's connections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The pod that the connection is from.
    pub source: WorkloadUid,
    /// The identity that it presents.
    pub source_identity: SpiffeId,
    /// The address that it comes from; `None` leaves it to the kernel.
    pub source_address: Option<IpAddr>,
    /// The identity that its server must prove.
    pub expected: SpiffeId,
    /// podIP:15008.
    pub gateway: SocketAddr,
    /// The workload that it goes to.
    pub destination: WorkloadUid,
}

/// How many connections may be dialled for one stream while none of them carries any: a server that closes each at once, or allows no
/// streams, is not asked for ever.
const FRUITLESS: usize = 3;
impl PoolKey {
    /// Whether the destination still is what it was: there, at that address, of that identity, enrolled.
    pub fn is_current(&self, snapshot: &Snapshot) -> bool {
        if mutation::is_off(Mechanism::PoolPruning) {
            return true;
        }
        snapshot.workload(&self.destination).is_some_and(|workload| {
            workload.enrolment.is_enrolled()
                && workload.identity == self.expected
                && workload.addresses.contains(&self.gateway.ip())
        })
    }
}

/// The connections of one worker.
#[derive(Debug, Default)]
pub struct Pool {
    entries: Mutex<HashMap<PoolKey, Entry>>,
}

#[derive(Debug, Default)]
struct Entry {
    connections: Vec<Arc<Connection>>,
    /// The dial under way, which everybody waits for.
    dial: Option<Dial>,
    /// Cancelled to end its connections at once; the pod's own end cancels it, too.
    stop: CancellationToken,
}

/// Becomes `Some` with the outcome.
type Dial = watch::Receiver<Option<Result<(), TunnelError>>>;

enum Look {
    Slot(Slot),
    Settle(Arc<Pressure>),
    /// `unused`: there is no connection, or none with a stream.
    Dial {
        dial: Dial,
        unused: bool,
    },
}

impl Pool {
    /// A place for a stream: on a connection that can take one and is none of `refused`, or on a new one. One dial at a time per key; who
    /// waits for it shares its failure, the next to ask tries again.
    ///
    /// # Errors
    /// See [`TunnelError`].
    pub async fn slot(
        self: &Arc<Self>,
        context: &Arc<PodContext>,
        key: &PoolKey,
        refused: &[Arc<Pressure>],
    ) -> Result<Slot, TunnelError> {
        let mut fruitless = 0;
        loop {
            let mut dial = match self.look(context, key, refused)? {
                Look::Slot(slot) => return Ok(slot),
                Look::Settle(pressure) => {
                    tokio::time::timeout(DIAL_TIMEOUT, pressure.settled())
                        .await
                        .map_err(|_| TunnelError::timeout(key.gateway, "HTTP/2 SETTINGS", DIAL_TIMEOUT))?;
                    continue;
                }
                Look::Dial { unused: true, .. } if fruitless == FRUITLESS => {
                    return Err(TunnelError::Http2 {
                        address: key.gateway,
                        why: format!("{FRUITLESS} connections in turn took no stream"),
                    });
                }
                Look::Dial { dial, unused } => {
                    fruitless = if unused { fruitless + 1 } else { 0 };
                    dial
                }
            };
            let outcome = dial
                .wait_for(Option::is_some)
                .await
                .map(|outcome| outcome.clone());
            match outcome {
                Ok(Some(Ok(()))) => {}
                Ok(Some(Err(error))) => return Err(error),
                // The dial's task was cancelled.
                Ok(None) | Err(_) => return Err(TunnelError::Retired(key.gateway)),
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<PoolKey, Entry>> {
        // A panic while it is held leaves the map whole: every change is a single call.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn look(
        self: &Arc<Self>,
        context: &Arc<PodContext>,
        key: &PoolKey,
        refused: &[Arc<Pressure>],
    ) -> Result<Look, TunnelError> {
        let mut entries = self.entries();
        if context.stop.is_cancelled() {
            return Err(TunnelError::Retired(key.gateway));
        }
        let entry = entries.entry(key.clone()).or_insert_with(|| Entry {
            stop: context.stop.child_token(),
            ..Entry::default()
        });
        entry.connections.retain(|c| !c.pressure().is_closing());
        if let Some(look) = entry.pick(refused) {
            return Ok(look);
        }
        let unused = entry.connections.iter().all(|c| c.pressure().streams() == 0);
        if let Some(dial) = &entry.dial {
            // A sender that is gone without a word belongs to a task that was cancelled.
            if dial.has_changed().is_ok() {
                let dial = dial.clone();
                return Ok(Look::Dial { dial, unused });
            }
        }
        if entry.connections.len() >= MOST_CONNECTIONS {
            let connections = entry.connections.len();
            return Err(TunnelError::PoolFull {
                address: key.gateway,
                connections,
            });
        }
        let (told, dial) = watch::channel(None);
        entry.dial = Some(dial.clone());
        let stop = entry.stop.clone();
        drop(entries);
        self.dial(context, key.clone(), told, stop);
        Ok(Look::Dial { dial, unused })
    }

    fn dial(
        self: &Arc<Self>,
        context: &Arc<PodContext>,
        key: PoolKey,
        told: watch::Sender<Option<Result<(), TunnelError>>>,
        stop: CancellationToken,
    ) {
        let (pool, for_task) = (Arc::clone(self), Arc::clone(context));
        context.tasks.spawn(stop, async move {
            let outcome = Connection::dial(&for_task, &key).await;
            let (outcome, driver) = pool.dialled(&key, outcome);
            told.send_replace(Some(outcome));
            drop(told);
            if let Some(driver) = driver {
                if let Err(error) = driver.await {
                    let reason = error.reason();
                    for_task.path.log.tunnel_ended(HandshakeRole::Client, reason);
                    tracing::info!(server = %key.gateway, identity = %key.expected, pod = %key.source, reason, %error, "a tunnel was cut");
                }
                pool.forget_closing(&key);
            }
        });
    }

    /// Enters the outcome of a dial.
    fn dialled(
        &self,
        key: &PoolKey,
        outcome: Result<(Connection, Driver), TunnelError>,
    ) -> (Result<(), TunnelError>, Option<Driver>) {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(key) else {
            return (Err(TunnelError::Retired(key.gateway)), None);
        };
        entry.dial = None;
        match outcome {
            Ok((connection, driver)) => {
                entry.connections.push(Arc::new(connection));
                (Ok(()), Some(driver))
            }
            Err(error) => {
                if entry.connections.is_empty() {
                    entries.remove(key);
                }
                (Err(error), None)
            }
        }
    }

    fn forget_closing(&self, key: &PoolKey) {
        let mut entries = self.entries();
        if let Some(entry) = entries.get_mut(key) {
            entry.connections.retain(|c| !c.pressure().is_closing());
            if entry.connections.is_empty() && entry.dial.is_none() {
                entries.remove(key);
            }
        }
    }

    fn retain(&self, keep: impl Fn(&PoolKey) -> bool) {
        self.entries().retain(|key, entry| {
            let kept = keep(key);
            if !kept {
                entry.connections.iter().for_each(|c| c.pressure().close());
            }
            kept
        });
    }

    /// Drops the connections of a pod of ours.
    pub fn retire(&self, source: &WorkloadUid) {
        self.retain(|key| key.source != *source);
    }

    /// Drops the connections to workloads that are not what they were: at another address, of another identity, not enrolled. Their
    /// streams may end in their own time. Those to a workload that is gone end at once, with their streams: nobody is there any more, and
    /// whoever comes to its address knows nothing of them.
    pub fn prune(&self, snapshot: &Snapshot) {
        for (key, entry) in &*self.entries() {
            if snapshot.workload(&key.destination).is_none() && !mutation::is_off(Mechanism::GoneAtOnce) {
                entry.stop.cancel();
            }
        }
        self.retain(|key| key.is_current(snapshot));
    }

    /// Takes no new streams on any connection.
    pub fn drain(&self) {
        self.retain(|_| false);
    }

    /// How many connections there are, and how many streams they carry.
    pub fn load(&self) -> (usize, usize) {
        let entries = self.entries();
        let connections = entries.values().flat_map(|entry| &entry.connections);
        connections.fold((0, 0), |(n, streams), c| {
            (n + 1, streams + c.pressure().streams())
        })
    }
}

impl Entry {
    /// The connection for the next stream; `None` when another should be dialled.
    fn pick(&self, refused: &[Arc<Pressure>]) -> Option<Look> {
        let mut congested = None;
        let mut unsettled = None;
        let fit = |c: &&Arc<Connection>| !refused.iter().any(|refused| Arc::ptr_eq(refused, c.pressure()));
        for connection in self.connections.iter().filter(fit) {
            match connection.room() {
                Room::Free => {
                    if let Some(slot) = connection.reserve() {
                        return Some(Look::Slot(slot));
                    }
                }
                Room::Congested => congested = Some(connection),
                Room::Unsettled => unsettled = Some(connection),
                Room::None => {}
            }
        }
        if let Some(connection) = unsettled {
            return Some(Look::Settle(Arc::clone(connection.pressure())));
        }
        if self.connections.len() < SPREAD {
            return None;
        }
        congested.and_then(|c| c.reserve()).map(Look::Slot)
    }
}
