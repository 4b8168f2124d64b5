//! The agent's settings: one struct, from flags, environment, a file and defaults, in this order of precedence. Read once at start.

mod args;
mod cni;
mod discovery;
mod duration;
mod error;
mod file;
mod kubernetes;
mod passes;
mod ranges;
mod size;
#[cfg(test)]
mod tests;
mod words;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_core::model::TrustDomain;
use mesh_core::plan::AllowedExclusions;
use mesh_core::snapshot::MeshSettings;
use serde::Serialize;

pub use args::SettingsArgs;
pub use cni::Cni;
pub use discovery::{CriSocket, Discovery};
pub use duration::{parse_duration, show_duration};
pub use error::SettingsError;
pub use kubernetes::{DaemonSet, Kubernetes, PodPlacement, StatusWriting};
pub use passes::{ExclusionKind, KubeletCgroup};
pub use ranges::{Half, RangeError, SandboxRanges};
pub use size::{parse_size, show_size};
pub use words::{AccessLog, IstioLabel, LogFormat, OnStop};

/// Shortest certificate lifetime: below it, rotation at half-life would not keep up with clock differences.
const MIN_LIFETIME: Duration = Duration::from_secs(2);

/// TCP keepalive of the agent's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub time: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Probes without an answer after which the connection is reset.
    pub probes: u32,
}

impl Default for Keepalive {
    fn default() -> Self {
        Self {
            time: Duration::from_secs(60),
            interval: Duration::from_secs(10),
            probes: 9,
        }
    }
}

/// What one workload may take of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct WorkloadBudget {
    /// TCP connections.
    pub connections: usize,
    /// Streams of tunnels to it.
    pub streams: usize,
    /// Bytes held between its sockets.
    pub buffered_bytes: usize,
}

impl Default for WorkloadBudget {
    fn default() -> Self {
        Self {
            connections: 32_768,
            streams: 32_768,
            buffered_bytes: 64 << 20,
        }
    }
}

/// The settings in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// This node, as `spec.nodeName` of its pods names it.
    pub node_name: String,
    /// Directory of configuration documents; `None` where none is given.
    pub config_dir: Option<PathBuf>,
    /// The cluster to follow; `None` for none.
    pub kubernetes: Option<Kubernetes>,
    /// What the agent keeps over restarts.
    pub state_dir: PathBuf,
    /// Where the embedded CA keeps its root; agents that share it trust each other.
    pub ca_dir: PathBuf,
    /// Where the operator has put the mesh's root; `None` for an embedded CA that makes its own in `ca_dir`.
    pub ca_secret_dir: Option<PathBuf>,
    /// The local trust domain.
    pub trust_domain: TrustDomain,
    /// Other names of it that peers may show.
    pub trust_domain_aliases: Vec<TrustDomain>,
    /// The namespace whose policies hold mesh-wide.
    pub root_namespace: String,
    /// Suffix of service host names.
    pub cluster_domain: String,
    /// Whose the label `istio.io/dataplane-mode` is.
    pub istio_label: IstioLabel,
    /// How long a workload's certificate is valid; it is renewed at half of that.
    pub certificate_lifetime: Duration,
    /// Worker threads, 1 to 8.
    pub workers: usize,
    /// Where `/metrics` is served.
    pub metrics_address: SocketAddr,
    /// Where readiness is served.
    pub readiness_address: SocketAddr,
    /// The admin API's Unix socket.
    pub admin_socket: PathBuf,
    /// A bpffs directory for pins.
    pub bpffs_dir: PathBuf,
    /// The cgroup2 mount; `None` to find it in `/proc/self/mountinfo`.
    pub cgroup_root: Option<PathBuf>,
    /// Whose connections pass as probes.
    pub kubelet_cgroup: KubeletCgroup,
    /// Which exclusions pods' annotations may ask for.
    pub allow_exclusions: AllowedExclusions,
    /// What is logged, in `tracing`'s filter language.
    pub log_filter: String,
    /// How.
    pub log_format: LogFormat,
    /// Where connections are logged.
    pub access_log: AccessLog,
    /// How long connections may finish when the agent stops.
    pub drain: Duration,
    /// Whether to take over from an agent that runs for the same node.
    pub take_over: bool,
    /// What becomes of the pods at a stop.
    pub on_stop: OnStop,
    /// Whether it stays after a successor has taken over, until it is told to stop.
    pub linger: bool,
    /// TCP keepalive; `None` for none.
    pub keepalive: Option<Keepalive>,
    /// How long a connection may be without a byte; `None` for as long as it likes.
    pub idle_timeout: Option<Duration>,
    /// What one workload may take of one worker.
    pub budget: WorkloadBudget,
    /// Flow-control window of a tunnel's stream, bytes.
    pub stream_window: usize,
    /// The addresses of sandboxes and of the services they publish.
    pub sandbox_ranges: SandboxRanges,
    /// How local pods are found that do not say where they live.
    pub discovery: Discovery,
    /// The CNI plugin; `None`: it is not installed.
    pub cni: Option<Cni>,
}

impl Settings {
    /// The settings from flags and environment (`args`) and from the file that they name.
    ///
    /// # Errors
    /// See [`SettingsError`].
    pub fn load(args: &SettingsArgs) -> Result<Self, SettingsError> {
        let file = match &args.settings {
            Some(path) => file::read(path)?,
            None => file::File::default(),
        };
        // As the downward API is mostly used.
        let named = std::env::var("NODE_NAME")
            .ok()
            .filter(|name| !name.trim().is_empty());
        Self::merge(args, file, named.unwrap_or_else(host_name), cores())
    }

    /// Where the records and documents of this node's sandboxes are: beside the admin socket.
    pub fn sandbox_dir(&self) -> PathBuf {
        let beside = self.admin_socket.parent().unwrap_or(Path::new("/run/mesh-agent"));
        beside.join("sandboxes").join(&self.node_name)
    }

    /// What decisions need of them.
    pub fn mesh(&self) -> MeshSettings {
        MeshSettings {
            node_name: self.node_name.clone(),
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.trust_domain_aliases.clone(),
            root_namespace: self.root_namespace.clone(),
            cluster_domain: self.cluster_domain.clone(),
            istio_label: self.istio_label.into(),
        }
    }

    /// The names of the settings in which `other` differs.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let fields = |settings: &Self| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (mine, theirs) = (fields(self), fields(other));
        mine.iter()
            .filter(|(name, value)| theirs.get(*name) != Some(*value))
            .map(|(name, _)| name.replace('_', "-"))
            .collect()
    }

    fn merge(
        args: &SettingsArgs,
        file: file::File,
        host: String,
        cores: usize,
    ) -> Result<Self, SettingsError> {
        let args = args.clone();
        let kubernetes = Kubernetes::of(
            args.kubernetes,
            args.kubeconfig.clone(),
            args.kubernetes_pod_placement,
            args.daemon_set.clone(),
            args.kubernetes_status.clone(),
            file.kubernetes.unwrap_or_default(),
        );
        let discovery = discovery::merge(&args, file.pods.unwrap_or_default(), kubernetes.is_some())?;
        let (cni_enabled, cni) = cni::merge(&args, file.cni.unwrap_or_default())?;
        let node_name = args.node_name.or(file.node_name).unwrap_or_else(|| host.clone());
        if node_name.trim().is_empty() {
            return Err(SettingsError::NodeName(host));
        }
        let usual = MeshSettings::default();
        let domain = args.trust_domain.or(file.trust_domain);
        let aliases = if args.trust_domain_aliases.is_empty() {
            file.trust_domain_aliases.unwrap_or_default()
        } else {
            args.trust_domain_aliases
        };
        let state_dir = args
            .state_dir
            .or(file.state_dir)
            .unwrap_or_else(|| "/var/lib/mesh-agent".into());
        let defaults = file.default_config.unwrap_or_default();
        let log = file.log.unwrap_or_default();
        let budget = file.workload_budget.unwrap_or_default();
        let encoding = file.access_log_encoding.map(LogFormat::from);
        let kubelet_cgroup = args.kubelet_cgroup.or(file.kubelet_cgroup);
        let exclusions = match args.allow_exclusions.as_slice() {
            [] => file.allow_exclusions.unwrap_or_default(),
            given => given.to_vec(),
        };
        let sandbox_ranges = match args.sandbox_range.as_slice() {
            [] => file.sandbox_range,
            given => Some(given.to_vec()),
        };
        let settings = Self {
            node_name,
            config_dir: args.config_dir.or(file.config_dir),
            kubernetes,
            ca_dir: args
                .ca_dir
                .or(file.ca_dir)
                .unwrap_or_else(|| state_dir.join("ca")),
            ca_secret_dir: args.ca_secret_dir.or(file.ca_secret_dir),
            state_dir,
            trust_domain: domain.map_or(Ok(usual.trust_domain), |domain| domain.parse())?,
            trust_domain_aliases: aliases
                .iter()
                .map(|alias| alias.parse())
                .collect::<Result<_, _>>()?,
            root_namespace: args
                .root_namespace
                .or(file.root_namespace)
                .unwrap_or(usual.root_namespace),
            cluster_domain: args
                .cluster_domain
                .or(file.cluster_domain)
                .unwrap_or(usual.cluster_domain),
            istio_label: args.istio_label.or(file.istio_label).unwrap_or_default(),
            certificate_lifetime: args
                .certificate_lifetime
                .or(file.certificate_lifetime)
                .unwrap_or(Duration::from_secs(24 * 3600)),
            workers: workers(args.workers.or(defaults.concurrency), cores)?,
            metrics_address: args
                .metrics_address
                .or(file.metrics_address)
                .unwrap_or_else(|| any(15020)),
            readiness_address: args
                .readiness_address
                .or(file.readiness_address)
                .unwrap_or_else(|| any(15021)),
            admin_socket: args
                .admin_socket
                .or(file.admin_socket)
                .unwrap_or_else(|| "/run/mesh-agent/admin.sock".into()),
            bpffs_dir: args
                .bpffs_dir
                .or(file.bpffs_dir)
                .unwrap_or_else(|| "/sys/fs/bpf/mesh-agent".into()),
            cgroup_root: args.cgroup_root.or(file.cgroup_root),
            kubelet_cgroup: kubelet_cgroup.map_or(Ok(KubeletCgroup::Auto), |text| {
                text.parse().map_err(|_| SettingsError::Value {
                    name: "--kubelet-cgroup",
                    value: format!("{text:?}"),
                    expected: "expected auto, off, or the path of a cgroup without . and ..",
                })
            })?,
            allow_exclusions: passes::allowed(&exclusions),
            log_filter: args.log.or(log.filter).unwrap_or_else(|| "info".into()),
            log_format: args
                .log_format
                .or(log.format)
                .or(encoding)
                .unwrap_or(LogFormat::Text),
            access_log: access_log(args.access_log_file.or(file.access_log_file)),
            drain: args
                .drain
                .or(defaults.termination_drain_duration)
                .unwrap_or(Duration::from_secs(5)),
            take_over: args.take_over.or(file.take_over).unwrap_or(true),
            on_stop: args.on_stop.or(file.on_stop).unwrap_or_default(),
            linger: args.linger.or(file.linger).unwrap_or(false),
            keepalive: keepalive(
                args.tcp_keepalive_time,
                args.tcp_keepalive_interval,
                args.tcp_keepalive_probes,
                file.tcp_keepalive.unwrap_or_default(),
            ),
            idle_timeout: args
                .idle_timeout
                .or(file.idle_timeout)
                .filter(|limit| !limit.is_zero()),
            budget: WorkloadBudget {
                connections: args
                    .budget_connections
                    .or(budget.connections)
                    .unwrap_or(WorkloadBudget::default().connections),
                streams: args
                    .budget_streams
                    .or(budget.streams)
                    .unwrap_or(WorkloadBudget::default().streams),
                buffered_bytes: args
                    .budget_bytes
                    .or(budget.buffered_bytes)
                    .unwrap_or(WorkloadBudget::default().buffered_bytes),
            },
            stream_window: args.stream_window.or(file.stream_window).unwrap_or(4 << 20),
            sandbox_ranges: sandbox_ranges
                .map_or_else(|| Ok(SandboxRanges::default()), |nets| SandboxRanges::new(&nets))?,
            discovery,
            cni: cni_enabled.then_some(cni),
        };
        settings.check()
    }

    fn check(self) -> Result<Self, SettingsError> {
        if self.certificate_lifetime < MIN_LIFETIME {
            return Err(SettingsError::Value {
                name: "--certificate-lifetime",
                value: show_duration(self.certificate_lifetime),
                expected: "expected at least 2s",
            });
        }
        self.check_connections()?;
        for (name, value) in [
            ("--root-namespace", &self.root_namespace),
            ("--cluster-domain", &self.cluster_domain),
        ] {
            let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, b'.' | b'-');
            if value.is_empty() || !value.bytes().all(good) {
                return Err(SettingsError::Value {
                    name,
                    value: format!("{value:?}"),
                    expected: "expected characters a-z, 0-9, '.' and '-'",
                });
            }
        }
        Ok(self)
    }
}

impl Settings {
    fn check_connections(&self) -> Result<(), SettingsError> {
        let check = |good: bool, name, value: String, expected| match good {
            true => Ok(()),
            false => Err(SettingsError::Value {
                name,
                value,
                expected,
            }),
        };
        let Settings {
            budget,
            stream_window,
            ..
        } = self;
        let windows = (64 << 10)..=(16 << 20);
        check(
            windows.contains(stream_window),
            "--stream-window",
            show_size(*stream_window),
            "expected 64Ki to 16Mi",
        )?;
        check(
            budget.buffered_bytes >= 1 << 20,
            "--budget-bytes",
            show_size(budget.buffered_bytes),
            "expected at least 1Mi",
        )?;
        check(
            budget.connections > 0,
            "--budget-connections",
            budget.connections.to_string(),
            "expected at least 1",
        )?;
        check(
            budget.streams > 0,
            "--budget-streams",
            budget.streams.to_string(),
            "expected at least 1",
        )?;
        // The kernel's bounds (tcp(7)): seconds up to 32767, probes up to 127.
        let second = Duration::from_secs(1);
        let seconds = second..=32_767 * second;
        let Some(keepalive) = &self.keepalive else {
            return Ok(());
        };
        for (name, value) in [
            ("--tcp-keepalive-time", keepalive.time),
            ("--tcp-keepalive-interval", keepalive.interval),
        ] {
            let good = seconds.contains(&value);
            check(good, name, show_duration(value), "expected 1s to 32767s")?;
        }
        check(
            (1..=127).contains(&keepalive.probes),
            "--tcp-keepalive-probes",
            keepalive.probes.to_string(),
            "expected 1 to 127",
        )
    }
}

/// A time of 0 means no keepalive.
fn keepalive(
    time: Option<Duration>,
    interval: Option<Duration>,
    probes: Option<u32>,
    file: file::TcpKeepalive,
) -> Option<Keepalive> {
    let usual = Keepalive::default();
    let keepalive = Keepalive {
        time: time.or(file.time).unwrap_or(usual.time),
        interval: interval.or(file.interval).unwrap_or(usual.interval),
        probes: probes.or(file.probes).unwrap_or(usual.probes),
    };
    (!keepalive.time.is_zero()).then_some(keepalive)
}

/// 0 and nothing mean a worker per core, up to four.
fn workers(asked: Option<usize>, cores: usize) -> Result<usize, SettingsError> {
    let most = mesh_common::MAX_WORKERS as usize;
    match asked {
        None | Some(0) => Ok(cores.clamp(1, 4)),
        Some(count) if count <= most => Ok(count),
        Some(count) => Err(SettingsError::Value {
            name: "--workers",
            value: count.to_string(),
            expected: "expected 1 to 8, or 0 for one per core up to four",
        }),
    }
}

fn access_log(file: Option<String>) -> AccessLog {
    match file.as_deref() {
        Some("") => AccessLog::Off,
        None | Some("/dev/stdout") => AccessLog::Stdout,
        Some(path) => AccessLog::File(Path::new(path).to_owned()),
    }
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::Ipv6Addr::UNSPECIFIED.into(), port)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .unwrap_or_default()
}
