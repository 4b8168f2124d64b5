//! The kinds that this agent knows, in one table: what a document of each is called, how it is read, where an API server has it, and
//! which parts of it nobody here reads. A new kind is a new row, for every source.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::Value;

use super::decode::{Decoded, convert};
use super::report::{Notice, Origin, Path, Rejection};
use super::{
    Accepted, AuthorizationPolicyDocument, PeerAuthenticationDocument, authorization_policy, endpoint_slice,
    namespace, node, notices_of, peer_authentication, pod, service,
};
use crate::model::{Object, ObjectRef};

/// A kind of object.
#[derive(Debug)]
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The versions that are read alike, the preferred one first.
    pub versions: &'static [&'static str],
    /// Its name, as documents have it.
    pub name: &'static str,
    /// Its name in the paths of an API server.
    pub plural: &'static str,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
    /// Whether it is defined by a CustomResourceDefinition: a cluster may do without.
    pub custom: bool,
    /// What no decision reads, beyond what all kinds have of that.
    bulk: &'static [&'static str],
    read: fn(&Value) -> Decoded,
}

/// Dropped from objects of every kind.
const BULK: &[&str] = &[
    "metadata.managedFields",
    "metadata.selfLink",
    "metadata.generateName",
    "metadata.finalizers",
];
/// kubectl's copy of the whole document.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

const CONTAINER_BULK: [&str; 15] = [
    "args",
    "command",
    "env",
    "envFrom",
    "image",
    "imagePullPolicy",
    "resizePolicy",
    "resources",
    "securityContext",
    "stdin",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "volumeMounts",
    "workingDir",
];

/// All kinds.
pub static KINDS: [Kind; 7] = [
    Kind {
        group: "",
        versions: &["v1"],
        name: "Namespace",
        plural: "namespaces",
        namespaced: false,
        custom: false,
        bulk: &["spec", "status"],
        read: |value| convert::<core::Namespace, _>(value, |d, r| namespace(d, r).map(Object::Namespace)),
    },
    Kind {
        group: "",
        versions: &["v1"],
        name: "Node",
        plural: "nodes",
        namespaced: false,
        custom: false,
        bulk: &[
            "spec",
            "metadata.annotations",
            "status.allocatable",
            "status.capacity",
            "status.conditions",
            "status.config",
            "status.daemonEndpoints",
            "status.features",
            "status.images",
            "status.nodeInfo",
            "status.runtimeHandlers",
            "status.volumesAttached",
            "status.volumesInUse",
        ],
        read: |value| convert::<core::Node, _>(value, |d, r| node(d, r).map(Object::Node)),
    },
    Kind {
        group: "",
        versions: &["v1"],
        name: "Pod",
        plural: "pods",
        namespaced: true,
        custom: false,
        bulk: &[
            "spec.affinity",
            "spec.dnsConfig",
            "spec.ephemeralContainers",
            "spec.hostAliases",
            "spec.imagePullSecrets",
            "spec.nodeSelector",
            "spec.readinessGates",
            "spec.resourceClaims",
            "spec.resources",
            "spec.schedulingGates",
            "spec.securityContext",
            "spec.tolerations",
            "spec.topologySpreadConstraints",
            "spec.volumes",
            "status.containerStatuses",
            "status.ephemeralContainerStatuses",
            "status.initContainerStatuses",
            "status.resourceClaimStatuses",
        ],
        read: |value| convert::<core::Pod, _>(value, |d, r| pod(d, r).map(Arc::new).map(Object::Pod)),
    },
    Kind {
        group: "",
        versions: &["v1"],
        name: "Service",
        plural: "services",
        namespaced: true,
        custom: false,
        bulk: &["metadata.annotations", "status.conditions"],
        read: |value| {
            convert::<core::Service, _>(value, |d, r| service(d, r).map(Arc::new).map(Object::Service))
        },
    },
    Kind {
        group: "discovery.k8s.io",
        versions: &["v1"],
        name: "EndpointSlice",
        plural: "endpointslices",
        namespaced: true,
        custom: false,
        bulk: &["metadata.annotations", "metadata.ownerReferences"],
        read: |value| {
            convert::<discovery::EndpointSlice, _>(value, |d, r| {
                endpoint_slice(d, r).map(Arc::new).map(Object::EndpointSlice)
            })
        },
    },
    Kind {
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
        name: "PeerAuthentication",
        plural: "peerauthentications",
        namespaced: true,
        custom: true,
        bulk: &["status"],
        read: |value| {
            convert::<PeerAuthenticationDocument, _>(value, |d, r| {
                peer_authentication(d, r).map(Object::PeerAuthentication)
            })
        },
    },
    Kind {
        group: "security.istio.io",
        versions: &["v1", "v1beta1"],
        name: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        namespaced: true,
        custom: true,
        bulk: &["status"],
        read: |value| {
            convert::<AuthorizationPolicyDocument, _>(value, |d, r| {
                authorization_policy(d, r)
                    .map(Arc::new)
                    .map(Object::AuthorizationPolicy)
            })
        },
    },
];

impl Kind {
    /// The kind of documents that say so.
    pub(super) fn of(api_version: &str, name: &str) -> Option<&'static Self> {
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let is = |kind: &&Kind| kind.name == name && kind.group == group && kind.versions.contains(&version);
        KINDS.iter().find(is)
    }

    /// Whether documents that say so, and are of no kind here, configure meshes: what they ask for does not happen.
    pub(super) fn is_of_meshes(api_version: &str, name: &str) -> bool {
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let another_version = KINDS.iter().any(|kind| kind.name == name && kind.group == group);
        let gateways = group.starts_with("gateway.networking.") && group.ends_with("k8s.io");
        another_version || gateways || group.ends_with(".istio.io") || group.ends_with(".linkerd.io")
    }

    /// Whether objects called so live in namespaces; what nobody knows does.
    pub(super) fn is_namespaced(name: &str) -> bool {
        let kind = KINDS.iter().find(|kind| kind.name == name);
        kind.is_none_or(|kind| kind.namespaced)
    }

    /// Reads a document of this kind.
    pub(super) fn decode(&self, value: &Value) -> Decoded {
        (self.read)(value)
    }

    /// `apiVersion` of this kind's documents in `version`.
    pub fn api_version(&self, version: &str) -> String {
        match self.group {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }

    /// The object of this kind that has the names in `document`.
    pub fn object(&self, document: &Value) -> Option<ObjectRef> {
        let meta = |key: &str| document.get("metadata")?.get(key)?.as_str();
        let name = meta("name").filter(|name| !name.is_empty())?;
        let namespace = if self.namespaced {
            meta("namespace").unwrap_or("default")
        } else {
            ""
        };
        Some(ObjectRef::new(self.name, namespace, name))
    }

    /// Drops from a document what no decision reads, and has it say what it is: elements of lists leave that to their list.
    pub fn slim(&self, document: &mut Value, version: &str) {
        for path in BULK.iter().chain(self.bulk) {
            remove(document, path);
        }
        if let Some(annotations) = document
            .pointer_mut("/metadata/annotations")
            .and_then(Value::as_object_mut)
        {
            annotations.remove(LAST_APPLIED);
        }
        for list in ["/spec/containers", "/spec/initContainers"] {
            let containers = document.pointer_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                CONTAINER_BULK.iter().for_each(|key| drop(container.remove(*key)));
            }
        }
        if let Some(fields) = document.as_object_mut() {
            fields.insert("apiVersion".into(), self.api_version(version).into());
            fields.insert("kind".into(), self.name.into());
        }
    }

    /// Reads a document that came from an API server: whole, and of this kind. Fields that this agent does not know are no news where the
    /// server itself keeps to a schema of its own version.
    ///
    /// # Errors
    /// When it cannot be what it says.
    pub fn accept(&self, origin: &Origin, document: &Value) -> Result<Accepted, Box<Rejection>> {
        let reject = |message: String| {
            Box::new(Rejection {
                origin: origin.clone(),
                object: self.object(document),
                message,
            })
        };
        match self.decode(document) {
            Decoded::UnknownKind => Err(reject("it is of a kind that this agent does not know".to_owned())),
            Decoded::Rejected(invalid) => Err(reject(invalid.message)),
            Decoded::Object {
                object,
                ignored,
                remarks,
            } => {
                let ignored = if self.custom { ignored } else { Vec::new() };
                let place = |_: &Path| origin.clone();
                let notices: Vec<Notice> = notices_of(&object.name(), &ignored, remarks, place);
                Ok(Accepted {
                    object: object.into(),
                    origin: origin.clone(),
                    notices,
                })
            }
        }
    }
}

/// Removes the value at `path`, names with dots between.
fn remove(document: &mut Value, path: &str) {
    let (parents, last) = path.rsplit_once('.').unwrap_or(("", path));
    let mut at = document;
    for name in parents.split('.').filter(|name| !name.is_empty()) {
        let Some(next) = at.get_mut(name) else { return };
        at = next;
    }
    if let Some(fields) = at.as_object_mut() {
        fields.remove(last);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::json;

    use super::*;

    fn kind(name: &str) -> &'static Kind {
        KINDS.iter().find(|kind| kind.name == name).unwrap()
    }

    fn origin() -> Origin {
        Origin {
            file: "kubernetes".into(),
            line: 0,
            column: 0,
        }
    }

    #[test]
    fn every_row_is_found_by_each_of_its_versions() {
        for row in &KINDS {
            for version in row.versions {
                let found = Kind::of(&row.api_version(version), row.name).unwrap();
                assert!(std::ptr::eq(found, row), "{}", row.name);
            }
            assert!(Kind::of(&row.api_version("v0"), row.name).is_none());
            assert!(Kind::is_of_meshes(&row.api_version("v0"), row.name));
        }
        assert!(Kind::of("apps/v1", "Pod").is_none());
        for (api_version, name, expected) in [
            ("networking.istio.io/v1", "VirtualService", true),
            ("gateway.networking.k8s.io/v1", "HTTPRoute", true),
            ("policy.linkerd.io/v1beta3", "Server", true),
            ("apps/v1", "Deployment", false),
            ("apps/v1", "Pod", false),
            ("v1", "ConfigMap", false),
            ("networking.k8s.io/v1", "NetworkPolicy", false),
        ] {
            assert_eq!(Kind::is_of_meshes(api_version, name), expected, "{name}");
        }
    }

    #[test]
    fn what_is_dropped_changes_nothing_about_the_object() {
        let whole = json!({
            "metadata": {"name": "a", "namespace": "shop", "uid": "u", "labels": {"app": "a"}, "managedFields": [{"manager": "kubelet"}],
                "annotations": {LAST_APPLIED: "{}", "sidecar.istio.io/status": "x"}},
            "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i", "env": [{"name": "A"}], "ports": [{"containerPort": 80,
                "name": "web"}]}], "volumes": [{"name": "v"}], "tolerations": []},
            "status": {"podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [{"name": "c"}]}
        });
        let mut slim = whole.clone();
        kind("Pod").slim(&mut slim, "v1");
        assert_eq!(
            slim,
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": "a", "namespace": "shop", "uid": "u", "labels": {"app": "a"}, "annotations": {"sidecar.istio.io/status": "x"}},
                "spec": {"nodeName": "n", "containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "web"}]}]},
                "status": {"podIPs": [{"ip": "10.0.0.1"}]}
            })
        );
        let mut named = whole;
        named["apiVersion"] = "v1".into();
        named["kind"] = "Pod".into();
        let read = |document: &Value| kind("Pod").accept(&origin(), document).unwrap();
        assert_eq!(read(&named), read(&slim));
    }

    #[test]
    fn unknown_fields_are_told_of_custom_kinds_alone() {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"newInKubernetes": 1}});
        kind("Pod").slim(&mut pod, "v1");
        assert_eq!(kind("Pod").accept(&origin(), &pod).unwrap().notices, []);
        let mut policy = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": {"mtsl": {}}});
        let row = kind("PeerAuthentication");
        row.slim(&mut policy, "v1beta1");
        let accepted = row.accept(&origin(), &policy).unwrap();
        assert_eq!(
            accepted.notices[0].to_string(),
            "kubernetes: PeerAuthentication b/a: unknown field spec.mtsl: it has no effect"
        );
        policy["spec"] = json!({"mtls": {"mode": "STRICKT"}});
        let rejected = row.accept(&origin(), &policy).unwrap_err().to_string();
        assert!(
            rejected.starts_with("kubernetes: PeerAuthentication b/a rejected: spec.mtls.mode"),
            "{rejected}"
        );
    }

    /// What a ClusterRole lets its holder do: (group, resource, verb).
    fn rights(role: &Value) -> BTreeSet<(String, String, String)> {
        let words = |rule: &Value, key: &str| -> Vec<String> {
            let array = rule[key].as_array().into_iter().flatten();
            array.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut rights = BTreeSet::new();
        for rule in role["rules"].as_array().unwrap() {
            for group in words(rule, "apiGroups") {
                for resource in words(rule, "resources") {
                    for verb in words(rule, "verbs") {
                        rights.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
        rights
    }

    #[test]
    fn the_manifests_give_the_right_to_read_each_kind_and_to_write_what_the_agent_writes_and_no_other() {
        let right = |group: &str, resource: &str, verb: &str| {
            (group.to_owned(), resource.to_owned(), verb.to_owned())
        };
        let mut wanted: BTreeSet<_> = KINDS
            .iter()
            .flat_map(|kind| ["list", "watch"].map(|verb| right(kind.group, kind.plural, verb)))
            .collect();
        wanted.insert(right("events.k8s.io", "events", "create"));
        // Of the CNI plugin, while the agent is away.
        wanted.insert(right("", "namespaces", "get"));
        wanted.insert(right("", "pods", "get"));
        // Of the agent that writes conditions, for the kinds that keep some.
        for kind in ["authorizationpolicies", "peerauthentications"] {
            wanted.insert(right("security.istio.io", kind, "get"));
            wanted.insert(right("security.istio.io", &format!("{kind}/status"), "patch"));
        }
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(include_str!("../../../../deploy/kubernetes/rbac.yaml")).unwrap();
        let role = documents
            .iter()
            .find(|document| document["kind"] == "ClusterRole");
        assert_eq!(rights(role.unwrap()), wanted);
        // The page that people copy from.
        let page = include_str!("../../../../docs/configuration.md");
        let (_, page) = page.split_once("kind: ClusterRole\n").unwrap();
        let (yaml, _) = page.split_once("```").unwrap();
        assert_eq!(rights(&serde_saphyr::from_str(yaml).unwrap()), wanted);
    }
}
