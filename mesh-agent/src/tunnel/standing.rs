//! The inbound connections of a pod on one worker, as far as a judge needs to know them: so that those which stand can be judged again when
//! what decides about them changes. Decides nothing: whoever judges brings the judge along.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use mesh_core::model::SpiffeId;
use mesh_core::plan::{Inbound, Refusal};
use tokio::sync::oneshot;

/// How many are judged before others of the worker run.
const AT_ONCE: usize = 256;

/// What is known of an inbound connection for as long as it lives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// The client's address: of the TCP connection (plaintext) or of the tunnel's TCP connection.
    pub client: IpAddr,
    /// The client's proven identity; `None` for plaintext.
    pub identity: Option<SpiffeId>,
    /// The address and port that the client asked for.
    pub address: SocketAddr,
}

impl Facts {
    /// As a question for `plan`.
    pub fn question(&self) -> Inbound<'_> {
        Inbound {
            client: self.client,
            identity: self.identity.as_ref(),
            address: self.address,
        }
    }
}

/// The connections that stand.
#[derive(Debug, Default)]
pub struct Standing(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// The newest snapshot under which one of them was let in.
    newest: u64,
    entries: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    facts: Facts,
    /// The snapshot under which it was judged last; 0 before it was.
    version: u64,
    revoke: oneshot::Sender<Refusal>,
}

/// How a judging went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// Connections that go on.
    pub kept: usize,
    /// Connections that were told to end.
    pub closed: usize,
}

impl Standing {
    /// Keeps a connection in mind until the guard is dropped. To be called before the snapshot is read under which it is judged: then
    /// it is either judged under a change, or found here when the change is judged.
    pub fn enter(self: &Arc<Self>, facts: Facts) -> Stands {
        let (revoke, revoked) = oneshot::channel();
        let mut inner = self.lock();
        inner.next += 1;
        let id = inner.next;
        let entry = Entry {
            facts,
            version: 0,
            revoke,
        };
        inner.entries.insert(id, entry);
        Stands {
            standing: Arc::clone(self),
            id,
            revoked: Some(revoked),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether one may have been let in under a snapshot between these two, exclusive. No look at each of them.
    pub fn let_in_between(&self, before: u64, now: u64) -> bool {
        now > before.saturating_add(1) && self.lock().newest > before
    }

    /// Asks `judge` about each that was last judged before snapshot `version`, and ends those that are refused. Others of the worker run in
    /// between.
    pub async fn judge(&self, version: u64, judge: impl Fn(&Facts) -> Result<(), Refusal>) -> Judged {
        let ids: Vec<u64> = self.lock().entries.keys().copied().collect();
        let mut judged = Judged::default();
        for some in ids.chunks(AT_ONCE) {
            self.judge_some(some, version, &judge, &mut judged);
            tokio::task::yield_now().await;
        }
        judged
    }

    fn judge_some(
        &self,
        ids: &[u64],
        version: u64,
        judge: &impl Fn(&Facts) -> Result<(), Refusal>,
        judged: &mut Judged,
    ) {
        let mut inner = self.lock();
        for id in ids {
            let Some(entry) = inner.entries.get_mut(id) else {
                continue;
            };
            if entry.version >= version {
                continue;
            }
            match judge(&entry.facts) {
                Ok(()) => {
                    entry.version = version;
                    judged.kept += 1;
                }
                Err(refusal) => {
                    if let Some(entry) = inner.entries.remove(id) {
                        // Fails only when the connection is ending by itself.
                        judged.closed += usize::from(entry.revoke.send(refusal).is_ok());
                    }
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one step: a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Guard of a connection that is kept in mind.
#[derive(Debug)]
pub struct Stands {
    standing: Arc<Standing>,
    id: u64,
    /// `None` when nobody can refuse it any more.
    revoked: Option<oneshot::Receiver<Refusal>>,
}

impl Stands {
    /// It was let in under snapshot `version`.
    pub fn let_in(&self, version: u64) {
        let mut inner = self.standing.lock();
        inner.newest = inner.newest.max(version);
        if let Some(entry) = inner.entries.get_mut(&self.id) {
            entry.version = version;
        }
    }

    /// Resolves when it is refused after all.
    pub async fn revoked(&mut self) -> Refusal {
        poll_fn(|cx| self.poll_revoked(cx)).await
    }

    /// As [`Stands::revoked`], for those that wait for more.
    pub fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<Refusal> {
        let Some(revoked) = &mut self.revoked else {
            return Poll::Pending;
        };
        let outcome = ready!(Pin::new(revoked).poll(cx));
        // It says one thing once.
        self.revoked = None;
        outcome.map_or(Poll::Pending, Poll::Ready)
    }
}

impl Drop for Stands {
    fn drop(&mut self) {
        self.standing.lock().entries.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use mesh_core::plan::Reason;

    use super::*;

    fn facts(last: u8) -> Facts {
        Facts {
            client: [198, 18, 0, last].into(),
            identity: None,
            address: ([198, 18, 1, 1], 8080).into(),
        }
    }

    fn refuse(facts: &Facts) -> Result<(), Refusal> {
        Err(Refusal::new(
            Reason::PolicyDenied,
            format!("not {}", facts.client),
        ))
    }

    #[tokio::test]
    async fn those_that_are_refused_are_told_so_and_the_others_go_on() {
        let standing = Arc::<Standing>::default();
        let mut all: Vec<Stands> = (1..=100).map(|last| standing.enter(facts(last))).collect();
        all.iter().for_each(|stands| stands.let_in(7));
        let odd = |facts: &Facts| match facts.client {
            IpAddr::V4(v4) if v4.octets()[3] % 2 == 0 => Ok(()),
            _ => refuse(facts),
        };
        let judged = standing.judge(8, odd).await;
        assert_eq!((judged.kept, judged.closed), (50, 50));
        let refusal = all[0].revoked().await;
        assert_eq!(refusal.to_string(), "not 198.18.0.1");
        let mut kept = all.swap_remove(1);
        tokio::select! {
            biased;
            refusal = kept.revoked() => panic!("{refusal}"),
            () = std::future::ready(()) => {}
        }
        drop((all, kept));
        assert!(standing.is_empty());
    }

    #[tokio::test]
    async fn one_that_was_judged_under_that_snapshot_or_a_newer_one_is_not_asked_about() {
        let standing = Arc::<Standing>::default();
        let (older, newer) = (standing.enter(facts(1)), standing.enter(facts(2)));
        older.let_in(3);
        newer.let_in(9);
        let asked = Cell::new(0);
        let judge = |_: &Facts| {
            asked.set(asked.get() + 1);
            Ok(())
        };
        standing.judge(8, judge).await;
        assert_eq!(asked.get(), 1);
        standing.judge(8, judge).await;
        assert_eq!(asked.get(), 1, "judged under 8 already");
        standing.judge(10, judge).await;
        assert_eq!(asked.get(), 3);
    }

    #[test]
    fn a_snapshot_that_came_and_went_unseen_may_have_let_some_in() {
        let standing = Arc::<Standing>::default();
        assert!(!standing.let_in_between(3, 9), "nobody there");
        let stands = standing.enter(facts(1));
        stands.let_in(3);
        assert!(!standing.let_in_between(3, 9));
        stands.let_in(4);
        assert!(standing.let_in_between(3, 5));
        assert!(!standing.let_in_between(3, 4), "there is none between these");
        assert!(!standing.let_in_between(4, 6));
    }

    #[tokio::test]
    async fn one_that_ends_while_it_is_refused_is_not_counted() {
        let standing = Arc::<Standing>::default();
        let Stands { revoked, .. } = &mut standing.enter(facts(1));
        revoked.as_mut().unwrap().close();
        let judged = standing.judge(1, refuse).await;
        assert_eq!((judged.kept, judged.closed), (0, 0));
    }
}
