//! What one pod may take of a worker: connections, streams, handshakes, and the bytes that are held for it. Counts, and says when it is
//! enough; what happens then is done by those who ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use mesh_common::mutation::{self, Mechanism};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Limits, MIN_WINDOW};
use crate::telemetry::connections::ByteCounts;

/// What a pod has a number of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Accepted TCP connections, over all roles.
    Connection,
    /// Streams that other agents opened to the pod.
    Stream,
    /// TLS handshakes with clients of the pod that are under way.
    Handshake,
    /// Refused for the bytes that are held already; not a place of its own.
    Bytes,
}

impl Place {
    /// All of them, in the order of their numbers.
    pub const ALL: [Place; 4] = [Place::Connection, Place::Stream, Place::Handshake, Place::Bytes];

    /// The name in metrics, and with `_budget` behind it the reason of a refusal.
    pub fn as_str(self) -> &'static str {
        match self {
            Place::Connection => "connection",
            Place::Stream => "stream",
            Place::Handshake => "handshake",
            Place::Bytes => "bytes",
        }
    }

    /// The reason of a refusal, in the access log and metrics.
    pub fn reason(self) -> &'static str {
        match self {
            Place::Connection => "connection_budget",
            Place::Stream => "stream_budget",
            Place::Handshake => "handshake_budget",
            Place::Bytes => "bytes_budget",
        }
    }
}

/// A budget is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OverBudget {
    /// Which.
    pub place: Place,
    /// How much there is.
    pub limit: usize,
    /// How often it has refused, this time included.
    pub refused: u64,
}

/// One pod's use of one worker at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By [`Place::ALL`]; the last are the bytes held.
    pub taken: [usize; 4],
    /// How often each has refused since the pod was enrolled.
    pub refused: [u64; 4],
}

impl Usage {
    /// The sum of two workers.
    pub fn plus(mut self, other: Usage) -> Usage {
        for (sum, more) in self.taken.iter_mut().zip(other.taken) {
            *sum += more;
        }
        for (sum, more) in self.refused.iter_mut().zip(other.refused) {
            *sum += more;
        }
        self
    }

    /// Bytes held.
    pub fn held(&self) -> usize {
        self.taken[Place::Bytes as usize]
    }
}

/// One pod's budget on one worker.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    taken: [AtomicUsize; 4],
    refused: [AtomicU64; 4],
    /// Whether windows are to be small: too many bytes are held.
    is_tight: AtomicBool,
    tight: watch::Sender<bool>,
}

impl Budget {
    /// An unused budget.
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            taken: Default::default(),
            refused: Default::default(),
            is_tight: AtomicBool::new(false),
            tight: watch::Sender::new(false),
        })
    }

    /// What it is made of.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes a place for as long as the guard lives.
    ///
    /// # Errors
    /// When all are taken; that is counted.
    pub fn take(self: &Arc<Self>, place: Place) -> Result<PlaceGuard, OverBudget> {
        // Held bytes make windows small long before this; what gets here opens streams without heeding them.
        let most = self.limits.buffered_per_pod.saturating_mul(2);
        if place == Place::Stream && self.held() >= most {
            return Err(self.refuse(Place::Bytes, most));
        }
        let limit = match place {
            Place::Connection if mutation::is_off(Mechanism::ConnectionBudget) => usize::MAX,
            Place::Handshake if mutation::is_off(Mechanism::HandshakeBudget) => usize::MAX,
            Place::Stream if mutation::is_off(Mechanism::StreamBudget) => usize::MAX,
            Place::Connection => self.limits.connections_per_pod,
            Place::Stream => self.limits.streams_per_pod,
            Place::Handshake => self.limits.handshakes_per_pod,
            Place::Bytes => usize::MAX,
        };
        let taken = &self.taken[place as usize];
        if taken.fetch_add(1, Ordering::Relaxed) >= limit {
            taken.fetch_sub(1, Ordering::Relaxed);
            return Err(self.refuse(place, limit));
        }
        Ok(PlaceGuard {
            budget: Arc::clone(self),
            place,
        })
    }

    fn refuse(&self, place: Place, limit: usize) -> OverBudget {
        let refused = self.refused[place as usize].fetch_add(1, Ordering::Relaxed) + 1;
        OverBudget {
            place,
            limit,
            refused,
        }
    }

    /// What is taken and what was refused.
    pub fn usage(&self) -> Usage {
        Usage {
            taken: self.taken.each_ref().map(|n| n.load(Ordering::Relaxed)),
            refused: self.refused.each_ref().map(|n| n.load(Ordering::Relaxed)),
        }
    }

    /// Bytes held for the pod.
    fn held(&self) -> usize {
        self.taken[Place::Bytes as usize].load(Ordering::Relaxed)
    }

    fn hold(&self, bytes: usize) {
        let before = self.taken[Place::Bytes as usize].fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.limits.buffered_per_pod {
            self.tighten(true);
        }
    }

    fn release(&self, bytes: usize) {
        let before = self.taken[Place::Bytes as usize].fetch_sub(bytes, Ordering::Relaxed);
        // Half: so that windows do not change to and fro at the limit.
        if before.saturating_sub(bytes) <= self.limits.buffered_per_pod / 2 {
            self.tighten(false);
        }
    }

    fn tighten(&self, tight: bool) {
        if self.is_tight() != tight {
            self.is_tight.store(tight, Ordering::Relaxed);
            self.tight.send_replace(tight);
        }
    }

    /// Whether the pod's connections are to hold as little as they can.
    pub fn is_tight(&self) -> bool {
        self.is_tight.load(Ordering::Relaxed)
    }

    /// The window that the streams of the pod's tunnels are to have, and how it changes.
    pub(super) fn windows(&self) -> Windows {
        Windows {
            tight: self.tight.subscribe(),
            usual: self.limits.stream_window,
            applied: self.limits.stream_window,
            not_before: None,
        }
    }
}

/// Guard of a place.
#[derive(Debug)]
pub struct PlaceGuard {
    budget: Arc<Budget>,
    place: Place,
}

impl Drop for PlaceGuard {
    fn drop(&mut self) {
        self.budget.taken[self.place as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// How long to wait when HTTP/2 cannot take a change of the window, because the peer has not acknowledged the last one.
const UNACKNOWLEDGED: Duration = Duration::from_millis(100);

/// The stream window of one connection as its pod's budget would have it: the usual one, or while too much is held the smallest.
#[derive(Debug)]
pub(super) struct Windows {
    tight: watch::Receiver<bool>,
    usual: u32,
    applied: u32,
    /// When to ask HTTP/2 again, after it could not take a change.
    not_before: Option<Instant>,
}

impl Windows {
    /// The window to begin with.
    pub(super) fn usual(&self) -> u32 {
        self.usual
    }

    /// Resolves with the window that the connection should change to. Drop it at will.
    pub(super) async fn due(&mut self) -> u32 {
        if let Some(then) = self.not_before {
            tokio::time::sleep_until(then).await;
        }
        loop {
            let wanted = if *self.tight.borrow_and_update() {
                MIN_WINDOW.min(self.usual)
            } else {
                self.usual
            };
            if wanted != self.applied {
                return wanted;
            }
            if self.tight.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// What became of the change to `window`.
    pub(super) fn changed(&mut self, window: u32, done: bool) {
        if done {
            self.applied = window;
        }
        self.not_before = (!done).then(|| Instant::now() + UNACKNOWLEDGED);
    }
}

/// What one connection is accounted to, and what it must keep to.
#[derive(Debug)]
pub struct Account {
    /// Where its bytes are counted.
    pub counts: Arc<ByteCounts>,
    /// How long it may be without a byte, if there is a limit.
    pub idle: Option<Duration>,
    budget: Arc<Budget>,
    /// Bytes on their way into the tunnel.
    sending: AtomicUsize,
    /// Some of `sending` has left.
    left: Notify,
}

impl Account {
    /// An account of a connection of the pod with `budget`.
    pub fn new(budget: &Arc<Budget>, counts: &Arc<ByteCounts>, idle: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            counts: Arc::clone(counts),
            idle,
            budget: Arc::clone(budget),
            sending: AtomicUsize::new(0),
            left: Notify::new(),
        })
    }

    /// Accounts for `bytes` that are held until the guard is dropped.
    pub fn hold(self: &Arc<Self>, bytes: usize) -> Hold {
        let mut hold = Hold {
            account: Arc::clone(self),
            bytes: 0,
        };
        hold.set(bytes);
        hold
    }

    /// Makes `bytes` a buffer that is accounted for until its last part is dropped: written by HTTP/2, or thrown away with its stream.
    pub fn sending(self: &Arc<Self>, bytes: Vec<u8>) -> Bytes {
        if bytes.is_empty() {
            return Bytes::new();
        }
        let len = bytes.capacity();
        self.sending.fetch_add(len, Ordering::Relaxed);
        Bytes::from_owner(Sending {
            hold: self.hold(len),
            bytes,
        })
    }

    /// Whether the connection's pod is over its budget.
    pub fn is_tight(&self) -> bool {
        self.budget.is_tight()
    }

    /// Whether the connection may hold no more for now: its pod is over its budget, and it has [`MIN_WINDOW`] already.
    pub fn is_full(&self) -> bool {
        self.budget.is_tight() && self.sending.load(Ordering::Relaxed) >= MIN_WINDOW as usize
    }

    /// Waits until the connection may hold more.
    pub async fn room(&self) {
        while self.is_full() {
            self.left.notified().await;
        }
    }
}

/// Guard of bytes that are held.
#[derive(Debug)]
pub struct Hold {
    account: Arc<Account>,
    bytes: usize,
}

impl Hold {
    /// Changes how many they are.
    pub fn set(&mut self, bytes: usize) {
        let (account, before) = (&self.account, std::mem::replace(&mut self.bytes, bytes));
        if bytes > before {
            account.counts.hold(bytes - before);
            account.budget.hold(bytes - before);
        } else if bytes < before {
            account.counts.release(before - bytes);
            account.budget.release(before - bytes);
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.set(0);
    }
}

struct Sending {
    bytes: Vec<u8>,
    hold: Hold,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let account = &self.hold.account;
        account.sending.fetch_sub(self.hold.bytes, Ordering::Relaxed);
        account.left.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(bytes: usize) -> Arc<Budget> {
        Budget::new(Limits {
            connections_per_pod: 2,
            buffered_per_pod: bytes,
            ..Limits::default()
        })
    }

    #[test]
    fn places_run_out_are_counted_and_come_back() {
        let budget = budget(1 << 20);
        let first = budget.take(Place::Connection).unwrap();
        let _second = budget.take(Place::Connection).unwrap();
        let over = budget.take(Place::Connection).unwrap_err();
        assert_eq!((over.place, over.limit, over.refused), (Place::Connection, 2, 1));
        drop(first);
        let _third = budget.take(Place::Connection).unwrap();
        assert_eq!(budget.usage().taken, [2, 0, 0, 0]);
        assert_eq!(budget.usage().refused, [1, 0, 0, 0]);
    }

    #[test]
    fn handshakes_run_out_and_come_back() {
        let budget = Budget::new(Limits {
            handshakes_per_pod: 1,
            ..Limits::default()
        });
        let first = budget.take(Place::Handshake).unwrap();
        let over = budget.take(Place::Handshake).map(drop);
        assert_eq!(
            over.map_err(|over| (over.place, over.limit)),
            Err((Place::Handshake, 1))
        );
        drop(first);
        budget.take(Place::Handshake).unwrap();
    }

    #[tokio::test]
    async fn over_its_bytes_a_pod_gets_small_windows_until_half_of_it_has_gone() {
        let budget = budget(1000);
        let mut windows = budget.windows();
        let account = Account::new(&budget, &Arc::default(), None);
        let mut hold = account.hold(1000);
        assert!(!budget.is_tight());
        hold.set(1001);
        assert!(budget.is_tight());
        assert_eq!(windows.due().await, MIN_WINDOW);
        windows.changed(MIN_WINDOW, true);
        hold.set(501);
        assert!(budget.is_tight());
        drop(hold);
        assert_eq!(windows.due().await, windows.usual());
        assert_eq!(budget.usage().held(), 0);
    }

    #[tokio::test]
    async fn what_is_sent_counts_until_its_last_part_is_dropped_and_only_then_is_there_room() {
        let budget = budget(1000);
        let account = Account::new(&budget, &Arc::default(), None);
        let mut first = account.sending(vec![1; 2 * MIN_WINDOW as usize]);
        let second = first.split_to(10);
        drop(first);
        let waiting = tokio::time::timeout(Duration::from_millis(20), account.room()).await;
        assert!(waiting.is_err(), "there is no room while a part is held");
        assert_eq!(account.counts.held(), 2 * u64::from(MIN_WINDOW));
        drop(second);
        account.room().await;
        assert_eq!((account.counts.held(), budget.usage().held()), (0, 0));
    }

    #[test]
    fn twice_over_its_bytes_a_pod_gets_no_new_streams() {
        let budget = budget(1000);
        let account = Account::new(&budget, &Arc::default(), None);
        let hold = account.hold(2000);
        assert_eq!(budget.take(Place::Stream).unwrap_err().place, Place::Bytes);
        assert!(budget.take(Place::Connection).is_ok());
        drop(hold);
        assert!(budget.take(Place::Stream).is_ok());
    }
}
