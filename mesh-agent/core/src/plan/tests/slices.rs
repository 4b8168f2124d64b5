//! Services whose endpoints somebody writes by hand, that have several slices, or none; and what a pod that comes to an address finds.

use super::services::got;
use super::*;

fn read(text: &str) -> Snapshot {
    let snapshot = Snapshot::from_yaml(settings(), text);
    assert_eq!(snapshot.diagnostics().rejections, []);
    snapshot
}

fn notices(snapshot: &Snapshot) -> String {
    let all: Vec<String> = snapshot
        .diagnostics()
        .notices
        .iter()
        .map(ToString::to_string)
        .collect();
    all.join("\n")
}

const CLIENT: &str = "{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop, labels: {mesh-agent.io/dataplane: enabled}}, status: {podIPs: [{ip: 198.18.1.1}, {ip: '2001:db8:1::1'}]}}\n";

fn service(spec: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop}}, spec: {{{spec}}}}}\n"
    )
}

fn slice(name: &str, kind: &str, ports: &str, endpoints: &str) -> String {
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: {kind}, ports: [{ports}], \
         metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: s}}}}, endpoints: [{endpoints}]}}\n"
    )
}

#[test]
fn endpoints_by_hand_lead_inside_and_outside_the_mesh() {
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: inside, namespace: shop, labels: {mesh-agent.io/dataplane: enabled}}, spec: {serviceAccountName: in}, status: {podIP: 198.18.0.2}}\n";
    let text = CLIENT.to_owned()
        + pod
        + &service("clusterIP: 198.19.0.1, ports: [{port: 80}]")
        + &slice("one", "IPv4", "{port: 9000}", "{addresses: [192.0.2.7]}")
        + &slice("two", "IPv4", "{port: 9001}", "{addresses: [198.18.0.2]}");
    let snapshot = read(&text);
    assert_eq!(
        go(&snapshot, "client", "198.19.0.1:80", 0),
        "192.0.2.7:9000 plain"
    );
    assert_eq!(
        go(&snapshot, "client", "198.19.0.1:80", 1),
        "198.18.0.2:9001 by 198.18.0.2:15008 as in"
    );
}

#[test]
fn endpoints_that_are_host_names_serve_nobody_and_are_reported() {
    let text = CLIENT.to_owned()
        + &service("clusterIP: 198.19.0.1, ports: [{port: 80}]")
        + &slice("names", "FQDN", "{port: 80}", "{addresses: [db.example]}");
    let snapshot = read(&text);
    assert_eq!(go(&snapshot, "client", "198.19.0.1:80", 0), "no_endpoints");
    assert!(
        notices(&snapshot).contains(
            "EndpointSlice shop/names: addressType FQDN: endpoints that are host names are not used"
        ),
        "{}",
        notices(&snapshot)
    );
    let beside = text + &slice("numbers", "IPv4", "{port: 80}", "{addresses: [192.0.2.7]}");
    assert_eq!(
        go(&read(&beside), "client", "198.19.0.1:80", 0),
        "192.0.2.7:80 plain"
    );
}

#[test]
fn an_endpoint_in_several_slices_gets_one_share_and_its_best_word() {
    let ready = "{addresses: [192.0.2.1]}";
    let leaving = "{addresses: [192.0.2.1], conditions: {ready: false, serving: true, terminating: true}}";
    let other = "{addresses: [192.0.2.2]}";
    for (first, second) in [(ready, leaving), (leaving, ready), (ready, ready)] {
        let text = CLIENT.to_owned()
            + &service("clusterIP: 198.19.0.1, ports: [{port: 80}]")
            + &slice("a", "IPv4", "{port: 80}", &format!("{first}, {other}"))
            + &slice("b", "IPv4", "{port: 80}", second);
        let snapshot = read(&text);
        let all = &snapshot
            .service_by_vip("198.19.0.1".parse().unwrap())
            .unwrap()
            .endpoints[&80];
        assert_eq!(all.len(), 2, "{all:?}");
        let first = (0..100)
            .filter(|random| go(&snapshot, "client", "198.19.0.1:80", *random).starts_with("192.0.2.1:"));
        assert_eq!(first.count(), 50);
    }
}

#[test]
fn a_named_target_port_is_each_pods_own() {
    let pod = |name: &str, address: u8, port: u16| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{app: a}}}}, \
             spec: {{containers: [{{name: c, ports: [{{name: web, containerPort: {port}}}]}}]}}, status: {{podIP: 198.18.0.{address}}}}}\n"
        )
    };
    let spec = "clusterIP: 198.19.0.1, selector: {app: a}, ports: [{name: w, port: 80, targetPort: web, appProtocol: kubernetes.io/h2c}]";
    let derived = CLIENT.to_owned() + &service(spec) + &pod("old", 1, 8080) + &pod("new", 2, 9090);
    // As the controller writes it: a slice for each number behind the name.
    let sliced = CLIENT.to_owned()
        + &service(spec)
        + &slice(
            "old",
            "IPv4",
            "{name: w, port: 8080}",
            "{addresses: [198.18.0.1]}",
        )
        + &slice(
            "new",
            "IPv4",
            "{name: w, port: 9090}",
            "{addresses: [198.18.0.2]}",
        );
    for text in [derived, sliced] {
        let snapshot = read(&text);
        let seen: std::collections::BTreeSet<_> = (0..20)
            .map(|random| go(&snapshot, "client", "198.19.0.1:80", random))
            .collect();
        assert_eq!(
            seen,
            [
                "198.18.0.1:8080 plain".to_owned(),
                "198.18.0.2:9090 plain".to_owned()
            ]
            .into()
        );
        let service = snapshot.service_by_vip("198.19.0.1".parse().unwrap()).unwrap();
        assert_eq!(
            service.ports[0].app_protocol.as_deref(),
            Some("kubernetes.io/h2c")
        );
    }
}

#[test]
fn each_family_of_a_dual_stack_service_has_its_own_endpoints() {
    let text = CLIENT.to_owned()
        + &service("clusterIPs: [198.19.0.1, '2001:db8:2::1'], ports: [{port: 80}]")
        + &slice("four", "IPv4", "{port: 80}", "{addresses: [192.0.2.1]}")
        + &slice("six", "IPv6", "{port: 80}", "{addresses: ['2001:db8:3::1']}");
    let snapshot = read(&text);
    for random in 0..4 {
        assert_eq!(
            go(&snapshot, "client", "198.19.0.1:80", random),
            "192.0.2.1:80 plain"
        );
        assert_eq!(
            go(&snapshot, "client", "[2001:db8:2::1]:80", random),
            "[2001:db8:3::1]:80 plain"
        );
    }
    let half = text.replace("{addresses: ['2001:db8:3::1']}", "");
    assert_eq!(
        go(&read(&half), "client", "[2001:db8:2::1]:80", 0),
        "no_endpoints"
    );
}

#[test]
fn services_without_an_address_leave_their_clients_to_themselves() {
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: a, mesh-agent.io/dataplane: enabled}}, spec: {serviceAccountName: a}, status: {podIP: 198.18.0.1}}\n";
    let headless =
        CLIENT.to_owned() + pod + &service("clusterIP: None, selector: {app: a}, ports: [{port: 80}]");
    let snapshot = read(&headless);
    assert_eq!(
        go(&snapshot, "client", "198.18.0.1:80", 0),
        "198.18.0.1:80 by 198.18.0.1:15008 as a"
    );
    assert_eq!(notices(&snapshot), "");
    let alias = CLIENT.to_owned() + &service("type: ExternalName, externalName: db.example");
    let snapshot = read(&alias);
    assert_eq!(snapshot.services().count(), 0);
    assert!(
        notices(&snapshot).contains("an ExternalName service is a DNS alias"),
        "{}",
        notices(&snapshot)
    );
}

#[test]
fn nobody_behind_a_service_means_refused_in_every_form() {
    let unready = slice(
        "u",
        "IPv4",
        "{port: 80}",
        "{addresses: [192.0.2.1], conditions: {ready: false}}",
    );
    let other_name = slice(
        "named",
        "IPv4",
        "{name: other, port: 80}",
        "{addresses: [192.0.2.1]}",
    );
    for rest in [
        String::new(),
        slice("bare", "IPv4", "{port: 80}", ""),
        unready,
        other_name,
    ] {
        for spec in ["", ", selector: {app: nobody}", ", sessionAffinity: ClientIP"] {
            let text = CLIENT.to_owned()
                + &service(&format!("clusterIP: 198.19.0.1, ports: [{{port: 80}}]{spec}"))
                + &rest;
            assert_eq!(
                got(&text, "client", "198.19.0.1:80"),
                "no_endpoints",
                "{spec} {rest}"
            );
        }
    }
}

fn pod(name: &str, account: &str, address: &str, more: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, uid: u-{name}, labels: {{mesh-agent.io/dataplane: enabled}}{more}}}, \
         spec: {{serviceAccountName: {account}}}, status: {{podIP: {address}}}}}\n"
    )
}

#[test]
fn a_pod_that_comes_to_an_address_is_expected_under_its_own_identity_from_its_snapshot_on() {
    let leaving = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let before = read(&(CLIENT.to_owned() + &pod("a", "first", "198.18.0.7", "")));
    let between = read(
        &(CLIENT.to_owned()
            + &pod("a", "first", "198.18.0.7", leaving)
            + &pod("b", "second", "198.18.0.7", "")),
    );
    let unclear = read(
        &(CLIENT.to_owned() + &pod("a", "first", "198.18.0.7", "") + &pod("b", "second", "198.18.0.7", "")),
    );
    let after = read(&(CLIENT.to_owned() + &pod("b", "second", "198.18.0.7", "")));
    let gone = read(CLIENT);
    let go = |snapshot: &Snapshot| go(snapshot, "client", "198.18.0.7:80", 0);
    assert_eq!(go(&before), "198.18.0.7:80 by 198.18.0.7:15008 as first");
    assert_eq!(go(&between), "198.18.0.7:80 by 198.18.0.7:15008 as second");
    assert_eq!(go(&unclear), "contested_address");
    assert_eq!(go(&after), "198.18.0.7:80 by 198.18.0.7:15008 as second");
    assert_eq!(go(&gone), "198.18.0.7:80 plain");
    // On the other side: what arrives for the one is not delivered by the other's snapshot.
    let facts = Inbound {
        client: "198.18.1.1".parse().unwrap(),
        identity: None,
        address: "198.18.0.7:80".parse().unwrap(),
    };
    let first = workload(&before, "a").uid.clone();
    let second = workload(&after, "b").uid.clone();
    assert!(inbound(&before, &first, &facts).is_ok() && inbound(&after, &second, &facts).is_ok());
    assert_eq!(
        inbound(&after, &first, &facts).unwrap_err().reason,
        Reason::UnknownWorkload
    );
    assert_eq!(
        inbound(&before, &second, &facts).unwrap_err().reason,
        Reason::UnknownWorkload
    );
    // And as clients: a pod that is gone opens nothing, whoever has its address now.
    let elsewhere = "192.0.2.1:80".parse().unwrap();
    let refused = outbound(&after, &workload(&before, "a"), elsewhere, None, 0).unwrap_err();
    assert_eq!(refused.reason, Reason::UnknownWorkload);
}
