//! What is wrong with settings.

use std::path::PathBuf;

use mesh_core::model::IdentityError;
use thiserror::Error;

use super::RangeError;

/// What is wrong with the settings, and what to do.
#[derive(Debug, Error)]
pub enum SettingsError {
    /// The settings file cannot be read.
    #[error("settings file {path}: {error}; see --settings")]
    Unreadable {
        /// Its path.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The settings file is not what it must be.
    #[error("settings file {path}:{line}:{column}: {message}")]
    File {
        /// Its path.
        path: PathBuf,
        /// Line, from 1.
        line: u64,
        /// Column, from 1.
        column: u64,
        /// What is wrong.
        message: String,
    },
    /// Nothing says what this node is called.
    #[error(
        "the node has no name: give --node-name, MESH_AGENT_NODE_NAME or nodeName in the settings file (the host name {0:?} is no name)"
    )]
    NodeName(String),
    /// A trust domain is none.
    #[error("trust domain: {0}")]
    TrustDomain(#[from] IdentityError),
    /// A range for sandboxes is none.
    #[error("--sandbox-range: {0}")]
    SandboxRange(#[from] RangeError),
    /// A value is out of bounds.
    #[error("{name} is {value}: {expected}")]
    Value {
        /// Its flag.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it must be.
        expected: &'static str,
    },
}
