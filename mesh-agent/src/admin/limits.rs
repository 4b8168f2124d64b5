//! What capture does not see, in short. No claim of the agent is larger than this list allows; the README says the same at length.

/// One sentence each.
pub const LIMITS: [&str; 7] = [
    "Inbound capture is the security boundary; outbound capture is not one against hostile code in a pod.",
    "UDP, QUIC and SCTP pass uncaptured (connected UDP sockets are counted).",
    "Raw and packet sockets (CAP_NET_RAW) go around the agent; what stops them is the policy at the destination.",
    "Sockets passed into a pod from outside keep the hooks of the cgroup in which they were made.",
    "Connections older than a pod's enrolment stay as they are until they close.",
    "Destinations at a pod's own, loopback, link-local and multicast addresses are left alone.",
    "Host-network pods, sandboxed runtimes (gVisor, Kata), KubeVirt and forwarding namespaces are not enrolled.",
];
