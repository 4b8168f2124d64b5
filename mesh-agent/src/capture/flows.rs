//! The flow table over the kernel's BPF maps.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd};

use mesh_common::mutation::{self, Mechanism};
use mesh_common::{Addr, FlowKey, PEER_DELIVERY, Peer};

use super::sys::Table;
use super::{FlowError, FlowTable, Pod};

/// The maps of flows.
#[derive(Debug)]
pub(super) struct KernelFlows {
    pub(super) handoff: Table<FlowKey, Peer>,
    pub(super) deliveries: Table<FlowKey, Peer>,
    pub(super) sockets: Table<i32, Peer>,
}

impl KernelFlows {
    /// Removes the entries of a pod that is no longer captured: hand-offs of connections that died in the accept queue.
    pub(super) fn sweep(&self, netns: u64) {
        self.sweep_where(|key| key.netns == netns);
    }

    /// Removes all entries: those of an agent that is dead, and of its connections.
    pub(super) fn sweep_all(&self) {
        self.sweep_where(|_| true);
    }

    fn sweep_where(&self, is_meant: impl Fn(&FlowKey) -> bool) {
        for table in [&self.handoff, &self.deliveries] {
            for key in table.keys().unwrap_or_default() {
                if is_meant(&key) {
                    let _ = table.remove(&key);
                }
            }
        }
    }
}

impl FlowTable for KernelFlows {
    fn take_destination(
        &self,
        pod: &Pod,
        client: SocketAddr,
        local: SocketAddr,
    ) -> Result<Option<SocketAddr>, FlowError> {
        let key = flow_key(pod.netns, client, local);
        let found = match mutation::is_off(Mechanism::HandoffTaken) {
            false => self.handoff.take(&key),
            true => self.handoff.get(&key),
        };
        Ok(found.map_err(FlowError::Map)?.map(socket_address))
    }

    fn announce_delivery(&self, socket: BorrowedFd<'_>, client: SocketAddr) -> Result<(), FlowError> {
        if mutation::is_off(Mechanism::ClientAnnouncement) {
            return Ok(());
        }
        let peer = Peer {
            addr: Addr::from_ip(client.ip()),
            port: client.port(),
            kind: PEER_DELIVERY,
        };
        self.sockets
            .insert(&socket.as_raw_fd(), &peer)
            .map_err(FlowError::Map)
    }
}

/// The key of the connection that `opener` opened to `remote`.
pub(super) fn flow_key(netns: u64, opener: SocketAddr, remote: SocketAddr) -> FlowKey {
    FlowKey {
        netns,
        local: Addr::from_ip(opener.ip()),
        remote: Addr::from_ip(remote.ip()),
        local_port: opener.port(),
        remote_port: remote.port(),
        pad: 0,
    }
}

fn socket_address(peer: Peer) -> SocketAddr {
    let ip: IpAddr = peer.addr.to_ip();
    SocketAddr::new(ip, peer.port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v4_mapped_connection_has_the_key_of_an_ipv4_one() {
        let v4 = flow_key(
            7,
            "198.18.0.1:40000".parse().unwrap(),
            "198.18.0.1:15110".parse().unwrap(),
        );
        let mapped = flow_key(
            7,
            "[::ffff:198.18.0.1]:40000".parse().unwrap(),
            "[::ffff:198.18.0.1]:15110".parse().unwrap(),
        );
        assert_eq!(v4, mapped);
    }
}
