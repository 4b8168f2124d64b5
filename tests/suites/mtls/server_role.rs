//! The agent as server, against the independent client: who is refused, what is answered, how streams behave.

use anyhow::{Context, Result};
use mesh_tests::harness::{App, Leaf, MESH, Scene, TestCa, id, peer_client};
use serde_json::Value;

/// Runs the client from the visitor's pod against `far`'s tunnel.
fn ask(scene: &Scene, leaf: Option<&Leaf>, args: &[&str]) -> Result<Value> {
    let authority = format!("{}:8080", scene.far.ip4());
    let mut all = args.to_vec();
    if !args.contains(&"--authority") {
        all.extend(["--authority", &authority]);
    }
    peer_client(&scene.visitor, leaf, &format!("{}:15008", scene.far.ip4()), &all)
}

fn visitor_leaf(scene: &Scene) -> Result<Leaf> {
    scene.ca()?.leaf(
        &scene.world.dir().join("certs"),
        "visitor",
        &[&id("outside", "visitor")],
    )
}

fn assert_echoed(report: &Value, scene: &Scene) {
    let stream = &report["streams"][0];
    assert_eq!(
        (&stream["status"], &stream["text"], &stream["end"]),
        (&"200".into(), &"ping".into(), &"eof".into()),
        "{report:#}\n{}",
        scene.logs()
    );
}

#[test]
fn a_peer_with_a_good_certificate_is_served_with_the_pods_identity_and_over_h2() -> Result<()> {
    let scene = Scene::start("v")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let report = ask(&scene, Some(&visitor_leaf(&scene)?), &["--ping"])?;
    assert_echoed(&report, &scene);
    assert_eq!(
        report["tls"]["uris"],
        serde_json::json!([id(MESH, "far")]),
        "exactly the addressed pod's identity"
    );
    assert_eq!(report["tls"]["version"], "TLSv1.3");
    assert_eq!(report["tls"]["alpn"], "h2");
    assert_eq!(report["pong"], true, "a PING is answered");
    let peer = far.wait_events("accepted", 1)?[0].peer.context("a peer")?;
    assert_eq!(
        peer.ip(),
        scene.visitor.ip4(),
        "the application sees the peer's real address"
    );
    Ok(())
}

#[test]
fn each_kind_of_bad_certificate_is_refused_before_any_stream() -> Result<()> {
    let scene = Scene::start("v")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let ca = scene.ca()?;
    let stranger = TestCa::stranger()?;
    let certs = scene.world.dir().join("certs");
    let good = id("outside", "visitor");
    let other = id(MESH, "client");
    let bad: Vec<(&str, Option<Leaf>)> = vec![
        (
            "of another trust domain",
            Some(ca.leaf(&certs, "td", &["spiffe://elsewhere.org/ns/outside/sa/visitor"])?),
        ),
        ("expired", Some(ca.expired(&certs, "expired", &[&good])?)),
        ("self-signed", Some(ca.self_signed(&certs, "self", &[&good])?)),
        (
            "with two URI SANs",
            Some(ca.leaf(&certs, "two", &[&good, &other])?),
        ),
        (
            "with two equal URI SANs",
            Some(ca.leaf(&certs, "twice", &[&good, &good])?),
        ),
        ("without a URI SAN", Some(ca.leaf(&certs, "none", &[])?)),
        (
            "with a URI that is no workload",
            Some(ca.leaf(&certs, "shape", &["spiffe://cluster.local/visitor"])?),
        ),
        (
            "of a stranger's CA",
            Some(stranger.leaf_trusting(&ca, &certs, "stranger", &[&good])?),
        ),
        ("missing", None),
    ];
    for (n, (what, leaf)) in bad.iter().enumerate() {
        let report = ask(&scene, leaf.as_ref(), &["--timeout", "5"])?;
        assert!(
            report["streams"][0]["status"].is_null(),
            "a certificate {what} was served: {report:#}"
        );
        assert!(
            report["error"].is_string(),
            "a certificate {what}: the end must be clear: {report:#}"
        );
        let metrics = scene.a2().metrics()?;
        let failed = metrics.sum(
            "mesh_agent_handshakes_total",
            &[("role", "server"), ("result", "failure")],
        );
        assert_eq!(
            failed,
            (n + 1) as f64,
            "after a certificate {what}: {}",
            metrics.show("mesh_agent_handshakes")
        );
    }
    assert!(far.events_of("accepted").is_empty());
    // With the right one the same client is served: it was the certificates.
    assert_echoed(&ask(&scene, Some(&visitor_leaf(&scene)?), &[])?, &scene);
    Ok(())
}

#[test]
fn only_tls_1_3_with_h2_is_spoken() -> Result<()> {
    let scene = Scene::start("v")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let leaf = visitor_leaf(&scene)?;
    for args in [&["--tls12"][..], &["--alpn", "http/1.1"], &["--alpn", ""]] {
        let report = ask(&scene, Some(&leaf), args)?;
        assert!(
            report["error"].is_string() && report["streams"][0]["status"].is_null(),
            "{args:?}: {report:#}"
        );
    }
    assert_echoed(&ask(&scene, Some(&leaf), &[])?, &scene);
    Ok(())
}

#[test]
fn an_authority_that_is_not_the_pod_behind_the_address_is_answered_400() -> Result<()> {
    let scene = Scene::start("v")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let near = App::serve(&scene.near, "echo", 8080, &[])?;
    let leaf = visitor_leaf(&scene)?;
    let wrong = [
        format!("{}:8080", scene.near.ip4()),
        format!("{}:8080", scene.visitor.ip4()),
        "127.0.0.1:8080".to_owned(),
        "[::1]:8080".to_owned(),
        "169.254.169.254:80".to_owned(),
        "0.0.0.0:8080".to_owned(),
        scene.far.ip4().to_string(),
        format!("{}:0", scene.far.ip4()),
        format!("{}:70000", scene.far.ip4()),
        "nonsense".to_owned(),
    ];
    for authority in &wrong {
        let report = ask(&scene, Some(&leaf), &["--authority", authority])?;
        assert_eq!(report["streams"][0]["status"], "400", "{authority}: {report:#}");
    }
    assert!(far.events_of("accepted").is_empty() && near.events_of("accepted").is_empty());
    Ok(())
}

#[test]
fn anything_but_connect_is_answered_400() -> Result<()> {
    let scene = Scene::start("v")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let leaf = visitor_leaf(&scene)?;
    for method in ["GET", "POST"] {
        let report = ask(&scene, Some(&leaf), &["--method", method])?;
        assert_eq!(report["streams"][0]["status"], "400", "{method}: {report:#}");
    }
    assert!(far.events_of("accepted").is_empty());
    Ok(())
}

#[test]
fn agent_ports_and_a_dead_upstream_are_answered_503() -> Result<()> {
    let scene = Scene::start("v")?;
    let leaf = visitor_leaf(&scene)?;
    for port in [15001, 15006, 15008, 9999] {
        let authority = format!("{}:{port}", scene.far.ip4());
        let report = ask(&scene, Some(&leaf), &["--authority", &authority])?;
        assert_eq!(
            report["streams"][0]["status"],
            "503",
            "{port}: {report:#}\n{}",
            scene.logs()
        );
    }
    Ok(())
}

#[test]
fn headers_from_a_peer_change_neither_its_identity_nor_its_address() -> Result<()> {
    let scene = Scene::start("v")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let args = [
        "--header",
        "forwarded=for=\"198.18.1.99:1\"",
        "--header",
        "baggage=k8s.namespace.name=mesh,service.name=client",
    ];
    let report = ask(&scene, Some(&visitor_leaf(&scene)?), &args)?;
    assert_echoed(&report, &scene);
    assert_eq!(
        far.wait_events("accepted", 1)?[0].peer.map(|peer| peer.ip()),
        Some(scene.visitor.ip4())
    );
    let log = scene.a2().log();
    assert!(
        log.contains(&id("outside", "visitor")) && !log.contains("198.18.1.99"),
        "{log}"
    );
    Ok(())
}

#[test]
fn a_hundred_streams_with_bulk_and_half_closes_share_one_connection() -> Result<()> {
    let scene = Scene::start("v")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let leaf = visitor_leaf(&scene)?;
    let args = ["--streams", "100", "--send-bytes", "300000", "--timeout", "40"];
    let report = ask(&scene, Some(&leaf), &args)?;
    let streams = report["streams"].as_array().context("streams")?;
    assert_eq!(streams.len(), 100);
    for stream in streams {
        assert_eq!(
            (&stream["received"], &stream["end"]),
            (&300_000.into(), &"eof".into()),
            "{stream}\n{}",
            scene.logs()
        );
    }
    let report = ask(
        &scene,
        Some(&leaf),
        &["--send-bytes", "50000000", "--timeout", "40"],
    )?;
    assert_eq!(report["streams"][0]["received"], 50_000_000, "{report:#}");
    Ok(())
}

#[test]
fn resets_cross_the_tunnel_in_both_directions() -> Result<()> {
    let scene = Scene::start("v")?;
    let echo = App::serve(&scene.far, "echo", 8080, &[])?;
    let _resetting = App::serve(&scene.far, "reset", 9090, &[])?;
    let leaf = visitor_leaf(&scene)?;
    ask(
        &scene,
        Some(&leaf),
        &["--no-end", "--reset-after", "4", "--hold", "1"],
    )?;
    assert_eq!(
        echo.wait_events("closed", 1)?[0].end,
        "reset",
        "RST_STREAM must reset the application's connection"
    );
    let authority = format!("{}:9090", scene.far.ip4());
    let report = ask(&scene, Some(&leaf), &["--authority", &authority, "--no-end"])?;
    assert_eq!(
        report["streams"][0]["end"], "reset",
        "a reset application must reset the stream: {report:#}"
    );
    Ok(())
}

#[test]
fn applications_that_stall_do_not_stop_the_other_streams_of_a_peer() -> Result<()> {
    let scene = Scene::start("v")?;
    let _echo = App::serve(&scene.far, "echo", 8080, &[])?;
    let _stalled = App::serve(&scene.far, "stall", 9090, &[])?;
    let stalled = format!("{}:9090", scene.far.ip4());
    let args = [
        "--flood-streams",
        "20",
        "--flood-authority",
        &stalled,
        "--flood-bytes",
        "67108864",
        "--timeout",
        "20",
    ];
    let report = ask(&scene, Some(&visitor_leaf(&scene)?), &args)?;
    assert_echoed(&report, &scene);
    for flooded in report["flooded"].as_array().context("flooded")? {
        assert!(
            flooded.as_u64().is_some_and(|bytes| bytes < 32 << 20),
            "backpressure reaches the peer: {report:#}"
        );
    }
    Ok(())
}

#[test]
fn a_second_handshake_resumes_the_session_of_the_first() -> Result<()> {
    let scene = Scene::start("v")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let report = ask(&scene, Some(&visitor_leaf(&scene)?), &["--resume"])?;
    assert_echoed(&report, &scene);
    assert_eq!(report["second"]["tls"]["resumed"], true, "{report:#}");
    assert_echoed(&report["second"], &scene);
    Ok(())
}

#[test]
fn an_alias_of_the_trust_domain_is_believed() -> Result<()> {
    let scene = Scene::with("v", true, |agent| {
        agent.arg("--trust-domain-aliases", "old.example")
    })?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let certs = scene.world.dir().join("certs");
    let ca = scene.ca()?;
    let alias = ca.leaf(&certs, "alias", &["spiffe://old.example/ns/outside/sa/visitor"])?;
    assert_echoed(&ask(&scene, Some(&alias), &[])?, &scene);
    let other = ca.leaf(&certs, "other", &["spiffe://new.example/ns/outside/sa/visitor"])?;
    let report = ask(&scene, Some(&other), &[])?;
    assert!(report["streams"][0]["status"].is_null(), "{report:#}");
    Ok(())
}
