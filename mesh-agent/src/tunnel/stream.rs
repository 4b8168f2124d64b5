//! An application's socket, closed as it deserves.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// A TCP connection to an application. Unless [`AppStream::finish`] was called, dropping it resets the connection: whatever went wrong
/// (a refusal, an abort on the other side, a cancelled task, a panic), the application never mistakes it for an orderly end.
#[derive(Debug)]
pub struct AppStream {
    tcp: TcpStream,
    finished: bool,
}

impl AppStream {
    /// Takes over a connected socket.
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, finished: false }
    }

    /// The socket.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Its two directions.
    pub fn split(&mut self) -> (ReadHalf<'_>, WriteHalf<'_>) {
        self.tcp.split()
    }

    /// The two ends, peer first, IPv4 never in its v4-mapped form.
    ///
    /// # Errors
    /// When the connection is gone already.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((
            canonical(self.tcp.peer_addr()?),
            canonical(self.tcp.local_addr()?),
        ))
    }

    /// Both directions have ended: dropping it closes the connection in order.
    pub fn finish(&mut self) {
        self.finished = true;
    }
}

impl Drop for AppStream {
    fn drop(&mut self) {
        if !self.finished {
            // An error means that the connection is gone, which is what we want.
            let _ = SockRef::from(&self.tcp).set_linger(Some(Duration::ZERO));
        }
    }
}

/// `address` with a v4-mapped address as the IPv4 address that it is: one listener serves both families.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
