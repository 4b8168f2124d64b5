//! For each code documents that have it and documents that nearly do.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn settings() -> MeshSettings {
    MeshSettings {
        node_name: "n1".into(),
        trust_domain: "prod.example".parse().unwrap(),
        trust_domain_aliases: vec!["old.example".parse().unwrap()],
        ..MeshSettings::default()
    }
}

/// As a directory with a part of what is applied.
fn of_files(yaml: &str) -> Vec<Finding> {
    files(settings(), true, &[("f.yaml", yaml.as_bytes())])
}

/// As all that an agent has.
fn of_agent(yaml: &str) -> Vec<Finding> {
    let contents = manifest::parse("f.yaml", yaml.as_bytes());
    analyze(Documents {
        settings: settings(),
        allowed: AllowedExclusions {
            inbound_ports: false,
            ..AllowedExclusions::all()
        },
        known: Known {
            everything: true,
            settings: true,
        },
        accepted: &contents.accepted,
        templates: &[],
        diagnostics: Diagnostics {
            rejections: contents.rejections,
            notices: contents.notices,
        },
    })
}

fn has(findings: &[Finding], code: Code) -> bool {
    findings.iter().any(|finding| finding.code == code.as_str())
}

/// A namespace in the mesh, with order and payment; payment is behind a Service at another port than its own.
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh-agent.io/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: order, namespace: shop, labels: {app: order}}
spec: {nodeName: n1, serviceAccountName: order}
status: {podIP: 198.18.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: payment, namespace: shop, labels: {app: payment}}
spec: {nodeName: n1, serviceAccountName: payment, containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]}
status: {podIP: 198.18.0.2}
---
apiVersion: v1
kind: Service
metadata: {name: payment, namespace: shop}
spec: {clusterIP: 198.19.0.1, selector: {app: payment}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Namespace
metadata: {name: plain}
---
apiVersion: v1
kind: Pod
metadata: {name: old, namespace: plain, labels: {app: old}}
spec: {nodeName: n1, serviceAccountName: old}
status: {podIP: 198.18.1.1}
";

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn authentication(namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: a, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

fn source(spec: &str) -> String {
    policy("shop", &format!("{{rules: [{{from: [{{source: {spec}}}]}}]}}"))
}

fn service(spec: &str) -> String {
    format!("---\n{{apiVersion: v1, kind: Service, metadata: {{name: s, namespace: shop}}, spec: {spec}}}\n")
}

fn pod(namespace: &str, metadata: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: x, namespace: {namespace}, {metadata}}}, spec: {{nodeName: n1, {spec}}}}}\n"
    )
}

fn ztunnel(namespace: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: zt, namespace: {namespace}, labels: {{app: ztunnel}}, ownerReferences: \
         [{{apiVersion: apps/v1, kind: DaemonSet, name: ztunnel, uid: u, controller: true}}]}}, spec: {{nodeName: n1}}}}\n"
    )
}

/// Each code with documents that have it, beside [`SHOP`], and documents that nearly do.
fn table() -> Vec<(Code, String, String)> {
    let unruled = |action: &str| policy("shop", &format!("{{action: {action}}}"));
    let ruled = |action: &str, rule: &str| policy("shop", &format!("{{action: {action}, rules: [{rule}]}}"));
    let by_address = |block: &str| {
        source(&format!("{{ipBlocks: [{block}]}}")) + &authentication("shop", "{mtls: {mode: STRICT}}")
    };
    let ambient = "labels: {istio.io/dataplane-mode: ambient}";
    vec![
        (Code::Rejected, authentication("shop", "{mtls: {mode: STRICKT}}"), authentication("shop", "{mtls: {mode: STRICT}}")),
        (
            Code::ForeignKind,
            "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: c}}\n".into(),
            "---\n{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: v}}\n".into(),
        ),
        (
            Code::KindWithoutEffect,
            "---\n{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: v}}\n".into(),
            "---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: v}}\n".into(),
        ),
        (Code::UnknownField, authentication("shop", "{mtsl: {}}"), authentication("shop", "{mtls: {}}")),
        (
            Code::Ignored,
            pod("shop", "labels: {mesh-agent.io/dataplane: sure}", ""),
            pod("shop", "labels: {mesh-agent.io/dataplane: enabled}", ""),
        ),
        (
            Code::Conflict,
            service("{clusterIP: 198.19.0.1, ports: [{port: 80}]}"),
            service("{clusterIP: 198.19.0.2, ports: [{port: 80}]}"),
        ),
        (
            Code::Changed,
            authentication("shop", "{mtls: {mode: DISABLE}}"),
            authentication("shop", "{mtls: {mode: PERMISSIVE}}"),
        ),
        (
            Code::HttpAttribute,
            ruled("ALLOW", "{to: [{operation: {paths: [/a]}}]}"),
            ruled("ALLOW", "{to: [{operation: {ports: ['80']}}]}"),
        ),
        (
            Code::PolicySelectsNothing,
            policy("shop", "{selector: {matchLabels: {app: paiment}}, rules: [{}]}"),
            policy("shop", "{selector: {matchLabels: {app: payment}}, rules: [{}]}"),
        ),
        (Code::PolicyOutsideMesh, policy("plain", "{rules: [{}]}"), policy("shop", "{rules: [{}]}")),
        (Code::AllowsNobody, policy("shop", "{}"), policy("shop", "{rules: [{}]}")),
        (Code::PolicyWithoutEffect, unruled("DENY"), unruled("ALLOW")),
        (Code::DeniesEverybody, ruled("DENY", "{}"), ruled("ALLOW", "{}")),
        (
            Code::UnknownTrustDomain,
            source("{principals: [other.example/ns/shop/sa/order]}"),
            source("{principals: [cluster.local/ns/shop/sa/order, old.example/*, prod.example/ns/shop/sa/order]}"),
        ),
        (
            Code::NoPrincipal,
            source("{principals: [shop/order]}"),
            source("{principals: ['*/sa/order', 'cluster.local/ns/shop/*']}"),
        ),
        (Code::UnknownNamespace, source("{namespaces: [shopp]}"), source("{namespaces: [shop, 'shopp*']}")),
        (
            Code::UnknownAccount,
            source("{principals: [cluster.local/ns/shop/sa/ordr]}"),
            source("{serviceAccounts: [order, shop/payment]}"),
        ),
        (
            Code::SourceOutsideMesh,
            source("{principals: [cluster.local/ns/plain/sa/old]}"),
            source("{principals: [cluster.local/ns/shop/sa/order]}"),
        ),
        (
            Code::DryRun,
            unruled("ALLOW").replace("name: p,", "name: p, annotations: {istio.io/dry-run: 'true'},"),
            unruled("ALLOW").replace("name: p,", "name: p, annotations: {istio.io/dry-run: 'false'},"),
        ),
        (
            Code::AuthenticationSelectsNothing,
            authentication("shop", "{selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}}"),
            authentication("shop", "{selector: {matchLabels: {app: order}}, mtls: {mode: STRICT}}"),
        ),
        (
            Code::AuthenticationOutsideMesh,
            authentication("plain", "{mtls: {mode: STRICT}}"),
            authentication("shop", "{mtls: {mode: STRICT}}"),
        ),
        (
            Code::ServicePortInAuthentication,
            authentication("shop", "{selector: {matchLabels: {app: payment}}, portLevelMtls: {80: {mode: PERMISSIVE}}}"),
            authentication("shop", "{selector: {matchLabels: {app: payment}}, portLevelMtls: {8080: {mode: PERMISSIVE}}}"),
        ),
        (
            Code::AuthenticationWithoutEffect,
            authentication("shop", "{mtls: {mode: UNSET}}"),
            authentication("shop", "{selector: {matchLabels: {app: payment}}, mtls: {mode: UNSET}, portLevelMtls: {8080: {mode: STRICT}}}"),
        ),
        (Code::StrictRefusesAddresses, by_address("198.18.1.0/24"), by_address("198.18.0.0/16")),
        (
            Code::ServiceSelectsNothing,
            service("{clusterIP: 198.19.0.2, selector: {app: x}, ports: [{port: 80}]}"),
            service("{clusterIP: 198.19.0.2, selector: {app: order}, ports: [{port: 80}]}"),
        ),
        (
            Code::TargetPortMissing,
            service("{clusterIP: 198.19.0.2, selector: {app: order}, ports: [{port: 80, targetPort: web}]}"),
            service("{clusterIP: 198.19.0.2, selector: {app: payment}, ports: [{port: 80, targetPort: web}]}"),
        ),
        (
            Code::NoTcpPort,
            service("{clusterIP: 198.19.0.2, ports: [{port: 53, protocol: UDP}]}"),
            service("{clusterIP: 198.19.0.2, ports: [{port: 53, protocol: UDP}, {port: 53}]}"),
        ),
        (
            Code::AgentPort,
            service("{clusterIP: 198.19.0.2, selector: {app: order}, ports: [{port: 80, targetPort: 15008}]}"),
            service("{clusterIP: 198.19.0.2, selector: {app: order}, ports: [{port: 15008, targetPort: 80}]}"),
        ),
        (
            Code::MixedService,
            pod("shop", "labels: {app: payment, mesh-agent.io/dataplane: disabled}", ""),
            pod("shop", "labels: {app: payment}", ""),
        ),
        (
            Code::SliceWithoutService,
            "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: e, namespace: shop, labels: \
             {kubernetes.io/service-name: gone}}, endpoints: []}\n"
                .into(),
            "---\n{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, metadata: {name: e, namespace: shop, labels: \
             {kubernetes.io/service-name: payment}}, endpoints: [{addresses: [198.18.0.2]}]}\n"
                .into(),
        ),
        (Code::CannotEnrol, pod("shop", "labels: {}", "hostNetwork: true"), pod("plain", "labels: {}", "hostNetwork: true")),
        (
            Code::LabelsContradict,
            pod("plain", "labels: {mesh-agent.io/dataplane: enabled, istio.io/dataplane-mode: none}", ""),
            pod("plain", "labels: {mesh-agent.io/dataplane: enabled, istio.io/dataplane-mode: none}", "") + &ztunnel("istio-system"),
        ),
        (
            Code::ExclusionRefused,
            pod("shop", "annotations: {mesh-agent.io/exclude-inbound-ports: '9090'}", ""),
            pod("shop", "annotations: {mesh-agent.io/exclude-outbound-ports: '9090'}", ""),
        ),
        (
            Code::AnnotationWithoutEffect,
            pod("plain", "annotations: {mesh-agent.io/on-agent-down: allow}", ""),
            pod("plain", "annotations: {mesh-agent.io/on-agent-down: refuse}", ""),
        ),
        (
            Code::LeftToOther,
            pod("plain", ambient, "") + &ztunnel("istio-system"),
            // Who may make pods in some namespace takes nobody out of the mesh.
            pod("plain", ambient, "") + &ztunnel("plain"),
        ),
        (
            Code::TwoMeshes,
            pod("shop", ambient, "") + &ztunnel("kube-system"),
            pod("shop", "labels: {}", "") + &ztunnel("kube-system"),
        ),
    ]
}

#[test]
fn each_code_is_found_where_it_belongs_and_not_where_it_nearly_does() {
    for (code, trigger, near_miss) in table() {
        let found = of_agent(&(SHOP.to_owned() + &trigger));
        assert!(has(&found, code), "{}: {trigger}\n{found:#?}", code.as_str());
        let found = of_agent(&(SHOP.to_owned() + &near_miss));
        assert!(!has(&found, code), "{}: {near_miss}\n{found:#?}", code.as_str());
    }
}

#[test]
fn every_code_is_in_the_table() {
    let tried: BTreeSet<_> = table().into_iter().map(|(code, ..)| code).collect();
    assert_eq!(tried, Code::ALL.iter().copied().collect());
}

#[test]
fn documents_without_fault_have_no_findings() {
    let rules = source("{principals: [cluster.local/ns/shop/sa/order]}")
        + &authentication("shop", "{mtls: {mode: STRICT}}");
    assert_eq!(of_agent(&(SHOP.to_owned() + &rules)), []);
    assert_eq!(of_files(&(SHOP.to_owned() + &rules)), []);
}

#[test]
fn of_a_part_of_the_documents_nothing_is_said_that_the_others_might_change() {
    let elsewhere = policy(
        "bank",
        "{selector: {matchLabels: {app: x}}, rules: [{from: [{source: {namespaces: [web], principals: [\
         cluster.local/ns/web/sa/front]}}]}]}",
    ) + &authentication(
        "bank",
        "{selector: {matchLabels: {app: x}}, mtls: {mode: STRICT}}",
    ) + "---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: bank}, spec: {clusterIP: 198.19.0.3, selector: {app: x}, ports: [{port: 80}]}}\n"
        + "---\n{apiVersion: v1, kind: Pod, metadata: {name: idle, namespace: unlabelled, annotations: {mesh-agent.io/exclude-outbound-ports: '1'}}}\n";
    assert_eq!(of_files(&elsewhere), []);
    let all = of_agent(&elsewhere);
    for code in [
        Code::PolicySelectsNothing,
        Code::UnknownNamespace,
        Code::AuthenticationSelectsNothing,
        Code::ServiceSelectsNothing,
        Code::AnnotationWithoutEffect,
    ] {
        assert!(has(&all, code), "{}: {all:#?}", code.as_str());
    }
    // Whose trust domain it is only the mesh's own settings tell.
    let foreign = source("{principals: [other.example/ns/shop/sa/order]}");
    let text = SHOP.to_owned() + &foreign;
    assert_eq!(files(settings(), false, &[("f", text.as_bytes())]), []);
}

#[test]
fn a_policy_for_all_of_an_empty_namespace_is_no_slip_and_one_for_a_namespace_that_is_not_there_is() {
    let empty = SHOP.to_owned() + "---\n{apiVersion: v1, kind: Namespace, metadata: {name: empty}}\n";
    for (code, document) in [
        (Code::PolicySelectsNothing, policy as fn(&str, &str) -> String),
        (Code::AuthenticationSelectsNothing, authentication),
    ] {
        let spec = "{mtls: {mode: STRICT}}";
        assert!(!has(&of_agent(&(empty.clone() + &document("empty", spec))), code));
        assert!(has(&of_agent(&(empty.clone() + &document("emtpy", spec))), code));
    }
}

#[test]
fn deployments_count_as_the_pods_that_they_make() {
    let deployment = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {mesh-agent.io/dataplane: enabled}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: payment, namespace: shop}
spec:
  template:
    metadata: {labels: {app: payment}}
    spec:
      hostNetwork: true
";
    let found = of_files(
        &(deployment.to_owned() + &policy("shop", "{selector: {matchLabels: {app: payment}}, rules: [{}]}")),
    );
    let shown: Vec<_> = found
        .iter()
        .map(|one| {
            (
                one.code.as_ref(),
                one.origin.as_ref().unwrap().line,
                one.object.as_ref().unwrap().to_string(),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            ("MESH0501", 11, "Deployment shop/payment".to_owned()),
            ("MESH0203", 18, "AuthorizationPolicy shop/p".to_owned()),
        ],
        "{found:#?}"
    );
}

#[test]
fn a_finding_names_the_line_of_what_it_is_about() {
    let text = SHOP.to_owned()
        + "---
apiVersion: v1
kind: List
items:
- apiVersion: security.istio.io/v1
  kind: AuthorizationPolicy
  metadata: {name: p, namespace: shop}
  spec:
    rules:
    - from:
      - source:
          principals:
          - cluster.local/ns/shop/sa/order
          - shop/order
";
    let found = of_files(&text);
    let line = 1 + text
        .lines()
        .position(|line| line.contains("- shop/order"))
        .unwrap() as u64;
    let [finding] = &found[..] else {
        panic!("{found:#?}")
    };
    let origin = finding.origin.as_ref().unwrap();
    assert_eq!((origin.line, origin.column), (line, 13), "{finding:#?}");
}

#[test]
fn the_replicas_of_a_deployment_say_it_once() {
    let replica = |name: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, labels: {{pod-template-hash: h}}, \
             ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: web-h, uid: u, controller: true}}]}}, spec: {{nodeName: n1, \
             hostNetwork: true}}}}\n"
        )
    };
    let contents = manifest::parse(
        "f",
        (SHOP.to_owned() + &replica("web-h-1") + &replica("web-h-2")).as_bytes(),
    );
    let mut accepted = contents.accepted;
    // As objects of an API server, which stand in no line.
    for one in &mut accepted {
        (one.origin.line, one.origin.column) = (0, 0);
    }
    let found = analyze(Documents {
        settings: settings(),
        allowed: AllowedExclusions::all(),
        known: Known {
            everything: true,
            settings: true,
        },
        accepted: &accepted,
        templates: &[],
        diagnostics: Diagnostics::default(),
    });
    let objects: Vec<_> = found
        .iter()
        .map(|one| one.object.as_ref().unwrap().to_string())
        .collect();
    assert_eq!(objects, ["Deployment shop/web"], "{found:#?}");
}

/// A document of a known kind, with fields that may or may not fit.
fn any_document() -> impl Strategy<Value = String> {
    let name = || prop_oneof![Just("a"), Just("b"), Just("istio-system"), Just("")];
    let label = prop_oneof![
        Just("app: a"),
        Just("app: ztunnel"),
        Just("mesh-agent.io/dataplane: enabled"),
        Just("istio.io/dataplane-mode: ambient"),
        Just("kubernetes.io/service-name: a"),
    ];
    let kind = prop_oneof![
        Just(("v1", "Namespace")),
        Just(("v1", "Pod")),
        Just(("v1", "Service")),
        Just(("v1", "Node")),
        Just(("apps/v1", "Deployment")),
        Just(("batch/v1", "CronJob")),
        Just(("discovery.k8s.io/v1", "EndpointSlice")),
        Just(("security.istio.io/v1", "AuthorizationPolicy")),
        Just(("security.istio.io/v1", "PeerAuthentication")),
    ];
    let field = prop_oneof![
        Just("selector: {app: a}"),
        Just("selector: {matchLabels: {app: a}}"),
        Just("targetRefs: [{kind: Service, name: a}]"),
        Just("action: DENY"),
        Just("rules: [{}]"),
        Just(
            "rules: [{from: [{source: {principals: ['a/', '/', '//ns', 'a/ns/a/sa/a'], namespaces: [a, '']}}], when: [{key: source.principal, values: ['']}]}]"
        ),
        Just("rules: [{from: [{source: {ipBlocks: [0.0.0.0/0]}}]}]"),
        Just("mtls: {mode: STRICT}"),
        Just("portLevelMtls: {80: {mode: STRICT}, 8080: null}"),
        Just("ports: [{port: 80, targetPort: web}, {port: 81, targetPort: 15008}]"),
        Just("clusterIP: 198.19.0.1"),
        Just("hostNetwork: true"),
        Just("nodeName: n1"),
        Just("template: {metadata: {labels: {app: a}}, spec: {hostNetwork: true}}"),
        Just("template: {metadata: {labels: 1}, spec: []}"),
        Just("jobTemplate: {spec: {template: {metadata: null}}}"),
        Just("containers: [{name: c, ports: [{name: web, containerPort: 80}]}]"),
    ];
    let fields = proptest::collection::vec(field, 0..4);
    (kind, name(), name(), proptest::collection::vec(label, 0..3), fields).prop_map(
        |((version, kind), namespace, name, labels, fields)| {
            let address = format!("addressType: IPv4\nstatus: {{podIP: 198.18.0.{}}}\nendpoints: [{{addresses: [198.18.0.1]}}]", name.len());
            format!(
                "---\napiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name:?}, namespace: {namespace:?}, labels: {{{}}}}}\nspec: \
                 {{{}}}\n{address}\n",
                labels.join(", "),
                fields.join(", ")
            )
        },
    )
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        files(settings(), true, &[("f", &bytes)]);
    }

    #[test]
    fn no_documents_make_it_panic_and_what_it_says_is_sorted_and_told_once(
        documents in proptest::collection::vec(any_document(), 0..10),
    ) {
        let text = documents.concat();
        for found in [of_files(&text), of_agent(&text)] {
            prop_assert!(found.windows(2).all(|pair| pair[0] < pair[1]), "{:#?}", found);
            for finding in &found {
                prop_assert!(Code::ALL.iter().any(|code| code.as_str() == finding.code), "{:?}", finding);
                prop_assert!(!finding.advice.is_empty(), "{:?}", finding);
            }
        }
    }
}
