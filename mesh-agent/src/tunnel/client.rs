//! One HBONE connection that we dialled: the handshakes, its driver, its streams.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::SendStream;
use h2::client::{ResponseFuture, SendRequest};
use http::Request;
use mesh_core::model::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};

use super::budget::Windows;
use super::copy::CopyError;
use super::guard::Guard;
use super::meter::{Room, StreamGuard};
use super::{
    Budget, DATA_FRAME_BUDGET, DIAL_TIMEOUT, Ended, Gone, IDLE_TIMEOUT, MAX_FRAME, MAX_HEADER_LIST,
    MAX_STREAMS, Meter, PodContext, PoolKey, Pressure, READ_BUFFER, REMEMBERED_RESETS, RESET_MEMORY,
    SEND_BUFFER, STREAM_ERRORS, TunnelError, dial, from_source, keepalive, used_within,
};
use crate::identity;
use crate::telemetry::connections::HandshakeRole;

/// A live HBONE connection, as its pool holds it. It ends once all clones and all streams are gone.
#[derive(Debug)]
pub struct Connection {
    requests: SendRequest<Bytes>,
    pressure: Arc<Pressure>,
    peer: SpiffeId,
}

/// An HTTP/2 connection together with what drives it; the driver must be polled for anything to happen.
type Established = (Connection, Driver);

/// A boxed driver: one per connection, so that its type does not depend on the I/O.
/// Gives what it ended by.
pub(super) type Driver = std::pin::Pin<Box<dyn Future<Output = Result<(), Ended>> + Send>>;

impl Connection {
    /// Dials `key.gateway` from the pod, proves the pod's identity, checks the peer's.
    ///
    /// # Errors
    /// See [`TunnelError`].
    pub(super) async fn dial(context: &PodContext, key: &PoolKey) -> Result<Established, TunnelError> {
        let address = key.gateway;
        let tls = context
            .path
            .identities
            .tls(&key.source_identity)
            .ok_or_else(|| TunnelError::NoCertificate(key.source_identity.clone()))?;
        let tcp = dial(context, address, |socket| match key.source_address {
            Some(source) => from_source(socket, source),
            None => Ok(()),
        })
        .await?;
        let io = BufReader::with_capacity(READ_BUFFER, tcp);
        // Gives up by itself when the peer is slow.
        let outcome = identity::connect(&tls, &key.expected, address, io).await;
        let counted = outcome.as_ref().map(|_| ()).map_err(|e| e.reason);
        context.path.log.handshake(HandshakeRole::Client, counted);
        let (io, peer) = outcome.map_err(|e| TunnelError::Peer {
            reason: e.reason,
            message: e.message,
        })?;
        tokio::time::timeout(DIAL_TIMEOUT, Self::over(io, peer, &context.budget))
            .await
            .map_err(|_| TunnelError::timeout(address, "HTTP/2", DIAL_TIMEOUT))?
            .map_err(|e| TunnelError::Http2 {
                address,
                why: e.to_string(),
            })
    }

    /// Speaks HTTP/2 over `io`, whose other end has proven to be `peer`, with windows as `budget` has them.
    ///
    /// # Errors
    /// When the preface cannot be written.
    pub(super) async fn over<Io>(io: Io, peer: SpiffeId, budget: &Budget) -> Result<Established, h2::Error>
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let pressure = Arc::new(Pressure::default());
        let io = Meter::new(Guard::of_server(io), Arc::clone(&pressure));
        let windows = budget.windows();
        let (requests, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(windows.usual())
            .initial_connection_window_size(windows.usual().saturating_mul(MAX_STREAMS))
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .data_frame_budget(DATA_FRAME_BUDGET)
            .max_local_error_reset_streams(Some(STREAM_ERRORS))
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .reset_stream_duration(RESET_MEMORY)
            .initial_max_send_streams(1)
            .max_concurrent_streams(0)
            .handshake(io)
            .await?;
        let driver = Box::pin(drive(connection, Arc::clone(&pressure), windows));
        Ok((
            Self {
                requests,
                pressure,
                peer,
            },
            driver,
        ))
    }

    /// What it can take.
    pub(super) fn room(&self) -> Room {
        self.pressure
            .room(self.requests.current_max_send_streams().min(MAX_STREAMS as usize))
    }

    /// Its load.
    pub fn pressure(&self) -> &Arc<Pressure> {
        &self.pressure
    }

    /// The identity that the peer proved.
    pub fn peer(&self) -> &SpiffeId {
        &self.peer
    }

    /// Takes a place for a stream; `None` when the connection has begun to close.
    pub(super) fn reserve(self: &Arc<Self>) -> Option<Slot> {
        let guard = self.pressure.enter();
        (!self.pressure.is_closing()).then(|| Slot {
            connection: Arc::clone(self),
            guard,
        })
    }
}

/// A place for a stream on a connection.
#[derive(Debug)]
pub struct Slot {
    connection: Arc<Connection>,
    guard: StreamGuard,
}

impl Slot {
    /// Sends `request`; does not wait for the answer. On failure nothing was sent, the connection takes no more streams, and another one
    /// may be tried.
    ///
    /// # Errors
    /// When the connection has closed or is about to.
    pub async fn open(self, request: Request<()>) -> Result<OpenStream, h2::Error> {
        let mut requests = self.connection.requests.clone();
        let ready = poll_fn(|cx| requests.poll_ready(cx)).await;
        let written_before = self.connection.pressure.written();
        let opened = match ready {
            Ok(()) => requests.send_request(request, false),
            Err(error) => Err(error),
        };
        match opened {
            Ok((response, send)) => Ok(OpenStream {
                response,
                send,
                pressure: Arc::clone(&self.connection.pressure),
                guard: self.guard,
                written_before,
            }),
            Err(error) => {
                self.connection.pressure.close();
                Err(error)
            }
        }
    }
}

/// A CONNECT under way.
#[derive(Debug)]
pub struct OpenStream {
    /// Comes with the receiving half, which is worth something with status 200.
    pub response: ResponseFuture,
    /// Takes data at once.
    pub send: SendStream<Bytes>,
    /// Load of the connection.
    pub pressure: Arc<Pressure>,
    /// Keeps the stream's place.
    pub guard: StreamGuard,
    /// What had been written to the connection before the request.
    pub(super) written_before: u64,
}

/// Why a stream that failed is known not to have been processed: only then may it be sent again, with its data (RFC 9113, 8.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unprocessed {
    /// The peer's GOAWAY names a last stream below it.
    GoAway,
    /// The peer reset it with REFUSED_STREAM.
    Refused,
    /// The connection ended before a byte of it was written.
    Unwritten,
}

impl Unprocessed {
    /// A short fixed word: the metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Unprocessed::GoAway => "goaway",
            Unprocessed::Refused => "refused_stream",
            Unprocessed::Unwritten => "not_sent",
        }
    }
}

impl OpenStream {
    /// Whether the peer, although the stream failed with `error` before it was answered, certainly has not processed it. `None`: it may
    /// have.
    pub fn unprocessed(&self, error: &CopyError) -> Option<Unprocessed> {
        match error {
            CopyError::AppReset { .. }
            | CopyError::Refused { .. }
            | CopyError::Unanswered(_)
            | CopyError::Idle(_) => None,
            _ if self.pressure.disowns(self.send.stream_id().into()) => Some(Unprocessed::GoAway),
            CopyError::StreamReset(h2::Reason::REFUSED_STREAM) => Some(Unprocessed::Refused),
            CopyError::TunnelBroken(_) if self.pressure.written() == self.written_before => {
                Some(Unprocessed::Unwritten)
            }
            CopyError::StreamReset(_) | CopyError::TunnelBroken(_) => None,
        }
    }
}

/// Drives a connection until it ends, is silent, or has been idle for [`IDLE_TIMEOUT`].
async fn drive<Io>(
    mut connection: h2::client::Connection<Io, Bytes>,
    pressure: Arc<Pressure>,
    mut windows: Windows,
) -> Result<(), Ended>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let Some(pings) = connection.ping_pong() else {
        pressure.close();
        return Ok(());
    };
    let mut alive = std::pin::pin!(keepalive(pings, used_within(&pressure, IDLE_TIMEOUT)));
    let ended = loop {
        tokio::select! {
            ended = &mut connection => break Some(ended.map_err(Ended::from)),
            gone = &mut alive => break match gone {
                Gone::Silent => Some(Err(Ended::Silent)),
                Gone::Unwanted => None,
            },
            window = windows.due() => {
                windows.changed(window, connection.set_initial_window_size(window).is_ok());
            }
        }
    };
    // From here on the pool hands out no place; one that was handed out before is honoured.
    pressure.close();
    match ended {
        Some(ended) => ended,
        None => tokio::select! {
            ended = &mut connection => ended.map_err(Ended::from),
            () = unused(&pressure) => Ok(()),
        },
    }
}

/// Resolves once there is no stream.
async fn unused(pressure: &Pressure) {
    while pressure.streams() > 0 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
