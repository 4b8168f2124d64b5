//! What can go wrong with capture, said so that a person knows what to do.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use thiserror::Error;

/// Why the agent cannot capture at all. It exits: it never runs uncaptured.
#[derive(Debug, Error)]
pub enum CaptureError {
    /// The binary holds no BPF programs.
    #[error(
        "this agent was built without BPF programs: run `cargo xtask build`, which builds and embeds them"
    )]
    NotBuilt,
    /// The kernel is too old.
    #[error("Linux {found} is too old: capture needs 5.15 or later (netns cookies in sock_ops)")]
    Kernel {
        /// What runs.
        found: String,
    },
    /// Privileges are missing.
    #[error("missing capabilities: {}. Run the agent as root, or grant it these", .missing.join(", "))]
    Capabilities {
        /// Their names.
        missing: Vec<&'static str>,
    },
    /// No cgroup2 file system is mounted.
    #[error(
        "no cgroup2 file system in /proc/self/mountinfo: mount one (`mount -t cgroup2 none /sys/fs/cgroup/unified`). \
         `ip netns exec` hides /sys/fs/cgroup: enter a namespace with `nsenter --net=…` instead"
    )]
    NoCgroup2,
    /// The agent's own cgroup cannot be told.
    #[error(
        "the agent's own cgroup is not below the cgroup2 mount {mount}: run it in the host's cgroup namespace ({why})"
    )]
    OwnCgroup {
        /// The mount.
        mount: PathBuf,
        /// What was found.
        why: String,
    },
    /// The bpffs cannot be used.
    #[error(
        "no bpffs at {path}: {source}. Mount one (`mount -t bpf bpf /sys/fs/bpf`), or name another directory"
    )]
    Bpffs {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The node has no bpffs, and gets none.
    #[error(
        "no bpffs can be mounted at {path} of the node: {source}. Mount one there (`mount -t bpf bpf {path}`)"
    )]
    NodeBpffs {
        /// Where.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another agent of this node runs.
    #[error("{path} is in use: an agent of this node is running. Stop it first")]
    Locked {
        /// The node's directory on the bpffs.
        path: PathBuf,
    },
    /// The kernel refuses an object, a map or a program.
    #[error("the kernel refused {what}: {why}. See `meshctl check`, and the kernel's log for memory limits")]
    Load {
        /// Which.
        what: String,
        /// In its words, with the verifier's log where there is one.
        why: String,
    },
    /// A file or directory cannot be used.
    #[error("{what}: {source}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Why a pod cannot be captured (now).
#[derive(Debug, Error)]
pub enum EnrolError {
    /// The network namespace is not there.
    #[error("its network namespace {path} cannot be opened: {source}")]
    Netns {
        /// Where it should be.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cgroup is not there.
    #[error("its cgroup {path} cannot be opened: {source}")]
    Cgroup {
        /// Where it should be.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// None of its addresses can be used yet.
    #[error("it has no address")]
    NoAddress,
    /// An address of the pod is not in its network namespace.
    #[error("its address {0} is on no interface of its network namespace")]
    AddressMissing(IpAddr),
    /// The cgroup would not do.
    #[error("its cgroup {path} {why}")]
    CgroupUnfit {
        /// Which.
        path: String,
        /// Why not.
        why: &'static str,
    },
    /// The network namespace is the host's.
    #[error("its network namespace is the agent's own: pods of the host's network are not captured")]
    HostNetns,
    /// Two pods say that they live in one network namespace.
    #[error("its network namespace is captured as that of {0}")]
    NetnsTaken(String),
    /// The namespace routes: what it forwards would go around capture.
    #[error(
        "its network namespace forwards packets between {} (a router or a virtual machine's pod): capture would be a pretence",
        .interfaces.join(", ")
    )]
    Forwards {
        /// The interfaces that are up.
        interfaces: Vec<String>,
    },
    /// The pod's processes are in other cgroups than its own.
    #[error(
        "its process {pid} is in cgroup {found}, not below its cgroup {expected}: what it connects to would not be captured"
    )]
    Astray {
        /// One of its processes.
        pid: u32,
        /// Where that is.
        found: PathBuf,
        /// Where it should be.
        expected: PathBuf,
    },
    /// The namespace's listeners believe the source address of a single packet.
    #[error(
        "net.ipv4.tcp_fastopen of its network namespace has bit 0x200, which takes data without a cookie: packets with forged sources \
         would reach the application. Clear the bit"
    )]
    FastOpenWithoutCookie,
    /// There is no slot left.
    #[error("this node captures {} pods at most", mesh_common::MAX_PODS)]
    Full,
    /// The kernel refused a step.
    #[error("{what}: {why}")]
    Kernel {
        /// Which step.
        what: String,
        /// In its words.
        why: String,
    },
}

impl EnrolError {
    /// Whether it may pass by itself soon: something has not appeared yet.
    pub fn is_pending(&self) -> bool {
        matches!(
            self,
            Self::Netns { .. }
                | Self::Cgroup { .. }
                | Self::NoAddress
                | Self::AddressMissing(_)
                | Self::Kernel { .. }
        )
    }

    /// For `map_err`: names the step that failed.
    pub(super) fn kernel<E: std::error::Error>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Kernel {
            what,
            why: causes(&source),
        }
    }
}

impl CaptureError {
    /// For `map_err`: names the file operation that failed.
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// For `map_err`: names what the kernel refused.
    pub(super) fn load<E: std::error::Error>(what: impl Into<String>) -> impl FnOnce(E) -> Self {
        let what = what.into();
        move |source| Self::Load {
            what,
            why: causes(&source),
        }
    }
}

/// An error with everything behind it, in one line (a verifier's log stays as it is).
pub(super) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
