//! The end of connections that nobody uses, where a setting asks for it.

use std::time::{Duration, Instant};

use super::CopyError;
use crate::tunnel::Account;

/// Resolves once `account` has had no byte in either direction for its limit, a quarter of the limit late at most. Never, without a limit.
pub(super) async fn idle(account: &Account) -> CopyError {
    let mut watch = Watch::new(account.idle, account.counts.total(), Instant::now());
    loop {
        match watch.pause() {
            Some(pause) => tokio::time::sleep(pause).await,
            None => std::future::pending().await,
        }
        if let Some(limit) = watch.over(account.counts.total(), Instant::now()) {
            return CopyError::Idle(limit);
        }
    }
}

/// Whether a connection has been idle for too long.
#[derive(Debug)]
struct Watch {
    limit: Option<Duration>,
    /// Bytes carried when last looked at.
    seen: u64,
    /// Since when they are as many.
    since: Instant,
}

impl Watch {
    fn new(limit: Option<Duration>, carried: u64, now: Instant) -> Self {
        Self {
            limit,
            seen: carried,
            since: now,
        }
    }

    /// When to look again; `None` for never.
    fn pause(&self) -> Option<Duration> {
        self.limit.map(|limit| (limit / 4).max(Duration::from_millis(1)))
    }

    /// The limit, once it is reached without a byte. `carried` are the bytes so far.
    fn over(&mut self, carried: u64, now: Instant) -> Option<Duration> {
        if carried != self.seen {
            (self.seen, self.since) = (carried, now);
        }
        let limit = self.limit?;
        (now.saturating_duration_since(self.since) >= limit).then_some(limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3600);

    #[test]
    fn without_a_limit_a_connection_is_idle_for_thirty_days_and_nobody_even_looks() {
        let start = Instant::now();
        let mut watch = Watch::new(None, 7, start);
        assert_eq!(watch.pause(), None);
        for day in 1..=30 {
            assert_eq!(watch.over(7, start + day * DAY), None);
        }
    }

    #[test]
    fn with_a_limit_each_byte_begins_the_time_anew() {
        let start = Instant::now();
        let mut watch = Watch::new(Some(DAY), 0, start);
        assert_eq!(watch.pause(), Some(DAY / 4));
        assert_eq!(watch.over(0, start + DAY * 3 / 4), None);
        assert_eq!(watch.over(1, start + DAY), None);
        assert_eq!(watch.over(1, start + DAY * 7 / 4), None);
        assert_eq!(watch.over(1, start + DAY * 2), Some(DAY));
    }
}
