//! Who may go where, by the documents that say so.

mod explain;
mod fronts;
mod services;
mod slices;
mod uncaptured;

use proptest::prelude::*;

use super::*;
use crate::model::{TrustDomain, WorkloadUid};
use crate::snapshot::{MeshSettings, Snapshot};

fn settings() -> MeshSettings {
    MeshSettings {
        node_name: "node-1".into(),
        trust_domain_aliases: vec!["old.example".parse().unwrap()],
        ..MeshSettings::default()
    }
}

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh-agent.io/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: order, namespace: shop, labels: {app: order}}
spec: {nodeName: node-1, serviceAccountName: order}
status: {podIPs: [{ip: 198.18.0.1}, {ip: '2001:db8::1'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: payment, namespace: shop, labels: {app: payment}}
spec:
  nodeName: node-2
  serviceAccountName: payment
  containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]
status: {podIPs: [{ip: 198.18.0.2}, {ip: '2001:db8::2'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: visitor, namespace: outside, labels: {app: visitor}}
status: {podIP: 198.18.0.3}
---
apiVersion: v1
kind: Pod
metadata: {name: twin-a, namespace: shop}
status: {podIP: 198.18.0.4}
---
apiVersion: v1
kind: Pod
metadata: {name: twin-b, namespace: outside}
status: {podIP: 198.18.0.4}
---
apiVersion: v1
kind: Pod
metadata: {name: on-host, namespace: shop}
spec: {hostNetwork: true}
status: {podIP: 198.18.9.1, hostIP: 198.18.9.1}
---
apiVersion: v1
kind: Service
metadata: {name: payment, namespace: shop}
spec:
  clusterIPs: [198.19.0.1, '2001:db8:1::1']
  selector: {app: payment}
  ports: [{name: http, port: 80, targetPort: web}, {name: agent, port: 81, targetPort: 15008}]
---
apiVersion: v1
kind: Service
metadata: {name: everyone, namespace: shop}
spec:
  clusterIP: 198.19.0.2
  ports: [{name: web, port: 80}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: everyone-1, namespace: shop, labels: {kubernetes.io/service-name: everyone}}
addressType: IPv4
ports: [{name: web, port: 8080}]
endpoints:
- addresses: [198.18.0.1]
- addresses: [198.18.0.3]
- addresses: [198.18.0.2]
- addresses: [198.18.0.4]
- addresses: [203.0.113.7]
  conditions: {ready: false}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 198.19.0.3, selector: {app: nobody}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: leaving, namespace: shop}
spec: {clusterIP: 198.19.0.4, ports: [{port: 80}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: leaving-1, namespace: shop, labels: {kubernetes.io/service-name: leaving}}
addressType: IPv4
ports: [{port: 8080}]
endpoints:
- addresses: [198.18.0.2]
  conditions: {ready: false, serving: true, terminating: true}
- addresses: [198.18.0.3]
  conditions: {ready: false, serving: false, terminating: true}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: strict, namespace: shop}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: payment, namespace: shop}
spec:
  selector: {matchLabels: {app: payment}}
  portLevelMtls: {9090: {mode: PERMISSIVE}}
";

fn mesh() -> Snapshot {
    let snapshot = Snapshot::from_yaml(settings(), MESH);
    assert_eq!(snapshot.diagnostics().rejections, []);
    snapshot
}

fn workload(snapshot: &Snapshot, name: &str) -> Arc<Workload> {
    snapshot
        .workloads()
        .find(|workload| workload.name == name)
        .unwrap()
        .clone()
}

/// In short: where it goes and how, or why not.
fn go(snapshot: &Snapshot, source: &str, destination: &str, random: u64) -> String {
    match outbound(
        snapshot,
        &workload(snapshot, source),
        destination.parse().unwrap(),
        None,
        random,
    ) {
        Ok(Outbound {
            address, transport, ..
        }) => match transport {
            Transport::Tunnel { gateway, expected } => {
                format!("{address} by {gateway} as {}", expected.service_account())
            }
            Transport::Passthrough => format!("{address} plain"),
            Transport::Hairpin => format!("{address} hairpin"),
        },
        Err(refusal) => refusal.reason.as_str().to_owned(),
    }
}

#[test]
fn connections_go_where_the_documents_say() {
    let snapshot = mesh();
    for (destination, expected) in [
        (
            "198.18.0.2:8080",
            "198.18.0.2:8080 by 198.18.0.2:15008 as payment",
        ),
        (
            "[2001:db8::2]:8080",
            "[2001:db8::2]:8080 by [2001:db8::2]:15008 as payment",
        ),
        (
            "[::ffff:198.18.0.2]:8080",
            "198.18.0.2:8080 by 198.18.0.2:15008 as payment",
        ),
        ("198.19.0.1:80", "198.18.0.2:8080 by 198.18.0.2:15008 as payment"),
        (
            "[2001:db8:1::1]:80",
            "[2001:db8::2]:8080 by [2001:db8::2]:15008 as payment",
        ),
        ("198.19.0.1:8080", "unknown_service_port"),
        ("198.19.0.1:81", "forbidden_destination"),
        ("198.19.0.3:80", "no_endpoints"),
        ("198.19.0.4:80", "198.18.0.2:8080 by 198.18.0.2:15008 as payment"),
        ("198.18.0.3:80", "198.18.0.3:80 plain"),
        ("198.18.0.3:15008", "198.18.0.3:15008 plain"),
        ("198.18.9.1:80", "198.18.9.1:80 plain"),
        ("203.0.113.1:443", "203.0.113.1:443 plain"),
        ("198.18.0.1:8080", "198.18.0.1:8080 hairpin"),
        ("[2001:db8::1]:8080", "[2001:db8::1]:8080 hairpin"),
        ("198.18.0.1:15001", "forbidden_destination"),
        ("198.18.0.2:15008", "forbidden_destination"),
        ("198.18.0.2:15006", "forbidden_destination"),
        ("[2001:db8::2]:15104", "forbidden_destination"),
        ("198.18.0.4:80", "contested_address"),
        ("127.0.0.1:80", "forbidden_destination"),
        ("[::ffff:127.0.0.1]:80", "forbidden_destination"),
        ("[::1]:80", "forbidden_destination"),
        ("0.0.0.0:80", "forbidden_destination"),
        ("[::]:80", "forbidden_destination"),
        ("169.254.169.254:80", "169.254.169.254:80 plain"),
        ("[fe80::1]:80", "forbidden_destination"),
        ("224.0.0.1:80", "forbidden_destination"),
        ("[ff02::1]:80", "forbidden_destination"),
    ] {
        assert_eq!(go(&snapshot, "order", destination, 0), expected, "{destination}");
    }
}

#[test]
fn each_ready_endpoint_of_a_service_gets_its_share_and_others_none() {
    let snapshot = mesh();
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for random in 0..400 {
        *seen
            .entry(go(&snapshot, "order", "198.19.0.2:80", random))
            .or_default() += 1;
    }
    let expected = [
        "198.18.0.1:8080 hairpin",
        "198.18.0.2:8080 by 198.18.0.2:15008 as payment",
        "198.18.0.3:8080 plain",
        "contested_address",
    ];
    assert_eq!(seen, expected.iter().map(|to| ((*to).to_owned(), 100)).collect());
}

#[test]
fn the_service_that_was_addressed_is_told() {
    let snapshot = mesh();
    let order = workload(&snapshot, "order");
    let out = outbound(&snapshot, &order, "198.19.0.1:80".parse().unwrap(), None, 1).unwrap();
    assert_eq!(out.service.unwrap().hostname, "payment.shop.svc.cluster.local");
    assert_eq!(out.destination.unwrap().name, "payment");
    assert!(
        outbound(&snapshot, &order, "198.18.0.2:80".parse().unwrap(), None, 1)
            .unwrap()
            .service
            .is_none()
    );
}

#[test]
fn a_source_that_is_gone_goes_nowhere() {
    let old = mesh();
    let next = Snapshot::empty(settings());
    let refusal = outbound(
        &next,
        &workload(&old, "order"),
        "198.18.0.2:80".parse().unwrap(),
        None,
        0,
    )
    .unwrap_err();
    assert_eq!(refusal.reason, Reason::UnknownWorkload);
    assert!(refusal.message.contains("Pod shop/order"), "{refusal}");
}

fn come(
    snapshot: &Snapshot,
    destination: &str,
    identity: Option<&str>,
    address: &str,
) -> Result<SocketAddr, Refusal> {
    let identity: Option<SpiffeId> = identity.map(|id| id.parse().unwrap());
    let facts = Inbound {
        client: "198.18.0.77".parse().unwrap(),
        identity: identity.as_ref(),
        address: address.parse().unwrap(),
    };
    inbound(snapshot, &workload(snapshot, destination).uid, &facts).map(|permit| {
        assert_eq!(permit.destination().name, destination);
        permit.address()
    })
}

/// Where it is delivered, or why not.
type Outcome = Result<&'static str, Reason>;

#[test]
fn connections_are_delivered_or_refused_by_identity_policy_and_address() {
    let snapshot = mesh();
    let order = Some("spiffe://cluster.local/ns/shop/sa/order");
    let table: &[(&str, Option<&str>, &str, Outcome)] = &[
        ("payment", order, "198.18.0.2:8080", Ok("198.18.0.2:8080")),
        (
            "payment",
            order,
            "[::ffff:198.18.0.2]:8080",
            Ok("198.18.0.2:8080"),
        ),
        ("payment", order, "[2001:db8::2]:1", Ok("[2001:db8::2]:1")),
        (
            "payment",
            Some("spiffe://old.example/ns/x/sa/y"),
            "198.18.0.2:8080",
            Ok("198.18.0.2:8080"),
        ),
        (
            "payment",
            Some("spiffe://evil.example/ns/shop/sa/order"),
            "198.18.0.2:8080",
            Err(Reason::ForeignTrustDomain),
        ),
        ("payment", None, "198.18.0.2:8080", Err(Reason::PlaintextRefused)),
        ("payment", None, "198.18.0.2:9090", Ok("198.18.0.2:9090")),
        ("order", None, "198.18.0.1:9090", Err(Reason::PlaintextRefused)),
        ("visitor", None, "198.18.0.3:80", Ok("198.18.0.3:80")),
        ("payment", order, "198.18.0.1:8080", Err(Reason::WrongAuthority)),
        ("payment", order, "127.0.0.1:8080", Err(Reason::WrongAuthority)),
        ("payment", order, "198.18.0.2:0", Err(Reason::WrongAuthority)),
        (
            "payment",
            order,
            "198.18.0.2:15008",
            Err(Reason::ForbiddenDestination),
        ),
        (
            "payment",
            order,
            "198.18.0.2:15110",
            Err(Reason::ForbiddenDestination),
        ),
        (
            "payment",
            None,
            "198.18.0.2:15001",
            Err(Reason::ForbiddenDestination),
        ),
    ];
    for (destination, identity, address, expected) in table {
        let got = come(&snapshot, destination, *identity, address).map(|to| to.to_string());
        let expected = expected.map(str::to_owned);
        assert_eq!(
            got.map_err(|refusal| refusal.reason),
            expected,
            "{destination} {identity:?} {address}"
        );
    }
}

#[test]
fn a_refusal_names_who_what_and_the_policy() {
    let snapshot = mesh();
    let refusal = come(&snapshot, "payment", None, "198.18.0.2:8080")
        .unwrap_err()
        .message;
    for part in [
        "198.18.0.77",
        "198.18.0.2:8080",
        "Pod shop/payment",
        "PeerAuthentication shop/strict",
        "STRICT",
    ] {
        assert!(refusal.contains(part), "{part}: {refusal}");
    }
    let empty = Snapshot::empty(settings());
    let facts = Inbound {
        client: "198.18.0.77".parse().unwrap(),
        identity: None,
        address: "198.18.0.2:80".parse().unwrap(),
    };
    let uid = WorkloadUid::new("shop", "payment", "");
    assert_eq!(
        inbound(&empty, &uid, &facts).unwrap_err().reason,
        Reason::UnknownWorkload
    );
}

#[test]
fn an_authority_is_an_address_of_the_pod_and_nothing_else() {
    let pod: Vec<IpAddr> = vec!["198.18.0.2".parse().unwrap(), "2001:db8::2".parse().unwrap()];
    for (authority, expected) in [
        ("198.18.0.2:80", Ok("198.18.0.2:80")),
        ("[2001:db8::2]:80", Ok("[2001:db8::2]:80")),
        ("[2001:DB8:0::2]:80", Ok("[2001:db8::2]:80")),
        ("[::ffff:198.18.0.2]:80", Ok("198.18.0.2:80")),
        ("198.18.0.2:15008", Err(Reason::ForbiddenDestination)),
        ("198.18.0.2:15001", Err(Reason::ForbiddenDestination)),
        ("198.18.0.3:80", Err(Reason::WrongAuthority)),
        ("127.0.0.1:80", Err(Reason::WrongAuthority)),
        ("[::1]:80", Err(Reason::WrongAuthority)),
        ("[2001:db8::2%3]:80", Err(Reason::WrongAuthority)),
        ("2001:db8::2:80", Err(Reason::WrongAuthority)),
        ("198.18.0.2", Err(Reason::WrongAuthority)),
        ("198.18.0.2:", Err(Reason::WrongAuthority)),
        ("198.18.0.2:0", Err(Reason::WrongAuthority)),
        ("198.18.0.2:65536", Err(Reason::WrongAuthority)),
        ("198.018.0.2:80", Err(Reason::WrongAuthority)),
        ("user@198.18.0.2:80", Err(Reason::WrongAuthority)),
        (" 198.18.0.2:80", Err(Reason::WrongAuthority)),
        ("payment.shop.svc.cluster.local:80", Err(Reason::WrongAuthority)),
        ("", Err(Reason::WrongAuthority)),
    ] {
        let got = hbone_authority(authority, &pod)
            .map(|to| to.to_string())
            .map_err(|refusal| refusal.reason);
        assert_eq!(got, expected.map(str::to_owned), "{authority}");
    }
}

/// Pods with few addresses between them, so that they meet; services over them.
fn any_mesh() -> impl Strategy<Value = String> {
    let pod = (0..6u8, any::<bool>(), any::<bool>(), any::<bool>(), 0..4u8);
    let endpoint = (0..8u8, any::<bool>(), any::<bool>(), any::<bool>());
    let pods = proptest::collection::vec(pod, 0..8);
    (pods, proptest::collection::vec(endpoint, 0..6)).prop_map(|(pods, endpoints)| {
        let mut text = String::new();
        for (i, (address, enrolled, host, terminating, node)) in pods.into_iter().enumerate() {
            let label = if enrolled { "enabled" } else { "disabled" };
            let gone = if terminating { ", deletionTimestamp: '2026-01-01T00:00:00Z'" } else { "" };
            text.push_str(&format!(
                "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p{i}, namespace: shop, labels: {{mesh-agent.io/dataplane: {label}, a: b}}{gone}}}\n\
                 spec: {{hostNetwork: {host}}}\nstatus: {{podIP: 198.18.0.{address}, hostIP: 198.18.0.{}}}\n",
                node + 5
            ));
        }
        text.push_str(
            "---\napiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: shop}\nspec: {clusterIP: 198.19.0.1, ports: [{port: 80}]}\n\
             ---\napiVersion: v1\nkind: Service\nmetadata: {name: t, namespace: shop}\nspec: {clusterIP: 198.19.0.2, externalIPs: [198.18.0.2, 198.18.0.9], selector: {a: b}, ports: [{port: 80}, {name: alt, port: 8080}]}\n\
             ---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nports: [{port: 8080}]\n\
             metadata: {name: s, namespace: shop, labels: {kubernetes.io/service-name: s}}\nendpoints:\n",
        );
        for (address, ready, serving, terminating) in endpoints {
            text.push_str(&format!(
                "- {{addresses: [198.18.0.{address}], conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}}}\n"
            ));
        }
        text
    })
}

proptest! {
    #[test]
    fn an_enrolled_destination_is_never_dialled_in_plaintext(text in any_mesh(), random: u64, last in 0..10u8, vip: bool) {
        let snapshot = Snapshot::from_yaml(settings(), &text);
        let destination = if vip {
            format!("198.19.0.{}:80", last % 3)
        } else {
            format!("198.18.0.{last}:8080")
        };
        for source in snapshot.workloads() {
            let Ok(out) = outbound(&snapshot, source, destination.parse().unwrap(), None, random) else { continue };
            let enrolled: Vec<_> = snapshot
                .workloads()
                .filter(|w| w.enrolment.is_enrolled() && w.addresses.contains(&out.address.ip()))
                .collect();
            match out.transport {
                Transport::Passthrough => prop_assert!(enrolled.is_empty(), "{text}\n{destination} {out:?}"),
                Transport::Tunnel { gateway, expected } => {
                    prop_assert_eq!(gateway, SocketAddr::new(out.address.ip(), 15008));
                    prop_assert!(enrolled.iter().any(|w| w.identity == expected));
                }
                Transport::Hairpin => prop_assert!(source.addresses.contains(&out.address.ip())),
            }
        }
    }

    #[test]
    fn only_local_trust_domains_and_own_addresses_are_permitted(
        domain in "[a-c]{1,2}", last in 0..6u8, port: u16, plain: bool
    ) {
        let snapshot = mesh();
        let payment = workload(&snapshot, "payment");
        let domain: TrustDomain = if domain == "a" { "cluster.local".parse().unwrap() } else { domain.parse().unwrap() };
        let id = SpiffeId::new(domain.clone(), "shop", "order").unwrap();
        let address = SocketAddr::new(format!("198.18.0.{last}").parse().unwrap(), port);
        let facts = Inbound { client: "198.18.0.77".parse().unwrap(), identity: (!plain).then_some(&id), address };
        if let Ok(permit) = inbound(&snapshot, &payment.uid, &facts) {
            prop_assert_eq!(permit.address(), address);
            prop_assert!(payment.addresses.contains(&address.ip()) && port != 15008 && port != 0);
            let fits = if plain { port == 9090 } else { domain.as_str() == "cluster.local" };
            prop_assert!(fits);
        }
    }

    #[test]
    fn no_authority_makes_the_parser_panic_or_leave_the_pod(authority in ".{0,60}") {
        let pod: Vec<IpAddr> = vec!["198.18.0.2".parse().unwrap()];
        if let Ok(address) = hbone_authority(&authority, &pod) {
            prop_assert!(pod.contains(&address.ip()));
        }
    }
}
