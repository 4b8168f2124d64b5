//! What can be checked of the host without a running agent.

use super::LIMITS;
use super::document::{Check, Checks, Level};
use crate::capture::{self, CaptureOptions, Outcome};

/// The checks of capture's needs, and what capture does not see. Loads the BPF programs for a moment; blocks.
pub fn checks(options: &CaptureOptions) -> Checks {
    Checks {
        checks: capture_checks(options),
        limits: LIMITS.map(str::to_owned).to_vec(),
    }
}

/// The node's name where none is given: the host name.
pub fn default_node_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    match name.trim() {
        "" => "localhost".to_owned(),
        name => name.to_owned(),
    }
}

/// The checks of capture's needs in the shape of the admin API.
fn capture_checks(options: &CaptureOptions) -> Vec<Check> {
    let shown = |check: capture::Check| Check {
        name: check.name.to_owned(),
        level: match check.outcome {
            Outcome::Ok => Level::Ok,
            Outcome::Warn => Level::Warn,
            Outcome::Fail => Level::Fail,
        },
        detail: check.detail,
        hint: check.hint,
    };
    capture::checks(options).into_iter().map(shown).collect()
}
