//! What the agent believes of what the API says, and what it does when it is told too little.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{App, wait_for};
use serde_json::json;

use crate::stage::{LATER, SHOP, SOON, Stage, answered, captured, kind, refused, state_of};

#[test]
fn annotations_that_place_a_pod_on_the_host_are_not_believed_unless_the_agent_is_told_to() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let a1 = stage
        .agent(&stage.n1)
        .without_arg("--kubernetes-pod-placement")
        .start()?;
    let workloads = wait_for("the pods are known", SOON, || {
        let workloads = a1.meshctl(&["workloads"])?;
        let all = workloads["workloads"].as_array().context("no list")?;
        ensure!(all.len() == 4, "{workloads:#}");
        Ok(workloads)
    })?;
    let all = workloads["workloads"].as_array().context("no list")?;
    ensure!(all.iter().all(|w| w["capture"] != "captured"), "{workloads:#}");
    let config = a1.meshctl_text(&["config"])?.success()?;
    ensure!(
        config.contains("are not believed: whoever may create pods"),
        "{config}"
    );
    Ok(())
}

#[test]
fn without_the_right_to_read_policies_nothing_is_in_force_and_when_it_is_lost_the_last_ones_stay()
-> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let Some(server) = stage.cluster.own() else {
        return Ok(());
    };
    stage.cluster.put(stage.nobody())?;
    server.forbid(&["authorizationpolicies"]);
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    let near = SocketAddr::new(stage.near.ip4(), 8080);
    let mut a1 = stage.agent(&stage.n1).spawn()?;
    wait_for("the agent says what it may not read", SOON, || {
        let (ready, why) = a1.ready()?;
        ensure!(!ready, "it is ready");
        ensure!(
            why.contains("AuthorizationPolicy") && why.contains("grant the agent's account"),
            "{why}"
        );
        ensure!(
            !why.contains("PeerAuthentication") && !why.contains("Pod is not known"),
            "{why}"
        );
        Ok(())
    })?;
    captured(&a1, &[])?;

    server.forbid(&[]);
    wait_for("the agent is ready", LATER, || {
        let (ready, why) = a1.ready()?;
        ensure!(ready, "{why}");
        Ok(())
    })?;
    refused(&stage.client, near)?;

    server.forbid(&["authorizationpolicies"]);
    server.compact();
    let lost = state_of(&a1, "AuthorizationPolicy", "lost", SOON)?;
    ensure!(lost["errors"]["forbidden"].as_u64() >= Some(1), "{lost:#}");
    refused(&stage.client, near)?;
    ensure!(a1.ready()?.0, "what was known is in force");
    // The source knows at once; what is in force says so with the next snapshot.
    wait_for("the loss is told", SOON, || {
        let config = a1.meshctl_text(&["config"])?.success()?;
        ensure!(config.contains("what was known of it stays in force"), "{config}");
        Ok(())
    })?;
    // The others are followed as before.
    let late = stage.n1.pod(SHOP, "late")?;
    stage.cluster.pod(&late.spec())?;
    captured(&a1, &["client", "late", "near"])?;

    server.forbid(&[]);
    state_of(&a1, "AuthorizationPolicy", "watching", LATER)?;
    stage.cluster.delete(&stage.nobody())?;
    answered(&stage.client, near, "near")?;
    ensure!(
        kind(&a1, "AuthorizationPolicy")?["problem"].is_null(),
        "a problem that is over is shown"
    );
    a1.stop()
}

#[test]
fn a_rejected_object_keeps_its_last_good_version_and_an_event_tells_its_owner() -> Result<()> {
    let stage = Stage::set("k", &["AuthorizationPolicy", "PeerAuthentication"])?;
    let policy = |mode: &str| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
            "metadata": {"name": "default", "namespace": SHOP}, "spec": {"mtls": {"mode": mode}},
        })
    };
    stage.cluster.put(policy("STRICT"))?;
    let _near = App::serve(&stage.near, "talk", 8080, &["--text", "near"])?;
    let near = SocketAddr::new(stage.near.ip4(), 8080);
    let a1 = stage.agent(&stage.n1).start()?;
    captured(&a1, &["client", "near"])?;
    refused(&stage.visitor, near)?;
    stage.cluster.put(policy("STRICKT"))?;
    wait_for("it is rejected", SOON, || {
        let config = a1.meshctl_text(&["config"])?.success()?;
        ensure!(config.contains("STRICKT"), "{config}");
        Ok(())
    })?;
    refused(&stage.visitor, near)?;
    let event = wait_for("an Event", SOON, || {
        let events = stage.cluster.events(SHOP, "default")?;
        let about = |event: &&serde_json::Value| {
            event["note"]
                .as_str()
                .is_some_and(|note| note.contains("STRICKT"))
        };
        events.iter().find(about).cloned().context("none")
    })?;
    ensure!(
        event["reason"] == "Rejected" && event["regarding"]["kind"] == "PeerAuthentication",
        "{event:#}"
    );
    // Over a restart, too.
    let mut a1 = a1.restart()?;
    captured(&a1, &["client", "near"])?;
    refused(&stage.visitor, near)?;
    stage.cluster.put(policy("PERMISSIVE"))?;
    answered(&stage.visitor, near, "near")?;
    a1.stop()
}
