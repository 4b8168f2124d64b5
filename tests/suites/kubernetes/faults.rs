//! What servers do to their clients: forget, throttle, change their minds about credentials.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, wait_for};
use serde_json::json;

use crate::stage::{LATER, SHOP, SOON, Stage, answered, captured, kind, refused, state_of};

fn pod(name: &str, address: &str) -> serde_json::Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": SHOP, "labels": {"app": "crowd"}},
        "spec": {"nodeName": "elsewhere", "containers": [{"name": "app", "image": "none"}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

#[test]
fn versions_that_a_server_has_forgotten_lead_to_a_new_list_that_misses_nothing() -> Result<()> {
    let mut stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    if stage.cluster.own().is_none() {
        return Ok(());
    }
    // More than a page.
    for i in 0..1203u32 {
        stage.cluster.put(pod(
            &format!("crowd-{i}"),
            &format!("10.9.{}.{}", i / 250, i % 250 + 1),
        ))?;
    }
    stage.cluster.put(stage.nobody())?;
    let mut a1 = stage.agent(&stage.n1).start()?;
    captured(&a1, &["client", "near"])?;
    ensure!(kind(&a1, "Pod")?["objects"] == 1207, "{:#}", kind(&a1, "Pod")?);
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    let near = SocketAddr::new(stage.near.ip4(), 8080);
    refused(&stage.client, near)?;

    // Deleted while nobody looks, and forgotten.
    stage.relay.cut();
    state_of(&a1, "AuthorizationPolicy", "lost", SOON)?;
    stage.cluster.delete(&stage.nobody())?;
    stage.cluster.delete(&pod("crowd-7", ""))?;
    if let Some(server) = stage.cluster.own() {
        server.compact();
        server.throttle(20);
    }
    stage.relay.mend()?;
    answered(&stage.client, near, "near")?;
    wait_for("the pods are listed anew", LATER, || {
        let kind = kind(&a1, "Pod")?;
        ensure!(kind["objects"] == 1206 && kind["state"] == "watching", "{kind:#}");
        ensure!(kind["lists"].as_u64() >= Some(2), "{kind:#}");
        Ok(())
    })?;
    let metrics = a1.metrics()?;
    for reason in ["expired", "throttled", "unreachable"] {
        let errors = metrics.sum("mesh_agent_kubernetes_errors_total", &[("reason", reason)]);
        ensure!(
            errors >= 1.0,
            "{reason}: {}",
            metrics.show("mesh_agent_kubernetes")
        );
    }
    a1.stop()
}

#[test]
fn lists_come_as_streams_where_the_server_sends_them() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let Some(server) = stage.cluster.own() else {
        return Ok(());
    };
    server.stream_lists(true);
    let mut a1 = stage.agent(&stage.n1).start()?;
    captured(&a1, &["client", "near"])?;
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    let near = SocketAddr::new(stage.near.ip4(), 8080);
    answered(&stage.client, near, "near")?;
    stage.cluster.put(stage.nobody())?;
    refused(&stage.client, near)?;
    // The stream that was the list is the watch.
    ensure!(
        kind(&a1, "AuthorizationPolicy")?["watch_restarts"] == 0,
        "{:#}",
        kind(&a1, "AuthorizationPolicy")?
    );
    a1.stop()
}

#[test]
fn a_token_that_is_replaced_is_read_anew_and_none_is_logged() -> Result<()> {
    let mut stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    if stage.cluster.own().is_none() {
        return Ok(());
    }
    let mut a1 = stage.agent(&stage.n1).start()?;
    captured(&a1, &["client", "near"])?;
    if let Some(server) = stage.cluster.own() {
        server.set_token("second-and-secret")?;
    }
    stage.relay.cut();
    state_of(&a1, "Pod", "lost", SOON)?;
    stage.relay.mend()?;
    state_of(&a1, "Pod", "watching", LATER)?;
    let late = stage.n1.pod(SHOP, "late")?;
    if let Some(server) = stage.cluster.own() {
        // Ours is read by the tests' client, too.
        server.accept_also("first");
    }
    stage.cluster.pod(&late.spec())?;
    captured(&a1, &["client", "late", "near"])?;
    ensure!(!a1.log().contains("second-and-secret"), "a token is in the log");
    a1.stop()
}
