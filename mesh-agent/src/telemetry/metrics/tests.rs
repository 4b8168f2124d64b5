use super::*;
use crate::telemetry::connections::tests::{info, workload};
use crate::telemetry::connections::{ConnectionInfo, HandshakeRole, Reporter, Security};

fn readings() -> Readings {
    Readings {
        snapshot_version: 7,
        snapshot_building: Duration::from_millis(1500),
        config_rejections: 2,
        kinds: vec![KindReading {
            kind: "Pod".into(),
            state: "watching",
            objects: 5,
            age_seconds: Some(30),
            lists: 1,
            watch_restarts: 2,
            errors: vec![("expired".into(), 3)],
        }],
        writer: Some(WriterReading {
            leads: true,
            writes: vec![("written".into(), 6)],
        }),
        certificates: vec![("spiffe://cluster.local/ns/shop/sa/order".into(), 1_800_000_000)],
        pods_captured: 3,
        pods_failed: 1,
        pods_left: 2,
        other_meshes: vec![("ztunnel", 1)],
        maps: vec![MapFill {
            name: "HANDOFF".into(),
            entries: Some(5),
            capacity: 65536,
        }],
        events: vec![("connect_captured", 9)],
        older_connections: 4,
        older_closed: 2,
        affinity: AffinityStatus {
            sessions: 12,
            capacity: 64,
            evicted: 4,
        },
        event_reports: vec![EventReport {
            event: "connect_refused_protocol",
            namespace: "shop".into(),
            workload: "web".into(),
            count: 4,
        }],
        debug_log: true,
        budgets: vec![BudgetReading {
            workload: "shop/order/u1".into(),
            taken: vec![("stream", 3), ("bytes", 4096)],
            refused: vec![("stream", 2)],
        }],
        handovers: vec![("taken_over", 3), ("failed", 1)],
        discovery: DiscoveryReading {
            found: vec![("cri", 3), ("proc", 0)],
            runtime_up: Some(true),
        },
        cni: Some(CniReading {
            installed: true,
            awaited: 2,
            calls: vec![("captured".to_owned(), 7)],
        }),
    }
}

fn render(log: &Arc<ConnectionLog>) -> String {
    let metrics = Metrics::new(log.clone(), Arc::new(readings)).unwrap();
    String::from_utf8(metrics.render().unwrap()).unwrap()
}

fn line<'a>(text: &'a str, start: &str) -> &'a str {
    let mut found = text.lines().filter(|line| line.starts_with(start));
    let line = found.next().unwrap_or_else(|| panic!("no {start} in\n{text}"));
    assert_eq!(found.next(), None, "{start} stands there twice");
    line
}

#[test]
fn tcp_metrics_carry_istios_labels() {
    let log = Arc::new(ConnectionLog::default());
    let connection = log.open(info(Reporter::Destination));
    connection.counts().add_received(42);
    let text = render(&log);
    let opened = line(&text, "istio_tcp_connections_opened_total{");
    for label in [
        r#"reporter="destination""#,
        r#"source_workload="order""#,
        r#"source_workload_namespace="shop""#,
        r#"source_principal="spiffe://cluster.local/ns/shop/sa/order""#,
        r#"source_app="order""#,
        r#"source_version="latest""#,
        r#"source_cluster="Kubernetes""#,
        r#"source_canonical_service="order""#,
        r#"source_canonical_revision="latest""#,
        r#"destination_workload="payment""#,
        r#"destination_principal="spiffe://cluster.local/ns/shop/sa/payment""#,
        r#"destination_service="payment.shop.svc.cluster.local""#,
        r#"destination_service_name="payment""#,
        r#"destination_service_namespace="shop""#,
        r#"request_protocol="tcp""#,
        r#"response_flags="-""#,
        r#"connection_security_policy="mutual_tls""#,
    ] {
        assert!(opened.contains(label), "{label} is missing in {opened}");
    }
    assert!(opened.ends_with(" 1"));
    assert!(line(&text, "istio_tcp_received_bytes_total{").ends_with(" 42"));
    assert!(!text.contains("istio_tcp_connections_closed_total{"));
    drop(connection);
    assert!(line(&render(&log), "istio_tcp_connections_closed_total{").ends_with(" 1"));
}

#[test]
fn the_security_policy_is_unknown_on_the_sources_side_and_none_for_plaintext_at_the_destination() {
    let log = Arc::new(ConnectionLog::default());
    drop(log.open(info(Reporter::Source)));
    assert!(render(&log).contains(r#"connection_security_policy="unknown""#));
    let log = Arc::new(ConnectionLog::default());
    drop(log.open(ConnectionInfo {
        security: Security::None,
        source: None,
        source_identity: None,
        ..info(Reporter::Destination)
    }));
    let text = render(&log);
    assert!(text.contains(r#"connection_security_policy="none""#));
    assert!(text.contains(r#"source_principal="unknown""#));
    assert!(text.contains(r#"source_workload="unknown""#));
}

#[test]
fn readings_become_metrics() {
    let text = render(&Arc::default());
    for expected in [
        "mesh_agent_snapshot_version 7",
        "mesh_agent_snapshot_build_seconds_total 1.5",
        "mesh_agent_config_rejections 2",
        r#"mesh_agent_kubernetes_objects{kind="Pod"} 5"#,
        r#"mesh_agent_kubernetes_kind_state{kind="Pod",state="watching"} 1"#,
        r#"mesh_agent_kubernetes_view_age_seconds{kind="Pod"} 30"#,
        r#"mesh_agent_kubernetes_watch_restarts_total{kind="Pod"} 2"#,
        r#"mesh_agent_kubernetes_errors_total{kind="Pod",reason="expired"} 3"#,
        "mesh_agent_status_leader 1",
        r#"mesh_agent_status_writes_total{result="written"} 6"#,
        r#"mesh_agent_certificate_expiry_timestamp_seconds{identity="spiffe://cluster.local/ns/shop/sa/order"} 1800000000"#,
        r#"mesh_agent_pods{state="captured"} 3"#,
        "mesh_agent_pods_left 2",
        r#"mesh_agent_other_mesh_pods{part="ztunnel"} 1"#,
        r#"mesh_agent_bpf_map_entries{map="HANDOFF"} 5"#,
        r#"mesh_agent_bpf_map_capacity{map="HANDOFF"} 65536"#,
        r#"mesh_agent_bpf_events_total{event="connect_captured"} 9"#,
        "# TYPE mesh_agent_bpf_events_total counter",
        "mesh_agent_affinity_sessions 12",
        "mesh_agent_affinity_evictions_total 4",
        r#"mesh_agent_sandboxes_found{by="cri"} 3"#,
        r#"mesh_agent_sandboxes_found{by="proc"} 0"#,
        "mesh_agent_container_runtime_up 1",
        "mesh_agent_cni_installed 1",
        "mesh_agent_cni_sandboxes_awaited 2",
        "mesh_agent_cni_calls_total{result=\"captured\"} 7",
        "mesh_agent_connections 0",
        "mesh_agent_label_sets 0",
        "mesh_agent_label_set_overflows_total 0",
    ] {
        assert!(
            text.lines().any(|line| line == expected),
            "{expected} is missing in\n{text}"
        );
    }
    assert!(text.contains("mesh_agent_build_info{version="));
    assert!(text.contains("process_resident_memory_bytes "));
}

#[test]
fn handshakes_and_failures_are_counted_by_reason() {
    let log = Arc::new(ConnectionLog::default());
    log.handshake(HandshakeRole::Server, Err("two_uri_sans"));
    log.handshake(HandshakeRole::Server, Err("two_uri_sans"));
    log.handshake(HandshakeRole::Client, Ok(()));
    let mut connection = log.open(info(Reporter::Source));
    connection.fail(ResponseFlag::TlsFailure, "expired", "x".into());
    drop(connection);
    let text = render(&log);
    for expected in [
        r#"mesh_agent_handshakes_total{role="server",result="failure",reason="two_uri_sans"} 2"#,
        r#"mesh_agent_handshakes_total{role="client",result="success",reason=""} 1"#,
        r#"mesh_agent_connection_failures_total{reporter="source",flag="TLS_FAILURE",reason="expired"} 1"#,
    ] {
        assert!(
            text.lines().any(|line| line == expected),
            "{expected} is missing in\n{text}"
        );
    }
    assert!(line(&text, "istio_tcp_connections_closed_total{").contains(r#"response_flags="TLS_FAILURE""#));
}

#[test]
fn label_values_are_escaped() {
    let log = Arc::new(ConnectionLog::default());
    let mut odd = (*workload("order", 1)).clone();
    let labels = &mut Arc::make_mut(&mut odd.pod).labels;
    Arc::make_mut(labels).insert("app".into(), "a\"b\\c\nd".into());
    drop(log.open(ConnectionInfo {
        source: Some(Arc::new(odd)),
        ..info(Reporter::Source)
    }));
    assert!(render(&log).contains(r#"source_app="a\"b\\c\nd""#));
}

#[test]
fn kernel_events_are_counted_by_kind_and_workload() {
    let text = render(&Arc::new(ConnectionLog::default()));
    let told = line(&text, "mesh_agent_bpf_event_reports_total{");
    assert_eq!(
        told,
        "mesh_agent_bpf_event_reports_total{event=\"connect_refused_protocol\",namespace=\"shop\",workload=\"web\"} 4"
    );
    assert_eq!(
        line(&text, "mesh_agent_bpf_debug_log "),
        "mesh_agent_bpf_debug_log 1"
    );
}

#[test]
fn what_policies_decided_is_counted_by_policy_and_verdict() {
    use mesh_core::authz::{Judgement, Tally, Verdict, Word};
    use mesh_core::model::{Action, ObjectRef};
    use mesh_core::plan::{Reason, Refusal};

    let log = Arc::new(ConnectionLog::default());
    let tally = |word| Tally {
        policy: ObjectRef::new("AuthorizationPolicy", "shop", "payment"),
        action: Action::Allow,
        word,
    };
    let judgement = |word| Judgement {
        verdict: Verdict::AllowedByDefault,
        dry_run: None,
        audited: vec![],
        tallies: vec![tally(word)],
    };
    log.open(info(Reporter::Destination))
        .admitted(&judgement(Word::Allowed));
    let mut refusal = Refusal::new(Reason::PolicyDenied, "no");
    refusal.judgement = Some(Box::new(judgement(Word::Denied)));
    log.open(info(Reporter::Destination)).refuse(&refusal);
    log.open(info(Reporter::Destination)).revoke(&refusal);
    log.policies().rejudged(5, 1);
    let text = render(&log);
    for verdict in ["allowed", "denied", "closed"] {
        let start = format!(
            r#"mesh_agent_policy_decisions_total{{namespace="shop",policy="payment",action="ALLOW",verdict="{verdict}"}}"#
        );
        assert!(line(&text, &start).ends_with(" 1"), "{text}");
    }
    let kept = line(&text, r#"mesh_agent_connections_rejudged_total{result="kept"}"#);
    assert!(kept.ends_with(" 5"));
    let revoked =
        r#"mesh_agent_connection_failures_total{reporter="destination",flag="DENY",reason="policy_changed"}"#;
    assert!(line(&text, revoked).ends_with(" 1"));
}

/// What Istio's documentation of its standard metrics lists for TCP, and what its dashboards ask for.
#[test]
fn names_types_and_labels_are_istios_and_no_others() {
    let log = Arc::new(ConnectionLog::default());
    let connection = log.open(info(Reporter::Source));
    connection.counts().add_sent(1);
    drop(connection);
    let text = render(&log);
    let party = [
        "workload",
        "workload_namespace",
        "principal",
        "app",
        "version",
        "cluster",
        "canonical_service",
        "canonical_revision",
    ];
    let mut expected: Vec<String> = ["source", "destination"]
        .iter()
        .flat_map(|side| party.iter().map(move |label| format!("{side}_{label}")))
        .collect();
    expected.extend(
        [
            "reporter",
            "destination_service",
            "destination_service_name",
            "destination_service_namespace",
            "request_protocol",
            "connection_security_policy",
            "response_flags",
        ]
        .map(str::to_owned),
    );
    expected.sort();
    for name in [
        "istio_tcp_connections_opened_total",
        "istio_tcp_connections_closed_total",
        "istio_tcp_sent_bytes_total",
        "istio_tcp_received_bytes_total",
    ] {
        assert!(text.contains(&format!("# TYPE {name} counter\n")), "{text}");
        let line = line(&text, &format!("{name}{{"));
        let (_, labels) = line.split_once('{').unwrap();
        let mut names: Vec<&str> = labels
            .split(',')
            .map(|pair| pair.split_once('=').unwrap().0)
            .collect();
        names.sort_unstable();
        assert_eq!(names, expected, "{name}");
    }
}
