//! What `meshctl explain` and `meshctl services` show, and when connections that stand have to be judged again.

use crate::model::{ServiceRef, WorkloadUid};
use crate::plan::{self, ExplainError, Explanation, Inbound, Mode, Reason, choices, inbound_differs};
use crate::snapshot::{MeshSettings, Snapshot};

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh-agent.io/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: order, namespace: shop, labels: {app: order}}
spec: {nodeName: n1, serviceAccountName: buyer}
status: {podIPs: [{ip: 198.18.0.1}, {ip: '2001:db8::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: payment-a, namespace: shop, labels: {app: payment}}
spec: {nodeName: n1, serviceAccountName: payment, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 198.18.0.2}, {ip: '2001:db8::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: payment-b, namespace: shop, labels: {app: payment}}
spec: {nodeName: n2, serviceAccountName: payment, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIPs: [{ip: 198.18.0.3}], conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: visitor, namespace: street}
spec: {nodeName: n1, serviceAccountName: visitor}
status: {podIPs: [{ip: 198.18.1.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: payment, namespace: shop}
spec: {clusterIP: 198.19.0.1, clusterIPs: [198.19.0.1], selector: {app: payment}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: names, namespace: shop}
spec: {clusterIP: None, selector: {app: payment}, ports: [{port: 8080}, {port: 9090}]}
---
";

const ALLOW: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payment, namespace: shop}
spec:
  selector: {matchLabels: {app: payment}}
  rules: [{from: [{source: {serviceAccounts: [buyer]}}], to: [{operation: {ports: ['8080']}}]}]
";

const STRICT: &str = "
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";

fn snapshot(more: &str) -> Snapshot {
    let settings = MeshSettings {
        node_name: "n1".into(),
        ..MeshSettings::default()
    };
    let snapshot = Snapshot::from_yaml(settings, &format!("{MESH}{more}"));
    assert!(snapshot.diagnostics().rejections.is_empty());
    snapshot
}

fn explain(snapshot: &Snapshot, source: &str, destination: &str) -> Explanation {
    plan::explain(snapshot, source, destination)
        .unwrap_or_else(|error| panic!("{source} {destination}: {error}"))
}

/// `address mode reason` of each way; the reason is `+` where it gets there.
fn ways(explanation: &Explanation) -> Vec<String> {
    let one = |way: &plan::Explained| {
        let reason = way
            .refusal
            .as_ref()
            .map_or("+", |refusal| refusal.reason.as_str());
        format!("{} {:?} {reason}", way.address, way.mode)
    };
    explanation.ways.iter().map(one).collect()
}

#[test]
fn all_names_of_a_client_and_a_server_lead_to_the_same_answer() {
    let snapshot = snapshot(ALLOW);
    for source in [
        "shop/order",
        "shop/buyer",
        "spiffe://cluster.local/ns/shop/sa/buyer",
        "198.18.0.1",
        "2001:db8::1",
    ] {
        for destination in [
            "shop/payment-a:8080",
            "shop/payment-a",
            "198.18.0.2:8080",
            "198.18.0.2",
            "payment.shop.svc.cluster.local",
            "payment.shop:80",
            "payment.shop.svc:80",
            "198.19.0.1:80",
            "198.19.0.1",
            "::ffff:198.19.0.1",
        ] {
            let explanation = explain(&snapshot, source, destination);
            assert_eq!(
                ways(&explanation),
                ["198.18.0.2:8080 MutualTls +"],
                "{source} {destination}"
            );
            let ground = explanation.ways[0]
                .judgement
                .as_ref()
                .unwrap()
                .verdict
                .ground()
                .unwrap();
            assert_eq!((ground.policy.name.as_str(), ground.rule), ("payment", Some(0)));
        }
    }
    let sixth = explain(&snapshot, "shop/order", "[2001:db8::2]:8080");
    assert_eq!(ways(&sixth), ["[2001:db8::2]:8080 MutualTls +"]);
    let headless = explain(&snapshot, "shop/order", "names.shop:8080");
    assert_eq!(
        ways(&headless),
        ["198.18.0.2:8080 MutualTls +", "[2001:db8::2]:8080 MutualTls +"]
    );
}

#[test]
fn an_explanation_is_what_the_data_path_decides() {
    for policies in ["", ALLOW, STRICT] {
        let snapshot = snapshot(policies);
        for (source, client) in [
            ("shop/payment-a", "198.18.0.2"),
            ("shop/order", "198.18.0.1"),
            ("street/visitor", "198.18.1.1"),
            ("203.0.113.7", "203.0.113.7"),
        ] {
            for port in [8080, 9090] {
                let explanation = explain(&snapshot, source, &format!("shop/payment-b:{port}"));
                let [way] = &explanation.ways[..] else {
                    panic!("{explanation:?}")
                };
                let question = Inbound {
                    client: client.parse().unwrap(),
                    identity: explanation.identity.as_ref(),
                    address: format!("198.18.0.3:{port}").parse().unwrap(),
                };
                let decided = plan::inbound(&snapshot, &WorkloadUid::new("shop", "payment-b", ""), &question);
                assert_eq!(way.refusal, decided.err(), "{source} {port} {policies}");
            }
        }
    }
}

#[test]
fn a_refusal_is_explained_by_policy_rule_and_field_or_by_strict() {
    let snapshot_ = snapshot(ALLOW);
    let other = explain(&snapshot_, "shop/payment-a", "shop/payment-b:8080");
    let ground = other.ways[0]
        .judgement
        .as_ref()
        .unwrap()
        .verdict
        .ground()
        .unwrap();
    assert_eq!(
        (ground.rule, ground.field),
        (Some(0), Some("source.serviceAccounts"))
    );
    assert!(
        ground
            .why
            .unwrap()
            .contains("spiffe://cluster.local/ns/shop/sa/payment")
    );
    let port = explain(&snapshot_, "shop/order", "shop/payment-a:9090");
    assert_eq!(ways(&port), ["198.18.0.2:9090 MutualTls policy_denied"]);
    let visitor = explain(&snapshot_, "street/visitor", "payment.shop");
    assert_eq!(ways(&visitor), ["198.18.0.2:8080 Plaintext policy_denied"]);
    assert!(visitor.notes[0].contains("not enrolled"), "{:?}", visitor.notes);
    let strict = explain(&snapshot(STRICT), "street/visitor", "shop/payment-a:8080");
    assert_eq!(ways(&strict), ["198.18.0.2:8080 Plaintext plaintext_refused"]);
    assert_eq!(
        strict.ways[0]
            .mtls
            .as_ref()
            .unwrap()
            .decided_by
            .as_ref()
            .unwrap()
            .name,
        "default"
    );
}

#[test]
fn what_nobody_judges_is_said_to_be_so() {
    let snapshot = snapshot(ALLOW);
    let out = explain(&snapshot, "shop/order", "203.0.113.9:443");
    assert_eq!(ways(&out), ["203.0.113.9:443 Plaintext +"]);
    assert!(out.ways[0].message.contains("outside the mesh") && out.ways[0].judgement.is_none());
    let visitor = explain(&snapshot, "shop/order", "street/visitor:80");
    assert!(visitor.ways[0].message.contains("not enrolled"));
    let own = explain(&snapshot, "shop/order", "shop/order:80");
    assert_eq!(own.ways[0].mode, Mode::Local);
    let refused = explain(&snapshot, "shop/order", "payment.shop:81");
    assert_eq!(
        refused.ways[0].refusal.as_ref().unwrap().reason,
        Reason::UnknownServicePort
    );
}

#[test]
fn names_that_mean_nothing_are_errors_that_say_what_is_expected() {
    let snapshot = snapshot("");
    let error = |source, destination| plan::explain(&snapshot, source, destination).unwrap_err();
    for source in ["", "order", "shop/nobody", "spiffe://x", "198.18.0", "shop/a/b"] {
        assert_eq!(
            error(source, "shop/order:80"),
            ExplainError::UnknownSource(source.into())
        );
    }
    for destination in [
        "",
        "payment",
        "shop/nobody:80",
        "x.shop:80",
        "shop/order:http",
        "shop/order:70000",
    ] {
        let expected = ExplainError::UnknownDestination(destination.into());
        assert_eq!(error("shop/order", destination), expected);
    }
    for destination in ["shop/order", "names.shop", "203.0.113.9"] {
        assert!(
            matches!(error("shop/order", destination), ExplainError::NoPort { .. }),
            "{destination}"
        );
    }
    assert!(
        error("shop/order", "names.shop")
            .to_string()
            .contains("8080, 9090")
    );
}

#[test]
fn a_client_that_is_only_an_identity_is_judged_by_that() {
    let snapshot = snapshot(ALLOW);
    let elsewhere = explain(
        &snapshot,
        "spiffe://cluster.local/ns/far/sa/away",
        "shop/payment-a:8080",
    );
    assert_eq!(ways(&elsewhere), ["198.18.0.2:8080 MutualTls policy_denied"]);
    let foreign = explain(
        &snapshot,
        "spiffe://other.example/ns/shop/sa/buyer",
        "shop/payment-a:8080",
    );
    assert_eq!(ways(&foreign), ["198.18.0.2:8080 MutualTls foreign_trust_domain"]);
    assert!(
        foreign.notes[0].contains("no enrolled pod"),
        "{:?}",
        foreign.notes
    );
}

#[test]
fn each_endpoint_that_is_not_chosen_has_its_reason() {
    let snapshot_ = snapshot("");
    let service = |snapshot: &Snapshot| {
        let name = ServiceRef {
            namespace: "shop".into(),
            name: "payment".into(),
        };
        snapshot.service(&name).unwrap().clone()
    };
    let why = |snapshot: &Snapshot, node: &str| -> Vec<(String, Option<&'static str>)> {
        let service = service(snapshot);
        let all = choices(snapshot, &service, 80, node);
        all.iter()
            .map(|one| (one.endpoint.address.to_string(), one.why_not))
            .collect()
    };
    let here = why(&snapshot_, "n1");
    assert!(here.contains(&("198.18.0.2:8080".into(), None)), "{here:?}");
    assert!(
        here.contains(&("198.18.0.3:8080".into(), Some("not ready"))),
        "{here:?}"
    );
    let local = MESH.replace(
        "spec: {clusterIP: 198.19.0.1,",
        "spec: {internalTrafficPolicy: Local, clusterIP: 198.19.0.1,",
    );
    let local = Snapshot::from_yaml(snapshot_.settings().clone(), &local);
    let there = why(&local, "n2");
    assert!(
        there.contains(&(
            "198.18.0.2:8080".into(),
            Some("on another node, and internalTrafficPolicy is Local")
        )),
        "{there:?}"
    );
}

#[test]
fn connections_are_judged_again_where_something_that_decides_about_them_has_changed_and_nowhere_else() {
    let payment = WorkloadUid::new("shop", "payment-a", "");
    let order = WorkloadUid::new("shop", "order", "");
    let differs = |before: &str, now: &str| {
        let (before, now) = (snapshot(before), snapshot(now));
        (
            inbound_differs(&before, &now, &payment),
            inbound_differs(&before, &now, &order),
        )
    };
    assert_eq!(differs("", ""), (false, false));
    assert_eq!(
        differs(ALLOW, ALLOW),
        (false, false),
        "the same again is no change"
    );
    assert_eq!(differs("", ALLOW), (true, false), "a policy selects the one");
    assert_eq!(differs(ALLOW, ""), (true, false));
    let other_rule = ALLOW.replace("buyer", "seller");
    assert_eq!(differs(ALLOW, &other_rule), (true, false));
    assert_eq!(
        differs("", STRICT),
        (true, true),
        "STRICT holds for the namespace"
    );
    let elsewhere = ALLOW.replace("namespace: shop", "namespace: office");
    assert_eq!(
        differs("", &elsewhere),
        (false, false),
        "policies that select neither"
    );
    let more = "apiVersion: v1\nkind: Pod\nmetadata: {name: new, namespace: shop}\nspec: {nodeName: n1}\n";
    assert_eq!(differs("", more), (false, false), "another pod");
    let before = snapshot("");
    let now = Snapshot::empty(before.settings().clone());
    assert!(inbound_differs(&before, &now, &payment), "the workload is gone");
}
