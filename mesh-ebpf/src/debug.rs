//! Debug lines, a line per hook: what came in and what became of it. Off they cost one read of an array. Each ends with `#` and the number
//! of a `mesh_common::Counter` or `Outcome`, for which the agent writes the name: BPF programs have no tables of strings.

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use mesh_common::{Addr, FlowKey};

use crate::maps::LOG_SWITCH;

/// What a line is about: address and port.
pub type End = (Addr, u16);

/// Whether there is to be a line. `netns` is asked for only when the switch is on.
#[inline(always)]
pub fn is_on(netns: impl FnOnce() -> u64) -> bool {
    let Some(switch) = LOG_SWITCH.get(0) else {
        return false;
    };
    if switch.until == 0 {
        return false;
    }
    // SAFETY: takes nothing, returns a number.
    let now = unsafe { bpf_ktime_get_ns() };
    now < switch.until && (switch.netns == 0 || switch.netns == netns())
}

/// A line about a flow: of `connect`, `sock_ops` or `sk_lookup`.
#[inline(always)]
pub fn flow<C: EbpfContext>(ctx: &C, hook: &'static str, netns: u64, from: End, to: End, became: u32) {
    debug!(
        ctx, target: hook, "netns {} [{:i}]:{} -> [{:i}]:{} #{}", netns, octets(from.0), from.1, octets(to.0), to.1, became
    );
}

/// A line about one end: of `connect` or `getpeername`.
#[inline(always)]
pub fn end<C: EbpfContext>(ctx: &C, hook: &'static str, netns: u64, end: End, became: u32) {
    debug!(ctx, target: hook, "netns {} [{:i}]:{} #{}", netns, octets(end.0), end.1, became);
}

/// What a `sock_ops` hook has to say.
///
/// A hook returns it from a function of its own, and another one writes the line: kernels before 6.13 allow a program and the functions
/// that it is in at one time 512 bytes of stack together ("combined stack size of 3 calls is 544. Too large"), and so the one's stack is
/// free again when the other runs.
pub struct Line {
    /// The flow, as its opener sees it.
    pub key: FlowKey,
    /// Whom the application knows at the other end.
    pub other: End,
    /// What became of it.
    pub became: u32,
}

/// A line of `sock_ops`: the flow's opener, and whom the application knows at the other end.
#[inline(never)]
pub fn sock_ops(ctx: &SockOpsContext, line: &Line) {
    let Line { key, other, became } = line;
    if is_on(|| key.netns) {
        flow(
            ctx,
            "sock_ops",
            key.netns,
            (key.local, key.local_port),
            *other,
            *became,
        );
    }
}

#[inline(always)]
fn octets(addr: Addr) -> [u8; 16] {
    let [a, b, c, d] = addr.0.map(u32::to_ne_bytes);
    [
        a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3],
    ]
}
