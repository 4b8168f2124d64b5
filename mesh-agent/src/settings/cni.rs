//! Settings of the CNI plugin.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::SettingsError;
use super::args::SettingsArgs;
use super::duration;

/// Where the plugin is installed, and what it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cni {
    /// The container runtime's directory of network configurations. The same path for agent and runtime.
    pub conf_dir: PathBuf,
    /// Its directory of plugins.
    pub bin_dir: PathBuf,
    /// Pods of these namespaces pass without a question.
    pub exclude_namespaces: BTreeSet<String>,
    /// How long a pod may wait to be captured before its start fails (and is tried again by its kubelet).
    pub wait: Duration,
}

impl Default for Cni {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            exclude_namespaces: ["kube-system".to_owned()].into(),
            wait: Duration::from_secs(30),
        }
    }
}

/// The key `cni` of the settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    enabled: Option<bool>,
    conf_dir: Option<PathBuf>,
    bin_dir: Option<PathBuf>,
    exclude_namespaces: Option<Vec<String>>,
    #[serde(default, deserialize_with = "duration::deserialize")]
    wait: Option<Duration>,
}

/// The settings from flags and environment, and from the file, whether the plugin is wanted or not.
pub(super) fn merge(args: &SettingsArgs, file: File) -> Result<(bool, Cni), SettingsError> {
    let usual = Cni::default();
    let enabled = args.cni.or(file.enabled).unwrap_or(false);
    let excluded = match args.cni_exclude_namespaces.as_slice() {
        [] => file.exclude_namespaces,
        given => Some(given.to_vec()),
    };
    let cni = Cni {
        conf_dir: args
            .cni_conf_dir
            .clone()
            .or(file.conf_dir)
            .unwrap_or(usual.conf_dir),
        bin_dir: args.cni_bin_dir.clone().or(file.bin_dir).unwrap_or(usual.bin_dir),
        exclude_namespaces: excluded.map_or(usual.exclude_namespaces, |given| given.into_iter().collect()),
        wait: args.cni_wait.or(file.wait).unwrap_or(usual.wait),
    };
    for (name, path) in [("--cni-conf-dir", &cni.conf_dir), ("--cni-bin-dir", &cni.bin_dir)] {
        if !path.is_absolute() {
            return Err(SettingsError::Value {
                name,
                value: format!("{path:?}"),
                expected: "expected the absolute path of a directory",
            });
        }
    }
    // Beyond two minutes kubelets give up by themselves.
    if cni.wait.is_zero() || cni.wait > Duration::from_secs(110) {
        return Err(SettingsError::Value {
            name: "--cni-wait",
            value: super::show_duration(cni.wait),
            expected: "expected more than 0s and at most 110s",
        });
    }
    Ok((enabled, cni))
}
