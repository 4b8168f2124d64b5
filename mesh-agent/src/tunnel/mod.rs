//! What carries bytes: dialling from a pod's network namespace, HBONE connections (mutual TLS, HTTP/2 CONNECT) and their pools, and
//! the loops that copy between sockets and streams. Never decides whether or where a connection may go: its callers have asked `plan`.

mod budget;
mod carried;
mod client;
pub mod copy;
mod dial;
mod ended;
mod error;
mod guard;
pub mod headers;
mod legs;
mod meter;
mod path;
mod pool;
mod server;
mod standing;
mod stream;
mod turns;

pub use budget::{Account, Budget, Hold, OverBudget, Place, PlaceGuard, Usage};
pub use carried::Carried;
pub use client::{Connection, OpenStream, Slot, Unprocessed};
pub use dial::{delivery_source, dial, from_source};
pub use ended::Ended;
pub use error::TunnelError;
pub use legs::Legs;
pub use meter::{Meter, Pressure, StreamGuard};
pub use path::{Carrying, DataPath, Limits, PodContext, Tasks, in_two_parts};
pub use pool::{Pool, PoolKey};
pub use server::accept_http2;
pub use standing::{Facts, Judged, Standing, Stands};
pub use stream::AppStream;
pub use turns::{Turn, Turns};

use std::time::{Duration, Instant};

/// Most streams of one connection, in either role. Times the window of a stream it is the connection's window, so that readers that
/// stall, however many, never use up the connection's window.
pub const MAX_STREAMS: u32 = 64;
/// Window of a stream, bytes, while too much is held for its pod; and what each connection may hold even then.
pub const MIN_WINDOW: u32 = 64 << 10;
/// Largest DATA frame that we accept, bytes.
pub const MAX_FRAME: u32 = 1 << 20;
/// Largest header list that we accept, bytes (RFC 9113, 6.5.2).
pub const MAX_HEADER_LIST: u32 = 16 << 10;
/// Streams of a peer that we have reset, remembered for [`RESET_MEMORY`]: what of theirs was still on its way is dropped. For a stream
/// that is forgotten each such frame counts towards [`STREAM_ERRORS`], and h2 remembers 50 for a second by default: fewer than the
/// applications of one pod may reset at a time.
const REMEMBERED_RESETS: usize = 1024;
/// Longer than a round trip through full queues.
const RESET_MEMORY: Duration = Duration::from_secs(5);
/// Streams that h2 may have to reset because of what the peer sent on them, over the life of a connection; with more it is cut. Bounds
/// the resets that wait for a peer that does not read (h2's default, which may change).
const STREAM_ERRORS: usize = 1024;
/// What small DATA frames may cost a connection before h2 cuts it. Its default ends every sibling of a reader that stalls.
const DATA_FRAME_BUDGET: usize = 64 << 20;
/// What h2 buffers of one stream before it is written, bytes.
const SEND_BUFFER: usize = 512 << 10;
/// Buffer below TLS, bytes: fewer and larger reads.
pub const READ_BUFFER: usize = 64 << 10;
/// How often a connection is asked whether it still lives.
const PING_EVERY: Duration = Duration::from_secs(10);
/// How long the answer may take.
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// How long each step of a dial may take: TCP, and HTTP/2 behind TLS.
pub const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a pooled connection stays without a stream.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Asks the peer every [`PING_EVERY`] whether it still lives. Returns when it does not answer within [`PING_TIMEOUT`], or when
/// `tick` (called before each ping) says that the connection is no longer wanted.
async fn keepalive(mut pings: h2::PingPong, mut tick: impl FnMut() -> bool) -> Gone {
    loop {
        tokio::time::sleep(PING_EVERY).await;
        if !tick() {
            return Gone::Unwanted;
        }
        match tokio::time::timeout(PING_TIMEOUT, pings.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return Gone::Silent,
        }
    }
}

/// For [`keepalive`]: whether the connection is still of use.
fn used_within(pressure: &Pressure, limit: Duration) -> impl FnMut() -> bool {
    let mut last = LastUse::new(limit, Instant::now());
    move || last.is_wanted(pressure.streams(), pressure.is_closing(), Instant::now())
}

/// When a connection last had a stream.
#[derive(Debug)]
struct LastUse {
    limit: Duration,
    at: Instant,
}

impl LastUse {
    fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, at: now }
    }

    /// Whether the connection has streams, or has had one within the limit and may have another.
    fn is_wanted(&mut self, streams: usize, closing: bool, now: Instant) -> bool {
        if streams > 0 {
            self.at = now;
            return true;
        }
        !closing && now.saturating_duration_since(self.at) < self.limit
    }
}

/// Why [`keepalive`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gone {
    /// The peer does not answer.
    Silent,
    /// Nobody wants the connection.
    Unwanted,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tunnel_under_an_idle_connection_is_kept_for_thirty_days_and_without_any_for_its_limit() {
        let start = Instant::now();
        for limit in [IDLE_TIMEOUT, Limits::default().unused_tunnel] {
            let mut last = LastUse::new(limit, start);
            let mut now = start;
            while now < start + Duration::from_secs(30 * 24 * 3600) {
                now += PING_EVERY;
                // Also one that takes no more streams.
                assert!(last.is_wanted(1, false, now) && last.is_wanted(1, true, now));
            }
            assert!(last.is_wanted(0, false, now + limit / 2));
            assert!(!last.is_wanted(0, true, now + limit / 2));
            assert!(!last.is_wanted(0, false, now + limit));
        }
    }
}
