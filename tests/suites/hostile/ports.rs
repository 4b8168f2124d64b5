//! Half-open, slow and senseless clients on every port that the agent listens on.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{App, Place, Scene, hostile_client, peer_client, sockets, wait_for};
use serde_json::Value;

use super::neighbours::{MIB, Neighbour, beside, bystander, limits, visitor};

/// The scene with two clients and two workloads that must notice nothing of what `attack` does.
fn attacked(attack: impl FnOnce(&Scene) -> Result<()> + Send) -> Result<()> {
    let scene = Scene::start("u")?;
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
            to: other.ip4(),
            port: 8080,
        },
    ];
    // A thousand sockets, each with a read buffer and what TLS takes.
    beside(
        &scene,
        &neighbours,
        1000 * limits::CONNECTION + limits::WORK,
        || attack(&scene),
    )
}

fn tunnel(scene: &Scene) -> String {
    format!("{}:15008", scene.far.ip4())
}

/// A new connection of another client through a tunnel of its own: its handshake must find a turn.
fn a_new_client_gets_through(scene: &Scene) -> Result<()> {
    let leaf = visitor(scene)?;
    let authority = format!("{}:8080", scene.far.ip4());
    let report = peer_client(
        &scene.visitor,
        Some(&leaf),
        &tunnel(scene),
        &["--authority", &authority],
    )?;
    ensure!(
        report["streams"][0]["text"] == "ping",
        "{report:#}\n{}",
        scene.logs()
    );
    Ok(())
}

fn closed(report: &Value) -> u64 {
    report["closed"].as_u64().unwrap_or(0) + report["refused"].as_u64().unwrap_or(0)
}

#[test]
fn slow_handshakes_take_their_own_turns_and_nobody_elses() -> Result<()> {
    attacked(|scene| {
        let stranger = scene.n2.pod("outside", "slow")?;
        let leaf = visitor(scene)?;
        let args = ["--count", "600", "--seconds", "13"];
        std::thread::scope(|scope| {
            let slow = scope.spawn(|| {
                hostile_client(
                    Place::Pod(&stranger),
                    Some(&leaf),
                    "slow-handshakes",
                    &tunnel(scene),
                    &args,
                )
            });
            // While they are under way, others' handshakes find turns.
            for _ in 0..5 {
                std::thread::sleep(Duration::from_secs(1));
                a_new_client_gets_through(scene)?;
            }
            let report = slow.join().expect("no panic")?;
            ensure!(closed(&report) == 600, "all are given up in time: {report:#}");
            Ok(())
        })?;
        let metrics = scene.a2().metrics()?;
        let failed = |reason| {
            metrics.sum(
                "mesh_agent_handshakes_total",
                &[("role", "server"), ("reason", reason)],
            )
        };
        // Two workers, 128 turns each for one address.
        ensure!(
            (1.0..=256.0).contains(&failed("handshake_timeout"))
                && failed("client_handshake_budget") >= 344.0,
            "{}",
            metrics.show("mesh_agent_handshakes")
        );
        Ok(())
    })
}

#[test]
fn garbage_silence_and_resets_on_the_tunnel_port_are_closed_and_counted() -> Result<()> {
    attacked(|scene| {
        let place = Place::Pod(&scene.visitor);
        let garbage = hostile_client(
            place,
            None,
            "garbage",
            &tunnel(scene),
            &["--count", "200", "--seconds", "3"],
        )?;
        ensure!(closed(&garbage) == 200, "{garbage:#}");
        let resets = hostile_client(
            place,
            None,
            "reset-after-open",
            &tunnel(scene),
            &["--count", "1000"],
        )?;
        ensure!(resets["refused"] == 0, "{resets:#}");
        let silent = hostile_client(
            place,
            None,
            "silent",
            &tunnel(scene),
            &["--count", "100", "--seconds", "12"],
        )?;
        ensure!(closed(&silent) == 100, "{silent:#}");
        for args in [&["--tls12"][..], &["--alpn", "http/1.1"], &["--alpn", ""]] {
            let report = peer_client(&scene.visitor, Some(&visitor(scene)?), &tunnel(scene), args)?;
            ensure!(report["streams"][0]["status"].is_null(), "{args:?}: {report:#}");
        }
        let report = peer_client(&scene.visitor, None, &tunnel(scene), &["--timeout", "3"])?;
        ensure!(
            report["streams"][0]["status"].is_null(),
            "no certificate: {report:#}"
        );
        let metrics = scene.a2().metrics()?;
        for (reason, least) in [("tls", 200.0), ("handshake_timeout", 100.0)] {
            let labels = [("role", "server"), ("result", "failure"), ("reason", reason)];
            let n = metrics.sum("mesh_agent_handshakes_total", &labels);
            ensure!(n >= least, "{reason}: {}", metrics.show("mesh_agent_handshakes"));
        }
        a_new_client_gets_through(scene)
    })
}

#[test]
fn half_open_clients_leave_room_for_whole_ones() -> Result<()> {
    attacked(|scene| {
        // SYNs from addresses that lead nowhere: the SYN-ACK is never answered, nor refused.
        let pod = scene.n2.pod("outside", "half")?;
        scene
            .n2
            .netns()
            .ip(&["route", "add", "blackhole", "198.18.2.192/26"])?;
        for to in [tunnel(scene), format!("{}:8080", scene.far.ip4())] {
            hostile_client(Place::Pod(&pod), None, "syns", &to, &["--count", "5000"])?;
            let half = sockets(scene.far.netns())?
                .into_iter()
                .filter(|line| line.starts_with("SYN-RECV"))
                .count();
            ensure!(
                half > 0,
                "no connection to {to} is half-open: the attack did not arrive"
            );
            for _ in 0..3 {
                a_new_client_gets_through(scene)?;
            }
        }
        Ok(())
    })
}

#[test]
fn plaintext_garbage_and_direct_connections_to_rewrite_ports_reach_nothing() -> Result<()> {
    attacked(|scene| {
        // To a port where nobody listens: closed. From inside the pod, past capture, to ports of the agent: no hand-off, refused.
        let dead = format!("{}:9999", scene.far.ip4());
        let report = hostile_client(
            Place::Pod(&scene.visitor),
            None,
            "garbage",
            &dead,
            &["--count", "100", "--seconds", "2"],
        )?;
        ensure!(closed(&report) == 100, "{report:#}");
        for port in [15001, 15006, 15104, 15150] {
            let to = format!("{}:{port}", scene.far.ip4());
            let report = hostile_client(
                Place::Pod(&scene.far),
                None,
                "garbage",
                &to,
                &["--count", "50", "--seconds", "1"],
            )?;
            ensure!(closed(&report) == 50, "{port}: {report:#}");
        }
        // Captured connections that say nothing, or nonsense, to somebody who never answers.
        let silent = format!("{}:8080", scene.visitor.ip4());
        let _stall = App::serve(&scene.visitor, "stall", 8080, &[])?;
        let report = hostile_client(
            Place::Pod(&scene.client),
            None,
            "garbage",
            &silent,
            &["--count", "200", "--seconds", "2"],
        )?;
        ensure!(report["opened"] == 200, "{report:#}");
        Ok(())
    })
}

#[test]
fn metrics_and_readiness_answer_beside_thousands_of_slow_clients() -> Result<()> {
    attacked(|scene| {
        for (port, server) in [("15020", "metrics"), ("15021", "readiness")] {
            let to = format!("127.0.0.1:{port}");
            for attack in ["silent", "slow-request", "huge-request", "garbage"] {
                let args = ["--count", "1500", "--seconds", "3"];
                std::thread::scope(|scope| {
                    let slow =
                        scope.spawn(|| hostile_client(Place::Node(&scene.n2), None, attack, &to, &args));
                    for _ in 0..5 {
                        std::thread::sleep(Duration::from_millis(500));
                        scene
                            .a2()
                            .metrics()
                            .with_context(|| format!("{attack} on {port}"))?;
                        let (ready, why) = scene
                            .a2()
                            .ready()
                            .with_context(|| format!("{attack} on {port}"))?;
                        ensure!(ready, "{attack}: {why}");
                    }
                    slow.join().expect("no panic")
                })?;
            }
            let cut = scene
                .a2()
                .metrics()?
                .sum("mesh_agent_http_connections_cut_total", &[("server", server)]);
            ensure!(cut >= 1000.0, "{server}: {cut}");
        }
        descriptors_are_given_back(scene)
    })
}

#[test]
fn the_admin_socket_answers_beside_thousands_of_slow_clients() -> Result<()> {
    attacked(|scene| {
        let path = scene.a2().admin_socket().to_string_lossy().into_owned();
        for attack in ["silent", "slow-request", "huge-request", "garbage"] {
            let args = ["--count", "1500", "--seconds", "2"];
            std::thread::scope(|scope| {
                let slow = scope.spawn(|| hostile_client(Place::Node(&scene.n2), None, attack, &path, &args));
                for _ in 0..3 {
                    std::thread::sleep(Duration::from_millis(500));
                    scene
                        .a2()
                        .meshctl(&["status"])
                        .with_context(|| attack.to_owned())?;
                }
                slow.join().expect("no panic")
            })?;
        }
        let cut = scene
            .a2()
            .metrics()?
            .sum("mesh_agent_http_connections_cut_total", &[("server", "admin")]);
        ensure!(cut >= 1000.0, "{cut}");
        descriptors_are_given_back(scene)
    })
}

/// The descriptors of the second agent are back to what pods and servers need.
fn descriptors_are_given_back(scene: &Scene) -> Result<()> {
    let path = format!("/proc/{}/fd", scene.a2().pid());
    wait_for("descriptors are given back", Duration::from_secs(8), || {
        let open = std::fs::read_dir(&path)?.count();
        ensure!(open < 400, "{open} descriptors are open");
        Ok(())
    })?;
    ensure!(limits::CONNECTION < MIB);
    Ok(())
}
