//! What the agent says of the cluster and of what is in it: `meshctl check` and `meshctl analyze`; and whose Istio's label is.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Agent, App, wait_for};
use serde_json::{Value, json};

use crate::stage::{LATER, SHOP, SOON, Stage, answered, captured, state_of};

/// The check of this name, whatever the others say.
fn check(agent: &Agent, name: &str) -> Result<Value> {
    let said = agent.meshctl_text(&["check", "-o", "json"])?;
    let all: Value = serde_json::from_str(&said.stdout).with_context(|| said.stdout.clone())?;
    let mut checks = all["checks"].as_array().into_iter().flatten();
    let found = checks.find(|check| check["name"] == name).cloned();
    found.with_context(|| format!("no check {name}: {all:#}"))
}

/// Waits until the check of this name is at this level and says that.
fn checked(agent: &Agent, name: &str, level: &str, part: &str, limit: Duration) -> Result<()> {
    wait_for(&format!("{name} is {level}"), limit, || {
        let check = check(agent, name)?;
        let detail = check["detail"].as_str().unwrap_or_default();
        ensure!(check["level"] == level && detail.contains(part), "{check:#}");
        ensure!(check["hint"].is_string() == (level != "ok"), "{check:#}");
        Ok(())
    })
}

#[test]
fn check_tells_the_servers_version_the_kinds_and_what_is_refused_and_analyze_what_is_wrong() -> Result<()> {
    let stage = Stage::set("k", &["PeerAuthentication"])?;
    let mut a1 = stage.agent(&stage.n1).start()?;
    captured(&a1, &["client", "near"])?;
    checked(&a1, "api version", "ok", "https://", SOON)?;
    checked(&a1, "api kinds", "ok", "not installed: AuthorizationPolicy", SOON)?;
    checked(&a1, "api access", "ok", "nothing is refused", SOON)?;
    checked(&a1, "api view", "ok", "was heard", SOON)?;
    checked(&a1, "other meshes", "ok", "none", SOON)?;

    stage.cluster.put(json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "slip", "namespace": SHOP},
        "spec": {"selector": {"matchLabels": {"app": "nearr"}}, "mtls": {"mode": "STRICT"}},
    }))?;
    wait_for("the finding", SOON, || {
        let analysis = a1.meshctl(&["analyze"])?;
        let mut findings = analysis["findings"].as_array().context("no findings")?.iter();
        let slip = findings.find(|finding| finding["object"]["name"] == "slip");
        let slip = slip.with_context(|| format!("{analysis:#}"))?;
        ensure!(
            slip["code"] == "MESH0301" && slip["severity"] == "warning",
            "{slip:#}"
        );
        Ok(())
    })?;
    ensure!(
        a1.meshctl_text(&["analyze"])?.status.code() == Some(0),
        "warnings are no errors"
    );
    ensure!(
        a1.meshctl_text(&["analyze", "--strict"])?.status.code() == Some(1),
        "warnings count"
    );

    let Some(server) = stage.cluster.own() else {
        return a1.stop();
    };
    server.forbid(&["peerauthentications"]);
    server.compact();
    state_of(&a1, "PeerAuthentication", "lost", SOON)?;
    checked(&a1, "api access", "warn", "(403): PeerAuthentication", SOON)?;
    server.forbid(&[]);
    checked(&a1, "api access", "ok", "nothing is refused", LATER)?;
    a1.stop()
}

#[test]
fn istios_label_is_left_to_a_ztunnel_on_the_node_and_captured_pods_are_let_go() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    if stage.cluster.own().is_none() {
        // A real cluster would remove the pod, which no DaemonSet has made.
        return Ok(());
    }
    // An empty label says nothing.
    let label = |labels: Value| {
        stage.cluster.put(json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SHOP, "labels": labels},
        }))
    };
    label(json!({"mesh-agent.io/dataplane": "", "istio.io/dataplane-mode": "ambient"}))?;
    let mut a1 = stage.agent(&stage.n1).start()?;
    captured(&a1, &["client", "near"])?;
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    let near = SocketAddr::new(stage.near.ip4(), 8080);
    answered(&stage.client, near, "near")?;

    // Whoever may make pods somewhere has no say in it.
    let ztunnel = |namespace: &str, node: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "ztunnel-x", "namespace": namespace, "labels": {"app": "ztunnel"},
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "ztunnel", "uid": "u", "controller": true,
                }],
            },
            "spec": {"nodeName": node, "containers": [{"name": "istio-proxy-like", "image": "none"}]},
        })
    };
    let node = stage.near.spec().node.clone();
    stage.cluster.put(ztunnel(SHOP, &node))?;
    stage.cluster.namespace("istio-system", false)?;
    stage.cluster.put(ztunnel("istio-system", "elsewhere"))?;
    std::thread::sleep(Duration::from_secs(2));
    stage.cluster.delete(&ztunnel(SHOP, &node))?;
    stage.cluster.delete(&ztunnel("istio-system", "elsewhere"))?;
    captured(&a1, &["client", "near"])?;
    ensure!(!a1.log().contains("is left to it"), "a pod of anybody's counted");

    stage.cluster.put(ztunnel("istio-system", &node))?;
    captured(&a1, &[])?;
    answered(&stage.client, near, "near")?;
    let status = a1.meshctl(&["status"])?;
    ensure!(status["pods"]["left"] == 2, "{status:#}");
    ensure!(status["other_meshes"][0]["part"] == "ztunnel", "{status:#}");
    let shown = a1.meshctl_text(&["status"])?.success()?;
    ensure!(shown.contains("2 pods are left to it"), "{shown}");
    checked(&a1, "other meshes", "warn", "left to Istio", SOON)?;
    let workloads = a1.meshctl_text(&["workloads"])?.success()?;
    ensure!(
        workloads
            .contains("near is not enrolled: label istio.io/dataplane-mode is left to Istio, whose ztunnel"),
        "{workloads}"
    );
    let metrics = a1.metrics()?;
    ensure!(
        metrics.sum("mesh_agent_pods_left", &[]) == 2.0,
        "{}",
        metrics.show("mesh_agent_pods")
    );
    ensure!(
        metrics.sum("mesh_agent_other_mesh_pods", &[("part", "ztunnel")]) == 1.0,
        "the metric"
    );

    // Ours enrols beside it.
    label(json!({"mesh-agent.io/dataplane": "enabled"}))?;
    captured(&a1, &["client", "near"])?;
    checked(&a1, "other meshes", "warn", "with it 0 pods", SOON)?;
    let analysis = a1.meshctl(&["analyze"])?;
    ensure!(analysis.to_string().contains("MESH0506"), "{analysis:#}");

    label(json!({"mesh-agent.io/dataplane": ""}))?;
    captured(&a1, &[])?;
    stage.cluster.delete(&ztunnel("istio-system", &node))?;
    captured(&a1, &["client", "near"])?;
    a1.stop()
}
