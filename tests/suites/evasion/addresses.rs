//! Addresses that mean the pod, the node, or nobody.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{App, JoinExt, Pod, Report, Scene, sockets, wait_for};

use super::script::{Script, assert_carried, assert_nothing, counted, link_local, ways, ways_at};

#[track_caller]
fn assert_echoed(report: &Report, what: &str) {
    assert_eq!(
        (report.text.as_str(), report.end.as_str()),
        ("ping\n", "eof"),
        "{what}: {report:?}"
    );
}

#[track_caller]
fn assert_unheard(report: &Report, what: &str) {
    let failed = report.error.is_some() || report.end == "reset";
    assert!(failed && report.text.is_empty(), "{what}: {report:?}");
}

#[test]
fn unspecified_addresses_mean_the_pod_itself() -> Result<()> {
    let scene = Scene::start("a")?;
    let own = App::serve(&scene.client, "echo", 8080, &[])?;
    let (any4, any6) = (
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    );
    for (to, args) in [(any4, vec![]), (any4, vec!["--mapped"]), (any6, vec![])] {
        let report = scene.client.connect(to, 8080, "exchange", &args)?;
        assert_echoed(&report, &format!("{to} {args:?}"));
    }
    let accepted = own.wait_events("accepted", 3)?;
    assert!(
        accepted
            .iter()
            .all(|event| event.peer.is_some_and(|peer| peer.ip().is_loopback())),
        "{accepted:?}"
    );
    assert_eq!(counted(&scene.a1, "connect_captured")?, 0.0);
    // The rest of 0.0.0.0/8 are ordinary addresses to the kernel: captured, and not carried.
    let zero = IpAddr::V4(Ipv4Addr::new(0, 1, 2, 3));
    assert_unheard(&scene.client.connect(zero, 8080, "exchange", &[])?, "0.1.2.3");
    assert_eq!(counted(&scene.a1, "connect_captured")?, 1.0);
    Ok(())
}

fn own_addresses(scene: &Scene) -> Result<Vec<String>> {
    let answer = scene.a1.meshctl(&["bpf"])?;
    let pods = answer["pods"].as_array().context("no pods")?.clone();
    let own = scene.client.ip4().to_string();
    let lists = pods.iter().filter_map(|pod| pod["addresses"].as_array());
    let texts = |list: &Vec<serde_json::Value>| -> Vec<String> {
        list.iter().filter_map(|a| Some(a.as_str()?.to_owned())).collect()
    };
    lists
        .map(texts)
        .find(|list| list.contains(&own))
        .context("the pod is not shown")
}

#[test]
fn an_address_that_the_pod_gains_becomes_its_own_and_one_it_loses_does_not_stay() -> Result<()> {
    let scene = Scene::start("a")?;
    let own = App::serve(&scene.client, "echo", 8080, &[])?;
    let second: [IpAddr; 2] = ["198.18.1.200".parse()?, "2001:db8:1::c8".parse()?];
    let with_length = |ip: &IpAddr| format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 });
    for ip in &second {
        let address = with_length(ip);
        let mut add = vec!["address", "add", &address, "dev", "eth0"];
        if ip.is_ipv6() {
            add.push("nodad");
        }
        scene.client.netns().ip(&add)?;
        scene
            .n1
            .netns()
            .ip(&["route", "add", &address, "dev", scene.client.veth()])?;
    }
    let wait = |present: bool| {
        wait_for("the pod's addresses are followed", Duration::from_secs(3), || {
            let own = own_addresses(&scene)?;
            if second.iter().all(|ip| own.contains(&ip.to_string()) == present) {
                return Ok(());
            }
            bail!("{own:?}")
        })
    };
    wait(true)?;
    for (n, ip) in second.into_iter().enumerate() {
        let report = scene.client.connect(ip, 8080, "exchange", &[])?;
        assert_echoed(&report, &format!("{ip}"));
        let event = own.wait_events("accepted", n + 1)?.remove(n);
        assert_eq!(event.peer, report.local, "the client's very socket");
    }
    assert_eq!(counted(&scene.a1, "connect_captured")?, 0.0);
    // From off the pod an address that the configuration does not know is no way in.
    for ip in second {
        assert_unheard(
            &scene.visitor.connect(ip, 8080, "exchange", &[])?,
            &format!("visitor → {ip}"),
        );
    }
    for ip in &second {
        scene
            .client
            .netns()
            .ip(&["address", "delete", &with_length(ip), "dev", "eth0"])?;
    }
    wait(false)?;
    scene
        .client
        .connect(second[0], 8080, "exchange", &["--timeout", "500"])?;
    assert_eq!(
        counted(&scene.a1, "connect_captured")?,
        1.0,
        "somebody else's by now"
    );
    Ok(())
}

/// The ports of the agent's listeners in a pod, as `ss` shows them.
fn agent_listeners(pod: &Pod) -> Result<Vec<u16>> {
    let lines = sockets(pod.netns())?;
    let ports = lines
        .iter()
        .filter(|line| line.starts_with("LISTEN") && line.contains("127.0.0.1]:"))
        .filter_map(|line| line.split_whitespace().nth(3)?.rsplit(':').next()?.parse().ok());
    Ok(ports.collect())
}

#[test]
fn off_the_pod_only_application_ports_and_15008_answer_and_the_agents_listeners_serve_nobody_inside()
-> Result<()> {
    let scene = Scene::start("a")?;
    // Applications on the agent's ports are not reached either.
    let _shadowed = App::serve(&scene.client, "banner", 15006, &[])?;
    let _rewrite = App::serve(&scene.client, "banner", 15104, &[])?;
    let before = counted(&scene.a1, "dropped_agent_port")?;
    let ports = [15001, 15006, 15053, 15104, 15135, 15167];
    for port in ports {
        for ip in [scene.client.ip4(), scene.client.ip6()] {
            let report = scene.visitor.connect(ip, port, "await", &["--timeout", "1500"])?;
            assert!(
                !report.connected && report.text.is_empty(),
                "{ip}:{port}: {report:?}"
            );
        }
    }
    assert!(counted(&scene.a1, "dropped_agent_port")? - before >= 12.0);
    for port in [9, 15020, 15021, 33000] {
        let report = scene.visitor.connect(scene.client.ip4(), port, "exchange", &[])?;
        assert_unheard(&report, "a port nobody listens on");
    }
    let tunnel = scene
        .visitor
        .connect(scene.client.ip4(), 15008, "await", &["--timeout", "1500"])?;
    assert!(
        !tunnel.text.contains("ping") && tunnel.received < 64,
        "15008 answers with no more than a TLS alert: {tunnel:?}"
    );

    let listeners = agent_listeners(&scene.client)?;
    assert_eq!(listeners.len(), 6, "{listeners:?}");
    let refused = ("flag", "UNKNOWN_FLOW");
    for port in listeners {
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), scene.client.ip4()] {
            let report = scene
                .client
                .connect(ip, port, "exchange", &["--timeout", "1500"])?;
            assert!(report.text.is_empty(), "{ip}:{port}: {report:?}");
        }
    }
    wait_for("the refusals are counted", Duration::from_secs(3), || {
        let metrics = scene.a1.metrics()?;
        let count = metrics.sum("mesh_agent_connection_failures_total", &[refused]);
        if count >= 2.0 {
            return Ok(());
        }
        bail!("{}", metrics.show("mesh_agent_connection_failures"))
    })?;
    for port in [15001, 15008, 15053, 15135] {
        let report = scene
            .client
            .connect(scene.client.ip4(), port, "exchange", &["--timeout", "1500"])?;
        assert_unheard(&report, "an agent port from inside, where nobody listens");
    }
    Ok(())
}

#[test]
fn metadata_addresses_are_reached_through_the_agent_from_the_pods_own_address() -> Result<()> {
    let scene = Scene::start("a")?;
    let node = scene.n1.netns();
    let metadata: [IpAddr; 2] = ["169.254.169.254".parse()?, "fd00:ec2::254".parse()?];
    node.ip(&["address", "add", "169.254.169.254/32", "dev", "lo"])?;
    node.ip(&["address", "add", "fd00:ec2::254/128", "dev", "lo", "nodad"])?;
    let cgroup = scene.n1.cgroup().child("metadata")?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-testapp"));
    command.in_cgroup(&cgroup)?.in_netns(node)?;
    let server = App::serve_with(&scene.client, command, "echo", 80, &[])?;
    for (n, (to, from)) in metadata
        .into_iter()
        .zip([scene.client.ip4(), scene.client.ip6()])
        .enumerate()
    {
        let report = scene.client.connect(to, 80, "exchange", &[])?;
        assert_echoed(&report, &format!("{to}\n{}", scene.logs()));
        assert_eq!(report.peer.map(|peer| peer.ip()), Some(to));
        let event = server.wait_events("accepted", n + 1)?.remove(n);
        assert_eq!(event.peer.map(|peer| peer.ip()), Some(from), "{event:?}");
    }
    assert_eq!(counted(&scene.a1, "connect_captured")?, 2.0);
    Ok(())
}

#[test]
fn ipv6_link_local_addresses_pass_and_are_counted_and_are_no_way_into_a_pod() -> Result<()> {
    let scene = Scene::start("a")?;
    let _own = App::serve(&scene.client, "echo", 8080, &[])?;
    let cgroup = scene.n1.cgroup().child("server")?;
    let mut server = Script::start_at(&scene, scene.n1.netns(), &cgroup, &["serve", "9100"])?;
    server.wait("listening", 1)?;
    let gate = link_local(scene.n1.netns(), scene.client.veth())?;
    let report = ways(&scene.client, &["dial", &format!("{gate}%eth0"), "9100"])?;
    assert_carried(&report, "out of the pod");
    assert_eq!(counted(&scene.a1, "connect_passed_link_local")?, 1.0);
    assert_eq!(counted(&scene.a1, "connect_captured")?, 0.0);
    let pod = format!(
        "{}%{}",
        link_local(scene.client.netns(), "eth0")?,
        scene.client.veth()
    );
    let report = ways_at(
        scene.n1.netns(),
        &cgroup,
        &["dial", &pod, "8080", "--timeout", "2"],
    )?;
    assert_nothing(&report, "into the pod");
    Ok(())
}
