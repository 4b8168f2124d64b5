//! Sockets inside pods' network namespaces.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::netns::Netns;

/// The address family of a socket to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

/// Hands out sockets that live in one pod's network namespace. Its implementation decides how they come about (today: batches made
/// by entering the namespace; later a privileged broker), so that who uses them needs no privilege.
pub trait SocketSource: Send + Sync {
    /// A new TCP socket: non-blocking, close-on-exec, SO_REUSEADDR and TCP_NODELAY set, neither bound nor connected.
    ///
    /// # Errors
    /// When the namespace is gone or descriptors have run out.
    fn stream(&self, family: Family) -> io::Result<Socket>;
}

/// Sockets made at once at most.
const MAX_BATCH: usize = 32;
/// A pool that runs dry sooner than this gets a bigger batch, one that lasted longer starts small again.
const BUSY: Duration = Duration::from_secs(1);

/// Sockets made by entering the namespace: a batch at a time, the bigger the more are asked for.
#[derive(Debug)]
pub(super) struct NetnsSockets {
    netns: Arc<Netns>,
    v4: Mutex<Pool>,
    v6: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    ready: Vec<Socket>,
    batch: usize,
    filled: Option<Instant>,
}

impl NetnsSockets {
    pub(super) fn new(netns: Arc<Netns>) -> Self {
        Self {
            netns,
            v4: Mutex::default(),
            v6: Mutex::default(),
        }
    }
}

impl SocketSource for NetnsSockets {
    fn stream(&self, family: Family) -> io::Result<Socket> {
        let pool = match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        };
        let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(socket) = pool.ready.pop() {
            return Ok(socket);
        }
        let now = Instant::now();
        pool.batch = next_batch(pool.batch, pool.filled.map(|then| now.duration_since(then)));
        pool.filled = Some(now);
        let mut made = self.netns.sockets(family, pool.batch)?;
        let socket = made.pop().ok_or(io::ErrorKind::NotFound)?;
        pool.ready = made;
        Ok(socket)
    }
}

/// Size of the next batch, after one of `last` sockets (0: none yet) that was used up `lasted` after it was made.
fn next_batch(last: usize, lasted: Option<Duration>) -> usize {
    match lasted {
        Some(lasted) if lasted < BUSY => (last * 2).clamp(1, MAX_BATCH),
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_grow_with_demand_and_shrink_without() {
        let mut batch = next_batch(0, None);
        assert_eq!(batch, 1);
        for expected in [2, 4, 8, 16, 32, 32] {
            batch = next_batch(batch, Some(Duration::from_millis(5)));
            assert_eq!(batch, expected);
        }
        assert_eq!(next_batch(batch, Some(Duration::from_secs(3))), 1);
    }
}
