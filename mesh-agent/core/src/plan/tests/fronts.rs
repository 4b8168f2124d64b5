//! The addresses of a service beside its ClusterIPs, and clients that keep to an endpoint.

use super::services::{PODS, got};
use super::*;

/// A Service `name` over the pods labelled `app: a`; `spec` and `rest` in flow style.
fn service(name: &str, meta: &str, spec: &str, rest: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop{meta}}}, \
         spec: {{selector: {{app: a}}, ports: [{{port: 80, targetPort: 8080}}], {spec}}}{rest}}}\n"
    )
}

fn with(services: &[String]) -> String {
    format!("{PODS}{}", services.concat())
}

fn read(text: &str) -> Snapshot {
    let snapshot = Snapshot::from_yaml(settings(), text);
    assert_eq!(snapshot.diagnostics().rejections, []);
    snapshot
}

fn rejections(text: &str) -> Vec<String> {
    let snapshot = Snapshot::from_yaml(settings(), text);
    snapshot
        .diagnostics()
        .rejections
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn notices(snapshot: &Snapshot) -> Vec<String> {
    snapshot
        .diagnostics()
        .notices
        .iter()
        .map(ToString::to_string)
        .collect()
}

fn balancer(ingress: &str) -> String {
    format!(", status: {{loadBalancer: {{ingress: [{ingress}]}}}}")
}

const EXTERNAL: &str = "clusterIP: 198.19.0.1, externalIPs: [203.0.113.1]";
const BALANCED: &str = "clusterIP: 198.19.0.1, type: LoadBalancer";

#[test]
fn an_external_address_leads_to_all_endpoints_whatever_the_traffic_policies_say() {
    let spec = |policies: &str| format!("{EXTERNAL}, type: LoadBalancer, {policies}");
    let status = balancer("{ip: 203.0.113.2}, {ip: 203.0.113.3, ipMode: VIP}");
    for (policies, cluster_ip) in [
        ("externalTrafficPolicy: Cluster", "1 2 3"),
        ("externalTrafficPolicy: Local", "1 2 3"),
        ("internalTrafficPolicy: Local", "1"),
        ("internalTrafficPolicy: Local, externalTrafficPolicy: Local", "1"),
    ] {
        let text = with(&[service("s", "", &spec(policies), &status)]);
        assert_eq!(got(&text, "on-1", "198.19.0.1:80"), cluster_ip, "{policies}");
        for address in [
            "203.0.113.1:80",
            "203.0.113.2:80",
            "203.0.113.3:80",
            "[::ffff:203.0.113.1]:80",
        ] {
            assert_eq!(got(&text, "on-1", address), "1 2 3", "{policies} {address}");
            assert_eq!(got(&text, "on-9", address), "1 2 3", "{policies} {address}");
        }
    }
    // What clients prefer, they prefer everywhere.
    let near = with(&[service(
        "s",
        "",
        &format!("{EXTERNAL}, trafficDistribution: PreferSameNode"),
        "",
    )]);
    assert_eq!(got(&near, "on-1", "203.0.113.1:80"), "1");
}

#[test]
fn other_ports_of_an_external_address_are_not_the_services() {
    let text = with(&[service("s", "", EXTERNAL, "")]);
    let snapshot = read(&text);
    assert_eq!(go(&snapshot, "on-1", "203.0.113.1:81", 0), "203.0.113.1:81 plain");
    assert_eq!(go(&snapshot, "on-1", "198.19.0.1:81", 0), "unknown_service_port");
}

#[test]
fn an_external_address_without_endpoints_is_refused() {
    let text = with(&[service("s", "", EXTERNAL, "").replace("{app: a}", "{app: nobody}")]);
    assert_eq!(go(&read(&text), "on-1", "203.0.113.1:80", 0), "no_endpoints");
}

#[test]
fn a_load_balancers_address_counts_in_mode_vip_and_on_its_type_only() {
    for (spec, ingress, expected, noticed) in [
        (BALANCED, "{ip: 203.0.113.2}", "1 2 3", ""),
        (BALANCED, "{ip: 203.0.113.2, ipMode: VIP}", "1 2 3", ""),
        (BALANCED, "{ip: 203.0.113.2, ipMode: Proxy}", "2", ""),
        (BALANCED, "{hostname: lb.example}", "2", ""),
        (
            BALANCED,
            "{ip: 203.0.113.2, ipMode: Magic}",
            "2",
            "ipMode is \"Magic\": expected VIP or Proxy",
        ),
        (
            BALANCED,
            "{ip: 127.0.0.1}",
            "2",
            "status.loadBalancer.ingress[0].ip 127.0.0.1 is a loopback address",
        ),
        (BALANCED, "{ip: 169.254.1.1}", "2", "is a link-local address"),
        (BALANCED, "{ip: nonsense}", "2", "is no IP address"),
        (
            "clusterIP: 198.19.0.1",
            "{ip: 203.0.113.2}",
            "2",
            "the service is not of type LoadBalancer",
        ),
    ] {
        let text = with(&[service("s", "", spec, &balancer(ingress))]);
        let snapshot = read(&text);
        assert_eq!(got(&text, "on-1", "203.0.113.2:80"), expected, "{ingress}");
        let said = notices(&snapshot);
        match noticed {
            "" => assert!(said.is_empty(), "{ingress}: {said:?}"),
            part => assert!(said.len() == 1 && said[0].contains(part), "{ingress}: {said:?}"),
        }
    }
    // "2" above is the last number of the address itself, dialled as it is.
    let proxied = read(&with(&[service(
        "s",
        "",
        BALANCED,
        &balancer("{ip: 203.0.113.2, ipMode: Proxy}"),
    )]));
    assert_eq!(go(&proxied, "on-1", "203.0.113.2:80", 0), "203.0.113.2:80 plain");
}

#[test]
fn external_ips_that_name_no_host_on_the_network_are_rejected() {
    for (address, what) in [
        ("127.0.0.1", "a loopback"),
        ("169.254.169.254", "a link-local"),
        ("'fe80::1'", "a link-local"),
        ("0.0.0.0", "an unspecified"),
        ("'::'", "an unspecified"),
        ("224.0.0.1", "a multicast"),
        ("'ff02::1'", "a multicast"),
        ("nonsense", "no IP address"),
    ] {
        let spec = format!("clusterIP: 198.19.0.1, externalIPs: [203.0.113.1, {address}]");
        let said = rejections(&service("s", "", &spec, ""));
        let named = |one: &String| one.contains("spec.externalIPs[1]") && one.contains(what);
        assert!(said.len() == 1 && said.iter().all(named), "{address}: {said:?}");
    }
}

#[test]
fn an_address_that_is_somebody_elses_already_is_no_service_to_take() {
    let others = "
---
{apiVersion: v1, kind: Node, metadata: {name: node-77}, status: {addresses: [{type: InternalIP, address: 198.18.9.1}, {type: Hostname, address: node-1}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: lodger, namespace: shop}, spec: {hostNetwork: true}, status: {podIP: 198.18.9.2, hostIP: 198.18.9.3}}
---
{apiVersion: v1, kind: Pod, metadata: {name: twin-a, namespace: shop}, status: {podIP: 198.18.9.4}}
---
{apiVersion: v1, kind: Pod, metadata: {name: twin-b, namespace: shop}, status: {podIP: 198.18.9.4}}
---
{apiVersion: v1, kind: Service, metadata: {name: zoo, namespace: shop}, spec: {clusterIP: 198.19.0.9, ports: [{port: 80}]}}
";
    for (address, whose, goes) in [
        (
            "198.18.1.2",
            "the address of Pod shop/on-2",
            "198.18.1.2:80 plain",
        ),
        ("198.18.9.1", "an address of a node", "198.18.9.1:80 plain"),
        ("198.18.9.2", "an address of a node", "198.18.9.2:80 plain"),
        ("198.18.9.3", "an address of a node", "198.18.9.3:80 plain"),
        ("198.18.9.4", "an address that pods claim", "198.18.9.4:80 plain"),
        ("198.19.0.9", "the clusterIP of Service shop/zoo", "no_endpoints"),
    ] {
        for (kind, spec, rest) in [
            (
                "externalIP",
                format!("clusterIP: 198.19.0.1, externalIPs: [{address}]"),
                String::new(),
            ),
            (
                "load-balancer address",
                BALANCED.to_owned(),
                balancer(&format!("{{ip: {address}}}")),
            ),
        ] {
            // Also when the claim is the older one.
            let text = with(&[service("a", "", &spec, &rest)]) + others;
            let snapshot = Snapshot::from_yaml(settings(), &text);
            let source = snapshot
                .workloads()
                .find(|one| one.name == "on-1")
                .unwrap()
                .clone();
            assert_eq!(
                go(&snapshot, "on-1", &format!("{address}:80"), 0),
                goes,
                "{kind} {address}"
            );
            assert!(!source.addresses.is_empty());
            let expected = format!("Service shop/a: {kind} {address} is {whose}");
            let said = notices(&snapshot);
            assert!(
                said.iter().any(|one| one.contains(&expected)),
                "{expected}: {said:?}"
            );
        }
    }
}

#[test]
fn the_oldest_service_keeps_an_external_address_and_port_that_several_claim() {
    let claim = |name: &str, vip: u8, created: &str, ports: &str| {
        let meta = if created.is_empty() {
            String::new()
        } else {
            format!(", creationTimestamp: '{created}'")
        };
        let spec = format!("clusterIP: 198.19.0.{vip}, externalIPs: [203.0.113.1]");
        service(name, &meta, &spec, "").replace("[{port: 80, targetPort: 8080}]", ports)
    };
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z");
    let port = |target: u16| format!("[{{port: 80, targetPort: {target}}}]");
    for (services, expected, said) in [
        (
            [claim("a", 1, new, &port(1)), claim("b", 2, old, &port(2))],
            ":2",
            "Service shop/a: externalIP 203.0.113.1, port 80, belongs to Service shop/b already",
        ),
        (
            [claim("b", 1, old, &port(1)), claim("a", 2, old, &port(2))],
            ":2",
            "Service shop/b: externalIP 203.0.113.1, port 80, belongs to Service shop/a already",
        ),
    ] {
        let snapshot = read(&with(&services));
        let to = go(&snapshot, "on-1", "203.0.113.1:80", 0);
        assert!(to.ends_with(&format!("{expected} plain")), "{to}");
        assert!(
            notices(&snapshot).iter().any(|one| one.contains(said)),
            "{:?}",
            notices(&snapshot)
        );
    }
    // Different ports of one address are different things.
    let shared = [
        claim("a", 1, new, &port(1)),
        claim("b", 2, old, "[{port: 81, targetPort: 2}]"),
    ];
    let snapshot = read(&with(&shared));
    assert!(go(&snapshot, "on-1", "203.0.113.1:80", 0).ends_with(":1 plain"));
    assert!(go(&snapshot, "on-1", "203.0.113.1:81", 0).ends_with(":2 plain"));
    assert_eq!(notices(&snapshot), Vec::<String>::new());
}

#[test]
fn an_external_address_needs_a_cluster_ip_of_its_family() {
    for (spec, rest) in [
        (
            "clusterIP: 198.19.0.1, externalIPs: ['2001:db8:2::1']",
            String::new(),
        ),
        ("clusterIP: None, externalIPs: [203.0.113.1]", String::new()),
        (BALANCED, balancer("{ip: '2001:db8:2::1'}")),
    ] {
        let snapshot = read(&with(&[service("s", "", spec, &rest)]));
        let said = notices(&snapshot);
        assert!(
            said.iter()
                .any(|one| one.contains("has no clusterIP of its family")),
            "{spec}: {said:?}"
        );
        assert_eq!(go(&snapshot, "on-1", "203.0.113.1:80", 0), "203.0.113.1:80 plain");
    }
}

#[test]
fn source_ranges_hold_for_pods_at_the_load_balancers_addresses_alone() {
    // on-1 has 198.18.1.1, on-2 198.18.1.2.
    let ranged = |ranges: &str| {
        let spec = format!("{BALANCED}, externalIPs: [203.0.113.1], loadBalancerSourceRanges: [{ranges}]");
        read(&with(&[service("s", "", &spec, &balancer("{ip: 203.0.113.2}"))]))
    };
    let open =
        |ranges: &str, client: &str| go(&ranged(ranges), client, "203.0.113.2:80", 0) != "source_range";
    assert!(open("198.18.1.0/24", "on-1"));
    assert!(open("10.0.0.0/8, 198.18.1.1/32", "on-1") && !open("10.0.0.0/8, 198.18.1.1/32", "on-2"));
    assert!(
        open("' 198.18.1.77/24 '", "on-1"),
        "blanks and host bits do no harm"
    );
    assert!(!open("10.0.0.0/8", "on-1"));
    assert!(
        !open("'2001:db8::/32'", "on-1"),
        "the other family's ranges open nothing"
    );
    let closed = ranged("10.0.0.0/8");
    for elsewhere in ["198.19.0.1:80", "203.0.113.1:80"] {
        assert!(
            go(&closed, "on-1", elsewhere, 0).ends_with("plain"),
            "{elsewhere}"
        );
    }
    let source = workload(&closed, "on-1");
    let refusal = outbound(&closed, &source, "203.0.113.2:80".parse().unwrap(), None, 0).unwrap_err();
    for part in [
        "Pod shop/on-1",
        "Service shop/s",
        "10.0.0.0/8",
        "spec.loadBalancerSourceRanges",
    ] {
        assert!(refusal.message.contains(part), "{part}: {refusal}");
    }
    let said = rejections(&service(
        "s",
        "",
        &format!("{BALANCED}, loadBalancerSourceRanges: [10.0.0.0]"),
        "",
    ));
    assert!(
        said[0].contains("spec.loadBalancerSourceRanges[0] \"10.0.0.0\" is no address range"),
        "{said:?}"
    );
    let idle = read(&with(&[service(
        "s",
        "",
        "clusterIP: 198.19.0.1, loadBalancerSourceRanges: [10.0.0.0/8]",
        "",
    )]));
    assert!(
        notices(&idle)[0].contains("spec.loadBalancerSourceRanges has no effect"),
        "{:?}",
        notices(&idle)
    );
}

#[test]
fn hairpins_through_every_kind_of_address_stay_in_the_pod() {
    let spec = format!(
        "{BALANCED}, clusterIPs: [198.19.0.1, '2001:db8:1::1'], externalIPs: [203.0.113.1, '2001:db8:2::1']"
    );
    let text = "
{apiVersion: v1, kind: Pod, metadata: {name: self, namespace: shop, labels: {app: a, mesh-agent.io/dataplane: enabled}}, status: {podIPs: [{ip: 198.18.0.1}, {ip: '2001:db8::1'}]}}
".to_owned() + &service("s", "", &spec, &balancer("{ip: 203.0.113.2}, {ip: '2001:db8:2::2'}"));
    let snapshot = read(&text);
    for four in [
        "198.19.0.1:80",
        "203.0.113.1:80",
        "203.0.113.2:80",
        "198.18.0.1:8080",
    ] {
        assert_eq!(
            go(&snapshot, "self", four, 0),
            "198.18.0.1:8080 hairpin",
            "{four}"
        );
    }
    for six in [
        "[2001:db8:1::1]:80",
        "[2001:db8:2::1]:80",
        "[2001:db8:2::2]:80",
        "[2001:db8::1]:8080",
    ] {
        assert_eq!(
            go(&snapshot, "self", six, 0),
            "[2001:db8::1]:8080 hairpin",
            "{six}"
        );
    }
}

#[test]
fn affinity_is_read_with_its_timeout_or_rejected() {
    let read_affinity = |spec: &str| {
        let snapshot = read(&with(&[service(
            "s",
            "",
            &format!("clusterIP: 198.19.0.1, {spec}"),
            "",
        )]));
        let session = session(&snapshot, "198.19.0.1:80".parse().unwrap());
        (
            session.map(|session| session.timeout.as_secs()),
            notices(&snapshot).len(),
        )
    };
    let config =
        |seconds: &str| format!("sessionAffinityConfig: {{clientIP: {{timeoutSeconds: {seconds}}}}}");
    for (spec, expected) in [
        ("sessionAffinity: None".to_owned(), (None, 0)),
        ("sessionAffinity: ClientIP".to_owned(), (Some(10_800), 0)),
        (
            "sessionAffinity: ClientIP, sessionAffinityConfig: {}".to_owned(),
            (Some(10_800), 0),
        ),
        (
            format!("sessionAffinity: ClientIP, {}", config("1")),
            (Some(1), 0),
        ),
        (
            format!("sessionAffinity: ClientIP, {}", config("86400")),
            (Some(86_400), 0),
        ),
        (config("5"), (None, 1)),
    ] {
        assert_eq!(read_affinity(&spec), expected, "{spec}");
    }
    for (spec, expected) in [
        (
            "sessionAffinity: Cookie".to_owned(),
            "spec.sessionAffinity is \"Cookie\": expected ClientIP or None",
        ),
        (
            format!("sessionAffinity: ClientIP, {}", config("0")),
            "timeoutSeconds is 0: expected 1 to 86400 seconds",
        ),
        (
            format!("sessionAffinity: ClientIP, {}", config("-1")),
            "timeoutSeconds is -1: expected",
        ),
        (
            format!("sessionAffinity: ClientIP, {}", config("86401")),
            "timeoutSeconds is 86401: expected",
        ),
    ] {
        let said = rejections(&service("s", "", &format!("clusterIP: 198.19.0.1, {spec}"), ""));
        assert!(said.len() == 1 && said[0].contains(expected), "{spec}: {said:?}");
    }
    let headless = read(&with(&[service(
        "s",
        "",
        "clusterIP: None, sessionAffinity: ClientIP",
        "",
    )]));
    assert!(
        notices(&headless)[0].contains("spec.sessionAffinity has no effect on a service without an address")
    );
}

#[test]
fn a_session_is_the_services_port_at_any_of_its_addresses() {
    let spec = format!("{BALANCED}, externalIPs: [203.0.113.1], sessionAffinity: ClientIP");
    let snapshot = read(&with(&[service("s", "", &spec, &balancer("{ip: 203.0.113.2}"))]));
    let of = |address: &str| session(&snapshot, address.parse().unwrap());
    let one = of("198.19.0.1:80").unwrap();
    assert_eq!((one.service.to_string().as_str(), one.port), ("shop/s", 80));
    for same in ["203.0.113.1:80", "203.0.113.2:80", "[::ffff:198.19.0.1]:80"] {
        assert_eq!(of(same).as_ref(), Some(&one), "{same}");
    }
    for none in ["203.0.113.1:81", "203.0.113.9:80", "198.18.0.1:8080"] {
        assert_eq!(of(none), None, "{none}");
    }
}

#[test]
fn the_previous_endpoint_is_honoured_only_while_it_may_be_picked() {
    let one = |address: u8, ready: bool, terminating: bool| {
        format!(
            "{{addresses: [203.0.113.{address}], conditions: {{ready: {ready}, serving: true, terminating: {terminating}}}, nodeName: node-{address}}}"
        )
    };
    let sliced = |policy: &str, endpoints: &[String]| {
        format!(
            "{PODS}---\n{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop}}, spec: {{clusterIP: 198.19.0.1, \
             sessionAffinity: ClientIP, ports: [{{port: 80}}], {policy}}}}}\n\
             ---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, ports: [{{port: 80}}], \
             metadata: {{name: s-1, namespace: shop, labels: {{kubernetes.io/service-name: s}}}}, endpoints: [{}]}}\n",
            endpoints.join(", ")
        )
    };
    let keeps = |text: &str, previous: u8| {
        let snapshot = read(text);
        let source = workload(&snapshot, "on-1");
        let previous = format!("203.0.113.{previous}:80").parse().unwrap();
        let kept = |random| {
            let to = outbound(
                &snapshot,
                &source,
                "198.19.0.1:80".parse().unwrap(),
                Some(previous),
                random,
            );
            to.unwrap().address == previous
        };
        (0..20).all(kept)
    };
    let both = [one(1, true, false), one(2, true, false)];
    assert!(keeps(&sliced("", &both), 1) && keeps(&sliced("", &both), 2));
    assert!(!keeps(&sliced("", &both), 3), "gone");
    let leaving = [one(1, false, true), one(2, true, false)];
    assert!(
        !keeps(&sliced("", &leaving), 1),
        "a leaving endpoint is left while there is a ready one"
    );
    let all_leaving = [one(1, false, true), one(2, false, true)];
    assert!(
        keeps(&sliced("", &all_leaving), 1) && keeps(&sliced("", &all_leaving), 2),
        "and kept as a last resort"
    );
    assert!(
        !keeps(&sliced("internalTrafficPolicy: Local", &both), 2),
        "on another node"
    );
    assert!(
        !keeps(&sliced("trafficDistribution: PreferSameNode", &both), 2),
        "not preferred any more"
    );
    let unready = [
        one(1, true, false),
        "{addresses: [203.0.113.2], conditions: {ready: false}}".to_owned(),
    ];
    assert!(!keeps(&sliced("", &unready), 2), "not ready");
}
