//! The kubelet's probes: `sockops` on the kubelet's cgroup notes each connection that it opens in the host's namespace, and `sk_lookup` lets
//! those pass that are noted.
//!
//! The agent attaches `sockops` alone where it has verified that the cgroup is the kubelet's own. Where others are in it or below it, such
//! as the pods, `cgroup/connect4|6` marks the sockets with which the kubelet's own process connects, and only what is marked is noted.
//! Those hooks see the sockets of pods, too, whose storage is not theirs to touch.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use mesh_common::{Addr, Counter, FlowKey, PEER_PROBE, PROBE_LIFETIME_NS, Peer};

use crate::ctx::{self, Lookup, Sock};
use crate::events::{self, Flow};
use crate::flow;
use crate::maps::{KUBELET, PROBES, count};
use crate::mutation::{self, Mechanism};

const TCP_CLOSE: u32 = 7;
const SOCK_STREAM: u32 = 1;

/// `connect` in a cgroup that the kubelet shares: marks the socket when it is the kubelet that connects, and takes away the mark of an
/// earlier `connect` when it is not.
#[inline(always)]
pub fn mark(ctx: &SockAddrContext, host: u64) {
    let (kind, protocol) = ctx::sock_addr_kind(ctx);
    let sock = ctx::sock_addr_sock(ctx);
    if kind != SOCK_STREAM || protocol != events::TCP {
        return;
    }
    if ctx::sock_addr_netns(ctx) != host && !mutation::is_off(Mechanism::ProbeNetns) {
        return;
    }
    if is_kubelet() || mutation::is_off(Mechanism::ProbeProcess) {
        let mark = Peer {
            addr: Addr::default(),
            port: 0,
            kind: PEER_PROBE,
        };
        // Without a mark the connection is captured like others.
        if !ctx::store(sock, &mark) {
            count(Counter::ProbesFull);
        }
    } else {
        unmark(sock);
    }
}

/// Whether the process that connects is the kubelet, in the cgroup in which the kubelet was found: not in one below it.
#[inline(always)]
fn is_kubelet() -> bool {
    let Some(kubelet) = KUBELET.get(0).copied() else {
        return false;
    };
    kubelet.tgid != 0 && ctx::pid() == kubelet.tgid && ctx::cgroup() == kubelet.cgroup
}

/// Takes the mark away; true where there was one. What others have stored with a socket is left alone.
#[inline(always)]
fn unmark(sock: Sock) -> bool {
    let is_marked = ctx::stored(sock).is_some_and(|stored| stored.kind == PEER_PROBE);
    if is_marked {
        ctx::forget(sock);
    }
    is_marked
}

/// TCP_CONNECT_CB in a cgroup that the kubelet shares: as [`note`], for a socket that is marked. A mark holds for one connection.
#[inline(always)]
pub fn note_marked(ctx: &SockOpsContext, host: u64) {
    if ctx::sock_ops_netns(ctx) != host && !mutation::is_off(Mechanism::ProbeNetns) {
        return;
    }
    if ctx::sock_ops_sock(ctx).is_some_and(unmark) {
        note(ctx, host);
    }
}

/// TCP_CONNECT_CB: notes the connection, before its SYN leaves, when it is opened in the host's namespace.
#[inline(always)]
pub fn note(ctx: &SockOpsContext, host: u64) {
    let mut key = flow::opened(ctx);
    if key.netns != host {
        if !mutation::is_off(Mechanism::ProbeNetns) {
            return;
        }
        key.netns = host;
    }
    if PROBES.insert(&key, &now(), 0).is_err() {
        events::report(
            Counter::ProbesFull,
            &Flow::of(&key, (key.remote, key.remote_port)),
        );
        return;
    }
    ctx::watch_state(ctx);
}

/// STATE_CB: forgets a connection that ends, so that nobody else passes with its addresses and ports.
#[inline(always)]
pub fn state_changed(ctx: &SockOpsContext) {
    let (_, new) = ctx::sock_ops_states(ctx);
    if new == TCP_CLOSE {
        let _ = PROBES.remove(&flow::opened(ctx));
    }
}

/// Whether the kubelet opened the connection that `packet` belongs to, a moment ago. The same for the SYN and for the handshake's last
/// packet, on which SYN cookies ask again.
#[inline(always)]
pub fn is_under_way(packet: &Lookup, host: u64) -> bool {
    let key = FlowKey {
        netns: host,
        local: packet.remote,
        remote: packet.local,
        local_port: packet.remote_port,
        remote_port: packet.local_port,
        pad: 0,
    };
    // SAFETY: copied at once.
    let Some(opened) = (unsafe { PROBES.get(&key) }).copied() else {
        return false;
    };
    now().wrapping_sub(opened) < PROBE_LIFETIME_NS
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: takes nothing, returns a number.
    unsafe { bpf_ktime_get_ns() }
}
