//! Kernel events and the debug log of the BPF programs.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// `GET /bpf/events`: what the BPF programs refused, dropped or lost of late, the oldest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BpfEvents {
    /// The latest ones.
    pub events: Vec<BpfEventEntry>,
    /// How many were only counted, because there were too many of their kind.
    pub suppressed: u64,
}

/// A kernel event.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfEventEntry {
    /// When it happened.
    pub at: String,
    /// What: the name of the counter that has it.
    pub event: String,
    /// The workload that it befell, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<String>,
    /// Cookie of the network namespace.
    pub netns_cookie: u64,
    /// The side that opened the connection, where it had an address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<SocketAddr>,
    /// Where it went.
    pub to: SocketAddr,
    /// IP protocol.
    pub protocol: String,
    /// The process that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// That process's name, where it still ran when the event was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<String>,
    /// What happened, and what to do about it.
    pub advice: String,
}

/// Whether the BPF programs write debug lines; the answer of `POST /bpf/log`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct BpfLog {
    /// Whether they do.
    pub on: bool,
    /// For how much longer.
    pub remaining_seconds: u64,
    /// Only for this pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// What `POST /bpf/log` asks for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BpfLogWanted {
    /// On or off.
    pub on: bool,
    /// For how long; it goes off by itself.
    #[serde(default)]
    pub seconds: u64,
    /// Only for the pod `namespace/name`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
}

/// `GET /bpf`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Bpf {
    /// Version of the ABI between the programs and the agent.
    pub abi_version: u32,
    /// Where the pins are.
    pub bpffs: String,
    /// The directory below that with the maps and links in use.
    #[serde(default)]
    pub run: String,
    /// Whether an earlier agent began it.
    #[serde(default)]
    pub adopted: bool,
    /// The cgroup2 mount.
    pub cgroup2: String,
    /// The agent's own cgroup, whose sockets are never captured.
    pub agent_cgroup: String,
    /// The node's programs. Each pod has one more, its `sk_lookup`.
    pub programs: Vec<BpfProgram>,
    /// The pods whose sockets are steered.
    pub pods: Vec<BpfPod>,
    /// The maps.
    pub maps: Vec<BpfMap>,
    /// What the programs have counted.
    pub events: Vec<BpfEvent>,
    /// Whether the programs write debug lines.
    #[serde(default)]
    pub log: BpfLog,
}

/// A loaded program.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfProgram {
    /// Its name.
    pub name: String,
    /// The kernel's id, as in `bpftool prog`.
    pub id: u32,
}

/// A pod in the kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfPod {
    /// The workload's uid.
    pub workload: String,
    /// Cookie of its network namespace.
    pub netns_cookie: u64,
    /// Its place in the listener map.
    pub slot: u32,
    /// Which of the two banks of its listeners is in use: a successor fills the other one.
    #[serde(default)]
    pub bank: u32,
    /// All addresses of its network namespace.
    pub addresses: Vec<IpAddr>,
    /// What is attached for it.
    pub links: Vec<BpfLink>,
    /// Agent ports on which something in the pod listens: never reached from off the pod.
    pub shadowed_ports: Vec<u16>,
    /// Whether its listeners take data of TCP Fast Open without a cookie, by a setting changed since it was captured.
    #[serde(default)]
    pub believes_first_packets: bool,
    /// Programs of others that see its sockets.
    #[serde(default)]
    pub foreign: Vec<BpfForeign>,
}

/// A program of somebody else that sees the sockets of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BpfForeign {
    /// Where: a hook of the pod's cgroup or of one above it, or `sk_lookup` in its network namespace.
    pub hook: String,
    /// The kernel's id, as in `bpftool prog`.
    pub id: u32,
    /// Its name, where it has one.
    pub name: String,
}

/// A program attached for a pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfLink {
    /// Where.
    pub hook: String,
    /// The kernel's id of the link, as in `bpftool link`.
    pub id: u32,
    /// The kernel's id of the program.
    pub program: u32,
}

/// A BPF map.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfMap {
    /// Its name.
    pub name: String,
    /// Entries in it; absent where they cannot be counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entries: Option<u64>,
    /// Entries at most.
    pub capacity: u64,
}

/// A counter of the BPF programs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BpfEvent {
    /// What is counted.
    pub event: String,
    /// How often.
    pub count: u64,
}
