//! What must not remain once all connections have ended.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{
    KernelObjects, LoadServer, LoadTally, Netns, Scene, Usage, map_entries, sockets, wait_for,
};

/// How long a load may take on a machine that does much else besides.
pub(crate) const LONG: Duration = Duration::from_secs(540);
/// How long the last of it may take to end.
const SETTLE: Duration = Duration::from_secs(30);

/// The scene, with agents that do not log each connection.
pub(crate) fn quiet_scene() -> Result<Scene> {
    Scene::with("l", true, |agent| agent.env("MESH_AGENT_LOG", "info,access=off"))
}

/// The agents' processes: n1's, n2's.
pub(crate) fn pids(scene: &mut Scene) -> Result<[u32; 2]> {
    let second = scene.a2.as_mut().context("this scene has a second agent")?;
    Ok([scene.a1.proc().pid(), second.proc().pid()])
}

/// Waits until neither agent's flow maps have an entry, no socket of the pods was forgotten (CLOSE-WAIT), and no agent has a live
/// connection or has seen a task panic.
pub(crate) fn expect_nothing(scene: &mut Scene) -> Result<()> {
    for pid in pids(scene)? {
        let maps = KernelObjects::of(pid)?;
        for map in ["HANDOFF", "DELIVERIES"] {
            wait_for(&format!("{map} is empty"), SETTLE, || {
                let entries = map_entries(map, &maps)?;
                ensure!(entries == 0, "{entries} entries");
                Ok(())
            })?;
        }
    }
    for pod in [&scene.client, &scene.near, &scene.far] {
        wait_for("no socket waits to be closed", SETTLE, || {
            no_close_wait(pod.netns())
        })?;
    }
    for agent in scene.agents() {
        wait_for("no connection is live", SETTLE, || {
            let live = agent.metrics()?.sum("mesh_agent_connections", &[]);
            ensure!(live == 0.0, "{live} connections");
            Ok(())
        })?;
        ensure!(!agent.log().contains("panicked"), "{}", agent.log());
    }
    Ok(())
}

fn no_close_wait(netns: &Netns) -> Result<()> {
    let forgotten: Vec<_> = sockets(netns)?
        .into_iter()
        .filter(|line| line.starts_with("CLOSE-WAIT"))
        .collect();
    ensure!(forgotten.is_empty(), "{forgotten:?}");
    Ok(())
}

/// Waits until the server has no connection any more, and gives its tally.
pub(crate) fn settled(server: &mut LoadServer) -> Result<LoadTally> {
    wait_for("the server has no connection", SETTLE, || {
        let tally = server.tally()?;
        ensure!(tally.open == 0, "{tally:?}");
        Ok(tally)
    })
}

/// What the agents use, n1's and n2's.
pub(crate) fn usage(scene: &mut Scene) -> Result<[Usage; 2]> {
    let [one, two] = pids(scene)?;
    Ok([Usage::of(one)?, Usage::of(two)?])
}
