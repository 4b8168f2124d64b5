//! One HBONE connection that we accepted: HTTP/2 as a server.

use std::future::poll_fn;
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::guard::Guard;
use super::{
    CONNECTION_WINDOW, DATA_FRAME_BUDGET, Ended, MAX_FRAME, MAX_HEADER_LIST, MAX_STREAMS, REMEMBERED_RESETS,
    RESET_MEMORY, SEND_BUFFER, STREAM_ERRORS, STREAM_WINDOW, keepalive,
};

/// How long a peer may take for its HTTP/2 preface.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams that a peer opened and reset before we looked at them; with more the connection is cut (CVE-2023-44487). Several times what a
/// peer may have open, so that clients which give up all at once do not cost it its other streams.
const PENDING_RESETS: usize = 4 * MAX_STREAMS as usize;

/// Serves HTTP/2 over `io`: calls `serve` for each stream, and returns when the connection has ended. Once `drain` is cancelled the peer is
/// told to go away; live streams go on.
///
/// # Errors
/// When the peer breaks the protocol, exceeds a limit, goes silent, or just goes.
pub async fn accept_http2<Io>(
    io: Io,
    drain: CancellationToken,
    mut serve: impl FnMut(Request<RecvStream>, SendResponse<Bytes>),
) -> Result<(), Ended>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(MAX_FRAME)
        .max_header_list_size(MAX_HEADER_LIST)
        .max_concurrent_streams(MAX_STREAMS)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(DATA_FRAME_BUDGET)
        .max_pending_accept_reset_streams(PENDING_RESETS)
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
    let mut alive = std::pin::pin!(keepalive(pings, || true));
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
                    serve(request, respond);
                }
                None => return Ok(()),
            },
            _ = &mut alive => return Err(Ended::Silent),
        }
    }
}
