//! The live connections: each has a guard; dropping the guard counts it, logs it and forgets it. Never decides anything.
//!
//! Written from the data path: a connection's guard touches its thread's own shard, and the shard's own numbers, so workers do not
//! meet each other. Bytes are counted by the copy loops in [`ByteCounts`] alone; readers carry what was added since into the counters.

mod words;

use std::cell::Cell;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_core::authz::Judgement;
use mesh_core::model::{Service, SpiffeId, Workload};
use mesh_core::plan::Refusal;

pub use words::{HandshakeRole, Reporter, ResponseFlag, Security};

use super::access_log;
use super::labels::{HasParties, Present, SeriesKey};
use super::policy::{PolicyLog, RefusalId};
use super::tally::{Failures, Handshakes, Retries, Tallies, Tally, TunnelEnds};
use super::traffic::{SHARDS, Sample, Series, Traffic};

/// The reason of connections that were let in and are refused after a change.
pub const REVOKED: &str = "policy_changed";

/// What is known when a connection is opened.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Which side we are on.
    pub reporter: Reporter,
    /// How it travels.
    pub security: Security,
    /// The client's address.
    pub source_address: SocketAddr,
    /// The client's workload, where known.
    pub source: Option<Arc<Workload>>,
    /// The client's identity: our own pod's (source side) or the proven one (destination side).
    pub source_identity: Option<SpiffeId>,
    /// What the client asked for.
    pub requested_address: SocketAddr,
    /// The application's address that it goes to.
    pub destination_address: SocketAddr,
    /// The destination's workload, where known.
    pub destination: Option<Arc<Workload>>,
    /// The destination's identity: the proven one (source side) or our own pod's (destination side).
    pub destination_identity: Option<SpiffeId>,
    /// The service that was addressed, where known.
    pub service: Option<Arc<Service>>,
}

/// Bytes carried so far. Shared by the copy loops (which add) and the readers of the connection table.
#[derive(Debug, Default)]
pub struct ByteCounts {
    /// From the client to the server: request bytes; Istio's `received`.
    pub received: AtomicU64,
    /// From the server to the client: response bytes; Istio's `sent`.
    pub sent: AtomicU64,
    held: AtomicU64,
}

impl ByteCounts {
    /// Adds request bytes.
    pub fn add_received(&self, n: u64) {
        self.received.fetch_add(n, Ordering::Relaxed);
    }

    /// Bytes in both directions so far.
    pub fn total(&self) -> u64 {
        self.received.load(Ordering::Relaxed) + self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that the agent holds of the connection now: read from one side and not yet written to the other.
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Adds to the bytes held.
    pub fn hold(&self, n: usize) {
        self.held.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// Takes from the bytes held what was added before.
    pub fn release(&self, n: usize) {
        self.held.fetch_sub(n as u64, Ordering::Relaxed);
    }

    /// Adds response bytes.
    pub fn add_sent(&self, n: u64) {
        self.sent.fetch_add(n, Ordering::Relaxed);
    }
}

/// What went wrong with one connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The class.
    pub flag: ResponseFlag,
    /// A short fixed word.
    pub reason: &'static str,
    /// For people: who failed and what to look at.
    pub message: String,
    /// The id of the refusal, where it was one.
    pub refusal: Option<RefusalId>,
}

/// A connection of the table, as readers see it.
#[derive(Debug)]
pub struct Live {
    /// Unique within this agent's run.
    pub id: u64,
    /// What it was opened with.
    pub info: ConnectionInfo,
    /// Its bytes so far.
    pub counts: Arc<ByteCounts>,
    /// When it was opened.
    pub opened_at: SystemTime,
    opened: Instant,
    series: Arc<Series>,
    /// How much of `counts` the metrics have already: received, sent.
    carried: [AtomicU64; 2],
}

impl Live {
    /// How long it has been open.
    pub fn age(&self) -> std::time::Duration {
        self.opened.elapsed()
    }

    /// Carries the bytes added since the last time into the metrics. Safe to call from several threads at once: each byte is carried once.
    fn carry(&self) {
        let since = |now: &AtomicU64, before: &AtomicU64| {
            let now = now.load(Ordering::Relaxed);
            now.saturating_sub(before.fetch_max(now, Ordering::Relaxed))
        };
        let [received, sent] = &self.carried;
        self.series.add_bytes(
            since(&self.counts.received, received),
            since(&self.counts.sent, sent),
        );
    }
}

/// Combinations of parties that a shard remembers the series of; then it begins anew. Above what a busy node has.
const REMEMBERED: usize = 8192;

/// Threads take shards in turns, so with up to as many workers nobody shares one.
#[derive(Debug, Default)]
struct Shard {
    live: HashMap<u64, Arc<Live>>,
    series: HashMap<SeriesKey, Arc<Series>>,
    opened: u64,
    tallies: Tallies,
}

/// One shard on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded(Mutex<Shard>);

impl Padded {
    fn lock(&self) -> MutexGuard<'_, Shard> {
        // A panic while the lock was held leaves a map that is whole: every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The live connections of the agent and the counters over them.
#[derive(Debug, Default)]
pub struct ConnectionLog {
    shards: [Padded; SHARDS],
    traffic: Traffic,
    policies: PolicyLog,
}

impl ConnectionLog {
    /// With room for so many label sets of the metrics.
    #[cfg(test)]
    fn with_label_sets(capacity: usize) -> Self {
        Self {
            traffic: Traffic::with_capacity(capacity),
            ..Self::default()
        }
    }

    /// Enters a connection. It is counted as opened now; as closed, and logged, when the guard is dropped.
    pub fn open(self: &Arc<Self>, info: ConnectionInfo) -> Connection {
        let index = shard_of_this_thread();
        let mut shard = self.shards[index].lock();
        let known = shard.series.get(&info as &dyn HasParties).cloned();
        let series = known.unwrap_or_else(|| {
            let series = self.traffic.resolve(&info, index);
            if shard.series.len() >= REMEMBERED {
                shard.series.clear();
            }
            shard.series.insert(SeriesKey::of(&info), series.clone());
            series
        });
        series.opened();
        shard.opened += 1;
        let live = Arc::new(Live {
            id: shard.opened * SHARDS as u64 + index as u64,
            info,
            counts: Arc::default(),
            opened_at: SystemTime::now(),
            opened: Instant::now(),
            series,
            carried: Default::default(),
        });
        shard.live.insert(live.id, live.clone());
        drop(shard);
        Connection {
            live,
            log: self.clone(),
            failure: None,
        }
    }

    /// Counts a finished handshake, or a failed one by reason (a short fixed word).
    pub fn handshake(&self, role: HandshakeRole, outcome: Result<(), &'static str>) {
        self.mine().tallies.handshakes.count((role, outcome.err()));
    }

    /// Counts a tunnel connection that ended other than in order, by reason (a short fixed word).
    pub fn tunnel_ended(&self, role: HandshakeRole, reason: &'static str) {
        self.mine().tallies.tunnel_ends.count((role, reason));
    }

    /// Counts a stream that was tried again because the peer had not processed it; `reason` is a short fixed word.
    pub fn retried(&self, reason: &'static str) {
        self.mine().tallies.retries.count(reason);
    }

    /// The shard of this thread.
    fn mine(&self) -> MutexGuard<'_, Shard> {
        self.shards[shard_of_this_thread()].lock()
    }

    /// The tallies of all shards put together.
    fn tallied<K: Copy + Eq + Hash>(&self, which: impl Fn(&Tallies) -> &Tally<K>) -> Tally<K> {
        let mut all = Tally::default();
        for shard in &self.shards {
            all.add(which(&shard.lock().tallies));
        }
        all
    }

    /// The counters of retries, for the registry.
    pub fn retries(&self) -> Retries {
        self.tallied(|tallies| &tallies.retries)
    }

    /// What policies decided.
    pub fn policies(&self) -> &PolicyLog {
        &self.policies
    }

    /// The live connections, the oldest first within a shard. Takes each shard's lock for as long as it takes to copy its list.
    pub fn live(&self) -> Vec<Arc<Live>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.lock().live.values().cloned());
        }
        all
    }

    /// How many connections are live.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().live.len()).sum()
    }

    /// Whether no connection is live.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many connections have been opened since the start.
    pub fn opened(&self) -> u64 {
        self.shards.iter().map(|shard| shard.lock().opened).sum()
    }

    /// Carries the bytes of live connections into the metrics, so that a scrape sees them before the connections close.
    pub fn carry_bytes(&self) {
        for live in self.live() {
            live.carry();
        }
    }

    /// Forgets the label sets that nobody of `present`, who are in the snapshot in force, bears any more: not at once, but when their
    /// last values have had time to be scraped ([`super::traffic::GRACE`]).
    pub fn forget_gone(&self, present: &Present<'_>, now: Instant) {
        for shard in &self.shards {
            shard.lock().series.retain(|key, _| present.holds(key));
        }
        self.traffic.expire(present, now);
    }

    /// What a scrape shows of the traffic, live connections included.
    pub fn scrape(&self) -> Vec<Sample> {
        self.carry_bytes();
        let samples = self.traffic.samples();
        self.traffic.scraped();
        samples
    }

    /// The traffic counters.
    pub fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// The counters of failures, for the registry.
    pub fn failures(&self) -> Failures {
        self.tallied(|tallies| &tallies.failures)
    }

    /// The counters of handshakes, for the registry.
    pub fn handshakes(&self) -> Handshakes {
        self.tallied(|tallies| &tallies.handshakes)
    }

    /// The counters of tunnel connections that ended other than in order, for the registry.
    pub fn tunnel_ends(&self) -> TunnelEnds {
        self.tallied(|tallies| &tallies.tunnel_ends)
    }

    fn close(&self, live: &Live, failure: Option<&Failure>) {
        let index = (live.id % SHARDS as u64) as usize;
        let mut shard = self.shards[index].lock();
        shard.live.remove(&live.id);
        if let Some(Failure { flag, reason, .. }) = failure {
            shard.tallies.failures.count((live.info.reporter, *flag, reason));
        }
        drop(shard);
        live.carry();
        live.series.closed(failure.map(|failure| failure.flag));
        access_log::write(live, failure);
    }
}

/// Threads take shards in turns at their first connection.
fn shard_of_this_thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static MINE: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS);
    }
    MINE.with(Cell::get)
}

/// Guard of a live connection.
#[derive(Debug)]
pub struct Connection {
    live: Arc<Live>,
    log: Arc<ConnectionLog>,
    /// On the heap: most have none.
    failure: Option<Box<Failure>>,
}

impl Connection {
    /// What it was opened with.
    pub fn info(&self) -> &ConnectionInfo {
        &self.live.info
    }

    /// Where the copy loops count its bytes.
    pub fn counts(&self) -> &Arc<ByteCounts> {
        &self.live.counts
    }

    /// Marks it as failed. `message` says who failed and what to look at. The first failure stays.
    pub fn fail(&mut self, flag: ResponseFlag, reason: &'static str, message: String) {
        self.failure.get_or_insert_with(|| {
            Box::new(Failure {
                flag,
                reason,
                message,
                refusal: None,
            })
        });
    }

    /// Counts what policies said when they let it in.
    pub fn admitted(&self, judgement: &Judgement) {
        self.log.policies.admitted(&self.live.info, judgement);
    }

    /// Marks it as refused, and returns the refusal's id. The first failure stays.
    pub fn refuse(&mut self, refusal: &Refusal) -> RefusalId {
        self.refused(refusal, refusal.reason.as_str(), None)
    }

    /// Marks it as refused after it had been let in.
    pub fn revoke(&mut self, refusal: &Refusal) {
        self.refused(refusal, REVOKED, Some(self.live.age()));
    }

    fn refused(&mut self, refusal: &Refusal, reason: &'static str, stood: Option<Duration>) -> RefusalId {
        let id = self.log.policies.refused(&self.live.info, refusal, stood);
        self.failure.get_or_insert_with(|| {
            Box::new(Failure {
                flag: ResponseFlag::Deny,
                reason,
                message: refusal.message.clone(),
                refusal: Some(id.clone()),
            })
        });
        id
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.log.close(&self.live, self.failure.as_deref());
    }
}

#[cfg(test)]
pub(crate) mod tests;
