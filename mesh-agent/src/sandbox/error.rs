//! What can go wrong with a sandbox.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::admin::client::ClientError;

/// Why there is no sandbox, or not any more.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Namespaces and cgroups are root's.
    #[error("a sandbox needs root, for its network namespace and its cgroup: try sudo")]
    NotRoot,
    /// No agent, or one that does not answer.
    #[error(transparent)]
    Agent(#[from] ClientError),
    /// The agent lives elsewhere.
    #[error(
        "the agent of node {node} runs in another network namespace than this shell: run the sandbox where the agent is \
         (nsenter --net=/proc/{pid}/ns/net …)"
    )]
    Elsewhere {
        /// The agent's node.
        node: String,
        /// The agent's process.
        pid: u32,
    },
    /// A name that Kubernetes would not take.
    #[error(
        "{what} {value:?} is not a name: expected 1 to 63 of the characters a-z, 0-9 and '-', beginning and ending with a letter or digit"
    )]
    Name {
        /// What was named.
        what: &'static str,
        /// How.
        value: String,
    },
    /// Another one has the name.
    #[error(
        "there is a sandbox {namespace}/{name} already (process {pid}): choose another --name, or end that one"
    )]
    Taken {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Who holds it.
        pid: u32,
    },
    /// A pod has the name.
    #[error("there is a Pod {namespace}/{name} in the agent's configuration: choose another --name")]
    Configured {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// Another one publishes the service.
    #[error("sandbox {holder} publishes the service {service} already: choose another name for it")]
    ServiceTaken {
        /// The service, with its namespace.
        service: String,
        /// Who publishes it.
        holder: String,
    },
    /// No address is left.
    #[error("all addresses of {range} are taken: give the agent a larger --sandbox-range")]
    Full {
        /// The range.
        range: String,
    },
    /// ip(8) is not there.
    #[error("ip(8) cannot be run ({0}): apt-get install iproute2")]
    NoIp(#[source] io::Error),
    /// ip(8) refuses.
    #[error("`ip {arguments}` failed: {message}")]
    Ip {
        /// What it was asked.
        arguments: String,
        /// What it said.
        message: String,
    },
    /// The kernel refuses.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The agent does not capture it.
    #[error("the agent does not take {namespace}/{name} into the mesh: {why}")]
    NotCaptured {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// What the agent says.
        why: String,
    },
    /// A signal came before the command began.
    #[error("interrupted by {0} before the command began")]
    Interrupted(&'static str),
    /// What runs the command cannot be started.
    #[error("cannot start the command: {0}")]
    Start(#[source] io::Error),
}

impl SandboxError {
    pub(super) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
