//! AuthorizationPolicies that do nothing, or something else than they seem to.

use std::collections::{BTreeMap, HashMap};

use super::world::{Member, Mesh, World, all_out};
use super::{Code, Found, Named, counted};
use crate::manifest::Path;
use crate::model::{Action, AuthorizationPolicy, Clause, Matcher, MtlsMode, ObjectRef, Pattern, Test};

/// The trust domain that documents write for the local one, whatever its name is.
const ANY_LOCAL: &str = "cluster.local";

pub(super) fn look(world: &World<'_>, say: &mut dyn FnMut(Found<'_>)) {
    let selected = selections(world);
    for (named, policy) in &world.authorizations {
        let members = selected.get(&named.name).map_or(&[][..], Vec::as_slice);
        let mut of = Of {
            world,
            named,
            policy,
            say: &mut *say,
        };
        of.selection(members);
        of.rules_at_all(members);
        for (index, rule) in policy.rules.iter().enumerate() {
            let path = Path::of("spec.rules").index(index);
            for (i, clause) in rule.from.iter().enumerate() {
                of.sources(clause, &path.clone().key("from").index(i).key("source"));
                of.plaintext(clause, members, path.clone().key("from").index(i));
            }
            for clause in &rule.when {
                of.sources(clause, &path.clone().key("when"));
            }
        }
    }
}

/// Whom each policy selects.
fn selections<'s, 'a>(world: &'s World<'a>) -> HashMap<ObjectRef, Vec<&'s Member<'a>>> {
    let mut selected: HashMap<ObjectRef, Vec<&Member<'_>>> = HashMap::new();
    for member in &world.members {
        let applicable = world.snapshot.authorization(&member.workload.uid);
        for policy in applicable.into_iter().flat_map(|all| all.policies()) {
            selected.entry(policy.object()).or_default().push(member);
        }
    }
    selected
}

struct Of<'s, 'a> {
    world: &'s World<'a>,
    named: &'s Named<'a>,
    policy: &'s AuthorizationPolicy,
    say: &'s mut dyn FnMut(Found<'_>),
}

impl Of<'_, '_> {
    fn say(&mut self, code: Code, path: Path, message: String, advice: &str) {
        (self.say)(Found {
            code,
            object: self.named,
            path,
            message,
            advice: advice.to_owned(),
        });
    }

    fn selection(&mut self, members: &[&Member<'_>]) {
        let namespace = &self.policy.namespace;
        let path = match self.policy.services {
            Some(_) => Path::of("spec.targetRefs"),
            None if self.policy.selector.is_empty() => Path::of("spec"),
            None => Path::of("spec.selector.matchLabels"),
        };
        // That a namespace is empty is no fault of a policy for all of it.
        let narrowed = !self.policy.selector.is_empty() || self.policy.services.is_some();
        if members.is_empty() && (narrowed || !self.world.knows_namespace(namespace)) && self.can_miss() {
            let message = format!("it selects no workload{}", self.among());
            let advice = "does the selector fit the labels of the pods (not of the Deployment), and the namespace theirs?";
            self.say(Code::PolicySelectsNothing, path, message, advice);
        } else if all_out(members) {
            let message = format!(
                "the {} that it selects {} not enrolled in the mesh: nobody enforces it there",
                counted(members.len(), "workload", "workloads"),
                if members.len() == 1 { "is" } else { "are" },
            );
            let advice = format!(
                "enrol them: label the namespace {namespace} or the pods mesh-agent.io/dataplane=enabled"
            );
            self.say(Code::PolicyOutsideMesh, path, message, &advice);
        }
    }

    /// A target that does not exist is reported when the snapshot is built, and then it is no news that nothing is selected.
    fn can_miss(&self) -> bool {
        let namespace = &self.policy.namespace;
        let exists = |target: &String| {
            let mut services = self.world.services.iter();
            services.any(|(_, service)| {
                *service.name.namespace == **namespace
                    && *service.name.name == **target
                    && !service.selector.is_empty()
            })
        };
        let targets = self.policy.services.as_ref();
        let mesh_wide =
            *namespace == self.world.snapshot.settings().root_namespace && self.policy.services.is_none();
        targets.is_none_or(|all| all.iter().all(exists))
            && match mesh_wide {
                true => self.world.known.everything || !self.world.members.is_empty(),
                false => self.world.can_miss(namespace),
            }
    }

    fn among(&self) -> &'static str {
        match self.world.known.everything {
            true => " that there is at present",
            false => " of these documents",
        }
    }

    fn rules_at_all(&mut self, members: &[&Member<'_>]) {
        let action = self.policy.action;
        if self.policy.dry_run {
            let message = format!(
                "it is a dry run (annotation istio.io/dry-run): this {} decides nothing",
                action.as_str()
            );
            let advice = "take the annotation out once its counts in `meshctl policies` are what you expect";
            self.say(Code::DryRun, Path::of("metadata.annotations"), message, advice);
        }
        if self.policy.rules.is_empty() {
            let path = Path::of("spec");
            if action == Action::Allow {
                let whom = match members.len() {
                    0 => "the workloads that it selects".to_owned(),
                    n => format!("the {} that it selects", counted(n, "workload", "workloads")),
                };
                let message = format!(
                    "it has no rules, so it allows nobody: {whom} can be reached only where another ALLOW policy lets in"
                );
                let advice = "if that is not meant, add rules; `rules: [{}]` allows everybody";
                self.say(Code::AllowsNobody, path, message, advice);
            } else {
                let message = format!(
                    "it has no rules, so this {} never matches: it has no effect",
                    action.as_str()
                );
                let advice = "add rules; `rules: [{}]` matches every connection";
                self.say(Code::PolicyWithoutEffect, path, message, advice);
            }
        }
        if !matches!(action, Action::Deny | Action::Custom) {
            return;
        }
        for (index, rule) in self.policy.rules.iter().enumerate() {
            if rule.from.is_empty() && rule.to.is_empty() && rule.when.is_empty() {
                let message = format!("rule {index} has no conditions, so it refuses every connection");
                let advice = "if that is not meant, say in the rule which connections it is about";
                self.say(
                    Code::DeniesEverybody,
                    Path::of("spec.rules").index(index),
                    message,
                    advice,
                );
            }
        }
    }

    /// Who is named in one source, or in one condition.
    fn sources(&mut self, clause: &Clause, path: &Path) {
        for test in &clause.0 {
            let path = match test.field.strip_prefix("source.") {
                Some(field) => path.clone().key(field),
                None => path.clone(),
            };
            let value = |index: usize| match test.field.starts_with("source.") {
                true => path.clone().index(index),
                false => path.clone(),
            };
            match &test.matcher {
                Matcher::Principal(patterns) => {
                    for (index, pattern) in patterns.iter().enumerate() {
                        self.principal(test, pattern, value(index));
                    }
                }
                Matcher::TrustDomain(patterns) => {
                    for (index, pattern) in patterns.iter().enumerate() {
                        if let Pattern::Exact(name) = pattern {
                            self.trust_domain(name, name, value(index));
                        }
                    }
                }
                Matcher::Namespace(patterns) => {
                    for (index, pattern) in patterns.iter().enumerate() {
                        if let Pattern::Exact(name) = pattern {
                            self.namespace(name, name, value(index));
                        }
                    }
                }
                Matcher::ServiceAccount(accounts) => {
                    for (index, (namespace, account)) in accounts.iter().enumerate() {
                        self.account(
                            namespace,
                            account,
                            &format!("{namespace}/{account}"),
                            value(index),
                        );
                    }
                }
                Matcher::SourceIp(_)
                | Matcher::DestinationIp(_)
                | Matcher::DestinationPort(_)
                | Matcher::Unseen => {}
            }
        }
    }

    fn principal(&mut self, test: &Test, pattern: &Pattern, path: Path) {
        let written = String::from(pattern.clone());
        let (text, whole) = match pattern {
            Pattern::Exact(text) => (text, true),
            Pattern::Prefix(text) => (text, false),
            Pattern::Suffix(_) | Pattern::Present => return,
        };
        if !can_be_principal(text, whole) {
            let message = format!("{} {written:?} fits no workload's identity", test.field);
            let advice = "principals are TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT, such as cluster.local/ns/shop/sa/order";
            return self.say(Code::NoPrincipal, path, message, advice);
        }
        let parts: Vec<&str> = text.split('/').collect();
        if let [domain, _, ..] = parts[..]
            && self.trust_domain(domain, &written, path.clone())
        {
            return;
        }
        if let ([_, _, namespace, _, account], true) = (&parts[..], whole) {
            self.account(namespace, account, &written, path);
        }
    }

    /// Says whether it is a stranger's.
    fn trust_domain(&mut self, domain: &str, written: &str, path: Path) -> bool {
        let settings = self.world.snapshot.settings();
        let mut names = settings
            .trust_domain_aliases
            .iter()
            .chain([&settings.trust_domain]);
        if !self.world.known.settings || domain == ANY_LOCAL || names.any(|name| name.as_str() == domain) {
            return false;
        }
        let message = format!(
            "{written:?} is of the trust domain {domain:?}, which is neither {} nor an alias of it: nobody of it gets in, so it \
             matches nobody",
            settings.trust_domain
        );
        let advice = "correct the trust domain, or name it in the setting trustDomainAliases";
        self.say(Code::UnknownTrustDomain, path, message, advice);
        true
    }

    /// Says whether there is nothing to be said about accounts in it.
    fn namespace(&mut self, namespace: &str, written: &str, path: Path) -> bool {
        if self.world.known.everything && !self.world.knows_namespace(namespace) {
            let message = format!("{written:?} matches nobody: there is no namespace {namespace}");
            self.say(
                Code::UnknownNamespace,
                path,
                message,
                "correct the name, or take it out",
            );
            return true;
        }
        let members: Vec<_> = self.world.of_namespace(namespace).collect();
        let out = all_out(&members);
        if out {
            let message = format!(
                "{written:?} matches nobody: no workload of namespace {namespace} is enrolled, so none has an identity"
            );
            self.outside(namespace, message, path);
        }
        out
    }

    fn account(&mut self, namespace: &str, account: &str, written: &str, path: Path) {
        if self.world.known.everything && !self.world.knows_namespace(namespace) {
            self.namespace(namespace, written, path);
            return;
        }
        let members: Vec<_> = self
            .world
            .of_namespace(namespace)
            .filter(|member| member.pod.service_account == account)
            .collect();
        if members.is_empty() && self.world.can_miss(namespace) {
            let message = format!(
                "{written:?} matches nobody: no workload{} runs as service account {namespace}/{account}",
                self.among()
            );
            let advice = "is it misspelt, or does nothing run as it right now?";
            self.say(Code::UnknownAccount, path, message, advice);
        } else if all_out(&members) {
            let message = format!(
                "{written:?} matches nobody: the workloads that run as {namespace}/{account} are not enrolled, so they have no identity"
            );
            self.outside(namespace, message, path);
        }
    }

    fn outside(&mut self, namespace: &str, message: String, path: Path) {
        let advice = format!(
            "enrol them (mesh-agent.io/dataplane=enabled on the namespace {namespace} or its pods), or name their addresses in ipBlocks"
        );
        self.say(Code::SourceOutsideMesh, path, message, &advice);
    }

    /// An ALLOW by address alone, of workloads that are STRICT: who is enrolled comes by tunnel, all others in plaintext.
    fn plaintext(&mut self, clause: &Clause, members: &[&Member<'_>], path: Path) {
        let by_address = |test: &Test| matches!(test.matcher, Matcher::SourceIp(_)) && !test.negated;
        let alone = !clause.0.is_empty() && clause.0.iter().all(by_address);
        let judged = self.policy.action == Action::Allow && !self.policy.dry_run;
        if !(self.world.known.everything && alone && judged) {
            return;
        }
        let mut inside = members.iter().filter(|member| member.mesh == Mesh::In).peekable();
        if inside.peek().is_none() || !inside.all(|member| self.is_strict(member)) {
            return;
        }
        let fits = |member: &Member<'_>| {
            member.workload.addresses.iter().any(|address| {
                let within = |test: &Test| match &test.matcher {
                    Matcher::SourceIp(blocks) => blocks.iter().any(|block| block.contains(address)),
                    _ => false,
                };
                clause.0.iter().all(within)
            })
        };
        let enrolled = self.world.members.iter().filter(|member| member.mesh == Mesh::In);
        if enrolled.filter(|member| fits(member)).count() > 0 {
            return;
        }
        let message = "it lets in by address alone, no enrolled workload has such an address, and the workloads that it selects are \
                       STRICT: who comes from there comes in plaintext and is refused"
            .to_owned();
        let advice =
            "enrol those clients, or make the port PERMISSIVE by portLevelMtls of a PeerAuthentication";
        self.say(Code::StrictRefusesAddresses, path, message, advice);
    }

    fn is_strict(&self, member: &Member<'_>) -> bool {
        let decisions = self.world.snapshot.mtls_decisions(&member.workload);
        decisions.is_some_and(|all| all.iter().all(|decision| decision.mode == MtlsMode::Strict))
    }
}

/// Whether `text` is an identity without its scheme, or the beginning of one.
fn can_be_principal(text: &str, whole: bool) -> bool {
    let parts: Vec<&str> = text.split('/').collect();
    let last = parts.len().saturating_sub(1);
    let fixed: BTreeMap<usize, &str> = [(1, "ns"), (3, "sa")].into();
    let good = |(index, part): (usize, &&str)| {
        let open = index == last && !whole;
        match fixed.get(&index) {
            Some(word) => *part == *word || (open && word.starts_with(*part)),
            None => open || !part.is_empty(),
        }
    };
    (parts.len() == 5 || (!whole && parts.len() < 5)) && parts.iter().enumerate().all(good)
}

#[cfg(test)]
mod tests {
    use super::can_be_principal;

    #[test]
    fn a_principal_is_an_identity_or_its_beginning() {
        for (text, whole, expected) in [
            ("td/ns/a/sa/b", true, true),
            ("td/ns/a/sa/", true, false),
            ("td/ns/a/sa/b/c", true, false),
            ("order", true, false),
            ("shop/order", true, false),
            ("td/ns/a/sa/", false, true),
            ("td/n", false, true),
            ("td", false, true),
            ("", false, true),
            ("td/shop", false, false),
            ("td//", false, false),
            ("td/ns/a/s", false, true),
            ("td/ns/a/sb", false, false),
        ] {
            assert_eq!(can_be_principal(text, whole), expected, "{text} {whole}");
        }
    }
}
