//! Why the agent does not run, or ends.

use std::io;

use thiserror::Error;

use crate::admin::SocketError;
use crate::capture::CaptureError;
use crate::handover::HandoverError;
use crate::identity::{CaError, IdentitiesError};
use crate::sandbox::SandboxError;
use crate::sources::SourceError;
use crate::telemetry::http::HttpError;
use crate::telemetry::metrics::MetricsError;

/// Why the agent could not start or had to end.
#[derive(Debug, Error)]
pub enum AppError {
    /// Nothing says where the configuration comes from.
    #[error(
        "no configuration: give --config-dir DIR, MESH_AGENT_CONFIG_DIR or configDir in the settings file, or --kubernetes in a cluster"
    )]
    NoConfiguration,
    /// The configuration cannot be watched.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The host or the kernel lacks something, or another agent has the node.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The CA cannot be used.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Identities(#[from] IdentitiesError),
    /// The directory of sandboxes cannot be used.
    #[error(transparent)]
    Sandboxes(#[from] SandboxError),
    /// The admin socket cannot be had.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An address cannot be had.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// The agent that runs does not make way.
    #[error(transparent)]
    Handover(#[from] HandoverError),
    /// The metrics do not fit together.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// Threads cannot be started, or signals not be received.
    #[error("cannot start {what}: {source}; are limits of threads, descriptors or memory reached?")]
    Start {
        /// What was to be started.
        what: &'static str,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

pub(super) fn start_error(what: &'static str) -> impl FnOnce(io::Error) -> AppError {
    move |source| AppError::Start { what, source }
}
