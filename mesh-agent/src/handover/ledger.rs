//! What became of handovers, and the predecessor that has yet to leave: for those who show it.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// How often handovers ended which way, over all agents of the node that have followed each other: a successor goes on counting where its
/// predecessor has stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// A successor serves every new connection.
    pub taken_over: u64,
    /// A successor has failed on its way; the agent that had yielded went on.
    pub failed: u64,
    /// An agent that wanted to take over was sent away.
    pub refused: u64,
}

impl Counts {
    /// Each way with its name in metrics.
    pub fn by_result(&self) -> [(&'static str, u64); 3] {
        [
            ("taken_over", self.taken_over),
            ("failed", self.failed),
            ("refused", self.refused),
        ]
    }
}

/// An agent that was relieved and has connections left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// When it was relieved.
    pub since: SystemTime,
    /// How many connections it had left when it last said so.
    pub connections: usize,
}

/// The account of an agent's handovers.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    counts: Counts,
    leaving: Option<Leaving>,
}

impl Ledger {
    /// Goes on where `counts` have stopped.
    pub fn of(counts: Counts) -> Self {
        Self(Mutex::new(Inner {
            counts,
            leaving: None,
        }))
    }

    /// How handovers ended.
    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// The predecessor, until it has left.
    pub fn leaving(&self) -> Option<Leaving> {
        self.lock().leaving.clone()
    }

    /// This agent has taken over.
    pub fn taken_over(&self) {
        self.lock().counts.taken_over += 1;
    }

    /// Another one has failed to take over from this one.
    pub fn failed(&self) {
        self.lock().counts.failed += 1;
    }

    /// Another one was not let take over.
    pub fn refused(&self) {
        self.lock().counts.refused += 1;
    }

    /// What the predecessor says; `None` when it has left.
    pub(super) fn heard(&self, leaving: Option<Leaving>) {
        self.lock().leaving = leaving;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one step: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
