//! The agent as client of servers with a good certificate and bad manners.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{App, Leaf, MESH, PeerServer, Scene, WEB4, id};

use super::neighbours::{MIB, Neighbour, beside, cut, limits};

/// The scene without an agent on n2: whatever answers on `far`'s port 15008 is ours.
fn scene() -> Result<(Scene, Leaf)> {
    let scene = Scene::with("z", false, |agent| agent)?;
    let leaf = scene
        .ca()?
        .leaf(&scene.world.dir().join("certs"), "far", &[&id(MESH, "far")])?;
    Ok((scene, leaf))
}

/// What the neighbours of `client` do meanwhile: another client of the same node, to another workload there, and `client` itself with
/// somebody outside the mesh.
fn neighbours(scene: &Scene) -> Result<(Vec<Neighbour<'_>>, Vec<App>)> {
    let apps = vec![
        App::serve(&scene.client, "echo", 8080, &[])?,
        App::serve(&scene.visitor, "echo", 8080, &[])?,
    ];
    let neighbours = vec![
        Neighbour {
            from: &scene.near,
            to: scene.client.ip4(),
            port: 8080,
        },
        Neighbour {
            from: &scene.client,
            to: scene.visitor.ip4(),
            port: 8080,
        },
    ];
    Ok((neighbours, apps))
}

/// Lets each attack meet one connection of an application; it must end with a reset, and the tunnel be cut for one of the reasons.
fn each_is_cut(attacks: &[(&str, &[&str])]) -> Result<()> {
    let (scene, leaf) = scene()?;
    let (neighbours, _apps) = neighbours(&scene)?;
    beside(&scene, &neighbours, limits::WORK + 16 * MIB, || {
        for (attack, reasons) in attacks {
            let count = || {
                reasons
                    .iter()
                    .map(|reason| cut(&scene.a1, "client", reason))
                    .sum::<Result<f64>>()
            };
            let before = count()?;
            let _peer = PeerServer::hostile(&scene.far, &leaf, attack)?;
            let report = scene.client.connect(WEB4, 80, "await", &["--timeout", "20000"])?;
            ensure!(
                report.end == "reset" && count()? > before,
                "{attack}: {report:?}\n{}\n{}",
                scene.a1.metrics()?.show("mesh_agent_tunnels"),
                scene.logs()
            );
        }
        Ok(())
    })
}

#[test]
fn floods_from_a_server_are_cut() -> Result<()> {
    each_is_cut(&[
        ("ping", &["frame_flood"]),
        ("settings", &["frame_flood"]),
        ("unknown", &["frame_flood"]),
        ("big-unknown", &["frame_too_large"]),
        ("goaways", &["frame_flood"]),
        ("empty-data", &["enhance_your_calm"]),
    ])
}

#[test]
fn broken_frames_from_a_server_are_cut() -> Result<()> {
    each_is_cut(&[
        ("reset-idle", &["protocol_error"]),
        ("goaways-growing", &["protocol_error"]),
        (
            "continuation",
            &["enhance_your_calm", "compression_error", "protocol_error"],
        ),
        ("header-bomb", &["enhance_your_calm"]),
        ("push", &["protocol_error"]),
        ("window-overflow", &["flow_control_error"]),
        ("window-zero", &["protocol_error"]),
        ("data-on-idle", &["protocol_error"]),
        ("data-before-headers", &["protocol_error"]),
        ("big-frame", &["frame_size_error"]),
    ])
}

#[test]
fn a_flood_of_resets_ends_the_stream_and_then_the_tunnel() -> Result<()> {
    let (scene, leaf) = scene()?;
    let (neighbours, _apps) = neighbours(&scene)?;
    beside(&scene, &neighbours, limits::WORK, || {
        let peer = PeerServer::hostile(&scene.far, &leaf, "resets")?;
        let report = scene.client.connect(WEB4, 80, "await", &[])?;
        ensure!(report.end == "reset", "{report:?}\n{}", scene.logs());
        peer.wait_events("closed", 1)?;
        ensure!(
            cut(&scene.a1, "client", "frame_flood")? == 1.0,
            "{}",
            scene.logs()
        );
        Ok(())
    })
}

#[test]
fn a_server_that_takes_no_streams_is_not_asked_for_ever() -> Result<()> {
    let (scene, leaf) = scene()?;
    let (neighbours, _apps) = neighbours(&scene)?;
    beside(&scene, &neighbours, limits::WORK, || {
        for attack in ["goaway", "no-streams", "garbage", "informational"] {
            let peer = PeerServer::hostile(&scene.far, &leaf, attack)?;
            let report = scene.client.connect(WEB4, 80, "await", &["--timeout", "20000"])?;
            ensure!(report.end == "reset", "{attack}: {report:?}\n{}", scene.logs());
            let dials = peer.events("handshake").len();
            ensure!(
                (1..=8).contains(&dials),
                "{attack}: {dials} dials for one connection"
            );
        }
        Ok(())
    })
}

#[test]
fn a_server_that_says_nothing_costs_its_clients_a_bounded_wait() -> Result<()> {
    let (scene, leaf) = scene()?;
    let (neighbours, _apps) = neighbours(&scene)?;
    beside(&scene, &neighbours, limits::WORK, || {
        let _peer = PeerServer::hostile(&scene.far, &leaf, "no-settings")?;
        let waiting: Vec<_> = (0..20)
            .map(|_| {
                scene
                    .client
                    .connect_in_background(WEB4, 80, "await", &["--timeout", "25000"])
            })
            .collect::<Result<_>>()?;
        let mut reset = 0;
        for one in waiting {
            let report = one.report(Duration::from_secs(30))?;
            reset += usize::from(report.end == "reset");
        }
        // The first stream goes out before the server's SETTINGS must be there; the others wait for them.
        ensure!(reset >= 19, "{reset} of 20\n{}", scene.logs());
        Ok(())
    })
}

#[test]
fn a_goaway_in_the_middle_of_transfers_costs_none_of_them() -> Result<()> {
    let (scene, leaf) = scene()?;
    let app = App::serve(&scene.far, "bulk", 8080, &["--bytes", "8388608"])?;
    let (neighbours, _apps) = neighbours(&scene)?;
    beside(
        &scene,
        &neighbours,
        limits::WORK + 16 * limits::STREAM_WINDOW,
        || {
            let peer = PeerServer::start(
                &scene.far,
                &leaf,
                &["--mode", "upstream", "--goaway-after", "3", "--max-streams", "8"],
            )?;
            let args = ["--bytes", "8388608", "--timeout", "20000"];
            for _ in 0..3 {
                let running: Vec<_> = (0..4)
                    .map(|_| scene.client.connect_in_background(WEB4, 80, "bulk", &args))
                    .collect::<Result<_>>()?;
                for one in running {
                    let report = one.report(Duration::from_secs(45))?;
                    ensure!(
                        (report.error.as_deref(), report.received) == (None, 8 << 20),
                        "{report:?}\n{}",
                        scene.logs()
                    );
                }
            }
            ensure!(peer.events("goaway").len() >= 2 && peer.events("handshake").len() >= 2);
            app.wait_events("closed", 12).context("all transfers are whole")?;
            Ok(())
        },
    )
}
