//! The counters over connections by label set: Istio's TCP metrics.
//!
//! A label set has a series for each shard of the connection table, so that workers do not write to the same memory; they are added
//! up at the scrape. A series is resolved once per combination of parties and shard; from then on, to count is to add to an atomic
//! number that is nobody else's.
//!
//! Label sets that nobody bears any more expire. There are at most [`MAX_LABEL_SETS`]; connections beyond them share one per reporter.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::connections::{ConnectionInfo, ResponseFlag};
use super::labels::{LabelSet, Present};

/// How long the counters of a label set stay after the last workload and connection that used it is gone; longer while not
/// [`SCRAPES`] have shown the last values.
pub const GRACE: Duration = Duration::from_secs(600);

/// How many scrapes are to have shown the last values of a label set before it expires.
pub const SCRAPES: u64 = 2;

/// How long it stays where nobody scrapes.
pub const UNSCRAPED: Duration = Duration::from_secs(3600);

/// Label sets at most, beside those of the connections that found no room.
pub const MAX_LABEL_SETS: usize = 10_000;

/// How many shards there are; see `connections`.
pub(super) const SHARDS: usize = 16;

/// The numbers of one label set in one shard, on cache lines of their own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub(super) struct Series {
    opened: AtomicU64,
    /// Without a flag first, then by [`ResponseFlag::ALL`].
    closed: [AtomicU64; ResponseFlag::ALL.len() + 1],
    received: AtomicU64,
    sent: AtomicU64,
}

impl Series {
    pub(super) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn closed(&self, flag: Option<ResponseFlag>) {
        let index = flag.map_or(0, |flag| flag as usize + 1);
        if let Some(count) = self.closed.get(index) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn add_bytes(&self, received: u64, sent: u64) {
        if received > 0 {
            self.received.fetch_add(received, Ordering::Relaxed);
        }
        if sent > 0 {
            self.sent.fetch_add(sent, Ordering::Relaxed);
        }
    }
}

/// One label set with its numbers at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// The labels.
    pub labels: Arc<LabelSet>,
    /// Connections opened.
    pub opened: u64,
    /// Connections closed, by flag (`None`: without failure); only those above zero.
    pub closed: Vec<(Option<ResponseFlag>, u64)>,
    /// Request bytes.
    pub received: u64,
    /// Response bytes.
    pub sent: u64,
}

impl Sample {
    fn of(labels: Arc<LabelSet>, shards: &[Arc<Series>]) -> Self {
        let sum = |count: &dyn Fn(&Series) -> u64| shards.iter().map(|series| count(series)).sum::<u64>();
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let flags = std::iter::once(None).chain(ResponseFlag::ALL.map(Some));
        let closed = flags.enumerate().map(|(i, flag)| {
            let of = |series: &Series| series.closed.get(i).map_or(0, load);
            (flag, sum(&of))
        });
        Self {
            labels,
            opened: sum(&|series| load(&series.opened)),
            closed: closed.filter(|(_, n)| *n > 0).collect(),
            received: sum(&|series| load(&series.received)),
            sent: sum(&|series| load(&series.sent)),
        }
    }
}

/// How full the table of label sets is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Label sets with numbers of their own.
    pub used: usize,
    /// How many there may be.
    pub capacity: usize,
    /// How many times a label set found no room since the start: a count of label sets and shards, not of connections.
    pub overflows: u64,
}

/// A label set that nothing has used since this moment, and after so many scrapes.
#[derive(Clone, Copy, Debug)]
struct Unused {
    since: Instant,
    scrapes: u64,
}

#[derive(Debug, Default)]
struct Entry {
    shards: [Option<Arc<Series>>; SHARDS],
    /// It is shared by those that found no room, and stays.
    shared: bool,
    unused: Option<Unused>,
}

impl Entry {
    fn series(&self) -> impl Iterator<Item = &Arc<Series>> {
        self.shards.iter().flatten()
    }
}

#[derive(Debug, Default)]
struct Sets {
    by_labels: HashMap<Arc<LabelSet>, Entry>,
    /// How many of them are shared.
    shared: usize,
}

impl Sets {
    /// How many label sets have numbers of their own.
    fn own(&self) -> usize {
        self.by_labels.len() - self.shared
    }
}

/// The TCP counters by label set.
#[derive(Debug)]
pub struct Traffic {
    sets: Mutex<Sets>,
    capacity: usize,
    overflows: AtomicU64,
    scrapes: AtomicU64,
}

impl Default for Traffic {
    fn default() -> Self {
        Self::with_capacity(MAX_LABEL_SETS)
    }
}

impl Traffic {
    /// Room for so many label sets.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            sets: Mutex::default(),
            capacity,
            overflows: AtomicU64::new(0),
            scrapes: AtomicU64::new(0),
        }
    }

    /// The series of a connection in a shard. Called once per combination of parties and shard: takes a lock.
    pub(super) fn resolve(&self, info: &ConnectionInfo, shard: usize) -> Arc<Series> {
        let mut labels = LabelSet::of(info);
        let mut sets = self.locked();
        let room = sets.own() < self.capacity || sets.by_labels.contains_key(&labels);
        if !room {
            self.overflowed(&labels);
            labels = LabelSet::other(info.reporter);
            sets.shared += usize::from(!sets.by_labels.contains_key(&labels));
        }
        let entry = sets.by_labels.entry(Arc::new(labels)).or_default();
        entry.shared = !room;
        entry.unused = None;
        match entry.shards.get_mut(shard) {
            Some(series) => series.get_or_insert_default().clone(),
            None => Arc::default(),
        }
    }

    /// Counts a label set without room; says so, ever more rarely.
    fn overflowed(&self, labels: &LabelSet) {
        let before = self.overflows.fetch_add(1, Ordering::Relaxed);
        if (before + 1).is_power_of_two() {
            let labels: Vec<_> = labels
                .pairs()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            tracing::warn!(
                capacity = self.capacity,
                overflows = before + 1,
                example = labels.join(" "),
                "the TCP metrics have no room for more label sets: further connections are counted under \"other\" until others expire \
                 (do pods carry labels app or version that are unique to each?)"
            );
        }
    }

    /// All label sets with their numbers, in no order.
    pub fn samples(&self) -> Vec<Sample> {
        let copied: Vec<_> = self
            .locked()
            .by_labels
            .iter()
            .map(|(labels, entry)| (labels.clone(), entry.series().cloned().collect::<Vec<_>>()))
            .collect();
        copied
            .into_iter()
            .map(|(labels, shards)| Sample::of(labels, &shards))
            .collect()
    }

    /// A scraper has seen all values.
    pub(super) fn scraped(&self) {
        self.scrapes.fetch_add(1, Ordering::Relaxed);
    }

    /// How full it is.
    pub fn room(&self) -> Room {
        Room {
            used: self.locked().own(),
            capacity: self.capacity,
            overflows: self.overflows.load(Ordering::Relaxed),
        }
    }

    /// Drops the label sets that nobody of `present` has borne, and no connection used, for long enough.
    pub(super) fn expire(&self, present: &Present<'_>, now: Instant) {
        let scrapes = self.scrapes.load(Ordering::Relaxed);
        self.locked().by_labels.retain(|labels, entry| {
            // References are given out under this lock, or copied for a moment: a count of one cannot hide a user.
            if entry.shared || entry.series().any(|series| Arc::strong_count(series) > 1) {
                return true;
            }
            if present.bears(labels) {
                entry.unused = None;
                return true;
            }
            let unused = *entry.unused.get_or_insert(Unused { since: now, scrapes });
            let age = now.saturating_duration_since(unused.since);
            age < GRACE || (scrapes - unused.scrapes < SCRAPES && age < UNSCRAPED)
        });
    }

    /// A panic elsewhere cannot leave the map half-changed: every change is one step, and a wrong `shared` only moves the limit.
    fn locked(&self) -> MutexGuard<'_, Sets> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_numbered_in_the_order_of_their_list() {
        for (i, flag) in ResponseFlag::ALL.into_iter().enumerate() {
            assert_eq!(flag as usize, i);
        }
    }
}
