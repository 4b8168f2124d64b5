//! Settings that are a choice among words.

use std::path::PathBuf;

use mesh_core::snapshot;
use serde::{Deserialize, Serialize};

/// What becomes of the captured pods when the agent is told to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// They are let go.
    #[default]
    Release,
    /// They stay captured: what they open and what is opened to them is refused.
    Keep,
}

/// Whose the label `istio.io/dataplane-mode` is: the setting `istio-label`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum IstioLabel {
    /// Istio's on nodes on which istio-cni or ztunnel runs, ours on others.
    #[default]
    Auto,
    /// Ours on all nodes.
    Enrol,
    /// Istio's on all nodes.
    Leave,
}

impl From<IstioLabel> for snapshot::IstioLabel {
    fn from(label: IstioLabel) -> Self {
        match label {
            IstioLabel::Auto => Self::Auto,
            IstioLabel::Enrol => Self::Enrol,
            IstioLabel::Leave => Self::Leave,
        }
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

/// Where the access log goes, Istio's `accessLogFile`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AccessLog {
    /// Nowhere.
    Off,
    /// Among the agent's log lines (`/dev/stdout`).
    Stdout,
    /// Appended to this file.
    File(PathBuf),
}
