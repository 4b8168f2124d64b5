//! AuthorizationPolicy: who may connect to what.
//!
//! A policy is kept in the shape in which it is judged: a rule is three lists of alternatives (`from`, `to`) or conditions (`when`), and
//! each of their members is a list of [`Test`]s that must all hold. What a test needs and this agent cannot see is kept as
//! [`Matcher::Unseen`], so that a rule which contains it can be judged on the safe side.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::ObjectRef;

/// What a policy does with a connection that one of its rules matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Lets it in; as soon as one such policy selects a workload, nothing else gets in.
    Allow,
    /// Refuses it, whatever else allows it.
    Deny,
    /// Only counts it.
    Audit,
    /// Asks a provider of the mesh's configuration. There is none here: what it matches is refused.
    Custom,
}

impl Action {
    /// As documents write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Allow => "ALLOW",
            Action::Deny => "DENY",
            Action::Audit => "AUDIT",
            Action::Custom => "CUSTOM",
        }
    }
}

/// A `security.istio.io` AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AuthorizationPolicy {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.selector.matchLabels`: only workloads with these labels; empty selects all.
    pub selector: BTreeMap<String, String>,
    /// `spec.targetRefs`: only workloads that these Services of its namespace select. `None` where it has none.
    pub services: Option<Vec<String>>,
    /// `spec.action`, ALLOW where absent.
    pub action: Action,
    /// Annotation `istio.io/dry-run`: it is judged and counted, and decides nothing.
    pub dry_run: bool,
    /// `spec.rules`: alternatives.
    pub rules: Vec<Rule>,
}

impl AuthorizationPolicy {
    /// What it is called.
    pub fn object(&self) -> ObjectRef {
        ObjectRef::new("AuthorizationPolicy", &self.namespace, &self.name)
    }
}

/// One rule: it matches when one of `from`, one of `to` and all of `when` do. An empty list matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Rule {
    /// Sources: alternatives.
    pub from: Vec<Clause>,
    /// Operations: alternatives.
    pub to: Vec<Clause>,
    /// Conditions: all must hold.
    pub when: Vec<Clause>,
}

/// Tests that must all hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Clause(pub Vec<Test>);

/// One field of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Test {
    /// The field as the document names it, such as `source.notPrincipals` or `when source.ip`.
    pub field: String,
    /// It holds when none of the values matches.
    pub negated: bool,
    /// The values.
    pub matcher: Matcher,
}

/// What a field is compared with: alternatives.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Matcher {
    /// The source's identity without its scheme, `TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    Principal(Vec<Pattern>),
    /// The namespace of the source's identity.
    Namespace(Vec<Pattern>),
    /// Namespace and service account of the source's identity.
    ServiceAccount(Vec<(String, String)>),
    /// The trust domain of the source's identity.
    TrustDomain(Vec<Pattern>),
    /// The source's address.
    SourceIp(Vec<IpNet>),
    /// The destination's address.
    DestinationIp(Vec<IpNet>),
    /// The workload's port.
    DestinationPort(Vec<u16>),
    /// Something that cannot be seen in a connection (an attribute of HTTP), or a value that could not be read. In a rule that allows it
    /// never holds; in any other it is left out, so that the rule matches more.
    Unseen,
}

/// A text, or a part of one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(into = "String")]
pub enum Pattern {
    /// `abc`
    Exact(String),
    /// `abc*`
    Prefix(String),
    /// `*abc`
    Suffix(String),
    /// `*`: there is a value, whichever.
    Present,
}

impl Pattern {
    /// Reads it. Every text is a pattern.
    pub fn new(text: &str) -> Self {
        if text == "*" {
            Self::Present
        } else if let Some(rest) = text.strip_prefix('*') {
            Self::Suffix(rest.to_owned())
        } else if let Some(rest) = text.strip_suffix('*') {
            Self::Prefix(rest.to_owned())
        } else {
            Self::Exact(text.to_owned())
        }
    }

    /// Whether `value` fits.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Self::Exact(text) => value == text,
            Self::Prefix(text) => value.starts_with(text.as_str()),
            Self::Suffix(text) => value.ends_with(text.as_str()),
            Self::Present => !value.is_empty(),
        }
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        match pattern {
            Pattern::Exact(text) => text,
            Pattern::Prefix(text) => format!("{text}*"),
            Pattern::Suffix(text) => format!("*{text}"),
            Pattern::Present => "*".to_owned(),
        }
    }
}

/// An address block: `10.0.0.0/8`, or a single address. Bits beyond the prefix do not count; v4-mapped addresses count as IPv4.
///
/// # Errors
/// When `text` is neither.
pub fn ip_block(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(IpNet::from(address.to_canonical()));
    }
    let block: IpNet = text
        .parse()
        .map_err(|_| format!("{text:?} is no address block: expected one such as 10.1.0.0/16 or 10.1.2.3"))?;
    Ok(unmapped(block).unwrap_or(block).trunc())
}

/// The IPv4 block that a v4-mapped one means.
fn unmapped(block: IpNet) -> Option<IpNet> {
    let IpNet::V6(block) = block else { return None };
    let address = block.addr().to_ipv4_mapped()?;
    IpNet::new(address.into(), block.prefix_len().checked_sub(96)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_exact_a_prefix_a_suffix_or_presence() {
        let table: &[(&str, &[&str], &[&str])] = &[
            ("abc", &["abc"], &["", "ab", "abcd", "ABC"]),
            ("abc*", &["abc", "abcd"], &["", "ab", "xabc"]),
            ("*abc", &["abc", "xabc"], &["", "abcd", "ab"]),
            ("*", &["a", "*"], &[""]),
            ("a*c", &["a*c"], &["abc", "ac"]),
            ("", &[""], &["a"]),
        ];
        for (text, good, bad) in table {
            let pattern = Pattern::new(text);
            assert_eq!(String::from(pattern.clone()), *text);
            good.iter()
                .for_each(|value| assert!(pattern.matches(value), "{text} {value}"));
            bad.iter()
                .for_each(|value| assert!(!pattern.matches(value), "{text} {value}"));
        }
    }

    #[test]
    fn a_block_is_a_network_or_an_address() {
        let inside = |block: &str, address: &str| {
            ip_block(block)
                .unwrap()
                .contains(&address.parse::<IpAddr>().unwrap())
        };
        assert!(inside("198.18.0.0/15", "198.19.255.255"));
        assert!(inside("198.18.7.9/15", "198.18.0.1"));
        assert!(inside("198.18.0.1", "198.18.0.1") && !inside("198.18.0.1", "198.18.0.2"));
        assert!(inside("2001:db8::/32", "2001:db8:1::9") && !inside("2001:db8::/32", "198.18.0.1"));
        assert!(inside("::ffff:198.18.0.1", "198.18.0.1"));
        assert!(
            inside("::ffff:198.18.0.0/112", "198.18.3.4") && !inside("::ffff:198.18.0.0/112", "198.19.0.1")
        );
        for bad in [
            "",
            "198.18.0.0/33",
            "198.18.0",
            "/8",
            "10.0.0.0/-1",
            "a/8",
            "::/129",
        ] {
            assert!(ip_block(bad).is_err(), "{bad}");
        }
    }
}
