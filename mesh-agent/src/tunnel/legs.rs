//! What holds for every TCP connection of the agent: how the kernel finds out that its other end is gone without a word, and how long a
//! connection of an application may be idle.

use std::os::fd::AsFd;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

use crate::settings::Keepalive;

/// How legs are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Legs {
    /// TCP keepalive; `None` for none.
    pub keepalive: Option<Keepalive>,
    /// How long a connection of an application may be without a byte in either direction; `None` for as long as it likes.
    pub idle: Option<Duration>,
}

impl Default for Legs {
    fn default() -> Self {
        Self {
            keepalive: Some(Keepalive::default()),
            idle: None,
        }
    }
}

impl Legs {
    /// Has the kernel probe the other end of `tcp` while it is silent; of a listener, those of the connections that it accepts, which inherit
    /// it. Probes carry no data and are answered by the other end's kernel: the applications see nothing of them.
    pub fn watch(&self, tcp: &impl AsFd) {
        let Some(keepalive) = self.keepalive else { return };
        let keepalive = TcpKeepalive::new()
            .with_time(keepalive.time)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.probes);
        // Fails only when the connection is gone.
        let _ = SockRef::from(tcp).set_tcp_keepalive(&keepalive);
    }
}
