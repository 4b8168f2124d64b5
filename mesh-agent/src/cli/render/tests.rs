use mesh_core::manifest::{Origin, Rejection};
use mesh_core::model::ObjectRef;

use super::*;
use crate::admin::document::*;
use crate::sources::{FileStatus, KindState, KindStatus, ServerStatus, SourceState};

fn narrow(text: &str) -> &str {
    for line in text.lines() {
        assert!(
            line.chars().count() <= usize::from(WIDTH),
            "{} columns: {line}",
            line.chars().count()
        );
    }
    text
}

#[test]
fn readiness_is_a_word_and_reasons() {
    assert_eq!(ready(true, &[]), "ready\n");
    assert_eq!(ready(false, &["it drains".into()]), "not ready\n- it drains\n");
}

fn party_entry(name: &str, address: &str) -> PartyEntry {
    PartyEntry {
        address: address.parse().unwrap(),
        workload: Some(format!("{name}-5d4f8c7b9-x2x9z")),
        namespace: Some("shop".into()),
        identity: Some(format!("spiffe://cluster.local/ns/shop/sa/{name}")),
    }
}

fn connection() -> ConnectionEntry {
    ConnectionEntry {
        id: 1,
        direction: Direction::Outbound,
        security: SecurityState::MutualTls,
        source: party_entry("order", "198.18.0.1:40000"),
        destination: party_entry("payment", "[2001:db8:0:1:2222:3333:4444:5555]:8080"),
        requested: "198.18.9.9:80".parse().unwrap(),
        service: Some("payment.shop.svc.cluster.local".into()),
        opened_at: "2027-01-15T08:00:00Z".into(),
        age_seconds: 3725.5,
        received_bytes: 1536,
        sent_bytes: 5 << 30,
        held_bytes: 0,
    }
}

fn workload_entry(name: &str) -> WorkloadEntry {
    WorkloadEntry {
        uid: "shop/order/u1".into(),
        namespace: "shop".into(),
        name: name.into(),
        node: "node-one".into(),
        local: true,
        addresses: vec!["198.18.0.1".parse().unwrap(), "2001:db8::1".parse().unwrap()],
        identity: "spiffe://cluster.local/ns/shop/sa/order".into(),
        enrolment: EnrolmentState::Enrolled,
        enrolment_reason: None,
        capture: CaptureState::Captured,
        capture_reason: None,
        mtls: "PERMISSIVE".into(),
        mtls_policy: None,
        sandbox: None,
        uncaptured: Default::default(),
        usage: None,
    }
}

#[test]
fn connections_fit_a_terminal_and_show_identities_security_age_and_bytes() {
    let text = connections(&Connections {
        connections: vec![connection(), connection()],
    });
    for part in [
        "SOURCE",
        "shop/order-5d4f8c7b9-x2x9z",
        "198.18.0.1:40000",
        "cluster.local/ns/shop/sa/order",
        "cluster.local/ns/shop/sa/payment",
        "mTLS",
        "1h2m",
        "1.5 KiB req",
        "5.0 GiB resp",
        "out",
    ] {
        assert!(narrow(&text).contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn a_connection_without_known_parties_shows_addresses() {
    let mut unknown = connection();
    unknown.security = SecurityState::None;
    unknown.source = PartyEntry {
        address: "198.18.0.7:5000".parse().unwrap(),
        workload: None,
        namespace: None,
        identity: None,
    };
    let text = connections(&Connections {
        connections: vec![unknown],
    });
    assert!(
        text.contains("198.18.0.7:5000") && text.contains("none"),
        "{text}"
    );
}

fn no_config() -> Config {
    Config {
        version: 0,
        age_seconds: 0,
        sources: vec![],
        rejections: vec![],
        notices: vec![],
    }
}

#[test]
fn empty_documents_say_so() {
    assert_eq!(connections(&Connections::default()), "No live connections.");
    assert_eq!(workloads(&Workloads::default()), "The agent knows no workloads.");
    assert!(certificates(&Certificates::default()).contains("No local identities"));
    assert!(config(&no_config()).contains("No document is rejected."));
}

#[test]
fn workloads_show_their_state_and_the_reason_below_the_table() {
    let failed = WorkloadEntry {
        capture: CaptureState::Failed,
        capture_reason: Some("/run/netns/payment: no such file or directory".into()),
        ..workload_entry("payment")
    };
    let refused = WorkloadEntry {
        enrolment: EnrolmentState::Refused,
        enrolment_reason: Some("it shares the node's network namespace".into()),
        capture: CaptureState::None,
        ..workload_entry("visitor")
    };
    let text = workloads(&Workloads {
        workloads: vec![workload_entry("order"), failed, refused],
    });
    let squeezed = narrow(&text).split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(
        squeezed.contains(
            "shop/order node-one 198.18.0.1 cluster.local/ns/shop/sa/order yes yes PERMISSIVE 2001:db8::1"
        ),
        "{text}"
    );
    assert!(squeezed.contains("yes FAILED"), "{text}");
    assert!(text.contains("\nshop/payment is not captured: /run/netns/payment: no such file or directory\n"));
    assert!(text.contains("\nshop/visitor is refused: it shares the node's network namespace\n"));
}

#[test]
fn status_names_what_holds_readiness_up() {
    let text = status(&Status {
        version: "0.1.0".into(),
        pid: 42,
        not_ready: vec!["pod shop/order is not captured: no such netns".into()],
        uptime_seconds: 90,
        rejections: 2,
        predecessor: Some(PredecessorStatus {
            version: "0.0.9".into(),
            pid: 41,
            relieved_at: "2027-01-15T08:00:00Z".into(),
            connections: 17,
        }),
        ..Status::default()
    });
    for part in [
        "mesh-agent 0.0.9 (process 41) drains: 17 connections left",
        "relieved at 2027-01-15T08:00:00Z",
        "mesh-agent 0.1.0 (process 42), NOT READY",
        "- pod shop/order is not captured: no such netns",
        "1m30s",
        "2 documents (see `meshctl config`)",
    ] {
        assert!(narrow(&text).contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn certificates_show_what_is_wrong_with_them() {
    let entry = |state, expires_in_seconds, error: Option<&str>| CertificateEntry {
        identity: "spiffe://cluster.local/ns/shop/sa/order".into(),
        state,
        not_before: Some("2027-01-15T08:00:00Z".into()),
        not_after: Some("2027-01-16T08:00:00Z".into()),
        expires_in_seconds,
        next_rotation: "2027-01-15T20:00:00Z".into(),
        serial: Some("0a1b".into()),
        issuer: "embedded CA".into(),
        error: error.map(str::to_owned),
    };
    let text = certificates(&Certificates {
        certificates: vec![
            entry(CertificateState::Valid, Some(86_400), None),
            entry(
                CertificateState::Expired,
                Some(-5),
                Some("the certificate issuer is away"),
            ),
        ],
    });
    for part in [
        "1d0h",
        "5s ago",
        "EXPIRED",
        "sa/order: the certificate issuer is away",
    ] {
        assert!(narrow(&text).contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn bpf_shows_the_fill_of_maps() {
    let text = bpf(&Bpf {
        abi_version: 1,
        bpffs: "/sys/fs/bpf/mesh-agent/n1".into(),
        run: "run-3".into(),
        adopted: true,
        cgroup2: "/sys/fs/cgroup/unified".into(),
        agent_cgroup: "/sys/fs/cgroup/unified/mesh-agent".into(),
        programs: vec![BpfProgram {
            name: "connect4".into(),
            id: 77,
        }],
        pods: vec![BpfPod {
            workload: "shop/order-5d4f8c7b9-x2x9z".into(),
            netns_cookie: 4711,
            slot: 0,
            bank: 1,
            addresses: vec!["198.18.0.1".parse().unwrap()],
            links: vec![BpfLink {
                hook: "connect4".into(),
                id: 5,
                program: 77,
            }],
            shadowed_ports: vec![15001],
            believes_first_packets: false,
            foreign: vec![],
        }],
        maps: vec![BpfMap {
            name: "HANDOFF".into(),
            entries: Some(512),
            capacity: 1024,
        }],
        events: vec![BpfEvent {
            event: "connect_captured".into(),
            count: 7,
        }],
        log: BpfLog::default(),
    });
    assert!(
        narrow(&text).contains("50.0 %")
            && text.contains("connect_captured")
            && text.contains("n1/run-3, adopted"),
        "{text}"
    );
}

#[test]
fn a_rejection_stands_with_file_line_and_column() {
    let rejection = |line, column| Rejection {
        origin: Origin {
            file: "mesh.yaml".into(),
            line,
            column,
        },
        object: Some(ObjectRef::new("PeerAuthentication", "shop", "default")),
        message: "spec.mtls.mode: expected STRICT, PERMISSIVE, DISABLE or UNSET".into(),
    };
    let text = config(&Config {
        version: 3,
        rejections: vec![rejection(7, 11), rejection(0, 0)],
        sources: vec![SourceState {
            name: "directory /etc/mesh".into(),
            synced: true,
            objects: 4,
            files: vec![FileStatus {
                path: "mesh.yaml".into(),
                accepted: 3,
                held: 1,
                rejected: 1,
                error: None,
            }],
            kinds: vec![KindStatus {
                kind: "AuthorizationPolicy".into(),
                api_version: Some("security.istio.io/v1".into()),
                state: KindState::Lost,
                objects: 2,
                age_seconds: Some(75),
                lists: 1,
                watch_restarts: 3,
                errors: Default::default(),
                problem: Some("the API server cannot be reached".into()),
                reason: Some("unreachable".into()),
            }],
            server: Some(ServerStatus {
                address: "https://10.0.0.1:6443".into(),
                version: Some("v1.33.1".into()),
                problem: None,
            }),
        }],
        ..no_config()
    });
    assert!(
        text.contains("mesh.yaml:7:11\n  PeerAuthentication shop/default\n  spec.mtls.mode: expected"),
        "{text}"
    );
    assert!(text.contains("\nmesh.yaml\n"), "{text}");
    assert!(text.contains("\n  https://10.0.0.1:6443, v1.33.1\n"), "{text}");
    let kind = "  AuthorizationPolicy (security.istio.io/v1): lost, 2 objects, heard 1m15s ago\n    the API server cannot";
    assert!(text.contains(kind), "{text}");
    assert!(
        text.contains("the last good version of 1 objects stays in force"),
        "{text}"
    );
}

#[test]
fn checks_show_hints_counts_and_limits() {
    let text = checks(&Checks {
        checks: vec![
            Check {
                name: "kernel".into(),
                level: Level::Ok,
                detail: "6.18.0".into(),
                hint: None,
            },
            Check {
                name: "cgroup2".into(),
                level: Level::Fail,
                detail: "no cgroup2 mount".into(),
                hint: Some("mount -t cgroup2 none /sys/fs/cgroup/unified".into()),
            },
        ],
        limits: crate::admin::LIMITS.map(str::to_owned).to_vec(),
    });
    for part in [
        "FAIL",
        "-> mount -t cgroup2 none /sys/fs/cgroup/unified",
        "1 ok, 0 to look at, 1 failed",
        "What capture does not see:",
    ] {
        assert!(narrow(&text).contains(part), "{part} is missing in\n{text}");
    }
}

#[test]
fn durations_and_sizes_are_short() {
    let durations: Vec<String> = [0, 59, 61, 3600, 90_000].into_iter().map(duration).collect();
    assert_eq!(durations, ["0s", "59s", "1m1s", "1h0m", "1d1h"]);
    let sizes: Vec<String> = [0, 1023, 1024, 1023 << 10, u64::MAX]
        .into_iter()
        .map(bytes)
        .collect();
    assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.0 MiB", "16.0 EiB"]);
}

#[test]
fn kernel_events_are_shown_with_their_flow_and_what_to_do() {
    let event = BpfEventEntry {
        at: "2026-11-21T12:00:00Z".into(),
        event: "connect_refused_protocol".into(),
        workload: Some("shop/web-5d4f8c7b9-x2x9z".into()),
        netns_cookie: 4711,
        from: None,
        to: "198.18.0.1:80".parse().unwrap(),
        protocol: "mptcp".into(),
        pid: Some(42),
        process: Some("curl".into()),
        advice: "MPTCP sockets are refused".into(),
    };
    let stranger = BpfEventEntry {
        workload: None,
        process: None,
        from: Some("198.18.0.2:40000".parse().unwrap()),
        ..event.clone()
    };
    let text = bpf_events(&BpfEvents {
        events: vec![event, stranger],
        suppressed: 3,
    });
    for part in [
        "to 198.18.0.1:80 (mptcp)",
        "curl (42)",
        "from 198.18.0.2:40000",
        "3 more",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert_eq!(text.matches("MPTCP sockets are refused").count(), 1, "{text}");
    narrow(&text);
    assert!(bpf_events(&BpfEvents::default()).contains("nothing"));
}

#[test]
fn the_debug_log_says_for_whom_and_how_long_it_is_on() {
    assert_eq!(bpf_log(&BpfLog::default()), "off");
    let on = BpfLog {
        on: true,
        remaining_seconds: 90,
        pod: Some("shop/web".into()),
    };
    assert!(bpf_log(&on).contains("pod shop/web"), "{}", bpf_log(&on));
}
