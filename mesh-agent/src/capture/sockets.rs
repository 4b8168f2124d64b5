//! Sockets inside pods' network namespaces.

use std::io;

use socket2::Socket;

/// The address family of a socket to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// AF_INET.
    V4,
    /// AF_INET6.
    V6,
}

/// Hands out sockets that live in one pod's network namespace. Its implementation decides how they come about (today: batches made
/// by entering the namespace; later a privileged broker), so that who uses them needs no privilege.
pub trait SocketSource: Send + Sync {
    /// A new TCP socket: non-blocking, close-on-exec, SO_REUSEADDR and TCP_NODELAY set, neither bound nor connected.
    ///
    /// # Errors
    /// When the namespace is gone or descriptors have run out.
    fn stream(&self, family: Family) -> io::Result<Socket>;
}
