//! `kill -9`: nothing goes in plaintext, nothing passes that policy refuses, service comes back at once, and nothing piles up.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use mesh_tests::harness::{
    App, Capture, KernelObjects, LoadServer, MESH, Scene, WEB4, attached_to, wait_for,
};

use crate::pins::{dir, pins};

/// A bound for a machine that does much else besides; a second is usual.
const BACK: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(300);

/// What `mesh-load` sends is checked by the server; this is sent besides, to be looked for.
const CANARY: &str = "canary-under-a-dying-agent";

fn with_agent(
    scene: Scene,
    change: impl FnOnce(mesh_tests::harness::Agent) -> Result<mesh_tests::harness::Agent>,
) -> Result<Scene> {
    let Scene { a1, .. } = scene;
    let a1 = change(a1)?;
    Ok(Scene { a1, ..scene })
}

#[test]
fn an_agent_killed_under_load_lets_nothing_out_and_nothing_in() -> Result<()> {
    let mut scene = Scene::start("x")?;
    scene.change(|config| config.peer_authentication(MESH, "STRICT"))?;
    let far = App::serve(&scene.far, "echo", 8081, &[])?;
    let near = App::serve(&scene.near, "echo", 8081, &[])?;
    let _server = LoadServer::start(&scene.far, 8080, &[])?;
    let wire = Capture::start(&scene.world, scene.world.fabric(), "br0")?;
    let veth = Capture::start(&scene.world, scene.n1.netns(), scene.client.veth())?;
    let clean = format!("clean@{}", SocketAddr::new(WEB4, 80));
    let load = scene.client.load_in_background(&[
        "churn",
        &clean,
        "--seconds",
        "12",
        "--rate",
        "300",
        "--parallel",
        "8",
    ])?;
    let refused = |port: u16, ip| format!("refused@{}", SocketAddr::new(ip, port));
    let intruder = scene.visitor.load_in_background(&[
        "churn",
        &refused(8081, scene.near.ip4()),
        &refused(8081, scene.far.ip6()),
        "--seconds",
        "12",
        "--rate",
        "100",
        "--parallel",
        "4",
    ])?;
    let mut backs = Vec::new();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(1500));
        scene.a1.kill();
        for _ in 0..3 {
            let report = scene.client.connect(
                scene.far.ip4(),
                8081,
                "exchange",
                &["--text", CANARY, "--timeout", "3000"],
            )?;
            ensure!(report.text.is_empty(), "{report:?}");
        }
        let began = Instant::now();
        scene = with_agent(scene, mesh_tests::harness::Agent::restart)?;
        wait_for("service is back", BACK, || {
            let report = scene.client.connect(scene.far.ip4(), 8081, "exchange", &[])?;
            ensure!(report.text == "ping\n", "{report:?}");
            Ok(())
        })?;
        backs.push(began.elapsed());
    }
    let load = load.report(LONG)?;
    ensure!(load.ok > 0 && load.wrong_names == 0, "{load:?}");
    ensure!(
        load.errors.keys().all(|error| !error.contains("mangled")),
        "{load:?}"
    );
    let intruder = intruder.report(LONG)?;
    ensure!(
        intruder.ok > 0 && intruder.failed == 0,
        "an uninvited client came in: {intruder:?}"
    );
    ensure!(near.events_of("accepted").is_empty(), "{:?}", near.events());
    for captured in [wire.finish()?, veth.finish()?] {
        ensure!(!captured.contains(CANARY.as_bytes()), "plaintext on the wire");
        ensure!(!captured.contains(b"ping\n"), "plaintext on the wire");
    }
    ensure!(far.events_of("accepted").len() >= 3);
    println!("service was back after {backs:?}");
    Ok(())
}

#[test]
fn ten_crashes_in_a_row_leave_no_pin_behind_and_no_pod_uncaptured() -> Result<()> {
    let mut scene = Scene::start("x")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let (before, attached) = (
        pins(&scene, &scene.n1),
        attached_to(scene.client.cgroup().path())?,
    );
    let held = KernelObjects::of(scene.a1.proc().pid())?;
    scene.a1.kill();
    for round in 0..10u64 {
        // Killed while it loads, while it captures, while it runs.
        let mut agent = scene.a1.successor().spawn()?;
        std::thread::sleep(Duration::from_millis(40 * round * round / 4));
        agent.kill();
        ensure!(
            attached_to(scene.client.cgroup().path())?.len() == attached.len(),
            "round {round}: {:?}",
            attached_to(scene.client.cgroup().path())?
        );
        let report = scene
            .client
            .connect(scene.far.ip4(), 8080, "exchange", &["--timeout", "3000"])?;
        ensure!(
            report.error.as_deref() == Some("connect: refused"),
            "round {round}: {report:?}"
        );
    }
    ensure!(far.events_of("accepted").is_empty());
    scene = with_agent(scene, mesh_tests::harness::Agent::restart)?;
    scene.wait_captured()?;
    let report = scene.client.connect(WEB4, 80, "exchange", &[])?;
    ensure!(report.text == "ping\n", "{report:?}\n{}", scene.logs());
    wait_for("only what is needed is pinned", Duration::from_secs(10), || {
        let now = pins(&scene, &scene.n1);
        ensure!(now == before, "{now:?}");
        Ok(())
    })?;
    scene.a1.stop()?;
    ensure!(!dir(&scene, &scene.n1).exists(), "{:?}", pins(&scene, &scene.n1));
    held.wait_until_gone()
}

#[test]
fn pods_that_went_and_came_while_the_agent_was_dead_are_told_apart() -> Result<()> {
    let mut scene = Scene::start("x")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let gone = scene.n1.pod(MESH, "gone")?;
    let left = scene.n1.pod(MESH, "left")?;
    scene.change(|config| {
        config.pod(&gone.spec())?;
        config.pod(&left.spec())
    })?;
    scene.wait_captured()?;
    scene.a1.kill();
    // One pod is gone with its namespace and cgroup, one is not enrolled any more, one is new.
    scene.config.remove("pod-gone")?;
    scene.n1.remove(gone)?;
    scene.config.remove("pod-left")?;
    let late = scene.n1.pod(MESH, "late")?;
    scene.config.pod(&late.spec())?;
    scene = with_agent(scene, mesh_tests::harness::Agent::restart)?;
    scene.wait_captured()?;
    let report = late.connect(WEB4, 80, "exchange", &[])?;
    ensure!(report.text == "ping\n", "{report:?}\n{}", scene.logs());
    wait_for("what nobody wants is let go", Duration::from_secs(10), || {
        let attached = attached_to(left.cgroup().path())?;
        ensure!(attached.is_empty(), "{attached:?}");
        let pods = std::fs::read_dir(dir(&scene, &scene.n1).join("run-1/pods"))?.count();
        ensure!(pods == 3, "{pods} pods have pins");
        Ok(())
    })?;
    scene.a1.stop()
}
