//! What can be checked of the host without a running agent.

use crate::admin::LIMITS;
use crate::admin::document::{Check, Checks, Level};
use crate::capture::{self, CaptureOptions, Outcome};

/// The checks of capture's needs, and what capture does not see. `node` names the agent whose pins are looked for.
pub fn checks(node: &str) -> Checks {
    Checks {
        checks: capture_checks(&CaptureOptions::new(node, 1)),
        limits: LIMITS.map(str::to_owned).to_vec(),
    }
}

/// The checks of capture's needs in the shape of the admin API.
pub(crate) fn capture_checks(options: &CaptureOptions) -> Vec<Check> {
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
