//! What users write, and what they are told.

use proptest::prelude::*;

use super::*;
use crate::model::{MtlsMode, Scope};

fn read(text: &str) -> Contents {
    parse("mesh.yaml", text.as_bytes())
}

fn rejections(text: &str) -> Vec<String> {
    read(text).rejections.iter().map(ToString::to_string).collect()
}

fn notices(text: &str) -> Vec<String> {
    let contents = read(text);
    let of_objects = contents.accepted.iter().flat_map(|one| &one.notices);
    contents
        .notices
        .iter()
        .chain(of_objects)
        .map(ToString::to_string)
        .collect()
}

fn names(text: &str) -> Vec<String> {
    read(text)
        .accepted
        .iter()
        .map(|one| one.object.name().to_string())
        .collect()
}

#[test]
fn what_is_wrong_is_told_with_file_line_column_object_and_expectation() {
    let table: &[(&str, &str)] = &[
        ("a: [1\n", "mesh.yaml:1:4: document rejected: unclosed bracket"),
        (
            "just text\n",
            "mesh.yaml:1:1: document rejected: expected a Kubernetes object",
        ),
        (
            "kind: Pod\n",
            "mesh.yaml:1:1: document rejected: apiVersion is missing",
        ),
        (
            "apiVersion: v1\nkind: [Pod]\n",
            "mesh.yaml:2:1: document rejected: kind: expected a text",
        ),
        (
            "apiVersion: v1\nkind: Pod\nkind: Pod\n",
            "mesh.yaml:3:1: document rejected: duplicate mapping key: kind",
        ),
        (
            "apiVersion: v1\nkind: Pod\n",
            "mesh.yaml:1:1: document rejected: metadata.name is missing",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: Bad_Name}\n",
            "mesh.yaml:3:12: Pod default/Bad_Name rejected: metadata.name \"Bad_Name\" is no Kubernetes name",
        ),
        (
            "---\n\n---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n bad\n",
            "mesh.yaml:8:2: Pod default/a rejected:",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  hostNetwork: maybe\n",
            "mesh.yaml:5:3: Pod default/a rejected: spec.hostNetwork: invalid type: string \"maybe\", expected a boolean",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  labels: {version: 1.10}\n",
            "mesh.yaml:5:12: Pod default/a rejected: metadata.labels.version: invalid type: floating point",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus:\n  podIPs:\n  - ip: 198.18.0.1\n  - ip: 198.18.0.300\n",
            "mesh.yaml:7:5: Pod default/a rejected: status.podIPs[1].ip \"198.18.0.300\" is no IP address",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nstatus: {podIP: 127.0.0.1}\n",
            "mesh.yaml:4:10: Pod default/a rejected: status.podIP 127.0.0.1 is a loopback address",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c, ports: [{containerPort: 70000}]}]}\n",
            "spec.containers[0].ports[0].containerPort is 70000: expected a port",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    mesh-agent.io/netns: /run/netns/a\n",
            "mesh.yaml:6:5: Pod default/a rejected: annotation mesh-agent.io/netns stands without mesh-agent.io/cgroup",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    mesh-agent.io/netns: a\n    mesh-agent.io/cgroup: b\n",
            "mesh.yaml:6:5: Pod default/a rejected: annotation mesh-agent.io/netns is \"a\": expected the absolute path",
        ),
        (
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    mesh-agent.io/netns: /a\n    mesh-agent.io/cgroup: a/../..\n",
            "mesh.yaml:7:5: Pod default/a rejected: annotation mesh-agent.io/cgroup",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  clusterIP: 198.19.0.1\n  ports:\n  - targetPort: 80\n",
            "mesh.yaml:7:5: Service default/a rejected: spec.ports[0].port is 0: expected a port",
        ),
        (
            "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: '::1'}\n",
            "Service default/a rejected: spec.clusterIP ::1 is a loopback address",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints:\n- addresses: ['2001:db8::1']\n",
            "mesh.yaml:6:15: EndpointSlice default/a rejected: endpoints[0].addresses[0] 2001:db8::1 is not of the slice's addressType",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPv4\nendpoints:\n- addresses: [169.254.169.254]\n",
            "is a link-local address",
        ),
        (
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: a}\naddressType: IPX\n",
            "mesh.yaml:4:1: EndpointSlice default/a rejected: addressType is \"IPX\": expected IPv4 or IPv6",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  mtls: {mode: STRICKT}\n",
            "mesh.yaml:5:10: PeerAuthentication default/a rejected: spec.mtls.mode is \"STRICKT\": expected STRICT",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  portLevelMtls: {80: {mode: STRICT}}\n",
            "mesh.yaml:5:3: PeerAuthentication default/a rejected: spec.portLevelMtls stands without a selector",
        ),
        (
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  selector: {matchLabels: {a: b}}\n  portLevelMtls:\n    web: {mode: STRICT}\n",
            "mesh.yaml:7:5: PeerAuthentication default/a rejected: spec.portLevelMtls names port \"web\"",
        ),
    ];
    for (text, expected) in table {
        let got = rejections(text);
        assert!(
            got.len() == 1 && got[0].contains(expected),
            "{text}\n{got:?}\nexpected {expected}"
        );
        assert_eq!(names(text), Vec::<String>::new(), "{text}");
    }
}

#[test]
fn a_bad_document_spoils_none_of_its_neighbours() {
    let good = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    let text = format!(
        "{}---\n{{{{[\n---\n{}---\nkind: Pod\n...\n{}",
        good("a"),
        good("b"),
        good("c")
    );
    assert_eq!(names(&text), ["Namespace a", "Namespace b", "Namespace c"]);
    let lines: Vec<u64> = read(&text).rejections.iter().map(|r| r.origin.line).collect();
    assert_eq!(lines, [5, 11]);
}

#[test]
fn unknown_kinds_and_fields_are_named_and_not_fatal() {
    let got = notices(
        "---\napiVersion: security.istio.io/v1beta1\nkind: RequestAuthentication\nmetadata: {name: p, namespace: production}\n\
         ---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, nmae: b}\nspec:\n  containers:\n  - name: c\n    prots: []\n\
         ---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: a}\nspec:\n  mtsl: {mode: STRICT}\n",
    );
    let expected = [
        "mesh.yaml:3:1: RequestAuthentication production/p: security.istio.io/v1beta1 RequestAuthentication is a kind that this agent does not know",
        "mesh.yaml:8:21: Pod default/a: unknown field metadata.nmae",
        "mesh.yaml:12:5: Pod default/a: unknown field spec.containers[0].prots",
        "mesh.yaml:18:3: PeerAuthentication default/a: unknown field spec.mtsl",
    ];
    assert_eq!(got.len(), expected.len(), "{got:?}");
    for (got, expected) in got.iter().zip(expected) {
        assert!(got.starts_with(expected), "{got}\n{expected}");
    }
}

#[test]
fn lists_are_read_item_by_item() {
    let text = r#"{"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [
  {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}},
  {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "b", "namespace": "a"},
   "status": {"podIP": "0.0.0.0"}},
  {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}},
  {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "c", "namespace": "a"}, "spec": {"clusterIP": "None"}}
]}"#;
    assert_eq!(names(text), ["Namespace a", "Service a/c"]);
    assert!(
        rejections(text)[0].starts_with("mesh.yaml:4:15: Pod a/b rejected: status.podIP 0.0.0.0"),
        "{:?}",
        rejections(text)
    );
    assert!(
        notices(text)[0].starts_with("mesh.yaml:5:29: Deployment default/d: apps/v1 Deployment is a kind"),
        "{:?}",
        notices(text)
    );
    // As an API server writes them: the items leave their kind to the list.
    let typed = "apiVersion: v1\nkind: PodList\nitems:\n- metadata: {name: a}\n- metadata: {name: b}\n  spec: {foo: 1}\n";
    assert_eq!(names(typed), ["Pod default/a", "Pod default/b"]);
    assert!(notices(typed)[0].starts_with("mesh.yaml:6:10: Pod default/b: unknown field spec.foo"));
    let array = r#"[{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}}]"#;
    assert_eq!(names(array), ["Namespace a"]);
}

#[test]
fn peer_authentications_are_read_in_full() {
    let read_one = |spec: &str| {
        let text = format!(
            "apiVersion: security.istio.io/v1beta1\nkind: PeerAuthentication\nmetadata: {{name: a, creationTimestamp: '1970-01-01T00:01:00Z'}}\n{spec}\nstatus: {{}}\n"
        );
        let contents = read(&text);
        assert_eq!(contents.rejections, [], "{spec}");
        match &*contents.accepted[0].object {
            Object::PeerAuthentication(policy) => (policy.clone(), contents.accepted[0].notices.len()),
            other => panic!("{other:?}"),
        }
    };
    for (spec, mode, remarks) in [
        ("", None, 0),
        ("spec:", None, 0),
        ("spec: {}", None, 0),
        ("spec: {mtls: {}}", None, 0),
        ("spec: {mtls: {mode: UNSET}}", None, 0),
        ("spec: {mtls: {mode: PERMISSIVE}}", Some(MtlsMode::Permissive), 0),
        ("spec: {mtls: {mode: STRICT}}", Some(MtlsMode::Strict), 0),
        ("spec: {mtls: {mode: DISABLE}}", Some(MtlsMode::Permissive), 1),
        (
            "spec: {selector: {matchLabels: {}}, mtls: {mode: STRICT}}",
            Some(MtlsMode::Strict),
            0,
        ),
    ] {
        let (policy, remarked) = read_one(spec);
        assert_eq!(
            (policy.mode, policy.scope, policy.created, remarked),
            (mode, Scope::Namespace, 60, remarks),
            "{spec}"
        );
    }
    let (policy, _) = read_one(
        "spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: STRICT}, '81': {mode: UNSET}, 82: {}}}",
    );
    assert_eq!(
        policy.ports,
        [(80, Some(MtlsMode::Strict)), (81, None), (82, None)].into()
    );
    assert_eq!(
        policy.scope,
        Scope::Workload([("a".to_owned(), "b".to_owned())].into())
    );
}

#[test]
fn bytes_that_are_no_text_are_rejected_where_they_stop_being_text() {
    let contents = parse("mesh.yaml", b"a: 1\nb: \xff\n");
    assert_eq!(
        (
            contents.rejections[0].origin.line,
            contents.rejections[0].origin.column
        ),
        (2, 4)
    );
}

#[test]
fn a_bomb_of_aliases_is_refused_and_not_unfolded() {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..9 {
        let list = vec![format!("*a{}", i - 1); 10].join(",");
        text.push_str(&format!("a{i}: &a{i} [{list}]\n"));
    }
    assert_eq!(rejections(&text).len(), 1);
}

#[test]
fn deep_nesting_is_refused_and_does_not_overflow() {
    assert_eq!(rejections(&"[".repeat(100_000)).len(), 1);
    assert_eq!(rejections(&format!("a: {}", "{a: ".repeat(10_000))).len(), 1);
    let block: String = (0..3_000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
    assert_eq!(rejections(&block).len(), 1);
}

/// Documents with a shape near those we know, and strange values in them.
fn near_documents() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        Just("null".to_owned()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("-1".to_owned()),
        Just("1e99".to_owned()),
        Just("*x".to_owned()),
        Just("&x [1]".to_owned()),
        Just("!!binary aGk=".to_owned()),
        "[a-z0-9:./'\"{}\\[\\], -]{0,12}",
    ];
    let kind = prop_oneof![
        Just(("v1", "Pod")),
        Just(("v1", "Service")),
        Just(("v1", "Namespace")),
        Just(("v1", "List")),
        Just(("v1", "PodList")),
        Just(("discovery.k8s.io/v1", "EndpointSlice")),
        Just(("security.istio.io/v1", "PeerAuthentication")),
    ];
    let key = prop_oneof![
        Just("metadata"),
        Just("spec"),
        Just("status"),
        Just("items"),
        Just("endpoints"),
        Just("ports"),
        Just("addressType"),
        Just("spec:\n  clusterIPs"),
        Just("spec:\n  portLevelMtls"),
        Just("spec:\n  mtls"),
        Just("status:\n  podIPs"),
        Just("spec:\n  containers"),
        Just("metadata:\n  annotations"),
        Just("metadata:\n  name"),
        Just("---\nkind"),
    ];
    (kind, proptest::collection::vec((key, value), 0..6)).prop_map(|((version, kind), fields)| {
        let mut text = format!("apiVersion: {version}\nkind: {kind}\n");
        for (key, value) in fields {
            text.push_str(&format!("{key}: {value}\n"));
        }
        text
    })
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        parse("f", &bytes);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[\\-a-c:{}\\[\\]&*!|>'\"%#,?. \n\t]{0,120}") {
        parse("f", text.as_bytes());
    }

    #[test]
    fn strange_documents_are_accepted_or_rejected_within_their_file(text in near_documents()) {
        let contents = parse("f", text.as_bytes());
        let lines = text.lines().count() as u64 + 1;
        for rejection in &contents.rejections {
            prop_assert!((1..=lines).contains(&rejection.origin.line) && rejection.origin.column >= 1, "{text}\n{rejection}");
            prop_assert!(!rejection.message.is_empty() && !rejection.message.contains('\n'));
        }
        let noticed = contents.notices.iter().chain(contents.accepted.iter().flat_map(|one| &one.notices));
        for origin in noticed.filter_map(|notice| notice.origin.as_ref()) {
            prop_assert!((1..=lines).contains(&origin.line), "{text}\n{origin}");
        }
    }
}
