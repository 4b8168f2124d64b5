//! What was set up before anything was loaded.

use crate::capture::bpffs::{NodeDir, Run};
use crate::capture::cgroup::{AgentCgroup, Cgroup2};

/// What was set up before anything was loaded.
pub(super) struct Started {
    pub(super) cgroup2: Cgroup2,
    pub(super) agent_cgroup: AgentCgroup,
    pub(super) dir: NodeDir,
    pub(super) run: Run,
    pub(super) adopted: bool,
}

impl Started {
    /// Removes what was begun. What an earlier agent has left stays.
    pub(super) fn undo(&self) {
        if !self.adopted {
            let _ = self.run.remove();
        }
        self.agent_cgroup.leave();
    }
}
