//! The codes of findings. A code keeps its meaning; one that is given up is not used again. docs/analyze.md explains each.

use super::Severity::{self, Error, Info, Warning};

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $severity:ident;)+) => {
        /// What a finding is about.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Code {
            $($(#[$doc])* $name,)+
        }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$name,)+];

            /// As people and machines see it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Code::$name => $text,)+
                }
            }

            /// How much it matters, always.
            pub fn severity(self) -> Severity {
                match self {
                    $(Code::$name => $severity,)+
                }
            }
        }
    };
}

codes! {
    /// A document cannot be read, or cannot be what it says.
    Rejected = "MESH0101", Error;
    /// A kind that has nothing to do with meshes.
    ForeignKind = "MESH0102", Info;
    /// A kind by which meshes are configured, without effect here.
    KindWithoutEffect = "MESH0103", Warning;
    /// A field that this mesh does not know.
    UnknownField = "MESH0104", Warning;
    /// A value that does not count.
    Ignored = "MESH0105", Warning;
    /// Two objects claim the same thing.
    Conflict = "MESH0106", Warning;
    /// In force as something else than what was written.
    Changed = "MESH0107", Warning;

    /// A policy's rule has an attribute of HTTP.
    HttpAttribute = "MESH0201", Warning;
    /// An AuthorizationPolicy selects no workload.
    PolicySelectsNothing = "MESH0202", Warning;
    /// An AuthorizationPolicy selects only workloads that are not enrolled.
    PolicyOutsideMesh = "MESH0203", Warning;
    /// An ALLOW policy without rules.
    AllowsNobody = "MESH0204", Info;
    /// A policy of another action without rules.
    PolicyWithoutEffect = "MESH0205", Warning;
    /// A DENY or CUSTOM rule without conditions.
    DeniesEverybody = "MESH0206", Info;
    /// A trust domain that is not the mesh's.
    UnknownTrustDomain = "MESH0207", Warning;
    /// A principal that no workload can have.
    NoPrincipal = "MESH0208", Warning;
    /// A namespace that does not exist.
    UnknownNamespace = "MESH0209", Warning;
    /// A service account as which no workload runs.
    UnknownAccount = "MESH0210", Info;
    /// A source that has no identity, for its workloads are not enrolled.
    SourceOutsideMesh = "MESH0211", Warning;
    /// A policy that decides nothing.
    DryRun = "MESH0212", Info;

    /// A PeerAuthentication selects no workload.
    AuthenticationSelectsNothing = "MESH0301", Warning;
    /// A PeerAuthentication selects only workloads that are not enrolled.
    AuthenticationOutsideMesh = "MESH0302", Warning;
    /// `portLevelMtls` names the port of a Service instead of the workloads'.
    ServicePortInAuthentication = "MESH0303", Warning;
    /// A PeerAuthentication that sets no mode.
    AuthenticationWithoutEffect = "MESH0304", Info;
    /// Who is let in by address comes in plaintext, which STRICT refuses.
    StrictRefusesAddresses = "MESH0305", Warning;

    /// A Service selects no pod.
    ServiceSelectsNothing = "MESH0401", Warning;
    /// A named `targetPort` that no pod of the Service has.
    TargetPortMissing = "MESH0402", Warning;
    /// A Service without TCP port.
    NoTcpPort = "MESH0403", Info;
    /// A Service port leads to a port of the agent.
    AgentPort = "MESH0404", Warning;
    /// A Service has pods inside and outside of the mesh.
    MixedService = "MESH0405", Info;
    /// An EndpointSlice of a Service that does not exist.
    SliceWithoutService = "MESH0406", Warning;

    /// A pod asks for the mesh and cannot be enrolled.
    CannotEnrol = "MESH0501", Warning;
    /// Enrolment labels that contradict each other.
    LabelsContradict = "MESH0502", Info;
    /// An exclusion that policies or settings do not permit.
    ExclusionRefused = "MESH0503", Warning;
    /// Annotations of the mesh on a pod that is not enrolled.
    AnnotationWithoutEffect = "MESH0504", Warning;
    /// A pod that is left to another mesh.
    LeftToOther = "MESH0505", Info;
    /// A pod that two meshes take.
    TwoMeshes = "MESH0506", Warning;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn codes_are_told_apart_and_stand_in_order() {
        let texts: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert!(texts.windows(2).all(|pair| pair[0] < pair[1]), "{texts:?}");
        for text in texts {
            assert!(text.len() == 8 && text.starts_with("MESH0"), "{text}");
        }
    }

    #[test]
    fn the_page_about_analyze_has_every_code_with_its_severity_and_no_other() {
        let page = include_str!("../../../../docs/analyze.md");
        let mut rows = BTreeMap::new();
        for line in page.lines().filter(|line| line.starts_with("| `MESH")) {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            assert_eq!(rows.insert(cells[1].trim_matches('`'), cells[2]), None, "{line}");
        }
        let codes: BTreeMap<_, _> = Code::ALL
            .iter()
            .map(|code| (code.as_str(), code.severity().to_string()))
            .collect();
        let told: BTreeMap<_, _> = rows
            .into_iter()
            .map(|(code, word)| (code, word.to_owned()))
            .collect();
        assert_eq!(told, codes);
        for word in page.split(|c: char| !c.is_ascii_alphanumeric()) {
            let is_code = word.len() == 8 && word.starts_with("MESH0");
            assert!(!is_code || codes.contains_key(word), "{word}");
        }
    }
}
