//! The node agent: captures the sockets of enrolled pods, gives them identities, carries their connections over mutual TLS.
//!
//! Modules import downward only: `state`, `affinity`, `settings`, `percent` → `telemetry`, `identity`, `capture`, `sources` → `tunnel` → `outbound`,
//! `inbound` → `worker` → `admin` → `handover`, `sandbox`, `cni` → `app`, `cli`. Only `app` constructs everything.

/// Target of the log lines that the BPF programs' debug lines become. They are logged at DEBUG whatever the filter says: they come only
/// while somebody has switched them on.
pub const BPF_LOG_TARGET: &str = "mesh_agent::bpf";

pub mod admin;
pub mod affinity;
pub mod app;
pub mod capture;
pub mod cli;
pub mod cni;
pub mod handover;
pub mod identity;
pub mod inbound;
pub mod outbound;
mod percent;
pub mod sandbox;
pub mod settings;
pub mod sources;
pub mod state;
pub mod telemetry;
pub mod tunnel;
pub mod worker;
