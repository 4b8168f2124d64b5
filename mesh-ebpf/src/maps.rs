//! The maps, shared by all programs of one agent. Their key and value types are in `mesh-common`.

use core::arch::asm;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf, SkStorage, SockMap};
use aya_ebpf::macros::btf_map;
use mesh_common::{
    Addr, CIDR_BITS, COUNTERS as COUNTER_COUNT, CidrData, Counter, EVENT_BUDGETS, EVENTS_BYTES, FlowKey,
    KubeletProcess, LISTENERS as LISTENER_COUNT, LogSwitch, MAX_CIDRS, MAX_ENROLLED, MAX_FLOWS, MAX_OWN,
    MAX_PODS, MAX_PORTS, MAX_PROBES, OwnKey, Peer, PodEntry, PortKey, PortUse,
};

use crate::mutation::{self, Mechanism};

/// Pods under capture, by netns cookie.
#[btf_map]
pub static PODS: HashMap<u64, PodEntry, { MAX_PODS as usize }> = HashMap::new();

/// Addresses that are a pod's own, with the device that carries each.
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

/// The kubelet's connections: when each was opened. An entry goes when its connection does.
#[btf_map]
pub static PROBES: HashMap<FlowKey, u64, { MAX_PROBES as usize }> = HashMap::new();

/// The kubelet's process, where it shares its cgroup with others.
#[btf_map]
pub static KUBELET: Array<KubeletProcess, 1> = Array::new();

/// Ports of pods that are set apart, by their use.
#[btf_map]
pub static PORTS: HashMap<PortKey, u32, { MAX_PORTS as usize }> = HashMap::new();

/// Networks that pods' connections reach uncaptured.
#[btf_map]
pub static CIDRS: LpmTrie<CidrData, u32, { MAX_CIDRS as usize }> = LpmTrie::new();

/// Counts by `mesh_common::Counter`.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { COUNTER_COUNT as usize }> = PerCpuArray::new();

/// Addresses behind which somebody is enrolled; the unset one stands for all. Read only for sockets that are bound to a foreign device,
/// so it takes memory only for what it holds.
#[btf_map]
pub static ENROLLED: HashMap<Addr, u32, { MAX_ENROLLED as usize }, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

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
pub fn is_own(netns: u64, addr: Addr) -> bool {
    let key = OwnKey { netns, addr };
    // SAFETY: only the presence is looked at.
    unsafe { OWN.get(&key) }.is_some() && !mutation::is_off(Mechanism::OwnAddresses)
}

/// Whether `port` of the pod in `netns` is set apart for `usage`.
#[inline(always)]
pub fn is_set_apart(netns: u64, port: u16, usage: PortUse) -> bool {
    // SAFETY: only the presence is looked at.
    unsafe { PORTS.get(&PortKey::new(netns, port, usage)) }.is_some()
}

/// Whether `addr` is in a network that the pod in `netns` excludes.
#[inline(always)]
pub fn is_excluded(netns: u64, addr: Addr) -> bool {
    CIDRS
        .get(&Key::new(CIDR_BITS, CidrData::new(netns, addr)))
        .is_some()
}

/// The index of the device that carries the pod's address `addr`; 0, which no device has, where none does.
#[inline(always)]
pub fn device_of(netns: u64, addr: Addr) -> u32 {
    let key = OwnKey { netns, addr };
    // SAFETY: copied at once.
    unsafe { OWN.get(&key) }.copied().unwrap_or(0)
}

/// Whether somebody behind `addr` is enrolled, or it cannot be told.
#[inline(always)]
pub fn is_enrolled(addr: &Addr) -> bool {
    let all = Addr([0; 4]);
    // SAFETY: only the presence is looked at.
    unsafe { ENROLLED.get(addr).is_some() || ENROLLED.get(&all).is_some() }
}
