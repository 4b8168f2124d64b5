//! Flow keys, and which addresses are never captured.

use aya_ebpf::programs::SockOpsContext;
use mesh_common::{Addr, FlowKey};

use crate::ctx;

/// The flow of a `sockops` hook's socket that opened the connection itself.
#[inline(always)]
pub fn opened(ctx: &SockOpsContext) -> FlowKey {
    let (local, remote) = ctx::sock_ops_addrs(ctx);
    let (local_port, remote_port) = ctx::sock_ops_ports(ctx);
    FlowKey {
        netns: ctx::sock_ops_netns(ctx),
        local,
        remote,
        local_port,
        remote_port,
        pad: 0,
    }
}

/// The flow of a `sockops` hook's socket that accepted the connection, as its opener sees it.
#[inline(always)]
pub fn accepted(ctx: &SockOpsContext) -> FlowKey {
    let flow = opened(ctx);
    FlowKey {
        netns: flow.netns,
        local: flow.remote,
        remote: flow.local,
        local_port: flow.remote_port,
        remote_port: flow.local_port,
        pad: 0,
    }
}

/// Whether the address is 127.0.0.0/8 (v4-mapped too) or ::1.
#[inline(always)]
pub fn is_loopback(addr: &Addr) -> bool {
    if addr.is_v4() {
        return v4_octet(addr) == 127;
    }
    addr.0[0] == 0 && addr.0[1] == 0 && addr.0[2] == 0 && addr.0[3] == 1u32.to_be()
}

/// Whether connections to this address are never captured: loopback, unspecified (the kernel takes it for loopback; the rest of 0.0.0.0/8
/// are ordinary addresses to it), multicast, limited broadcast.
#[inline(always)]
pub fn is_exempt(addr: &Addr) -> bool {
    if addr.is_v4() {
        let octet = v4_octet(addr);
        return octet == 127 || addr.0[3] == 0 || (octet & 0xf0) == 224 || addr.0[3] == u32::MAX;
    }
    is_loopback(addr) || addr.is_unset() || (u32::from_be(addr.0[0]) >> 24) == 0xff
}

/// Whether this is an IPv6 link-local address (fe80::/10), which means something on one link only: the hooks cannot see on which.
#[inline(always)]
pub fn is_link_local6(addr: &Addr) -> bool {
    (u32::from_be(addr.0[0]) >> 22) == (0xfe80_0000 >> 22)
}

#[inline(always)]
fn v4_octet(addr: &Addr) -> u32 {
    u32::from_be(addr.0[3]) >> 24
}
