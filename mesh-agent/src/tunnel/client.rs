//! One HBONE connection that we dialled: the handshakes, its driver, its streams.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::{Request, StatusCode};
use mesh_core::model::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite, BufReader};

use super::copy::CopyError;
use super::guard::Guard;
use super::meter::{Room, StreamGuard};
use super::{
    CONNECTION_WINDOW, DATA_FRAME_BUDGET, DIAL_TIMEOUT, Ended, Gone, IDLE_TIMEOUT, MAX_FRAME,
    MAX_HEADER_LIST, MAX_STREAMS, Meter, PodContext, PoolKey, Pressure, READ_BUFFER, REMEMBERED_RESETS,
    RESET_MEMORY, SEND_BUFFER, STREAM_ERRORS, STREAM_WINDOW, TunnelError, dial, from_source, keepalive,
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
        let tcp = dial(&context.pod, address, |socket| match key.source_address {
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
        tokio::time::timeout(DIAL_TIMEOUT, Self::over(io, peer))
            .await
            .map_err(|_| TunnelError::timeout(address, "HTTP/2", DIAL_TIMEOUT))?
            .map_err(|e| TunnelError::Http2 {
                address,
                why: e.to_string(),
            })
    }

    /// Speaks HTTP/2 over `io`, whose other end has proven to be `peer`.
    ///
    /// # Errors
    /// When the preface cannot be written.
    pub(super) async fn over<Io>(io: Io, peer: SpiffeId) -> Result<Established, h2::Error>
    where
        Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let pressure = Arc::new(Pressure::default());
        let io = Meter::new(Guard::of_server(io), Arc::clone(&pressure));
        let (requests, connection) = h2::client::Builder::new()
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
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
        let driver = Box::pin(drive(connection, Arc::clone(&pressure)));
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
        let opened = match poll_fn(|cx| requests.poll_ready(cx)).await {
            Ok(()) => requests.send_request(request, false),
            Err(error) => Err(error),
        };
        match opened {
            Ok((response, send)) => Ok(OpenStream {
                response,
                send,
                pressure: Arc::clone(&self.connection.pressure),
                guard: self.guard,
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
    response: ResponseFuture,
    /// Takes data at once.
    pub send: SendStream<Bytes>,
    /// Load of the connection.
    pub pressure: Arc<Pressure>,
    /// Keeps the stream's place.
    pub guard: StreamGuard,
}

impl OpenStream {
    /// Splits off the receiving half, which comes with status 200.
    pub fn split(
        self,
    ) -> (
        SendStream<Bytes>,
        impl Future<Output = Result<RecvStream, CopyError>>,
        Arc<Pressure>,
        StreamGuard,
    ) {
        let response = self.response;
        let opened = async {
            let response = response.await?;
            match response.status() {
                StatusCode::OK => Ok(response.into_body()),
                status => Err(CopyError::refused(status.as_u16())),
            }
        };
        (self.send, opened, self.pressure, self.guard)
    }
}

/// Drives a connection until it ends, is silent, or has been idle for [`IDLE_TIMEOUT`].
async fn drive<Io>(
    mut connection: h2::client::Connection<Io, Bytes>,
    pressure: Arc<Pressure>,
) -> Result<(), Ended>
where
    Io: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let ended = match connection.ping_pong() {
        Some(pings) => {
            let mut used = Instant::now();
            let tick = || {
                if pressure.streams() > 0 {
                    used = Instant::now();
                }
                used.elapsed() < IDLE_TIMEOUT && !pressure.is_closing()
            };
            tokio::select! {
                ended = &mut connection => Some(ended.map_err(Ended::from)),
                gone = keepalive(pings, tick) => match gone {
                    Gone::Silent => Some(Err(Ended::Silent)),
                    Gone::Unwanted => None,
                },
            }
        }
        None => None,
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
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
}
