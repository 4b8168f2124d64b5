//! The ABI between the BPF programs and the agent: keys, values and constants that both sides compile.
//!
//! Addresses are always 16 bytes in network byte order, IPv4 in its v4-mapped form (RFC 4291, 2.5.5.2), so that one key type
//! serves both families and a v4-mapped IPv6 socket meets the same entries as an IPv4 one. Ports are in host byte order.
//! Nothing here does I/O; nothing here may have padding (BPF keys compare by bytes).
#![no_std]

mod counters;
mod events;
pub mod mutation;

pub use counters::{COUNTERS, Counter};
pub use events::{
    EVENT_BUDGETS, EVENT_BURST, EVENT_INTERVAL, EVENT_LANES, EVENTS_BYTES, Event, event_budget, spend_event,
};

/// Changes whenever a type or constant here, or the meaning of one, changes. Pinned objects carry it.
pub const ABI_VERSION: u32 = 6;

/// First of the ports that captured connections are rewritten to (`podIP:P`). Nobody binds them.
pub const REWRITE_PORT_BASE: u16 = 15104;
/// How many rewrite ports there are. Several, because with one, TIME_WAIT uses up the pod's port range.
pub const REWRITE_PORTS: u16 = 64;

/// Name of the outbound role's port; never an address on the network.
pub const OUTBOUND_PORT: u16 = 15001;
/// Name of the plaintext inbound role's port; never an address on the network.
pub const INBOUND_PORT: u16 = 15006;
/// HBONE inbound: the only agent port that is an address on the network.
pub const HBONE_PORT: u16 = 15008;
/// DNS role; reserved.
pub const DNS_PORT: u16 = 15053;

/// Whether `port` belongs to the agent inside an enrolled pod, so that no application is ever reached on it from outside.
/// Includes [`HBONE_PORT`].
#[inline(always)]
pub const fn is_agent_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PORT | HBONE_PORT | DNS_PORT) || is_rewrite_port(port)
}

/// Whether `port` is one of the rewrite ports.
#[inline(always)]
pub const fn is_rewrite_port(port: u16) -> bool {
    port >= REWRITE_PORT_BASE && port < REWRITE_PORT_BASE + REWRITE_PORTS
}

/// Listener slots: pods per node at most.
pub const MAX_PODS: u32 = 1024;
/// Workers per node at most.
pub const MAX_WORKERS: u32 = 8;
/// Listener banks per pod: a successor fills the idle one and flips [`PodEntry::bank`].
pub const BANKS: u32 = 2;

/// What a listener is for. The numbers index the SOCKMAP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Role {
    /// Connections that a process in the pod opened.
    Outbound = 0,
    /// Connections from off the pod that did not come through a tunnel.
    Inbound = 1,
    /// HBONE connections from other agents, to podIP:15008.
    Tunnel = 2,
}

/// Number of [`Role`]s.
pub const ROLES: u32 = 3;
/// Entries of the SOCKMAP of listeners.
pub const LISTENERS: u32 = MAX_PODS * BANKS * ROLES * MAX_WORKERS;

/// Index of a listener in the SOCKMAP.
#[inline(always)]
pub const fn listener_index(slot: u32, bank: u32, role: Role, worker: u32) -> u32 {
    ((slot * BANKS + bank) * ROLES + role as u32) * MAX_WORKERS + worker
}

/// An IP address as 16 bytes in network byte order, held as four words because BPF contexts are read in words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Addr(pub [u32; 4]);

/// Second half of the v4-mapped prefix `::ffff:0:0/96`, in network byte order.
pub const V4_MAPPED_WORD: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// From an IPv4 address as the kernel holds it: one word in network byte order.
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self([0, 0, V4_MAPPED_WORD, word])
    }

    /// From the 16 bytes of an IPv6 address.
    pub const fn from_octets(o: [u8; 16]) -> Self {
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }

    /// From a standard library address; IPv4 becomes v4-mapped.
    pub const fn from_ip(ip: core::net::IpAddr) -> Self {
        match ip {
            core::net::IpAddr::V4(v4) => Self::from_octets(v4.to_ipv6_mapped().octets()),
            core::net::IpAddr::V6(v6) => Self::from_octets(v6.octets()),
        }
    }

    /// To a standard library address; v4-mapped becomes IPv4.
    pub fn to_ip(self) -> core::net::IpAddr {
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(self.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        core::net::Ipv6Addr::from(octets).to_canonical()
    }

    /// Whether this is an IPv4 address in its v4-mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == V4_MAPPED_WORD
    }

    /// Whether all 128 bits are zero: "no address of this family".
    #[inline(always)]
    pub const fn is_unset(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 0
    }
}

/// A pod under capture; value of the `PODS` map, whose key is the netns cookie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PodEntry {
    /// The pod's IPv4 address (v4-mapped), or unset.
    pub ip4: Addr,
    /// The pod's IPv6 address, or unset.
    pub ip6: Addr,
    /// The pod's place among the listeners, below [`MAX_PODS`].
    pub slot: u32,
    /// The bank of listeners in use, below [`BANKS`].
    pub bank: u32,
    /// How many workers listen for this pod, 1 to [`MAX_WORKERS`].
    pub workers: u32,
    /// Reserved, zero.
    pub flags: u32,
}

/// What one `sk_lookup` instance is told about its pod, in its read-only data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PodConst {
    /// Cookie of the pod's network namespace (`sk_lookup` cannot ask the kernel for it).
    pub netns: u64,
    /// Cookie of the host's network namespace: the agent's own.
    pub host_netns: u64,
}

/// What the node's programs are told of the node, in their read-only data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct NodeConst {
    /// Cookie of the host's network namespace: the agent's own.
    pub host_netns: u64,
}

/// What a port of a pod is set apart for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum PortUse {
    /// A probe or lifecycle hook of the pod names it: the kubelet's connections to it pass.
    Probe = 0,
    /// Inbound connections to it pass.
    ExcludedInbound = 1,
    /// Outbound connections to this port of any host pass.
    ExcludedOutbound = 2,
    /// Inbound connections to any port pass while no agent is there. Its entry has port 0.
    InboundWhenDown = 3,
}

impl PortUse {
    /// The use with this number.
    pub fn from_number(number: u16) -> Option<Self> {
        [
            Self::Probe,
            Self::ExcludedInbound,
            Self::ExcludedOutbound,
            Self::InboundWhenDown,
        ]
        .into_iter()
        .find(|usage| *usage as u16 == number)
    }
}

/// Key of the set of ports that are set apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct PortKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// The port, host byte order.
    pub port: u16,
    /// A [`PortUse`].
    pub usage: u16,
    /// Zero.
    pub pad: u32,
}

impl PortKey {
    /// The key of `port` of the pod in `netns`.
    #[inline(always)]
    pub const fn new(netns: u64, port: u16, usage: PortUse) -> Self {
        Self {
            netns,
            port,
            usage: usage as u16,
            pad: 0,
        }
    }
}

/// Data of a key of the trie of excluded destinations: the kernel compares its leading bits, so the namespace must match as a whole and
/// the address by its prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CidrData {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// 4 or 6: `::/0` is all of IPv6 and nothing of IPv4, whatever form that is held in.
    pub family: u64,
    /// The network, v4-mapped for IPv4.
    pub addr: Addr,
}

impl CidrData {
    /// Of `addr` as the pod in `netns` reaches it.
    #[inline(always)]
    pub const fn new(netns: u64, addr: Addr) -> Self {
        Self {
            netns,
            family: if addr.is_v4() { 4 } else { 6 },
            addr,
        }
    }
}

/// Bits of [`CidrData`] before the address.
pub const CIDR_HEAD_BITS: u32 = 128;
/// Bits of [`CidrData`].
pub const CIDR_BITS: u32 = CIDR_HEAD_BITS + 128;

/// For how long after its `connect` a probe is let pass, nanoseconds: longer than a handshake takes, and short enough that an entry which
/// nobody removed lets nobody else in later.
pub const PROBE_LIFETIME_NS: u64 = 60_000_000_000;

/// Key of the set of addresses that are a pod's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct OwnKey {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// The address.
    pub addr: Addr,
}

/// A connection within one network namespace, seen from the side that opened it.
///
/// The rewrite port is part of the key: the kernel gives the same local port to connections towards different ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// Address of the side that opened the connection.
    pub local: Addr,
    /// Address that it connected to, after any rewrite.
    pub remote: Addr,
    /// Port of the side that opened the connection, host byte order.
    pub local_port: u16,
    /// Port that it connected to, after any rewrite, host byte order.
    pub remote_port: u16,
    /// Zero.
    pub pad: u32,
}

/// An address and port; what a flow entry leads to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Peer {
    /// The address.
    pub addr: Addr,
    /// The port, host byte order.
    pub port: u16,
    /// One of the `PEER_*` constants where stored with a socket; zero in the flow maps.
    pub kind: u16,
}

/// Stored with a client's socket: the destination that the application asked for.
pub const PEER_DESTINATION: u16 = 1;
/// Stored with an application's accepted socket: the real client.
pub const PEER_CLIENT: u16 = 2;
/// Stored with an agent's socket before it connects: the real client that it delivers for.
pub const PEER_DELIVERY: u16 = 3;

/// Stored with a socket of the kubelet's before it connects, where the kubelet shares its cgroup with others: it may be a probe.
pub const PEER_PROBE: u16 = 4;

/// The kubelet's process, where it shares its cgroup with others; the one element of the `KUBELET` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct KubeletProcess {
    /// Id of the cgroup that the process itself is in.
    pub cgroup: u64,
    /// The process, in the numbering of the machine's first pid namespace; zero: none.
    pub tgid: u32,
    /// Zero.
    pub pad: u32,
}

/// Whether the programs write debug lines; the one element of the `LOG_SWITCH` map.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct LogSwitch {
    /// Until when, in nanoseconds of CLOCK_MONOTONIC; zero: off. So it goes off by itself, with or without an agent.
    pub until: u64,
    /// Only for sockets and packets of the network namespace with this cookie; zero: for all.
    pub netns: u64,
}

/// What a debug line ends with besides the [`Counter`]s: what a hook did that is not counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// `sock_ops`: the destination was handed over to the agent.
    HandedOver = 100,
    /// `sock_ops`: the socket closed before the agent took its hand-off, which was forgotten.
    HandOffForgotten = 101,
    /// `sock_ops` on the agent's cgroup: the real client was announced to the application's socket.
    DeliveryAnnounced = 102,
    /// `getpeername`: the application was shown the destination it asked for, or its real client.
    PeerShown = 103,
    /// `getpeername`: the socket is not captured; the application was shown what the kernel knows.
    KernelPeerShown = 104,
}

impl Outcome {
    /// All outcomes with their names.
    pub const ALL: [(Outcome, &'static str); 5] = [
        (Outcome::HandedOver, "handed_over"),
        (Outcome::HandOffForgotten, "hand_off_forgotten"),
        (Outcome::DeliveryAnnounced, "delivery_announced"),
        (Outcome::PeerShown, "peer_shown"),
        (Outcome::KernelPeerShown, "kernel_peer_shown"),
    ];

    /// The name of the [`Counter`] or outcome with this number.
    pub fn name(number: u32) -> Option<&'static str> {
        let outcome = Self::ALL.iter().find(|(outcome, _)| *outcome as u32 == number);
        let outcome = outcome.map(|(_, name)| *name);
        outcome.or_else(|| Counter::from_number(number).map(Counter::name))
    }
}

/// Names of the maps, as the BPF objects declare them and as they are pinned.
pub mod maps {
    /// Hash: netns cookie (u64) → [`PodEntry`](super::PodEntry).
    pub const PODS: &str = "PODS";
    /// Hash: [`OwnKey`](super::OwnKey) → u32, the index of the device that carries the address.
    pub const OWN: &str = "OWN";
    /// Socket storage: [`Peer`](super::Peer) with its kind.
    pub const SOCKETS: &str = "SOCKETS";
    /// Hash: [`FlowKey`](super::FlowKey) → [`Peer`](super::Peer), the original destination.
    pub const HANDOFF: &str = "HANDOFF";
    /// Hash: [`FlowKey`](super::FlowKey) → [`Peer`](super::Peer), the real client.
    pub const DELIVERIES: &str = "DELIVERIES";
    /// SOCKMAP: [`listener_index`](super::listener_index) → listener.
    pub const LISTENERS: &str = "LISTENERS";
    /// Per-CPU array: [`Counter`](super::Counter) → u64.
    pub const COUNTERS: &str = "COUNTERS";
    /// Ring buffer: [`Event`](super::Event)s.
    pub const EVENTS: &str = "EVENTS";
    /// Per-CPU array: [`event_budget`](super::event_budget) → u64, for [`spend_event`](super::spend_event).
    pub const EVENT_BUDGET: &str = "EVENT_BUDGET";
    /// Hash: [`FlowKey`](super::FlowKey), in the host's namespace → u64, when the kubelet connected (monotonic, nanoseconds).
    pub const PROBES: &str = "PROBES";
    /// Array of one: [`KubeletProcess`](super::KubeletProcess).
    pub const KUBELET: &str = "KUBELET";
    /// Hash: [`PortKey`](super::PortKey) → u32 (1).
    pub const PORTS: &str = "PORTS";
    /// LPM trie: [`CidrData`](super::CidrData) → u32 (1).
    pub const CIDRS: &str = "CIDRS";
    /// Array of one: [`LogSwitch`](super::LogSwitch).
    pub const LOG_SWITCH: &str = "LOG_SWITCH";
    /// Ring buffer: debug lines, as aya-log writes them (the name is aya-log's).
    pub const AYA_LOGS: &str = "AYA_LOGS";
    /// Hash: [`Addr`](super::Addr) → u32 (1): addresses behind which somebody is enrolled. The unset address among them stands for all:
    /// there are more than fit.
    pub const ENROLLED: &str = "ENROLLED";
    /// All of them.
    pub const ALL: [&str; 16] = [
        PODS,
        OWN,
        SOCKETS,
        HANDOFF,
        DELIVERIES,
        LISTENERS,
        COUNTERS,
        EVENTS,
        EVENT_BUDGET,
        PROBES,
        KUBELET,
        PORTS,
        CIDRS,
        LOG_SWITCH,
        AYA_LOGS,
        ENROLLED,
    ];
}

/// Names of the programs in the BPF objects.
pub mod programs {
    /// `cgroup/connect4` on a pod's cgroup.
    pub const CONNECT4: &str = "capture_connect4";
    /// `cgroup/connect6` on a pod's cgroup.
    pub const CONNECT6: &str = "capture_connect6";
    /// `cgroup/getpeername4` on a pod's cgroup.
    pub const GETPEERNAME4: &str = "show_peer4";
    /// `cgroup/getpeername6` on a pod's cgroup.
    pub const GETPEERNAME6: &str = "show_peer6";
    /// `cgroup/setsockopt` on a pod's cgroup.
    pub const SETSOCKOPT: &str = "guard_options";
    /// `sockops` on a pod's cgroup.
    pub const POD_SOCK_OPS: &str = "pod_sock_ops";
    /// `sockops` on the agent's own cgroup.
    pub const AGENT_SOCK_OPS: &str = "agent_sock_ops";
    /// `sockops` on the kubelet's cgroup.
    pub const KUBELET_SOCK_OPS: &str = "kubelet_sock_ops";
    /// `cgroup/connect4` on the cgroup that the kubelet shares with others.
    pub const KUBELET_CONNECT4: &str = "kubelet_connect4";
    /// `cgroup/connect6` on the cgroup that the kubelet shares with others.
    pub const KUBELET_CONNECT6: &str = "kubelet_connect6";
    /// `sockops` on the cgroup that the kubelet shares with others.
    pub const SHARED_SOCK_OPS: &str = "shared_sock_ops";
    /// The read-only global of the node object: a [`NodeConst`](super::NodeConst).
    pub const NODE_CONST: &str = "NODE";
    /// `sk_lookup` on a pod's netns.
    pub const SK_LOOKUP: &str = "steer";
    /// The read-only global of the pod object: a [`PodConst`](super::PodConst).
    pub const POD_CONST: &str = "POD";
}

/// Addresses that all pods of a node may have of their own.
pub const MAX_OWN: u32 = 16 * 1024;
/// Addresses of enrolled workloads, and of services that lead to them, in the whole mesh.
pub const MAX_ENROLLED: u32 = 64 * 1024;
/// Connections that may be under way between a pod's `connect` and the agent's `accept`; deliveries likewise.
pub const MAX_FLOWS: u32 = 32 * 1024;
/// Live connections of the kubelet at most that can pass as probes.
pub const MAX_PROBES: u32 = 8 * 1024;
/// Ports of all pods of a node that are set apart, at most.
pub const MAX_PORTS: u32 = 32 * 1024;
/// Excluded networks of all pods of a node, at most.
pub const MAX_CIDRS: u32 = 16 * 1024;

#[cfg(feature = "user")]
mod user;

// No padding: sizes are the sums of the fields'.
const _: () = {
    assert!(size_of::<PodEntry>() == 48);
    assert!(size_of::<OwnKey>() == 24);
    assert!(size_of::<FlowKey>() == 48);
    assert!(size_of::<Peer>() == 20);
    assert!(size_of::<Event>() == 64);
    assert!(size_of::<PortKey>() == 16);
    assert!(size_of::<CidrData>() == 32);
    assert!(size_of::<LogSwitch>() == 16);
    assert!(size_of::<KubeletProcess>() == 16);
    // Numbers of outcomes and of counters do not meet.
    assert!(COUNTERS < Outcome::HandedOver as u32);
};

#[cfg(test)]
mod tests;
