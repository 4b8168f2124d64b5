//! Whether a pod is part of the mesh, for the plugin, when the agent cannot say: from the API server's documents, or from the agent's table
//! of namespaces. Pure. What is not known for certain to be outside the mesh is not let through.

use mesh_core::manifest;
use mesh_core::model::Enrolment;
use mesh_core::snapshot::{Diagnostics, MeshSettings, Snapshot};

use super::table::Table;
use super::talk::PodName;

/// What is known of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is part of the mesh: it may not run before it is captured.
    Enrolled,
    /// It is not.
    NotEnrolled,
    /// It may be, for all that is known.
    Unknown(String),
}

/// By the Pod and its Namespace, as the API server has them.
pub(super) fn by_documents(
    settings: MeshSettings,
    pod: &[u8],
    namespace: &[u8],
    asked: &PodName,
) -> Standing {
    let mut objects = Vec::new();
    for (what, bytes) in [("the Pod", pod), ("its Namespace", namespace)] {
        let contents = manifest::parse("the API server's answer", bytes);
        if let Some(rejection) = contents.rejections.first() {
            return Standing::Unknown(format!("{what} is not understood: {rejection}"));
        }
        objects.extend(contents.accepted);
    }
    let snapshot = Snapshot::build(settings, 1, &objects, Diagnostics::default());
    let same = |uid: Option<&str>| asked.uid.as_deref().is_none_or(|asked| uid == Some(asked));
    let mut workloads = snapshot.workloads();
    let found =
        workloads.find(|workload| workload.namespace == asked.namespace && workload.name == asked.name);
    match found {
        Some(workload) if !same(workload.uid.pod_uid()) => {
            Standing::Unknown("the API server has another pod of that name".to_owned())
        }
        _ if !snapshot.namespaces().contains_key(&asked.namespace) => {
            Standing::Unknown("the API server's answer lacks its Namespace".to_owned())
        }
        Some(workload) => match workload.enrolment {
            Enrolment::Enrolled => Standing::Enrolled,
            // What is asked for and refused is not captured by the agent either, and shown as such.
            Enrolment::NotEnrolled | Enrolment::Left(_) | Enrolment::Refused(_) => Standing::NotEnrolled,
        },
        None => Standing::Unknown("the API server's answer is no pod that could run".to_owned()),
    }
}

/// By what the agent knew of namespaces.
pub(super) fn by_table(table: &Table, asked: &PodName) -> Standing {
    match table.namespaces.get(&asked.namespace) {
        Some(standing) if standing.enrolled => Standing::Enrolled,
        Some(standing) if standing.mixed => Standing::Unknown(
            "some pods of its namespace are part of the mesh by labels of their own, and nobody can tell this one's".to_owned(),
        ),
        Some(_) => Standing::NotEnrolled,
        None => Standing::Unknown(format!(
            "the agent's table does not know the namespace {}",
            asked.namespace
        )),
    }
}

#[cfg(test)]
mod tests {
    use mesh_core::snapshot::{IstioLabel, NamespaceStanding};

    use super::*;

    fn settings() -> MeshSettings {
        MeshSettings {
            node_name: "n1".into(),
            ..MeshSettings::default()
        }
    }

    fn asked(uid: Option<&str>) -> PodName {
        PodName {
            namespace: "shop".into(),
            name: "order".into(),
            uid: uid.map(str::to_owned),
        }
    }

    fn documents(namespace_labels: &str, pod_labels: &str, uid: Option<&str>) -> Standing {
        let pod = format!(
            r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"order","namespace":"shop","uid":"u1","labels":{pod_labels}}},"spec":{{"nodeName":"n1"}}}}"#
        );
        let namespace = format!(
            r#"{{"kind":"Namespace","apiVersion":"v1","metadata":{{"name":"shop","labels":{namespace_labels}}}}}"#
        );
        by_documents(settings(), pod.as_bytes(), namespace.as_bytes(), &asked(uid))
    }

    #[test]
    fn the_documents_decide_as_they_do_in_the_agent() {
        let (on, off) = (
            r#"{"mesh-agent.io/dataplane":"enabled"}"#,
            r#"{"mesh-agent.io/dataplane":"disabled"}"#,
        );
        assert_eq!(documents("{}", "{}", None), Standing::NotEnrolled);
        assert_eq!(documents(on, "{}", Some("u1")), Standing::Enrolled);
        assert_eq!(documents(on, off, Some("u1")), Standing::NotEnrolled);
        assert_eq!(documents(off, on, Some("u1")), Standing::Enrolled);
    }

    #[test]
    fn istios_label_enrols_unless_the_agent_has_left_it_to_istio() {
        let pod = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"order","namespace":"shop","labels":{"istio.io/dataplane-mode":"ambient"}},"spec":{"nodeName":"n1"}}"#;
        let namespace = br#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"shop"}}"#;
        for (istio_label, expected) in [
            (IstioLabel::Enrol, Standing::Enrolled),
            (IstioLabel::Leave, Standing::NotEnrolled),
        ] {
            let settings = MeshSettings {
                istio_label,
                ..settings()
            };
            assert_eq!(by_documents(settings, pod, namespace, &asked(None)), expected);
        }
    }

    #[test]
    fn what_the_documents_do_not_show_is_unknown() {
        let unknown = |standing: Standing| matches!(standing, Standing::Unknown(_));
        assert!(unknown(documents("{}", "{}", Some("another"))));
        assert!(unknown(by_documents(settings(), b"{}", b"{}", &asked(None))));
        assert!(unknown(by_documents(settings(), b"\xff", b"", &asked(None))));
        let pod = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"order","namespace":"shop"}}"#;
        assert!(
            unknown(by_documents(settings(), pod, pod, &asked(None))),
            "no namespace"
        );
    }

    #[test]
    fn a_namespace_with_labelled_pods_is_not_waved_through() {
        let standing = |enrolled, mixed| NamespaceStanding { enrolled, mixed };
        let by = |known: Option<NamespaceStanding>| {
            let namespaces = known
                .map(|standing| ("shop".to_owned(), standing))
                .into_iter()
                .collect();
            by_table(
                &Table {
                    namespaces,
                    istio_label_left: false,
                },
                &asked(None),
            )
        };
        assert_eq!(by(Some(standing(true, false))), Standing::Enrolled);
        assert_eq!(by(Some(standing(true, true))), Standing::Enrolled);
        assert_eq!(by(Some(standing(false, false))), Standing::NotEnrolled);
        assert!(matches!(by(Some(standing(false, true))), Standing::Unknown(_)));
        assert!(matches!(by(None), Standing::Unknown(_)));
    }
}
