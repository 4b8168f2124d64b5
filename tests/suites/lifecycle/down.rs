//! What becomes of connections to a pod while its agent is dead: refused, unless the pod asks for another thing and may have it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, LoadServer, MESH, PodSpec, Scene, wait_for};

const ALLOW: (&str, &str) = ("mesh-agent.io/on-agent-down", "allow");

/// A scene whose pod `near` asks to be reached while the agent is dead.
fn scene(allowed: bool) -> Result<Scene> {
    let scene = Scene::with("d", false, |agent| match allowed {
        true => agent.arg("--allow-exclusions", "inbound-when-down"),
        false => agent,
    })?;
    let spec = PodSpec {
        annotations: vec![(ALLOW.0.to_owned(), ALLOW.1.to_owned())],
        ..scene.near.spec()
    };
    scene.change(|config| config.pod(&spec))?;
    Ok(scene)
}

/// Whether the agent says that the pod is reachable without it.
fn wait_for_passage(scene: &Scene, wanted: bool) -> Result<()> {
    wait_for("the exclusion is decided", Duration::from_secs(10), || {
        let all = scene.a1.meshctl(&["workloads"])?;
        let near = all["workloads"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|w| w["name"] == "near");
        let passes = near.map(|w| w["uncaptured"]["inbound_when_down"] == true);
        ensure!(passes == Some(wanted), "{all:#}");
        Ok(())
    })
}

fn reach(scene: &Scene) -> Result<String> {
    let report = scene
        .visitor
        .connect(scene.near.ip4(), 8080, "exchange", &["--timeout", "3000"])?;
    Ok(report.error.unwrap_or(report.text))
}

#[test]
fn a_permissive_pod_that_asks_for_it_is_reached_while_its_agent_is_dead_and_judged_again_after() -> Result<()>
{
    let mut scene = scene(true)?;
    let near = App::serve(&scene.near, "echo", 8080, &[])?;
    let client = App::serve(&scene.client, "echo", 8080, &[])?;
    wait_for_passage(&scene, true)?;
    ensure!(reach(&scene)? == "ping\n");
    let carried = near.events_of("accepted").len();
    scene.a1.kill();
    ensure!(reach(&scene)? == "ping\n", "{}", scene.logs());
    ensure!(near.events_of("accepted").len() == carried + 1);
    // The pod beside it did not ask for it; and what the pod itself opens is refused all the same.
    let report = scene
        .visitor
        .connect(scene.client.ip4(), 8080, "exchange", &["--timeout", "3000"])?;
    ensure!(report.error.as_deref() == Some("connect: refused"), "{report:?}");
    ensure!(client.events_of("accepted").is_empty());
    let out = scene
        .near
        .connect(scene.visitor.ip4(), 8080, "exchange", &["--timeout", "3000"])?;
    ensure!(out.error.as_deref() == Some("connect: refused"), "{out:?}");
    // HBONE has no plaintext to fall back to.
    let tunnel = scene
        .visitor
        .connect(scene.near.ip4(), 15008, "exchange", &["--timeout", "3000"])?;
    ensure!(tunnel.error.as_deref() == Some("connect: refused"), "{tunnel:?}");
    // The successor carries it again.
    let Scene { a1, .. } = scene;
    let a1 = a1.restart()?;
    let scene = Scene { a1, ..scene };
    let before = scene.a1.metrics()?.sum("istio_tcp_connections_opened_total", &[]);
    ensure!(reach(&scene)? == "ping\n");
    wait_for("the agent carried it", Duration::from_secs(5), || {
        let now = scene.a1.metrics()?.sum("istio_tcp_connections_opened_total", &[]);
        ensure!(now > before, "{now}");
        Ok(())
    })
}

fn refused_when_dead(mut scene: Scene) -> Result<()> {
    let near = LoadServer::start(&scene.near, 8080, &[]);
    wait_for_passage(&scene, false)?;
    scene.a1.kill();
    ensure!(
        reach(&scene)? == "connect: refused",
        "{}",
        SocketAddr::new(scene.near.ip4(), 8080)
    );
    drop(near);
    Ok(())
}

#[test]
fn without_the_agents_setting_a_pods_wish_to_be_reached_counts_for_nothing() -> Result<()> {
    refused_when_dead(scene(false)?)
}

#[test]
fn under_strict_nobody_gets_past_a_dead_agent() -> Result<()> {
    let scene = scene(true)?;
    wait_for_passage(&scene, true)?;
    scene.change(|config| config.peer_authentication(MESH, "STRICT"))?;
    refused_when_dead(scene)
}

#[test]
fn while_a_policy_selects_the_pod_nobody_gets_past_a_dead_agent() -> Result<()> {
    let scene = scene(true)?;
    wait_for_passage(&scene, true)?;
    scene.change(|config| {
        config.write(
            "policy",
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: some, namespace: mesh}\nspec: {rules: [{}]}\n",
        )
    })?;
    refused_when_dead(scene)
}

#[test]
fn pods_that_are_kept_at_a_stop_are_refused_until_an_agent_is_back() -> Result<()> {
    let mut scene = Scene::with("d", false, |agent| agent.arg("--on-stop", "keep"))?;
    let near = App::serve(&scene.near, "echo", 8080, &[])?;
    ensure!(reach(&scene)? == "ping\n", "a permissive pod is reached");
    scene.a1.stop()?;
    ensure!(
        scene.a1.log().contains("the pods stay captured"),
        "{}",
        scene.a1.log()
    );
    ensure!(
        reach(&scene)? == "connect: refused",
        "the agent has let the pods go"
    );
    let a1 = scene.a1.restart()?;
    scene = Scene { a1, ..scene };
    ensure!(reach(&scene)? == "ping\n", "{}", scene.a1.log());
    drop(near);
    Ok(())
}
