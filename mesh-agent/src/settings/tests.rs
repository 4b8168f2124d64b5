//! Precedence, and what wrong settings are told.

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: SettingsArgs,
}

fn settings(flags: &[&str], yaml: &str) -> Result<Settings, SettingsError> {
    let args = Cli::try_parse_from(std::iter::once(&"mesh-agent").chain(flags))
        .unwrap()
        .settings;
    let file = file::parse(Path::new("agent.yaml"), yaml)?;
    Settings::merge(&args, file, "host-1".into(), 16)
}

#[test]
fn without_anything_there_are_defaults() {
    let got = settings(&[], "").unwrap();
    assert_eq!(got.node_name, "host-1");
    assert_eq!(got.ca_dir, PathBuf::from("/var/lib/mesh-agent/ca"));
    assert_eq!(got.trust_domain.as_str(), "cluster.local");
    assert_eq!(got.root_namespace, "istio-system");
    assert_eq!(got.certificate_lifetime, Duration::from_secs(86_400));
    assert_eq!(got.workers, 4);
    assert_eq!(got.metrics_address.to_string(), "[::]:15020");
    assert_eq!(got.readiness_address.to_string(), "[::]:15021");
    assert_eq!(got.access_log, AccessLog::Stdout);
    assert_eq!(got.config_dir, None);
    assert_eq!(
        (got.keepalive, got.idle_timeout),
        (Some(Keepalive::default()), None)
    );
    assert_eq!(
        settings(&["--tcp-keepalive-time", "0"], "").unwrap().keepalive,
        None
    );
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let yaml = "
nodeName: from-file
stateDir: /state
trustDomain: file.example
trustDomainAliases: [old.example]
rootNamespace: mesh-root
certificateLifetime: 1h30m
accessLogFile: \"\"
accessLogEncoding: JSON
meshMTLS: {minProtocolVersion: TLSV1_3}
defaultConfig:
  concurrency: 2
  terminationDrainDuration: 7s
tcpKeepalive: {time: 30s, probes: 3}
idleTimeout: 1h
workloadBudget: {connections: 100, bufferedBytes: 8Mi}
streamWindow: 1Mi
istioLabel: leave
";
    let got = settings(
        &[
            "--node-name",
            "from-flag",
            "--trust-domain-aliases",
            "a.example,b.example",
            "--budget-bytes",
            "16Mi",
        ],
        yaml,
    )
    .unwrap();
    assert_eq!(got.node_name, "from-flag");
    let keepalive = got.keepalive.unwrap();
    assert_eq!(
        (
            keepalive.time.as_secs(),
            keepalive.interval.as_secs(),
            keepalive.probes
        ),
        (30, 10, 3)
    );
    assert_eq!(got.idle_timeout, Some(Duration::from_secs(3600)));
    let budget = WorkloadBudget {
        connections: 100,
        buffered_bytes: 16 << 20,
        ..WorkloadBudget::default()
    };
    assert_eq!((got.budget, got.stream_window), (budget, 1 << 20));
    assert_eq!(got.trust_domain.as_str(), "file.example");
    assert_eq!(got.trust_domain_aliases.len(), 2);
    assert_eq!(got.ca_dir, PathBuf::from("/state/ca"));
    assert_eq!(got.root_namespace, "mesh-root");
    assert_eq!(got.mesh().istio_label, mesh_core::snapshot::IstioLabel::Leave);
    assert_eq!(got.certificate_lifetime, Duration::from_secs(5400));
    assert_eq!((got.workers, got.drain), (2, Duration::from_secs(7)));
    assert_eq!(
        (got.access_log, got.log_format),
        (AccessLog::Off, LogFormat::Json)
    );
}

#[test]
fn wrong_settings_are_told_where_and_what() {
    let table: &[(&[&str], &str, &str)] = &[
        (
            &[],
            "nodeName: a\ntrustDomian: b\n",
            "agent.yaml:2:1: unknown field",
        ),
        (&[], "defaultConfig:\n  concurrency: many\n", "agent.yaml:2:16:"),
        (
            &[],
            "defaultConfig:\n  concurency: 1\n",
            "agent.yaml:2:3: unknown field",
        ),
        (&[], "certificateLifetime: soon\n", "is no duration"),
        (&[], "trustDomain: Not/One\n", "is not a trust domain"),
        (&[], "nodeName: [\n", "agent.yaml:"),
        (&["--workers", "9"], "", "--workers is 9: expected 1 to 8"),
        (
            &["--certificate-lifetime", "1s"],
            "",
            "--certificate-lifetime is 1s: expected at least 2s",
        ),
        (&["--node-name", " "], "", "the node has no name"),
        (
            &["--stream-window", "32Mi"],
            "",
            "--stream-window is 32Mi: expected 64Ki to 16Mi",
        ),
        (&["--budget-bytes", "1000"], "", "--budget-bytes is 1000"),
        (&["--budget-connections", "0"], "", "--budget-connections is 0"),
        (&["--budget-streams", "0"], "", "--budget-streams is 0"),
        (&["--tcp-keepalive-time", "500ms"], "", "expected 1s to 32767s"),
        (&["--tcp-keepalive-probes", "200"], "", "expected 1 to 127"),
        (&[], "streamWindow: large\n", "is no size"),
        (&["--root-namespace", "A B"], "", "--root-namespace"),
    ];
    for (flags, yaml, expected) in table {
        let error = settings(flags, yaml).unwrap_err().to_string();
        assert!(error.contains(expected), "{flags:?} {yaml:?}: {error}");
    }
}

#[test]
fn a_cluster_is_followed_where_that_is_said_or_a_kubeconfig_is_given() {
    assert_eq!(settings(&[], "").unwrap().kubernetes, None);
    let usual = Kubernetes::default();
    assert_eq!(
        settings(&["--kubernetes"], "").unwrap().kubernetes,
        Some(usual.clone())
    );
    assert_eq!(
        settings(&[], "kubernetes: {enabled: true}\n").unwrap().kubernetes,
        Some(usual)
    );
    let yaml = "kubernetes: {kubeconfig: /from/file, podPlacement: annotations}\n";
    let from_file = settings(&[], yaml).unwrap().kubernetes.unwrap();
    assert_eq!(from_file.kubeconfig, Some(PathBuf::from("/from/file")));
    assert_eq!(from_file.pod_placement, PodPlacement::Annotations);
    let both = settings(
        &["--kubeconfig", "/from/flag", "--kubernetes-pod-placement", "none"],
        yaml,
    );
    let both = both.unwrap().kubernetes.unwrap();
    assert_eq!(both.kubeconfig, Some(PathBuf::from("/from/flag")));
    assert_eq!(both.pod_placement, PodPlacement::None);
    assert_eq!(settings(&["--kubernetes=false"], yaml).unwrap().kubernetes, None);
}

#[test]
fn durations_are_read_as_istio_writes_them() {
    for (text, millis) in [
        ("24h", 86_400_000),
        ("1h30m", 5_400_000),
        ("10s", 10_000),
        ("1.5s", 1_500),
        ("250ms", 250),
        ("1d", 86_400_000),
        ("0", 0),
        (" 5s ", 5_000),
    ] {
        assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
    }
    for text in [
        "",
        "10",
        "s",
        "-1s",
        "1x",
        "1.2.3s",
        "9999999999999999999999h",
        "1s2",
    ] {
        assert!(parse_duration(text).is_err(), "{text}");
    }
    for text in ["24h", "1h30m", "250ms", "0"] {
        assert_eq!(show_duration(parse_duration(text).unwrap()), text);
    }
}

#[test]
fn every_flag_has_an_environment_variable_and_help() {
    use clap::CommandFactory;
    for arg in Cli::command()
        .get_arguments()
        .filter(|arg| arg.get_id() != "help")
    {
        let env = arg
            .get_env()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        assert!(env.starts_with("MESH_AGENT_"), "{}", arg.get_id());
        assert!(arg.get_help().is_some(), "{}", arg.get_id());
    }
}

#[test]
fn the_settings_that_are_shipped_for_kubernetes_are_understood() {
    let got = settings(&[], include_str!("../../../deploy/kubernetes/settings.yaml")).unwrap();
    assert!(got.kubernetes.is_some() && got.discovery.on);
    assert!(got.linger, "the kubelet starts again what ends");
    assert_eq!(got.on_stop, OnStop::Keep);
    let cni = got.cni.unwrap();
    assert!(
        cni.exclude_namespaces.contains("mesh-system"),
        "its own pods never wait for it"
    );
    assert_eq!(
        got.kubernetes.unwrap().daemon_set.unwrap().to_string(),
        "mesh-system/mesh-agent"
    );
}

#[test]
fn the_cni_plugin_is_wanted_on_request_and_wrong_values_are_told() {
    assert_eq!(settings(&[], "").unwrap().cni, None);
    assert_eq!(settings(&["--cni"], "").unwrap().cni, Some(Cni::default()));
    let yaml = "cni: {enabled: true, confDir: /a, binDir: /b, excludeNamespaces: [x], wait: 5s}";
    let expected = Cni {
        conf_dir: "/a".into(),
        bin_dir: "/b".into(),
        exclude_namespaces: ["x".to_owned()].into(),
        wait: Duration::from_secs(5),
    };
    assert_eq!(settings(&[], yaml).unwrap().cni.as_ref(), Some(&expected));
    let flags = [
        "--cni-bin-dir",
        "/c",
        "--cni-exclude-namespaces",
        "y,z",
        "--cni-wait",
        "6s",
    ];
    let got = settings(&flags, yaml).unwrap().cni.unwrap();
    assert_eq!(
        (got.bin_dir, got.conf_dir, got.wait),
        ("/c".into(), "/a".into(), Duration::from_secs(6))
    );
    assert_eq!(got.exclude_namespaces.len(), 2);
    assert_eq!(settings(&["--cni=false"], yaml).unwrap().cni, None);
    for wrong in [
        "cni: {confDir: relative}",
        "cni: {binDir: ''}",
        "cni: {wait: 0s}",
        "cni: {wait: 5m}",
        "cni: {enable: true}",
        "kubernetes: {daemonSet: no-namespace}",
        "kubernetes: {daemonSet: a/b/c}",
    ] {
        assert!(settings(&[], wrong).is_err(), "{wrong}");
    }
}

#[test]
fn how_pods_are_found_comes_from_flags_and_file_and_wrong_values_are_told() {
    assert_eq!(settings(&[], "").unwrap().discovery, Discovery::default());
    let yaml = "pods: {discover: true, criSocket: unix:///run/x.sock, cgroup: /node-a, procRoot: /host/proc}";
    let got = settings(&[], yaml).unwrap().discovery;
    assert_eq!(
        got,
        Discovery {
            on: true,
            cri_socket: CriSocket::At("/run/x.sock".into()),
            cgroup: Some("/node-a".into()),
            proc_root: "/host/proc".into(),
        }
    );
    let flags = [
        "--pods-discover",
        "false",
        "--pods-cri-socket",
        "off",
        "--pods-cgroup",
        "node-b",
    ];
    let got = settings(&flags, yaml).unwrap().discovery;
    assert_eq!((got.on, got.cri_socket), (false, CriSocket::Off));
    assert_eq!(got.cgroup, Some("node-b".into()));
    for wrong in [
        "pods: {criSocket: containerd.sock}",
        "pods: {criSocket: ''}",
        "pods: {cgroup: a/../b}",
        "pods: {cgroup: ''}",
        "pods: {procRoot: proc}",
        "pods: {discovers: true}",
    ] {
        assert!(settings(&[], wrong).is_err(), "{wrong}");
    }
}
