//! The settings file. What Istio's MeshConfig also has takes its name and shape; a key that means nothing here is an error.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;

use super::discovery::Pods;
use super::{
    DaemonSet, ExclusionKind, IstioLabel, LogFormat, OnStop, PodPlacement, SettingsError, StatusWriting, cni,
    duration, size,
};

/// The file as written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    pub(super) node_name: Option<String>,
    pub(super) config_dir: Option<PathBuf>,
    pub(super) kubernetes: Option<Kubernetes>,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) ca_dir: Option<PathBuf>,
    pub(super) ca_secret_dir: Option<PathBuf>,
    /// MeshConfig.
    pub(super) trust_domain: Option<String>,
    /// MeshConfig.
    pub(super) trust_domain_aliases: Option<Vec<String>>,
    /// MeshConfig.
    pub(super) root_namespace: Option<String>,
    pub(super) cluster_domain: Option<String>,
    pub(super) istio_label: Option<IstioLabel>,
    #[serde(default, deserialize_with = "duration::deserialize")]
    pub(super) certificate_lifetime: Option<Duration>,
    pub(super) metrics_address: Option<SocketAddr>,
    pub(super) readiness_address: Option<SocketAddr>,
    pub(super) admin_socket: Option<PathBuf>,
    pub(super) bpffs_dir: Option<PathBuf>,
    pub(super) cgroup_root: Option<PathBuf>,
    pub(super) kubelet_cgroup: Option<String>,
    pub(super) allow_exclusions: Option<Vec<ExclusionKind>>,
    pub(super) take_over: Option<bool>,
    pub(super) on_stop: Option<OnStop>,
    pub(super) linger: Option<bool>,
    pub(super) log: Option<Log>,
    /// MeshConfig.
    pub(super) access_log_file: Option<String>,
    /// MeshConfig.
    pub(super) access_log_encoding: Option<Encoding>,
    /// MeshConfig.
    pub(super) default_config: Option<DefaultConfig>,
    /// MeshConfig.
    pub(super) tcp_keepalive: Option<TcpKeepalive>,
    #[serde(default, deserialize_with = "duration::deserialize")]
    pub(super) idle_timeout: Option<Duration>,
    pub(super) workload_budget: Option<WorkloadBudget>,
    #[serde(default, deserialize_with = "size::deserialize")]
    pub(super) stream_window: Option<usize>,
    pub(super) sandbox_range: Option<Vec<IpNet>>,
    pub(super) pods: Option<Pods>,
    pub(super) cni: Option<cni::File>,
    /// MeshConfig. The tunnel speaks TLS 1.3 only, which each of its values allows.
    #[serde(rename = "meshMTLS")]
    _mesh_mtls: Option<MeshMtls>,
}

/// Ours: how a cluster is followed.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Kubernetes {
    pub(super) enabled: Option<bool>,
    pub(super) kubeconfig: Option<PathBuf>,
    pub(super) pod_placement: Option<PodPlacement>,
    pub(super) daemon_set: Option<DaemonSet>,
    pub(super) status: Option<StatusWriting>,
}

/// MeshConfig's `tcpKeepalive`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct TcpKeepalive {
    #[serde(default, deserialize_with = "duration::deserialize")]
    pub(super) time: Option<Duration>,
    #[serde(default, deserialize_with = "duration::deserialize")]
    pub(super) interval: Option<Duration>,
    pub(super) probes: Option<u32>,
}

/// Ours: what one workload may take of one worker.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct WorkloadBudget {
    pub(super) connections: Option<usize>,
    pub(super) streams: Option<usize>,
    #[serde(default, deserialize_with = "size::deserialize")]
    pub(super) buffered_bytes: Option<usize>,
}

/// Ours: what is logged and how.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Log {
    pub(super) filter: Option<String>,
    pub(super) format: Option<LogFormat>,
}

/// MeshConfig's `accessLogEncoding`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Encoding {
    Text,
    Json,
}

impl From<Encoding> for LogFormat {
    fn from(encoding: Encoding) -> Self {
        match encoding {
            Encoding::Text => Self::Text,
            Encoding::Json => Self::Json,
        }
    }
}

/// MeshConfig's `defaultConfig` (ProxyConfig).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct DefaultConfig {
    pub(super) concurrency: Option<usize>,
    #[serde(default, deserialize_with = "duration::deserialize")]
    pub(super) termination_drain_duration: Option<Duration>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MeshMtls {
    #[serde(rename = "minProtocolVersion")]
    _min_protocol_version: Option<TlsVersion>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum TlsVersion {
    TlsAuto,
    #[serde(rename = "TLSV1_2")]
    Tls12,
    #[serde(rename = "TLSV1_3")]
    Tls13,
}

/// Reads the file at `path`.
pub(super) fn read(path: &Path) -> Result<File, SettingsError> {
    let text = std::fs::read_to_string(path).map_err(|error| SettingsError::Unreadable {
        path: path.to_owned(),
        error,
    })?;
    parse(path, &text)
}

/// Reads `text`; `path` is for messages.
pub(super) fn parse(path: &Path, text: &str) -> Result<File, SettingsError> {
    let options = serde_saphyr::options! { with_snippet: false };
    let read: Result<Option<File>, _> = serde_saphyr::from_str_with_options(text, options);
    read.map(Option::unwrap_or_default).map_err(|error| {
        let error = error.without_snippet();
        let (line, column) = error.location().map_or((1, 1), |at| (at.line(), at.column()));
        let message = error.to_string().lines().next().unwrap_or_default().to_owned();
        let message = message.replace(&format!(" at line {line}, column {column}"), "");
        SettingsError::File {
            path: path.to_owned(),
            line,
            column,
            message: message.strip_prefix("error: ").unwrap_or(&message).to_owned(),
        }
    })
}
