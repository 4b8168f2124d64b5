//! The limit of open descriptors: a connection costs an agent at least one, and most service managers start programs with 1,024 and let
//! them have more. Never lowers it.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::{debug, warn};

/// With fewer than these an agent is warned about: some ten thousand connections.
const FEW: u64 = 32_768;

/// Raises this process's limit as far as it may be raised, and says so where that is not far.
pub(super) fn prepare() {
    match raise() {
        Ok(limit) if limit < FEW => warn!(
            limit,
            "few descriptors: each connection takes one, a tunnel and a pod a few more; raise the hard limit (LimitNOFILE= in a unit)"
        ),
        Ok(limit) => debug!(limit, "descriptors"),
        Err(error) => warn!(%error, "the limit of descriptors cannot be raised"),
    }
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
    fn the_soft_limit_becomes_the_hard_one() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        // A little lower only: other tests of this process open descriptors meanwhile.
        setrlimit(Resource::RLIMIT_NOFILE, hard - 1, hard).unwrap();
        assert_eq!(raise(), Ok(hard));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE).unwrap(), (hard, hard));
        assert_eq!(raise(), Ok(hard), "a second time changes nothing");
    }
}
