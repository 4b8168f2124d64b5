//! Every unsafe read and write of a BPF context, and the helpers that take a socket.
//!
//! Reads are volatile and never in branches: otherwise LLVM merges two word reads into one wider one, or the reads of two branches into
//! one of a computed address, and the verifier answers "invalid bpf_context access" or "dereference of modified ctx ptr R3 off=24
//! disallowed".

use core::ffi::c_void;
use core::ptr::{self, addr_of, addr_of_mut};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_STATE_CB_FLAG, bpf_sk_lookup, bpf_sock};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_netns_cookie, bpf_sk_storage_delete,
    bpf_sk_storage_get,
};
use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext, SockoptContext};
use mesh_common::{Addr, Peer};

use crate::maps::SOCKETS;

/// `AF_INET`.
pub const AF_INET: u32 = 2;
/// `AF_INET6`.
pub const AF_INET6: u32 = 10;

// SAFETY (whole macro): the kernel passes a valid context; the verifier checks offset and width of each access.
macro_rules! read {
    ($ctx:expr, $($field:tt)+) => {
        unsafe { ptr::read_volatile(addr_of!((*$ctx).$($field)+)) }
    };
}

macro_rules! write {
    ($ctx:expr, $value:expr, $($field:tt)+) => {
        unsafe { ptr::write_volatile(addr_of_mut!((*$ctx).$($field)+), $value) }
    };
}

macro_rules! read_addr6 {
    ($ctx:expr, $field:ident) => {
        Addr([
            read!($ctx, $field[0]),
            read!($ctx, $field[1]),
            read!($ctx, $field[2]),
            read!($ctx, $field[3]),
        ])
    };
}

/// A kernel socket, not null, alive while the program runs.
#[derive(Clone, Copy)]
pub struct Sock(*mut c_void);

/// The socket of a `cgroup/connect` or `cgroup/getpeername` hook.
#[inline(always)]
pub fn sock_addr_sock(ctx: &SockAddrContext) -> Sock {
    Sock(read!(ctx.sock_addr, __bindgen_anon_1.sk).cast())
}

/// Index of the device that a socket is bound to (SO_BINDTODEVICE, SO_BINDTOIFINDEX); 0 where it is bound to none.
#[inline(always)]
pub fn bound_device(sock: Sock) -> u32 {
    let sock: *const bpf_sock = sock.0.cast();
    read!(sock, bound_dev_if)
}

/// Level and name of the option that a `cgroup/setsockopt` hook is about.
#[inline(always)]
pub fn sockopt_name(ctx: &SockoptContext) -> (i32, i32) {
    (read!(ctx.sockopt, level), read!(ctx.sockopt, optname))
}

/// The first word of the option's value; none where it is shorter.
#[inline(always)]
pub fn sockopt_word(ctx: &SockoptContext) -> Option<u32> {
    let start = read!(ctx.sockopt, __bindgen_anon_2.optval) as *const u32;
    let end = read!(ctx.sockopt, __bindgen_anon_3.optval_end) as usize;
    if start as usize + size_of::<u32>() > end {
        return None;
    }
    // SAFETY: a whole word lies before the end, which the verifier checks.
    Some(unsafe { ptr::read_volatile(start) })
}

/// Cookie of the network namespace of the socket of a `cgroup/setsockopt` hook.
#[inline(always)]
pub fn sockopt_netns(ctx: &SockoptContext) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The port that the socket of a `cgroup/setsockopt` hook is bound to; 0 where it is not bound yet.
#[inline(always)]
pub fn sockopt_port(ctx: &SockoptContext) -> u16 {
    let sock: *mut bpf_sock = read!(ctx.sockopt, __bindgen_anon_1.sk);
    read!(sock, src_port) as u16
}

/// Tells the kernel to go on with the value as the application gave it. Needed for values over a page, of which the hook is shown only a
/// part: the kernel would answer EFAULT.
#[inline(always)]
pub fn keep_long_sockopt(ctx: &SockoptContext) {
    const SMALLEST_PAGE: i32 = 4096;
    if read!(ctx.sockopt, optlen) > SMALLEST_PAGE {
        write!(ctx.sockopt, 0, optlen);
    }
}

/// Socket type and protocol of a `cgroup/connect` hook.
#[inline(always)]
pub fn sock_addr_kind(ctx: &SockAddrContext) -> (u32, u32) {
    (read!(ctx.sock_addr, type_), read!(ctx.sock_addr, protocol))
}

/// The IPv4 address in a `sock_addr` context.
#[inline(always)]
pub fn sock_addr_addr4(ctx: &SockAddrContext) -> Addr {
    Addr::from_v4_word(read!(ctx.sock_addr, user_ip4))
}

/// The IPv6 address in a `sock_addr` context.
#[inline(always)]
pub fn sock_addr_addr6(ctx: &SockAddrContext) -> Addr {
    read_addr6!(ctx.sock_addr, user_ip6)
}

/// The port in a `sock_addr` context, host byte order.
#[inline(always)]
pub fn sock_addr_port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(read!(ctx.sock_addr, user_port) as u16)
}

/// Writes an IPv4 address and a port (host byte order) into a `sock_addr` context.
#[inline(always)]
pub fn set_sock_addr4(ctx: &SockAddrContext, addr: Addr, port: u16) {
    write!(ctx.sock_addr, addr.0[3], user_ip4);
    write!(ctx.sock_addr, u32::from(port.to_be()), user_port);
}

/// Writes an IPv6 address and a port (host byte order) into a `sock_addr` context.
#[inline(always)]
pub fn set_sock_addr6(ctx: &SockAddrContext, addr: Addr, port: u16) {
    write!(ctx.sock_addr, addr.0[0], user_ip6[0]);
    write!(ctx.sock_addr, addr.0[1], user_ip6[1]);
    write!(ctx.sock_addr, addr.0[2], user_ip6[2]);
    write!(ctx.sock_addr, addr.0[3], user_ip6[3]);
    write!(ctx.sock_addr, u32::from(port.to_be()), user_port);
}

/// Cookie of the network namespace of a `sock_addr` hook's socket.
#[inline(always)]
pub fn sock_addr_netns(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The process that calls `connect`, in the host's numbering.
#[inline(always)]
pub fn pid() -> u32 {
    // SAFETY: takes nothing, returns a number.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// Id of the cgroup that the process is in which calls `connect`, in the cgroup2 hierarchy.
#[inline(always)]
pub fn cgroup() -> u64 {
    // SAFETY: takes nothing, returns a number.
    unsafe { bpf_get_current_cgroup_id() }
}

/// Cookie of the network namespace of a `sockops` hook's socket.
#[inline(always)]
pub fn sock_ops_netns(ctx: &SockOpsContext) -> u64 {
    // SAFETY: the helper takes the context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

/// The socket of a `sockops` hook, where it is a full one.
#[inline(always)]
pub fn sock_ops_sock(ctx: &SockOpsContext) -> Option<Sock> {
    let sk = read!(ctx.ops, __bindgen_anon_2.sk);
    if sk.is_null() { None } else { Some(Sock(sk.cast())) }
}

/// Family of a `sockops` hook's socket.
#[inline(always)]
pub fn sock_ops_family(ctx: &SockOpsContext) -> u32 {
    read!(ctx.ops, family)
}

/// Local and remote address of a `sockops` hook's socket. A v4-mapped IPv6 socket shows the same as an IPv4 one.
#[inline(always)]
pub fn sock_ops_addrs(ctx: &SockOpsContext) -> (Addr, Addr) {
    let v4 = (read!(ctx.ops, local_ip4), read!(ctx.ops, remote_ip4));
    let v6 = (read_addr6!(ctx.ops, local_ip6), read_addr6!(ctx.ops, remote_ip6));
    if sock_ops_family(ctx) == AF_INET {
        (Addr::from_v4_word(v4.0), Addr::from_v4_word(v4.1))
    } else {
        v6
    }
}

/// Local and remote port of a `sockops` hook's socket, host byte order. (The kernel shows the local one in host order, the remote
/// one in network order.)
#[inline(always)]
pub fn sock_ops_ports(ctx: &SockOpsContext) -> (u16, u16) {
    let local = read!(ctx.ops, local_port);
    let remote = read!(ctx.ops, remote_port);
    (local as u16, u32::from_be(remote) as u16)
}

/// Old and new state, in a `sockops` STATE callback.
#[inline(always)]
pub fn sock_ops_states(ctx: &SockOpsContext) -> (u32, u32) {
    (
        read!(ctx.ops, __bindgen_anon_1.args[0]),
        read!(ctx.ops, __bindgen_anon_1.args[1]),
    )
}

/// Has the kernel call this socket's STATE callbacks, besides those that others asked for.
#[inline(always)]
pub fn watch_state(ctx: &SockOpsContext) {
    let flags = read!(ctx.ops, bpf_sock_ops_cb_flags) | BPF_SOCK_OPS_STATE_CB_FLAG;
    let _ = ctx.set_cb_flags(flags as i32);
}

/// What a packet without a socket shows to `sk_lookup`.
#[derive(Clone, Copy)]
pub struct Lookup {
    /// IP protocol.
    pub protocol: u32,
    /// Where the packet came from.
    pub remote: Addr,
    /// Where it goes.
    pub local: Addr,
    /// Its source port, host byte order.
    pub remote_port: u16,
    /// Its destination port, host byte order.
    pub local_port: u16,
}

/// Reads a `sk_lookup` context.
#[inline(always)]
pub fn sk_lookup(ctx: &SkLookupContext) -> Lookup {
    let raw: *mut bpf_sk_lookup = ctx.lookup;
    let v4 = (read!(raw, remote_ip4), read!(raw, local_ip4));
    let v6 = (read_addr6!(raw, remote_ip6), read_addr6!(raw, local_ip6));
    let (remote, local) = if read!(raw, family) == AF_INET {
        (Addr::from_v4_word(v4.0), Addr::from_v4_word(v4.1))
    } else {
        v6
    };
    Lookup {
        protocol: read!(raw, protocol),
        remote,
        local,
        // Network byte order in the first two bytes, on every kernel (the field was 32 bits wide before 5.17).
        remote_port: u16::from_be(read!(raw, remote_port)),
        local_port: read!(raw, local_port) as u16,
    }
}

/// What is stored with a socket, copied.
#[inline(always)]
pub fn stored(sock: Sock) -> Option<Peer> {
    let found = storage(sock, ptr::null_mut(), 0);
    // SAFETY: not null, so it is the socket's storage, which lives as long as the socket.
    if found.is_null() {
        None
    } else {
        Some(unsafe { *found })
    }
}

/// Stores `peer` with a socket. False when there is no memory for it.
#[inline(always)]
pub fn store(sock: Sock, peer: &Peer) -> bool {
    let found = storage(
        sock,
        ptr::from_ref(peer).cast_mut(),
        u64::from(BPF_SK_STORAGE_GET_F_CREATE),
    );
    if found.is_null() {
        return false;
    }
    // An older value of this socket is returned as it is: write in any case.
    // SAFETY: not null, so it is the socket's storage; only this socket's own hooks touch it.
    unsafe { *found = *peer };
    true
}

/// Forgets what is stored with a socket.
#[inline(always)]
pub fn forget(sock: Sock) {
    // SAFETY: a map and a live socket; absence is no error for us.
    let _ = unsafe { bpf_sk_storage_delete(sockets_map(), sock.0) };
}

#[inline(always)]
fn storage(sock: Sock, value: *mut Peer, flags: u64) -> *mut Peer {
    // SAFETY: a map, a live socket, and null or a valid initial value.
    unsafe { bpf_sk_storage_get(sockets_map(), sock.0, value.cast(), flags) }.cast()
}

#[inline(always)]
fn sockets_map() -> *mut c_void {
    ptr::from_ref(&SOCKETS).cast_mut().cast()
}
