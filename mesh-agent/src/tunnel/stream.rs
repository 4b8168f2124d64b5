//! An application's socket, closed as it deserves.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

/// Silence after which a peer off the node is asked whether it still lives.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(60);
/// How often it is asked again; the kernel gives up after its usual number of probes (9).
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);

/// A TCP connection to an application. Unless [`AppStream::finish`] is called, dropping it resets the connection: whatever went wrong
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

    /// Has the kernel find out when the other end is gone without a word. For connections that leave the node: the application's own
    /// keepalive ends at our socket.
    pub fn watch_peer(self) -> Self {
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_AFTER)
            .with_interval(KEEPALIVE_EVERY);
        // Fails only when the connection is gone.
        let _ = SockRef::from(&self.tcp).set_tcp_keepalive(&keepalive);
        self
    }

    /// Closes the connection in order: both directions have ended.
    pub fn finish(mut self) {
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
