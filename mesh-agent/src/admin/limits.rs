//! What capture does not see, in short. No claim of the agent is larger than this list allows; docs/limits.md says the same at length.

/// One sentence each.
pub const LIMITS: [&str; 11] = [
    "Inbound capture is the security boundary; outbound capture is not one against hostile code in a pod.",
    "UDP, QUIC and SCTP pass uncaptured (connected UDP sockets are counted).",
    "Raw and packet sockets (CAP_NET_RAW) go around the agent; what stops them is the policy at the destination.",
    "Sockets passed into a pod from outside keep the hooks of the cgroup in which they were made.",
    "Processes moved out of a pod's cgroup make sockets that are not captured (CAP_SYS_ADMIN, or write access to the cgroup).",
    "Connections older than a pod's enrolment stay as they are until they close.",
    "Destinations at a pod's own, loopback, IPv6 link-local (counted) and multicast addresses are left alone.",
    "Sockets bound to a device that does not carry the pod's address pass (counted), but never to an enrolled destination.",
    "MPTCP clients are captured as TCP; getpeername() on such a socket shows the pod's own address.",
    "TCP Fast Open without a cookie is refused, except on listeners older than enrolment and by routes (fastopen_no_cookie).",
    "Host-network pods, sandboxed runtimes (gVisor, Kata), KubeVirt and forwarding namespaces are not enrolled.",
];
