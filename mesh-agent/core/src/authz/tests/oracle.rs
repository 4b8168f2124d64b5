//! A second reading of the documents, as slow and plain as can be: straight from JSON, without the model.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Connection, judge, settings, snapshot};

/// Whether `documents` let `connection` in.
fn allows(documents: &[Value], connection: &Connection) -> bool {
    let selecting: Vec<&Value> = documents.iter().filter(|d| selects(d)).collect();
    let of = |action: &'static str| {
        let selecting = selecting.clone();
        selecting
            .into_iter()
            .filter(move |d| d["spec"]["action"].as_str().unwrap_or("ALLOW") == action)
    };
    let matches = |document: &Value, strict: bool| {
        let rules = document["spec"]["rules"].as_array();
        rules.is_some_and(|rules| rules.iter().any(|rule| rule_matches(rule, connection, strict)))
    };
    if of("DENY").any(|document| matches(document, false)) {
        return false;
    }
    of("ALLOW").next().is_none() || of("ALLOW").any(|document| matches(document, true))
}

/// In force, and about `payment` in `shop`, whose labels are app=payment, version=v1.
fn selects(document: &Value) -> bool {
    if document["metadata"]["annotations"]["istio.io/dry-run"] == "true" {
        return false;
    }
    let namespace = document["metadata"]["namespace"].as_str().unwrap();
    let labels = json!({"app": "payment", "version": "v1"});
    let wanted = document["spec"]["selector"]["matchLabels"].as_object();
    (namespace == "shop" || namespace == "istio-system")
        && wanted.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels[key] == *value))
}

fn rule_matches(rule: &Value, connection: &Connection, strict: bool) -> bool {
    let group = |list: &str, inner: &str| match rule[list].as_array() {
        None => true,
        Some(members) => members.iter().any(|member| {
            let fields = member[inner].as_object().unwrap();
            let about = |names: &[&str]| {
                let plain = |field: &String| field.strip_prefix("not").unwrap_or(field).to_lowercase();
                fields.keys().any(|field| names.contains(&plain(field).as_str()))
            };
            // Istio: "serviceAccounts cannot be set with principals or namespaces".
            let nonsense = about(&["serviceaccounts"]) && about(&["principals", "namespaces"]);
            if nonsense && strict {
                return false;
            }
            fields.iter().all(|(field, values)| {
                if nonsense
                    && !["ipBlocks", "notIpBlocks"].contains(&field.as_str())
                    && !field.ends_with("omains")
                {
                    return true;
                }
                let (field, negated) = match field.strip_prefix("not") {
                    Some(rest) => (rest.to_lowercase(), true),
                    None => (field.to_lowercase(), false),
                };
                holds(&field, &strings(values), negated, connection, strict)
            })
        }),
    };
    let conditions = rule["when"].as_array().cloned().unwrap_or_default();
    group("from", "source")
        && group("to", "operation")
        && conditions.iter().all(|condition| {
            let key = condition["key"].as_str().unwrap();
            let field = match key {
                "source.ip" => "ipblocks",
                "source.namespace" => "namespaces",
                "source.principal" => "principals",
                "source.serviceAccount" => "serviceaccounts",
                "source.trustDomain" => "trustdomains",
                "destination.ip" => "destination",
                "destination.port" => "ports",
                _ => "http",
            };
            ["values", "notValues"]
                .into_iter()
                .all(|list| match condition[list].as_array() {
                    None => true,
                    Some(_) => holds(
                        field,
                        &strings(&condition[list]),
                        list == "notValues",
                        connection,
                        strict,
                    ),
                })
        })
}

fn strings(values: &Value) -> Vec<String> {
    values
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap().to_owned())
        .collect()
}

fn holds(field: &str, values: &[String], negated: bool, connection: &Connection, strict: bool) -> bool {
    let id = connection.identity.as_ref();
    let matched = match field {
        "principals" => id.is_some_and(|id| {
            let settings = settings();
            let mut domains = vec!["cluster.local".to_owned(), settings.trust_domain.to_string()];
            domains.extend(settings.trust_domain_aliases.iter().map(ToString::to_string));
            domains.iter().any(|domain| {
                let principal = format!("{domain}/ns/{}/sa/{}", id.namespace(), id.service_account());
                values.iter().any(|value| like(value, &principal))
            })
        }),
        "namespaces" => id.is_some_and(|id| values.iter().any(|value| like(value, id.namespace()))),
        "serviceaccounts" => id.is_some_and(|id| {
            values.iter().any(|value| {
                // Of a policy in the root namespace the short form means an account there.
                *value == format!("{}/{}", id.namespace(), id.service_account())
            })
        }),
        "trustdomains" => id.is_some_and(|_| {
            let names = ["cluster.local", "mesh.example", "old.example"];
            names
                .iter()
                .any(|name| values.iter().any(|value| like(value, name)))
        }),
        "ipblocks" => values.iter().any(|value| within(value, connection.source)),
        "destination" => values
            .iter()
            .any(|value| within(value, connection.destination.ip())),
        "ports" => values.contains(&connection.destination.port().to_string()),
        _ => return !strict,
    };
    matched != negated
}

fn like(pattern: &str, value: &str) -> bool {
    match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        _ if pattern == "*" => !value.is_empty(),
        (Some(end), _) => value.ends_with(end),
        (None, Some(start)) => value.starts_with(start),
        (None, None) => value == pattern,
    }
}

/// Bit by bit.
fn within(block: &str, address: std::net::IpAddr) -> bool {
    let bits = |address: std::net::IpAddr| -> Vec<bool> {
        let bytes = match address {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => match v6.octets() {
                [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, four @ ..] => four.to_vec(),
                all => all.to_vec(),
            },
        };
        bytes
            .iter()
            .flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1))
            .collect()
    };
    let (network, length) = match block.split_once('/') {
        Some((network, length)) => (network, Some(length.parse::<usize>().unwrap())),
        None => (block, None),
    };
    let (network, address) = (bits(network.parse().unwrap()), bits(address));
    let length = length.unwrap_or(network.len());
    network.len() == address.len() && network[..length] == address[..length]
}

fn some(values: &'static [&'static str]) -> impl Strategy<Value = Vec<&'static str>> {
    proptest::sample::subsequence(values, 1..=values.len().min(2))
}

const PRINCIPALS: &[&str] = &[
    "*",
    "cluster.local/ns/a/sa/x",
    "old.example/ns/a/sa/x",
    "mesh.example/ns/b*",
    "*/sa/y",
    "z/ns/a/sa/x",
];
const NAMESPACES: &[&str] = &["a", "b", "*", "a*"];
const ACCOUNTS: &[&str] = &["a/x", "a/y", "b/x"];
const BLOCKS: &[&str] = &[
    "198.18.0.0/24",
    "198.18.0.1",
    "0.0.0.0/0",
    "198.18.0.0/31",
    "2001:db8::/64",
    "::/0",
    "::ffff:198.18.0.9",
];
const DOMAINS: &[&str] = &["cluster.local", "old.example", "mesh*", "*.example", "*", "other"];
const PORTS: &[&str] = &["80", "8080"];

/// A field with its values, perhaps negated.
fn field(of: &'static [(&'static str, &'static [&'static str])]) -> impl Strategy<Value = (String, Value)> {
    (proptest::sample::select(of), any::<bool>()).prop_flat_map(|((name, values), negated)| {
        some(values).prop_map(move |values| {
            let capital = format!("not{}{}", name[..1].to_uppercase(), &name[1..]);
            (if negated { capital } else { name.to_owned() }, json!(values))
        })
    })
}

fn member(
    inner: &'static str,
    of: &'static [(&'static str, &'static [&'static str])],
) -> impl Strategy<Value = Value> {
    proptest::collection::vec(field(of), 1..3).prop_map(move |fields| {
        let fields: serde_json::Map<String, Value> = fields.into_iter().collect();
        json!({ inner: fields })
    })
}

const SOURCE: &[(&str, &[&str])] = &[
    ("principals", PRINCIPALS),
    ("namespaces", NAMESPACES),
    ("serviceAccounts", ACCOUNTS),
    ("ipBlocks", BLOCKS),
    ("trustDomains", DOMAINS),
    ("requestPrincipals", &["*"]),
];
const OPERATION: &[(&str, &[&str])] = &[("ports", PORTS), ("methods", &["GET"])];
const KEYS: &[(&str, &[&str])] = &[
    ("source.ip", BLOCKS),
    ("source.namespace", NAMESPACES),
    ("source.principal", PRINCIPALS),
    ("source.serviceAccount", ACCOUNTS),
    ("source.trustDomain", DOMAINS),
    ("destination.ip", BLOCKS),
    ("destination.port", PORTS),
    ("request.headers[x]", &["y"]),
];

fn condition() -> impl Strategy<Value = Value> {
    proptest::sample::select(KEYS).prop_flat_map(|(key, values)| {
        let list = || proptest::option::of(some(values));
        (list(), list(), some(values)).prop_map(move |(wanted, unwanted, else_wanted)| {
            let mut condition = json!({ "key": key });
            if wanted.is_none() && unwanted.is_none() {
                condition["values"] = json!(else_wanted);
            }
            wanted
                .into_iter()
                .for_each(|values| condition["values"] = json!(values));
            unwanted
                .into_iter()
                .for_each(|values| condition["notValues"] = json!(values));
            condition
        })
    })
}

fn rule() -> impl Strategy<Value = Value> {
    let from = proptest::option::of(proptest::collection::vec(member("source", SOURCE), 1..3));
    let to = proptest::option::of(proptest::collection::vec(member("operation", OPERATION), 1..3));
    let when = proptest::option::of(proptest::collection::vec(condition(), 1..3));
    (from, to, when).prop_map(|(from, to, when)| {
        let mut rule = json!({});
        from.into_iter().for_each(|from| rule["from"] = json!(from));
        to.into_iter().for_each(|to| rule["to"] = json!(to));
        when.into_iter().for_each(|when| rule["when"] = json!(when));
        rule
    })
}

fn document() -> impl Strategy<Value = Value> {
    let namespace = proptest::sample::select(&["shop", "shop", "istio-system", "office"][..]);
    let action = proptest::option::of(proptest::sample::select(&["ALLOW", "DENY", "AUDIT"][..]));
    let selector = proptest::option::of(proptest::sample::select(
        &[("app", "payment"), ("version", "v1"), ("app", "other")][..],
    ));
    let rules = proptest::collection::vec(rule(), 0..3);
    (namespace, action, selector, rules, proptest::bool::weighted(0.1)).prop_map(
        |(namespace, action, selector, rules, dry)| {
            let mut spec = json!({ "rules": rules });
            action.into_iter().for_each(|action| spec["action"] = json!(action));
            if let Some((key, value)) = selector {
                spec["selector"] = json!({ "matchLabels": { key: value } });
            }
            json!({
                "apiVersion": "security.istio.io/v1",
                "kind": "AuthorizationPolicy",
                "metadata": { "namespace": namespace, "annotations": { "istio.io/dry-run": dry.to_string() } },
                "spec": spec,
            })
        },
    )
}

fn connection() -> impl Strategy<Value = Connection> {
    let identity = (
        proptest::sample::select(&["mesh.example", "old.example"][..]),
        proptest::sample::select(&["a", "b"][..]),
        proptest::sample::select(&["x", "y"][..]),
    );
    let source = proptest::sample::select(
        &[
            "198.18.0.1",
            "198.18.0.9",
            "203.0.113.9",
            "2001:db8::7",
            "::ffff:198.18.0.1",
        ][..],
    );
    let port = proptest::sample::select(&["80", "8080"][..]);
    (proptest::option::weighted(0.8, identity), source, port).prop_map(|(identity, source, port)| {
        let identity = identity.map(|(domain, ns, sa)| format!("{domain}/ns/{ns}/sa/{sa}"));
        Connection::new(
            &identity.unwrap_or_default(),
            source,
            &format!("198.18.0.2:{port}"),
        )
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn policies_judge_as_the_plain_reading_of_their_documents(
        mut documents in proptest::collection::vec(document(), 0..4),
        connection in connection(),
    ) {
        for (index, document) in documents.iter_mut().enumerate() {
            document["metadata"]["name"] = json!(format!("p-{index}"));
        }
        let yaml: Vec<String> = documents.iter().map(ToString::to_string).collect();
        let judged = judge(&snapshot(&yaml.join("\n---\n")), &connection);
        let expected = allows(&documents, &connection);
        prop_assert_eq!(judged.verdict.is_allowed(), expected, "{:?}\n{}", judged, yaml.join("\n"));
    }
}
