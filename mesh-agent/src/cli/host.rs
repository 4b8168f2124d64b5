//! What can be checked of the host without a running agent.

use crate::admin::LIMITS;
use crate::admin::document::Checks;

/// The checks of capture's needs, and what capture does not see.
pub fn checks() -> Checks {
    Checks {
        checks: Vec::new(),
        limits: LIMITS.map(str::to_owned).to_vec(),
    }
}
