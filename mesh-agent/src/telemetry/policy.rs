//! What policies decided: counts by policy, the latest refusals with their ids, and a log line for each, within a budget. Written from the
//! data path; all of it is bounded. Decides nothing.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use mesh_core::authz::{Judgement, Tally, Word};
use mesh_core::model::{Action, ObjectRef};
use mesh_core::plan::{Reason, Refusal};

use super::connections::{ConnectionInfo, Security};
use super::plaintext::PlaintextBook;
use super::traffic::GRACE;

/// The tracing target of what policies decide.
const TARGET: &str = "mesh_agent::policy";
/// Refusals that are remembered.
pub const REMEMBERED: usize = 256;
/// Log lines at once, and a second on end. What is not told stands in the access log all the same.
const LINES: (u32, u32) = (100, 20);

/// Names one refusal; unique within a run of the agent, and most likely among the agents of a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RefusalId(Arc<str>);

impl RefusalId {
    /// As text: letters, digits and a dash.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RefusalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A refusal that is remembered.
#[derive(Clone, Debug)]
pub struct Refused {
    /// Its name.
    pub id: RefusalId,
    /// When.
    pub at: SystemTime,
    /// Whose connection.
    pub info: ConnectionInfo,
    /// Why.
    pub refusal: Refusal,
    /// How long the connection had stood, if it was let in before.
    pub stood: Option<Duration>,
}

/// How often connections that stand were judged again, and what came of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejudged {
    /// They went on.
    pub kept: u64,
    /// They were ended.
    pub closed: u64,
}

/// What policies decided since the start.
#[derive(Debug)]
pub struct PolicyLog {
    /// Begins the ids of this run.
    run: u16,
    next: AtomicU64,
    counts: Mutex<HashMap<ObjectRef, Counts>>,
    recent: Mutex<VecDeque<Refused>>,
    refusal_lines: Mutex<Lines>,
    audit_lines: Mutex<Lines>,
    kept: AtomicU64,
    closed: AtomicU64,
    plaintext: PlaintextBook,
}

/// The counts of one policy.
#[derive(Debug, Default)]
struct Counts {
    by: HashMap<(Action, Word), u64>,
    /// Since when the policy is not in the configuration.
    gone_since: Option<Instant>,
}

impl Default for PolicyLog {
    fn default() -> Self {
        Self {
            run: rand::random(),
            next: AtomicU64::new(1),
            counts: Mutex::default(),
            recent: Mutex::default(),
            refusal_lines: Mutex::new(Lines::new(Instant::now())),
            audit_lines: Mutex::new(Lines::new(Instant::now())),
            kept: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            plaintext: PlaintextBook::default(),
        }
    }
}

impl PolicyLog {
    /// A connection was let in, and policies said this of it.
    pub(super) fn admitted(&self, info: &ConnectionInfo, judgement: &Judgement) {
        if info.security == Security::None {
            self.plaintext.seen(info, SystemTime::now());
        }
        self.count(&judgement.tallies, None);
        self.tell_audits(info, judgement);
    }

    /// A connection was refused; `stood` says for how long it had been let in before. Returns the refusal's id.
    pub(super) fn refused(
        &self,
        info: &ConnectionInfo,
        refusal: &Refusal,
        stood: Option<Duration>,
    ) -> RefusalId {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = RefusalId(format!("{:04x}-{number}", self.run).into());
        if let Some(judgement) = &refusal.judgement {
            self.count(&judgement.tallies, stood.map(|_| Word::Closed));
            self.tell_audits(info, judgement);
        }
        self.tell_refusal(&id, info, refusal, stood);
        let mut recent = locked(&self.recent);
        if recent.len() == REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(Refused {
            id: id.clone(),
            at: SystemTime::now(),
            info: info.clone(),
            refusal: refusal.clone(),
            stood,
        });
        id
    }

    /// Connections that stood were judged again.
    pub fn rejudged(&self, kept: usize, closed: usize) {
        self.kept.fetch_add(kept as u64, Ordering::Relaxed);
        self.closed.fetch_add(closed as u64, Ordering::Relaxed);
    }

    /// How that went since the start.
    pub fn rejudgings(&self) -> Rejudged {
        Rejudged {
            kept: self.kept.load(Ordering::Relaxed),
            closed: self.closed.load(Ordering::Relaxed),
        }
    }

    /// The counts, in the order of their policies.
    pub fn counts(&self) -> Vec<(Tally, u64)> {
        let counts = locked(&self.counts);
        let tally = |policy: &ObjectRef, (action, word): (Action, Word)| Tally {
            policy: policy.clone(),
            action,
            word,
        };
        let mut all: Vec<_> = counts
            .iter()
            .flat_map(|(policy, of)| of.by.iter().map(|(key, n)| (tally(policy, *key), *n)))
            .collect();
        drop(counts);
        all.sort();
        all
    }

    /// The latest refusals, the oldest first.
    pub fn recent(&self) -> Vec<Refused> {
        locked(&self.recent).iter().cloned().collect()
    }

    /// Who came in plaintext.
    pub fn plaintext(&self) -> &PlaintextBook {
        &self.plaintext
    }

    /// Forgets the counts of policies that have not been `current` for [`GRACE`].
    pub fn expire(&self, current: impl Fn(&ObjectRef) -> bool, now: Instant) {
        locked(&self.counts).retain(|policy, counts| {
            if current(policy) {
                counts.gone_since = None;
                return true;
            }
            let since = *counts.gone_since.get_or_insert(now);
            now.saturating_duration_since(since) < GRACE
        });
    }

    /// `instead` stands for [`Word::Denied`].
    fn count(&self, tallies: &[Tally], instead: Option<Word>) {
        if tallies.is_empty() {
            return;
        }
        let mut counts = locked(&self.counts);
        for tally in tallies {
            let of = match counts.get_mut(&tally.policy) {
                Some(of) => of,
                None => counts.entry(tally.policy.clone()).or_default(),
            };
            let word = instead
                .filter(|_| tally.word == Word::Denied)
                .unwrap_or(tally.word);
            *of.by.entry((tally.action, word)).or_default() += 1;
        }
    }

    fn tell_refusal(
        &self,
        id: &RefusalId,
        info: &ConnectionInfo,
        refusal: &Refusal,
        stood: Option<Duration>,
    ) {
        // Other refusals are no policy's: the access log has them.
        if !matches!(refusal.reason, Reason::PolicyDenied | Reason::PlaintextRefused) {
            return;
        }
        let Some(untold) = locked(&self.refusal_lines).take(Instant::now()) else {
            return;
        };
        let ground = refusal.verdict().and_then(|verdict| verdict.ground());
        tracing::warn!(
            target: TARGET,
            refusal = id.as_str(),
            reason = refusal.reason.as_str(),
            policy = ground.map(|ground| tracing::field::display(ground.policy)),
            rule = ground.and_then(|ground| ground.rule),
            field = ground.and_then(|ground| ground.field),
            src.addr = %info.source_address,
            dst.addr = %info.destination_address,
            stood = stood.map(tracing::field::debug),
            untold = (untold > 0).then_some(untold),
            "{}{refusal}",
            if stood.is_some() { "a connection that stood is closed: " } else { "" },
        );
    }

    fn tell_audits(&self, info: &ConnectionInfo, judgement: &Judgement) {
        for rule in &judgement.audited {
            let Some(untold) = locked(&self.audit_lines).take(Instant::now()) else {
                continue;
            };
            tracing::info!(
                target: TARGET,
                policy = %rule.policy,
                rule = rule.rule,
                allowed = judgement.verdict.is_allowed(),
                src.addr = %info.source_address,
                src.identity = info.source_identity.as_ref().map(tracing::field::display),
                dst.addr = %info.destination_address,
                untold = (untold > 0).then_some(untold),
                "audited"
            );
        }
    }
}

/// Log lines of one kind, within a budget.
#[derive(Debug)]
struct Lines {
    left: u32,
    filled: Instant,
    /// Lines that were not written since the last one that was.
    untold: u64,
}

impl Lines {
    fn new(now: Instant) -> Self {
        Self {
            left: LINES.0,
            filled: now,
            untold: 0,
        }
    }

    /// Whether a line may be written, and how many were not since the last one.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = now.saturating_duration_since(self.filled);
        let back = since.as_millis().saturating_mul(u128::from(LINES.1)) / 1000;
        if back > 0 {
            let back = u32::try_from(back).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(back).min(LINES.0);
            self.filled = now;
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Some(std::mem::take(&mut self.untold))
            }
            None => {
                self.untold += 1;
                None
            }
        }
    }
}

/// A panic elsewhere cannot leave these half-changed: every change is one step.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
