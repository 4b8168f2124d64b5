//! One HBONE connection that we accepted: HTTP/2 as a server.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::{
    Budget, DATA_FRAME_BUDGET, Gone, MAX_FRAME, MAX_HEADER_LIST, MAX_STREAMS, PING_TIMEOUT, Pressure,
    SEND_BUFFER, StreamGuard, keepalive, used_within,
};

/// How long a peer may take for its HTTP/2 preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that a peer opened and reset before we looked at them; with more the connection is cut (CVE-2023-44487).
const PENDING_RESETS: usize = 32;

/// Serves HTTP/2 over `io`, with windows as `budget` has them: calls `serve` for each stream, with the guard that says how long the stream
/// lives, and returns when the connection has ended. Once `drain` is cancelled, or when there has been no stream for
/// as long as the limits of the pod say, the peer is told to go away; live streams go on.
///
/// # Errors
/// When the peer breaks the protocol, exceeds a limit, goes silent, or just goes.
pub async fn accept_http2<Io>(
    io: Io,
    drain: CancellationToken,
    budget: &Budget,
    pressure: &Arc<Pressure>,
    mut serve: impl FnMut(Request<RecvStream>, SendResponse<Bytes>, StreamGuard),
) -> Result<(), h2::Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut windows = budget.windows();
    let handshake = h2::server::Builder::new()
        .initial_window_size(windows.usual())
        .initial_connection_window_size(windows.usual().saturating_mul(MAX_STREAMS))
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .handshake(io);
    let Ok(connection) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await else {
        return Err(h2::Reason::SETTINGS_TIMEOUT.into());
    };
    let mut connection = connection?;
    let Some(pings) = connection.ping_pong() else {
        return Err(h2::Reason::INTERNAL_ERROR.into());
    };
    let mut alive = std::pin::pin!(keepalive(
        pings,
        used_within(pressure, budget.limits().unused_tunnel)
    ));
    // Since when the peer has been told to go for want of streams.
    let mut leaving = None;
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            () = drain.cancelled(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            accepted = poll_fn(|cx| connection.poll_accept(cx)) => match accepted {
                Some(stream) => {
                    let (request, respond) = stream?;
                    serve(request, respond, pressure.enter());
                }
                None => return Ok(()),
            },
            gone = &mut alive, if leaving.is_none() => match gone {
                Gone::Silent => return Err(h2::Reason::NO_ERROR.into()),
                Gone::Unwanted => {
                    connection.graceful_shutdown();
                    leaving = Some(Instant::now() + PING_TIMEOUT);
                }
            },
            () = sleep_until(leaving.unwrap_or_else(Instant::now)), if leaving.is_some() => {
                if pressure.streams() == 0 {
                    return Err(h2::Reason::NO_ERROR.into());
                }
                leaving = Some(Instant::now() + PING_TIMEOUT);
            }
            window = windows.due() => {
                windows.changed(window, connection.set_initial_window_size(window).is_ok());
            }
        }
    }
}
