//! The harness itself, without any agent: what the other suites stand on must hold.

use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use mesh_tests::harness::{App, Capture, PeerServer, TestCa, World, cgroup2_mount, peer_client, run};

#[test]
fn pods_of_two_nodes_reach_each_other_in_both_families_and_a_capture_sees_it() -> Result<()> {
    let world = World::new("hs")?;
    let (a, b) = (world.node("n1")?, world.node("n2")?);
    let (client, near, far) = (a.pod("t", "client")?, a.pod("t", "near")?, b.pod("t", "far")?);
    let _servers = [
        App::serve(&near, "echo", 8080, &[])?,
        App::serve(&far, "echo", 8080, &[])?,
    ];
    let capture = Capture::start(&world, world.fabric(), "br0")?;
    for ip in [near.ip4(), near.ip6(), far.ip4(), far.ip6()] {
        let report = client.connect(ip, 8080, "exchange", &["--text", "canary-of-the-harness"])?;
        assert_eq!(
            (report.text.as_str(), report.end.as_str()),
            ("canary-of-the-harness", "eof"),
            "{ip}: {report:?}"
        );
        assert_eq!(report.peer.map(|peer| peer.ip()), Some(ip));
    }
    let captured = capture.finish()?;
    assert!(
        captured.contains(b"canary-of-the-harness"),
        "an unprotected canary must be seen"
    );
    let segments = captured.segments();
    for ip in [far.ip4(), far.ip6()] {
        assert!(
            segments
                .iter()
                .any(|s| s.to.ip() == ip && s.payload == b"canary-of-the-harness"),
            "{segments:?}"
        );
    }
    Ok(())
}

#[test]
fn bulk_is_byte_exact_and_resets_arrive_as_resets() -> Result<()> {
    let world = World::new("hb")?;
    let node = world.node("n1")?;
    let (client, server) = (node.pod("t", "client")?, node.pod("t", "server")?);
    let bulk = App::serve(&server, "bulk", 9000, &["--bytes", "16777216"])?;
    let report = client.connect(server.ip4(), 9000, "bulk", &["--bytes", "16777216"])?;
    assert_eq!(
        (report.sent, report.received, report.end.as_str()),
        (16 << 20, 16 << 20, "eof"),
        "{report:?}"
    );
    assert_eq!(bulk.wait_events("closed", 1)?[0].received, 16 << 20);
    let echo = App::serve(&server, "echo", 9001, &[])?;
    client.connect(server.ip6(), 9001, "reset", &[])?;
    assert_eq!(echo.wait_events("closed", 1)?[0].end, "reset");
    let report = client.connect(server.ip4(), 9002, "exchange", &[])?;
    assert_eq!(report.error.as_deref(), Some("connect: refused"));
    Ok(())
}

#[test]
fn a_world_leaves_nothing_behind_even_with_programs_running_in_it() -> Result<()> {
    let world = World::new("hl")?;
    let prefix = world.prefix().to_owned();
    let dir = world.dir().to_owned();
    let node = world.node("n1")?;
    let pod = node.pod("t", "sleeper")?;
    let mut sleeper = pod.command("sleep")?;
    let mut child = sleeper.arg("600").spawn()?;
    let cgroup = cgroup2_mount()?.join(&prefix);
    assert!(cgroup.join("n1/sleeper").exists());
    drop((world, node, pod));
    assert!(!child.wait()?.success(), "what still ran was killed");
    assert!(!cgroup.exists() && !dir.exists());
    let names = run(Command::new("ip").args(["netns", "list"]), Duration::from_secs(5))?.success()?;
    assert!(!names.contains(&prefix), "{names}");
    Ok(())
}

#[test]
fn the_python_peers_speak_hbone_with_each_other_and_believe_only_their_roots() -> Result<()> {
    let world = World::new("hp")?;
    let node = world.node("n1")?;
    let (client, server) = (node.pod("t", "client")?, node.pod("t", "server")?);
    let ca = TestCa::stranger()?;
    let other = TestCa::stranger()?;
    let certs = world.dir().join("certs");
    let id = "spiffe://td/ns/t/sa/client";
    let peer = PeerServer::start(
        &server,
        &ca.leaf(&certs, "server", &["spiffe://td/ns/t/sa/server"])?,
        &[],
    )?;
    let to = format!("{}:15008", server.ip4());
    let authority = format!("{}:80", server.ip4());
    let good = ca.leaf(&certs, "client", &[id])?;
    let report = peer_client(
        &client,
        Some(&good),
        &to,
        &["--authority", &authority, "--resume", "--ping"],
    )?;
    assert_eq!(report["streams"][0]["status"], "200", "{report}");
    assert_eq!(report["streams"][0]["text"], "ping", "{report}");
    assert_eq!(report["streams"][0]["end"], "eof", "{report}");
    assert_eq!(report["pong"], true, "{report}");
    assert_eq!(report["tls"]["uris"][0], "spiffe://td/ns/t/sa/server", "{report}");
    assert_eq!(report["second"]["tls"]["resumed"], true, "{report}");
    assert_eq!(peer.wait_events("stream", 1)?[0]["uris"][0], id);

    let bulk = [
        "--authority",
        &authority,
        "--send-bytes",
        "40000000",
        "--streams",
        "3",
    ];
    let report = peer_client(&client, Some(&good), &to, &bulk)?;
    for stream in report["streams"].as_array().expect("streams") {
        assert_eq!(
            (&stream["received"], &stream["end"]),
            (&40_000_000.into(), &"eof".into()),
            "{stream}"
        );
    }

    let bad = other.leaf_trusting(&ca, &certs, "bad", &[id])?;
    for leaf in [Some(&bad), None] {
        let report = peer_client(&client, leaf, &to, &["--authority", &authority])?;
        assert_eq!(report["stage"], "tls-client-done", "{report}");
        assert!(report["error"].is_string(), "{report}");
    }
    Ok(())
}
