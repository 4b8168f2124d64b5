//! The node's BPF object: programs for pods' cgroups and for the agent's own cgroup.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the program macros drop the docstrings")]

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB};
use aya_ebpf::macros::{cgroup_sock_addr, cgroup_sockopt, sock_ops};
use aya_ebpf::programs::{SockAddrContext, SockOpsContext, SockoptContext};
use mesh_common::NodeConst;
use mesh_ebpf::connect::{self, Verdict};
use mesh_ebpf::mutation::{self, Mechanism};
use mesh_ebpf::{ctx, debug, delivery, options, peer_name, probe};

const REFUSE: i32 = 0;
const PASS: i32 = 1;

/// What the programs know of the node; the agent writes it before it loads the object.
#[unsafe(no_mangle)]
static NODE: Global<NodeConst> = Global::new(NodeConst { host_netns: 0 });

/// Captures IPv4 connections of a pod.
#[cgroup_sock_addr(connect4)]
pub fn capture_connect4(ctx: SockAddrContext) -> i32 {
    match connect::capture(&ctx, ctx::sock_addr_addr4(&ctx)) {
        _ if mutation::is_off(Mechanism::Connect4) => PASS,
        Verdict::Pass => PASS,
        Verdict::Refuse(_) => REFUSE,
        Verdict::Rewrite(addr, port) => {
            ctx::set_sock_addr4(&ctx, addr, port);
            PASS
        }
    }
}

/// Captures IPv6 connections of a pod, v4-mapped ones too.
#[cgroup_sock_addr(connect6)]
pub fn capture_connect6(ctx: SockAddrContext) -> i32 {
    match connect::capture(&ctx, ctx::sock_addr_addr6(&ctx)) {
        _ if mutation::is_off(Mechanism::Connect6) => PASS,
        Verdict::Pass => PASS,
        Verdict::Refuse(_) => REFUSE,
        Verdict::Rewrite(addr, port) => {
            ctx::set_sock_addr6(&ctx, addr, port);
            PASS
        }
    }
}

/// Shows a pod's IPv4 sockets their true peers.
#[cgroup_sock_addr(getpeername4)]
pub fn show_peer4(ctx: SockAddrContext) -> i32 {
    if let Some(peer) = peer_name::shown(&ctx)
        && peer.addr.is_v4()
        && !mutation::is_off(Mechanism::GetPeerName4)
    {
        ctx::set_sock_addr4(&ctx, peer.addr, peer.port);
    }
    PASS
}

/// Shows a pod's IPv6 sockets their true peers.
#[cgroup_sock_addr(getpeername6)]
pub fn show_peer6(ctx: SockAddrContext) -> i32 {
    if let Some(peer) = peer_name::shown(&ctx)
        && !mutation::is_off(Mechanism::GetPeerName6)
    {
        ctx::set_sock_addr6(&ctx, peer.addr, peer.port);
    }
    PASS
}

/// Keeps a pod's sockets from taking data before the handshake has proven the client's address.
#[cgroup_sockopt(setsockopt)]
pub fn guard_options(ctx: SockoptContext) -> i32 {
    if options::is_allowed(&ctx) { PASS } else { REFUSE }
}

/// Follows the TCP sockets of a pod.
#[sock_ops]
pub fn pod_sock_ops(ctx: SockOpsContext) -> u32 {
    if let Some(line) = connect::follow(&ctx) {
        debug::sock_ops(&ctx, &line);
    }
    1
}

/// Follows the agent's own TCP sockets.
#[sock_ops]
pub fn agent_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => {
            if let Some(line) = delivery::announce(&ctx) {
                debug::sock_ops(&ctx, &line);
            }
        }
        BPF_SOCK_OPS_STATE_CB => delivery::state_changed(&ctx),
        _ => {}
    }
    1
}

/// Follows the TCP sockets of the kubelet.
#[sock_ops]
pub fn kubelet_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => probe::note(&ctx, NODE.load().host_netns),
        BPF_SOCK_OPS_STATE_CB => probe::state_changed(&ctx),
        _ => {}
    }
    1
}

/// Marks what the kubelet connects to over IPv4, among those with whom it shares its cgroup.
#[cgroup_sock_addr(connect4)]
pub fn kubelet_connect4(ctx: SockAddrContext) -> i32 {
    probe::mark(&ctx, NODE.load().host_netns);
    PASS
}

/// Marks what the kubelet connects to over IPv6.
#[cgroup_sock_addr(connect6)]
pub fn kubelet_connect6(ctx: SockAddrContext) -> i32 {
    probe::mark(&ctx, NODE.load().host_netns);
    PASS
}

/// Follows the kubelet's TCP sockets among those of others.
#[sock_ops]
pub fn shared_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => probe::note_marked(&ctx, NODE.load().host_netns),
        BPF_SOCK_OPS_STATE_CB => probe::state_changed(&ctx),
        _ => {}
    }
    1
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The kernel lends some helpers to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
