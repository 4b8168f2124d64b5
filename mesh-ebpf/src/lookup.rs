//! Steering: `sk_lookup`, one instance per pod's network namespace, chooses the agent's listener for packets that open a connection.

use aya_ebpf::programs::SkLookupContext;
use mesh_common::{
    Counter, FlowKey, HBONE_PORT, PodEntry, PortUse, Role, is_agent_port, is_rewrite_port, listener_index,
};

use crate::ctx::Lookup;
use crate::debug;
use crate::events::{self, Flow};
use crate::flow::is_loopback;
use crate::maps::{HANDOFF, LISTENERS, count, is_own, is_set_apart, pod};
use crate::mutation::{self, Mechanism};
use crate::probe;

const IPPROTO_TCP: u32 = events::TCP;
/// Without this flag the kernel selects anew within the listener's reuseport group, which others could join.
const BPF_SK_LOOKUP_F_NO_REUSEPORT: u64 = 1 << 1;
/// Another agent's instance may have chosen before us while this one takes over.
const BPF_SK_LOOKUP_F_REPLACE: u64 = 1;

/// What becomes of the packet.
#[derive(Clone, Copy)]
pub enum Steering {
    /// The kernel goes on as ever (or to the listener that was assigned); it was counted as this.
    Pass(Counter),
    /// It is refused; it was counted as this.
    Drop(Counter),
}

/// Decides on a packet that opens a connection in the namespace with cookie `netns` (that of the host is `host`), counts it, and tells the agent of what goes wrong.
///
/// SYN cookies run this again on the handshake's last packet: the answer must not change in between.
#[inline(always)]
pub fn steer(ctx: &SkLookupContext, packet: &Lookup, netns: u64, host: u64) -> Steering {
    let steering = if packet.protocol != IPPROTO_TCP {
        return Steering::Pass(Counter::LookupPassed);
    } else if is_loopback(&packet.remote) || is_own(netns, packet.remote) {
        steer_local(ctx, packet, netns)
    } else {
        match packet.local_port {
            _ if mutation::is_off(Mechanism::Steering) => Steering::Pass(Counter::LookupPassed),
            HBONE_PORT => assign(ctx, packet, netns, Role::Tunnel),
            port if is_agent_port(port) && !mutation::is_off(Mechanism::AgentPortDrop) => {
                Steering::Drop(Counter::DroppedAgentPort)
            }
            port if is_set_apart(netns, port, PortUse::ExcludedInbound) => {
                Steering::Pass(Counter::InboundExcluded)
            }
            port if is_set_apart(netns, port, PortUse::Probe) && probe::is_under_way(packet, host) => {
                Steering::Pass(Counter::ProbesPassed)
            }
            _ => assign(ctx, packet, netns, Role::Inbound),
        }
    };
    match steering {
        Steering::Drop(what)
        | Steering::Pass(what @ (Counter::LookupMissed | Counter::InboundPassedAgentDown)) => {
            events::report(what, &flow(packet, netns));
        }
        Steering::Pass(what) => count(what),
    }
    if debug::is_on(|| netns) {
        let (Steering::Pass(became) | Steering::Drop(became)) = steering;
        let (from, to) = (
            (packet.remote, packet.remote_port),
            (packet.local, packet.local_port),
        );
        debug::flow(ctx, "sk_lookup", netns, from, to, became as u32);
    }
    steering
}

#[inline(always)]
fn flow(packet: &Lookup, netns: u64) -> Flow {
    Flow {
        netns,
        local: (packet.remote, packet.remote_port),
        remote: (packet.local, packet.local_port),
        protocol: packet.protocol,
        pid: 0,
    }
}

/// Traffic of the pod with itself: ours only where a captured connection's hand-off is waiting for it.
#[inline(always)]
fn steer_local(ctx: &SkLookupContext, packet: &Lookup, netns: u64) -> Steering {
    if is_rewrite_port(packet.local_port) {
        let key = FlowKey {
            netns,
            local: packet.remote,
            remote: packet.local,
            local_port: packet.remote_port,
            remote_port: packet.local_port,
            pad: 0,
        };
        // SAFETY: only the presence is looked at.
        if unsafe { HANDOFF.get(&key) }.is_some() {
            return assign(ctx, packet, netns, Role::Outbound);
        }
        if looks_captured(packet, netns) {
            return Steering::Pass(Counter::LookupMissed);
        }
    }
    Steering::Pass(Counter::LookupPassed)
}

/// Whether a packet for a rewrite port goes where `connect` rewrites to: the pod's first address. Nothing tells such a packet without a
/// hand-off from the application's own traffic, should it choose one of these ports, or from a late packet of a connection that was
/// reset: so it passes, counted and told.
#[inline(always)]
fn looks_captured(packet: &Lookup, netns: u64) -> bool {
    pod(netns).is_some_and(|pod| packet.local == pod.ip4 || packet.local == pod.ip6)
}

#[inline(always)]
fn assign(ctx: &SkLookupContext, packet: &Lookup, netns: u64, role: Role) -> Steering {
    let Some(pod) = pod(netns) else {
        return Steering::Drop(Counter::DroppedNoPod);
    };
    let worker = hash(packet) % pod.workers.max(1);
    if !assign_worker(ctx, &pod, role, worker) && !assign_worker(ctx, &pod, role, 0) {
        if mutation::is_off(Mechanism::NoListenerDrop) {
            return Steering::Pass(Counter::DroppedNoListener);
        }
        if matches!(role, Role::Inbound) && is_set_apart(netns, 0, PortUse::InboundWhenDown) {
            return Steering::Pass(Counter::InboundPassedAgentDown);
        }
        return Steering::Drop(Counter::DroppedNoListener);
    }
    Steering::Pass(match role {
        Role::Outbound => Counter::SteeredOutbound,
        Role::Inbound => Counter::SteeredInbound,
        Role::Tunnel => Counter::SteeredTunnel,
    })
}

#[inline(always)]
fn assign_worker(ctx: &SkLookupContext, pod: &PodEntry, role: Role, worker: u32) -> bool {
    let index = listener_index(pod.slot, pod.bank, role, worker);
    let flags = match mutation::is_off(Mechanism::NoReuseport) {
        false => BPF_SK_LOOKUP_F_NO_REUSEPORT | BPF_SK_LOOKUP_F_REPLACE,
        true => BPF_SK_LOOKUP_F_REPLACE,
    };
    LISTENERS.redirect_sk_lookup(ctx, index, flags).is_ok()
}

/// Spreads connections over workers; multiplicative (Fibonacci) hashing of the 4-tuple.
#[inline(always)]
fn hash(packet: &Lookup) -> u32 {
    const GOLDEN: u32 = 0x9e37_79b9;
    let ports = (u32::from(packet.remote_port) << 16) | u32::from(packet.local_port);
    let mut h = ports.wrapping_mul(GOLDEN);
    h = (h ^ packet.remote.0[0] ^ packet.local.0[0]).wrapping_mul(GOLDEN);
    h = (h ^ packet.remote.0[1] ^ packet.local.0[1].rotate_left(8)).wrapping_mul(GOLDEN);
    h = (h ^ packet.remote.0[2] ^ packet.local.0[2].rotate_left(16)).wrapping_mul(GOLDEN);
    h = (h ^ packet.remote.0[3] ^ packet.local.0[3].rotate_left(24)).wrapping_mul(GOLDEN);
    h ^ (h >> 16)
}
