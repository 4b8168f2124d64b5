//! What is rendered, against the API's own types.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ResourceQuota, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::stage::{
    all_documents, documents, kinds_of_values, kustomize, lint, one, project, render, settings_of, text,
};

/// Reads a document as a `T`, without a field that `T` does not have.
fn strictly<T: DeserializeOwned>(document: &Value) -> Result<()> {
    let mut unknown = Vec::new();
    let read: Result<T, _> = serde_ignored::deserialize(document, |path| unknown.push(path.to_string()));
    read?;
    ensure!(unknown.is_empty(), "unknown fields: {unknown:?}");
    Ok(())
}

/// A PodMonitor as far as the chart fills it in. Its definition belongs to the Prometheus Operator.
#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read to see that the fields are these")]
struct PodMonitor {
    api_version: String,
    kind: String,
    metadata: Value,
    spec: PodMonitorSpec,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read to see that the fields are these")]
struct PodMonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pod_metrics_endpoints: Vec<PodMetricsEndpoint>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read to see that the fields are these")]
struct PodMetricsEndpoint {
    path: String,
    interval: Option<String>,
    scrape_timeout: Option<String>,
    relabelings: Vec<Relabeling>,
    #[serde(default)]
    metric_relabelings: Vec<Relabeling>,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "read to see that the fields are these")]
struct Relabeling {
    action: Option<String>,
    #[serde(default)]
    source_labels: Vec<String>,
    regex: Option<String>,
    target_label: Option<String>,
    replacement: Option<String>,
}

fn check(document: &Value) -> Result<()> {
    let word = |key: &str| document[key].as_str().unwrap_or_default();
    match (word("apiVersion"), word("kind")) {
        ("apps/v1", "DaemonSet") => strictly::<DaemonSet>(document),
        ("v1", "ConfigMap") => strictly::<ConfigMap>(document),
        ("v1", "Namespace") => strictly::<Namespace>(document),
        ("v1", "ServiceAccount") => strictly::<ServiceAccount>(document),
        ("v1", "ResourceQuota") => strictly::<ResourceQuota>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => strictly::<ClusterRole>(document),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => strictly::<ClusterRoleBinding>(document),
        ("rbac.authorization.k8s.io/v1", "Role") => strictly::<Role>(document),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => strictly::<RoleBinding>(document),
        ("monitoring.coreos.com/v1", "PodMonitor") => {
            Ok(serde_json::from_value::<PodMonitor>(document.clone()).map(drop)?)
        }
        other => bail!("nobody expects {other:?}"),
    }
}

/// Documents by what they are called, so that order does not count.
fn by_name(documents: Vec<Value>) -> BTreeMap<String, Value> {
    let named = documents.into_iter().map(|document| {
        let key = format!("{} {}", document["kind"], document["metadata"]["name"]);
        (key, document)
    });
    named.collect()
}

#[test]
fn every_document_is_one_that_the_api_knows_with_all_its_fields() -> Result<()> {
    for (name, values) in kinds_of_values()? {
        let documents = all_documents(&render(&values)?)?;
        ensure!(documents.len() >= 5, "{name}: {} documents", documents.len());
        for document in documents {
            check(&document).with_context(|| format!("{name}: {document:#}"))?;
        }
    }
    for file in ["deploy/kubernetes", "deploy/kubernetes/podmonitor"] {
        for document in documents(&kustomize(&project(file))?)? {
            check(&document).with_context(|| format!("{file}: {document:#}"))?;
        }
    }
    Ok(())
}

#[test]
fn a_field_that_the_api_does_not_know_would_be_seen() -> Result<()> {
    let rendered = render(&json!({}))?;
    let mut document = one(&all_documents(&rendered)?, "DaemonSet")?;
    check(&document)?;
    document["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] =
        json!(true);
    let said = check(&document).map_err(|error| error.to_string());
    ensure!(
        said.as_ref()
            .is_err_and(|said| said.contains("readOnlyRootFileSystem")),
        "{said:?}"
    );
    Ok(())
}

/// Takes the hash from the end of the ConfigMap's name that kustomize's generator puts there, wherever that stands; the name as it was.
fn without_hash(documents: Vec<Value>) -> Result<(Vec<Value>, String)> {
    let name = one(&documents, "ConfigMap")?["metadata"]["name"].clone();
    let name = name.as_str().context("a ConfigMap without a name")?;
    let (plain, hash) = name.rsplit_once('-').context("a name without a hash")?;
    ensure!(hash.len() == 10, "{name}");
    let text = Value::Array(documents)
        .to_string()
        .replace(&format!("{name:?}"), &format!("{plain:?}"));
    Ok((serde_json::from_str(&text)?, name.to_owned()))
}

#[test]
fn kustomize_makes_of_the_manifests_what_helm_makes_of_the_chart() -> Result<()> {
    let (ours, _) = without_hash(documents(&kustomize(&project("deploy/kubernetes"))?)?)?;
    let (mut ours, mut theirs) = (by_name(ours), by_name(all_documents(&render(&json!({}))?)?));
    // Helm has nobody make the namespace but who installs.
    let namespace = ours.remove("\"Namespace\" \"mesh-system\"");
    ensure!(namespace.is_some(), "the manifests make no namespace");
    // kustomize's generator writes the ConfigMap, whose labels nobody reads.
    for all in [&mut ours, &mut theirs] {
        let map = all
            .get_mut("\"ConfigMap\" \"mesh-agent\"")
            .context("no ConfigMap")?;
        map["metadata"]["labels"] = Value::Null;
    }
    for (name, document) in &theirs {
        let ours = ours.get(name).unwrap_or(&Value::Null);
        ensure!(ours == document, "{name}: {ours:#} {document:#}");
    }
    ensure!(ours.len() == theirs.len(), "{:?}", ours.keys());
    let monitor = by_name(documents(&kustomize(&project("deploy/kubernetes/podmonitor"))?)?);
    let all = by_name(all_documents(&render(
        &json!({"podMonitor": {"enabled": true}}),
    )?)?);
    let name = "\"PodMonitor\" \"mesh-agent\"";
    ensure!(
        monitor.len() == 1 && monitor.get(name) == all.get(name),
        "{monitor:#?}"
    );
    Ok(())
}

#[test]
fn a_kustomization_of_ones_own_replaces_settings_and_image_and_exchanges_the_agents() -> Result<()> {
    let directory = std::env::temp_dir().join(format!("mesh-overlay-{}", std::process::id()));
    let copied = directory.join("base");
    std::fs::create_dir_all(&copied)?;
    for file in [
        "kustomization.yaml",
        "namespace.yaml",
        "rbac.yaml",
        "daemonset.yaml",
        "settings.yaml",
    ] {
        std::fs::copy(project("deploy/kubernetes").join(file), copied.join(file))?;
    }
    std::fs::write(directory.join("settings.yaml"), "trustDomain: mesh.example\n")?;
    std::fs::write(
        directory.join("kustomization.yaml"),
        "resources: [base]\n\
         images: [{name: localhost/mesh-agent, newName: registry.example/mesh-agent, newTag: 1.2.3}]\n\
         configMapGenerator: [{name: mesh-agent, namespace: mesh-system, behavior: replace, files: [settings.yaml]}]\n",
    )?;
    let made = kustomize(&directory);
    std::fs::remove_dir_all(&directory)?;
    let made = documents(&made?)?;
    ensure!(settings_of(&made)? == "trustDomain: mesh.example\n");
    let pod = &one(&made, "DaemonSet")?["spec"]["template"]["spec"];
    let image = &pod["containers"][0]["image"];
    ensure!(image == "registry.example/mesh-agent:1.2.3", "{image}");
    let (_, name) = without_hash(made.clone())?;
    let (_, usual) = without_hash(documents(&kustomize(&project("deploy/kubernetes"))?)?)?;
    ensure!(name != usual, "{name}: the agents would not be exchanged");
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    ensure!(
        volumes.iter().any(|volume| volume["configMap"]["name"] == name),
        "{volumes:#?}"
    );
    Ok(())
}

#[test]
fn helms_linter_has_nothing_to_say_for_the_oldest_and_the_newest_server() -> Result<()> {
    for version in ["v1.25.0", "v1.29.0", "v1.30.0", "v1.36.0"] {
        for (name, values) in kinds_of_values()? {
            let report = lint(&values, version)?;
            let messages = report["messages"]
                .as_array()
                .context("a report without messages")?;
            // 1 is a remark, such as that there is no icon.
            let bad: Vec<&Value> = messages
                .iter()
                .filter(|m| m["severity"].as_u64() > Some(1))
                .collect();
            ensure!(
                bad.is_empty() && report["total_charts_linted"] == 1,
                "{name} {version}: {report:#}"
            );
        }
    }
    Ok(())
}

#[test]
fn the_namespace_that_the_documents_tell_people_to_make_admits_the_agents() -> Result<()> {
    let namespace = &documents(&text("deploy/kubernetes/namespace.yaml")?)?[0];
    let labels = &namespace["metadata"]["labels"];
    // Pod Security Admission would refuse host namespaces and capabilities elsewhere.
    ensure!(
        labels["pod-security.kubernetes.io/enforce"] == "privileged",
        "{labels}"
    );
    ensure!(labels["mesh-agent.io/dataplane"] == "disabled", "{labels}");
    Ok(())
}
