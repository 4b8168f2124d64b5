//! The maps, shared by all programs of one agent. Their key and value types are in `mesh-common`.

use core::arch::asm;

use aya_ebpf::btf_maps::{Array, HashMap, PerCpuArray, RingBuf, SkStorage, SockMap};
use aya_ebpf::macros::btf_map;
use mesh_common::{
    COUNTERS as COUNTER_COUNT, Counter, EVENT_BUDGETS, EVENTS_BYTES, FlowKey, LISTENERS as LISTENER_COUNT,
    LogSwitch, MAX_FLOWS, MAX_OWN, MAX_PODS, OwnKey, Peer, PodEntry,
};

use crate::mutation::{self, Mechanism};

/// Pods under capture, by netns cookie.
#[btf_map]
pub static PODS: HashMap<u64, PodEntry, { MAX_PODS as usize }> = HashMap::new();

/// Addresses that are a pod's own.
#[btf_map]
pub static OWN: HashMap<OwnKey, u32, { MAX_OWN as usize }> = HashMap::new();

/// What is known of a socket: see the `PEER_*` kinds. Lives and dies with the socket.
#[btf_map]
pub static SOCKETS: SkStorage<Peer> = SkStorage::new();

/// Captured connections that the agent has not accepted yet: their original destinations. Not LRU: an entry that is lost is a
/// connection that is lost.
#[btf_map]
pub static HANDOFF: HashMap<FlowKey, Peer, { MAX_FLOWS as usize }> = HashMap::new();

/// Deliveries that the application's socket has not taken up yet: their real clients.
#[btf_map]
pub static DELIVERIES: HashMap<FlowKey, Peer, { MAX_FLOWS as usize }> = HashMap::new();

/// The agent's listeners, by `mesh_common::listener_index`.
#[btf_map]
pub static LISTENERS: SockMap<{ LISTENER_COUNT as usize }> = SockMap::new();

/// Counts by `mesh_common::Counter`.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { COUNTER_COUNT as usize }> = PerCpuArray::new();

/// What was refused, dropped or lost, one by one: `mesh_common::Event`s. (Declared without a value: libbpf refuses a ring buffer that has one.)
#[btf_map]
pub static EVENTS: RingBuf<(), { EVENTS_BYTES as usize }> = RingBuf::new();

/// Budgets of events, by `mesh_common::event_budget`.
#[btf_map]
pub static EVENT_BUDGET: PerCpuArray<u64, { EVENT_BUDGETS as usize }> = PerCpuArray::new();

/// Whether debug lines are written.
#[btf_map]
pub static LOG_SWITCH: Array<LogSwitch, 1> = Array::new();

/// Adds one to a counter. Atomically: on this CPU, a program that was interrupted may be in the middle of the same.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // `core` has no atomic addition for this target.
        // SAFETY: the kernel returned this CPU's slot: eight bytes, aligned, valid while the program runs.
        unsafe { asm!("lock *(u64 *)({slot} + 0) += {one}", slot = in(reg) slot, one = in(reg) 1u64) };
    }
}

/// The entry of the pod with this netns cookie, copied.
#[inline(always)]
pub fn pod(netns: u64) -> Option<PodEntry> {
    // SAFETY: copied at once; an update swaps elements under RCU.
    unsafe { PODS.get(&netns) }.copied()
}

/// Whether `addr` is one of the pod's own addresses.
#[inline(always)]
pub fn is_own(netns: u64, addr: mesh_common::Addr) -> bool {
    let key = OwnKey { netns, addr };
    // SAFETY: only the presence is looked at.
    unsafe { OWN.get(&key) }.is_some() && !mutation::is_off(Mechanism::OwnAddresses)
}
