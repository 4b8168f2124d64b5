//! Readers that stall, by the hundred: nobody else waits for them, and no more is held than their windows.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, MESH, PeerServer, Pod, Scene, id, peer_client, resident, sockets};

use super::neighbours::{MIB, Neighbour, beside, bystander, limits, visitor};

/// How many.
const STALLED: u64 = 200;
/// What they may cost an agent: what is held for the workload in all, and what each has unsent below that.
const BUDGET: u64 =
    limits::BUFFERED + STALLED * limits::UNSENT + 2 * STALLED * limits::CONNECTION + limits::WORK;

/// `mode` of the client application towards `port`, by the hundred, while new connections between the same two pods, and others, go on.
fn stalled(mode: &str, app: &str) -> Result<()> {
    let scene = Scene::start("w")?;
    let _stalling = App::serve(&scene.far, app, 9090, &[])?;
    let _echo = App::serve(&scene.far, "echo", 8080, &[])?;
    let (other, _app) = bystander(&scene)?;
    let neighbours = [
        Neighbour {
            from: &scene.client,
            to: scene.far.ip4(),
            port: 8080,
        },
        Neighbour {
            from: &scene.near,
            to: scene.far.ip4(),
            port: 8080,
        },
        Neighbour {
            from: &scene.near,
            to: other.ip4(),
            port: 8080,
        },
    ];
    beside(&scene, &neighbours, BUDGET, || {
        let report = hold(&scene.client, mode, scene.far.ip4(), &scene)?;
        println!("{mode}: {report:?}");
        Ok(())
    })
}

fn hold(from: &Pod, mode: &str, to: std::net::IpAddr, scene: &Scene) -> Result<u64> {
    let count = STALLED.to_string();
    let args = ["--count", &count, "--seconds", "6", "--timeout", "20000"];
    let report = from.connect_within(Duration::from_secs(50), to, 9090, mode, &args)?;
    ensure!(
        (report.ok, report.failed) == (STALLED, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    Ok(report.sent)
}

#[test]
fn two_hundred_clients_that_never_read_hold_up_nobody() -> Result<()> {
    stalled("hold", "pour")
}

#[test]
fn two_hundred_servers_that_never_read_hold_up_nobody() -> Result<()> {
    stalled("press", "stall")
}

#[test]
fn two_hundred_streams_that_an_independent_server_never_reads_hold_up_nobody() -> Result<()> {
    let scene = Scene::with("w", false, |agent| agent)?;
    let leaf = scene
        .ca()?
        .leaf(&scene.world.dir().join("certs"), "far", &[&id(MESH, "far")])?;
    let windows = ["--stream-window", "4194304", "--connection-window", "16777216"];
    let mut args = vec!["--stall-port", "9090"];
    args.extend(windows);
    let _peer = PeerServer::start(&scene.far, &leaf, &args)?;
    let _echo = App::serve(&scene.client, "echo", 8081, &[])?;
    let neighbours = [
        Neighbour {
            from: &scene.client,
            to: scene.far.ip4(),
            port: 8080,
        },
        Neighbour {
            from: &scene.near,
            to: scene.client.ip4(),
            port: 8081,
        },
    ];
    beside(&scene, &neighbours, BUDGET, || {
        let sent = hold(&scene.client, "press", scene.far.ip4(), &scene)?;
        // The peer's windows fill: 4 MiB for each stream, in all no less than one connection's.
        ensure!(sent > 16 * MIB, "only {sent} bytes went out");
        Ok(())
    })
}

#[test]
fn an_independent_client_that_never_reads_holds_up_nobody() -> Result<()> {
    let scene = Scene::start("w")?;
    let _pour = App::serve(&scene.far, "pour", 9090, &[])?;
    let _stall = App::serve(&scene.far, "stall", 9191, &[])?;
    let _echo = App::serve(&scene.far, "echo", 8080, &[])?;
    let (other, _app) = bystander(&scene)?;
    let leaf = visitor(&scene)?;
    let neighbours = [
        Neighbour {
            from: &scene.client,
            to: scene.far.ip4(),
            port: 8080,
        },
        Neighbour {
            from: &scene.near,
            to: other.ip4(),
            port: 8080,
        },
    ];
    let to = format!("{}:15008", scene.far.ip4());
    beside(&scene, &neighbours, BUDGET, || {
        for port in [9090, 9191] {
            let authority = format!("{}:{port}", scene.far.ip4());
            let echo = format!("{}:8080", scene.far.ip4());
            // Four connections of 50 streams: all 200 at a time. None of them may hinder a fifth connection of the same pod.
            let args = [
                "--flood-streams",
                "50",
                "--flood-authority",
                &authority,
                "--flood-bytes",
                "1310720",
                "--authority",
                &echo,
                "--stream-window",
                "4194304",
                "--connection-window",
                "16777216",
                "--timeout",
                "7",
                "--unread",
            ];
            std::thread::scope(|scope| {
                let running: Vec<_> = (0..4)
                    .map(|_| scope.spawn(|| peer_client(&scene.visitor, Some(&leaf), &to, &args)))
                    .collect();
                std::thread::sleep(Duration::from_secs(3));
                let report = peer_client(&scene.visitor, Some(&leaf), &to, &["--authority", &echo])?;
                ensure!(
                    report["streams"][0]["text"] == "ping",
                    "{report:#}\n{}",
                    scene.logs()
                );
                for one in running {
                    one.join().expect("no panic")?;
                }
                Ok(())
            })?;
        }
        Ok(())
    })
}

#[test]
fn ten_thousand_streams_over_time_leave_nothing_behind() -> Result<()> {
    let scene = Scene::start("w")?;
    let _echo = App::serve(&scene.far, "echo", 8080, &[])?;
    let many = |count: &str| -> Result<()> {
        let args = ["--count", count, "--parallel", "4", "--timeout", "20000"];
        let limit = Duration::from_secs(90);
        let report = scene
            .client
            .connect_within(limit, scene.far.ip4(), 8080, "many", &args)?;
        ensure!(
            report.failed == 0 && report.ok > 0,
            "{report:?}\n{}",
            scene.logs()
        );
        Ok(())
    };
    // The first of them fill caches, and grow tables to the size that they keep.
    many("500")?;
    let before: Vec<u64> = scene.agents().map(|a| resident(a.pid())).collect::<Result<_>>()?;
    many("2500")?;
    for (agent, before) in scene.agents().zip(before) {
        let after = resident(agent.pid())?;
        // A hundred bytes kept of each stream would be 1 MB; the allocator may keep some of what it has had.
        ensure!(
            after <= before + 8 * MIB,
            "{} KiB → {} KiB",
            before >> 10,
            after >> 10
        );
        let left = agent.meshctl(&["connections"])?;
        ensure!(
            left["connections"].as_array().is_some_and(Vec::is_empty),
            "{left:#}"
        );
    }
    for pod in [&scene.client, &scene.far] {
        let forgotten: Vec<_> = sockets(pod.netns())?
            .into_iter()
            .filter(|line| line.starts_with("CLOSE-WAIT"))
            .collect();
        ensure!(forgotten.is_empty(), "{forgotten:?}");
    }
    Ok(())
}
