//! What the agent tells about itself: live connections, metrics, the access log, readiness. Never decides about traffic.

mod access_log;
pub mod connections;
pub mod http;
pub mod labels;
pub mod logging;
pub mod metrics;
pub mod plaintext;
pub mod policy;
mod process;
pub mod readiness;
pub mod serve;
pub mod tally;
pub mod traffic;

/// What stands in labels and logs where nothing is known.
pub const UNKNOWN: &str = "unknown";
