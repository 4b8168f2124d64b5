//! Copies between an application's socket and a tunnel's stream, or between two sockets: every end, reset and stall of one side becomes
//! the same on the other, and no more is held than the windows allow.
//!
//! Both directions of a connection run in one future. Idle ones hold no buffer, and what is large and rarely waited for is on the heap only
//! for as long as it is waited for: an idle connection is to take little. A direction yields after [`YIELD_AFTER`] bytes.

mod both;
mod downlink;
mod early;
mod idle;
mod uplink;

use std::future::poll_fn;
use std::io;
use std::net::Shutdown;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use http::StatusCode;
use mesh_common::mutation::{self, Mechanism};
use socket2::SockRef;
use thiserror::Error;
use tokio::io::{AsyncRead, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;

pub use early::{EARLY_LIMIT, Early};

use self::both::both;
use super::{Account, AppStream, OpenStream, Pressure, headers};
use crate::telemetry::connections::{ByteCounts, ResponseFlag};

/// Bytes after which a direction lets others run.
const YIELD_AFTER: usize = 256 << 10;

/// Why a connection did not end in order.
#[derive(Debug, Error)]
pub enum CopyError {
    /// The application's side reset its connection.
    #[error("the {side} reset the connection: {error}")]
    AppReset {
        /// Which application.
        side: Side,
        /// The kernel's words.
        error: io::Error,
    },
    /// The other agent reset the stream.
    #[error("the other side of the tunnel reset the stream: {0}")]
    StreamReset(h2::Reason),
    /// The tunnel's connection failed.
    #[error("the tunnel broke: {0} (did the other agent, its node or its network go away?)")]
    TunnelBroken(String),
    /// Nothing was carried for as long as the setting allows.
    #[error("no byte in either direction for {0:?}, the idle timeout that is set")]
    Idle(Duration),
    /// The other agent did not answer the CONNECT.
    #[error("the destination's agent has not answered within {0:?}: is it overloaded? See its log")]
    Unanswered(Duration),
    /// The other agent did not open the stream.
    #[error("the destination's agent refused with status {status}: {hint}{}", named(.id.as_ref()))]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The refusal's name there.
        id: Option<String>,
        /// What to look at.
        hint: &'static str,
    },
}

impl CopyError {
    /// What Istio's `response_flags` and ours call it.
    pub fn flag(&self) -> ResponseFlag {
        match self {
            CopyError::Refused { status: 503, .. } | CopyError::Unanswered(_) => ResponseFlag::Connect,
            CopyError::Refused { .. } => ResponseFlag::Deny,
            CopyError::Idle(_) => ResponseFlag::IdleTimeout,
            _ => ResponseFlag::Reset,
        }
    }

    /// A short fixed word: the metric's label.
    pub fn reason(&self) -> &'static str {
        match self {
            CopyError::AppReset {
                side: Side::Client, ..
            } => "client_reset",
            CopyError::AppReset {
                side: Side::Server, ..
            } => "server_reset",
            CopyError::StreamReset(_) => "stream_reset",
            CopyError::TunnelBroken(_) => "tunnel_broken",
            CopyError::Idle(_) => "idle_timeout",
            CopyError::Unanswered(_) => "no_answer",
            CopyError::Refused { status: 400, .. } => "refused_400",
            CopyError::Refused { status: 401, .. } => "refused_401",
            CopyError::Refused { status: 503, .. } => "refused_503",
            CopyError::Refused { .. } => "refused",
        }
    }

    /// From a CONNECT's status other than 200, and the id by which the other agent knows the refusal.
    pub fn refused(status: u16, id: Option<String>) -> Self {
        let hint = match status {
            400 => "the address is not that pod's (any more), or the request is none that it understands",
            401 => "a policy of the destination denies it (see `meshctl refusals` or the log there)",
            503 => "the application does not listen there, or the pod is gone",
            _ => "see the log of the destination's agent",
        };
        CopyError::Refused { status, id, hint }
    }
}

fn named(id: Option<&String>) -> String {
    id.map_or_else(String::new, |id| format!("; the refusal is {id} there"))
}

impl From<h2::Error> for CopyError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => CopyError::StreamReset(reason),
            _ => CopyError::TunnelBroken(error.to_string()),
        }
    }
}

/// Which application a socket leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that opened the connection.
    Client,
    /// The one that was addressed.
    Server,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Side::Client => "client",
            Side::Server => "server",
        })
    }
}

impl Side {
    /// Counts bytes that came from this application.
    fn count_from(self, counts: &ByteCounts, bytes: usize) {
        match self {
            Side::Client => counts.add_received(bytes as u64),
            Side::Server => counts.add_sent(bytes as u64),
        }
    }

    /// The other application.
    fn other(self) -> Self {
        match self {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        }
    }
}

/// One application's socket, and which application that is.
#[derive(Clone, Copy, Debug)]
struct App<'a> {
    tcp: &'a TcpStream,
    side: Side,
}

impl<'a> App<'a> {
    fn client(tcp: &'a TcpStream) -> Self {
        Self {
            tcp,
            side: Side::Client,
        }
    }

    fn server(tcp: &'a TcpStream) -> Self {
        Self {
            tcp,
            side: Side::Server,
        }
    }

    fn failed(&self, error: io::Error) -> CopyError {
        CopyError::AppReset {
            side: self.side,
            error,
        }
    }

    /// Resolves when the application resets its connection, whatever else is going on, also when nobody reads or writes.
    async fn aborted(&self) -> CopyError {
        let error = match self.tcp.ready(Interest::ERROR).await {
            Ok(_) => match self.tcp.take_error() {
                Ok(Some(error)) | Err(error) => error,
                Ok(None) => io::ErrorKind::ConnectionReset.into(),
            },
            Err(error) => error,
        };
        self.failed(error)
    }

    /// Tells the application that no more comes.
    fn end(&self) -> Result<(), CopyError> {
        if mutation::is_off(Mechanism::HalfClose) {
            return Ok(());
        }
        SockRef::from(self.tcp)
            .shutdown(Shutdown::Write)
            .map_err(|e| self.failed(e))
    }
}

/// Resolves when the application resets its connection, whatever it is that we wait for meanwhile.
pub async fn aborted(app: &AppStream, side: Side) -> CopyError {
    App { tcp: app.tcp(), side }.aborted().await
}

/// How long the answer to a CONNECT may take: longer than the other agent gives its own connection to the application.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Waits for the other agent's answer to `stream`, and meanwhile carries what the client has sent. That stays in `early` until the 200:
/// a stream that failed before it may be followed by another, which gets everything from the start.
///
/// # Errors
/// See [`CopyError`]; the stream is reset then, the application is left as it is.
pub async fn answered(
    app: &mut AppStream,
    stream: &mut OpenStream,
    early: &mut Early,
    account: &Arc<Account>,
) -> Result<RecvStream, CopyError> {
    early.rewind();
    let outcome = {
        let (mut from, to) = app.split();
        let end = App::client(to.as_ref());
        let OpenStream {
            response,
            send,
            pressure,
            ..
        } = stream;
        tokio::select! {
            biased;
            response = response => match response {
                Ok(response) if response.status() == StatusCode::OK => Ok(response.into_body()),
                Ok(response) => {
                    let id = headers::refusal(response.headers());
                    Err(CopyError::refused(response.status().as_u16(), id))
                }
                Err(error) => Err(error.into()),
            },
            error = end.aborted() => Err(error),
            error = idle::idle(account) => Err(error),
            () = tokio::time::sleep(ANSWER_TIMEOUT) => Err(CopyError::Unanswered(ANSWER_TIMEOUT)),
            fed = early.feed(end, &mut from, send, pressure, account) => match fed {
                Ok(never) => match never {},
                Err(error) => Err(error),
            },
        }
    };
    if outcome.is_err() {
        stream.send.send_reset(h2::Reason::CANCEL);
    }
    outcome
}

/// An application's connection and its stream, set up: all that carrying it takes. Dropping it resets `app`, unless it was carried to an
/// orderly end.
#[derive(Debug)]
pub struct Carriage {
    /// The application's socket.
    pub app: AppStream,
    /// Which application that is.
    pub side: Side,
    /// What it has sent before, as far as the stream has not got it ([`Early::left`]).
    pub early: Option<Box<Early>>,
    /// Into the tunnel.
    pub send: SendStream<Bytes>,
    /// Out of the tunnel.
    pub recv: RecvStream,
    /// Load of the tunnel.
    pub pressure: Arc<Pressure>,
    /// What the connection is accounted to.
    pub account: Arc<Account>,
}

impl Carriage {
    /// Carries `app` over its stream until both directions have ended.
    ///
    /// On success dropping `app` closes it in order; on failure it will be reset, as the stream is.
    ///
    /// # Errors
    /// See [`CopyError`].
    pub async fn carry(&mut self) -> Result<(), CopyError> {
        let outcome = {
            let (mut from, to) = self.app.split();
            let end = App {
                tcp: to.as_ref(),
                side: self.side,
            };
            let account = &self.account;
            // Pinned where they are made: whatever they are given to would have room for them twice.
            let up = pin!(uplink::run(
                end,
                &mut from,
                &mut self.early,
                &mut self.send,
                &self.pressure,
                account,
            ));
            let down = pin!(downlink::run(end, &mut self.recv, account));
            let mut aborted = pin!(end.aborted());
            let mut idle = idle::idle(account);
            both(up, down, |cx| match aborted.as_mut().poll(cx) {
                Poll::Pending => Pin::new(&mut idle).poll(cx),
                error => error,
            })
            .await
        };
        match outcome {
            Ok(()) => {
                self.app.finish();
                Ok(())
            }
            Err(error) if mutation::is_off(Mechanism::ResetPropagation) => {
                let _ = self.send.send_data(Bytes::new(), true);
                self.app.finish();
                Err(error)
            }
            Err(error) => {
                self.send.send_reset(h2::Reason::CANCEL);
                Err(error)
            }
        }
    }
}

/// Carries bytes between two sockets until both directions have ended.
///
/// On success dropping both closes them in order; on failure both will be reset.
///
/// # Errors
/// [`CopyError::AppReset`], of either side.
pub async fn splice(
    client: &mut AppStream,
    server: &mut AppStream,
    account: &Arc<Account>,
) -> Result<(), CopyError> {
    {
        let (mut from_client, to_client) = client.split();
        let (mut from_server, to_server) = server.split();
        let (near, far) = (App::client(to_client.as_ref()), App::server(to_server.as_ref()));
        let up = pin!(pump(near, &mut from_client, far, account));
        let down = pin!(pump(far, &mut from_server, near, account));
        let (mut near_aborted, mut far_aborted) = (pin!(near.aborted()), pin!(far.aborted()));
        let mut idle = idle::idle(account);
        both(up, down, |cx| match near_aborted.as_mut().poll(cx) {
            Poll::Pending => match far_aborted.as_mut().poll(cx) {
                Poll::Pending => Pin::new(&mut idle).poll(cx),
                error => error,
            },
            error => error,
        })
        .await?;
    }
    client.finish();
    server.finish();
    Ok(())
}

/// One direction of [`splice`].
async fn pump(
    from: App<'_>,
    read: &mut ReadHalf<'_>,
    to: App<'_>,
    account: &Arc<Account>,
) -> Result<(), CopyError> {
    let mut turn = Turn::default();
    loop {
        let relayed =
            poll_fn(|cx| uplink::with_scratch(|scratch| relay(from, read, to, scratch, cx))).await?;
        if relayed.read == 0 {
            return to.end();
        }
        if !relayed.rest.is_empty() {
            let _held = account.hold(relayed.rest.capacity());
            Box::pin(write_all(to, &relayed.rest)).await?;
        }
        from.side.count_from(&account.counts, relayed.read);
        turn.took(relayed.read).await;
    }
}

/// What one read and one write did.
struct Relayed {
    read: usize,
    /// What was read and could not be written.
    rest: Vec<u8>,
}

fn relay(
    from: App<'_>,
    read: &mut ReadHalf<'_>,
    to: App<'_>,
    scratch: &mut [u8],
    cx: &mut Context<'_>,
) -> Poll<Result<Relayed, CopyError>> {
    let mut buffer = ReadBuf::new(scratch);
    ready!(Pin::new(read).poll_read(cx, &mut buffer)).map_err(|e| from.failed(e))?;
    let bytes = buffer.filled();
    if bytes.is_empty() {
        return Poll::Ready(Ok(Relayed {
            read: 0,
            rest: Vec::new(),
        }));
    }
    let written = match to.tcp.try_write(bytes) {
        Ok(written) => written,
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => 0,
        Err(e) => return Poll::Ready(Err(to.failed(e))),
    };
    let rest = bytes.get(written..).unwrap_or_default().to_vec();
    Poll::Ready(Ok(Relayed {
        read: bytes.len(),
        rest,
    }))
}

async fn write_all(to: App<'_>, mut rest: &[u8]) -> Result<(), CopyError> {
    while !rest.is_empty() {
        to.tcp.writable().await.map_err(|e| to.failed(e))?;
        match to.tcp.try_write(rest) {
            Ok(written) => rest = rest.get(written..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(to.failed(e)),
        }
    }
    Ok(())
}

/// Lets others run once a direction has carried [`YIELD_AFTER`] bytes.
#[derive(Debug, Default)]
struct Turn {
    bytes: usize,
}

impl Turn {
    async fn took(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= YIELD_AFTER {
            self.bytes = 0;
            tokio::task::yield_now().await;
        }
    }
}

#[cfg(test)]
mod tests;
