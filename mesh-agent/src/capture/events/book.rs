//! The book of kernel events: the latest ones, how many there were of each kind and workload, and which of them are worth a log line.
//! Bounded whatever comes. Pure: time is passed in.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use mesh_common::Counter;
use mesh_core::model::WorkloadUid;

/// Events that are kept one by one.
const KEPT: usize = 64;
/// Kinds and workloads that are told apart; beyond that, events count for no workload.
const TALLIES: usize = 1024;
/// Log lines of one kind and workload within [`WINDOW`], before the rest is summed up.
const LINES: u64 = 3;
/// How long lines are held before they are summed up.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// For how long a workload that is gone is counted.
const KEEP: Duration = Duration::from_secs(600);

/// An event as it is kept and shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// When it happened.
    pub at: SystemTime,
    /// What.
    pub kind: Counter,
    /// Whom it befell, where that is known.
    pub workload: Option<WorkloadUid>,
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The side that opens the connection.
    pub local: Option<SocketAddr>,
    /// Where it goes.
    pub remote: SocketAddr,
    /// IP protocol.
    pub protocol: u32,
    /// The process that asked for it.
    pub pid: Option<u32>,
    /// That process's name, where it still ran when the event was read.
    pub process: Option<String>,
}

/// Events of one kind and workload that were not logged one by one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Summary {
    /// What.
    pub(super) kind: Counter,
    /// Whom it befell.
    pub(super) workload: Option<WorkloadUid>,
    /// How many.
    pub(super) more: u64,
}

/// How many events there were of one kind and workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tallied {
    /// What.
    pub kind: Counter,
    /// Whom it befell.
    pub workload: Option<WorkloadUid>,
    /// How many.
    pub count: u64,
}

#[derive(Debug)]
struct Tally {
    kind: Counter,
    count: u64,
    last: Instant,
    window: Option<Window>,
}

/// A time in which lines are held.
#[derive(Clone, Copy, Debug)]
struct Window {
    since: Instant,
    logged: u64,
    held: u64,
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WINDOW
    }
}

type Key = (u32, Option<WorkloadUid>);

/// The book.
#[derive(Debug, Default)]
pub(in crate::capture) struct Book {
    latest: VecDeque<Record>,
    tallies: BTreeMap<Key, Tally>,
}

impl Book {
    /// Enters an event. Whether it is to be logged by itself.
    pub(super) fn enter(&mut self, record: Record, now: Instant) -> bool {
        let known = self
            .tallies
            .contains_key(&(record.kind as u32, record.workload.clone()));
        let workload = record
            .workload
            .clone()
            .filter(|_| known || self.tallies.len() < TALLIES);
        let tally = self
            .tallies
            .entry((record.kind as u32, workload))
            .or_insert(Tally {
                kind: record.kind,
                count: 0,
                last: now,
                window: None,
            });
        tally.count += 1;
        tally.last = now;
        let window = tally.window.get_or_insert(Window {
            since: now,
            logged: 0,
            held: 0,
        });
        let logged = window.logged < LINES;
        if logged {
            window.logged += 1;
        } else {
            window.held += 1;
        }
        if self.latest.len() == KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(record);
        logged
    }

    /// What was held in windows that are over.
    pub(super) fn summaries(&mut self, now: Instant) -> Vec<Summary> {
        let mut summaries = Vec::new();
        for ((_, workload), tally) in &mut self.tallies {
            let Some(window) = tally.window.take_if(|window| window.is_over(now)) else {
                continue;
            };
            if window.held > 0 {
                summaries.push(Summary {
                    kind: tally.kind,
                    workload: workload.clone(),
                    more: window.held,
                });
            }
        }
        summaries
    }

    /// Forgets the tallies of workloads that are gone for a while.
    pub(super) fn forget(&mut self, now: Instant, is_there: impl Fn(&WorkloadUid) -> bool) {
        self.tallies.retain(|(_, workload), tally| {
            let there = workload.as_ref().is_none_or(&is_there);
            there || tally.window.is_some() || now.saturating_duration_since(tally.last) < KEEP
        });
    }

    /// The latest events, the oldest first.
    pub(super) fn latest(&self) -> impl Iterator<Item = &Record> {
        self.latest.iter()
    }

    /// How many there were, by kind and workload.
    pub(super) fn tallies(&self) -> Vec<Tallied> {
        let tallied = |((_, workload), tally): (&Key, &Tally)| Tallied {
            kind: tally.kind,
            workload: workload.clone(),
            count: tally.count,
        };
        self.tallies.iter().map(tallied).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(kind: Counter, workload: Option<&str>) -> Record {
        Record {
            at: SystemTime::UNIX_EPOCH,
            kind,
            workload: workload.map(|name| WorkloadUid::new("shop", name, "")),
            netns: 7,
            local: None,
            remote: "198.18.0.1:80".parse().unwrap(),
            protocol: 6,
            pid: None,
            process: None,
        }
    }

    #[test]
    fn the_first_lines_are_logged_and_the_rest_is_summed_up_when_the_window_ends() {
        let (mut book, start) = (Book::default(), Instant::now());
        let mut logged = 0;
        for _ in 0..100 {
            logged += u64::from(book.enter(record(Counter::HandoffFull, Some("web")), start));
        }
        assert_eq!(logged, LINES);
        assert_eq!(book.summaries(start + WINDOW - Duration::from_millis(1)), []);
        let summaries = book.summaries(start + WINDOW);
        assert_eq!(summaries.len(), 1);
        assert_eq!(
            (summaries[0].kind, summaries[0].more),
            (Counter::HandoffFull, 100 - LINES)
        );
        assert_eq!(book.summaries(start + 2 * WINDOW), []);
        assert!(book.enter(record(Counter::HandoffFull, Some("web")), start + WINDOW));
        assert_eq!(book.tallies()[0].count, 101);
    }

    #[test]
    fn a_flood_of_one_workload_or_kind_does_not_hide_another() {
        let (mut book, now) = (Book::default(), Instant::now());
        for _ in 0..100 {
            book.enter(record(Counter::DroppedAgentPort, Some("web")), now);
        }
        assert!(book.enter(record(Counter::DroppedAgentPort, Some("order")), now));
        assert!(book.enter(record(Counter::HandoffFull, Some("web")), now));
        assert!(book.enter(record(Counter::DroppedAgentPort, None), now));
    }

    #[test]
    fn the_book_is_bounded_whatever_comes() {
        let (mut book, now) = (Book::default(), Instant::now());
        for i in 0..10_000 {
            book.enter(record(Counter::DroppedNoListener, Some(&format!("pod-{i}"))), now);
        }
        assert_eq!(book.latest().count(), KEPT);
        assert!(book.tallies().len() <= TALLIES + mesh_common::COUNTERS as usize);
        assert_eq!(
            book.tallies().iter().map(|t| t.count).sum::<u64>(),
            10_000,
            "none is lost"
        );
        let last = book.latest().last().unwrap();
        assert_eq!(last.workload, Some(WorkloadUid::new("shop", "pod-9999", "")));
    }

    #[test]
    fn workloads_that_are_gone_are_forgotten_after_a_while() {
        let (mut book, now) = (Book::default(), Instant::now());
        book.enter(record(Counter::HandoffFull, Some("web")), now);
        book.enter(record(Counter::HandoffFull, None), now);
        book.summaries(now + WINDOW);
        book.forget(now + KEEP / 2, |_| false);
        assert_eq!(book.tallies().len(), 2);
        book.forget(now + KEEP, |_| true);
        assert_eq!(book.tallies().len(), 2);
        book.forget(now + KEEP, |_| false);
        assert_eq!(book.tallies().len(), 1);
    }
}
