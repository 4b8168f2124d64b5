//! The agent as client, against the independent server: whom it believes, what it sends, how it copes with what it meets.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::harness::{App, Leaf, MESH, PeerServer, Scene, TestCa, WEB4, id};

/// The scene without an agent on n2: whatever answers on `far`'s port 15008 is ours.
fn scene() -> Result<Scene> {
    Scene::with("k", false, |agent| agent)
}

fn far_leaf(scene: &Scene) -> Result<Leaf> {
    scene
        .ca()?
        .leaf(&scene.world.dir().join("certs"), "far", &[&id(MESH, "far")])
}

fn assert_ping(scene: &Scene) -> Result<()> {
    let report = scene.client.connect(WEB4, 80, "exchange", &[])?;
    assert_eq!(
        (report.text.as_str(), report.end.as_str()),
        ("ping\n", "eof"),
        "{report:?}\n{}",
        scene.logs()
    );
    Ok(())
}

#[test]
fn the_agent_speaks_hbone_as_the_protocol_has_it() -> Result<()> {
    let scene = scene()?;
    let peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &[])?;
    assert_ping(&scene)?;
    let handshake = &peer.wait_events("handshake", 1)?[0];
    assert_eq!(
        handshake["uris"],
        serde_json::json!([id(MESH, "client")]),
        "{handshake:#}"
    );
    assert_eq!(
        (&handshake["version"], &handshake["alpn"]),
        (&"TLSv1.3".into(), &"h2".into())
    );
    assert_eq!(
        handshake["peer"],
        scene.client.ip4().to_string(),
        "the dial leaves from the pod's own address"
    );
    let stream = &peer.wait_events("stream", 1)?[0];
    let headers = stream["headers"].as_object().context("headers")?;
    assert_eq!(headers[":method"], "CONNECT");
    assert_eq!(
        headers[":authority"],
        format!("{}:8080", scene.far.ip4()),
        "the pod's address, not the service's"
    );
    assert!(
        !headers.contains_key(":scheme") && !headers.contains_key(":path"),
        "{headers:?}"
    );
    let report = scene.client.connect(scene.far.ip6(), 8080, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}");
    let streams = peer.wait_events("stream", 2)?;
    assert_eq!(
        streams[1]["headers"][":authority"],
        format!("[{}]:8080", scene.far.ip6())
    );
    assert_eq!(streams[1]["peer"], scene.client.ip6().to_string());
    Ok(())
}

#[test]
fn a_server_that_is_not_the_expected_workload_gets_no_stream() -> Result<()> {
    let scene = scene()?;
    let ca = scene.ca()?;
    let stranger = TestCa::stranger()?;
    let certs = scene.world.dir().join("certs");
    let good = id(MESH, "far");
    let bad = [
        (
            "the right chain and another workload's id",
            ca.leaf(&certs, "wrong", &[&id(MESH, "near")])?,
        ),
        (
            "another trust domain",
            ca.leaf(&certs, "td", &["spiffe://elsewhere.org/ns/mesh/sa/far"])?,
        ),
        ("an expired certificate", ca.expired(&certs, "expired", &[&good])?),
        (
            "a self-signed certificate",
            ca.self_signed(&certs, "self", &[&good])?,
        ),
        (
            "two URI SANs",
            ca.leaf(&certs, "two", &[&good, &id(MESH, "near")])?,
        ),
        ("no URI SAN", ca.leaf(&certs, "none", &[])?),
        (
            "a stranger's CA",
            stranger.leaf_trusting(&ca, &certs, "stranger", &[&good])?,
        ),
    ];
    for (n, (what, leaf)) in bad.iter().enumerate() {
        let peer = PeerServer::start(&scene.far, leaf, &[])?;
        let report = scene
            .client
            .connect(WEB4, 80, "exchange", &["--text", "canary-for-an-impostor"])?;
        assert!(
            report.text.is_empty(),
            "a server with {what} was believed: {report:?}"
        );
        assert!(
            report.error.is_some() || report.end == "reset",
            "{what}: no clear end: {report:?}"
        );
        peer.wait_events("handshake", 1)?;
        assert!(
            peer.events("stream").is_empty(),
            "{what}: {:?}",
            peer.events("stream")
        );
        let metrics = scene.a1.metrics()?;
        let failed = metrics.sum(
            "mesh_agent_handshakes_total",
            &[("role", "client"), ("result", "failure")],
        );
        assert!(
            failed >= (n + 1) as f64,
            "{what}: {}",
            metrics.show("mesh_agent_handshakes")
        );
    }
    let _peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &[])?;
    assert_ping(&scene)
}

#[test]
fn nobody_on_the_tunnel_port_and_refusals_are_resets_and_never_plaintext() -> Result<()> {
    let scene = scene()?;
    // The application listens in plaintext; without a tunnel it must not be reached.
    let plain = App::serve(&scene.far, "echo", 8080, &[])?;
    let report = scene
        .client
        .connect(WEB4, 80, "exchange", &["--timeout", "20000"])?;
    assert!(
        report.text.is_empty() && (report.error.is_some() || report.end == "reset"),
        "{report:?}"
    );
    for status in ["401", "503", "400"] {
        let peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &["--status", status])?;
        let report = scene.client.connect(WEB4, 80, "await", &[])?;
        assert_eq!(report.end, "reset", "{status}: {report:?}\n{}", scene.logs());
        peer.wait_events("stream", 1)?;
    }
    assert!(plain.events_of("accepted").is_empty());
    Ok(())
}

#[test]
fn banners_half_closes_and_resets_cross_to_the_independent_server() -> Result<()> {
    let scene = scene()?;
    {
        let _banner = PeerServer::start(
            &scene.far,
            &far_leaf(&scene)?,
            &["--mode", "banner", "--text", "220 ready\n"],
        )?;
        let report = scene.client.connect(WEB4, 80, "listen", &["--text", "HELO"])?;
        assert_eq!(
            (report.text.as_str(), report.end.as_str()),
            ("220 ready\nHELO", "eof"),
            "{report:?}\n{}",
            scene.logs()
        );
    }
    {
        let _reset = PeerServer::start(&scene.far, &far_leaf(&scene)?, &["--mode", "reset"])?;
        let report = scene.client.connect(WEB4, 80, "await", &[])?;
        assert_eq!(
            report.end, "reset",
            "RST_STREAM reaches the application as a reset: {report:?}"
        );
    }
    let peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &[])?;
    scene.client.connect(WEB4, 80, "reset", &[])?;
    assert_eq!(
        peer.wait_events("end", 1)?[0]["end"],
        "reset",
        "the application's reset reaches the peer as RST_STREAM"
    );
    Ok(())
}

#[test]
fn bulk_is_byte_exact_against_the_peers_windows() -> Result<()> {
    let scene = scene()?;
    let app = App::serve(&scene.far, "bulk", 8080, &["--bytes", "67108864"])?;
    let _peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &["--mode", "upstream"])?;
    let args = ["--bytes", "67108864", "--timeout", "20000"];
    let report = scene
        .client
        .connect_within(Duration::from_secs(60), WEB4, 80, "bulk", &args)?;
    assert_eq!(
        (report.error.as_deref(), report.sent, report.received),
        (None, 64 << 20, 64 << 20),
        "{report:?}\n{}",
        scene.logs()
    );
    assert_eq!(app.wait_events("closed", 1)?[0].received, 64 << 20);
    Ok(())
}

#[test]
fn streams_that_the_peer_never_reads_do_not_stop_new_connections() -> Result<()> {
    let scene = scene()?;
    let args = [
        "--stall-port",
        "9000",
        "--stream-window",
        "4194304",
        "--connection-window",
        "16777216",
    ];
    let _peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &args)?;
    let mut floods = Vec::new();
    for _ in 0..8 {
        floods.push(
            scene
                .client
                .connect_in_background(scene.far.ip4(), 9000, "flood", &[])?,
        );
    }
    std::thread::sleep(Duration::from_millis(1500));
    for _ in 0..10 {
        let start = Instant::now();
        assert_ping(&scene)?;
        assert!(start.elapsed() < Duration::from_secs(3));
    }
    for flood in floods {
        let report = flood.report(Duration::from_secs(20))?;
        assert_eq!(report.end, "timeout", "{report:?}");
    }
    Ok(())
}

#[test]
fn a_goaway_and_a_stream_limit_cost_no_connection() -> Result<()> {
    let scene = scene()?;
    let peer = PeerServer::start(
        &scene.far,
        &far_leaf(&scene)?,
        &["--goaway-after", "5", "--max-streams", "8"],
    )?;
    let report = scene
        .client
        .connect(WEB4, 80, "many", &["--count", "20", "--parallel", "3"])?;
    assert_eq!(
        (report.ok, report.failed),
        (60, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    let mut per_tunnel = BTreeMap::<u64, usize>::new();
    for stream in peer.events("stream") {
        *per_tunnel
            .entry(stream["connection"].as_u64().context("a number")?)
            .or_default() += 1;
    }
    // A few may be under way while the GOAWAY is; no more are opened once it is there.
    assert!(per_tunnel.len() >= 4, "{per_tunnel:?}");
    assert!(
        per_tunnel.values().all(|streams| *streams <= 15),
        "{per_tunnel:?}"
    );
    let resumed = peer
        .events("handshake")
        .iter()
        .filter(|one| one["resumed"] == true)
        .count();
    assert!(
        resumed > 0,
        "later connections resume the session: {:?}",
        peer.events("handshake")
    );
    Ok(())
}

#[test]
fn a_stream_that_the_peer_did_not_process_costs_no_connection() -> Result<()> {
    let scene = scene()?;
    for (n, refuse) in ["goaway", "stream"].into_iter().enumerate() {
        let args = ["--refuse", refuse, "--answer-delay", "0.2"];
        let peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &args)?;
        assert_ping(&scene)?;
        let refused = &peer.wait_events("refused", 1)?[0];
        assert_eq!(
            refused["early"], "ping\n",
            "the client's data was there: {refused}"
        );
        let streams = peer.wait_events("stream", 2)?;
        assert_ne!(
            streams[0]["connection"], streams[1]["connection"],
            "{refuse}: not on the same connection"
        );
        let metrics = scene.a1.metrics()?;
        assert_eq!(
            metrics.sum("mesh_agent_stream_retries_total", &[]),
            (n + 1) as f64,
            "{refuse}: {}",
            metrics.show("mesh_agent_stream_retries_total")
        );
    }
    // A connection that ends without a word may have been processed: it is reset, and its data is not seen twice.
    let args = ["--refuse", "close", "--answer-delay", "0.2"];
    let peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &args)?;
    let report = scene.client.connect(WEB4, 80, "await", &[])?;
    assert_eq!(report.end, "reset", "{report:?}");
    assert_eq!(peer.events("stream").len(), 1, "{:?}", peer.events("stream"));
    Ok(())
}

#[test]
fn more_connections_than_the_peers_stream_limit_are_carried_by_more_tunnels() -> Result<()> {
    let scene = scene()?;
    let peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &["--max-streams", "10"])?;
    let report = scene
        .client
        .connect(WEB4, 80, "idle", &["--count", "50", "--seconds", "1"])?;
    assert_eq!(
        (report.ok, report.error.as_deref()),
        (50, None),
        "{report:?}\n{}",
        scene.logs()
    );
    let tunnels = peer.events("handshake").len();
    assert!(
        (5..=50).contains(&tunnels),
        "{tunnels} tunnels for 50 streams at 10 each"
    );
    Ok(())
}

#[test]
fn tunnels_are_pooled() -> Result<()> {
    let scene = scene()?;
    let peer = PeerServer::start(&scene.far, &far_leaf(&scene)?, &[])?;
    let report = scene.client.connect(WEB4, 80, "many", &["--count", "100"])?;
    assert_eq!((report.ok, report.failed), (100, 0), "{report:?}");
    let tunnels = peer.events("handshake").len();
    assert!(
        tunnels <= 8,
        "{tunnels} tunnels for 100 connections one after another"
    );
    // Another pod of the same node is another identity and gets a tunnel of its own.
    let report = scene.near.connect(WEB4, 80, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}");
    let last = peer.events("handshake").pop().context("a handshake")?;
    assert_eq!(last["uris"], serde_json::json!([id(MESH, "near")]));
    Ok(())
}
