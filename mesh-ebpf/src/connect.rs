//! Outbound capture: `cgroup/connect4|6` rewrite the destination of a pod's connections to the pod's own address at a rewrite port,
//! and `sockops` on the same cgroup hands the original destination over, keyed by the flow, before the SYN leaves.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB,
};
use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use mesh_common::{
    Addr, Counter, Outcome, PEER_CLIENT, PEER_DESTINATION, Peer, PortUse, REWRITE_PORT_BASE, REWRITE_PORTS,
    is_agent_port,
};

use crate::ctx::{self, Sock};
use crate::debug::{self, Line};
use crate::events::{self, Flow};
use crate::flow;
use crate::maps::{
    DELIVERIES, HANDOFF, count, device_of, is_enrolled, is_excluded, is_own, is_set_apart, pod,
};
use crate::mutation::{self, Mechanism};

const SOCK_STREAM: u32 = 1;
const IPPROTO_TCP: u32 = 6;
const IPPROTO_UDP: u32 = 17;

const TCP_FIN_WAIT2: u32 = 5;
const TCP_CLOSE: u32 = 7;

/// What becomes of a `connect`.
pub enum Verdict {
    /// It goes where the application wants it to go.
    Pass,
    /// It fails with EPERM, is counted as this and told to the agent.
    Refuse(Counter),
    /// It goes to this address and port instead.
    Rewrite(Addr, u16),
}

/// Decides on a `connect` to `destination` and remembers the destination with the socket when it is captured.
#[inline(always)]
pub fn capture(ctx: &SockAddrContext, destination: Addr) -> Verdict {
    let (kind, protocol) = ctx::sock_addr_kind(ctx);
    let port = ctx::sock_addr_port(ctx);
    let sock = ctx::sock_addr_sock(ctx);
    if kind != SOCK_STREAM {
        if protocol == IPPROTO_UDP {
            count(Counter::UdpPassed);
        }
        return Verdict::Pass;
    }
    let verdict = if protocol == IPPROTO_TCP {
        decide(ctx, sock, destination, port)
    } else {
        // None is known to come here: MPTCP shows its first subflow, a TCP socket, and is captured by it. What may come is not
        // understood, so it does not pass.
        Verdict::Refuse(Counter::ConnectRefusedProtocol)
    };
    if !matches!(verdict, Verdict::Rewrite(..)) {
        ctx::forget(sock);
    }
    if let Verdict::Refuse(why) = verdict {
        let flow = Flow {
            netns: ctx::sock_addr_netns(ctx),
            local: (Addr::default(), 0),
            remote: (destination, port),
            protocol,
            pid: ctx::pid(),
        };
        events::report(why, &flow);
    }
    if debug::is_on(|| ctx::sock_addr_netns(ctx)) {
        let became = match verdict {
            Verdict::Pass => Counter::ConnectPassed,
            Verdict::Refuse(why) => why,
            Verdict::Rewrite(..) => Counter::ConnectCaptured,
        };
        debug::end(
            ctx,
            "connect",
            ctx::sock_addr_netns(ctx),
            (destination, port),
            became as u32,
        );
    }
    verdict
}

#[inline(always)]
fn decide(ctx: &SockAddrContext, sock: Sock, destination: Addr, port: u16) -> Verdict {
    if flow::is_exempt(&destination) {
        count(Counter::ConnectPassed);
        return Verdict::Pass;
    }
    if flow::is_link_local6(&destination) {
        count(Counter::ConnectPassedLinkLocal);
        return Verdict::Pass;
    }
    let netns = ctx::sock_addr_netns(ctx);
    let Some(pod) = pod(netns) else {
        return Verdict::Refuse(Counter::ConnectRefusedNetns);
    };
    if is_own(netns, destination) {
        count(Counter::ConnectPassed);
        return Verdict::Pass;
    }
    if !is_agent_port(port)
        && (is_set_apart(netns, port, PortUse::ExcludedOutbound) || is_excluded(netns, destination))
    {
        count(Counter::ConnectExcluded);
        return Verdict::Pass;
    }
    let via = if destination.is_v4() { pod.ip4 } else { pod.ip6 };
    if via.is_unset() {
        return Verdict::Refuse(Counter::ConnectRefusedFamily);
    }
    let device = ctx::bound_device(sock);
    if device != 0 && device != device_of(netns, via) {
        return elsewhere(&destination);
    }
    let peer = Peer {
        addr: destination,
        port,
        kind: PEER_DESTINATION,
    };
    if !ctx::store(sock, &peer) {
        return Verdict::Refuse(Counter::ConnectRefusedStorage);
    }
    count(Counter::ConnectCaptured);
    Verdict::Rewrite(via, rewrite_port())
}

/// A socket that is bound to a device which does not carry the pod's address: its packets cannot reach the agent, so a rewritten
/// connection would time out. It goes where the application wants, but never in plaintext to somebody enrolled.
#[inline(always)]
fn elsewhere(destination: &Addr) -> Verdict {
    if is_enrolled(destination) {
        return Verdict::Refuse(Counter::ConnectRefusedDevice);
    }
    count(Counter::ConnectPassedDevice);
    Verdict::Pass
}

/// Any of the rewrite ports: spreading them keeps TIME_WAIT from using up the pod's local ports.
#[inline(always)]
fn rewrite_port() -> u16 {
    // SAFETY: takes nothing, returns a number.
    let random = unsafe { bpf_get_prandom_u32() } as u16;
    match mutation::is_off(Mechanism::RewriteSpread) {
        false => REWRITE_PORT_BASE + random % REWRITE_PORTS,
        true => REWRITE_PORT_BASE,
    }
}

/// `sockops` on a pod's cgroup.
#[inline(never)]
pub fn follow(ctx: &SockOpsContext) -> Option<Line> {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => hand_over(ctx),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => take_client(ctx),
        BPF_SOCK_OPS_STATE_CB => state_changed(ctx),
        _ => None,
    }
}

/// TCP_CONNECT_CB: the socket has its local address and port, the SYN has not left (later is too late: with TCP Fast Open the agent may
/// accept before the handshake ends).
#[inline(always)]
fn hand_over(ctx: &SockOpsContext) -> Option<Line> {
    let sock = ctx::sock_ops_sock(ctx)?;
    let stored = ctx::stored(sock)?;
    if stored.kind != PEER_DESTINATION || mutation::is_off(Mechanism::Handoff) {
        return None;
    }
    let key = flow::opened(ctx);
    let other = (stored.addr, stored.port);
    let value = Peer { kind: 0, ..stored };
    let became = if HANDOFF.insert(&key, &value, 0).is_err() {
        // Without an entry sk_lookup does not steer: nobody listens on the rewrite port, the connection is refused.
        events::report(Counter::HandoffFull, &Flow::of(&key, other));
        Counter::HandoffFull as u32
    } else {
        ctx::watch_state(ctx);
        Outcome::HandedOver as u32
    };
    Some(Line { key, other, became })
}

/// STATE_CB of a socket that [`hand_over`] watches: forgets a hand-off that nobody will take.
///
/// A socket that closes out of FIN_WAIT2 was closed in good order by an application that did not wait: its data and its FIN are
/// acknowledged, so the connection stands in the agent's accept queue, and the agent takes the entry when it accepts.
#[inline(always)]
fn state_changed(ctx: &SockOpsContext) -> Option<Line> {
    let (old, new) = ctx::sock_ops_states(ctx);
    if new != TCP_CLOSE || old == TCP_FIN_WAIT2 {
        return None;
    }
    let key = flow::opened(ctx);
    HANDOFF.remove(&key).ok()?;
    Some(Line {
        key,
        other: (key.remote, key.remote_port),
        became: Outcome::HandOffForgotten as u32,
    })
}

/// PASSIVE_ESTABLISHED_CB: an application's new socket takes up the real client of the delivery behind it.
#[inline(always)]
fn take_client(ctx: &SockOpsContext) -> Option<Line> {
    let key = flow::accepted(ctx);
    // SAFETY: copied before the entry is removed.
    let client = unsafe { DELIVERIES.get(&key) }.copied()?;
    let _ = DELIVERIES.remove(&key);
    let sock = ctx::sock_ops_sock(ctx)?;
    let peer = Peer {
        kind: PEER_CLIENT,
        ..client
    };
    if !ctx::store(sock, &peer) {
        return None;
    }
    count(Counter::ClientsShown);
    Some(Line {
        key,
        other: (peer.addr, peer.port),
        became: Counter::ClientsShown as u32,
    })
}
