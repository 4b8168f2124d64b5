//! Flags and environment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use ipnet::IpNet;

use super::{
    DaemonSet, ExclusionKind, IstioLabel, LogFormat, OnStop, PodPlacement, StatusWriting, parse_duration,
    parse_size,
};

/// Settings as flags; each has an environment variable, and nearly each a key in the settings file.
#[derive(Args, Clone, Debug, Default)]
pub struct SettingsArgs {
    /// YAML file with settings, named as in Istio's MeshConfig where that has them (trustDomain, rootNamespace, accessLogFile,
    /// defaultConfig.concurrency …). A flag wins over the environment, which wins over the file.
    #[arg(long, env = "MESH_AGENT_SETTINGS", value_name = "FILE")]
    pub settings: Option<PathBuf>,

    /// This node, as spec.nodeName of its pods says it [default: NODE_NAME, else the host name; file:
    /// nodeName]
    #[arg(long, env = "MESH_AGENT_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Directory of Kubernetes and Istio YAML to apply and watch [file: configDir]
    #[arg(long, env = "MESH_AGENT_CONFIG_DIR", value_name = "DIR")]
    pub config_dir: Option<PathBuf>,

    /// Follow the Kubernetes API server, beside --config-dir if that is given too [default: true where a kubeconfig is given, else false;
    /// file: kubernetes.enabled]
    #[arg(
        long,
        env = "MESH_AGENT_KUBERNETES",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub kubernetes: Option<bool>,

    /// How to reach the API server [default: what KUBECONFIG names, else the pod's service account; file: kubernetes.kubeconfig]
    #[arg(long, env = "MESH_AGENT_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// What a Pod from Kubernetes may say about where its sandbox is on this host. none: nothing, it is looked for (--pods-discover);
    /// annotations: mesh-agent.io/netns and mesh-agent.io/cgroup, only where nobody else may write Pods [default: none; file: kubernetes.podPlacement]
    #[arg(long, env = "MESH_AGENT_KUBERNETES_POD_PLACEMENT", value_name = "HOW")]
    pub kubernetes_pod_placement: Option<PodPlacement>,

    /// The DaemonSet that this agent is one of: when that is deleted, the agent lets its pods go at its end and removes its CNI plugin,
    /// whatever --on-stop says [file: kubernetes.daemonSet]
    #[arg(long, env = "MESH_AGENT_DAEMON_SET", value_name = "NAMESPACE/NAME")]
    pub daemon_set: Option<DaemonSet>,

    /// Whether one agent of the cluster tells, in the status of policies, whether they are in force. auto: where the agents' namespace is
    /// known (of the pod, or of --daemon-set); off; or the namespace of the Lease mesh-agent-status [default: auto; file: kubernetes.status]
    #[arg(long, env = "MESH_AGENT_KUBERNETES_STATUS", value_name = "WHERE")]
    pub kubernetes_status: Option<StatusWriting>,

    /// What the agent keeps over restarts [default: /var/lib/mesh-agent; file: stateDir]
    #[arg(long, env = "MESH_AGENT_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Root of the embedded CA; agents that share this directory trust each other [default: STATE_DIR/ca; file: caDir]
    #[arg(long, env = "MESH_AGENT_CA_DIR", value_name = "DIR")]
    pub ca_dir: Option<PathBuf>,

    /// Directory with the mesh's root, root.crt and root.key, such as a mounted Secret that `mesh-agent ca init` made: nothing is made or
    /// kept then, and --ca-dir counts for nothing [file: caSecretDir]
    #[arg(long, env = "MESH_AGENT_CA_SECRET_DIR", value_name = "DIR")]
    pub ca_secret_dir: Option<PathBuf>,

    /// Trust domain of all identities [default: cluster.local; file: trustDomain]
    #[arg(long, env = "MESH_AGENT_TRUST_DOMAIN", value_name = "DOMAIN")]
    pub trust_domain: Option<String>,

    /// Other names of the trust domain that peers may show [file: trustDomainAliases]
    #[arg(
        long,
        env = "MESH_AGENT_TRUST_DOMAIN_ALIASES",
        value_name = "DOMAIN,…",
        value_delimiter = ','
    )]
    pub trust_domain_aliases: Vec<String>,

    /// Namespace whose policies hold for the whole mesh [default: istio-system; file: rootNamespace]
    #[arg(long, env = "MESH_AGENT_ROOT_NAMESPACE", value_name = "NAMESPACE")]
    pub root_namespace: Option<String>,

    /// Suffix of service host names, name.namespace.svc.DOMAIN [default: cluster.local; file: clusterDomain]
    #[arg(long, env = "MESH_AGENT_CLUSTER_DOMAIN", value_name = "DOMAIN")]
    pub cluster_domain: Option<String>,

    /// Whose the label istio.io/dataplane-mode is. auto: left to Istio on nodes on which its istio-cni or ztunnel runs; enrol: it enrols here;
    /// leave: it means nothing here. Alike on all nodes [default: auto; file: istioLabel]
    #[arg(long, env = "MESH_AGENT_ISTIO_LABEL", value_name = "WHOSE")]
    pub istio_label: Option<IstioLabel>,

    /// How long workload certificates are valid, such as 24h or 10s; renewed at half of it [default: 24h; file: certificateLifetime]
    #[arg(long, env = "MESH_AGENT_CERTIFICATE_LIFETIME", value_name = "DURATION", value_parser = parse_duration)]
    pub certificate_lifetime: Option<Duration>,

    /// Worker threads, 1 to 8; 0 for one per core up to four [default: 0; file: defaultConfig.concurrency]
    #[arg(long, env = "MESH_AGENT_WORKERS", value_name = "N")]
    pub workers: Option<usize>,

    /// Where /metrics is served [default: [::]:15020; file: metricsAddress]
    #[arg(long, env = "MESH_AGENT_METRICS_ADDRESS", value_name = "ADDR:PORT")]
    pub metrics_address: Option<SocketAddr>,

    /// Where readiness is served [default: [::]:15021; file: readinessAddress]
    #[arg(long, env = "MESH_AGENT_READINESS_ADDRESS", value_name = "ADDR:PORT")]
    pub readiness_address: Option<SocketAddr>,

    /// Unix socket of the admin API, which meshctl talks to [default: /run/mesh-agent/admin.sock; file: adminSocket]
    #[arg(long, env = "MESH_AGENT_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,

    /// Directory on a bpffs for what is to outlive the agent [default: /sys/fs/bpf/mesh-agent; file: bpffsDir]
    #[arg(long, env = "MESH_AGENT_BPFFS_DIR", value_name = "DIR")]
    pub bpffs_dir: Option<PathBuf>,

    /// The cgroup2 mount [default: found in /proc/self/mountinfo; file: cgroupRoot]
    #[arg(long, env = "MESH_AGENT_CGROUP_ROOT", value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// The kubelet's cgroup, whose probes reach the ports that pods declare for them: auto, off, or a path [default: auto; file:
    /// kubeletCgroup]
    #[arg(long, env = "MESH_AGENT_KUBELET_CGROUP", value_name = "CGROUP")]
    pub kubelet_cgroup: Option<String>,

    /// What pods' annotations mesh-agent.io/exclude-… and on-agent-down may leave uncaptured [default: nothing; file: allowExclusions]
    #[arg(
        long,
        env = "MESH_AGENT_ALLOW_EXCLUSIONS",
        value_name = "KIND,…",
        value_delimiter = ','
    )]
    pub allow_exclusions: Vec<ExclusionKind>,

    /// What is logged: a level, or target=level pairs with commas between [default: info; file: log.filter]
    #[arg(long, env = "MESH_AGENT_LOG", value_name = "FILTER")]
    pub log: Option<String>,

    /// How log lines look [default: text; file: log.format, or accessLogEncoding]
    #[arg(long, env = "MESH_AGENT_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Where connections are logged: a file, /dev/stdout, or nothing for no access log [default: /dev/stdout; file: accessLogFile]
    #[arg(long, env = "MESH_AGENT_ACCESS_LOG_FILE", value_name = "FILE")]
    pub access_log_file: Option<String>,

    /// How long connections may finish when the agent stops [default: 5s; file: defaultConfig.terminationDrainDuration]
    #[arg(long, env = "MESH_AGENT_DRAIN", value_name = "DURATION", value_parser = parse_duration)]
    pub drain: Option<Duration>,

    /// Take over from an agent that runs for this node, connection by connection; false: refuse to start beside it [default: true; file: takeOver]
    #[arg(long, env = "MESH_AGENT_TAKE_OVER", value_name = "BOOL")]
    pub take_over: Option<bool>,

    /// What becomes of the node's pods when the agent is told to stop. release: they are ordinary pods from then on; keep: they stay captured, and
    /// their connections are refused until an agent is back [default: release; file: onStop]
    #[arg(long, env = "MESH_AGENT_ON_STOP", value_name = "WHAT")]
    pub on_stop: Option<OnStop>,

    /// Stay after a successor has taken over, until told to stop: for supervisors that start again what has ended, such as the kubelet
    /// [default: false; file: linger]
    #[arg(long, env = "MESH_AGENT_LINGER", value_name = "BOOL")]
    pub linger: Option<bool>,

    /// Silence after which the kernel probes the other end of a connection; 0 for no probes [default: 60s; file: tcpKeepalive.time]
    #[arg(long, env = "MESH_AGENT_TCP_KEEPALIVE_TIME", value_name = "DURATION", value_parser = parse_duration)]
    pub tcp_keepalive_time: Option<Duration>,

    /// Time between probes [default: 10s; file: tcpKeepalive.interval]
    #[arg(long, env = "MESH_AGENT_TCP_KEEPALIVE_INTERVAL", value_name = "DURATION", value_parser = parse_duration)]
    pub tcp_keepalive_interval: Option<Duration>,

    /// Unanswered probes after which a connection is reset [default: 9; file: tcpKeepalive.probes]
    #[arg(long, env = "MESH_AGENT_TCP_KEEPALIVE_PROBES", value_name = "N")]
    pub tcp_keepalive_probes: Option<u32>,

    /// Reset connections that carry no byte for so long; 0 for never [default: 0; file: idleTimeout]
    #[arg(long, env = "MESH_AGENT_IDLE_TIMEOUT", value_name = "DURATION", value_parser = parse_duration)]
    pub idle_timeout: Option<Duration>,

    /// TCP connections of one workload per worker; more are reset [default: 32768; file: workloadBudget.connections]
    #[arg(long, env = "MESH_AGENT_BUDGET_CONNECTIONS", value_name = "N")]
    pub budget_connections: Option<usize>,

    /// Tunnel streams to one workload per worker; more are refused [default: 32768; file: workloadBudget.streams]
    #[arg(long, env = "MESH_AGENT_BUDGET_STREAMS", value_name = "N")]
    pub budget_streams: Option<usize>,

    /// Bytes held for one workload per worker, such as 64Mi; above it windows shrink [default: 64Mi; file: workloadBudget.bufferedBytes]
    #[arg(long, env = "MESH_AGENT_BUDGET_BYTES", value_name = "SIZE", value_parser = parse_size)]
    pub budget_bytes: Option<usize>,

    /// Flow-control window of a tunnel's stream, 64Ki to 16Mi: at most one window per round trip [default: 4Mi; file: streamWindow]
    #[arg(long, env = "MESH_AGENT_STREAM_WINDOW", value_name = "SIZE", value_parser = parse_size)]
    pub stream_window: Option<usize>,

    /// Networks of `mesh-agent sandbox`: one of IPv4, and one of IPv6 if wanted [default: 198.19.192.0/20,fd6d:6573:6800::/64; file:
    /// sandboxRange]
    #[arg(
        long,
        env = "MESH_AGENT_SANDBOX_RANGE",
        value_name = "CIDR,…",
        value_delimiter = ','
    )]
    pub sandbox_range: Vec<IpNet>,

    /// Find local pods without mesh-agent.io/netns and cgroup annotations by their uid: what the kernel and the container runtime show
    /// [default: true where a Kubernetes API server is followed, else false; file: pods.discover]
    #[arg(long, env = "MESH_AGENT_PODS_DISCOVER", value_name = "BOOL")]
    pub pods_discover: Option<bool>,

    /// The container runtime's CRI socket: auto, off, or a path [default: auto; file: pods.criSocket]
    #[arg(long, env = "MESH_AGENT_PODS_CRI_SOCKET", value_name = "SOCKET")]
    pub pods_cri_socket: Option<String>,

    /// The cgroup that the node's pods are below, itself below the cgroup2 mount [default: the mount; file: pods.cgroup]
    #[arg(long, env = "MESH_AGENT_PODS_CGROUP", value_name = "CGROUP")]
    pub pods_cgroup: Option<PathBuf>,

    /// The procfs of the host's pid namespace [default: /proc; file: pods.procRoot]
    #[arg(long, env = "MESH_AGENT_PODS_PROC_ROOT", value_name = "DIR")]
    pub pods_proc_root: Option<PathBuf>,

    /// Keep the CNI plugin installed, by which new pods are captured before their first process runs [default: false; file: cni.enabled]
    #[arg(
        long,
        env = "MESH_AGENT_CNI",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub cni: Option<bool>,

    /// The container runtime's directory of network configurations, under the same path here and there [default: /etc/cni/net.d; file: cni.confDir]
    #[arg(long, env = "MESH_AGENT_CNI_CONF_DIR", value_name = "DIR")]
    pub cni_conf_dir: Option<PathBuf>,

    /// The container runtime's directory of CNI plugins [default: /opt/cni/bin; file: cni.binDir]
    #[arg(long, env = "MESH_AGENT_CNI_BIN_DIR", value_name = "DIR")]
    pub cni_bin_dir: Option<PathBuf>,

    /// Namespaces whose pods the CNI plugin lets pass without a question [default: kube-system; file: cni.excludeNamespaces]
    #[arg(
        long,
        env = "MESH_AGENT_CNI_EXCLUDE_NAMESPACES",
        value_name = "NAMESPACE,…",
        value_delimiter = ','
    )]
    pub cni_exclude_namespaces: Vec<String>,

    /// How long the CNI plugin lets a pod wait to be captured before its start fails, and is tried again [default: 30s; file: cni.wait]
    #[arg(long, env = "MESH_AGENT_CNI_WAIT", value_name = "DURATION", value_parser = parse_duration)]
    pub cni_wait: Option<Duration>,
}
