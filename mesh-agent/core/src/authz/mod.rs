//! Who may connect: AuthorizationPolicy with Istio's semantics, for what can be seen of a connection. Pure; the data path, `meshctl
//! explain` and the tests all call [`Applicable::judge`].
//!
//! Order (Istio's AuthorizationPolicy reference): a CUSTOM or DENY policy that matches refuses; where no ALLOW policy selects the workload
//! everything else gets in; else one of them must match. AUDIT never decides. Dry-run policies are judged beside the others.

mod explain;
mod matching;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use crate::model::{Action, AuthorizationPolicy, ObjectRef, SpiffeId, TrustDomain};

pub use explain::Miss;
use matching::Subject;

/// The names of the local trust domain.
#[derive(Clone, Copy, Debug)]
pub struct LocalDomain<'a> {
    /// Its own.
    pub name: &'a TrustDomain,
    /// Its aliases.
    pub aliases: &'a [TrustDomain],
}

/// What is known of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The source's address.
    pub source: IpAddr,
    /// The source's proven identity; `None` for plaintext.
    pub identity: Option<&'a SpiffeId>,
    /// The workload's address and port.
    pub destination: SocketAddr,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RuleRef {
    /// The policy.
    pub policy: ObjectRef,
    /// What it does.
    pub action: Action,
    /// The place of the rule in `spec.rules`, from 0.
    pub rule: usize,
}

/// What policies say, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// No policy stands in the way: none that denies matches, and none that allows selects the workload.
    AllowedByDefault,
    /// This rule lets it in.
    Allowed(RuleRef),
    /// This rule refuses it.
    Denied(RuleRef),
    /// Policies that allow select the workload, and none of their rules matches.
    NothingAllowed {
        /// The rule that came closest; `None` only where no policy has a rule.
        nearest: Option<Miss>,
        /// The policies that could have allowed it.
        policies: Vec<ObjectRef>,
    },
}

impl Verdict {
    /// Whether the connection may go on.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Verdict::AllowedByDefault | Verdict::Allowed(_))
    }

    /// Where it comes from; `None` where no policy has a say.
    pub fn ground(&self) -> Option<Ground<'_>> {
        let of = |rule: &'_ RuleRef| (rule.action, Some(rule.rule));
        match self {
            Verdict::AllowedByDefault => None,
            Verdict::Allowed(rule) | Verdict::Denied(rule) => {
                let (action, index) = of(rule);
                Some(Ground {
                    policy: &rule.policy,
                    action,
                    rule: index,
                    field: None,
                    why: None,
                })
            }
            Verdict::NothingAllowed {
                nearest: Some(miss), ..
            } => {
                let (action, index) = of(&miss.rule);
                Some(Ground {
                    policy: &miss.rule.policy,
                    action,
                    rule: index,
                    field: Some(&miss.field),
                    why: Some(&miss.why),
                })
            }
            Verdict::NothingAllowed { policies, .. } => policies.first().map(|policy| Ground {
                policy,
                action: Action::Allow,
                rule: None,
                field: None,
                why: None,
            }),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::AllowedByDefault => f.write_str("no policy stands in the way"),
            Verdict::Allowed(rule) => write!(f, "{rule} allows it"),
            Verdict::Denied(rule) => write!(f, "{rule} denies it"),
            Verdict::NothingAllowed { nearest, policies } => {
                let names: Vec<String> = policies.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "none of the ALLOW policies that select it matches ({})",
                    names.join(", ")
                )?;
                match nearest {
                    Some(miss) => write!(f, "; nearest: {miss}"),
                    None => f.write_str("; they have no rules, so they allow nobody"),
                }
            }
        }
    }
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rule {}", self.policy, self.rule)
    }
}

/// Everything that policies say of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// What holds.
    pub verdict: Verdict,
    /// What would hold if the dry-run policies were in force; `None` where there are none.
    pub dry_run: Option<Verdict>,
    /// The AUDIT rules that match.
    pub audited: Vec<RuleRef>,
    /// What each policy is counted under.
    pub tallies: Vec<Tally>,
}

/// One count of one policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Tally {
    /// The policy.
    pub policy: ObjectRef,
    /// What it does.
    pub action: Action,
    /// What it said.
    pub word: Word,
}

impl Tally {
    fn new(policy: ObjectRef, action: Action, word: Word) -> Self {
        Self { policy, action, word }
    }
}

/// What a policy said of a connection. The names are the `verdict` label of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It let it in.
    Allowed,
    /// It refused it; of an ALLOW policy: neither it nor another one let it in.
    Denied,
    /// It ended a connection that stood, by a change.
    Closed,
    /// Its rule matched, and it only counts.
    Audited,
    /// It is a dry run, and would have let it in.
    DryRunAllowed,
    /// It is a dry run, and would have refused it.
    DryRunDenied,
}

impl Word {
    /// The name in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Word::Allowed => "allowed",
            Word::Denied => "denied",
            Word::Closed => "closed",
            Word::Audited => "audited",
            Word::DryRunAllowed => "dry_run_allowed",
            Word::DryRunDenied => "dry_run_denied",
        }
    }
}

/// Where a verdict comes from: what a person looks at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ground<'a> {
    /// The policy that decides, or that came closest.
    pub policy: &'a ObjectRef,
    /// What it does.
    pub action: Action,
    /// The rule, where the policy has any.
    pub rule: Option<usize>,
    /// The first field that did not hold, of the rule that came closest.
    pub field: Option<&'a str>,
    /// What that field wants, and what the connection has.
    pub why: Option<&'a str>,
}

/// The policies that select one workload. What it costs to judge depends on these alone, not on how many others there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Applicable {
    /// CUSTOM, then DENY.
    refusing: Vec<Arc<AuthorizationPolicy>>,
    allowing: Vec<Arc<AuthorizationPolicy>>,
    auditing: Vec<Arc<AuthorizationPolicy>>,
    dry_run: bool,
}

impl Applicable {
    /// Of these, in the order in which they are to be judged.
    pub fn new(policies: impl IntoIterator<Item = Arc<AuthorizationPolicy>>) -> Self {
        let mut applicable = Self::default();
        let mut denying = Vec::new();
        for policy in policies {
            applicable.dry_run |= policy.dry_run;
            match policy.action {
                Action::Custom => applicable.refusing.push(policy),
                Action::Deny => denying.push(policy),
                Action::Allow => applicable.allowing.push(policy),
                Action::Audit => applicable.auditing.push(policy),
            }
        }
        applicable.refusing.append(&mut denying);
        applicable
    }

    /// All of them, in the order in which they are judged.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        self.refusing.iter().chain(&self.allowing).chain(&self.auditing)
    }

    /// Those that may refuse a connection: neither AUDIT nor dry-run.
    pub fn deciding(&self) -> impl Iterator<Item = &Arc<AuthorizationPolicy>> {
        let may = self.refusing.iter().chain(&self.allowing);
        may.filter(|policy| !policy.dry_run)
    }

    /// Whether none selects the workload.
    pub fn is_empty(&self) -> bool {
        self.refusing.is_empty() && self.allowing.is_empty() && self.auditing.is_empty()
    }

    /// What they say of a connection.
    pub fn judge(&self, local: LocalDomain<'_>, facts: &Facts<'_>) -> Judgement {
        let subject = Subject::new(local, facts);
        let audited = self.auditing.iter().filter(|policy| !policy.dry_run);
        let mut judgement = Judgement {
            verdict: self.verdict(&subject, false),
            dry_run: self.dry_run.then(|| self.verdict(&subject, true)),
            audited: audited
                .filter_map(|policy| matching_rule(policy, &subject))
                .collect(),
            tallies: Vec::new(),
        };
        judgement.tallies = tallies(&judgement);
        if self.dry_run {
            judgement.tallies.extend(self.dry_tallies(&subject, &judgement));
        }
        judgement
    }

    /// What each dry-run policy would have said, whatever the others say.
    fn dry_tallies(&self, subject: &Subject<'_>, judgement: &Judgement) -> Vec<Tally> {
        let nothing_allowed = matches!(judgement.dry_run, Some(Verdict::NothingAllowed { .. }));
        let dry = |policies: &'_ [Arc<AuthorizationPolicy>]| -> Vec<Arc<AuthorizationPolicy>> {
            policies.iter().filter(|policy| policy.dry_run).cloned().collect()
        };
        let refused = dry(&self.refusing)
            .into_iter()
            .filter(|policy| matching_rule(policy, subject).is_some())
            .map(|policy| Tally::new(policy.object(), policy.action, Word::DryRunDenied));
        let allowing = dry(&self.allowing).into_iter().filter_map(|policy| {
            let word = match matching_rule(&policy, subject) {
                Some(_) => Word::DryRunAllowed,
                None if nothing_allowed => Word::DryRunDenied,
                None => return None,
            };
            Some(Tally::new(policy.object(), policy.action, word))
        });
        refused.chain(allowing).collect()
    }

    /// `with_dry_run` counts dry-run policies as if they were in force.
    fn verdict(&self, subject: &Subject<'_>, with_dry_run: bool) -> Verdict {
        let counts = |policy: &&Arc<AuthorizationPolicy>| with_dry_run || !policy.dry_run;
        let mut refusing = self.refusing.iter().filter(counts);
        if let Some(rule) = refusing.find_map(|policy| matching_rule(policy, subject)) {
            return Verdict::Denied(rule);
        }
        let mut policies = Vec::new();
        for policy in self.allowing.iter().filter(counts) {
            match matching_rule(policy, subject) {
                Some(rule) => return Verdict::Allowed(rule),
                None => policies.push(policy),
            }
        }
        if policies.is_empty() {
            return Verdict::AllowedByDefault;
        }
        Verdict::NothingAllowed {
            nearest: explain::nearest(&policies, subject),
            policies: policies.iter().map(|policy| policy.object()).collect(),
        }
    }
}

/// What the policies in force are counted under.
fn tallies(judgement: &Judgement) -> Vec<Tally> {
    let one = |rule: &RuleRef, word| Tally::new(rule.policy.clone(), rule.action, word);
    let mut tallies = match &judgement.verdict {
        Verdict::AllowedByDefault => Vec::new(),
        Verdict::Allowed(rule) => vec![one(rule, Word::Allowed)],
        Verdict::Denied(rule) => vec![one(rule, Word::Denied)],
        Verdict::NothingAllowed { policies, .. } => policies
            .iter()
            .map(|policy| Tally::new(policy.clone(), Action::Allow, Word::Denied))
            .collect(),
    };
    tallies.extend(judgement.audited.iter().map(|rule| one(rule, Word::Audited)));
    tallies
}

/// The first rule of `policy` that matches.
fn matching_rule(policy: &AuthorizationPolicy, subject: &Subject<'_>) -> Option<RuleRef> {
    let rule = policy
        .rules
        .iter()
        .position(|rule| subject.matches(rule, policy.action))?;
    Some(RuleRef {
        policy: policy.object(),
        action: policy.action,
        rule,
    })
}
