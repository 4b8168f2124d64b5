//! PeerAuthentication, row by row: which policy holds at which scope, and which is reported.

use crate::model::MtlsMode;
use crate::snapshot::{MeshSettings, Snapshot};

fn build(documents: &[String]) -> Snapshot {
    let settings = MeshSettings {
        node_name: "node-1".into(),
        ..MeshSettings::default()
    };
    let pod = "{apiVersion: v1, kind: Pod, metadata: {name: p, namespace: shop, labels: {app: a}}, status: {podIP: 198.18.0.1}}\n";
    Snapshot::from_yaml(settings, &(pod.to_owned() + &documents.concat()))
}

const OLD: &str = "2026-01-01T00:00:00Z";
const NEW: &str = "2026-06-01T00:00:00Z";

fn policy(namespace: &str, name: &str, created: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: security.istio.io/v1, kind: PeerAuthentication, \
         metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '{created}'}}, spec: {{{spec}}}}}\n"
    )
}

fn mode(snapshot: &Snapshot, port: u16) -> MtlsMode {
    let p = snapshot
        .workloads()
        .find(|workload| workload.name == "p")
        .unwrap();
    snapshot.mtls_mode(p, port)
}

fn notices(snapshot: &Snapshot) -> Vec<String> {
    snapshot
        .diagnostics()
        .notices
        .iter()
        .map(ToString::to_string)
        .collect()
}

const SELECTING: &str = "selector: {matchLabels: {app: a}}";

#[test]
fn unset_inherits_at_every_level_down_to_permissive() {
    let unset = "mtls: {mode: UNSET}";
    let strict = "mtls: {mode: STRICT}";
    let open = "mtls: {mode: PERMISSIVE}";
    let own = |mode: &str| format!("{SELECTING}, {mode}");
    for (mesh, namespace, workload, expected) in [
        (unset, unset, unset, MtlsMode::Permissive),
        (strict, unset, unset, MtlsMode::Strict),
        (unset, strict, unset, MtlsMode::Strict),
        (unset, unset, strict, MtlsMode::Strict),
        (strict, open, unset, MtlsMode::Permissive),
        (strict, unset, open, MtlsMode::Permissive),
        (open, strict, unset, MtlsMode::Strict),
        (open, strict, open, MtlsMode::Permissive),
    ] {
        let snapshot = build(&[
            policy("istio-system", "m", OLD, mesh),
            policy("shop", "ns", OLD, namespace),
            policy("shop", "w", OLD, &own(workload)),
        ]);
        assert_eq!(mode(&snapshot, 80), expected, "{mesh} / {namespace} / {workload}");
        assert_eq!(notices(&snapshot), Vec::<String>::new());
    }
    let ports = format!(
        "{SELECTING}, mtls: {{mode: STRICT}}, portLevelMtls: {{80: {{mode: UNSET}}, 81: {{mode: PERMISSIVE}}}}"
    );
    let snapshot = build(&[policy("shop", "w", OLD, &ports)]);
    let modes = [80, 81, 82].map(|port| mode(&snapshot, port));
    assert_eq!(modes, [MtlsMode::Strict, MtlsMode::Permissive, MtlsMode::Strict]);
    assert_eq!(mode(&build(&[]), 80), MtlsMode::Permissive, "none at all");
}

#[test]
fn disable_is_permissive_and_reported_at_every_level() {
    let strict = policy("istio-system", "m", OLD, "mtls: {mode: STRICT}");
    for (documents, file_path) in [
        (
            vec![policy("istio-system", "d", OLD, "mtls: {mode: DISABLE}")],
            "istio-system/d",
        ),
        (
            vec![strict.clone(), policy("shop", "d", OLD, "mtls: {mode: DISABLE}")],
            "shop/d",
        ),
        (
            vec![
                strict.clone(),
                policy("shop", "d", OLD, &format!("{SELECTING}, mtls: {{mode: DISABLE}}")),
            ],
            "shop/d",
        ),
        (
            vec![
                strict,
                policy(
                    "shop",
                    "d",
                    OLD,
                    &format!("{SELECTING}, portLevelMtls: {{80: {{mode: DISABLE}}}}"),
                ),
            ],
            "shop/d",
        ),
    ] {
        let snapshot = build(&documents);
        assert_eq!(mode(&snapshot, 80), MtlsMode::Permissive, "{documents:?}");
        let said = notices(&snapshot);
        let expected = format!("PeerAuthentication {file_path}: mode DISABLE is applied as PERMISSIVE");
        assert!(said.len() == 1 && said[0].contains(&expected), "{said:?}");
    }
}

#[test]
fn a_selector_in_the_root_namespace_is_ignored_even_alone_and_reported() {
    let strict = format!("{SELECTING}, mtls: {{mode: STRICT}}");
    let snapshot = build(&[policy("istio-system", "picky", OLD, &strict)]);
    assert_eq!(mode(&snapshot, 80), MtlsMode::Permissive);
    assert!(
        notices(&snapshot)[0]
            .contains("PeerAuthentication istio-system/picky: a policy of the root namespace istio-system")
    );
    assert_eq!(snapshot.peer_authentications().len(), 0);
    // It takes nothing from the mesh-wide one, though it is older.
    let mesh = policy("istio-system", "whole", NEW, "mtls: {mode: STRICT}");
    let open = format!("{SELECTING}, mtls: {{mode: PERMISSIVE}}");
    let snapshot = build(&[policy("istio-system", "picky", OLD, &open), mesh]);
    assert_eq!(mode(&snapshot, 80), MtlsMode::Strict);
}

#[test]
fn the_oldest_holds_in_each_scope_and_a_tie_goes_by_name_with_the_others_reported() {
    let (strict, open) = ("mtls: {mode: STRICT}", "mtls: {mode: PERMISSIVE}");
    let selecting = |mode: &str| format!("{SELECTING}, {mode}");
    let scopes = [
        ("istio-system", strict.to_owned(), open.to_owned(), "the mesh"),
        ("shop", strict.to_owned(), open.to_owned(), "its namespace"),
        (
            "shop",
            selecting(strict),
            selecting(open),
            "a workload that both select",
        ),
    ];
    for (namespace, strict, open, scope) in scopes {
        // The names are against the age, so that neither order of documents nor names can pass for it.
        for (holder, loser) in [
            (("z", OLD), ("a", NEW)),
            (("a", OLD), ("z", OLD)),
            (("a", OLD), ("z", NEW)),
        ] {
            let first = policy(namespace, holder.0, holder.1, &strict);
            let second = policy(namespace, loser.0, loser.1, &open);
            for documents in [[first.clone(), second.clone()], [second, first]] {
                let snapshot = build(&documents);
                assert_eq!(
                    mode(&snapshot, 80),
                    MtlsMode::Strict,
                    "{scope} {holder:?} {loser:?}"
                );
                let said = notices(&snapshot);
                let expected = format!(
                    "PeerAuthentication {namespace}/{}: PeerAuthentication {namespace}/{} holds for {scope}",
                    loser.0, holder.0
                );
                assert!(
                    said.len() == 1 && said[0].contains(&expected),
                    "{expected}: {said:?}"
                );
            }
        }
    }
}

#[test]
fn an_older_policy_that_says_nothing_still_holds_its_scope() {
    let snapshot = build(&[
        policy("istio-system", "silent", OLD, "mtls: {mode: UNSET}"),
        policy("istio-system", "loud", NEW, "mtls: {mode: STRICT}"),
    ]);
    assert_eq!(mode(&snapshot, 80), MtlsMode::Permissive);
    assert_eq!(notices(&snapshot).len(), 1);
}

#[test]
fn port_levels_without_a_selector_are_rejected_at_mesh_and_namespace_level() {
    for namespace in ["istio-system", "shop"] {
        for selector in ["", "selector: {}, ", "selector: {matchLabels: {}}, "] {
            let spec =
                format!("{selector}mtls: {{mode: STRICT}}, portLevelMtls: {{80: {{mode: PERMISSIVE}}}}");
            let snapshot = build(&[policy(namespace, "ports", OLD, &spec)]);
            let rejected: Vec<String> = snapshot
                .diagnostics()
                .rejections
                .iter()
                .map(ToString::to_string)
                .collect();
            let expected = "spec.portLevelMtls stands without a selector";
            assert!(
                rejected.len() == 1 && rejected[0].contains(expected),
                "{namespace} {selector}: {rejected:?}"
            );
            assert_eq!(mode(&snapshot, 80), MtlsMode::Permissive, "nothing of it holds");
        }
    }
}

#[test]
fn a_port_level_names_the_workloads_port_not_the_services() {
    let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: s, namespace: shop}, spec: {clusterIP: 198.19.0.1, selector: {app: a}, ports: [{port: 80, targetPort: 8080}]}}\n";
    let ports = format!("{SELECTING}, portLevelMtls: {{8080: {{mode: STRICT}}}}");
    let snapshot = build(&[policy("shop", "w", OLD, &ports), service.to_owned()]);
    assert_eq!(
        (mode(&snapshot, 8080), mode(&snapshot, 80)),
        (MtlsMode::Strict, MtlsMode::Permissive)
    );
}
