//! Odd sockets: v4-mapped, TCP Fast Open, MPTCP, bound to a device.

use std::time::Duration;

use anyhow::{Result, bail};
use mesh_tests::harness::{App, MESH, Scene, WEB4, WEB6, wait_for};

use super::script::{Script, assert_carried, assert_nothing, assert_refused, counted, ways, ways_at};

#[test]
fn v4_mapped_sockets_are_captured_like_ipv4_ones_and_exempt_addresses_stay_exempt() -> Result<()> {
    let scene = Scene::start("s")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let _own = App::serve(&scene.client, "echo", 8080, &[])?;
    let _outside = App::serve(&scene.visitor, "echo", 8080, &[])?;
    for (to, port) in [
        (scene.far.ip4(), "8080"),
        (WEB4, "80"),
        (scene.visitor.ip4(), "8080"),
    ] {
        let report = ways(&scene.client, &["dial", &to.to_string(), port, "--mapped"])?;
        assert_carried(&report, &format!("{to}"));
        assert_eq!(report["peer"], format!("{to}:{port}"), "the name of {to}");
    }
    assert_eq!(counted(&scene.a1, "connect_captured")?, 3.0);
    for to in [
        scene.client.ip4().to_string(),
        "127.0.0.1".into(),
        "0.0.0.0".into(),
    ] {
        let report = ways(&scene.client, &["dial", &to, "8080", "--mapped"])?;
        assert_carried(&report, &to);
    }
    assert_eq!(
        counted(&scene.a1, "connect_captured")?,
        3.0,
        "the pod's own traffic"
    );
    Ok(())
}

#[test]
fn fast_open_clients_are_captured_with_and_without_a_cookie_under_true_names() -> Result<()> {
    let scene = Scene::start("s")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let ip4 = scene.client.ip4().to_string();
    // Clients only; clients that send data without a cookie; and all listeners, the agent's too, answer with cookies.
    for setting in ["1", "5", "1027"] {
        scene.client.netns().sysctl("ipv4/tcp_fastopen", setting)?;
        // Listeners take the setting up when they are made, and these are made anew for a changed pod.
        let mut spec = scene.client.spec();
        spec.service_account = format!("client-{setting}");
        let listeners = |log: &str| log.matches("captured anew after a change").count();
        let before = listeners(&scene.a1.log());
        scene.change(|config| config.pod(&spec))?;
        wait_for("new listeners", Duration::from_secs(5), || {
            if listeners(&scene.a1.log()) > before {
                return Ok(());
            }
            bail!("not yet")
        })?;
        for how in ["sendto", "connect"] {
            for (to, port) in [(WEB4, 80), (WEB6, 80), (scene.far.ip4(), 8080)] {
                let before = counted(&scene.a1, "connect_captured")?;
                let (address, asked) = (to.to_string(), port.to_string());
                let report = ways(
                    &scene.client,
                    &["dial", &address, &asked, "--fast-open", how, "--times", "4"],
                )?;
                let what = format!("tcp_fastopen={setting} {how} {to}: {report}\n{}", scene.logs());
                assert_carried(&report, &what);
                assert_eq!(
                    report["all"],
                    serde_json::json!(["ping", "ping", "ping", "ping"]),
                    "{what}"
                );
                let name = std::net::SocketAddr::new(to, port).to_string();
                assert_eq!(report["peer"], name, "{what}");
                if to.is_ipv4() {
                    let local = report["local"].as_str().unwrap_or_default();
                    assert!(local.starts_with(&format!("{ip4}:")), "{what}");
                }
                assert_eq!(counted(&scene.a1, "connect_captured")? - before, 4.0, "{what}");
                // The test is worth something only where data really went with the first packet.
                if setting == "1027" {
                    assert_eq!(report["fast"], true, "{what}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn a_server_with_fast_open_is_reached_by_fast_open_clients_in_and_outside_the_mesh() -> Result<()> {
    let scene = Scene::start("s")?;
    for pod in [&scene.client, &scene.visitor, &scene.far] {
        pod.netns().sysctl("ipv4/tcp_fastopen", "3")?;
    }
    let mut far = Script::start(&scene.far, &["serve", "8080", "--fast-open"])?;
    far.wait("listening", 1)?;
    for (n, from) in [&scene.client, &scene.visitor].into_iter().enumerate() {
        let to = scene.far.ip4().to_string();
        let args = ["dial", &to, "8080", "--fast-open", "sendto", "--times", "2"];
        let report = ways(from, &args)?;
        assert_carried(&report, from.name());
        let event = far.wait("accepted", n * 2 + 2)?.remove(n * 2 + 1);
        let peer = event["peer"].as_str().unwrap_or_default();
        assert!(peer.starts_with(&format!("{}:", from.ip4())), "{event}");
    }
    Ok(())
}

#[test]
fn mptcp_clients_are_captured_as_tcp_and_mptcp_servers_serve_with_true_names() -> Result<()> {
    let scene = Scene::start("s")?;
    let mut far = Script::start(&scene.far, &["serve", "8080", "--mptcp"])?;
    far.wait("listening", 1)?;
    let _outside = App::serve(&scene.visitor, "echo", 8080, &[])?;
    for (to, port) in [
        (WEB4, "80"),
        (scene.far.ip6(), "8080"),
        (scene.visitor.ip4(), "8080"),
    ] {
        let report = ways(&scene.client, &["dial", &to.to_string(), port, "--mptcp"])?;
        assert_carried(&report, &format!("an MPTCP client to {to}"));
    }
    assert_eq!(counted(&scene.a1, "connect_captured")?, 3.0);
    let metrics = scene.a2().metrics()?;
    let carried = metrics.sum(
        "istio_tcp_connections_opened_total",
        &[("connection_security_policy", "mutual_tls")],
    );
    assert_eq!(carried, 2.0, "{}", metrics.show("istio_tcp"));
    let mut seen = 2;
    for from in [&scene.client, &scene.visitor] {
        for (to, source) in [(scene.far.ip4(), from.ip4()), (scene.far.ip6(), from.ip6())] {
            let report = ways(from, &["dial", &to.to_string(), "8080"])?;
            assert_carried(&report, &format!("{} → {to}", from.name()));
            seen += 1;
            let event = far.wait("accepted", seen)?.remove(seen - 1);
            for field in ["peer", "peer_name"] {
                let name: std::net::SocketAddr = event[field].as_str().unwrap_or_default().parse()?;
                assert_eq!(name.ip(), source, "{field} of an MPTCP server: {event}");
            }
        }
    }
    // An MPTCP client outside the mesh speaks to it as well.
    let report = ways(
        &scene.visitor,
        &["dial", &scene.far.ip4().to_string(), "8080", "--mptcp"],
    )?;
    assert_carried(&report, "an MPTCP client outside the mesh");
    // Within the pod MPTCP is left alone.
    let mut own = Script::start(&scene.client, &["serve", "8080", "--mptcp"])?;
    own.wait("listening", 1)?;
    assert_carried(
        &ways(&scene.client, &["dial", "127.0.0.1", "8080", "--mptcp"])?,
        "MPTCP to loopback",
    );
    Ok(())
}

/// Joins the pod `client` to its node by a second device.
fn second_network(scene: &Scene) -> Result<()> {
    let (pod, node) = (scene.client.netns(), scene.n1.netns());
    // Two devices and forwarding would make it a router.
    pod.sysctl("ipv4/ip_forward", "0")?;
    pod.sysctl("ipv6/conf/all/forwarding", "0")?;
    node.ip(&[
        "link",
        "add",
        "second",
        "type",
        "veth",
        "peer",
        "name",
        "net1",
        "netns",
        pod.name(),
    ])?;
    node.ip(&["address", "add", "198.18.7.1/24", "dev", "second"])?;
    node.ip(&["address", "add", "2001:db8:7::1/64", "dev", "second", "nodad"])?;
    node.ip(&["link", "set", "second", "up"])?;
    pod.ip(&["address", "add", "198.18.7.2/24", "dev", "net1"])?;
    pod.ip(&["address", "add", "2001:db8:7::2/64", "dev", "net1", "nodad"])?;
    pod.ip(&["link", "set", "net1", "up"])
}

#[test]
fn sockets_bound_to_the_pods_device_are_captured_and_others_pass_but_never_to_the_mesh() -> Result<()> {
    let mut scene = Scene::start("s")?;
    second_network(&scene)?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let cgroup = scene.n1.cgroup().child("server")?;
    let mut outside = Script::start_at(&scene, scene.n1.netns(), &cgroup, &["serve", "9100"])?;
    outside.wait("listening", 1)?;
    let dial = |scene: &Scene, to: &str, port: &str, device: &str| {
        ways(
            &scene.client,
            &["dial", to, port, "--device", device, "--timeout", "3"],
        )
    };
    let (far4, far6) = (scene.far.ip4().to_string(), scene.far.ip6().to_string());
    let (web4, web6) = (WEB4.to_string(), WEB6.to_string());
    for (to, port) in [(&far4, "8080"), (&far6, "8080"), (&web4, "80"), (&web6, "80")] {
        let report = dial(&scene, to, port, "eth0")?;
        assert_carried(&report, &format!("bound to eth0, to {to}\n{}", scene.logs()));
    }
    assert_eq!(counted(&scene.a1, "connect_captured")?, 4.0);
    for (n, (to, source)) in [("198.18.7.1", "198.18.7.2"), ("2001:db8:7::1", "2001:db8:7::2")]
        .into_iter()
        .enumerate()
    {
        assert_carried(
            &dial(&scene, to, "9100", "net1")?,
            "bound to net1, to its network",
        );
        let event = outside.wait("accepted", n + 1)?.remove(n);
        let peer: std::net::SocketAddr = event["peer"].as_str().unwrap_or_default().parse()?;
        assert_eq!(peer.ip().to_string(), source, "it came straight: {event}");
    }
    assert_eq!(counted(&scene.a1, "connect_passed_device")?, 2.0);
    for (to, port) in [(&far4, "8080"), (&far6, "8080"), (&web4, "80"), (&web6, "80")] {
        assert_refused(
            &dial(&scene, to, port, "net1")?,
            &format!("bound to net1, to {to}"),
        );
        assert_refused(&dial(&scene, to, port, "lo")?, &format!("bound to lo, to {to}"));
    }
    assert_eq!(counted(&scene.a1, "connect_refused_device")?, 8.0);
    assert_eq!(counted(&scene.a1, "connect_captured")?, 4.0);
    // With the agent dead the kernel still knows who is enrolled.
    scene.a1.kill();
    assert_refused(
        &dial(&scene, &far4, "8080", "net1")?,
        "bound to net1, the agent dead",
    );
    assert_nothing(
        &dial(&scene, &far4, "8080", "eth0")?,
        "bound to eth0, the agent dead",
    );
    Ok(())
}

#[test]
fn who_is_enrolled_is_told_to_the_kernel_within_a_second_of_a_change() -> Result<()> {
    let scene = Scene::start("s")?;
    second_network(&scene)?;
    let outside = scene.visitor.ip4().to_string();
    let node = scene.n1.netns();
    // The visitor is reached over the second network.
    scene.client.netns().ip(&[
        "route",
        "add",
        &outside,
        "via",
        "198.18.7.1",
        "dev",
        "net1",
        "metric",
        "9",
    ])?;
    node.sysctl("ipv4/conf/all/rp_filter", "0")?;
    let _visitor = App::serve(&scene.visitor, "echo", 8080, &[])?;
    let cgroup = scene.client.cgroup();
    let dial = || {
        ways_at(
            scene.client.netns(),
            cgroup,
            &["dial", &outside, "8080", "--device", "net1", "--timeout", "3"],
        )
    };
    assert_carried(&dial()?, "to a pod that is not enrolled");
    let mut spec = scene.visitor.spec();
    spec.labels
        .push(("mesh-agent.io/dataplane".into(), "enabled".into()));
    scene.change(|config| config.pod(&spec))?;
    wait_for("the visitor counts as enrolled", Duration::from_secs(3), || {
        let report = dial()?;
        if report["error"] == "EPERM" {
            return Ok(());
        }
        bail!("{report}")
    })?;
    scene.change(|config| config.pod(&scene.visitor.spec()))?;
    wait_for(
        "the visitor does not count any more",
        Duration::from_secs(3),
        || {
            let report = dial()?;
            if report["text"] == "ping" {
                return Ok(());
            }
            bail!("{report}")
        },
    )?;
    // A service counts by who is behind it.
    scene.change(|config| config.service(MESH, "web", "nobody", &[WEB4, WEB6], &[("http", 80, 8080)]))?;
    wait_for("an empty service leads to nobody", Duration::from_secs(3), || {
        let args = ["dial", "198.19.0.10", "80", "--device", "net1", "--timeout", "1"];
        let report = ways(&scene.client, &args)?;
        if report["error"] != "EPERM" {
            return Ok(());
        }
        bail!("{report}")
    })
}
