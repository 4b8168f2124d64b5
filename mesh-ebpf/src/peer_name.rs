//! `cgroup/getpeername4|6`: an application sees the destination that it asked for, or the client that its connection really comes
//! from, never the agent.

use aya_ebpf::programs::SockAddrContext;
use mesh_common::{Outcome, PEER_CLIENT, PEER_DESTINATION, Peer};

use crate::{ctx, debug};

/// Whom the socket's application is to see, if not what the kernel says.
#[inline(always)]
pub fn shown(ctx: &SockAddrContext) -> Option<Peer> {
    // Not an `Option` across the branches below: LLVM leaves its fields unset where it is `None`, and the verifier answers "R9 !read_ok".
    let peer = ctx::stored(ctx::sock_addr_sock(ctx)).unwrap_or_default();
    let is_ours = peer.kind == PEER_DESTINATION || peer.kind == PEER_CLIENT;
    if debug::is_on(|| ctx::sock_addr_netns(ctx)) {
        let became = if is_ours {
            Outcome::PeerShown
        } else {
            Outcome::KernelPeerShown
        };
        let end = (peer.addr, peer.port);
        debug::end(ctx, "getpeername", ctx::sock_addr_netns(ctx), end, became as u32);
    }
    is_ours.then_some(peer)
}
