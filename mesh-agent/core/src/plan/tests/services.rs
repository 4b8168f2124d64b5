//! Services as under kube-proxy: who gets which of their endpoints.

use std::collections::BTreeSet;

use super::*;

/// Pods `a` (node-1), `b` (node-2, the same zone), `c` (node-3, another zone), and a client on each node and on none.
pub(super) const PODS: &str = "
{apiVersion: v1, kind: Node, metadata: {name: node-1, labels: {topology.kubernetes.io/zone: z1}}}
---
{apiVersion: v1, kind: Node, metadata: {name: node-2, labels: {topology.kubernetes.io/zone: z1}}}
---
{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: a}}, spec: {nodeName: node-1}, status: {podIP: 198.18.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: b, namespace: shop, labels: {app: a}}, spec: {nodeName: node-2}, status: {podIP: 198.18.0.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: c, namespace: shop, labels: {app: a}}, spec: {nodeName: node-3}, status: {podIP: 198.18.0.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: on-1, namespace: shop}, spec: {nodeName: node-1}, status: {podIP: 198.18.1.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: on-2, namespace: shop}, spec: {nodeName: node-2}, status: {podIP: 198.18.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: on-3, namespace: shop}, spec: {nodeName: node-3}, status: {podIP: 198.18.1.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: on-9, namespace: shop}, spec: {nodeName: node-9}, status: {podIP: 198.18.1.9}}
---
{apiVersion: v1, kind: Pod, metadata: {name: nowhere, namespace: shop}, status: {podIP: 198.18.1.10}}
";

/// The service `s` over them, with this in its spec.
fn selecting(spec: &str) -> String {
    format!(
        "{PODS}---\n{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop}}, spec: {{clusterIP: 198.19.0.1, selector: {{app: a}}, ports: [{{port: 80}}], {spec}}}}}\n"
    )
}

/// The service `s` without a selector, and a slice with these endpoints.
fn sliced(spec: &str, endpoints: &str) -> String {
    format!(
        "{PODS}---\n{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop}}, spec: {{clusterIP: 198.19.0.1, ports: [{{port: 80}}], {spec}}}}}\n\
         ---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{port: 80}}], \
         metadata: {{name: s-1, namespace: shop, labels: {{kubernetes.io/service-name: s}}}}, endpoints: [{endpoints}]}}\n"
    )
}

/// The last numbers of the addresses that a client gets, or why it gets none.
pub(super) fn got(text: &str, source: &str, destination: &str) -> String {
    let snapshot = Snapshot::from_yaml(settings(), text);
    assert_eq!(snapshot.diagnostics().rejections, []);
    let seen: BTreeSet<String> = (0..60)
        .map(|random| {
            let to = go(&snapshot, source, destination, random);
            let Some((address, _)) = to.split_once(':') else {
                return to;
            };
            address.rsplit('.').next().unwrap_or_default().to_owned()
        })
        .collect();
    seen.into_iter().collect::<Vec<_>>().join(" ")
}

#[test]
fn a_local_traffic_policy_and_a_traffic_distribution_hold_for_each_client() {
    let clients = ["on-1", "on-2", "on-3", "on-9", "nowhere"];
    let none = "no_endpoints";
    for (spec, expected) in [
        ("", ["1 2 3"; 5]),
        ("internalTrafficPolicy: Cluster", ["1 2 3"; 5]),
        ("internalTrafficPolicy: Local", ["1", "2", "3", none, none]),
        (
            "trafficDistribution: PreferClose",
            ["1 2", "1 2", "1 2 3", "1 2 3", "1 2 3"],
        ),
        (
            "trafficDistribution: PreferSameZone",
            ["1 2", "1 2", "1 2 3", "1 2 3", "1 2 3"],
        ),
        (
            "trafficDistribution: PreferSameNode",
            ["1", "2", "3", "1 2 3", "1 2 3"],
        ),
        ("trafficDistribution: PreferTheMoon", ["1 2 3"; 5]),
        (
            "trafficDistribution: PreferClose, internalTrafficPolicy: Local",
            ["1", "2", "3", none, none],
        ),
    ] {
        let seen = clients.map(|client| got(&selecting(spec), client, "198.19.0.1:80"));
        assert_eq!(seen, expected, "{spec}");
    }
}

#[test]
fn hints_are_followed_only_where_every_ready_endpoint_has_them() {
    let one = |address: &str, rest: &str| format!("{{addresses: [198.18.0.{address}]{rest}}}");
    let zone = |name: &str| format!(", hints: {{forZones: [{{name: {name}}}]}}");
    let node = |name: &str| format!(", hints: {{forNodes: [{{name: {name}}}], forZones: [{{name: z1}}]}}");
    let unready = ", conditions: {ready: false}";
    for (endpoints, expected) in [
        ([one("1", &zone("z1")), one("2", &zone("z2"))], "1"),
        ([one("1", &zone("z2")), one("2", &zone("z1"))], "2"),
        ([one("1", &zone("z2")), one("2", &zone("z3"))], "1 2"),
        ([one("1", &zone("z1")), one("2", "")], "1 2"),
        ([one("1", &zone("z1")), one("2", unready)], "1"),
        ([one("1", &node("node-1")), one("2", &node("node-2"))], "1"),
        ([one("1", &node("node-7")), one("2", &node("node-8"))], "1 2"),
        ([one("1", &node("node-1")), one("2", &zone("z2"))], "1"),
        ([one("1", ", zone: z1"), one("2", ", zone: z2")], "1"),
        (
            [
                one("1", ", zone: z2, nodeName: other"),
                one("9", ", nodeName: node-2"),
            ],
            "9",
        ),
    ] {
        let text = sliced("trafficDistribution: PreferClose", &endpoints.join(", "));
        assert_eq!(got(&text, "on-1", "198.19.0.1:80"), expected, "{endpoints:?}");
    }
}

#[test]
fn ready_endpoints_come_first_and_leaving_ones_that_serve_last() {
    let one = |address: u8, ready: bool, serving: bool, terminating: bool, node: u8| {
        format!(
            "{{addresses: [203.0.113.{address}], nodeName: node-{node}, conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}}}"
        )
    };
    let ready = one(1, true, true, false, 2);
    let leaving_here = one(2, false, true, true, 1);
    let leaving_there = one(3, false, true, true, 2);
    let dying = one(4, false, false, true, 1);
    let unready = one(5, false, false, false, 1);
    // As publishNotReadyAddresses makes the controller write it.
    let published = one(6, true, false, true, 1);
    let all = [&ready, &leaving_here, &leaving_there, &dying, &unready];
    let late = [&leaving_here, &leaving_there, &dying, &unready];
    for (endpoints, cluster, local) in [
        (&all[..], "1", "2"),
        (&late[..], "2 3", "2"),
        (&[&leaving_there][..], "3", "no_endpoints"),
        (&[&dying, &unready][..], "no_endpoints", "no_endpoints"),
        (&[&published, &leaving_here][..], "6", "6"),
        (&[][..], "no_endpoints", "no_endpoints"),
    ] {
        let list: Vec<&str> = endpoints.iter().map(|one| one.as_str()).collect();
        for (policy, expected) in [("Cluster", cluster), ("Local", local)] {
            let text = sliced(&format!("internalTrafficPolicy: {policy}"), &list.join(", "));
            assert_eq!(
                got(&text, "on-1", "198.19.0.1:80"),
                expected,
                "{policy} {endpoints:?}"
            );
        }
    }
}

#[test]
fn a_refusal_for_want_of_local_endpoints_says_so() {
    let snapshot = Snapshot::from_yaml(settings(), &selecting("internalTrafficPolicy: Local"));
    let refused = |client: &str| {
        let source = workload(&snapshot, client);
        outbound(&snapshot, &source, "198.19.0.1:80".parse().unwrap(), None, 0)
            .unwrap_err()
            .message
    };
    let message = refused("on-9");
    for part in [
        "Pod shop/on-9",
        "Service shop/s",
        "node-9",
        "internalTrafficPolicy is Local",
        "3 known, 3 ready, 0 on this node",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
    assert!(refused("nowhere").contains("which is not known"));
}

#[test]
fn a_strange_traffic_policy_is_rejected_and_a_strange_distribution_reported() {
    let snapshot = Snapshot::from_yaml(settings(), &selecting("internalTrafficPolicy: Nearby"));
    let rejected: Vec<String> = snapshot
        .diagnostics()
        .rejections
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        rejected[0].contains("spec.internalTrafficPolicy is \"Nearby\": expected Cluster or Local"),
        "{rejected:?}"
    );
    let snapshot = Snapshot::from_yaml(settings(), &selecting("trafficDistribution: PreferTheMoon"));
    let notices = &snapshot.diagnostics().notices;
    assert!(
        notices
            .iter()
            .any(|one| one.message.contains("spec.trafficDistribution \"PreferTheMoon\"")),
        "{notices:?}"
    );
}
