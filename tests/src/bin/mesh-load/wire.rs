//! What client and server say to each other, and how a client opens and ends connections.
//!
//! The first byte of a connection says what is wanted of the server ([`Want`]); connections without one are closed when they end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// Length of a question and of its answer, bytes.
pub(crate) const MESSAGE: usize = 64;

/// What a client wants of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Want {
    /// Answers each question with the client's address as the server sees it.
    Answers = b'a',
    /// Receives, and compares with the stream of seed 1; then says how many bytes (u64, big-endian).
    Check = b'c',
    /// Sends as many bytes as the next eight say (u64, big-endian) of the stream of seed 2, and ends its side.
    Data = b'd',
    /// Receives and forgets.
    Sink = b's',
    /// Sends until it cannot.
    Source = b'g',
    /// Resets the connection.
    Reset = b'r',
    /// Ends its side at once, and receives to the end.
    End = b'e',
    /// Ends its side at once, receives to the end, and then resets.
    Never = b'n',
}

impl Want {
    pub(crate) fn parse(byte: u8) -> Option<Self> {
        use Want::{Answers, Check, Data, End, Never, Reset, Sink, Source};
        [Answers, Check, Data, Sink, Source, Reset, End, Never]
            .into_iter()
            .find(|want| *want as u8 == byte)
    }
}

/// Prints a line of JSON.
pub(crate) fn say(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// An address in a message: text, padded with spaces.
pub(crate) fn message(address: SocketAddr) -> [u8; MESSAGE] {
    let mut bytes = [b' '; MESSAGE];
    let text = canonical(address).to_string();
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes
}

/// Without the v4-mapped form.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Connects within `limit`.
pub(crate) async fn open(to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    open_from(0, to, limit).await
}

/// Connects within `limit` from a port of ours; 0 leaves it to the kernel.
pub(crate) async fn open_from(port: u16, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let (socket, any): (_, IpAddr) = match to {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into()),
    };
    socket.set_nodelay(true)?;
    if port != 0 {
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::new(any, port))?;
    }
    within(limit, socket.connect(to)).await
}

/// One question and its answer; `false` where the server saw another client than we are.
pub(crate) async fn ask(tcp: &mut TcpStream) -> io::Result<bool> {
    let mine = message(tcp.local_addr()?);
    tcp.write_all(&mine).await?;
    let mut seen = [0; MESSAGE];
    tcp.read_exact(&mut seen).await?;
    Ok(seen == mine)
}

/// Ends our side and waits for the server's end, which must come without another byte.
pub(crate) async fn end(tcp: &mut TcpStream) -> io::Result<()> {
    tcp.shutdown().await?;
    expect_end(tcp).await
}

/// The server's end, without another byte before it.
pub(crate) async fn expect_end(tcp: &mut TcpStream) -> io::Result<()> {
    match tcp.read(&mut [0; 16]).await? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than was asked for")),
    }
}

/// Closes with a reset.
pub(crate) fn abort(tcp: TcpStream) -> io::Result<()> {
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO))
}

/// `work`, or a timeout.
pub(crate) async fn within<T>(limit: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The name of an error as tests compare it.
pub(crate) fn name(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionReset => "reset".to_owned(),
        io::ErrorKind::ConnectionRefused => "refused".to_owned(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "timeout".to_owned(),
        io::ErrorKind::BrokenPipe => "pipe".to_owned(),
        io::ErrorKind::UnexpectedEof => "eof".to_owned(),
        _ => error.to_string(),
    }
}
