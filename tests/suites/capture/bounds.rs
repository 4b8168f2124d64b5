//! What capture must leave alone, what it must not miss, and that it lasts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, KernelObjects, Scene, WEB4, map_entries, run, sockets, wait_for};
use nix::sys::signal::Signal;

#[test]
fn loopback_and_the_pods_own_addresses_are_left_alone() -> Result<()> {
    let scene = Scene::start("b")?;
    let own = App::serve(&scene.client, "echo", 8080, &[])?;
    let before = scene
        .a1
        .metrics()?
        .sum("mesh_agent_bpf_events_total", &[("event", "connect_captured")]);
    let (ip4, ip6) = (scene.client.ip4(), scene.client.ip6());
    let (lo4, lo6) = (IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST));
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let cases = [(lo4, lo4), (lo6, lo6), (ip4, ip4), (ip6, ip6), (any, lo4)];
    for (n, (to, seen)) in cases.into_iter().enumerate() {
        let report = scene.client.connect(to, 8080, "exchange", &[])?;
        assert_eq!(
            (report.text.as_str(), report.end.as_str()),
            ("ping\n", "eof"),
            "{to}: {report:?}"
        );
        let event = own.wait_events("accepted", n + 1)?.remove(n);
        assert_eq!(
            event.peer, report.local,
            "{to}: the server sees the client's very socket"
        );
        assert_eq!(event.peer.map(|peer| peer.ip()), Some(seen), "{to}");
    }
    let after = scene.a1.metrics()?;
    assert_eq!(
        after.sum("mesh_agent_bpf_events_total", &[("event", "connect_captured")]),
        before
    );
    let opened = after.sum("istio_tcp_connections_opened_total", &[]);
    assert_eq!(opened, 0.0, "{}", after.show("istio_tcp"));
    Ok(())
}

#[test]
fn processes_in_cgroups_below_the_pods_are_captured_too() -> Result<()> {
    let scene = Scene::start("b")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let outer = scene.client.cgroup().child("container")?;
    let inner = outer.child("session")?;
    let mut command = scene
        .client
        .command_in(env!("CARGO_BIN_EXE_mesh-testapp"), &inner)?;
    command.args(["connect", &format!("{WEB4}:80"), "exchange"]);
    let output = mesh_tests::harness::run(&mut command, Duration::from_secs(15))?.success()?;
    let report: mesh_tests::harness::Report = serde_json::from_str(&output)?;
    assert_eq!(
        (report.text.as_str(), report.end.as_str()),
        ("ping\n", "eof"),
        "{report:?}"
    );
    Ok(())
}

#[test]
fn a_destination_outside_the_mesh_is_reached_in_plaintext_from_the_pods_own_address() -> Result<()> {
    let scene = Scene::start("b")?;
    let outside = App::serve(&scene.visitor, "echo", 8080, &[])?;
    for (n, (to, from)) in [
        (scene.visitor.ip4(), scene.client.ip4()),
        (scene.visitor.ip6(), scene.client.ip6()),
    ]
    .into_iter()
    .enumerate()
    {
        let report = scene.client.connect(to, 8080, "exchange", &[])?;
        assert_eq!(
            (report.text.as_str(), report.end.as_str()),
            ("ping\n", "eof"),
            "{report:?}\n{}",
            scene.logs()
        );
        assert_eq!(report.peer.map(|peer| peer.ip()), Some(to));
        let event = outside.wait_events("accepted", n + 1)?.remove(n);
        assert_eq!(event.peer.map(|peer| peer.ip()), Some(from), "{event:?}");
    }
    let nobody = scene.client.connect(scene.visitor.ip4(), 9, "exchange", &[])?;
    assert!(nobody.error.is_some() || nobody.end == "reset", "{nobody:?}");
    Ok(())
}

#[test]
fn a_pod_outside_the_mesh_is_not_captured_and_reaches_permissive_pods_as_itself() -> Result<()> {
    let scene = Scene::start("b")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    for (n, (to, from)) in [
        (scene.far.ip4(), scene.visitor.ip4()),
        (scene.far.ip6(), scene.visitor.ip6()),
    ]
    .into_iter()
    .enumerate()
    {
        let report = scene.visitor.connect(to, 8080, "exchange", &[])?;
        assert_eq!(
            (report.text.as_str(), report.end.as_str()),
            ("ping\n", "eof"),
            "{report:?}\n{}",
            scene.logs()
        );
        assert_eq!(report.local.map(|local| local.ip()), Some(from));
        let event = far.wait_events("accepted", n + 1)?.remove(n);
        assert_eq!(
            event.peer, report.local,
            "the application sees the visitor's own socket: {event:?}"
        );
    }
    Ok(())
}

#[test]
fn five_thousand_connections_one_after_another_leave_no_entry_and_no_socket() -> Result<()> {
    let mut scene = Scene::start("b")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let limit = Duration::from_secs(120);
    let report =
        scene
            .client
            .connect_within(limit, WEB4, 80, "many", &["--count", "2500", "--parallel", "2"])?;
    assert_eq!(
        (report.ok, report.failed),
        (5000, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    assert!(far.events_of("accepted").len() == 5000);
    // Resets and refusals, too, must leave nothing.
    for _ in 0..20 {
        scene.client.connect(WEB4, 80, "reset", &[])?;
        scene.client.connect(WEB4, 81, "exchange", &[])?;
    }
    let pids = [
        scene.a1.proc().pid(),
        scene.a2.as_mut().expect("a second agent").proc().pid(),
    ];
    for pid in pids {
        let maps = KernelObjects::of(pid)?;
        for map in ["HANDOFF", "DELIVERIES"] {
            wait_for(&format!("{map} is empty"), Duration::from_secs(5), || {
                let entries = map_entries(map, &maps)?;
                if entries == 0 {
                    Ok(())
                } else {
                    anyhow::bail!("{entries} entries")
                }
            })?;
        }
    }
    // CLOSE-WAIT would be a socket that the agent forgot.
    for pod in [&scene.client, &scene.far] {
        let forgotten: Vec<_> = sockets(pod.netns())?
            .into_iter()
            .filter(|line| line.starts_with("CLOSE-WAIT"))
            .collect();
        assert!(forgotten.is_empty(), "{forgotten:?}");
    }
    Ok(())
}

/// Opens connections and resets each before anybody accepts it: twenty at once, twenty behind the end of their sending side, whose FIN is
/// acknowledged (tcp(7), TCP_INFO: FIN_WAIT2).
const RESET_EARLY: &str = "
import socket, struct, sys
for n in range(40):
    s = socket.create_connection((sys.argv[1], 80), 5)
    if n % 2:
        s.sendall(b'x')
        s.shutdown(socket.SHUT_WR)
        while s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 5:
            pass
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
    s.close()
";

#[test]
fn connections_that_are_reset_before_they_are_accepted_leave_no_hand_off() -> Result<()> {
    let mut scene = Scene::start("b")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let maps = KernelObjects::of(scene.a1.pid())?;
    // It holds its listeners and accepts nothing.
    scene.a1.proc().signal(Signal::SIGSTOP)?;
    let mut client = scene.client.command("python3")?;
    client.args(["-c", RESET_EARLY, &WEB4.to_string()]);
    let early = run(&mut client, Duration::from_secs(60)).and_then(|output| {
        output.success()?;
        map_entries("HANDOFF", &maps)
    });
    scene.a1.proc().signal(Signal::SIGCONT)?;
    // Those that ended first may have been done with all they wanted: the agent is to find their destination.
    assert_eq!(
        early?, 20,
        "the kernel forgets what is reset at once, and keeps what ended before"
    );
    let limit = Duration::from_secs(10);
    wait_for("the agent takes back what it does not carry", limit, || {
        let entries = map_entries("HANDOFF", &maps)?;
        ensure!(entries == 0, "{entries} hand-offs are left\n{}", scene.a1.log());
        Ok(())
    })?;
    assert_eq!(far.events_of("accepted").len(), 0, "nobody was left to be served");
    let report = scene.client.connect(WEB4, 80, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}\n{}", scene.logs());
    Ok(())
}

#[test]
fn agent_ports_of_a_pod_are_refused_from_outside_and_from_inside() -> Result<()> {
    let scene = Scene::start("b")?;
    for port in [15001, 15006, 15053, 15104, 15167] {
        for from in [&scene.visitor, &scene.client] {
            let report = from.connect(scene.far.ip4(), port, "exchange", &["--timeout", "3000"])?;
            assert!(
                report.text.is_empty() && (report.error.is_some() || report.end == "reset"),
                "{port}: {report:?}"
            );
        }
    }
    Ok(())
}
