//! The end of connections that nobody uses, where a setting asks for it.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use super::CopyError;
use crate::tunnel::Account;

/// Resolves once `account` has had no byte in either direction for its limit, a quarter of the limit late at most. Never, without a limit.
pub(super) fn idle(account: &Account) -> Idle<'_> {
    Idle(account.idle.map(|limit| {
        let watching: Watching<'_> = Box::pin(watch(account, limit));
        watching
    }))
}

type Watching<'a> = Pin<Box<dyn Future<Output = CopyError> + Send + 'a>>;

/// See [`idle`]. On the heap where there is a limit, and no larger than that where there is none.
pub(super) struct Idle<'a>(Option<Watching<'a>>);

impl Future for Idle<'_> {
    type Output = CopyError;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<CopyError> {
        match &mut self.0 {
            Some(watching) => watching.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

async fn watch(account: &Account, limit: Duration) -> CopyError {
    let mut watch = Watch::new(limit, account.counts.total(), Instant::now());
    loop {
        tokio::time::sleep(watch.pause()).await;
        if let Some(limit) = watch.over(account.counts.total(), Instant::now()) {
            return CopyError::Idle(limit);
        }
    }
}

/// Whether a connection has been idle for too long.
#[derive(Debug)]
struct Watch {
    limit: Duration,
    /// Bytes carried when last looked at.
    seen: u64,
    /// Since when they are as many.
    since: Instant,
}

impl Watch {
    fn new(limit: Duration, carried: u64, now: Instant) -> Self {
        Self {
            limit,
            seen: carried,
            since: now,
        }
    }

    /// When to look again.
    fn pause(&self) -> Duration {
        (self.limit / 4).max(Duration::from_millis(1))
    }

    /// The limit, once it is reached without a byte. `carried` are the bytes so far.
    fn over(&mut self, carried: u64, now: Instant) -> Option<Duration> {
        if carried != self.seen {
            (self.seen, self.since) = (carried, now);
        }
        (now.saturating_duration_since(self.since) >= self.limit).then_some(self.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn without_a_limit_a_connection_is_idle_for_ever_and_nobody_even_looks() {
        let budget = crate::tunnel::Budget::new(crate::tunnel::Limits::default());
        let account = |limit| Account::new(&budget, &Default::default(), limit);
        assert!(idle(&account(None)).0.is_none());
        assert!(idle(&account(Some(DAY))).0.is_some());
    }

    #[test]
    fn with_a_limit_each_byte_begins_the_time_anew() {
        let start = Instant::now();
        let mut watch = Watch::new(DAY, 0, start);
        assert_eq!(watch.pause(), DAY / 4);
        assert_eq!(watch.over(0, start + DAY * 3 / 4), None);
        assert_eq!(watch.over(1, start + DAY), None);
        assert_eq!(watch.over(1, start + DAY * 7 / 4), None);
        assert_eq!(watch.over(1, start + DAY * 2), Some(DAY));
    }
}
