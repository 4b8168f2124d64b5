//! What the programs count.

/// What the BPF programs count; index of the per-CPU `COUNTERS` array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Counter {
    /// Connections rewritten towards the agent.
    ConnectCaptured = 0,
    /// Connections to loopback, unspecified, own or multicast addresses: left alone.
    ConnectPassed = 1,
    /// Connections refused because the socket's network namespace is not the pod's.
    ConnectRefusedNetns = 2,
    /// Connections refused because the pod has no address of the destination's family.
    ConnectRefusedFamily = 3,
    /// Connections refused because the socket's storage could not be written.
    ConnectRefusedStorage = 4,
    /// Hand-off entries that did not fit into the map: the connection is refused.
    HandoffFull = 5,
    /// Delivery entries that did not fit into the map: the application sees the agent's address.
    DeliveryFull = 6,
    /// Outbound flows steered to a listener.
    SteeredOutbound = 7,
    /// Plaintext inbound flows steered to a listener.
    SteeredInbound = 8,
    /// HBONE flows steered to a listener.
    SteeredTunnel = 9,
    /// Local traffic of the pod, left alone.
    LookupPassed = 10,
    /// Inbound flows dropped: they came from off the pod to an agent port.
    DroppedAgentPort = 11,
    /// Flows dropped because no listener was there (the agent is away).
    DroppedNoListener = 12,
    /// Flows dropped because the pod's entry was missing.
    DroppedNoPod = 13,
    /// UDP associations of enrolled pods (connected sockets): pass.
    UdpPassed = 14,
    /// Stream sockets of another protocol than TCP: refused, because they cannot be captured. (MPTCP shows its first subflow, which is TCP.)
    ConnectRefusedProtocol = 15,
    /// Applications' accepted sockets that were given their real client.
    ClientsShown = 16,
    /// Packets for a rewrite port that looked captured and had no hand-off: left alone, so that the kernel answers as it would anyway.
    LookupMissed = 17,
    /// Events that were not told one by one: over the budget of their kind, or no room in the ring buffer. Their counters have them.
    EventsSuppressed = 18,
    /// Probes of the kubelet that passed to the application as they are.
    ProbesPassed = 19,
    /// Probes that did not fit into the map: captured like other connections.
    ProbesFull = 20,
    /// Connections to destinations that the pod's annotations exclude: left alone.
    ConnectExcluded = 21,
    /// Inbound connections to ports that the pod's annotations exclude: left alone.
    InboundExcluded = 22,
    /// Connections of sockets bound to a device that does not carry the pod's address: left alone, since nobody behind them is enrolled.
    ConnectPassedDevice = 23,
    /// Such connections to an enrolled destination: refused.
    ConnectRefusedDevice = 24,
    /// Connections to IPv6 link-local addresses, which may be off the pod: left alone.
    ConnectPassedLinkLocal = 25,
    /// Sockets that asked to take data of TCP Fast Open without a cookie: not allowed.
    FastOpenRefused = 26,
    /// Inbound connections that passed because no agent was there and the pod's annotation asks for that.
    InboundPassedAgentDown = 27,
}

/// Number of [`Counter`]s.
pub const COUNTERS: u32 = 28;

impl Counter {
    /// All counters with the names that `meshctl` and the metrics show.
    pub const ALL: [(Counter, &'static str); COUNTERS as usize] = [
        (Counter::ConnectCaptured, "connect_captured"),
        (Counter::ConnectPassed, "connect_passed"),
        (Counter::ConnectRefusedNetns, "connect_refused_netns"),
        (Counter::ConnectRefusedFamily, "connect_refused_family"),
        (Counter::ConnectRefusedStorage, "connect_refused_storage"),
        (Counter::HandoffFull, "handoff_full"),
        (Counter::DeliveryFull, "delivery_full"),
        (Counter::SteeredOutbound, "steered_outbound"),
        (Counter::SteeredInbound, "steered_inbound"),
        (Counter::SteeredTunnel, "steered_tunnel"),
        (Counter::LookupPassed, "lookup_passed"),
        (Counter::DroppedAgentPort, "dropped_agent_port"),
        (Counter::DroppedNoListener, "dropped_no_listener"),
        (Counter::DroppedNoPod, "dropped_no_pod"),
        (Counter::UdpPassed, "udp_passed"),
        (Counter::ConnectRefusedProtocol, "connect_refused_protocol"),
        (Counter::ClientsShown, "clients_shown"),
        (Counter::LookupMissed, "lookup_missed"),
        (Counter::EventsSuppressed, "events_suppressed"),
        (Counter::ProbesPassed, "probes_passed"),
        (Counter::ProbesFull, "probes_full"),
        (Counter::ConnectExcluded, "connect_excluded"),
        (Counter::InboundExcluded, "inbound_excluded"),
        (Counter::ConnectPassedDevice, "connect_passed_device"),
        (Counter::ConnectRefusedDevice, "connect_refused_device"),
        (Counter::ConnectPassedLinkLocal, "connect_passed_link_local"),
        (Counter::FastOpenRefused, "fast_open_refused"),
        (Counter::InboundPassedAgentDown, "inbound_passed_agent_down"),
    ];

    /// The counter with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(number as usize).map(|(counter, _)| *counter)
    }

    /// The name that `meshctl` and the metrics show.
    pub fn name(self) -> &'static str {
        // `ALL` is in the order of the numbers (tested below).
        Self::ALL.get(self as usize).map_or("", |(_, name)| name)
    }
}
