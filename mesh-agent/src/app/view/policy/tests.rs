use mesh_core::snapshot::MeshSettings;

use super::*;
use crate::admin::document::{EnrolmentState, OlderConnectionEntry, UncapturedEntry, WorkloadEntry};
use crate::telemetry::connections::{ConnectionInfo, ConnectionLog, Reporter, Security};

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh-agent.io/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: order, namespace: shop, labels: {app: order}}
spec: {nodeName: n2, serviceAccountName: order}
status: {podIPs: [{ip: 198.18.0.1}]}
---
apiVersion: v1
kind: Pod
metadata: {name: payment, namespace: shop, labels: {app: payment}}
spec: {nodeName: n1, serviceAccountName: payment}
status: {podIPs: [{ip: 198.18.0.2}]}
---
apiVersion: v1
kind: Service
metadata: {name: payment, namespace: shop}
spec: {clusterIP: 198.19.0.1, selector: {app: payment}, ports: [{name: http, port: 80, targetPort: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payment, namespace: shop}
spec:
  selector: {matchLabels: {app: payment}}
  rules: [{from: [{source: {serviceAccounts: [order]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: all, namespace: istio-system, annotations: {istio.io/dry-run: 'true'}}
spec: {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: broken, namespace: shop}
spec: {action: PERHAPS}
";

fn snapshot() -> Snapshot {
    let settings = MeshSettings {
        node_name: "n1".into(),
        ..MeshSettings::default()
    };
    Snapshot::from_yaml(settings, MESH)
}

fn connection(snapshot: &Snapshot, plain: bool) -> ConnectionInfo {
    let at = |address: &str| snapshot.workload_by_address(address.parse().unwrap()).cloned();
    let source = at("198.18.0.1");
    ConnectionInfo {
        reporter: Reporter::Destination,
        security: if plain {
            Security::None
        } else {
            Security::MutualTls
        },
        source_address: "198.18.0.1:40000".parse().unwrap(),
        source_identity: source.as_ref().filter(|_| !plain).map(|w| w.identity.clone()),
        source,
        requested_address: "198.18.0.2:8080".parse().unwrap(),
        destination_address: "198.18.0.2:8080".parse().unwrap(),
        destination: at("198.18.0.2"),
        destination_identity: None,
        service: None,
    }
}

#[test]
fn policies_say_whom_they_select_what_they_decided_and_what_is_wrong_with_them() {
    let snapshot = snapshot();
    let log = std::sync::Arc::new(ConnectionLog::default());
    let payment = WorkloadUid::new("shop", "payment", "");
    for plain in [false, true] {
        let info = connection(&snapshot, plain);
        let question = plan::Inbound {
            client: info.source_address.ip(),
            identity: info.source_identity.as_ref(),
            address: info.destination_address,
        };
        let decided = plan::inbound(&snapshot, &payment, &question);
        let mut connection = log.open(info.clone());
        match decided {
            Ok(permit) => connection.admitted(permit.judgement()),
            Err(refusal) => drop(connection.refuse(&refusal)),
        }
    }
    let all = policies(&snapshot, log.policies()).policies;
    let [mesh, broken, payment] = &all[..] else {
        panic!("{all:?}")
    };
    assert_eq!(
        (mesh.name.as_str(), mesh.scope.as_str(), mesh.dry_run),
        ("all", "mesh", true)
    );
    assert_eq!(
        mesh.selects,
        ["shop/payment"],
        "those of other nodes are not ours"
    );
    assert_eq!(mesh.counts, [("dry_run_denied".to_owned(), 2)].into());
    assert!(mesh.problems[0].contains("HTTP"), "{:?}", mesh.problems);
    assert!(
        !broken.in_force && broken.problems[0].contains("PERHAPS"),
        "{broken:?}"
    );
    assert_eq!(payment.scope, "namespace, app=payment");
    let counts = [("allowed".to_owned(), 1), ("denied".to_owned(), 1)];
    assert_eq!(payment.counts, counts.into());
    let refusals = refusals(log.policies()).refusals;
    let [refusal] = &refusals[..] else {
        panic!("{refusals:?}")
    };
    assert_eq!(
        refusal.policy.as_deref(),
        Some("AuthorizationPolicy shop/payment")
    );
    assert_eq!(
        (refusal.rule, refusal.field.as_deref()),
        (Some(0), Some("source.serviceAccounts"))
    );
    assert_eq!(refusal.stood_seconds, None);
}

#[test]
fn an_explanation_has_every_part_of_the_verdict() {
    let query = ExplainQuery {
        source: "shop/order".into(),
        destination: "payment.shop".into(),
    };
    let explanation = explain(&snapshot(), &query).unwrap();
    assert!(explanation.allowed);
    let way = &explanation.ways[0];
    assert_eq!(
        (way.mode.as_str(), way.verdict.as_str(), way.rule),
        ("mtls", "allowed", Some(0))
    );
    assert_eq!(way.action.as_deref(), Some("ALLOW"));
    assert!(way.dry_run.as_ref().unwrap().starts_with("refused: "), "{way:?}");
    let bad = ExplainQuery {
        source: "nobody".into(),
        ..query
    };
    assert!(
        explain(&snapshot(), &bad)
            .unwrap_err()
            .contains("nobody is called")
    );
}

#[test]
fn services_show_their_endpoints_and_where_clients_go() {
    let services = services(&snapshot());
    let [payment] = &services.services[..] else {
        panic!("{services:?}")
    };
    let [port] = &payment.ports[..] else {
        panic!("{payment:?}")
    };
    let [endpoint] = &port.endpoints[..] else {
        panic!("{port:?}")
    };
    assert_eq!((port.port, port.name.as_str()), (80, "http"));
    assert_eq!(endpoint.workload.as_deref(), Some("shop/payment"));
    assert!(endpoint.chosen && endpoint.why_not.is_none());
}

fn workload(mtls: &str) -> WorkloadEntry {
    WorkloadEntry {
        uid: "shop/payment".into(),
        namespace: "shop".into(),
        name: "payment".into(),
        node: "n1".into(),
        local: true,
        addresses: vec![],
        identity: String::new(),
        enrolment: EnrolmentState::Enrolled,
        enrolment_reason: None,
        capture: CaptureState::Captured,
        capture_reason: None,
        mtls: mtls.into(),
        mtls_policy: None,
        sandbox: None,
        uncaptured: UncapturedEntry::default(),
        usage: None,
    }
}

#[test]
fn a_workload_may_go_strict_once_nobody_comes_in_plaintext_by_any_way() {
    let snapshot = snapshot();
    let log = std::sync::Arc::new(ConnectionLog::default());
    let ask = |entry: WorkloadEntry, older: OlderConnections| {
        let workloads = Workloads {
            workloads: vec![entry],
        };
        let book = log.policies().plaintext();
        let all = readiness(&snapshot, "t".into(), &workloads, &older, book).workloads;
        all.into_iter().next().unwrap()
    };
    let none = OlderConnections::default;
    assert!(ask(workload("PERMISSIVE"), none()).ready);
    let mut excluded = workload("PERMISSIVE");
    excluded.uncaptured.inbound_ports = vec![9090];
    assert!(!ask(excluded, none()).ready, "nobody sees who comes there");
    let mut pending = workload("PERMISSIVE");
    pending.capture = CaptureState::Pending;
    assert!(!ask(pending, none()).ready);
    let older = OlderConnections {
        connections: vec![OlderConnectionEntry {
            namespace: "shop".into(),
            workload: "payment".into(),
            direction: Direction::Inbound,
            local: "198.18.0.2:8080".parse().unwrap(),
            remote: "198.18.0.9:1".parse().unwrap(),
            to_close: None,
        }],
        ..none()
    };
    assert!(!ask(workload("PERMISSIVE"), older).ready);
    let plain = connection(&snapshot, true);
    let judgement = snapshot
        .authorization(&WorkloadUid::new("shop", "payment", ""))
        .unwrap()
        .judge(
            snapshot.local_domain(),
            &mesh_core::authz::Facts {
                source: plain.source_address.ip(),
                identity: None,
                destination: plain.destination_address,
            },
        );
    log.open(plain).admitted(&judgement);
    log.open(connection(&snapshot, false)).admitted(&judgement);
    let seen = ask(workload("PERMISSIVE"), none());
    let [source] = &seen.sources[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(
        (source.source.as_str(), source.count),
        ("shop/order", 1),
        "mutual TLS is no obstacle"
    );
    assert!(!seen.ready && seen.obstacles[0].contains("1 sources"), "{seen:?}");
    assert!(
        ask(workload("STRICT"), none()).ready,
        "what came before it was STRICT is past"
    );
}
