//! The kubelet's probes: `sockops` on the kubelet's own cgroup notes each connection that it opens in the host's namespace, and
//! `sk_lookup` lets those pass that are noted. The agent attaches it only where it has verified that no container is below that cgroup.

use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::programs::SockOpsContext;
use mesh_common::{Counter, FlowKey, PROBE_LIFETIME_NS};

use crate::ctx::{self, Lookup};
use crate::events::{self, Flow};
use crate::flow;
use crate::maps::PROBES;
use crate::mutation::{self, Mechanism};

const TCP_CLOSE: u32 = 7;

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
