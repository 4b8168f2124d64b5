//! The agent's life: what holds while it is away, what is left when it has gone, and what it refuses to start without.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{
    Agent, App, Capture, KernelObjects, Manifests, Output, Scene, WEB4, World, agent_binary, attached_to,
    run, sockets, wait_for,
};

const CANARY: &str = "canary-while-the-agent-is-away";

/// `mesh-agent unload` for a node.
fn unload(scene: &Scene, node: &str) -> Result<Output> {
    let mut unload = Command::new(agent_binary()?);
    unload
        .args(["unload", "--node-name", node, "--bpffs-dir"])
        .arg(scene.world.bpffs().join(node));
    run(&mut unload, Duration::from_secs(15))
}

/// Every file below `dir`.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .flat_map(|entry| match entry.file_type() {
            Ok(kind) if kind.is_dir() => files_below(&entry.path()),
            _ => vec![entry.path()],
        })
        .collect()
}

/// Waits until `agent` holds nothing of the kernel and nothing is pinned or attached.
fn assert_gone(scene: &Scene, held: &KernelObjects, node: &str) -> Result<()> {
    held.wait_until_gone()?;
    for pod in [&scene.client, &scene.near, &scene.far] {
        if pod.spec().node == node {
            assert_eq!(
                attached_to(pod.cgroup().path())?,
                Vec::<String>::new(),
                "{}",
                pod.name()
            );
        }
    }
    let pins = scene.world.bpffs().join(node);
    let left = files_below(&pins);
    assert!(left.is_empty(), "pins left: {left:?}");
    Ok(())
}

#[test]
fn a_clean_stop_leaves_no_program_no_map_no_link_and_no_pin() -> Result<()> {
    let mut scene = Scene::start("l")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    scene.client.connect(WEB4, 80, "exchange", &[])?;
    let held = KernelObjects::of(scene.a1.proc().pid())?;
    for kind in ["prog", "map", "link"] {
        assert!(
            held.count(kind) > 0,
            "the observer must see what the agent holds: {held:?}"
        );
    }
    assert!(
        !attached_to(scene.client.cgroup().path())?.is_empty(),
        "programs are attached while the agent runs"
    );
    scene.a1.stop()?;
    assert_gone(&scene, &held, "n1")?;
    // The pod is an ordinary pod again.
    let outside = App::serve(&scene.visitor, "echo", 8080, &[])?;
    let report = scene.client.connect(scene.visitor.ip4(), 8080, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}");
    assert_eq!(outside.wait_events("accepted", 1)?[0].peer, report.local);
    let listeners: Vec<_> = sockets(scene.client.netns())?
        .into_iter()
        .filter(|line| line.starts_with("LISTEN"))
        .collect();
    assert!(listeners.is_empty(), "{listeners:?}");
    Ok(())
}

#[test]
fn while_the_agent_is_dead_connections_are_refused_and_nothing_goes_in_plaintext() -> Result<()> {
    let mut scene = Scene::start("l")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let near = App::serve(&scene.near, "echo", 8080, &[])?;
    let wire = Capture::start(&scene.world, scene.world.fabric(), "br0")?;
    let veth = Capture::start(&scene.world, scene.n1.netns(), scene.client.veth())?;
    scene.a1.kill();
    for (to, port) in [
        (WEB4, 80),
        (scene.far.ip4(), 8080),
        (scene.far.ip6(), 8080),
        (scene.near.ip4(), 8080),
    ] {
        let report = scene
            .client
            .connect(to, port, "exchange", &["--text", CANARY, "--timeout", "3000"])?;
        assert!(report.text.is_empty(), "{to}:{port}: {report:?}");
        assert_eq!(
            report.error.as_deref(),
            Some("connect: refused"),
            "{to}:{port}: {report:?}"
        );
    }
    // Inbound, too: the visitor cannot walk past the dead agent.
    let report = scene.visitor.connect(
        scene.near.ip4(),
        8080,
        "exchange",
        &["--text", CANARY, "--timeout", "3000"],
    )?;
    assert_eq!(report.error.as_deref(), Some("connect: refused"), "{report:?}");
    assert!(far.events_of("accepted").is_empty() && near.events_of("accepted").is_empty());
    for captured in [wire.finish()?, veth.finish()?] {
        assert!(!captured.contains(CANARY.as_bytes()));
    }
    Ok(())
}

#[test]
fn an_agent_started_after_a_crash_takes_over_and_stops_clean() -> Result<()> {
    let mut scene = Scene::start("l")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let held = KernelObjects::of(scene.a1.proc().pid())?;
    scene.a1.kill();
    let Scene {
        a1,
        a2,
        client,
        near,
        far,
        visitor,
        config,
        n1,
        n2,
        world,
    } = scene;
    let a1 = a1.restart()?;
    let mut scene = Scene {
        a1,
        a2,
        client,
        near,
        far,
        visitor,
        config,
        n1,
        n2,
        world,
    };
    scene.wait_captured()?;
    let report = scene.client.connect(WEB4, 80, "exchange", &[])?;
    assert_eq!(
        (report.text.as_str(), report.end.as_str()),
        ("ping\n", "eof"),
        "{report:?}\n{}",
        scene.logs()
    );
    let held_now = KernelObjects::of(scene.a1.proc().pid())?;
    scene.a1.stop()?;
    assert_gone(&scene, &held, "n1")?;
    assert_gone(&scene, &held_now, "n1")
}

#[test]
fn unload_removes_what_a_killed_agent_left() -> Result<()> {
    let mut scene = Scene::start("l")?;
    let held = KernelObjects::of(scene.a1.proc().pid())?;
    scene.a1.kill();
    assert!(
        !held.still_there()?.is_empty(),
        "a crash must leave capture in force"
    );
    unload(&scene, "n1")?.success()?;
    assert_gone(&scene, &held, "n1")?;
    let _outside = App::serve(&scene.visitor, "echo", 8080, &[])?;
    let report = scene.client.connect(scene.visitor.ip4(), 8080, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}");
    // Unloading again finds nothing to do and says so with success.
    unload(&scene, "n1")?.success().map(drop)
}

#[test]
fn a_process_in_the_pod_that_joins_the_listeners_ports_steals_nothing() -> Result<()> {
    let scene = Scene::start("l")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let mut thieves = Vec::new();
    for line in sockets(scene.far.netns())?
        .iter()
        .filter(|line| line.starts_with("LISTEN"))
    {
        let local = line
            .split_whitespace()
            .nth(3)
            .context("ss shows a local address")?;
        let (address, port) = local.rsplit_once(':').context("an address and a port")?;
        if port == "8080" {
            continue;
        }
        let address = if address == "*" {
            "[::]"
        } else {
            address.split('%').next().unwrap_or(address)
        };
        let mut command = scene.far.command(env!("CARGO_BIN_EXE_mesh-testapp"))?;
        command.args([
            "serve",
            "banner",
            "--text",
            "stolen",
            "--reuse-port",
            "--listen",
            &format!("{address}:{port}"),
        ]);
        thieves.push(mesh_tests::harness::Proc::start(
            &format!("thief-{port}"),
            &mut command,
            scene.far.log_dir(),
        )?);
    }
    assert!(!thieves.is_empty(), "the agent has listeners in the pod");
    std::thread::sleep(Duration::from_millis(300));
    for (from, to, port) in [(&scene.client, WEB4, 80), (&scene.visitor, scene.far.ip4(), 8080)] {
        let report = from.connect(to, port, "many", &["--count", "200"])?;
        for thief in &thieves {
            assert!(!thief.stdout().contains("accepted"), "stolen: {}", thief.stdout());
        }
        assert_eq!((report.ok, report.failed), (200, 0), "{report:?}");
    }
    assert_eq!(far.events_of("accepted").len(), 400);
    Ok(())
}

#[test]
fn an_agent_without_the_privilege_names_it_and_does_not_run_uncaptured() -> Result<()> {
    let world = World::new("l")?;
    let node = world.node("n1")?;
    let pod = node.pod("mesh", "client")?;
    let config = Manifests::new(world.dir().join("config"))?;
    config.namespace("mesh", true)?;
    config.pod(&pod.spec())?;
    let output = Agent::builder(&world, &node, &config).run_to_end(|command| {
        // SAFETY: prctl(2) is async-signal-safe; root gets at exec what the bounding set leaves.
        unsafe {
            command.pre_exec(|| {
                for capability in [12, 21, 38, 39] {
                    // CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF (capabilities(7))
                    libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
                }
                Ok(())
            });
        }
    })?;
    let said = format!("{}{}", output.stdout, output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(
        ["CAP_BPF", "CAP_SYS_ADMIN", "CAP_NET_ADMIN"]
            .iter()
            .any(|name| said.contains(name)),
        "{said}"
    );
    Ok(())
}

#[test]
fn a_pod_that_goes_is_released_and_one_that_comes_is_captured() -> Result<()> {
    let scene = Scene::start("l")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let late = scene.n1.pod("mesh", "late")?;
    scene.change(|config| config.pod(&late.spec()))?;
    scene.wait_captured()?;
    let report = late.connect(WEB4, 80, "exchange", &[])?;
    assert_eq!(
        (report.text.as_str(), report.end.as_str()),
        ("ping\n", "eof"),
        "{report:?}\n{}",
        scene.logs()
    );
    scene.change(|config| config.remove("pod-late"))?;
    wait_for("the pod is released", Duration::from_secs(5), || {
        let left = attached_to(late.cgroup().path())?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
}
