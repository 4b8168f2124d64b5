//! Kernel events and the debug log of the BPF programs.

use std::net::SocketAddr;

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
