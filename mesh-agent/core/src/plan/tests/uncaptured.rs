//! Exclusions and connections that go around capture, under policies.

use std::sync::Arc;

use super::*;
use crate::model::Exclusions;

/// The pods and services, under these policies alone.
fn with(policies: &str) -> Snapshot {
    let end = MESH.find("apiVersion: security.istio.io").unwrap();
    Snapshot::from_yaml(settings(), &format!("{}{policies}", &MESH[..end]))
}

fn policy(namespace: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

const STRICT: &str = "{mtls: {mode: STRICT}}";
const ALL: AllowedExclusions = AllowedExclusions {
    outbound_ports: true,
    outbound_cidrs: true,
    inbound_ports: true,
    inbound_when_down: true,
};

fn asking(snapshot: &Snapshot) -> Workload {
    let payment = snapshot
        .workload_by_address("198.18.0.2".parse().unwrap())
        .unwrap();
    let mut payment = Workload::clone(payment);
    Arc::make_mut(&mut payment.pod).exclusions = Exclusions {
        outbound_ports: [3306].into(),
        outbound_cidrs: ["10.0.0.0/8".parse().unwrap()].into(),
        inbound_ports: [8080, 9090].into(),
        inbound_when_down: true,
    };
    payment
}

#[test]
fn nothing_is_excluded_unless_the_settings_allow_it() {
    let snapshot = with("");
    let payment = asking(&snapshot);
    let decision = exclusions(&snapshot, &payment, AllowedExclusions::default());
    assert!(decision.in_force.is_empty());
    assert_eq!(decision.refused.len(), 5);
    assert!(
        decision.refused[0].why.contains("allow-exclusions"),
        "{decision:?}"
    );
    let decision = exclusions(&snapshot, &payment, ALL);
    assert_eq!(
        (decision.in_force, decision.refused),
        (payment.exclusions.clone(), vec![])
    );
    let only_cidrs = AllowedExclusions {
        outbound_cidrs: true,
        ..AllowedExclusions::default()
    };
    let decision = exclusions(&snapshot, &asking(&snapshot), only_cidrs);
    assert_eq!(decision.in_force.outbound_cidrs.len(), 1);
    assert_eq!(decision.refused.len(), 4);
}

#[test]
fn nobody_gets_past_a_dead_agent_whom_a_live_one_would_have_judged() {
    let policies = [
        policy("shop", STRICT),
        policy(
            "shop",
            "{selector: {matchLabels: {app: payment}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: STRICT}}}",
        ),
        "\n---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: some, namespace: shop}\nspec: {rules: [{}]}\n".to_owned(),
    ];
    for policy in &policies {
        let snapshot = with(policy);
        let decision = exclusions(&snapshot, &asking(&snapshot), ALL);
        assert!(!decision.in_force.inbound_when_down, "{policy}");
        let last = decision.refused.last().unwrap();
        assert!(last.what.contains("agent is down"), "{decision:?}");
    }
    let snapshot = with("");
    assert!(
        exclusions(&snapshot, &asking(&snapshot), ALL)
            .in_force
            .inbound_when_down
    );
    let allowed = AllowedExclusions {
        inbound_when_down: false,
        ..ALL
    };
    assert!(
        !exclusions(&snapshot, &asking(&snapshot), allowed)
            .in_force
            .inbound_when_down
    );
}

#[test]
fn no_inbound_port_is_excluded_under_strict_and_what_is_outbound_stays() {
    let table = [
        (STRICT.to_owned(), vec![]),
        (
            "{selector: {matchLabels: {app: payment}}, mtls: {mode: PERMISSIVE}, portLevelMtls: {9090: {mode: STRICT}}}".to_owned(),
            vec![8080],
        ),
        // A port that is opened in a STRICT workload needs no exclusion.
        (
            "{selector: {matchLabels: {app: payment}}, mtls: {mode: STRICT}, portLevelMtls: {9090: {mode: PERMISSIVE}}}".to_owned(),
            vec![],
        ),
    ];
    for (spec, granted) in table {
        let snapshot = with(&policy("shop", &spec));
        let decision = exclusions(&snapshot, &asking(&snapshot), ALL);
        assert_eq!(
            decision.in_force.inbound_ports,
            granted.into_iter().collect(),
            "{spec}"
        );
        assert_eq!(decision.in_force.outbound_ports, [3306].into(), "{spec}");
        let refused = decision.refused.iter().all(|one| one.why.contains("STRICT"));
        assert!(refused && !decision.refused.is_empty(), "{decision:?}");
    }
}

fn decide(snapshot: &Snapshot, address: &str, way: Way, local: &str, remote: &str) -> Option<Refusal> {
    let workload = snapshot.workload_by_address(address.parse().unwrap()).unwrap();
    let connection = Uncaptured {
        way,
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
    };
    uncaptured(snapshot, workload, &connection)
}

#[test]
fn an_older_inbound_connection_ends_where_its_port_is_strict() {
    let inbound = |snapshot: &Snapshot| {
        decide(
            snapshot,
            "198.18.0.2",
            Way::Inbound,
            "198.18.0.2:8080",
            "198.18.0.3:40000",
        )
    };
    assert_eq!(inbound(&with("")), None);
    let refusal = inbound(&with(&policy("shop", STRICT))).unwrap();
    assert_eq!(refusal.reason, Reason::PlaintextRefused);
    assert!(
        refusal.message.contains("shop/p") && refusal.message.contains("198.18.0.3:40000"),
        "{refusal}"
    );
    let opened = "{selector: {matchLabels: {app: payment}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}";
    assert_eq!(inbound(&with(&policy("shop", opened))), None);
}

#[test]
fn an_older_outbound_connection_ends_where_it_leads_to_an_enrolled_workload_that_is_strict() {
    let outbound = |snapshot: &Snapshot, remote: &str| {
        decide(snapshot, "198.18.0.1", Way::Outbound, "198.18.0.1:40000", remote)
    };
    let strict = with(&policy("shop", STRICT));
    for remote in [
        "198.18.0.2:8080",
        "[::ffff:198.18.0.2]:8080",
        "[2001:db8::2]:8080",
        "198.19.0.1:80",
    ] {
        assert_eq!(outbound(&with(""), remote), None, "{remote}");
        assert!(outbound(&strict, remote).is_some(), "{remote}");
    }
    // Not in the mesh, or not enrolled, or not even known.
    let mesh_wide = with(&policy("istio-system", STRICT));
    for remote in ["198.18.0.3:80", "203.0.113.9:443", "198.19.0.1:9999"] {
        assert_eq!(outbound(&mesh_wide, remote), None, "{remote}");
    }
}
