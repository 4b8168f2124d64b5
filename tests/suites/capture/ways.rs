//! The ways between pods: families, addresses, services, nodes; and the names both ends see.

use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use mesh_tests::harness::{App, NEAR4, OWN4, OWN6, Pod, Report, Scene, WEB4, WEB6};

/// Exchanges a text and checks that it came back whole, and what the client sees.
fn exchange(scene: &Scene, from: &Pod, to: IpAddr, port: u16, args: &[&str]) -> Result<Report> {
    let mut all = vec!["--text", "there and back"];
    all.extend(args);
    let report = from.connect(to, port, "exchange", &all)?;
    assert_eq!(
        (report.text.as_str(), report.end.as_str()),
        ("there and back", "eof"),
        "{} → {to}:{port} {args:?}: {report:?}\n{}",
        from.name(),
        scene.logs()
    );
    Ok(report)
}

#[test]
fn a_pod_reaches_pods_of_its_node_and_of_another_in_both_families() -> Result<()> {
    let scene = Scene::start("w")?;
    let _near = App::serve(&scene.near, "echo", 8080, &[])?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    for to in [
        scene.near.ip4(),
        scene.near.ip6(),
        scene.far.ip4(),
        scene.far.ip6(),
    ] {
        exchange(&scene, &scene.client, to, 8080, &[])?;
        if to.is_ipv4() {
            exchange(&scene, &scene.client, to, 8080, &["--mapped"])?;
        }
    }
    let metrics = scene.a2().metrics()?;
    let carried = metrics.sum(
        "istio_tcp_connections_opened_total",
        &[("connection_security_policy", "mutual_tls")],
    );
    assert_eq!(carried, 3.0, "{}", metrics.show("istio_tcp"));
    Ok(())
}

#[test]
fn a_service_address_leads_to_its_pod_in_both_families_and_from_v4_mapped_sockets() -> Result<()> {
    let scene = Scene::start("w")?;
    let near = App::serve(&scene.near, "echo", 8080, &[])?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    exchange(&scene, &scene.client, WEB4, 80, &[])?;
    exchange(&scene, &scene.client, WEB6, 80, &[])?;
    exchange(&scene, &scene.client, WEB4, 80, &["--mapped"])?;
    exchange(&scene, &scene.client, NEAR4, 80, &[])?;
    assert_eq!(far.wait_events("accepted", 3)?.len(), 3);
    assert_eq!(near.wait_events("accepted", 1)?.len(), 1);
    Ok(())
}

#[test]
fn a_service_port_that_does_not_exist_and_a_port_nobody_listens_on_are_failures_at_once() -> Result<()> {
    let scene = Scene::start("w")?;
    for (to, port) in [(WEB4, 81), (scene.far.ip4(), 8080), (scene.near.ip6(), 8080)] {
        let report = scene.client.connect(to, port, "exchange", &[])?;
        let failed = report.error.is_some() || report.end == "reset";
        assert!(failed && report.text.is_empty(), "{to}:{port}: {report:?}");
        assert!(
            report.millis < 3000,
            "{to}:{port}: refused only after a time-out: {report:?}"
        );
    }
    Ok(())
}

#[test]
fn a_pod_that_is_its_own_services_endpoint_reaches_itself() -> Result<()> {
    let scene = Scene::start("w")?;
    let own = App::serve(&scene.client, "echo", 8080, &[])?;
    for to in [OWN4, OWN6] {
        let report = exchange(&scene, &scene.client, to, 80, &[])?;
        assert_eq!(report.peer, Some(SocketAddr::new(to, 80)));
    }
    own.wait_events("closed", 2)?;
    Ok(())
}

#[test]
fn both_ends_see_the_addresses_they_would_see_without_a_mesh() -> Result<()> {
    let scene = Scene::start("w")?;
    let near = App::serve(&scene.near, "echo", 8080, &[])?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let (client4, client6) = (scene.client.ip4(), scene.client.ip6());
    let cases = [
        (&near, scene.near.ip4(), scene.near.ip4(), 8080, client4),
        (&near, scene.near.ip6(), scene.near.ip6(), 8080, client6),
        (&far, scene.far.ip4(), scene.far.ip4(), 8080, client4),
        (&far, scene.far.ip6(), scene.far.ip6(), 8080, client6),
        (&far, WEB4, scene.far.ip4(), 80, client4),
        (&far, WEB6, scene.far.ip6(), 80, client6),
    ];
    for (server, asked, pod, port, client) in cases {
        let before = server.events_of("accepted").len();
        let report = exchange(&scene, &scene.client, asked, port, &[])?;
        assert_eq!(
            report.peer,
            Some(SocketAddr::new(asked, port)),
            "the client's getpeername()"
        );
        assert_eq!(
            report.local.map(|local| local.ip()),
            Some(client),
            "the client's getsockname()"
        );
        let event = server.wait_events("accepted", before + 1)?.remove(before);
        assert_eq!(
            event.peer.map(|peer| peer.ip()),
            Some(client),
            "the server's accept() for {asked}: {event:?}"
        );
        assert_eq!(
            event.peer_name, event.peer,
            "the server's getpeername() for {asked}"
        );
        assert_eq!(
            event.local,
            Some(SocketAddr::new(pod, 8080)),
            "the server's getsockname() for {asked}"
        );
    }
    Ok(())
}

#[test]
fn the_names_stay_true_on_connections_that_idle() -> Result<()> {
    let scene = Scene::start("w")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let args = ["--count", "50", "--seconds", "2"];
    let report = scene.client.connect(WEB4, 80, "idle", &args)?;
    assert_eq!(
        (report.ok, report.error.as_deref()),
        (50, None),
        "{report:?}\n{}",
        scene.logs()
    );
    assert_eq!(
        report.peer,
        Some(SocketAddr::new(WEB4, 80)),
        "getpeername() of the client"
    );
    assert_eq!(
        report.local.map(|local| local.ip()),
        Some(scene.client.ip4()),
        "getsockname() of the client"
    );
    Ok(())
}
