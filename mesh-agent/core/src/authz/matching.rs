//! Whether a rule matches a connection.

use std::cell::OnceCell;

use super::{Facts, LocalDomain};
use crate::model::{Action, Clause, Matcher, Pattern, Rule, SpiffeId, Test};

/// The trust domain that documents write for the local one, whatever its name is.
const ANY_LOCAL: &str = "cluster.local";

/// A connection, with what is derived from its facts at the first need.
pub(super) struct Subject<'a> {
    pub(super) facts: &'a Facts<'a>,
    local: LocalDomain<'a>,
    /// The source's principal under every name of its trust domain.
    principals: OnceCell<Vec<String>>,
}

impl<'a> Subject<'a> {
    pub(super) fn new(local: LocalDomain<'a>, facts: &'a Facts<'a>) -> Self {
        Self {
            facts,
            local,
            principals: OnceCell::new(),
        }
    }

    /// Whether `rule` of a policy with `action` matches.
    pub(super) fn matches(&self, rule: &Rule, action: Action) -> bool {
        let holds = |clause: &Clause| clause.0.iter().all(|test| self.holds(test, action));
        let one_of = |clauses: &[Clause]| clauses.is_empty() || clauses.iter().any(holds);
        one_of(&rule.from) && one_of(&rule.to) && rule.when.iter().all(holds)
    }

    /// Whether `test` holds, in a rule of a policy with `action`.
    pub(super) fn holds(&self, test: &Test, action: Action) -> bool {
        let matched = match &test.matcher {
            // Nobody is let in by what was not looked at, and nobody escapes by it.
            Matcher::Unseen => return action != Action::Allow,
            Matcher::Principal(patterns) => self.principals().iter().any(|p| fits(patterns, p)),
            Matcher::Namespace(patterns) => self.identity(|id| fits(patterns, id.namespace())),
            Matcher::ServiceAccount(accounts) => self.identity(|id| {
                accounts
                    .iter()
                    .any(|(namespace, name)| namespace == id.namespace() && name == id.service_account())
            }),
            Matcher::TrustDomain(patterns) => self.identity(|id| {
                let mut names = self.trust_domains(id);
                names.any(|name| fits(patterns, name))
            }),
            Matcher::SourceIp(blocks) => {
                let source = self.facts.source.to_canonical();
                blocks.iter().any(|block| block.contains(&source))
            }
            Matcher::DestinationIp(blocks) => {
                let address = self.facts.destination.ip().to_canonical();
                blocks.iter().any(|block| block.contains(&address))
            }
            Matcher::DestinationPort(ports) => ports.contains(&self.facts.destination.port()),
        };
        matched != test.negated
    }

    fn identity(&self, holds: impl Fn(&SpiffeId) -> bool) -> bool {
        self.facts.identity.is_some_and(holds)
    }

    /// The names under which documents may speak of the identity's trust domain. A foreign one has its own only, and none at all if that
    /// is the one that stands for the local domain.
    fn trust_domains(&self, id: &'a SpiffeId) -> impl Iterator<Item = &'a str> + use<'a> {
        let LocalDomain { name, aliases } = self.local;
        let own = id.trust_domain();
        let local = own == name || aliases.contains(own);
        let names = aliases
            .iter()
            .map(|alias| alias.as_str())
            .chain([name.as_str(), ANY_LOCAL]);
        let foreign = (!local && own.as_str() != ANY_LOCAL).then(|| own.as_str());
        names.filter(move |_| local).chain(foreign)
    }

    fn principals(&self) -> &[String] {
        self.principals.get_or_init(|| {
            let Some(id) = self.facts.identity else {
                return Vec::new();
            };
            let (namespace, account) = (id.namespace(), id.service_account());
            self.trust_domains(id)
                .map(|domain| format!("{domain}/ns/{namespace}/sa/{account}"))
                .collect()
        })
    }
}

fn fits(patterns: &[Pattern], value: &str) -> bool {
    patterns.iter().any(|pattern| pattern.matches(value))
}
