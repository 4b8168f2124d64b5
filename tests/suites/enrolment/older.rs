//! Connections that are older than their pod's capture: listed while they live, closed where STRICT forbids them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};
use mesh_tests::harness::{App, MESH, PodSpec, Running, wait_for};
use serde_json::Value;

use crate::stage::Stage;

fn stage() -> Result<Stage> {
    Stage::start(false, |agent, _| agent, str::to_owned)
}

/// The list, once it has `count` connections.
fn wait_older(stage: &Stage, count: usize) -> Result<Vec<Value>> {
    wait_for(
        &format!("{count} older connections"),
        Duration::from_secs(8),
        || {
            let older = stage.agent.meshctl(&["connections", "--older"])?;
            match older["connections"].as_array() {
                Some(all) if all.len() == count => Ok(all.clone()),
                _ => bail!("{older:#}"),
            }
        },
    )
}

fn gauge(stage: &Stage) -> Result<f64> {
    Ok(stage.agent.metrics()?.sum("mesh_agent_older_connections", &[]))
}

/// One connection that is used now, and once more after `seconds`.
fn hold(from: &mesh_tests::harness::Pod, to: SocketAddr, seconds: &str) -> Result<Running> {
    from.connect_in_background(to.ip(), to.port(), "idle", &["--seconds", seconds])
}

#[test]
fn older_connections_are_listed_while_they_live_and_closed_once_strict_comes() -> Result<()> {
    let stage = stage()?;
    let here = App::serve(&stage.server, "echo", 8080, &[])?;
    let there = App::serve(&stage.visitor, "echo", 9000, &[])?;
    let (server, visitor) = (stage.server.ip4(), stage.visitor.ip4());
    let mut inbound = hold(&stage.visitor, SocketAddr::new(server, 8080), "120")?;
    let mut inbound6 = hold(&stage.visitor, SocketAddr::new(stage.server.ip6(), 8080), "120")?;
    let mut outbound = hold(&stage.server, SocketAddr::new(visitor, 9000), "120")?;
    let mut short = hold(&stage.server, SocketAddr::new(visitor, 9000), "120")?;
    let clients = here.wait_events("accepted", 2)?;
    there.wait_events("accepted", 2)?;

    stage.config.namespace(MESH, true)?;
    stage.wait_captured()?;
    let all = wait_older(&stage, 4)?;
    for client in &clients {
        let peer = client.peer.map(|peer| peer.to_string());
        let entry = all
            .iter()
            .find(|one| one["remote"].as_str().map(str::to_owned) == peer);
        let entry = entry.cloned().unwrap_or_default();
        assert_eq!(entry["direction"], "inbound", "{all:#?}");
        assert_eq!(entry["workload"], "server", "{all:#?}");
        assert!(entry["to_close"].is_null(), "{all:#?}");
    }
    let out: Vec<_> = all.iter().filter(|one| one["direction"] == "outbound").collect();
    assert_eq!(out.len(), 2, "{all:#?}");
    assert!(
        out.iter().all(|one| one["remote"] == format!("{visitor}:9000")),
        "{all:#?}"
    );
    assert_eq!(gauge(&stage)?, 4.0);
    assert_eq!(stage.workload("server")?["uncaptured"]["older_connections"], 4);
    let text = stage.agent.meshctl_text(&["connections", "--older"])?.success()?;
    assert!(
        text.contains("mesh/server") && text.contains(&format!("{visitor}:9000")),
        "{text}"
    );

    // What comes after capture is carried, and not on the list, however it looks to the kernel.
    let new_in = hold(&stage.visitor, SocketAddr::new(server, 8080), "3")?;
    let new_out = hold(&stage.server, SocketAddr::new(visitor, 9000), "3")?;
    here.wait_events("accepted", 3)?;
    there.wait_events("accepted", 3)?;
    assert_eq!(stage.carried()?, 2.0);
    short.proc().kill();
    wait_older(&stage, 3)?;
    assert_eq!(new_in.report(Duration::from_secs(15))?.ok, 1);
    assert_eq!(new_out.report(Duration::from_secs(15))?.ok, 1);

    stage.config.peer_authentication(MESH, "STRICT")?;
    let left = wait_older(&stage, 1)?;
    assert_eq!(
        left[0]["direction"], "outbound",
        "a connection to outside the mesh goes on: {left:#?}"
    );
    let metrics = stage.agent.metrics()?;
    assert_eq!(metrics.sum("mesh_agent_older_connections_closed_total", &[]), 2.0);
    assert!(
        stage
            .agent
            .log()
            .contains("closed a connection that went around capture")
    );
    let closed = here.wait_events("closed", 3)?;
    let cut: Vec<_> = closed.iter().filter(|event| event.end != "eof").collect();
    assert_eq!(cut.len(), 2, "{closed:?}");
    for client in [&mut inbound, &mut inbound6] {
        client.proc().kill();
    }
    assert!(outbound.proc().ended().is_none());
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(
        there
            .events_of("closed")
            .iter()
            .filter(|event| event.end == "reset")
            .count(),
        0
    );
    assert_eq!(wait_older(&stage, 1)?, left);
    outbound.proc().kill();
    wait_older(&stage, 0)?;
    assert_eq!(gauge(&stage)?, 0.0);
    Ok(())
}

#[test]
fn a_pod_that_is_enrolled_under_strict_loses_its_older_plaintext_to_and_from_the_mesh_at_once() -> Result<()>
{
    let stage = stage()?;
    // Enrolled like the server, on a node whose agent is not there: nobody but the server's agent can close what leads to it.
    let n2 = stage.world.node("n2")?;
    let peer = n2.pod(MESH, "peer")?;
    stage.config.pod(&PodSpec { ..peer.spec() })?;
    let here = App::serve(&stage.server, "echo", 8080, &[])?;
    let there = App::serve(&peer, "echo", 9000, &[])?;
    let _inbound = hold(&stage.visitor, SocketAddr::new(stage.server.ip4(), 8080), "120")?;
    let _outbound = hold(&stage.server, SocketAddr::new(peer.ip4(), 9000), "120")?;
    here.wait_events("accepted", 1)?;
    there.wait_events("accepted", 1)?;
    stage.config.peer_authentication(MESH, "STRICT")?;
    stage.config.namespace(MESH, true)?;
    stage.wait_captured()?;
    // The pod's own socket ends with ECONNABORTED, the other end with a reset.
    let closed = here.wait_events("closed", 1)?;
    assert_ne!(closed[0].end, "eof", "{closed:?}\n{}", stage.agent.log());
    let closed = there.wait_events("closed", 1)?;
    assert_eq!(closed[0].end, "reset", "{closed:?}\n{}", stage.agent.log());
    wait_older(&stage, 0)?;
    Ok(())
}
