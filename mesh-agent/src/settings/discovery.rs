//! Settings of how local pods are found that do not say themselves where they live.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::SettingsError;
use super::args::SettingsArgs;

/// How pods are found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Discovery {
    /// Whether pods without annotations are looked for.
    pub on: bool,
    /// The container runtime.
    pub cri_socket: CriSocket,
    /// The cgroup that the node's pods are below, itself below the cgroup2 mount; `None` for the mount.
    pub cgroup: Option<PathBuf>,
    /// The procfs of the host's pid namespace.
    pub proc_root: PathBuf,
}

impl Default for Discovery {
    fn default() -> Self {
        Self {
            on: false,
            cri_socket: CriSocket::Auto,
            cgroup: None,
            proc_root: "/proc".into(),
        }
    }
}

/// Where the container runtime listens: the setting `pods-cri-socket`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum CriSocket {
    /// The first that answers of the usual sockets.
    #[default]
    Auto,
    /// It is not asked.
    Off,
    /// Here.
    At(PathBuf),
}

/// The key `pods` of the settings file.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Pods {
    discover: Option<bool>,
    cri_socket: Option<String>,
    cgroup: Option<PathBuf>,
    proc_root: Option<PathBuf>,
}

/// The settings from flags and environment, and from the file; where neither says whether, pods are looked for `in_cluster`.
pub(super) fn merge(args: &SettingsArgs, file: Pods, in_cluster: bool) -> Result<Discovery, SettingsError> {
    let usual = Discovery::default();
    let socket = args.pods_cri_socket.clone().or(file.cri_socket);
    let cgroup = args.pods_cgroup.clone().or(file.cgroup);
    let proc_root = args.pods_proc_root.clone().or(file.proc_root);
    Ok(Discovery {
        on: args.pods_discover.or(file.discover).unwrap_or(in_cluster),
        cri_socket: socket.map_or(Ok(usual.cri_socket), |text| cri_socket(&text))?,
        cgroup: cgroup.map(self::cgroup).transpose()?,
        proc_root: match proc_root {
            None => usual.proc_root,
            Some(path) if path.is_absolute() => path,
            Some(path) => {
                return Err(SettingsError::Value {
                    name: "--pods-proc-root",
                    value: format!("{path:?}"),
                    expected: "expected the absolute path of a procfs",
                });
            }
        },
    })
}

fn cri_socket(text: &str) -> Result<CriSocket, SettingsError> {
    let path = text.trim();
    // As crictl and kubelets have it.
    let path = path.strip_prefix("unix://").unwrap_or(path);
    match path {
        "auto" => Ok(CriSocket::Auto),
        "off" => Ok(CriSocket::Off),
        path if path.starts_with('/') => Ok(CriSocket::At(path.into())),
        _ => Err(SettingsError::Value {
            name: "--pods-cri-socket",
            value: format!("{text:?}"),
            expected: "expected auto, off, or the absolute path of a Unix socket",
        }),
    }
}

fn cgroup(path: PathBuf) -> Result<PathBuf, SettingsError> {
    let climbs = path.components().any(|part| {
        matches!(
            part,
            std::path::Component::ParentDir | std::path::Component::CurDir
        )
    });
    if climbs || path.as_os_str().is_empty() {
        return Err(SettingsError::Value {
            name: "--pods-cgroup",
            value: format!("{path:?}"),
            expected: "expected the path of a cgroup below the cgroup2 mount, without . and ..",
        });
    }
    Ok(path)
}
