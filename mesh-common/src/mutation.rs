//! Names of the mechanisms that a test build can switch off, one at a time, to prove that a test would notice (`cargo xtask e2e
//! --mutate`), and the question each of them asks at its place: [`is_off`].
//!
//! Without the feature `mutants`, which nothing turns on by default, the answer is a constant no: nothing can be switched off in a build
//! that anybody ships. The BPF programs ask a read-only global of their own (`mesh-ebpf/src/mutation.rs`), by the same numbers.

macro_rules! mechanisms {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// A mechanism that a test build can switch off.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        #[expect(clippy::manual_non_exhaustive, reason = "the number zero means nothing to the BPF programs")]
        pub enum Mechanism {
            /// Never switched off.
            #[doc(hidden)]
            Nothing,
            $($(#[$doc])+ $variant,)+
        }

        impl Mechanism {
            /// All of them.
            pub const ALL: &'static [Mechanism] = &[$(Mechanism::$variant),+];

            /// The name by which it is switched off.
            pub const fn name(self) -> &'static str {
                match self {
                    Mechanism::Nothing => "nothing",
                    $(Mechanism::$variant => $name,)+
                }
            }
        }
    };
}

mechanisms! {
    /// A peer's certificate names exactly one workload; with it off, the first URI counts.
    PeerSan = "peer-san",
    /// The server proves to be the workload that was dialled.
    ExpectedId = "expected-id",
    /// What is checked again after each handshake, since rustls calls no verifier on a resumed one.
    Recheck = "recheck",
    /// TLS peers are of our trust domain, or of an alias.
    TrustDomain = "trust-domain",
    /// The decision about an inbound connection asks for the trust domain, too.
    PlanTrustDomain = "plan-trust-domain",
    /// A TLS client must show a certificate.
    ClientCertificate = "client-certificate",
    /// A CONNECT names an address of the pod that it reached, and nothing else.
    Authority = "authority",
    /// Certificates are renewed before they run out.
    Rotation = "rotation",
    /// Sessions are forgotten when a certificate or the bundle changes.
    ForgetSessions = "forget-sessions",
    /// The CA's files are read only where nobody else can read or change them.
    KeyPermissions = "key-permissions",
    /// `cgroup/connect4` captures.
    Connect4 = "connect4",
    /// `cgroup/connect6` captures.
    Connect6 = "connect6",
    /// `cgroup/getpeername4` shows the true peer.
    GetPeerName4 = "getpeername4",
    /// `cgroup/getpeername6` shows the true peer.
    GetPeerName6 = "getpeername6",
    /// `sock_ops` hands the original destination over.
    Handoff = "handoff",
    /// `sk_lookup` steers what comes from off the pod.
    Steering = "steering",
    /// `sk_lookup` asks for a listener without the selection within a reuseport group; with it off, the listeners also join one.
    NoReuseport = "no-reuseport",
    /// The agent's listeners join no reuseport group.
    LoneListeners = "lone-listeners",
    /// The agent's listeners, and with them the connections that they accept, leave the application its port (SO_REUSEADDR).
    ReuseAddress = "reuse-address",
    /// Captured connections are spread over the rewrite ports.
    RewriteSpread = "rewrite-spread",
    /// The agent takes the hand-off out of the map when it accepts.
    HandoffTaken = "handoff-taken",
    /// The pod's own addresses are not captured and not steered.
    OwnAddresses = "own-addresses",
    /// Agent ports of a pod cannot be reached from off the pod.
    AgentPortDrop = "agent-port-drop",
    /// A flow for which no listener is there is dropped, not passed.
    NoListenerDrop = "no-listener-drop",
    /// STRICT refuses plaintext.
    StrictDrop = "strict-drop",
    /// A destination that is enrolled is reached through a tunnel, never in plaintext.
    TunnelToEnrolled = "tunnel-to-enrolled",
    /// Pooled connections to a workload that is not what it was are dropped.
    PoolPruning = "pool-pruning",
    /// Connections of a pod that is no longer ours are ended.
    Retirement = "retirement",
    /// The application is shown the real client.
    ClientAnnouncement = "client-announcement",
    /// The end of one direction is the end of that direction on the other side.
    HalfClose = "half-close",
    /// A reset on one side is a reset on the other.
    ResetPropagation = "reset-propagation",
    /// A connection takes no more streams than its window has room for, all stalled.
    StreamCap = "stream-cap",
    /// A pod's connections on a worker are limited.
    ConnectionBudget = "connection-budget",
    /// The streams that other agents open to a pod on a worker are limited.
    StreamBudget = "stream-budget",
    /// A pod's TLS handshakes under way on a worker are limited.
    HandshakeBudget = "handshake-budget",
    /// The last good version of an object stays in force while its document is bad.
    LastGoodState = "last-good-state",
    /// A socket that is bound to a device which does not carry the pod's address reaches nobody enrolled.
    ForeignDevice = "foreign-device",
    /// An application may not take data of TCP Fast Open without a cookie.
    FastOpenCookie = "fast-open-cookie",
    /// Probes pass only where the kubelet's cgroup is verified to hold nothing of a container.
    ProbeCgroup = "probe-cgroup",
    /// Where the kubelet shares its cgroup, a probe passes only if the kubelet's own process opened it, from that very cgroup.
    ProbeProcess = "probe-process",
    /// A probe passes only if it was opened in the host's network namespace.
    ProbeNetns = "probe-netns",
    /// A probe passes only to a port that the pod declares for one.
    ProbePort = "probe-port",
    /// No inbound port is excluded from capture where it is STRICT.
    StrictExclusion = "strict-exclusion",
    /// Connections that are older than capture are closed where STRICT would have refused them.
    OlderClosed = "older-closed",
    /// A client keeps its endpoint where the Service wants it to (sessionAffinity).
    SessionAffinity = "session-affinity",
    /// Streams to a workload that is gone end at once.
    GoneAtOnce = "gone-at-once",
    /// Under internalTrafficPolicy Local only endpoints of the client's node are picked.
    NodeLocal = "node-local",
    /// An endpoint on its way out is picked only where no other is ready.
    LeavingLast = "leaving-last",
    /// A peer that floods with frames which flow control does not slow is cut.
    FloodGuard = "flood-guard",
    /// A peer that opens streams and resets them before they are looked at is cut.
    RapidReset = "rapid-reset",
    /// A peer's header lists are limited.
    HeaderLimit = "header-limit",
    /// A TLS handshake that takes too long is given up.
    HandshakeTimeout = "handshake-timeout",
    /// What the BPF programs refuse or drop is told as an event.
    EventsTold = "events-told",
    /// What a policy denies is refused, whatever others allow.
    DenyWins = "deny-wins",
    /// Where policies allow somebody, whom none of them allows is refused.
    AllowNeeded = "allow-needed",
    /// Policies of the root namespace hold for the whole mesh.
    RootPolicies = "root-policies",
    /// The kernel's side forgets the hand-off of a connection that is reset before the agent accepts it.
    HandoffForgotten = "handoff-forgotten",
    /// The agent takes back the hand-off of a connection that it accepted and does not carry.
    HandoffTakenBack = "handoff-taken-back",
    /// The pinned maps of an earlier agent are adopted only under the same ABI.
    AbiVersion = "abi-version",
    /// A pinned link is adopted only where it is attached to the pod as it is now.
    LinkTarget = "link-target",
    /// A successor makes its own listeners those that count.
    BankFlip = "bank-flip",
    /// What an earlier agent let pass uncaptured is compared with what may pass now.
    AdoptedRules = "adopted-rules",
    /// What an earlier agent had captured, and nobody wants captured any more, is let go.
    AdoptedLeftovers = "adopted-leftovers",
    /// An AuthorizationPolicy decides who may connect.
    Authorize = "authorize",
    /// Connections that stand are judged again when what decides about them changes.
    ReJudging = "re-judging",
}

/// The variable that names the mechanism to switch off.
pub const VARIABLE: &str = "MESH_MUTATION";

/// The read-only global of the BPF objects that says which mechanism is off.
pub const GLOBAL: &str = "MUTATION";

/// Whether this build has `mechanism` switched off. A constant `false` in every build but the test build.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_off(_mechanism: Mechanism) -> bool {
    false
}

#[cfg(feature = "mutants")]
pub use chosen::{is_off, number, unknown};

#[cfg(feature = "mutants")]
mod chosen {
    extern crate std;

    use std::string::String;
    use std::sync::OnceLock;

    use super::{Mechanism, VARIABLE};

    struct Chosen {
        number: u32,
        unknown: Option<String>,
    }

    fn chosen() -> &'static Chosen {
        static CHOSEN: OnceLock<Chosen> = OnceLock::new();
        CHOSEN.get_or_init(|| {
            let name = std::env::var(VARIABLE).unwrap_or_default();
            let found = Mechanism::ALL.iter().find(|mechanism| mechanism.name() == name);
            Chosen {
                number: found.map_or(0, |mechanism| *mechanism as u32),
                unknown: (found.is_none() && !name.is_empty()).then_some(name),
            }
        })
    }

    /// Whether `mechanism` is the one that is switched off.
    pub fn is_off(mechanism: Mechanism) -> bool {
        chosen().number == mechanism as u32
    }

    /// The number of the mechanism that is switched off, 0 for none: for the BPF programs.
    pub fn number() -> &'static u32 {
        &chosen().number
    }

    /// What the variable asks for, if it is not the name of a mechanism: the agent must not start then.
    pub fn unknown() -> Option<&'static str> {
        chosen().unknown.as_deref()
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::Mechanism;

    #[test]
    fn mechanisms_have_names_of_their_own() {
        let names: std::collections::HashSet<_> = Mechanism::ALL.iter().map(|m| m.name()).collect();
        assert_eq!(names.len(), Mechanism::ALL.len());
        assert!(Mechanism::ALL.iter().all(|m| *m as u32 != 0));
    }

    #[cfg(not(feature = "mutants"))]
    #[test]
    fn nothing_can_be_switched_off_without_the_feature() {
        const OFF: bool = super::is_off(Mechanism::PeerSan);
        const { assert!(!OFF) };
    }
}
