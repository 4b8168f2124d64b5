//! The kubelet's probes: a fake kubelet in a cgroup of its own, in the node's namespace.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{App, Cgroup, MESH, Proc, run, wait_for};

use crate::stage::{Stage, carried};

/// Declares port 8080 by its name and 8082 by its number.
const PROBES: &str = "    - name: app
      image: none
      ports: [{name: web, containerPort: 8080}]
      livenessProbe: {httpGet: {port: web}}
      lifecycle: {preStop: {tcpSocket: {port: 8082}}}
";

/// The stage under STRICT, and the kubelet.
struct Scene {
    kubelet: Option<(Proc, Cgroup)>,
    stage: Stage,
}

impl Scene {
    fn start() -> Result<Self> {
        let stage = Stage::start(
            true,
            |agent, node| {
                agent.arg(
                    "--kubelet-cgroup",
                    &node.cgroup().path().join("kubelet").to_string_lossy(),
                )
            },
            |text| text.replace("    - name: app\n      image: none\n", PROBES),
        )?;
        stage.config.peer_authentication(MESH, "STRICT")?;
        let mut scene = Self { kubelet: None, stage };
        scene.start_kubelet()?;
        scene.wait_workload_strict()?;
        Ok(scene)
    }

    fn start_kubelet(&mut self) -> Result<()> {
        let cgroup = self.stage.node.cgroup().child("kubelet")?;
        let main = self.stage.sleeper("kubelet", &cgroup, self.stage.node.netns())?;
        self.kubelet = Some((main, cgroup));
        self.wait_check("ok", "reach the ports declared")
    }

    fn cgroup(&self) -> &Cgroup {
        &self.kubelet.as_ref().expect("the kubelet runs").1
    }

    fn wait_workload_strict(&self) -> Result<()> {
        let server = self.stage.wait_workload("it is STRICT", |w| {
            w["mtls"] == "STRICT" && w["uncaptured"]["probe_ports"] != serde_json::json!([])
        })?;
        assert_eq!(
            server["uncaptured"]["probe_ports"],
            serde_json::json!([8080, 8082])
        );
        Ok(())
    }

    /// Waits until the check of probes is at `level` and says `part`.
    fn wait_check(&self, level: &str, part: &str) -> Result<()> {
        wait_for("the check of probes", Duration::from_secs(10), || {
            let check = self.stage.check("kubelet probes")?;
            let said = check["detail"].as_str().unwrap_or_default();
            if check["level"] == level && said.contains(part) {
                Ok(())
            } else {
                bail!("expected {level} and {part:?}: {check:#}")
            }
        })
    }

    /// Whether the kubelet gets its answer from the server.
    fn probe(&self, ip: IpAddr, port: u16) -> Result<bool> {
        let report = self
            .stage
            .connect_from(self.cgroup(), self.stage.node.netns(), ip, port)?;
        Ok(report.text == "ping\n")
    }
}

#[test]
fn the_kubelets_probes_reach_declared_ports_of_a_strict_pod_and_show_the_kubelet_itself() -> Result<()> {
    let scene = Scene::start()?;
    let stage = &scene.stage;
    let app = App::serve(&stage.server, "echo", 8080, &[])?;
    let hook = App::serve(&stage.server, "echo", 8082, &[])?;
    for (n, ip) in [stage.server.ip4(), stage.server.ip6()].into_iter().enumerate() {
        let report = stage.connect_from(scene.cgroup(), stage.node.netns(), ip, 8080)?;
        assert_eq!(report.text, "ping\n", "{ip}: {report:?}\n{}", stage.agent.log());
        let seen = app.wait_events("accepted", n + 1)?.remove(n);
        assert_eq!(
            (seen.peer, seen.peer_name),
            (report.local, report.local),
            "the application sees the kubelet"
        );
    }
    assert!(scene.probe(stage.server.ip4(), 8082)?);
    hook.wait_events("accepted", 1)?;
    let metrics = stage.agent.metrics()?;
    assert_eq!(carried(&metrics), 0.0, "{}", metrics.show("istio_tcp"));
    assert_eq!(stage.event("probes_passed")?, 3.0);
    // Nothing is left by which somebody else could pass with the same addresses and ports.
    wait_for("the map of probes is empty", Duration::from_secs(5), || {
        let left = stage
            .agent
            .metrics()?
            .sum("mesh_agent_bpf_map_entries", &[("map", "PROBES")]);
        if left == 0.0 {
            Ok(())
        } else {
            bail!("{left} entries")
        }
    })
}

#[test]
fn what_is_not_a_probe_of_the_kubelet_is_refused_under_strict() -> Result<()> {
    let scene = Scene::start()?;
    let stage = &scene.stage;
    let _declared = App::serve(&stage.server, "echo", 8080, &[])?;
    let other = App::serve(&stage.server, "echo", 8081, &[])?;
    let ip = stage.server.ip4();
    assert!(
        scene.probe(ip, 8080)?,
        "a probe passes, so that what follows means something"
    );
    assert!(!scene.probe(ip, 8081)?, "no probe declares this port");
    assert!(!scene.probe(ip, 15_104)?, "a port of the agent's");
    let elsewhere = stage.node.cgroup().child("elsewhere")?;
    let report = stage.connect_from(&elsewhere, stage.node.netns(), ip, 8080)?;
    assert!(
        report.text.is_empty(),
        "a host process outside the kubelet's cgroup: {report:?}"
    );
    let report = stage.connect_from(scene.cgroup(), stage.visitor.netns(), ip, 8080)?;
    assert!(
        report.text.is_empty(),
        "a process of the kubelet's cgroup in another namespace: {report:?}"
    );
    assert!(other.events_of("accepted").is_empty());
    assert_eq!(stage.event("probes_passed")?, 1.0);
    Ok(())
}

#[test]
fn a_container_below_the_kubelets_cgroup_ends_the_passage_until_it_is_gone() -> Result<()> {
    let mut scene = Scene::start()?;
    let _app = App::serve(&scene.stage.server, "echo", 8080, &[])?;
    let ip = scene.stage.server.ip4();
    assert!(scene.probe(ip, 8080)?);
    {
        let below = scene.cgroup().child("payload")?;
        let mut container = scene
            .stage
            .sleeper("container", &below, scene.stage.visitor.netns())?;
        scene.wait_check("warn", "another network or pid namespace")?;
        assert!(!scene.probe(ip, 8080)?, "a container is below");
        container.kill();
    }
    scene.wait_check("ok", "reach the ports declared")?;
    assert!(scene.probe(ip, 8080)?);
    {
        let _pods = scene.cgroup().child("kubepods.slice")?;
        scene.wait_check("warn", "kubepods.slice")?;
        assert!(!scene.probe(ip, 8080)?, "pods' cgroups are below");
    }
    // The service manager makes a new cgroup of the same name when the kubelet restarts.
    scene.kubelet = None;
    scene.wait_check("warn", "cannot be read")?;
    scene.start_kubelet()?;
    assert!(scene.probe(ip, 8080)?);
    Ok(())
}

#[test]
fn probes_pass_where_the_pod_answers_with_syn_cookies() -> Result<()> {
    let scene = Scene::start()?;
    let stage = &scene.stage;
    stage.server.netns().sysctl("ipv4/tcp_syncookies", "2")?;
    let app = App::serve(&stage.server, "echo", 8080, &[])?;
    for ip in [stage.server.ip4(), stage.server.ip6(), stage.server.ip4()] {
        assert!(scene.probe(ip, 8080)?, "{ip}");
    }
    let outside = stage.node.cgroup().child("elsewhere")?;
    let report = stage.connect_from(&outside, stage.node.netns(), stage.server.ip4(), 8080)?;
    assert!(report.text.is_empty(), "{report:?}");
    assert_eq!(app.wait_events("accepted", 3)?.len(), 3);
    // The SYN and the handshake's last packet each ask.
    assert!(
        stage.event("probes_passed")? >= 6.0,
        "{}",
        stage.event("probes_passed")?
    );
    Ok(())
}

/// bpftool commands for as many elements as the map of probes holds, with keys that no connection has.
fn each_probe(pin: &Path, verb: &str, value: &str) -> String {
    let mut commands = String::new();
    for n in 0..8 * 1024_u32 {
        let bytes = n.to_ne_bytes().map(|byte| byte.to_string()).join(" ");
        let key = format!("{bytes} {}", ["0"; 44].join(" "));
        let _ = writeln!(commands, "map {verb} pinned {} key {key} {value}", pin.display());
    }
    commands
}

#[test]
fn a_probe_that_finds_the_map_of_probes_full_is_captured_like_others_and_told() -> Result<()> {
    let scene = Scene::start()?;
    let stage = &scene.stage;
    let _app = App::serve(&stage.server, "echo", 8080, &[])?;
    let ip = stage.server.ip4();
    assert!(scene.probe(ip, 8080)?);
    let pin = stage.world.bpffs().join("n1/n1/run-1/maps/PROBES");
    let batch = |commands: String| -> Result<()> {
        let file = stage.world.dir().join("bpftool.batch");
        std::fs::write(&file, commands)?;
        let mut bpftool = Command::new("bpftool");
        bpftool.args(["batch", "file"]).arg(&file);
        run(&mut bpftool, Duration::from_secs(60))?.success().map(drop)
    };
    batch(each_probe(
        &pin,
        "update",
        &format!("value {}", ["0"; 8].join(" ")),
    ))?;
    assert!(!scene.probe(ip, 8080)?, "the pod is STRICT");
    wait_for("it is told", Duration::from_secs(10), || {
        let answer = stage.agent.meshctl(&["bpf", "events"])?;
        let mut all = answer["events"].as_array().into_iter().flatten();
        let to = format!("{ip}:8080");
        all.find(|event| event["event"] == "probes_full" && event["to"] == to)
            .map(drop)
            .with_context(|| format!("{answer:#}"))
    })?;
    assert_eq!(stage.event("probes_full")?, 1.0);
    batch(each_probe(&pin, "delete", ""))?;
    assert!(scene.probe(ip, 8080)?, "there is room again");
    Ok(())
}
