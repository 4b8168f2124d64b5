//! Policies by hand, each against the same eight connections.

use super::{Connection, judge, snapshot};
use crate::authz::{Verdict, Word};
use crate::manifest::NoticeKind;
use crate::model::{Action, ObjectRef};

fn connections() -> [Connection; 8] {
    let to = "198.18.0.2:8080";
    [
        Connection::new("mesh.example/ns/shop/sa/order", "198.18.0.1", to),
        Connection::new("mesh.example/ns/shop/sa/order", "198.18.0.1", "198.18.0.2:9090"),
        Connection::new("mesh.example/ns/shop/sa/audit", "198.18.0.5", to),
        Connection::new("mesh.example/ns/office/sa/order", "198.18.1.1", to),
        Connection::new("old.example/ns/shop/sa/order", "198.18.0.1", to),
        Connection::new("", "198.18.0.1", to),
        Connection::new("", "203.0.113.9", to),
        Connection::new(
            "mesh.example/ns/shop/sa/order",
            "2001:db8::1",
            "[2001:db8::2]:8080",
        ),
    ]
}

fn policy(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n---\n"
    )
}

/// Each connection's lot, in order: `+` gets in, `-` does not.
fn outcome(policies: &str) -> String {
    let snapshot = snapshot(policies);
    let allowed = |connection: &Connection| judge(&snapshot, connection).verdict.is_allowed();
    let sign = |connection| if allowed(&connection) { '+' } else { '-' };
    connections().into_iter().map(sign).collect()
}

/// What a rule matches, as the rule of an ALLOW policy (left) and of a DENY policy (right, where `-` is a match).
const RULES: &[(&str, &str, &str)] = &[
    // Nothing in it matches everything.
    ("{}", "++++++++", "--------"),
    ("{from: null, to: null, when: null}", "++++++++", "--------"),
    // Principals: exact, under every name of the local trust domain.
    (
        "{from: [{source: {principals: [mesh.example/ns/shop/sa/order]}}]}",
        "++--+--+",
        "--++-++-",
    ),
    (
        "{from: [{source: {principals: [cluster.local/ns/shop/sa/order]}}]}",
        "++--+--+",
        "--++-++-",
    ),
    (
        "{from: [{source: {principals: [old.example/ns/shop/sa/order]}}]}",
        "++--+--+",
        "--++-++-",
    ),
    (
        "{from: [{source: {principals: ['spiffe://cluster.local/ns/shop/sa/order']}}]}",
        "++--+--+",
        "--++-++-",
    ),
    (
        "{from: [{source: {principals: [foreign.example/ns/shop/sa/order]}}]}",
        "--------",
        "++++++++",
    ),
    (
        "{from: [{source: {principals: [mesh.example/ns/shop/sa/orde]}}]}",
        "--------",
        "++++++++",
    ),
    (
        "{from: [{source: {principals: [MESH.EXAMPLE/ns/shop/sa/order]}}]}",
        "--------",
        "++++++++",
    ),
    // Prefix, suffix, presence.
    (
        "{from: [{source: {principals: ['cluster.local/ns/shop/*']}}]}",
        "+++-+--+",
        "---+-++-",
    ),
    (
        "{from: [{source: {principals: ['*/sa/order']}}]}",
        "++-++--+",
        "--+--++-",
    ),
    (
        "{from: [{source: {principals: ['*/ns/office/sa/order']}}]}",
        "---+----",
        "+++-++++",
    ),
    ("{from: [{source: {principals: ['*']}}]}", "+++++--+", "-----++-"),
    (
        "{from: [{source: {notPrincipals: ['*']}}]}",
        "-----++-",
        "+++++--+",
    ),
    (
        "{from: [{source: {principals: ['mesh*order']}}]}",
        "--------",
        "++++++++",
    ),
    (
        "{from: [{source: {notPrincipals: [cluster.local/ns/shop/sa/order]}}]}",
        "--++-++-",
        "++--+--+",
    ),
    (
        "{from: [{source: {notPrincipals: [mesh.example/ns/shop/sa/order, '*/sa/audit']}}]}",
        "---+-++-",
        "+++-+--+",
    ),
    // Within a list one is enough; the fields of an entry must all hold; of entries one is enough.
    (
        "{from: [{source: {principals: [x/ns/a/sa/b, '*/sa/audit']}}]}",
        "--+-----",
        "++-+++++",
    ),
    (
        "{from: [{source: {principals: ['*/sa/order'], namespaces: [office]}}]}",
        "---+----",
        "+++-++++",
    ),
    (
        "{from: [{source: {principals: ['*/sa/audit']}}, {source: {namespaces: [office]}}]}",
        "--++----",
        "++--++++",
    ),
    (
        "{from: [{source: {principals: ['*/sa/audit'], namespaces: [office]}}]}",
        "--------",
        "++++++++",
    ),
    (
        "{from: [{source: {principals: ['*/sa/order'], notNamespaces: [office]}}]}",
        "++--+--+",
        "--++-++-",
    ),
    // Namespaces.
    ("{from: [{source: {namespaces: [shop]}}]}", "+++-+--+", "---+-++-"),
    (
        "{from: [{source: {namespaces: ['sh*']}}]}",
        "+++-+--+",
        "---+-++-",
    ),
    (
        "{from: [{source: {namespaces: ['*ice']}}]}",
        "---+----",
        "+++-++++",
    ),
    ("{from: [{source: {namespaces: ['*']}}]}", "+++++--+", "-----++-"),
    (
        "{from: [{source: {notNamespaces: [shop]}}]}",
        "---+-++-",
        "+++-+--+",
    ),
    (
        "{from: [{source: {notNamespaces: ['*']}}]}",
        "-----++-",
        "+++++--+",
    ),
    (
        "{from: [{source: {namespaces: []}}, {source: {namespaces: [office]}}]}",
        "---+----",
        "--------",
    ),
    // Service accounts: of the policy's own namespace where none stands before.
    (
        "{from: [{source: {serviceAccounts: [order]}}]}",
        "++--+--+",
        "--++-++-",
    ),
    (
        "{from: [{source: {serviceAccounts: [shop/order]}}]}",
        "++--+--+",
        "--++-++-",
    ),
    (
        "{from: [{source: {serviceAccounts: [office/order, audit]}}]}",
        "--++----",
        "++--++++",
    ),
    (
        "{from: [{source: {notServiceAccounts: [order]}}]}",
        "--++-++-",
        "++--+--+",
    ),
    (
        "{from: [{source: {serviceAccounts: ['*']}}]}",
        "--------",
        "--------",
    ),
    (
        "{from: [{source: {serviceAccounts: ['shop/*', order]}}]}",
        "--------",
        "--------",
    ),
    (
        "{from: [{source: {serviceAccounts: [a/b/c]}}]}",
        "--------",
        "--------",
    ),
    // Trust domains.
    (
        "{from: [{source: {trustDomains: [mesh.example]}}]}",
        "+++++--+",
        "-----++-",
    ),
    (
        "{from: [{source: {trustDomains: [cluster.local]}}]}",
        "+++++--+",
        "-----++-",
    ),
    (
        "{from: [{source: {trustDomains: ['*.example']}}]}",
        "+++++--+",
        "-----++-",
    ),
    (
        "{from: [{source: {trustDomains: [foreign.example]}}]}",
        "--------",
        "++++++++",
    ),
    (
        "{from: [{source: {notTrustDomains: [old.example]}}]}",
        "-----++-",
        "+++++--+",
    ),
    // Addresses.
    (
        "{from: [{source: {ipBlocks: [198.18.0.0/24]}}]}",
        "+++-++--",
        "---+--++",
    ),
    (
        "{from: [{source: {ipBlocks: [198.18.0.1]}}]}",
        "++--++--",
        "--++--++",
    ),
    (
        "{from: [{source: {ipBlocks: [198.18.0.1/32, '2001:db8::/32']}}]}",
        "++--++-+",
        "--++--+-",
    ),
    (
        "{from: [{source: {ipBlocks: ['0.0.0.0/0']}}]}",
        "+++++++-",
        "-------+",
    ),
    ("{from: [{source: {ipBlocks: ['::/0']}}]}", "-------+", "+++++++-"),
    (
        "{from: [{source: {ipBlocks: ['::ffff:198.18.0.0/120']}}]}",
        "+++-++--",
        "---+--++",
    ),
    (
        "{from: [{source: {notIpBlocks: [198.18.0.0/15]}}]}",
        "------++",
        "++++++--",
    ),
    (
        "{from: [{source: {notIpBlocks: [198.18.0.0/15, '2001:db8::1']}}]}",
        "------+-",
        "++++++-+",
    ),
    (
        "{from: [{source: {ipBlocks: [198.18.0.0/15], notIpBlocks: [198.18.0.1]}}]}",
        "--++----",
        "++--++++",
    ),
    (
        "{from: [{source: {remoteIpBlocks: [203.0.113.0/24]}}]}",
        "------+-",
        "++++++-+",
    ),
    (
        "{from: [{source: {ipBlocks: [198.18.0.0/40]}}]}",
        "--------",
        "--------",
    ),
    (
        "{from: [{source: {ipBlocks: [203.0.113.0/24, nonsense]}}]}",
        "--------",
        "--------",
    ),
    (
        "{from: [{source: {notIpBlocks: [nonsense]}}]}",
        "--------",
        "--------",
    ),
    // Ports, of the workload.
    ("{to: [{operation: {ports: ['8080']}}]}", "+-++++++", "-+------"),
    (
        "{to: [{operation: {ports: ['8080', '9090']}}]}",
        "++++++++",
        "--------",
    ),
    ("{to: [{operation: {ports: ['80']}}]}", "--------", "++++++++"),
    (
        "{to: [{operation: {notPorts: ['8080']}}]}",
        "-+------",
        "+-++++++",
    ),
    ("{to: [{operation: {ports: ['http']}}]}", "--------", "--------"),
    ("{to: [{operation: {ports: ['0']}}]}", "--------", "--------"),
    (
        "{to: [{operation: {ports: ['9090']}}, {operation: {ports: ['8080']}}]}",
        "++++++++",
        "--------",
    ),
    (
        "{from: [{source: {namespaces: [shop]}}], to: [{operation: {ports: ['9090']}}]}",
        "-+------",
        "+-++++++",
    ),
    // Conditions: all must hold, within values one is enough.
    (
        "{when: [{key: source.ip, values: [198.18.0.0/24]}]}",
        "+++-++--",
        "---+--++",
    ),
    (
        "{when: [{key: source.ip, notValues: [198.18.0.0/24]}]}",
        "---+--++",
        "+++-++--",
    ),
    (
        "{when: [{key: source.ip, values: [198.18.0.0/15], notValues: [198.18.0.1]}]}",
        "--++----",
        "++--++++",
    ),
    (
        "{when: [{key: remote.ip, values: [198.18.1.1]}]}",
        "---+----",
        "+++-++++",
    ),
    (
        "{when: [{key: source.namespace, values: [shop]}]}",
        "+++-+--+",
        "---+-++-",
    ),
    (
        "{when: [{key: source.namespace, notValues: [shop]}]}",
        "---+-++-",
        "+++-+--+",
    ),
    (
        "{when: [{key: source.principal, values: [cluster.local/ns/shop/sa/audit]}]}",
        "--+-----",
        "++-+++++",
    ),
    (
        "{when: [{key: source.principal, notValues: ['*']}]}",
        "-----++-",
        "+++++--+",
    ),
    (
        "{when: [{key: source.serviceAccount, values: [shop/order]}]}",
        "++--+--+",
        "--++-++-",
    ),
    (
        "{when: [{key: source.serviceAccount, notValues: [order]}]}",
        "--++-++-",
        "++--+--+",
    ),
    (
        "{when: [{key: source.trustDomain, values: [old.example]}]}",
        "+++++--+",
        "-----++-",
    ),
    (
        "{when: [{key: destination.ip, values: [198.18.0.2]}]}",
        "+++++++-",
        "-------+",
    ),
    (
        "{when: [{key: destination.ip, notValues: ['2001:db8::/64']}]}",
        "+++++++-",
        "-------+",
    ),
    (
        "{when: [{key: destination.port, values: ['9090']}]}",
        "-+------",
        "+-++++++",
    ),
    (
        "{when: [{key: destination.port, notValues: ['9090']}]}",
        "+-++++++",
        "-+------",
    ),
    (
        "{when: [{key: source.namespace, values: [shop]}, {key: destination.port, values: ['8080']}]}",
        "+-+-+--+",
        "-+-+-++-",
    ),
    (
        "{when: [{key: source.ip, values: [bad]}]}",
        "--------",
        "--------",
    ),
    ("{when: [{key: source.ip}]}", "--------", "--------"),
    (
        "{when: [{key: source.weather, values: [rain]}]}",
        "--------",
        "--------",
    ),
    // Attributes of HTTP: never in an ALLOW; left out of a DENY.
    ("{to: [{operation: {methods: [GET]}}]}", "--------", "--------"),
    ("{to: [{operation: {paths: ['/a/*']}}]}", "--------", "--------"),
    (
        "{to: [{operation: {hosts: [example.com]}}]}",
        "--------",
        "--------",
    ),
    ("{to: [{operation: {notMethods: [GET]}}]}", "--------", "--------"),
    (
        "{to: [{operation: {methods: [GET], ports: ['9090']}}]}",
        "--------",
        "+-++++++",
    ),
    (
        "{to: [{operation: {methods: [GET]}}, {operation: {ports: ['9090']}}]}",
        "-+------",
        "--------",
    ),
    (
        "{from: [{source: {requestPrincipals: ['*']}}]}",
        "--------",
        "--------",
    ),
    (
        "{from: [{source: {requestPrincipals: ['*'], namespaces: [office]}}]}",
        "--------",
        "+++-++++",
    ),
    (
        "{from: [{source: {notRequestPrincipals: ['*']}}]}",
        "--------",
        "--------",
    ),
    (
        "{when: [{key: 'request.headers[x-a]', values: [b]}]}",
        "--------",
        "--------",
    ),
    (
        "{when: [{key: 'request.auth.claims[iss]', notValues: [b]}]}",
        "--------",
        "--------",
    ),
    (
        "{when: [{key: connection.sni, values: [a]}]}",
        "--------",
        "--------",
    ),
    (
        "{from: [{source: {namespaces: [office]}}], when: [{key: 'request.headers[x-a]', values: [b]}]}",
        "--------",
        "+++-++++",
    ),
    // What nobody knows narrows an ALLOW and widens a DENY.
    ("{from: [{source: {principal: [x]}}]}", "--------", "--------"),
    ("{from: [{sauce: {principals: ['*']}}]}", "--------", "--------"),
    ("{form: [{source: {principals: ['*']}}]}", "--------", "--------"),
    (
        "{from: [{source: {namespaces: [office], principal: [x]}}]}",
        "--------",
        "+++-++++",
    ),
    ("{from: [{source: {}}]}", "--------", "--------"),
    ("{from: [{}]}", "--------", "--------"),
    ("{from: []}", "--------", "--------"),
    ("{to: [{operation: {}}]}", "--------", "--------"),
    (
        "{from: [{source: {notnamespaces: [shop]}}]}",
        "--------",
        "--------",
    ),
];

#[test]
fn a_rule_matches_what_it_says() {
    for (rule, allowed, denied) in RULES {
        for selector in [
            "",
            "selector: {matchLabels: {app: payment}}, ",
            "targetRefs: [{kind: Service, name: payment}], ",
        ] {
            let allow = policy("shop", "p", &format!("{{{selector}rules: [{rule}]}}"));
            assert_eq!(outcome(&allow), *allowed, "ALLOW {selector}{rule}");
            let deny = policy(
                "shop",
                "p",
                &format!("{{{selector}action: DENY, rules: [{rule}]}}"),
            );
            assert_eq!(outcome(&deny), *denied, "DENY {selector}{rule}");
            // A provider that cannot be asked refuses.
            let custom = policy(
                "shop",
                "p",
                &format!("{{{selector}action: CUSTOM, provider: {{name: x}}, rules: [{rule}]}}"),
            );
            assert_eq!(outcome(&custom), *denied, "CUSTOM {selector}{rule}");
            let audit = policy(
                "shop",
                "p",
                &format!("{{{selector}action: AUDIT, rules: [{rule}]}}"),
            );
            assert_eq!(outcome(&audit), "++++++++", "AUDIT {selector}{rule}");
        }
    }
}

#[test]
fn policies_that_do_not_select_the_workload_have_no_say() {
    let table = [
        policy("office", "p", "{}"),
        policy("office", "p", "{action: DENY, rules: [{}]}"),
        policy("shop", "p", "{selector: {matchLabels: {app: other}}}"),
        policy(
            "shop",
            "p",
            "{selector: {matchLabels: {app: payment, version: v2}}}",
        ),
        policy("shop", "p", "{targetRefs: [{kind: Service, name: other}]}"),
        policy("shop", "p", "{targetRefs: [{kind: Service, name: by-hand}]}"),
        policy("shop", "p", "{targetRefs: [{kind: Service, name: absent}]}"),
        policy(
            "shop",
            "p",
            "{targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: payment}]}",
        ),
        policy("office", "p", "{targetRefs: [{kind: Service, name: payment}]}"),
        policy("istio-system", "p", "{selector: {matchLabels: {app: other}}}"),
    ];
    for policies in table {
        assert_eq!(outcome(&policies), "++++++++", "{policies}");
    }
}

#[test]
fn policies_work_together_in_their_order() {
    let shop = |name, spec| policy("shop", name, spec);
    let mesh = |name, spec| policy("istio-system", name, spec);
    let table: &[(&[String], &str)] = &[
        (&[], "++++++++"),
        // An empty spec allows nobody; a rule without fields everybody; a DENY without rules does nothing.
        (&[shop("a", "{}")], "--------"),
        (&[shop("a", "null")], "--------"),
        (&[shop("a", "{rules: []}")], "--------"),
        (&[shop("a", "{rules: [{}]}")], "++++++++"),
        (&[shop("a", "{action: DENY}")], "++++++++"),
        (&[shop("a", "{action: AUDIT}")], "++++++++"),
        // The mesh's, the namespace's and the workload's are added up.
        (&[mesh("a", "{}")], "--------"),
        (
            &[mesh("a", "{selector: {matchLabels: {app: payment}}}")],
            "--------",
        ),
        (
            &[
                mesh("a", "{}"),
                shop("b", "{rules: [{from: [{source: {namespaces: [office]}}]}]}"),
            ],
            "---+----",
        ),
        (
            &[
                shop("a", "{rules: [{from: [{source: {namespaces: [office]}}]}]}"),
                shop(
                    "b",
                    "{selector: {matchLabels: {app: payment}}, rules: [{from: [{source: {serviceAccounts: [audit]}}]}]}",
                ),
            ],
            "--++----",
        ),
        // What denies wins over what allows, wherever it stands.
        (
            &[
                shop("a", "{rules: [{}]}"),
                mesh(
                    "b",
                    "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}",
                ),
            ],
            "+++++--+",
        ),
        (
            &[
                shop("a", "{rules: [{from: [{source: {namespaces: [shop]}}]}]}"),
                shop(
                    "b",
                    "{action: DENY, rules: [{to: [{operation: {ports: ['9090']}}]}]}",
                ),
            ],
            "+-+-+--+",
        ),
        (
            &[shop(
                "a",
                "{action: DENY, rules: [{to: [{operation: {ports: ['9090']}}]}, {from: [{source: {namespaces: [office]}}]}]}",
            )],
            "+-+-++++",
        ),
        (
            &[shop("a", "{action: AUDIT, rules: [{}]}"), shop("b", "{}")],
            "--------",
        ),
    ];
    for (policies, expected) in table {
        assert_eq!(outcome(&policies.concat()), *expected, "{policies:?}");
    }
}

#[test]
fn a_dry_run_policy_is_judged_and_decides_nothing() {
    let dry = |spec: &str| {
        policy("shop", "dry", spec).replace(
            "namespace: shop}",
            "namespace: shop, annotations: {istio.io/dry-run: 'true'}}",
        )
    };
    let [order, .., plain, _, _] = connections();
    for (spec, would_order, would_plain) in [
        ("{}", false, false),
        (
            "{action: DENY, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}",
            true,
            false,
        ),
        ("{rules: [{from: [{source: {namespaces: [shop]}}]}]}", true, false),
        ("{action: AUDIT, rules: [{}]}", true, true),
    ] {
        let policies = dry(spec);
        assert_eq!(outcome(&policies), "++++++++", "{spec}");
        let snapshot = snapshot(&policies);
        for (connection, would) in [(&order, would_order), (&plain, would_plain)] {
            let judgement = judge(&snapshot, connection);
            assert_eq!(judgement.verdict, Verdict::AllowedByDefault);
            assert_eq!(
                judgement.dry_run.unwrap().is_allowed(),
                would,
                "{spec} {connection:?}"
            );
            assert_eq!(judgement.audited, []);
        }
    }
    // Beside one that is in force.
    let both = format!(
        "{}{}",
        dry("{rules: [{}]}"),
        policy(
            "shop",
            "real",
            "{rules: [{from: [{source: {namespaces: [office]}}]}]}"
        )
    );
    assert_eq!(outcome(&both), "---+----");
    assert!(judge(&snapshot(&both), &plain).dry_run.unwrap().is_allowed());
    let none = policy("shop", "real", "{}");
    assert_eq!(judge(&snapshot(&none), &plain).dry_run, None);
}

/// What is counted for the first connection: `policy action word`, in order.
fn counted(policies: &str) -> Vec<String> {
    let [order, ..] = connections();
    let tallies = judge(&snapshot(policies), &order).tallies;
    let text = |tally: &crate::authz::Tally| {
        format!("{} {:?} {}", tally.policy.name, tally.action, tally.word.as_str())
    };
    tallies.iter().map(text).collect()
}

#[test]
fn each_policy_is_counted_by_what_it_said() {
    let shop = |name: &str, spec: &str| policy("shop", name, spec);
    let dry = |name: &str, spec: &str| {
        shop(name, spec).replace(
            "namespace: shop}",
            "namespace: shop, annotations: {istio.io/dry-run: 'true'}}",
        )
    };
    let (all, none) = ("{rules: [{}]}", "{}");
    let deny = "{action: DENY, rules: [{}]}";
    let audit = "{action: AUDIT, rules: [{}]}";
    let table: &[(String, &[&str])] = &[
        (String::new(), &[]),
        (shop("a", all), &["a Allow allowed"]),
        (shop("a", none) + &shop("b", all), &["b Allow allowed"]),
        (
            shop("a", none) + &shop("b", none),
            &["a Allow denied", "b Allow denied"],
        ),
        (shop("a", all) + &shop("b", deny), &["b Deny denied"]),
        (
            shop("a", all) + &shop("c", audit),
            &["a Allow allowed", "c Audit audited"],
        ),
        (shop("c", audit), &["c Audit audited"]),
        (dry("d", none), &["d Allow dry_run_denied"]),
        (dry("d", all), &["d Allow dry_run_allowed"]),
        (dry("d", deny), &["d Deny dry_run_denied"]),
        (dry("d", audit), &[]),
        // Another one lets it in, so a dry run that does not would change nothing.
        (shop("a", all) + &dry("d", none), &["a Allow allowed"]),
        (
            shop("a", all) + &dry("d", deny),
            &["a Allow allowed", "d Deny dry_run_denied"],
        ),
        (
            shop("a", none) + &dry("d", all),
            &["a Allow denied", "d Allow dry_run_allowed"],
        ),
    ];
    for (policies, expected) in table {
        assert_eq!(counted(policies), *expected, "{policies}");
    }
    assert_eq!(Word::Closed.as_str(), "closed");
}

#[test]
fn service_accounts_beside_principals_or_namespaces_are_no_source() {
    for (fields, allowed, denied) in [
        (
            "serviceAccounts: [order], principals: ['*']",
            "--------",
            "--------",
        ),
        (
            "serviceAccounts: [order], namespaces: [shop]",
            "--------",
            "--------",
        ),
        (
            "notServiceAccounts: [order], notNamespaces: [x]",
            "--------",
            "--------",
        ),
        // What does not contradict itself still counts.
        (
            "serviceAccounts: [order], namespaces: [shop], ipBlocks: [203.0.113.0/24]",
            "--------",
            "++++++-+",
        ),
        (
            "serviceAccounts: [order], ipBlocks: [198.18.0.0/16]",
            "++--+---",
            "--++-+++",
        ),
    ] {
        let rules = format!("rules: [{{from: [{{source: {{{fields}}}}}]}}]");
        assert_eq!(
            outcome(&policy("shop", "p", &format!("{{{rules}}}"))),
            allowed,
            "{fields}"
        );
        let deny = policy("shop", "p", &format!("{{action: DENY, {rules}}}"));
        assert_eq!(outcome(&deny), denied, "DENY {fields}");
    }
    let both = "{rules: [{from: [{source: {serviceAccounts: [order], principals: ['*']}}]}]}";
    let notices = snapshot(&policy("shop", "p", both)).diagnostics().notices.clone();
    assert!(
        notices.iter().any(|notice| notice.message.contains("exclude")),
        "{notices:?}"
    );
}

#[test]
fn v4_mapped_addresses_are_the_ipv4_addresses_that_they_are() {
    let mapped = Connection::new("", "::ffff:198.18.0.1", "[::ffff:198.18.0.2]:8080");
    let plain = Connection::new("", "198.18.0.1", "198.18.0.2:8080");
    let table = [
        ("{from: [{source: {ipBlocks: [198.18.0.0/24]}}]}", true),
        ("{from: [{source: {ipBlocks: ['::ffff:198.18.0.0/120']}}]}", true),
        ("{from: [{source: {notIpBlocks: ['::/0']}}]}", true),
        ("{from: [{source: {ipBlocks: ['::/0']}}]}", false),
        ("{from: [{source: {notIpBlocks: [198.18.0.1]}}]}", false),
        ("{when: [{key: destination.ip, values: [198.18.0.2]}]}", true),
        ("{when: [{key: destination.ip, notValues: [198.18.0.2]}]}", false),
        (
            "{when: [{key: destination.ip, values: ['2001:db8::2', '::/0']}]}",
            false,
        ),
        (
            "{when: [{key: source.ip, values: [198.18.0.0/15], notValues: [198.18.0.1]}]}",
            false,
        ),
        (
            "{when: [{key: source.ip, values: [198.18.0.0/15], notValues: [198.18.0.9]}]}",
            true,
        ),
    ];
    for (rule, allowed) in table {
        let snapshot = snapshot(&policy("shop", "p", &format!("{{rules: [{rule}]}}")));
        for connection in [&mapped, &plain] {
            let verdict = judge(&snapshot, connection).verdict;
            assert_eq!(verdict.is_allowed(), allowed, "{rule} {connection:?}: {verdict}");
        }
    }
}

#[test]
fn an_audit_policy_names_the_rules_that_match() {
    let policies = policy(
        "shop",
        "watch",
        "{action: AUDIT, rules: [{from: [{source: {namespaces: [office]}}]}, {to: [{operation: {ports: ['9090']}}]}]}",
    );
    let snapshot = snapshot(&policies);
    let audited = |connection: &Connection| -> Vec<usize> {
        judge(&snapshot, connection)
            .audited
            .iter()
            .map(|rule| rule.rule)
            .collect()
    };
    let [first, second, _, office, ..] = connections();
    assert_eq!(
        (audited(&first), audited(&second), audited(&office)),
        (vec![], vec![1], vec![0])
    );
}

#[test]
fn a_refusal_names_the_policy_the_rule_and_the_field() {
    let [order, other_port, audit, .., plain, _, _] = connections();
    let rules = "{rules: [{from: [{source: {principals: ['*/sa/audit']}}], to: [{operation: {ports: ['9090']}}]}, \
                 {from: [{source: {principals: ['*/sa/cashier']}}, {source: {namespaces: [shop]}}], \
                 when: [{key: source.serviceAccount, values: [clerk]}]}]}";
    let snapshot_ = snapshot(&policy("shop", "pay", rules));
    let nearest = |connection: &Connection| match judge(&snapshot_, connection).verdict {
        Verdict::NothingAllowed {
            nearest: Some(miss),
            policies,
        } => {
            assert_eq!(policies, [ObjectRef::new("AuthorizationPolicy", "shop", "pay")]);
            (miss.rule.rule, miss.field.clone(), miss.to_string())
        }
        other => panic!("{other:?}"),
    };
    let (rule, field, text) = nearest(&audit);
    assert_eq!((rule, field.as_str()), (0, "operation.ports"));
    assert_eq!(
        text,
        "AuthorizationPolicy shop/pay rule 0: operation.ports wants 9090, the connection has 8080"
    );
    let (rule, field, text) = nearest(&order);
    assert_eq!((rule, field.as_str()), (1, "when source.serviceAccount"));
    assert!(
        text.ends_with("wants shop/clerk, the connection has spiffe://mesh.example/ns/shop/sa/order"),
        "{text}"
    );
    let (rule, field, text) = nearest(&plain);
    assert_eq!((rule, field.as_str()), (0, "source.principals"));
    assert!(text.contains("it came in plaintext"), "{text}");
    let deny = snapshot(&policy(
        "shop",
        "never",
        "{action: DENY, rules: [{from: [{source: {namespaces: [x]}}]}, {to: [{operation: {ports: ['9090']}}]}]}",
    ));
    let verdict = judge(&deny, &other_port).verdict;
    assert_eq!(
        verdict.to_string(),
        "AuthorizationPolicy shop/never rule 1 denies it"
    );
    let ground = verdict.ground().unwrap();
    assert_eq!((ground.policy.name.as_str(), ground.rule), ("never", Some(1)));
    assert_eq!((ground.action, ground.field), (Action::Deny, None));
    let empty = judge(&snapshot(&policy("shop", "nobody", "{}")), &order).verdict;
    assert!(empty.to_string().contains("they have no rules"), "{empty}");
    let http = snapshot(&policy(
        "shop",
        "web",
        "{rules: [{to: [{operation: {methods: [GET]}}]}]}",
    ));
    let text = judge(&http, &order).verdict.to_string();
    assert!(text.contains("operation.methods cannot be seen"), "{text}");
}

#[test]
fn what_is_not_applied_as_written_is_reported_with_its_place() {
    let text = "apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata:
  name: p
  namespace: shop
  annotations: {istio.io/dry-run: maybe}
spec:
  action: ALLOW
  rules:
  - from:
    - source:
        principal: [x]
        ipBlocks: [10.0.0.0/99]
    to:
    - operation:
        paths: ['/a']
  - when:
    - {key: source.wether, values: [x]}
";
    let snapshot = snapshot(text);
    let found: Vec<(u64, NoticeKind)> = snapshot
        .diagnostics()
        .notices
        .iter()
        .map(|notice| {
            (
                notice.origin.as_ref().unwrap().line - super::PAYMENT.lines().count() as u64 - 1,
                notice.kind,
            )
        })
        .collect();
    assert_eq!(
        found,
        [
            (6, NoticeKind::Ignored),
            (12, NoticeKind::UnknownField),
            (13, NoticeKind::Changed),
            (16, NoticeKind::HttpAttribute),
            (18, NoticeKind::Changed),
        ],
        "{:#?}",
        snapshot.diagnostics().notices
    );
}

#[test]
fn what_has_another_shape_is_rejected_with_its_place() {
    for (spec, wanted) in [
        ("{action: FORBID}", "expected ALLOW, DENY, AUDIT or CUSTOM"),
        ("{rules: [1]}", "spec.rules[0]: expected fields"),
        ("{rules: [{from: {}}]}", "spec.rules[0].from: expected a list"),
        (
            "{rules: [{from: [{source: {principals: x}}]}]}",
            "spec.rules[0].from[0].source.principals: expected a list",
        ),
        (
            "{rules: [{to: [{operation: {ports: [80]}}]}]}",
            "spec.rules[0].to[0].operation.ports[0] is 80: expected a text",
        ),
        (
            "{rules: [{when: [{key: 1}]}]}",
            "spec.rules[0].when[0].key: expected a text",
        ),
        ("{rules: {}}", "spec.rules"),
        (
            "{selector: {}, targetRefs: [{kind: Service, name: x}]}",
            "exclude each other",
        ),
    ] {
        let contents = crate::manifest::parse("-", policy("shop", "p", spec).as_bytes());
        let [rejection] = &contents.rejections[..] else {
            panic!("{spec}: {contents:?}")
        };
        assert!(
            rejection.message.contains(wanted),
            "{spec}: {}",
            rejection.message
        );
    }
}
