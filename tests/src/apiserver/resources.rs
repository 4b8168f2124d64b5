//! Which resources there are: the built-in ones, and those that CustomResourceDefinitions define; and what discovery says of them.

use serde_json::{Value, json};

use super::store::Store;

/// Where the definitions of others are.
pub(super) const DEFINITIONS: &str = "apiextensions.k8s.io/customresourcedefinitions";

/// A resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resource {
    pub(super) group: String,
    pub(super) versions: Vec<String>,
    pub(super) plural: String,
    pub(super) kind: String,
    pub(super) namespaced: bool,
    /// Whether it has a status apart.
    pub(super) status: bool,
}

impl Resource {
    /// What its objects are filed under.
    pub(super) fn key(&self) -> String {
        format!("{}/{}", self.group, self.plural)
    }

    /// Whether an update must say which version it is made of: for Leases, and for whatever a definition defines.
    pub(super) fn must_be_conditional(&self) -> bool {
        self.plural == "leases" || self.group.ends_with("istio.io")
    }

    pub(super) fn api_version(&self, version: &str) -> String {
        match self.group.as_str() {
            "" => version.to_owned(),
            group => format!("{group}/{version}"),
        }
    }
}

/// All resources.
pub(super) fn all(store: &Store) -> Vec<Resource> {
    let built_in = [
        ("", "namespaces", "Namespace", false, true),
        ("", "nodes", "Node", false, true),
        ("", "pods", "Pod", true, true),
        ("", "services", "Service", true, true),
        ("apps", "daemonsets", "DaemonSet", true, true),
        ("discovery.k8s.io", "endpointslices", "EndpointSlice", true, false),
        ("events.k8s.io", "events", "Event", true, false),
        ("coordination.k8s.io", "leases", "Lease", true, false),
        (
            "apiextensions.k8s.io",
            "customresourcedefinitions",
            "CustomResourceDefinition",
            false,
            true,
        ),
    ];
    let mut found: Vec<Resource> = built_in
        .into_iter()
        .map(|(group, plural, kind, namespaced, status)| Resource {
            group: group.to_owned(),
            versions: vec!["v1".to_owned()],
            plural: plural.to_owned(),
            kind: kind.to_owned(),
            namespaced,
            status,
        })
        .collect();
    found.extend(
        store
            .list(DEFINITIONS, None)
            .iter()
            .map(|definition| defined(definition)),
    );
    found
}

fn defined(definition: &Value) -> Resource {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let versions = spec["versions"].as_array().into_iter().flatten();
    let status = versions
        .clone()
        .any(|version| version["subresources"]["status"].is_object());
    Resource {
        status,
        group: text(&spec["group"]),
        versions: versions
            .filter(|version| version["served"] == true)
            .map(|version| text(&version["name"]))
            .collect(),
        plural: text(&spec["names"]["plural"]),
        kind: text(&spec["names"]["kind"]),
        namespaced: spec["scope"] == "Namespaced",
    }
}

/// What `GET /apis`, `/apis/GROUP`, `/apis/GROUP/VERSION` and `/api/v1` say; `None` for what is not there.
pub(super) fn discovery(store: &Store, parts: &[&str]) -> Option<Value> {
    let all = all(store);
    match parts {
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"]})),
        ["api", "v1"] => Some(resource_list(&all, "", "v1")),
        ["apis"] => {
            let mut groups: Vec<&str> = all
                .iter()
                .map(|r| r.group.as_str())
                .filter(|g| !g.is_empty())
                .collect();
            groups.sort_unstable();
            groups.dedup();
            let groups: Vec<Value> = groups.into_iter().filter_map(|name| group(&all, name)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["apis", name] => {
            let mut group = group(&all, name)?;
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Some(group)
        }
        ["apis", group, version] => {
            let there = |r: &Resource| r.group == *group && r.versions.iter().any(|v| v == version);
            all.iter().any(there).then(|| resource_list(&all, group, version))
        }
        ["version"] => Some(json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0"})),
        _ => None,
    }
}

fn group(all: &[Resource], name: &str) -> Option<Value> {
    let mut versions: Vec<&String> = all
        .iter()
        .filter(|r| r.group == name)
        .flat_map(|r| &r.versions)
        .collect();
    versions.sort_by_key(|version| (version.len(), version.as_str()));
    versions.dedup();
    let shown = |version: &&String| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    let first = shown(versions.first()?);
    let versions: Vec<Value> = versions.iter().map(shown).collect();
    Some(json!({"name": name, "versions": versions, "preferredVersion": first}))
}

fn resource_list(all: &[Resource], group: &str, version: &str) -> Value {
    let there = |r: &&Resource| r.group == group && r.versions.iter().any(|v| v == version);
    let resources: Vec<Value> = all
        .iter()
        .filter(there)
        .map(|r| {
            json!({
                "name": r.plural, "singularName": "", "namespaced": r.namespaced, "kind": r.kind,
                "verbs": ["create", "delete", "get", "list", "patch", "update", "watch"],
            })
        })
        .collect();
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources})
}
