//! Where pods were found, and who told.

use serde::{Deserialize, Serialize};

/// Where a local pod lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxEntry {
    /// Who has told: `annotation`, `cri` (the container runtime, and the kernel shows the same) or `proc` (the kernel alone).
    pub found_by: String,
    /// Its network namespace: a path, or as the kernel names it.
    pub netns: String,
    /// Its cgroup.
    pub cgroup: String,
}

/// The container runtime of a node whose pods are looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerRuntime {
    /// How it stands.
    pub state: RuntimeState,
    /// Its name, version and socket; or why it does not answer.
    pub detail: String,
}

/// How a container runtime stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeState {
    /// The settings say that it is not asked.
    #[default]
    Off,
    /// Its first answer is still to come.
    Asking,
    /// It answers.
    Up,
    /// It does not answer: pods are found through `/proc`.
    Down,
}
