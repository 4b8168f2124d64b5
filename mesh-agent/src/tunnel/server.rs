//! One HBONE connection that we accepted: HTTP/2 as a server.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use mesh_common::mutation::{self, Mechanism};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::guard::Guard;
use super::{
    Budget, DATA_FRAME_BUDGET, Ended, Gone, MAX_FRAME, MAX_HEADER_LIST, MAX_STREAMS, PING_TIMEOUT, Pressure,
    REMEMBERED_RESETS, RESET_MEMORY, SEND_BUFFER, STREAM_ERRORS, StreamGuard, keepalive, used_within,
};

/// How long a peer may take for its HTTP/2 preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that a peer opened and reset before we looked at them; with more the connection is cut (CVE-2023-44487). Several times what a
/// peer may have open, so that clients which give up all at once do not cost it its other streams.
const PENDING_RESETS: usize = 4 * MAX_STREAMS as usize;

fn pending_resets() -> usize {
    match mutation::is_off(Mechanism::RapidReset) {
        false => PENDING_RESETS,
        true => usize::MAX,
    }
}

fn header_list() -> u32 {
    match mutation::is_off(Mechanism::HeaderLimit) {
        false => MAX_HEADER_LIST,
        true => 16 << 20,
    }
}

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
) -> Result<(), Ended>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let mut windows = budget.windows();
    let handshake = h2::server::Builder::new()
        .initial_window_size(windows.usual())
        .initial_connection_window_size(windows.usual().saturating_mul(MAX_STREAMS))
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(header_list())
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_pending_accept_reset_streams(pending_resets())
        .max_local_error_reset_streams(Some(STREAM_ERRORS))
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .reset_stream_duration(RESET_MEMORY)
        .handshake(Guard::of_client(io));
    let Ok(connection) = tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await else {
        return Err(Ended::Slow);
    };
    let mut connection = connection?;
    let Some(pings) = connection.ping_pong() else {
        return Err(h2::Error::from(h2::Reason::INTERNAL_ERROR).into());
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
                Gone::Silent => return Err(Ended::Silent),
                Gone::Unwanted => {
                    connection.graceful_shutdown();
                    leaving = Some(Instant::now() + PING_TIMEOUT);
                }
            },
            () = sleep_until(leaving.unwrap_or_else(Instant::now)), if leaving.is_some() => {
                if pressure.streams() == 0 {
                    return Ok(());
                }
                leaving = Some(Instant::now() + PING_TIMEOUT);
            }
            window = windows.due() => {
                windows.changed(window, connection.set_initial_window_size(window).is_ok());
            }
        }
    }
}
