//! The maps, shared by all programs of one agent. Their key and value types are in `mesh-common`.

use aya_ebpf::btf_maps::{HashMap, PerCpuArray, SkStorage, SockMap};
use aya_ebpf::macros::btf_map;
use mesh_common::{
    COUNTERS as COUNTER_COUNT, Counter, FlowKey, LISTENERS as LISTENER_COUNT, MAX_FLOWS, MAX_OWN, MAX_PODS,
    OwnKey, Peer, PodEntry,
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

/// Adds one to a counter.
#[inline(always)]
pub fn count(counter: Counter) {
    if let Some(slot) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the kernel returned this CPU's slot, and a BPF program is not preempted by itself on it.
        unsafe { *slot += 1 };
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
