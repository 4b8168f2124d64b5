//! security.istio.io AuthorizationPolicy, v1 and v1beta1 (they have the same fields).
//!
//! What a rule says and this agent cannot use (an unknown field, a bad address block, an HTTP attribute) does not make the policy vanish:
//! it becomes [`Matcher::Unseen`], which allows nobody and lets nobody escape, and is reported.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::check;
use super::report::{Invalid, NoticeKind, Path, Remarks};
use crate::model::{Action, AuthorizationPolicy, Clause, Matcher, Pattern, Rule, Test, ip_block};

/// The annotation that keeps a policy from deciding.
const DRY_RUN: &str = "istio.io/dry-run";

/// The document as written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// Checked when the kind is found.
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    metadata: ObjectMeta,
    spec: Option<Spec>,
    /// Written by Istio's control plane; means nothing here.
    #[serde(rename = "status")]
    _status: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    selector: Option<Selector>,
    target_ref: Option<TargetRef>,
    target_refs: Option<Vec<TargetRef>>,
    action: Option<String>,
    provider: Option<Provider>,
    /// Read by hand: a field that serde would pass over must not widen a rule.
    rules: Option<Vec<Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Selector {
    match_labels: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
struct TargetRef {
    group: Option<String>,
    kind: String,
    name: String,
}

#[derive(Debug, Deserialize)]
struct Provider {
    name: Option<String>,
}

/// An AuthorizationPolicy from the document.
///
/// # Errors
/// When the action is unknown, selector and targetRefs stand together, or rules have another shape than Istio's.
pub fn authorization_policy(
    document: &Document,
    remarks: &mut Remarks,
) -> Result<AuthorizationPolicy, Invalid> {
    let empty = Spec::default();
    let spec = document.spec.as_ref().unwrap_or(&empty);
    let meta = &document.metadata;
    let namespace = check::namespace(meta)?;
    let action = action(spec, remarks)?;
    let mut reader = Reader {
        namespace: &namespace,
        action,
        remarks,
    };
    let mut rules = Vec::new();
    for (index, rule) in spec.rules.iter().flatten().enumerate() {
        rules.push(reader.rule(rule, Path::of("spec.rules").index(index))?);
    }
    Ok(AuthorizationPolicy {
        services: services(spec, remarks)?,
        selector: spec
            .selector
            .as_ref()
            .and_then(|s| s.match_labels.clone())
            .unwrap_or_default(),
        dry_run: dry_run(meta, remarks),
        name: check::name(meta)?,
        namespace,
        action,
        rules,
    })
}

fn action(spec: &Spec, remarks: &mut Remarks) -> Result<Action, Invalid> {
    let action = match spec.action.as_deref() {
        None | Some("ALLOW") => Action::Allow,
        Some("DENY") => Action::Deny,
        Some("AUDIT") => Action::Audit,
        Some("CUSTOM") => {
            let provider = spec
                .provider
                .as_ref()
                .and_then(|provider| provider.name.as_deref());
            let message = format!(
                "action CUSTOM asks the provider {:?}, which this agent cannot ask: what the rules match is refused",
                provider.unwrap_or_default()
            );
            remarks.add(Path::of("spec.action"), NoticeKind::Changed, message);
            Action::Custom
        }
        Some(other) => {
            let message = format!("spec.action is {other:?}: expected ALLOW, DENY, AUDIT or CUSTOM");
            return Err(Invalid::at(Path::of("spec.action"), message));
        }
    };
    Ok(action)
}

/// The Services that it targets; `None` where it targets none.
fn services(spec: &Spec, remarks: &mut Remarks) -> Result<Option<Vec<String>>, Invalid> {
    let targets: Vec<&TargetRef> = spec
        .target_refs
        .iter()
        .flatten()
        .chain(&spec.target_ref)
        .collect();
    if targets.is_empty() {
        return Ok(None);
    }
    if spec.selector.is_some() {
        let message = "spec.selector and spec.targetRefs exclude each other: expected one of them";
        return Err(Invalid::at(Path::of("spec.selector"), message));
    }
    let mut services = Vec::new();
    for target in targets {
        match (target.group.as_deref().unwrap_or_default(), target.kind.as_str()) {
            ("" | "core", "Service") => services.push(target.name.clone()),
            _ => remarks.add(
                Path::of("spec.targetRefs"),
                NoticeKind::Ignored,
                format!(
                    "the target {} {} is none that this agent serves: ignored; expected a Service",
                    target.kind, target.name
                ),
            ),
        }
    }
    Ok(Some(services))
}

fn dry_run(meta: &ObjectMeta, remarks: &mut Remarks) -> bool {
    let Some(value) = meta.annotations.as_ref().and_then(|all| all.get(DRY_RUN)) else {
        return false;
    };
    match value.as_str() {
        "true" => true,
        "false" => false,
        other => {
            let message = format!(
                "annotation {DRY_RUN} is {other:?}: expected \"true\" or \"false\"; the policy is in force"
            );
            let path = Path::of("metadata.annotations").key(DRY_RUN);
            remarks.add(path, NoticeKind::Ignored, message);
            false
        }
    }
}

/// Reads the rules of one policy.
struct Reader<'a> {
    namespace: &'a str,
    action: Action,
    remarks: &'a mut Remarks,
}

impl Reader<'_> {
    fn rule(&mut self, value: &Value, path: Path) -> Result<Rule, Invalid> {
        let mut rule = Rule::default();
        for (key, value) in object(value, &path)?.iter().filter(|(_, value)| !value.is_null()) {
            let path = path.clone().key(key);
            match key.as_str() {
                "from" => rule.from = self.alternatives(value, &path, "source", Self::source)?,
                "to" => rule.to = self.alternatives(value, &path, "operation", Self::operation)?,
                "when" => {
                    for (index, condition) in list(value, &path)?.iter().enumerate() {
                        rule.when
                            .push(self.condition(condition, path.clone().index(index))?);
                    }
                }
                _ => rule.when.push(Clause(vec![self.unknown(key, key, path)])),
            }
        }
        Ok(rule)
    }

    /// The members of `from` or `to`: objects with the one field `inner`.
    fn alternatives(
        &mut self,
        value: &Value,
        path: &Path,
        inner: &str,
        read: impl Fn(&mut Self, &str, &Value, Path) -> Result<Vec<Test>, Invalid>,
    ) -> Result<Vec<Clause>, Invalid> {
        let mut clauses = Vec::new();
        for (index, member) in list(value, path)?.iter().enumerate() {
            let path = path.clone().index(index);
            let mut tests = Vec::new();
            for (key, fields) in object(member, &path)? {
                let path = path.clone().key(key);
                if key != inner {
                    tests.push(self.unknown(key, key, path));
                    continue;
                }
                for (field, value) in object(fields, &path)? {
                    tests.extend(read(self, field, value, path.clone().key(field))?);
                }
            }
            if inner == "source" {
                self.exclusive(&mut tests, &path);
            }
            if tests.is_empty() {
                let why = format!("{inner} has no field: expected at least one");
                tests.push(self.unseen(inner, path, NoticeKind::Changed, &why));
            }
            clauses.push(Clause(tests));
        }
        if clauses.is_empty() {
            // Present and empty; absent is what matches everything.
            let field = if inner == "source" { "from" } else { "to" };
            let why = format!("{field} has no member: expected at least one");
            clauses.push(Clause(vec![self.unseen(
                field,
                path.clone(),
                NoticeKind::Changed,
                &why,
            )]));
        }
        Ok(clauses)
    }

    fn source(&mut self, field: &str, value: &Value, path: Path) -> Result<Vec<Test>, Invalid> {
        let name = format!("source.{field}");
        let texts = texts(value, &path)?;
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let (base, negated) = negation(field);
        let matcher = match base.as_str() {
            "principals" => self.principals(&texts, &path),
            "namespaces" => Ok(Matcher::Namespace(patterns(&texts))),
            "trustDomains" => Ok(Matcher::TrustDomain(patterns(&texts))),
            "serviceAccounts" => self.service_accounts(&texts),
            "ipBlocks" | "remoteIpBlocks" => blocks(&texts).map(Matcher::SourceIp),
            "requestPrincipals" => return Ok(vec![self.http(&name, path)]),
            _ => return Ok(vec![self.unknown(field, &name, path)]),
        };
        Ok(vec![self.test(name, negated, matcher, path)])
    }

    /// Istio: serviceAccounts exclude principals and namespaces. What stands together all the same means nothing.
    fn exclusive(&mut self, tests: &mut Vec<Test>, path: &Path) {
        let is = |test: &Test, names: &[&str]| {
            let field = test.field.strip_prefix("source.").unwrap_or_default();
            names.contains(&negation(field).0.as_str())
        };
        let accounts = |test: &Test| is(test, &["serviceAccounts"]);
        let others = |test: &Test| is(test, &["principals", "namespaces"]);
        if tests.iter().any(accounts) && tests.iter().any(others) {
            tests.retain(|test| !accounts(test) && !others(test));
            let why = "source.serviceAccounts and source.principals or source.namespaces exclude each other";
            let test = self.unseen("source.serviceAccounts", path.clone(), NoticeKind::Changed, why);
            tests.push(test);
        }
    }

    fn operation(&mut self, field: &str, value: &Value, path: Path) -> Result<Vec<Test>, Invalid> {
        let name = format!("operation.{field}");
        let texts = texts(value, &path)?;
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        let (base, negated) = negation(field);
        let matcher = match base.as_str() {
            "ports" => ports(&texts),
            "hosts" | "methods" | "paths" => return Ok(vec![self.http(&name, path)]),
            _ => return Ok(vec![self.unknown(field, &name, path)]),
        };
        Ok(vec![self.test(name, negated, matcher, path)])
    }

    fn condition(&mut self, value: &Value, path: Path) -> Result<Clause, Invalid> {
        let (mut key, mut wanted, mut unwanted) = ("", Vec::new(), Vec::new());
        let mut tests = Vec::new();
        for (field, value) in object(value, &path)? {
            let path = path.clone().key(field);
            match (field.as_str(), value) {
                ("key", Value::String(text)) => key = text,
                ("key", _) => return Err(Invalid::at(path.clone(), format!("{path}: expected a text"))),
                ("values", value) => wanted = texts(value, &path)?,
                ("notValues", value) => unwanted = texts(value, &path)?,
                _ => tests.push(self.unknown(field, field, path)),
            }
        }
        let name = format!("when {key}");
        if wanted.is_empty() && unwanted.is_empty() {
            let why =
                format!("the condition on {key:?} has neither values nor notValues: expected one of them");
            tests.push(self.unseen(&name, path.clone(), NoticeKind::Changed, &why));
        }
        for (texts, negated) in [(wanted, false), (unwanted, true)] {
            if texts.is_empty() {
                continue;
            }
            let matcher = match key {
                "source.ip" | "remote.ip" => blocks(&texts).map(Matcher::SourceIp),
                "source.namespace" => Ok(Matcher::Namespace(patterns(&texts))),
                "source.principal" => self.principals(&texts, &path),
                "source.trustDomain" => Ok(Matcher::TrustDomain(patterns(&texts))),
                "source.serviceAccount" => self.service_accounts(&texts),
                "destination.ip" => blocks(&texts).map(Matcher::DestinationIp),
                "destination.port" => ports(&texts),
                _ if is_http_attribute(key) => {
                    tests.push(self.http(&name, path.clone()));
                    continue;
                }
                _ => Err(format!("attribute {key:?} is none that this agent knows")),
            };
            tests.push(self.test(name.clone(), negated, matcher, path.clone()));
        }
        Ok(Clause(tests))
    }

    fn test(&mut self, field: String, negated: bool, matcher: Result<Matcher, String>, path: Path) -> Test {
        match matcher {
            Ok(matcher) => Test {
                field,
                negated,
                matcher,
            },
            Err(why) => self.unseen(&field, path, NoticeKind::Changed, &why),
        }
    }

    /// An attribute of HTTP.
    fn http(&mut self, field: &str, path: Path) -> Test {
        let why = format!("{field} is an attribute of HTTP, which is not looked at yet");
        self.unseen(field, path, NoticeKind::HttpAttribute, &why)
    }

    fn unknown(&mut self, key: &str, field: &str, path: Path) -> Test {
        self.unseen(
            field,
            path,
            NoticeKind::UnknownField,
            &format!("unknown field {key}"),
        )
    }

    /// A test that cannot be made, and what that does to its rule.
    fn unseen(&mut self, field: &str, path: Path, kind: NoticeKind, why: &str) -> Test {
        let effect = match self.action {
            Action::Allow => "the rule allows nobody",
            Action::Deny | Action::Custom => "it is left out, so the rule denies more",
            Action::Audit => "it is left out, so the rule counts more",
        };
        self.remarks.add(path, kind, format!("{why}: {effect}"));
        Test {
            field: field.to_owned(),
            negated: false,
            matcher: Matcher::Unseen,
        }
    }

    fn principals(&mut self, texts: &[&str], path: &Path) -> Result<Matcher, String> {
        let read = |text: &&str| match text.strip_prefix("spiffe://") {
            Some(rest) => {
                let message = format!("{text:?} is read as {rest:?}: principals stand without their scheme");
                self.remarks.add(path.clone(), NoticeKind::Changed, message);
                Pattern::new(rest)
            }
            None => Pattern::new(text),
        };
        Ok(Matcher::Principal(texts.iter().map(read).collect()))
    }

    /// `namespace/account`, or an account of the policy's own namespace; no wildcards.
    fn service_accounts(&self, texts: &[&str]) -> Result<Matcher, String> {
        let read = |text: &&str| {
            let (namespace, account) = text.split_once('/').unwrap_or((self.namespace, text));
            let good = |name: &str| check::kubernetes_name(name, "service account").is_ok();
            if good(namespace) && good(account) {
                return Ok((namespace.to_owned(), account.to_owned()));
            }
            Err(format!(
                "{text:?} is no service account: expected NAMESPACE/NAME or NAME, without wildcards"
            ))
        };
        let accounts: Result<_, _> = texts.iter().map(read).collect();
        accounts.map(Matcher::ServiceAccount)
    }
}

/// `notIpBlocks` → (`ipBlocks`, true).
fn negation(field: &str) -> (String, bool) {
    let rest = field
        .strip_prefix("not")
        .filter(|rest| rest.starts_with(char::is_uppercase));
    match rest.map(|rest| (rest.chars().next(), rest)) {
        Some((Some(first), rest)) => {
            let tail = rest.get(first.len_utf8()..).unwrap_or_default();
            (format!("{}{tail}", first.to_ascii_lowercase()), true)
        }
        _ => (field.to_owned(), false),
    }
}

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::new(text)).collect()
}

fn blocks(texts: &[&str]) -> Result<Vec<ipnet::IpNet>, String> {
    texts.iter().map(|text| ip_block(text)).collect()
}

fn ports(texts: &[&str]) -> Result<Matcher, String> {
    let read = |text: &&str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err(format!("{text:?} is no port: expected 1 to 65535")),
    };
    let ports: Result<_, _> = texts.iter().map(read).collect();
    ports.map(Matcher::DestinationPort)
}

fn is_http_attribute(key: &str) -> bool {
    key.starts_with("request.") || key == "connection.sni" || key.starts_with("experimental.")
}

fn object<'v>(value: &'v Value, path: &Path) -> Result<&'v Map<String, Value>, Invalid> {
    static NONE: std::sync::OnceLock<Map<String, Value>> = std::sync::OnceLock::new();
    match value {
        Value::Object(fields) => Ok(fields),
        Value::Null => Ok(NONE.get_or_init(Map::new)),
        _ => Err(Invalid::at(path.clone(), format!("{path}: expected fields"))),
    }
}

fn list<'v>(value: &'v Value, path: &Path) -> Result<&'v [Value], Invalid> {
    match value {
        Value::Array(members) => Ok(members),
        Value::Null => Ok(&[]),
        _ => Err(Invalid::at(path.clone(), format!("{path}: expected a list"))),
    }
}

fn texts<'v>(value: &'v Value, path: &Path) -> Result<Vec<&'v str>, Invalid> {
    let read = |(index, value): (usize, &'v Value)| match value {
        Value::String(text) => Ok(text.as_str()),
        other => {
            let path = path.clone().index(index);
            Err(Invalid::at(
                path.clone(),
                format!("{path} is {other}: expected a text (numbers in quotes)"),
            ))
        }
    };
    list(value, path)?.iter().enumerate().map(read).collect()
}
