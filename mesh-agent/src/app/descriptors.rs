//! The limit of open descriptors: a connection costs an agent at least one, and most service managers start programs with 1,024 and let
//! them have more. Never lowers it.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, info, warn};

/// With fewer than these an agent is warned about: some ten thousand connections.
const FEW: u64 = 32_768;

/// However few there are, a workload may have so many connections on a worker.
const LEAST: usize = 64;

/// How many descriptors there are, and what follows from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptors {
    /// The limit of this process; `None` where it cannot be told.
    pub(super) limit: Option<u64>,
    /// Connections of one workload that a worker carries at most.
    pub(super) connections: usize,
    /// What the settings say about that.
    pub(super) asked: usize,
}

impl Descriptors {
    /// Raises this process's limit as far as it may be raised, says so where that is not far, and derives the budget of connections.
    pub(super) fn prepare(workers: usize, asked: usize) -> Self {
        let limit = raise();
        match limit {
            Ok(limit) if limit < FEW => warn!(
                limit,
                "few descriptors: each connection takes one, a tunnel and a pod a few more; raise the hard limit (LimitNOFILE= in a unit)"
            ),
            Ok(limit) => debug!(limit, "descriptors"),
            Err(error) => warn!(%error, "the limit of descriptors cannot be raised"),
        }
        let limit = limit.ok();
        let connections = limit.map_or(asked, |limit| budget(limit, workers, asked));
        if connections < asked {
            info!(
                asked,
                connections, "the budget of connections is cut to what the limit of descriptors has room for"
            );
        }
        Self {
            limit,
            connections,
            asked,
        }
    }

    /// Whether there are few.
    pub(super) fn is_short(&self) -> bool {
        self.limit.is_some_and(|limit| limit < FEW)
    }
}

/// Connections of one workload on one worker: over all workers, a workload may have as many as three fifths of the descriptors. A connection
/// through a tunnel takes one, one in plaintext two.
fn budget(limit: u64, workers: usize, asked: usize) -> usize {
    let all = usize::try_from(limit.saturating_mul(3) / 5).unwrap_or(usize::MAX);
    asked.min((all / workers.max(1)).max(LEAST))
}

/// Raises the soft limit to the hard one, and gives it.
fn raise() -> Result<u64, Errno> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    Ok(hard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_workload_may_use_up_the_descriptors() {
        assert_eq!(
            budget(1 << 20, 4, 32_768),
            32_768,
            "there is room for what is asked"
        );
        assert_eq!(budget(20_000, 4, 32_768), 3_000);
        assert_eq!(budget(20_000, 1, 100), 100, "less is asked");
        assert_eq!(budget(200, 8, 32_768), LEAST);
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // A little lower only: other tests of this process open descriptors meanwhile.
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        assert_eq!(raise(), Ok(hard));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        assert_eq!(raise(), Ok(hard), "a second time changes nothing");
    }
}
