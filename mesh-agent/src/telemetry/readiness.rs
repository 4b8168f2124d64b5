//! When the agent is ready: a pure function of what its parts say.

use std::sync::Arc;

/// How one local enrolled pod stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodReadiness {
    /// `namespace/name`.
    pub name: String,
    /// Captured, or why not.
    pub captured: Result<(), String>,
    /// Its identity has a certificate that is valid now, or why not.
    pub certificate: Result<(), String>,
}

/// What readiness is decided from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadinessFacts {
    /// A snapshot from the configuration source is in force.
    pub configured: bool,
    /// What a configuration source waits for, where none is.
    pub waiting: Vec<String>,
    /// The agent is stopping.
    pub draining: bool,
    /// The local pods that are enrolled. Those whose enrolment is refused are not among them: they will never be captured.
    pub pods: Vec<PodReadiness>,
}

/// The answer to a readiness probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// What holds it up; empty when ready.
    pub reasons: Vec<String>,
}

impl Readiness {
    /// Whether nothing holds it up.
    pub fn is_ready(&self) -> bool {
        self.reasons.is_empty()
    }
}

/// Supplies the facts at each probe; off the data path.
pub type FactsSource = Arc<dyn Fn() -> ReadinessFacts + Send + Sync>;

/// Decides readiness.
pub fn decide(facts: &ReadinessFacts) -> Readiness {
    let mut reasons = Vec::new();
    if facts.draining {
        reasons.push("the agent is stopping".to_owned());
    }
    if !facts.configured {
        reasons.push("no configuration is in force yet".to_owned());
        reasons.extend(facts.waiting.iter().cloned());
    }
    for pod in &facts.pods {
        if let Err(why) = &pod.captured {
            reasons.push(format!("pod {} is not captured: {why}", pod.name));
        }
        if let Err(why) = &pod.certificate {
            reasons.push(format!("pod {} has no certificate: {why}", pod.name));
        }
    }
    Readiness { reasons }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(captured: Result<(), String>, certificate: Result<(), String>) -> PodReadiness {
        PodReadiness {
            name: "shop/order".into(),
            captured,
            certificate,
        }
    }

    #[test]
    fn an_agent_without_configuration_is_not_ready() {
        let readiness = decide(&ReadinessFacts::default());
        assert_eq!(readiness.reasons, ["no configuration is in force yet"]);
    }

    #[test]
    fn an_agent_with_all_pods_captured_and_certified_is_ready() {
        let facts = ReadinessFacts {
            configured: true,
            waiting: vec![],
            draining: false,
            pods: vec![pod(Ok(()), Ok(()))],
        };
        assert!(decide(&facts).is_ready());
    }

    #[test]
    fn every_pod_that_lacks_something_is_named_with_the_reason() {
        let facts = ReadinessFacts {
            configured: true,
            waiting: vec![],
            draining: false,
            pods: vec![
                pod(Err("no such netns".into()), Ok(())),
                pod(Ok(()), Err("the issuer is away".into())),
            ],
        };
        assert_eq!(
            decide(&facts).reasons,
            [
                "pod shop/order is not captured: no such netns",
                "pod shop/order has no certificate: the issuer is away"
            ]
        );
    }

    #[test]
    fn a_stopping_agent_is_not_ready() {
        let facts = ReadinessFacts {
            configured: true,
            waiting: vec![],
            draining: true,
            pods: vec![],
        };
        assert_eq!(decide(&facts).reasons, ["the agent is stopping"]);
    }
}
