//! What the API says is in force, and so is what changes.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, wait_for};
use serde_json::json;

use crate::stage::{LATER, OUTSIDE, SHOP, SOON, Stage, answered, captured, kind, refused, state_of, vip};

#[test]
fn what_the_api_says_is_in_force_and_each_change_is_followed() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    stage.service("web", &[&stage.far])?;
    let a1 = stage.agent(&stage.n1).start()?;
    let _a2 = stage.agent(&stage.n2).start()?;
    captured(&a1, &["client", "near"])?;
    let _far = App::serve(&stage.far, "talk", 8080, &["--text", "far"])?;
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    let web = SocketAddr::new(vip(&a1, "web")?, 80);
    answered(&stage.client, web, "far")?;

    // An EndpointSlice changes.
    stage.endpoints("web", &[&stage.near])?;
    answered(&stage.client, web, "near")?;

    // A policy comes and goes.
    stage.cluster.put(stage.nobody())?;
    refused(&stage.client, web)?;
    stage.cluster.delete(&stage.nobody())?;
    answered(&stage.client, web, "near")?;

    // A pod comes and goes.
    let late = stage.n1.pod(SHOP, "late")?;
    stage.cluster.pod(&late.spec())?;
    captured(&a1, &["client", "late", "near"])?;
    answered(&late, web, "near")?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "late", "namespace": SHOP}});
    stage.cluster.delete(&pod)?;
    captured(&a1, &["client", "near"])?;

    // A namespace joins the mesh.
    stage.cluster.namespace(OUTSIDE, true)?;
    captured(&a1, &["client", "near", "visitor"])?;

    for name in [
        "Namespace",
        "Pod",
        "Service",
        "EndpointSlice",
        "AuthorizationPolicy",
        "PeerAuthentication",
    ] {
        let kind = kind(&a1, name)?;
        ensure!(
            kind["state"] == "watching" && kind["problem"].is_null(),
            "{kind:#}"
        );
    }
    let metrics = a1.metrics()?;
    let pods = metrics.sum("mesh_agent_kubernetes_objects", &[("kind", "Pod")]);
    ensure!(pods >= 4.0, "{}", metrics.show("mesh_agent_kubernetes"));
    ensure!(metrics.has("mesh_agent_kubernetes_view_age_seconds"), "no age");
    let status = a1.meshctl_text(&["status"])?.success()?;
    ensure!(status.contains("the API server was heard"), "{status}");
    Ok(())
}

#[test]
fn a_kind_whose_definition_comes_later_is_followed_from_then_on_in_a_version_that_is_served() -> Result<()> {
    let stage = Stage::set("k", &[])?;
    let a1 = stage.agent(&stage.n1).start()?;
    captured(&a1, &["client", "near"])?;
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    let near = SocketAddr::new(stage.near.ip4(), 8080);
    answered(&stage.visitor, near, "near")?;
    state_of(&a1, "PeerAuthentication", "absent", SOON)?;
    let config = a1.meshctl_text(&["config"])?.success()?;
    ensure!(config.contains("knows nothing of security.istio.io"), "{config}");

    stage.cluster.define("PeerAuthentication", &["v1beta1"])?;
    let strict = json!({
        "apiVersion": "security.istio.io/v1beta1", "kind": "PeerAuthentication",
        "metadata": {"name": "default", "namespace": SHOP}, "spec": {"mtls": {"mode": "STRICT"}},
    });
    wait_for("the definition is established", SOON, || {
        stage.cluster.put(strict.clone())
    })?;
    let kind = state_of(&a1, "PeerAuthentication", "watching", LATER)?;
    ensure!(kind["api_version"] == "security.istio.io/v1beta1", "{kind:#}");
    refused(&stage.visitor, near)?;
    answered(&stage.client, near, "near")?;

    stage.cluster.undefine("PeerAuthentication")?;
    answered(&stage.visitor, near, "near")
}
