//! The pods that documents of other kinds make. A repository holds Deployments where a cluster has pods: what is said about pods there
//! has to be said about these.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::decode::{self, Decoded, Head};
use super::report::{Path, Rejection};
use super::{Accepted, Places, Reader};
use crate::model::ObjectRef;

/// The kinds that have a template, and where.
const KINDS: [(&str, &str, &str); 8] = [
    ("", "ReplicationController", "spec.template"),
    ("apps", "Deployment", "spec.template"),
    ("apps", "StatefulSet", "spec.template"),
    ("apps", "DaemonSet", "spec.template"),
    ("apps", "ReplicaSet", "spec.template"),
    ("argoproj.io", "Rollout", "spec.template"),
    ("batch", "Job", "spec.template"),
    ("batch", "CronJob", "spec.jobTemplate.spec.template"),
];
/// Longest name of an object.
const MAX_NAME: usize = 253;

/// A pod that another object makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    /// What makes it.
    pub owner: ObjectRef,
    /// Where in the owner's document it stands.
    pub path: Path,
    /// The pod, under a name that is made up, with the owner's origin.
    pub pod: Accepted,
}

impl Reader {
    /// Reads the template of `value`, if that is what is wanted and it has one. Says whether.
    pub(super) fn template(
        &mut self,
        places: &mut Places<'_>,
        at: &Path,
        head: &Head,
        value: &Value,
    ) -> bool {
        if self.templates.is_none() {
            return false;
        }
        let (Some(owner), Some((path, pod))) = (head.object(), pod(head, value)) else {
            return false;
        };
        let within = Path(at.0.iter().chain(&path.0).cloned().collect());
        let pod_head = match Head::read(&pod, None) {
            Ok(head) => head,
            Err(_) => return false,
        };
        match decode::object(&pod_head, &pod) {
            Decoded::UnknownKind => return false,
            Decoded::Rejected(invalid) => {
                let (line, column) = places.find(&within, &invalid.path);
                self.contents.rejections.push(Rejection {
                    origin: self.origin(line, column),
                    object: Some(owner),
                    message: format!("its pods: {}", invalid.message),
                });
            }
            Decoded::Object {
                object,
                ignored,
                remarks,
            } => {
                let notices = self.notices(places, &within, &owner, ignored, remarks);
                let (line, column) = places.find(at, &Path::default());
                let pod = Accepted {
                    object: Arc::new(object),
                    origin: self.origin(line, column),
                    notices,
                };
                let template = Template { owner, path, pod };
                self.templates.get_or_insert_default().push(template);
            }
        }
        true
    }
}

/// The pod of a document that has a template, and where that stands.
fn pod(head: &Head, value: &Value) -> Option<(Path, Value)> {
    let group = head.api_version.rsplit_once('/').map_or("", |(group, _)| group);
    let (_, kind, place) = KINDS
        .iter()
        .find(|(of, kind, _)| *of == group && *kind == head.kind)?;
    let template = value
        .pointer(&format!("/{}", place.replace('.', "/")))?
        .as_object()?;
    let meta = |key: &str| value.get("metadata")?.get(key)?.as_str();
    let name = meta("name")?;
    // Not the owner's name: a pod may have that, too.
    let made_up = format!("{name}.{}", kind.to_ascii_lowercase());
    let name = match made_up.len() > MAX_NAME {
        true => name.to_owned(),
        false => made_up,
    };
    let mut metadata = template
        .get("metadata")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    metadata.insert("name".into(), name.into());
    match meta("namespace") {
        Some(namespace) => drop(metadata.insert("namespace".into(), namespace.into())),
        None => drop(metadata.remove("namespace")),
    }
    let mut pod = Map::new();
    pod.insert("apiVersion".into(), "v1".into());
    pod.insert("kind".into(), "Pod".into());
    pod.insert("metadata".into(), metadata.into());
    if let Some(spec) = template.get("spec") {
        pod.insert("spec".into(), spec.clone());
    }
    Some((Path::of(place), pod.into()))
}

#[cfg(test)]
mod tests {
    use crate::manifest::parse_with_templates;
    use crate::model::Object;

    const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: payment, namespace: shop}
spec:
  template:
    metadata:
      labels: {app: payment}
      annotations: {mesh-agent.io/exclude-inbound-ports: x}
    spec:
      serviceAccountName: pay
      containers: [{name: c, ports: [{name: web, containerPort: 8080}]}]
";

    #[test]
    fn the_pods_of_deployments_and_cron_jobs_are_read_with_their_places() {
        let cron = "---
apiVersion: batch/v1
kind: CronJob
metadata: {name: report}
spec: {jobTemplate: {spec: {template: {spec: {serviceAccountName: r}}}}}
";
        let (contents, templates) = parse_with_templates("f", (DEPLOYMENT.to_owned() + cron).as_bytes());
        assert_eq!((contents.notices.len(), contents.rejections.len()), (0, 0));
        let shown: Vec<_> = templates.iter().map(|one| one.owner.to_string()).collect();
        assert_eq!(shown, ["Deployment shop/payment", "CronJob default/report"]);
        let Object::Pod(pod) = &*templates[0].pod.object else {
            panic!()
        };
        assert_eq!((pod.service_account.as_str(), pod.ports["web"]), ("pay", 8080));
        let [notice] = &templates[0].pod.notices[..] else {
            panic!()
        };
        assert_eq!(notice.origin.as_ref().unwrap().line, 9);
        assert_eq!(notice.object.as_ref(), Some(&templates[0].owner));
    }

    #[test]
    fn a_template_that_makes_no_pod_is_rejected_where_it_stands() {
        let bad = DEPLOYMENT.replace("8080", "99999");
        let (contents, templates) = parse_with_templates("f", bad.as_bytes());
        assert!(templates.is_empty());
        let [rejection] = &contents.rejections[..] else {
            panic!("{contents:?}")
        };
        assert_eq!(rejection.origin.line, 12);
        assert_eq!(rejection.object.as_ref().unwrap().kind, "Deployment");
    }

    #[test]
    fn without_being_asked_templates_are_documents_of_an_unknown_kind() {
        let contents = crate::manifest::parse("f", DEPLOYMENT.as_bytes());
        assert_eq!((contents.accepted.len(), contents.notices.len()), (0, 1));
    }
}
