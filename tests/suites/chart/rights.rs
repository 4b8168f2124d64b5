//! What the agents may do on a node and in the API.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::stage::{all_documents, kinds_of_values, one, render, text};

/// The capabilities that docs/kubernetes.md gives reasons for.
fn documented() -> Result<BTreeSet<String>> {
    let page = text("docs/kubernetes.md")?;
    let (_, table) = page
        .split_once("| capability | for |")
        .context("docs/kubernetes.md has no table of capabilities")?;
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let names = cells.flat_map(|cell| cell.split(','));
    Ok(names
        .filter_map(|name| name.trim().strip_prefix("CAP_"))
        .map(str::to_owned)
        .collect())
}

fn words(value: &Value) -> BTreeSet<String> {
    let array = value.as_array().into_iter().flatten();
    array
        .filter_map(|word| word.as_str())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_agent_has_the_capabilities_that_are_documented_and_no_others() -> Result<()> {
    let documented = documented()?;
    ensure!(documented.len() >= 4, "{documented:?}");
    for (name, values) in kinds_of_values()? {
        let daemonset = one(&all_documents(&render(&values)?)?, "DaemonSet")?;
        let container = &daemonset["spec"]["template"]["spec"]["containers"][0];
        let context = &container["securityContext"];
        ensure!(
            words(&context["capabilities"]["add"]) == documented,
            "{name}: {context:#}"
        );
        ensure!(
            context["capabilities"]["drop"] == json!(["ALL"]),
            "{name}: {context:#}"
        );
        // The kernel's own checks on memlock are gone since 5.11, and the agent raises no hard limit.
        ensure!(!documented.contains("SYS_RESOURCE"));
        ensure!(context["readOnlyRootFilesystem"] == true && context["allowPrivilegeEscalation"] == false);
        ensure!(context["privileged"].is_null() && context["seccompProfile"]["type"] == "RuntimeDefault");
    }
    Ok(())
}

#[test]
fn what_runs_before_the_agent_has_no_more_rights_than_documented_either() -> Result<()> {
    let page = text("docs/kubernetes.md")?;
    for (name, values) in kinds_of_values()? {
        let daemonset = one(&all_documents(&render(&values)?)?, "DaemonSet")?;
        let before = daemonset["spec"]["template"]["spec"]["initContainers"]
            .as_array()
            .cloned();
        for container in before.unwrap_or_default() {
            let context = &container["securityContext"];
            ensure!(
                context["privileged"].is_null() && context["allowPrivilegeEscalation"] == false,
                "{name}: {context:#}"
            );
            ensure!(
                context["readOnlyRootFilesystem"] == true
                    && context["capabilities"]["drop"] == json!(["ALL"]),
                "{name}: {context:#}"
            );
            for capability in words(&context["capabilities"]["add"]) {
                ensure!(
                    page.contains(&format!("CAP_{capability}")),
                    "{name}: docs/kubernetes.md does not say why {capability}"
                );
            }
        }
    }
    Ok(())
}

#[test]
fn a_successor_finds_room_beside_its_predecessor() -> Result<()> {
    for (name, values) in kinds_of_values()? {
        let daemonset = one(&all_documents(&render(&values)?)?, "DaemonSet")?;
        let update = &daemonset["spec"]["updateStrategy"]["rollingUpdate"];
        ensure!(
            update["maxUnavailable"] == 0 && !update["maxSurge"].is_null(),
            "{name}: {update}"
        );
        let pod = &daemonset["spec"]["template"]["spec"];
        let containers =
            ["containers", "initContainers"].map(|key| pod[key].as_array().cloned().unwrap_or_default());
        for container in containers.iter().flatten() {
            // A declared port is the node's, of which there is one.
            ensure!(container["ports"].is_null(), "{name}: {container:#}");
        }
        let main = &pod["containers"][0];
        ensure!(
            main["readinessProbe"]["exec"]["command"] == json!(["/usr/local/bin/meshctl", "ready", "--own"]),
            "{name}: {main:#}"
        );
    }
    Ok(())
}

#[test]
fn the_account_reads_and_writes_what_is_listed_and_nothing_else() -> Result<()> {
    let documents = all_documents(&render(&json!({}))?)?;
    let role = one(&documents, "ClusterRole")?;
    for rule in role["rules"].as_array().context("no rules")? {
        let all: BTreeSet<String> = ["apiGroups", "resources", "verbs"]
            .iter()
            .flat_map(|key| words(&rule[*key]))
            .collect();
        ensure!(!all.contains("*"), "{rule}");
        ensure!(!all.contains("secrets") && !all.contains("nodes/proxy"), "{rule}");
    }
    // Of its own DaemonSet it may know whether it is being deleted; of Leases it may have one.
    let own = json!([
        {"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": ["mesh-agent"], "verbs": ["list", "watch"]},
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        {
            "apiGroups": ["coordination.k8s.io"], "resources": ["leases"],
            "resourceNames": ["mesh-agent-status"], "verbs": ["get", "update"],
        },
    ]);
    ensure!(one(&documents, "Role")?["rules"] == own, "{documents:#?}");
    // Of policies it may write the status, and who does not want that gives no such right.
    let writes = |documents: &[Value]| -> Result<bool> {
        let text = one(documents, "ClusterRole")?.to_string() + &one(documents, "Role")?.to_string();
        Ok(text.contains("/status") || text.contains("patch") || text.contains("leases"))
    };
    ensure!(writes(&documents)?);
    let without = render(&json!({"settings": {"kubernetes": {"status": "off"}}}))?;
    ensure!(!writes(&all_documents(&without)?)?);
    for kind in ["ClusterRoleBinding", "RoleBinding"] {
        let binding = one(&documents, kind)?;
        let wanted = json!([{"kind": "ServiceAccount", "name": "mesh-agent", "namespace": "mesh-system"}]);
        ensure!(binding["subjects"] == wanted, "{binding:#}");
    }
    Ok(())
}
