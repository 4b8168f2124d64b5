use super::*;
use crate::admin::document::{
    Direction, EndpointEntry, PlaintextEntry, RefusalEntry, SecurityState, ServiceEntry, ServicePortEntry,
};
use crate::cli::render::WIDTH;

fn narrow(text: &str) -> &str {
    for line in text.lines() {
        let width = line.chars().count();
        assert!(width <= usize::from(WIDTH), "{width} columns: {line}");
    }
    text
}

fn has(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
}

fn way() -> WayEntry {
    WayEntry {
        address: "198.18.2.10:8080".parse().unwrap(),
        workload: Some("shop/payment-5d4f8c7b9-x2x9z".into()),
        mode: "mtls".into(),
        verdict: "refused".into(),
        reason: Some("policy_denied".into()),
        policy: Some("AuthorizationPolicy shop/payment".into()),
        action: Some("ALLOW".into()),
        rule: Some(0),
        field: Some("source.principals".into()),
        why: Some("wants cluster.local/ns/shop/sa/order, the connection has spiffe://cluster.local/ns/shop/sa/invoice".into()),
        mtls: Some("STRICT".into()),
        mtls_policy: Some("PeerAuthentication shop/payment".into()),
        dry_run: Some("allowed: no policy stands in the way".into()),
        audited: vec!["AuthorizationPolicy shop/watch rule 1".into()],
        message: "long".into(),
    }
}

#[test]
fn an_explanation_names_everything_and_fits_a_terminal() {
    let text = explanation(&Explanation {
        source: Some("shop/invoice".into()),
        identity: Some("spiffe://cluster.local/ns/shop/sa/invoice".into()),
        address: Some("198.18.1.12".parse().unwrap()),
        service: Some("payment.shop.svc.cluster.local".into()),
        requested: Some("198.19.0.10:80".parse().unwrap()),
        allowed: false,
        ways: vec![way()],
        notes: vec!["a note".into()],
    });
    let parts = [
        "shop/invoice, cluster.local/ns/shop/sa/invoice, 198.18.1.12 -> payment.shop.svc.cluster.local, 198.19.0.10:80",
        "note: a note",
        "REFUSED (policy_denied)",
        "AuthorizationPolicy shop/payment (ALLOW)",
        "source.principals",
        "STRICT, by PeerAuthentication shop/payment",
        "no policy stands in the way",
        "AuthorizationPolicy shop/watch rule 1",
    ];
    has(&text, &parts);
    for line in text.lines().skip(1) {
        narrow(line);
    }
    let nothing = explanation(&Explanation::default());
    assert!(nothing.contains("Nothing serves there."), "{nothing}");
}

#[test]
fn policies_fit_a_terminal_and_say_what_is_wrong() {
    let entry = PolicyEntry {
        namespace: "shop".into(),
        name: "payment-callers".into(),
        action: "ALLOW".into(),
        dry_run: true,
        in_force: true,
        scope: "namespace, app=payment,version=v1".into(),
        selects: (0..6).map(|n| format!("shop/payment-5d4f8c7b9-{n}")).collect(),
        counts: [("dry_run_denied".to_owned(), 7), ("allowed".to_owned(), 9)].into(),
        problems: vec!["a.yaml:3:1: something".into()],
    };
    let gone = PolicyEntry {
        in_force: false,
        ..entry.clone()
    };
    let text = policies(&Policies {
        policies: vec![entry, gone],
    });
    has(
        &text,
        &[
            "ALLOW (dry run)",
            "NOT IN FORCE",
            "and 2 more",
            "7 dry run denied",
            "9 allowed",
            "a.yaml:3:1: something",
        ],
    );
    narrow(&text);
    assert!(policies(&Policies::default()).contains("everybody may connect"));
}

#[test]
fn refusals_show_their_id_their_ends_and_what_was_not_right() {
    let party = |name: &str| PartyEntry {
        address: "198.18.1.12:40000".parse().unwrap(),
        workload: Some(name.into()),
        namespace: Some("shop".into()),
        identity: Some(format!("spiffe://cluster.local/ns/shop/sa/{name}")),
    };
    let text = refusals(&Refusals {
        refusals: vec![RefusalEntry {
            id: "4f2a-17".into(),
            at: "2027-01-15T08:00:00Z".into(),
            direction: Direction::Inbound,
            security: SecurityState::MutualTls,
            source: party("invoice"),
            destination: party("payment"),
            reason: "policy_denied".into(),
            policy: Some("AuthorizationPolicy shop/payment".into()),
            rule: Some(0),
            field: Some("source.principals".into()),
            message: "m".into(),
            stood_seconds: Some(12.34),
        }],
    });
    has(
        narrow(&text),
        &[
            "4f2a-17",
            "shop/invoice",
            "policy_denied",
            "rule 0",
            "closed after 12.3 s",
        ],
    );
    assert_eq!(refusals(&Refusals::default()), "Nothing was refused.");
}

#[test]
fn services_show_each_endpoint_and_why_it_gets_nothing() {
    let endpoint = |n: u8, why_not: Option<&str>| EndpointEntry {
        address: ([198, 18, 2, n], 8080).into(),
        workload: Some("shop/payment".into()),
        node: Some("n2".into()),
        chosen: why_not.is_none(),
        why_not: why_not.map(str::to_owned),
    };
    let port = |port, endpoints| ServicePortEntry {
        port,
        name: "http".into(),
        endpoints,
    };
    let text = services(&Services {
        node: "n1".into(),
        services: vec![ServiceEntry {
            namespace: "shop".into(),
            name: "payment".into(),
            addresses: vec!["198.19.0.10".parse().unwrap(), "2001:db8:ff::a".parse().unwrap()],
            affinity_seconds: Some(60),
            ports: vec![
                port(80, vec![endpoint(1, None), endpoint(2, Some("not ready"))]),
                port(81, vec![]),
            ],
            ..ServiceEntry::default()
        }],
    });
    has(
        narrow(&text),
        &[
            "shop/payment",
            "sticky for 60 s",
            "80 http",
            "198.18.2.1:8080",
            "yes",
            "not ready",
            "none",
            "on n1",
        ],
    );
    assert!(services(&Services::default()).contains("no services"));
}

#[test]
fn readiness_says_who_may_go_strict_and_what_stands_in_the_way() {
    let one = |name: &str, mtls: &str, sources: Vec<PlaintextEntry>| MtlsReadinessEntry {
        namespace: "shop".into(),
        name: name.into(),
        mtls: mtls.into(),
        ready: sources.is_empty(),
        obstacles: sources
            .iter()
            .map(|_| "1 sources came in plaintext".to_owned())
            .collect(),
        sources,
    };
    let visitor = PlaintextEntry {
        source: "street/visitor".into(),
        count: 3,
        last_seen: "2027-01-15T08:00:00Z".into(),
        ports: vec![8080, 9090],
    };
    let text = readiness(&MtlsReadiness {
        since: "2027-01-15T07:00:00Z".into(),
        workloads: vec![
            one("a", "PERMISSIVE", vec![]),
            one("b", "PERMISSIVE", vec![visitor]),
            one("c", "STRICT", vec![]),
        ],
    });
    has(
        narrow(&text),
        &[
            "yes",
            "NO",
            "is",
            "street/visitor",
            "8080,9090",
            "shop/b: 1 sources",
            "seen since 2027-01-15T07:00:00Z",
        ],
    );
}
