//! The kubelet's probes where the kubelet was started by hand, in a cgroup above those of the pods, so that anybody there could be taken for
//! it: only the kubelet's own process passes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use mesh_tests::harness::{App, Kubelet, MESH, cgroup2_mount, wait_for};

use crate::stage::Stage;

/// Longer than the agent takes to look for a kubelet among all processes.
const FOUND: Duration = Duration::from_secs(40);

/// Declares port 8080.
const PROBES: &str = "    - name: app
      image: none
      ports: [{name: web, containerPort: 8080}]
      readinessProbe: {tcpSocket: {port: web}}
";

fn kubelet(stage: &Stage, cgroup: &Path) -> Result<Kubelet> {
    Kubelet::start(&stage.world, &stage.node, cgroup)
}

/// A node whose server is STRICT and declares a probe, and whose agent looks for the kubelet by itself.
fn stage() -> Result<Stage> {
    let stage = Stage::start(
        true,
        |agent, _| agent,
        |text| text.replace("    - name: app\n      image: none\n", PROBES),
    )?;
    stage.config.peer_authentication(MESH, "STRICT")?;
    stage.wait_workload("it is STRICT", |w| {
        w["mtls"] == "STRICT" && w["uncaptured"]["probe_ports"] == serde_json::json!([8080])
    })?;
    Ok(stage)
}

fn wait_check(stage: &Stage, level: &str, part: &str) -> Result<()> {
    wait_for("the check of probes", FOUND, || {
        let check = stage.check("kubelet probes")?;
        let said = check["detail"].as_str().unwrap_or_default();
        if check["level"] == level && said.contains(part) {
            Ok(())
        } else {
            bail!("expected {level} and {part:?}: {check:#}")
        }
    })
}

#[test]
fn a_kubelet_in_a_cgroup_above_the_pods_probes_them_and_nobody_else_there_passes_for_it() -> Result<()> {
    let stage = stage()?;
    let app = App::serve(&stage.server, "echo", 8080, &[])?;
    let other = App::serve(&stage.server, "echo", 8081, &[])?;
    let node = stage.node.cgroup();
    assert!(
        stage.server.cgroup().path().starts_with(node.path()),
        "the pods are below"
    );
    let mut real = kubelet(&stage, node.path())?;
    wait_check(&stage, "ok", &real.process())?;
    let (ip4, ip6) = (stage.server.ip4(), stage.server.ip6());
    for ip in [ip4, ip6] {
        let report = real.connect(ip, 8080, "")?;
        assert_eq!(report.text, "ping\n", "{ip}: {report:?}\n{}", stage.agent.log());
    }
    let seen = app.wait_events("accepted", 2)?;
    assert_eq!(stage.event("probes_passed")?, 2.0, "{seen:?}");

    assert!(!real.probe(ip4, 8081, "")?, "no probe declares this port");
    let elsewhere = format!("/run/netns/{}", stage.visitor.netns().name());
    assert!(
        !real.probe(ip4, 8080, &elsewhere)?,
        "the kubelet's process, in another namespace"
    );
    assert!(
        !real.probe(ip4, 8080, "child")?,
        "a program that the kubelet starts, of its name, in its cgroup"
    );
    let report = stage.connect_from(node, stage.node.netns(), ip4, 8080)?;
    assert!(
        report.text.is_empty(),
        "another process of that cgroup: {report:?}"
    );
    let host_network = node.child("kubepods/pod1/c1")?;
    for ip in [ip4, ip6] {
        let report = stage.connect_from(&host_network, stage.node.netns(), ip, 8080)?;
        assert!(
            report.text.is_empty(),
            "a host-network container below: {report:?}"
        );
    }
    assert!(other.events_of("accepted").is_empty());
    assert_eq!(stage.event("probes_passed")?, 2.0);
    assert!(real.probe(ip4, 8080, "")?, "the kubelet itself still passes");
    // Nothing is left by which somebody else could pass with the same addresses and ports.
    wait_for("the map of probes is empty", Duration::from_secs(5), || {
        let metrics = stage.agent.metrics()?;
        match metrics.sum("mesh_agent_bpf_map_entries", &[("map", "PROBES")]) {
            0.0 => Ok(()),
            left => bail!("{left} entries"),
        }
    })
}

#[test]
fn a_kubelet_that_is_started_anew_above_the_pods_is_followed_and_two_are_none() -> Result<()> {
    let stage = stage()?;
    let _app = App::serve(&stage.server, "echo", 8080, &[])?;
    let (node, ip) = (stage.node.cgroup(), stage.server.ip4());
    let mut first = kubelet(&stage, node.path())?;
    wait_check(&stage, "ok", &first.process())?;
    assert!(first.probe(ip, 8080, "")?);
    let mut second = kubelet(&stage, node.path())?;
    wait_check(&stage, "warn", "ambiguous")?;
    assert!(!first.probe(ip, 8080, "")? && !second.probe(ip, 8080, "")?);
    drop(first);
    wait_check(&stage, "ok", &second.process())?;
    assert!(second.probe(ip, 8080, "")?);
    drop(second);
    wait_check(&stage, "warn", "no kubelet is found")?;
    let mut third = kubelet(&stage, node.path())?;
    wait_check(&stage, "ok", &third.process())?;
    assert!(third.probe(ip, 8080, "")?);
    Ok(())
}

#[test]
fn a_kubelet_in_the_root_of_the_hierarchy_probes_its_pods_and_nobody_else_there_passes_for_it() -> Result<()>
{
    let stage = stage()?;
    let _app = App::serve(&stage.server, "echo", 8080, &[])?;
    let ip = stage.server.ip4();
    let mut real = kubelet(&stage, &cgroup2_mount()?)?;
    wait_check(&stage, "ok", &real.process())?;
    assert!(real.probe(ip, 8080, "")?);
    let report = stage.connect_from(stage.node.cgroup(), stage.node.netns(), ip, 8080)?;
    assert!(report.text.is_empty(), "a process below: {report:?}");
    assert!(!real.probe(ip, 8080, "child")?, "a process beside it");
    Ok(())
}
