//! Connections of a captured pod that go around the agent: those that are older than its capture, and those that an exclusion let pass
//! which is no longer in force. Tells them from the agent's own by the cgroup in which a socket was made. Decides nothing about them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mesh_core::model::{Exclusions, WorkloadUid};
use mesh_core::plan::{Uncaptured, Way};

use super::diag::{Socket, state};

/// How often the sockets of a pod are listed anew while such connections are left.
const INTERVAL: Duration = Duration::from_secs(1);

/// What of a pod's sockets is known.
#[derive(Debug, Default)]
pub(super) struct Older {
    /// Connections by the cookies of their sockets.
    connections: BTreeMap<u64, Known>,
    /// When they were listed; `None`: everything has to be looked at.
    listed: Option<Instant>,
    /// Why they cannot be listed.
    error: Option<String>,
}

#[derive(Clone, Debug)]
struct Known {
    connection: Uncaptured,
    /// The handshake is not over; whose it is will be seen then.
    half_open: bool,
}

/// What tells a pod's sockets apart.
pub(super) struct Look<'a> {
    /// The cgroups that agents' sockets are made in: ours, and that of a predecessor which is leaving.
    pub(super) agent_cgroups: &'a [u64],
    /// The pod's own addresses.
    pub(super) own: &'a BTreeMap<IpAddr, u32>,
    /// What passes by permission, and is nobody's oversight.
    pub(super) excluded: &'a Exclusions,
    /// The ports that the kernel gives to clients.
    pub(super) ephemeral: (u16, u16),
}

impl Older {
    /// Whether the sockets are to be listed now.
    pub(super) fn is_due(&self, now: Instant, changed: bool) -> bool {
        match self.listed {
            None => true,
            Some(_) if self.connections.is_empty() => false,
            Some(last) => changed || now.duration_since(last) >= INTERVAL,
        }
    }

    /// Everything is to be looked at again: something that passed by permission passes no longer.
    pub(super) fn forget_listing(&mut self) {
        self.listed = None;
    }

    /// Takes in what the kernel lists. `is_probe` knows the kubelet's connections. Returns the sockets of the connections.
    pub(super) fn take(
        &mut self,
        sockets: Vec<Socket>,
        look: &Look<'_>,
        is_probe: impl Fn(&Socket) -> bool,
        now: Instant,
    ) -> Vec<(Socket, Uncaptured)> {
        let first = self.listed.is_none();
        let listening = listening(&sockets, look);
        let known = std::mem::take(&mut self.connections);
        let mut found = Vec::new();
        self.error = None;
        for socket in sockets {
            if !is_connected(&socket) || is_local(&socket, look.own) {
                continue;
            }
            let seen = known.contains_key(&socket.cookie);
            if !seen && (!first || look.passes(&socket, &listening) || is_probe(&socket)) {
                continue;
            }
            let half_open = socket.state == state::SYN_RECV;
            match socket.cgroup {
                Some(cgroup) if look.agent_cgroups.contains(&cgroup) => continue,
                None if socket.state == state::FIN_WAIT2 => continue,
                None if !half_open => {
                    self.error = Some("the kernel does not say which cgroup a socket is of".to_owned());
                    continue;
                }
                _ => {}
            }
            let connection = look.connection(&socket, &listening);
            self.connections.insert(
                socket.cookie,
                Known {
                    connection,
                    half_open,
                },
            );
            if !half_open {
                found.push((socket, connection));
            }
        }
        self.listed = Some(now);
        found
    }

    /// The sockets could not be listed.
    pub(super) fn fail(&mut self, error: String, now: Instant) {
        self.error = Some(error);
        self.listed.get_or_insert(now);
    }

    /// The connections that are left.
    pub(super) fn connections(&self) -> Vec<Uncaptured> {
        let whole = self.connections.values().filter(|known| !known.half_open);
        whole.map(|known| known.connection).collect()
    }

    /// Why they could not be listed.
    pub(super) fn error(&self) -> Option<&String> {
        self.error.as_ref()
    }
}

/// The ports on which applications of the pod listen.
fn listening(sockets: &[Socket], look: &Look<'_>) -> BTreeSet<u16> {
    let is_ours = |socket: &Socket| {
        socket
            .cgroup
            .is_some_and(|cgroup| look.agent_cgroups.contains(&cgroup))
    };
    let listens = |socket: &&Socket| socket.state == state::LISTEN && !is_ours(socket);
    sockets
        .iter()
        .filter(listens)
        .map(|socket| socket.local.port())
        .collect()
}

fn is_connected(socket: &Socket) -> bool {
    match socket.state {
        state::LISTEN => false,
        // Nobody holds it any more: it only sends what it has.
        state::FIN_WAIT1 | state::FIN_WAIT2 => socket.inode != 0,
        _ => true,
    }
}

/// Traffic of the pod with itself: captured connections and deliveries are such, too.
fn is_local(socket: &Socket, own: &BTreeMap<IpAddr, u32>) -> bool {
    let remote = socket.remote.ip().to_canonical();
    remote.is_loopback() || remote.is_unspecified() || own.contains_key(&remote)
}

impl Look<'_> {
    /// The kernel does not tell who opened a connection. Servers are known by their listeners; where one has gone, by its port.
    fn connection(&self, socket: &Socket, listening: &BTreeSet<u16>) -> Uncaptured {
        let canonical = |a: SocketAddr| SocketAddr::new(a.ip().to_canonical(), a.port());
        let (first, last) = self.ephemeral;
        let port = socket.local.port();
        let opened = socket.state == state::SYN_SENT || (first..=last).contains(&port);
        Uncaptured {
            way: if listening.contains(&port) || !opened {
                Way::Inbound
            } else {
                Way::Outbound
            },
            local: canonical(socket.local),
            remote: canonical(socket.remote),
        }
    }

    /// Whether an exclusion in force lets it pass.
    fn passes(&self, socket: &Socket, listening: &BTreeSet<u16>) -> bool {
        let connection = self.connection(socket, listening);
        match connection.way {
            Way::Inbound => self.excluded.inbound_ports.contains(&connection.local.port()),
            Way::Outbound => {
                let remote = connection.remote;
                self.excluded.outbound_ports.contains(&remote.port())
                    || self
                        .excluded
                        .outbound_cidrs
                        .iter()
                        .any(|cidr| cidr.contains(remote.ip()))
            }
        }
    }
}

/// A pod's connections that go around the agent, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OlderConnections {
    /// Whose.
    pub workload: WorkloadUid,
    /// They.
    pub connections: Vec<Uncaptured>,
    /// Why they cannot be listed, or not be closed.
    pub error: Option<String>,
}
