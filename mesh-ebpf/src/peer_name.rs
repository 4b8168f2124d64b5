//! `cgroup/getpeername4|6`: an application sees the destination that it asked for, or the client that its connection really comes
//! from, never the agent.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::{PEER_CLIENT, PEER_DESTINATION, Peer};

use crate::ctx;

/// Whom the socket's application is to see, if not what the kernel says.
#[inline(always)]
pub fn shown(ctx: &SockAddrContext) -> Option<Peer> {
    let peer = ctx::stored(ctx::sock_addr_sock(ctx))?;
    (peer.kind == PEER_DESTINATION || peer.kind == PEER_CLIENT).then_some(peer)
}
