//! Raw packets with forged sources, sent onto the pod's link from the node's side.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{Pod, Scene, wait_for};

use super::script::{Script, counted, link_local, mac, ways, ways_at};

/// Sends a SYN that says it comes from `source` to port 8080 of `pod`.
fn forge(scene: &Scene, pod: &Pod, source: &str, to: &str, more: &[&str]) -> Result<()> {
    let mac = mac(pod.netns(), "eth0")?;
    let mut args = vec!["raw", pod.veth(), &mac, source, to, "8080"];
    args.extend(more);
    ways_at(scene.n1.netns(), scene.n1.cgroup(), &args).map(drop)
}

/// An application that does all it can to take data early.
fn hasty_server(pod: &Pod) -> Result<(Script, serde_json::Value)> {
    pod.netns().sysctl("ipv4/tcp_fastopen", "3")?;
    let mut server = Script::start(pod, &["serve", "8080", "--fast-open", "--no-cookie"])?;
    let listening = server.wait("listening", 1)?.remove(0);
    Ok((server, listening))
}

#[test]
fn a_packet_with_a_forged_source_reaches_no_application_and_counts_as_no_connection() -> Result<()> {
    let scene = Scene::start("k")?;
    // The danger is real: outside the mesh, data of a single packet arrives.
    let (mut victim, listening) = hasty_server(&scene.visitor)?;
    assert_eq!(listening["refused"], serde_json::Value::Null);
    let own6 = scene.visitor.ip6().to_string();
    forge(&scene, &scene.visitor, &own6, &own6, &["--data", "forged"])?;
    let received = victim.wait("received", 1)?.remove(0);
    assert_eq!(received["text"], "forged");

    let (server, listening) = hasty_server(&scene.client)?;
    assert_eq!(
        listening["refused"], "EPERM",
        "an enrolled pod may not go without cookies"
    );
    assert_eq!(counted(&scene.a1, "fast_open_refused")?, 1.0);
    let event = wait_for("the refusal is told", Duration::from_secs(10), || {
        let answer = scene.a1.meshctl(&["bpf", "events"])?;
        let mut all = answer["events"].as_array().into_iter().flatten();
        all.find(|event| event["event"] == "fast_open_refused")
            .cloned()
            .with_context(|| format!("{answer:#}"))
    })?;
    assert_eq!(event["to"], "[::]:8080", "the port that it listens on: {event:#}");
    let workload = event["workload"].as_str().unwrap_or_default();
    assert!(workload.starts_with("mesh/client"), "{event:#}");
    // Nothing that might stop such packets before they reach the pod's sockets.
    for (key, value) in [("rp_filter", "0"), ("accept_local", "1"), ("route_localnet", "1")] {
        for device in ["all", "eth0"] {
            scene
                .client
                .netns()
                .sysctl(&format!("ipv4/conf/{device}/{key}"), value)?;
        }
    }
    let (own4, own6) = (scene.client.ip4().to_string(), scene.client.ip6().to_string());
    let local6 = link_local(scene.client.netns(), "eth0")?;
    let before = counted(&scene.a1, "lookup_passed")?;
    for (source, to) in [
        (own4.as_str(), own4.as_str()),
        ("127.0.0.1", &own4),
        ("127.0.0.2", &own4),
        (&own6, &own6),
        ("::1", &own6),
        (&local6, &own6),
    ] {
        for cookie in ["none", "ask", "forged"] {
            forge(
                &scene,
                &scene.client,
                source,
                to,
                &["--data", "forged", "--cookie", cookie],
            )?;
        }
    }
    let taken_for_own = counted(&scene.a1, "lookup_passed")? - before;
    assert!(
        taken_for_own >= 6.0,
        "the packets did not even arrive, so this proves nothing: {taken_for_own}"
    );
    // Somebody else's address is no better; that packet goes to the agent.
    let inbound = counted(&scene.a1, "steered_inbound")?;
    let near6 = scene.near.ip6().to_string();
    forge(&scene, &scene.client, &near6, &own6, &["--data", "forged"])?;
    wait_for("the agent is asked", Duration::from_secs(3), || {
        let now = counted(&scene.a1, "steered_inbound")?;
        if now > inbound { Ok(()) } else { bail!("{now}") }
    })?;
    std::thread::sleep(Duration::from_millis(500));
    for event in ["accepted", "received"] {
        let seen = server.events(event);
        assert!(seen.is_empty(), "a forged packet was believed: {seen:?}");
    }
    let metrics = scene.a1.metrics()?;
    let opened = metrics.sum("istio_tcp_connections_opened_total", &[]);
    assert_eq!(opened, 0.0, "{}", metrics.show("istio_tcp"));
    let captured = counted(&scene.a1, "connect_captured")?;
    assert_eq!(captured, 0.0);
    // The server is well and takes ordinary connections.
    let report = ways(&scene.visitor, &["dial", &own6, "8080"])?;
    super::script::assert_carried(&report, "an ordinary client");
    Ok(())
}

#[test]
fn other_options_of_sockets_pass_as_they_are() -> Result<()> {
    let scene = Scene::start("k")?;
    // A client may say that it needs no cookie, too; it is not allowed, as for servers.
    let far = scene.far.ip4().to_string();
    let report = ways(&scene.client, &["dial", &far, "8080", "--no-cookie"])?;
    assert_eq!(report["error"], "socket: EPERM", "{report}");
    // Options with values over a page are the kernel's to judge, not cut off by the hook.
    let mut command = scene.client.command("python3")?;
    command.args([
        "-c",
        "import socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_STREAM)\n\
         s.setsockopt(socket.IPPROTO_TCP, 13, b'cubic' + bytes(9000))\n\
         print(s.getsockopt(socket.IPPROTO_TCP, 13, 16).rstrip(bytes(1)).decode())",
    ]);
    let output = mesh_tests::harness::run(&mut command, Duration::from_secs(20))?;
    assert_eq!(output.stdout.trim(), "cubic", "{}", output.stderr);
    Ok(())
}

#[test]
fn a_namespace_that_believes_single_packets_is_not_enrolled_and_one_that_begins_to_is_reported() -> Result<()>
{
    let scene = Scene::start("k")?;
    let visitor = scene.visitor.netns();
    visitor.sysctl("ipv4/tcp_fastopen", "515")?;
    let mut spec = scene.visitor.spec();
    spec.labels
        .push(("mesh-agent.io/dataplane".into(), "enabled".into()));
    scene.change(|config| config.pod(&spec))?;
    let visitor_state = || -> Result<(String, String)> {
        let answer = scene.a1.meshctl(&["workloads"])?;
        let all = answer["workloads"].as_array().context("no list")?.clone();
        let entry = all
            .iter()
            .find(|w| w["name"] == "visitor")
            .context("no visitor")?;
        let text = |field: &str| entry[field].as_str().unwrap_or_default().to_owned();
        Ok((text("capture"), text("capture_reason")))
    };
    wait_for(
        "the refusal is shown",
        Duration::from_secs(5),
        || match visitor_state()? {
            (state, why) if state == "failed" && why.contains("tcp_fastopen") => Ok(()),
            other => bail!("{other:?}"),
        },
    )?;
    visitor.sysctl("ipv4/tcp_fastopen", "3")?;
    wait_for(
        "it is captured after all",
        Duration::from_secs(15),
        || match visitor_state()? {
            (state, _) if state == "captured" => Ok(()),
            other => bail!("{other:?}"),
        },
    )?;
    visitor.sysctl("ipv4/tcp_fastopen", "515")?;
    let output = scene.a1.meshctl_text(&["check"])?;
    let shown = output.stdout;
    assert!(
        shown.contains("tcp_fastopen has bit 0x200") && shown.contains("visitor"),
        "{shown}"
    );
    assert_eq!(output.status.code(), Some(8), "a check failed: {shown}");
    Ok(())
}
