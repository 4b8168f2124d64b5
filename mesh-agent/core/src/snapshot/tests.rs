//! What becomes of documents once they stand together.

mod changes;

use proptest::prelude::*;

use super::*;
use crate::model::{Enrolment, Scope};

fn settings() -> MeshSettings {
    MeshSettings {
        node_name: "node-1".into(),
        ..MeshSettings::default()
    }
}

fn build(yaml: &str) -> Snapshot {
    let snapshot = Snapshot::from_yaml(settings(), yaml);
    assert_eq!(snapshot.diagnostics().rejections, []);
    snapshot
}

fn pod(name: &str, metadata: &str, rest: &str) -> String {
    format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop{metadata}}}\n{rest}\n")
}

fn workload(snapshot: &Snapshot, name: &str) -> Arc<Workload> {
    snapshot
        .workloads()
        .find(|workload| workload.name == name)
        .unwrap()
        .clone()
}

fn notices(snapshot: &Snapshot) -> String {
    let lines: Vec<String> = snapshot
        .diagnostics()
        .notices
        .iter()
        .map(ToString::to_string)
        .collect();
    lines.join("\n")
}

#[test]
fn enrolment_follows_labels_and_obstacles() {
    let table: &[(&str, &str, &str, &str)] = &[
        ("", "", "", "not"),
        ("mesh-agent.io/dataplane: enabled", "", "", "yes"),
        (
            "mesh-agent.io/dataplane: enabled",
            "mesh-agent.io/dataplane: disabled",
            "",
            "not",
        ),
        (
            "mesh-agent.io/dataplane: disabled",
            "mesh-agent.io/dataplane: enabled",
            "",
            "yes",
        ),
        ("istio.io/dataplane-mode: ambient", "", "", "yes"),
        (
            "istio.io/dataplane-mode: ambient",
            "istio.io/dataplane-mode: none",
            "",
            "not",
        ),
        (
            "mesh-agent.io/dataplane: enabled",
            "istio.io/dataplane-mode: none",
            "",
            "not",
        ),
        (
            "mesh-agent.io/dataplane: disabled, istio.io/dataplane-mode: ambient",
            "",
            "",
            "not",
        ),
        ("", "mesh-agent.io/dataplane: sure", "", "not"),
        (
            "mesh-agent.io/dataplane: enabled",
            "",
            "spec: {hostNetwork: true}",
            "hostNetwork",
        ),
        (
            "mesh-agent.io/dataplane: enabled",
            "",
            "spec: {containers: [{name: istio-proxy}]}",
            "sidecar",
        ),
        (
            "mesh-agent.io/dataplane: enabled",
            "",
            "spec: {initContainers: [{name: linkerd-proxy, restartPolicy: Always}]}",
            "sidecar",
        ),
        (
            "mesh-agent.io/dataplane: enabled",
            "",
            "spec: {runtimeClassName: gvisor}",
            "sandbox",
        ),
        ("", "", "spec: {hostNetwork: true}", "not"),
    ];
    for (namespace, labels, rest, expected) in table {
        let text = format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{namespace}}}}}\n{}",
            pod("p", &format!(", labels: {{{labels}}}"), rest)
        );
        let snapshot = build(&text);
        match (&workload(&snapshot, "p").enrolment, *expected) {
            (Enrolment::NotEnrolled, "not") | (Enrolment::Enrolled, "yes") => {}
            (Enrolment::Refused(reason), part) if reason.contains(part) => {}
            (got, expected) => panic!("{namespace} / {labels} / {rest}: {got:?}, expected {expected}"),
        }
    }
}

#[test]
fn a_workload_is_what_its_pod_says() {
    let snapshot = build(&pod(
        "payment-5d4f8-x2x9z",
        ", uid: u-1, labels: {pod-template-hash: 5d4f8, version: v2}, annotations: {mesh-agent.io/netns: /run/netns/p, mesh-agent.io/cgroup: mesh/p}, \
         ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: payment-5d4f8, uid: x, controller: true}]",
        "spec: {nodeName: node-1, serviceAccountName: pay, containers: [{name: c, ports: [{name: web, containerPort: 80}, {name: dns, containerPort: 53, protocol: UDP}]}]}\n\
         status: {podIP: 198.18.0.1, podIPs: [{ip: 198.18.0.1}, {ip: '2001:db8::1'}], conditions: [{type: Ready, status: 'False'}]}",
    ));
    let got = workload(&snapshot, "payment-5d4f8-x2x9z");
    assert_eq!(got.uid.as_str(), "shop/payment-5d4f8-x2x9z/u-1");
    assert_eq!(got.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/pay");
    assert_eq!(
        (got.owner.kind.as_str(), got.owner.name.as_str()),
        ("Deployment", "payment")
    );
    assert_eq!(
        (got.canonical_name(), got.canonical_revision()),
        ("payment", "v2")
    );
    assert_eq!((got.addresses.len(), got.ready), (2, false));
    assert_eq!(*got.ports, [("web".to_owned(), 80)].into());
    assert_eq!(got.location.as_ref().unwrap().netns, "/run/netns/p");
    assert_eq!(snapshot.local_workloads().count(), 1);
}

#[test]
fn owners_lose_their_hash_as_in_istio() {
    for (kind, name, labels, expected) in [
        ("ReplicaSet", "web-1a", "pod-template-hash: 1a", "Deployment web"),
        (
            "ReplicaSet",
            "web-1a",
            "rollouts-pod-template-hash: 1a",
            "Rollout web",
        ),
        ("ReplicaSet", "web-1a", "", "ReplicaSet web-1a"),
        (
            "ReplicaSet",
            "web-2b",
            "pod-template-hash: 1a",
            "ReplicaSet web-2b",
        ),
        ("Job", "report-28999000", "", "CronJob report"),
        ("Job", "report-1", "", "Job report-1"),
        ("DaemonSet", "log", "", "DaemonSet log"),
    ] {
        let meta = format!(
            ", labels: {{{labels}}}, ownerReferences: [{{apiVersion: apps/v1, kind: {kind}, name: {name}, uid: x, controller: true}}]"
        );
        let owner = workload(&build(&pod("p", &meta, "")), "p").owner.clone();
        assert_eq!(format!("{} {}", owner.kind, owner.name), expected);
    }
    assert_eq!(workload(&build(&pod("p", "", "")), "p").owner.kind, "Pod");
}

#[test]
fn finished_pods_are_no_workloads_and_free_their_addresses() {
    let text = pod("old", "", "status: {phase: Succeeded, podIP: 198.18.0.1}")
        + &pod("new", "", "status: {podIP: 198.18.0.1}");
    let snapshot = build(&text);
    assert_eq!(snapshot.workloads().count(), 1);
    assert_eq!(
        snapshot
            .workload_by_address("198.18.0.1".parse().unwrap())
            .unwrap()
            .name,
        "new"
    );
}

/// Pods, each by its further metadata and the rest of its document.
type Pods<'a> = &'a [(&'a str, &'a str)];

#[test]
fn an_address_leads_to_exactly_one_workload_or_to_none() {
    let on = ", labels: {mesh-agent.io/dataplane: enabled}";
    let on_leaving =
        ", deletionTimestamp: '2026-01-01T00:00:00Z', labels: {mesh-agent.io/dataplane: enabled}";
    let leaving = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let here = "status: {podIP: 198.18.0.1}";
    let host = "spec: {hostNetwork: true}\nstatus: {podIP: 198.18.0.1}";
    let elsewhere = "status: {podIP: 198.18.0.2, hostIP: 198.18.0.1}";
    let table: &[(Pods<'_>, Option<&str>, bool)] = &[
        (&[("", here)], Some("p0"), false),
        (&[("", here), ("", here)], None, false),
        (&[(on, here), ("", here)], None, true),
        (&[(leaving, here), ("", here)], Some("p1"), false),
        (&[(on_leaving, here), (on, here)], Some("p1"), false),
        (&[(on_leaving, here), ("", here)], None, true),
        (&[(on_leaving, here)], Some("p0"), false),
        (&[("", here), ("", host)], None, false),
        (&[(on, here), ("", host)], None, true),
        (&[(on, here), ("", elsewhere)], None, true),
        (&[("", host)], None, false),
    ];
    for (pods, owner, contested) in table {
        let text: String = pods
            .iter()
            .enumerate()
            .map(|(i, (meta, rest))| pod(&format!("p{i}"), meta, rest))
            .collect();
        let snapshot = build(&text);
        let address = "198.18.0.1".parse().unwrap();
        assert_eq!(
            snapshot.workload_by_address(address).map(|w| w.name.as_str()),
            *owner,
            "{text}"
        );
        assert_eq!(snapshot.contested(address).is_some(), *contested, "{text}");
    }
}

#[test]
fn endpoints_come_from_pods_where_there_is_no_slice() {
    let text = pod("ready", ", labels: {app: a}", "spec: {containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}\nstatus: {podIPs: [{ip: 198.18.0.1}, {ip: '2001:db8::1'}]}")
        + &pod("unready", ", labels: {app: a}", "status: {podIP: 198.18.0.2, conditions: [{type: Ready, status: 'False'}]}")
        + &pod("leaving", ", deletionTimestamp: '2026-01-01T00:00:00Z', labels: {app: a}", "status: {podIP: 198.18.0.3}")
        + &pod("done", ", labels: {app: a}", "status: {podIP: 198.18.0.4, phase: Failed}")
        + &pod("other", ", labels: {app: b}", "status: {podIP: 198.18.0.5}")
        + &pod("bare", ", labels: {app: a}", "")
        + "
---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {clusterIP: 198.19.0.1, selector: {app: a}, ports: [{port: 80}, {name: w, port: 81, targetPort: web}, {name: u, port: 53, protocol: UDP}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: eager, namespace: shop}, spec: {clusterIP: 198.19.0.2, publishNotReadyAddresses: true, selector: {app: a}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: headless, namespace: shop}, spec: {clusterIP: None, selector: {app: a}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: six, namespace: shop}, spec: {clusterIP: '2001:db8:1::1', selector: {app: a}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: elsewhere}, spec: {clusterIP: 198.19.0.4, selector: {app: a}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: all, namespace: shop}, spec: {clusterIP: 198.19.0.5, selector: {}, ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: alias, namespace: shop}, spec: {type: ExternalName, externalName: example.com}}
";
    let snapshot = build(&text);
    let show = |namespace: &str, name: &str, port: u16| -> String {
        let name = ServiceRef {
            namespace: namespace.into(),
            name: name.into(),
        };
        let Some(service) = snapshot.service(&name) else {
            return "no service".into();
        };
        let state = |e: &crate::model::Endpoint| match (e.ready, e.serving, e.terminating) {
            (true, true, _) => "ready",
            (false, true, true) => "leaving",
            (false, false, false) => "unready",
            other => panic!("{other:?}"),
        };
        let list = service.endpoints.get(&port).map(|all| {
            all.iter()
                .map(|e| format!("{} {}", e.address, state(e)))
                .collect::<Vec<_>>()
                .join(", ")
        });
        list.unwrap_or_else(|| "no port".into())
    };
    assert_eq!(
        show("shop", "s", 80),
        "198.18.0.1:80 ready, 198.18.0.2:80 unready, 198.18.0.3:80 leaving"
    );
    assert_eq!(show("shop", "s", 81), "198.18.0.1:8080 ready");
    assert_eq!(show("shop", "s", 53), "no port");
    assert_eq!(
        show("shop", "eager", 80),
        "198.18.0.1:80 ready, 198.18.0.2:80 ready, 198.18.0.3:80 ready"
    );
    assert_eq!(
        show("shop", "headless", 80),
        "198.18.0.1:80 ready, 198.18.0.2:80 unready, 198.18.0.3:80 leaving, [2001:db8::1]:80 ready"
    );
    assert_eq!(show("shop", "six", 80), "[2001:db8::1]:80 ready");
    assert_eq!(show("elsewhere", "s", 80), "");
    assert_eq!(show("shop", "all", 80), "");
    assert_eq!(show("shop", "alias", 80), "no service");
    assert!(
        notices(&snapshot).contains("Service shop/alias: an ExternalName service"),
        "{}",
        notices(&snapshot)
    );
}

#[test]
fn an_endpoint_slice_replaces_what_would_be_derived_even_when_it_is_empty() {
    let text = pod("a", ", labels: {app: a}", "status: {podIP: 198.18.0.1}")
        + "
---
{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {clusterIP: 198.19.0.1, selector: {app: a}, ports: [{name: w, port: 80}]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: s-1, namespace: shop, labels: {kubernetes.io/service-name: s}}, endpoints: [], ports: [{name: w, port: 80}]}
";
    let snapshot = build(&text);
    let service = snapshot.service_by_vip("198.19.0.1".parse().unwrap()).unwrap();
    assert_eq!(service.endpoints[&80], []);
    let slice = text.replace("endpoints: []", "endpoints: [{addresses: [198.18.0.1]}, {addresses: [198.18.0.9], conditions: {ready: false, serving: true, terminating: true}}]");
    let snapshot = build(&slice);
    let all = &snapshot
        .service_by_vip("198.19.0.1".parse().unwrap())
        .unwrap()
        .endpoints[&80];
    assert_eq!(all[0].workload.as_ref().unwrap().as_str(), "shop/a");
    assert_eq!(
        (
            all[1].workload.as_ref(),
            all[1].ready,
            all[1].serving,
            all[1].terminating
        ),
        (None, false, true, true)
    );
}

#[test]
fn conflicts_are_reported_and_the_first_holds() {
    let service = |name: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, spec: {{clusterIP: 198.19.0.1, ports: [{{port: 80}}]}}}}\n"
        )
    };
    let text = service("b")
        + &service("a")
        + &pod("p", "", "status: {podIP: 198.18.0.1}")
        + &pod("p", "", "status: {podIP: 198.18.0.2}");
    let snapshot = build(&text);
    assert_eq!(
        &*snapshot
            .service_by_vip("198.19.0.1".parse().unwrap())
            .unwrap()
            .name
            .name,
        "a"
    );
    assert!(
        snapshot
            .workload_by_address("198.18.0.2".parse().unwrap())
            .is_none()
    );
    let notices = notices(&snapshot);
    assert!(
        notices.contains("-:2:1: Service shop/b: clusterIP 198.19.0.1 belongs to Service shop/a already"),
        "{notices}"
    );
    assert!(
        notices.contains("Pod shop/p: the same object stands in -:6:1 already"),
        "{notices}"
    );
}

#[test]
fn policies_that_do_not_count_are_reported() {
    let policy = |namespace: &str, name: &str, created: &str, spec: &str| {
        format!(
            "---\napiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '{created}'}}\nspec: {{{spec}}}\n"
        )
    };
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-06-01T00:00:00Z");
    let text = pod("p", ", labels: {app: a}", "")
        + &policy(
            "istio-system",
            "picky",
            old,
            "selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}",
        )
        + &policy("shop", "a-younger", new, "mtls: {mode: STRICT}")
        + &policy("shop", "b-older", old, "mtls: {mode: DISABLE}")
        + &policy(
            "shop",
            "w-older",
            old,
            "selector: {matchLabels: {app: a}}, portLevelMtls: {80: {mode: STRICT}}",
        )
        + &policy(
            "shop",
            "v-younger",
            new,
            "selector: {matchLabels: {app: a}}, mtls: {mode: STRICT}",
        );
    let snapshot = build(&text);
    let p = workload(&snapshot, "p");
    assert_eq!(snapshot.mtls_mode(&p, 81), MtlsMode::Permissive);
    assert_eq!(snapshot.mtls_mode(&p, 80), MtlsMode::Strict);
    let notices = notices(&snapshot);
    for part in [
        "PeerAuthentication istio-system/picky: a policy of the root namespace",
        "PeerAuthentication shop/a-younger: PeerAuthentication shop/b-older holds for its namespace",
        "PeerAuthentication shop/b-older: mode DISABLE is applied as PERMISSIVE",
        "PeerAuthentication shop/v-younger: PeerAuthentication shop/w-older holds for a workload",
    ] {
        assert!(notices.contains(part), "{part}: {notices}");
    }
}

#[test]
fn a_workload_of_another_snapshot_is_strict() {
    let p = workload(&build(&pod("p", "", "")), "p");
    assert_eq!(Snapshot::empty(settings()).mtls_mode(&p, 80), MtlsMode::Strict);
}

/// The rules once more, slowly and from their text: the oldest policy of each scope, the nearest scope with a mode.
fn oracle(policies: &[PeerAuthentication], workload: &Workload, port: u16) -> MtlsMode {
    let selected = |policy: &&PeerAuthentication| match &policy.scope {
        Scope::Workload(labels) => {
            policy.namespace == workload.namespace
                && policy.namespace != "istio-system"
                && labels
                    .iter()
                    .all(|pair| workload.labels.iter().any(|own| own == pair))
        }
        _ => false,
    };
    let oldest = |of: &dyn Fn(&&PeerAuthentication) -> bool| {
        policies
            .iter()
            .filter(of)
            .min_by_key(|policy| (policy.created, policy.namespace.clone(), policy.name.clone()))
            .cloned()
    };
    let whole = |policy: &&PeerAuthentication| !matches!(policy.scope, Scope::Workload(_));
    let own = oldest(&selected);
    let chain = [
        own.as_ref()
            .and_then(|policy| policy.ports.get(&port).copied().flatten()),
        own.as_ref().and_then(|policy| policy.mode),
        oldest(&|policy| whole(policy) && policy.namespace == workload.namespace)
            .and_then(|policy| policy.mode),
        oldest(&|policy| whole(policy) && policy.namespace == "istio-system").and_then(|policy| policy.mode),
    ];
    chain.into_iter().flatten().next().unwrap_or(MtlsMode::Permissive)
}

fn any_policy() -> impl Strategy<Value = PeerAuthentication> {
    let mode = || proptest::option::of(prop_oneof![Just(MtlsMode::Strict), Just(MtlsMode::Permissive)]);
    let namespace = prop_oneof![Just("istio-system"), Just("shop"), Just("bank")];
    let labels = proptest::collection::btree_map("[ab]", "[pq]", 0..3);
    let ports = proptest::collection::btree_map(80..83u16, mode(), 0..3);
    (namespace, "[a-d]", 0..3i64, labels, mode(), ports).prop_map(
        |(namespace, name, created, labels, mode, ports)| {
            let whole = labels.is_empty();
            PeerAuthentication {
                namespace: namespace.into(),
                name,
                created,
                mode,
                ports: if whole { Default::default() } else { ports },
                scope: if whole {
                    Scope::Namespace
                } else {
                    Scope::Workload(labels)
                },
            }
        },
    )
}

proptest! {
    #[test]
    fn inheritance_agrees_with_the_rules_as_written(
        policies in proptest::collection::vec(any_policy(), 0..8),
        labels in proptest::collection::btree_map("[ab]", "[pq]", 0..3),
        namespace in prop_oneof![Just("istio-system"), Just("shop"), Just("bank")],
    ) {
        // An object's name is its own within a kind and namespace.
        let mut seen = std::collections::HashSet::new();
        let policies: Vec<_> = policies.into_iter().filter(|p| seen.insert((p.namespace.clone(), p.name.clone()))).collect();
        let labels: Vec<String> = labels.iter().map(|(k, v)| format!("{k}: {v}")).collect();
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, namespace: {namespace}, labels: {{{}}}}}\n", labels.join(", ")
        );
        let mut accepted = crate::manifest::parse("-", text.as_bytes()).accepted;
        accepted.extend(policies.iter().map(|policy| crate::manifest::Accepted {
            object: Arc::new(crate::model::Object::PeerAuthentication(policy.clone())),
            origin: crate::manifest::Origin { file: "-".into(), line: 1, column: 1 },
            notices: Vec::new(),
        }));
        let snapshot = Snapshot::build(settings(), 1, &accepted, Diagnostics::default());
        let p = workload(&snapshot, "p");
        for port in 79..84 {
            prop_assert_eq!(snapshot.mtls_mode(&p, port), oracle(&policies, &p, port), "port {}: {:?}", port, policies);
        }
    }

    #[test]
    fn indexes_agree_with_what_they_index(
        pods in proptest::collection::vec((0..4u8, 0..5u8, any::<bool>(), any::<bool>()), 0..8),
        services in proptest::collection::vec((0..4u8, 0..4u8), 0..6),
    ) {
        let mut text = String::new();
        for (name, address, host, enrolled) in pods {
            let label = if enrolled { "enabled" } else { "disabled" };
            text += &pod(
                &format!("p{name}"),
                &format!(", labels: {{app: a, mesh-agent.io/dataplane: {label}}}"),
                &format!("spec: {{hostNetwork: {host}}}\nstatus: {{podIP: 198.18.0.{}}}", address + 1),
            );
        }
        for (name, vip) in services {
            text += &format!("---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{name}, namespace: shop}}, spec: {{clusterIP: 198.19.0.{}, selector: {{app: a}}, ports: [{{port: 80}}]}}}}\n", vip + 1);
        }
        let snapshot = build(&text);
        for (address, owner) in snapshot.by_address.iter() {
            prop_assert!(owner.addresses.contains(address) && !owner.host_network);
            prop_assert!(Arc::ptr_eq(owner, snapshot.workload(&owner.uid).unwrap()));
            prop_assert!(!snapshot.contested.contains_key(address));
        }
        for workload in snapshot.workloads() {
            prop_assert!(snapshot.accepted_by(&workload.uid).is_some());
            for address in workload.addresses.iter().filter(|_| workload.enrolment.is_enrolled()) {
                let known = snapshot.by_address.get(address).is_some_and(|owner| owner.enrolment.is_enrolled());
                prop_assert!(known || snapshot.contested.contains_key(address));
            }
        }
        for (vip, name) in snapshot.by_vip.iter() {
            prop_assert!(snapshot.service(name).unwrap().vips.contains(vip));
        }
        for endpoint in snapshot.services().flat_map(|service| service.endpoints.values()).flatten() {
            let owner = snapshot.workload_by_address(endpoint.address.ip());
            prop_assert_eq!(endpoint.workload.as_ref(), owner.map(|owner| &owner.uid));
        }
    }
}

#[test]
fn a_server_takes_its_clients_for_those_of_the_service_they_name_if_it_is_one_of_its_own() {
    let service = |name: &str, ip: &str, app: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{clusterIP: {ip}, selector: {{app: {app}}}, ports: [{{port: 80, targetPort: 8080}}]}}\n"
        )
    };
    let at = |name: &str, node: &str, ip: &str| {
        pod(
            name,
            &format!(", labels: {{app: {name}}}"),
            &format!("spec: {{nodeName: {node}}}\nstatus: {{podIP: {ip}}}"),
        )
    };
    let snapshot = build(
        &[
            at("a", "node-1", "198.18.0.1"),
            at("b", "node-2", "198.18.0.2"),
            service("a-headless", "None", "a"),
            service("one", "198.19.0.1", "a"),
            service("two", "198.19.0.2", "a"),
            service("other", "198.19.0.3", "b"),
        ]
        .concat(),
    );
    let behind = |address: &str, hostname| {
        let found = snapshot.service_behind(address.parse().unwrap(), hostname);
        found.map(|service| service.name.name.to_string())
    };
    let two = Some("two.shop.svc.cluster.local");
    assert_eq!(behind("198.18.0.1:8080", two).as_deref(), Some("two"));
    assert_eq!(behind("198.18.0.1:8080", None).as_deref(), Some("one"));
    let foreign = Some("other.shop.svc.cluster.local");
    assert_eq!(behind("198.18.0.1:8080", foreign).as_deref(), Some("one"));
    assert_eq!(behind("198.18.0.1:9090", two), None);
    assert_eq!(behind("198.18.0.2:8080", foreign), None, "another node's server");
}
