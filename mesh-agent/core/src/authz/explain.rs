//! Why nothing allowed a connection: the rule that came closest, and its first field that did not hold.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::matching::Subject;
use super::{Action, RuleRef};
use crate::model::{AuthorizationPolicy, Clause, Matcher, Rule, Test};

/// A rule that nearly matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Miss {
    /// The rule.
    #[serde(flatten)]
    pub rule: RuleRef,
    /// The field that did not hold, as the document names it.
    pub field: String,
    /// What the field wants, and what the connection has.
    pub why: String,
    /// How many fields held before it.
    pub held: usize,
}

impl fmt::Display for Miss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, field, why, .. } = self;
        write!(f, "{rule}: {field} {why}")
    }
}

/// Of all rules of `policies`, none of which matches, the one of which the most fields held; of several, the first.
pub(super) fn nearest(policies: &[&Arc<AuthorizationPolicy>], subject: &Subject<'_>) -> Option<Miss> {
    let mut nearest: Option<Miss> = None;
    for policy in policies {
        for (index, rule) in policy.rules.iter().enumerate() {
            let Err((held, test)) = walk(rule, subject, policy.action) else {
                continue;
            };
            if nearest.as_ref().is_none_or(|best| held > best.held) {
                nearest = Some(Miss {
                    rule: RuleRef {
                        policy: policy.object(),
                        action: policy.action,
                        rule: index,
                    },
                    field: test.field.clone(),
                    why: why(test, subject),
                    held,
                });
            }
        }
    }
    nearest
}

/// How many tests hold, or how many held before the first that does not.
fn walk<'r>(rule: &'r Rule, subject: &Subject<'_>, action: Action) -> Result<usize, (usize, &'r Test)> {
    let mut held = alternatives(&rule.from, subject, action)?;
    held += alternatives(&rule.to, subject, action).map_err(|(more, test)| (held + more, test))?;
    for clause in &rule.when {
        held += all(clause, subject, action).map_err(|(more, test)| (held + more, test))?;
    }
    Ok(held)
}

/// The first alternative that holds, or the one that came closest.
fn alternatives<'r>(
    clauses: &'r [Clause],
    subject: &Subject<'_>,
    action: Action,
) -> Result<usize, (usize, &'r Test)> {
    let mut closest: Option<(usize, &Test)> = None;
    for clause in clauses {
        match all(clause, subject, action) {
            Ok(held) => return Ok(held),
            Err(miss) if closest.is_none_or(|(held, _)| miss.0 > held) => closest = Some(miss),
            Err(_) => {}
        }
    }
    closest.map_or(Ok(0), Err)
}

fn all<'r>(clause: &'r Clause, subject: &Subject<'_>, action: Action) -> Result<usize, (usize, &'r Test)> {
    for (held, test) in clause.0.iter().enumerate() {
        if !subject.holds(test, action) {
            return Err((held, test));
        }
    }
    Ok(clause.0.len())
}

/// What `test` wants, and what the connection has.
fn why(test: &Test, subject: &Subject<'_>) -> String {
    let facts = subject.facts;
    let identity = || {
        facts.identity.map_or_else(
            || "no identity (it came in plaintext)".to_owned(),
            ToString::to_string,
        )
    };
    let has = match &test.matcher {
        Matcher::Unseen => return "cannot be seen in a TCP connection, so this rule allows none".to_owned(),
        Matcher::Principal(_)
        | Matcher::Namespace(_)
        | Matcher::ServiceAccount(_)
        | Matcher::TrustDomain(_) => identity(),
        Matcher::SourceIp(_) => facts.source.to_canonical().to_string(),
        Matcher::DestinationIp(_) => facts.destination.ip().to_canonical().to_string(),
        Matcher::DestinationPort(_) => facts.destination.port().to_string(),
    };
    let wants = if test.negated { "wants none of" } else { "wants" };
    format!("{wants} {}, the connection has {has}", values(&test.matcher))
}

/// The values in a few words.
fn values(matcher: &Matcher) -> String {
    const SHOWN: usize = 4;
    fn some<T>(values: &[T], text: impl Fn(&T) -> String) -> String {
        let mut shown: Vec<String> = values.iter().take(SHOWN).map(text).collect();
        if let Some(more) = values.len().checked_sub(SHOWN).filter(|more| *more > 0) {
            shown.push(format!("… ({more} more)"));
        }
        shown.join(", ")
    }
    match matcher {
        Matcher::Principal(patterns) | Matcher::Namespace(patterns) | Matcher::TrustDomain(patterns) => {
            some(patterns, |pattern| String::from(pattern.clone()))
        }
        Matcher::ServiceAccount(accounts) => {
            some(accounts, |(namespace, name)| format!("{namespace}/{name}"))
        }
        Matcher::SourceIp(blocks) | Matcher::DestinationIp(blocks) => some(blocks, ToString::to_string),
        Matcher::DestinationPort(ports) => some(ports, ToString::to_string),
        Matcher::Unseen => String::new(),
    }
}
