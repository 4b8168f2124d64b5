//! Where pods are found: in the layouts of both drivers, behind a prefix, and anywhere in the hierarchy.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{
    Cgroup, JoinExt, KubePod, Kubelet, Layout, MESH, Proc, World, agent_binary, new_uid, run, wait_for,
};

use crate::stage::{SOON, Stage};

#[test]
fn pods_are_found_in_the_layouts_of_both_drivers_and_carried() -> Result<()> {
    let stage = Stage::start()?;
    let mut pods: Vec<KubePod> = Vec::new();
    for (name, layout) in [
        ("plain", Layout::Cgroupfs),
        ("burst", Layout::Burstable),
        ("slice", Layout::Systemd),
        ("kind", Layout::Kind),
    ] {
        pods.push(stage.pod(name, layout)?);
    }
    for pod in &pods {
        let shown = stage.wait_captured_in(pod)?;
        assert_eq!(shown["sandbox"]["found_by"], "proc", "{shown:#}");
        let cgroup = pod.cgroup.path().to_string_lossy();
        assert_eq!(shown["sandbox"]["cgroup"], cgroup.as_ref(), "{shown:#}");
    }
    let [first, .., last] = pods.as_mut_slice() else {
        bail!("no pods")
    };
    last.serve("app")?;
    stage.check_carried(first, last.pod.ip4())?;
    stage.check_carried(first, last.pod.ip6())?;
    let text = stage.agent()?.meshctl_text(&["workloads"])?.success()?;
    assert!(text.contains("yes (proc)"), "{text}");
    let status = stage.agent()?.meshctl_text(&["status"])?.success()?;
    assert!(
        status.contains("not asked: pods are found through /proc"),
        "{status}"
    );
    let metrics = stage.agent()?.metrics()?;
    assert_eq!(metrics.sum("mesh_agent_sandboxes_found", &[("by", "proc")]), 4.0);
    Ok(())
}

#[test]
fn without_a_prefix_the_whole_hierarchy_is_searched_and_a_static_pods_hash_is_a_uid() -> Result<()> {
    let stage = Stage::with(|agent| agent.without_arg("--pods-cgroup"))?;
    let hash = format!("9f2b8f7b7a3d4c6f{:016x}", std::process::id());
    let pod = stage.sandbox(stage.node.pod(MESH, "static")?, Layout::Burstable, &hash)?;
    stage.config.pod(&pod.spec())?;
    stage.wait_captured_in(&pod)?;
    Ok(())
}

#[test]
fn without_the_setting_pods_are_not_looked_for_and_annotations_count_with_it_too() -> Result<()> {
    let stage = Stage::with(|agent| agent.arg("--pods-discover", "false"))?;
    let pod = stage.pod("order", Layout::Burstable)?;
    let shown = stage.wait("order", |w| w["capture"] == "failed")?;
    let why = shown["capture_reason"].as_str().unwrap_or_default();
    assert!(why.contains("--pods-discover"), "{shown:#}");
    drop(stage);
    drop(pod);
    let stage = Stage::start()?;
    let annotated = stage.node.pod(MESH, "annotated")?;
    stage.config.pod(&annotated.spec())?;
    let shown = stage.wait_captured("annotated")?;
    assert_eq!(shown["sandbox"]["found_by"], "annotation", "{shown:#}");
    Ok(())
}

#[test]
fn a_sandbox_that_comes_after_its_document_is_captured_within_moments_and_nothing_waits_for_it() -> Result<()>
{
    let mut stage = Stage::start()?;
    let pod = stage.node.pod(MESH, "late")?;
    let uid = new_uid();
    let mut spec = pod.spec();
    spec.uid.clone_from(&uid);
    spec.netns = std::path::PathBuf::new();
    stage.config.pod(&spec)?;
    stage.wait_pending("late", "no sandbox on this node")?;
    // A pod whose sandbox cannot be made is no reason for an agent not to be ready.
    stage.agent.as_mut().context("no agent")?.wait_ready()?;
    let began = std::time::Instant::now();
    let pod = stage.sandbox(pod, Layout::Burstable, &uid)?;
    stage.wait_captured_in(&pod)?;
    // 150 ms between two looks, and what a busy machine adds.
    let took = began.elapsed();
    assert!(took < std::time::Duration::from_secs(3), "{took:?}");
    Ok(())
}

#[test]
fn addresses_that_come_late_and_further_ones_are_waited_for_and_followed() -> Result<()> {
    let stage = Stage::start()?;
    let client = stage.pod("client", Layout::Cgroupfs)?;
    let pod = stage.node.pod(MESH, "server")?;
    let six = pod.ip6().to_string();
    pod.netns()
        .ip(&["address", "del", &format!("{six}/128"), "dev", "eth0"])?;
    let mut server = stage.sandbox(pod, Layout::Burstable, &new_uid())?;
    // First no address, then the first, then both, of which the second is not there yet.
    let full = server.spec();
    let mut spec = full.clone();
    spec.addresses.clear();
    stage.config.pod(&spec)?;
    stage.wait("server", |w| says(w, "no address"))?;
    spec.addresses = vec![server.pod.ip4()];
    stage.config.pod(&spec)?;
    stage.wait_captured("server")?;
    stage.config.pod(&full)?;
    stage.wait("server", |w| says(w, "is on no interface"))?;
    server
        .pod
        .netns()
        .ip(&["address", "add", &format!("{six}/128"), "dev", "eth0", "nodad"])?;
    server
        .pod
        .netns()
        .ip(&[
            "route",
            "replace",
            "default",
            "via",
            "2001:db8:1::1",
            "dev",
            "eth0",
        ])
        .ok();
    stage.wait_captured("server")?;
    server.serve("app")?;
    stage.wait_captured("client")?;
    stage.check_carried(&client, server.pod.ip4())?;
    // An address that no document names is the pod's own all the same.
    server
        .pod
        .netns()
        .ip(&["address", "add", "198.18.1.200/32", "dev", "eth0"])?;
    wait_for("the further address is known", SOON, || {
        let bpf = stage.agent()?.meshctl(&["bpf"])?;
        let text = bpf["pods"].to_string();
        if text.contains("198.18.1.200") {
            Ok(())
        } else {
            bail!("{text}")
        }
    })
}

fn says(workload: &serde_json::Value, part: &str) -> bool {
    workload["capture_reason"]
        .as_str()
        .is_some_and(|why| why.contains(part))
}

/// The capabilities that deploy/kubernetes/daemonset.yaml adds, as setpriv names them.
fn daemonsets_capabilities() -> Result<Vec<String>> {
    let manifest = include_str!("../../../deploy/kubernetes/daemonset.yaml");
    // The init container's come first.
    let (_, after) = manifest
        .split_once("      containers:\n")
        .and_then(|(_, agent)| agent.split_once("              add:\n"))
        .context("nothing is added")?;
    let listed = after
        .lines()
        .map(str::trim)
        .take_while(|line| line.starts_with("- ") && !line.contains(':') || line.starts_with('#'));
    let names: Vec<String> = listed
        .filter_map(|line| line.strip_prefix("- "))
        .map(str::to_lowercase)
        .collect();
    if names.is_empty() || !manifest.contains("drop: [ALL]") {
        bail!("the manifest has another shape: {names:?}");
    }
    Ok(names)
}

#[test]
fn with_no_more_capabilities_than_the_daemonsets_pods_are_found_and_carried() -> Result<()> {
    let mut bounds = "-all".to_owned();
    for name in daemonsets_capabilities()? {
        bounds += &format!(",+{name}");
    }
    // And in a cgroup namespace of its own, as containers are given where there is cgroup2 alone.
    let words = [
        "unshare",
        "--cgroup",
        "setpriv",
        "--bounding-set",
        &bounds,
        "--inh-caps",
        "-all",
    ];
    let stage = Stage::with(|agent| agent.by(&words))?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", stage.agent()?.pid()))?;
    let line = |name: &str| {
        let found = status.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(found.unwrap_or_default().trim(), 16)
    };
    assert_eq!(
        line("CapEff:")?.count_ones() as usize,
        daemonsets_capabilities()?.len(),
        "{status}"
    );
    let client = stage.pod("client", Layout::Cgroupfs)?;
    let mut server = stage.pod("server", Layout::Systemd)?;
    server.serve("app")?;
    stage.wait_captured_in(&client)?;
    stage.wait_captured_in(&server)?;
    stage.check_carried(&client, server.pod.ip4())
}

#[test]
fn a_bpffs_that_the_node_lacks_is_mounted_from_within_a_container_and_one_that_is_there_stays() -> Result<()>
{
    let world = World::new("b")?;
    let point = world.dir().join("node-bpf");
    std::fs::create_dir(&point)?;
    // The shell is the runtime's shim, in the node's mount namespace; what it starts has another, whose mounts it does not see.
    let agent = agent_binary()?;
    let inner = format!(
        "unshare --mount --propagation private {} mount-bpffs --path {}",
        agent.display(),
        point.display()
    );
    let script = format!(
        "{inner}; {inner}; stat --file-system --format %T {}",
        point.display()
    );
    let mut node = Command::new("unshare");
    node.args(["--mount", "--propagation", "private", "sh", "-c", &script]);
    let said = run(&mut node, SOON)?.success()?;
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].contains("mounted a bpffs"), "{said}");
    assert!(lines[1].ends_with("is a bpffs"), "{said}");
    assert_eq!(lines[2], "bpf_fs", "{said}");
    // Without the right to, it says what is missing.
    let script = format!("setpriv --bounding-set -sys_admin {inner}");
    let refused = run(
        Command::new("sh").args([
            "-c",
            &script.replace("unshare --mount --propagation private ", ""),
        ]),
        SOON,
    )?;
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(refused.stderr.contains("no bpffs can be mounted"), "{refused:?}");
    Ok(())
}

/// A process that is called kubelet, in the node's network namespace.
fn kubelet(stage: &Stage, cgroup: &Cgroup) -> Result<Proc> {
    let program = stage.world.dir().join("kubelet");
    if !program.exists() {
        std::fs::copy("/bin/sleep", &program)?;
    }
    let mut command = Command::new(&program);
    command.arg("600");
    command.in_cgroup(cgroup)?.in_netns(stage.node.netns())?;
    Proc::start("kubelet", &mut command, &stage.world.log_dir())
}

#[test]
fn a_kubelet_is_found_in_whatever_cgroup_it_has_but_never_in_a_pods() -> Result<()> {
    let stage = Stage::start()?;
    let said = |what: &str| -> Result<()> {
        wait_for(what, Duration::from_secs(40), || {
            // A table, with its lines broken anywhere.
            let checks = stage.agent()?.meshctl_text(&["check"])?.stdout;
            let bare = |text: &str| text.split_whitespace().collect::<String>();
            if bare(&checks).contains(&bare(what)) {
                Ok(())
            } else {
                bail!("{checks}")
            }
        })
    };
    // Whoever calls a program so in a pod of the host's network is no kubelet.
    let pod = stage.node.cgroup().child(&format!("kubepods/pod{}", new_uid()))?;
    let cgroup = pod.child("c")?;
    let _pretender = kubelet(&stage, &cgroup)?;
    std::thread::sleep(Duration::from_secs(11));
    said("no kubelet is found")?;
    let cgroup = stage.node.cgroup().child("services/nodeman")?;
    let real = kubelet(&stage, &cgroup)?;
    said("services/nodeman")?;
    drop(real);
    said("no kubelet is found")
}

#[test]
fn an_agent_with_the_daemonsets_rights_finds_a_kubelet_above_its_pods_whose_probes_pass_under_strict()
-> Result<()> {
    let mut bounds = "-all".to_owned();
    for name in daemonsets_capabilities()? {
        bounds += &format!(",+{name}");
    }
    let words = [
        "unshare",
        "--cgroup",
        "setpriv",
        "--bounding-set",
        &bounds,
        "--inh-caps",
        "-all",
    ];
    let stage = Stage::with(|agent| agent.by(&words))?;
    stage.config.peer_authentication(MESH, "STRICT")?;
    let mut server = stage.pod("server", Layout::Burstable)?;
    let file = stage.config.dir().join("pod-server.yaml");
    let text = std::fs::read_to_string(&file)?;
    let probed = text.replace(
        "    - name: app\n      image: none\n",
        "    - name: app\n      image: none\n      livenessProbe: {tcpSocket: {port: 8080}}\n",
    );
    assert_ne!(text, probed, "{text}");
    stage.config.write("pod-server", &probed)?;
    server.serve("app")?;
    stage.wait_captured_in(&server)?;
    stage.wait("server", |w| {
        w["mtls"] == "STRICT" && w["uncaptured"]["probe_ports"] == serde_json::json!([8080])
    })?;
    // By hand, in the cgroup above `kubepods`.
    let mut kubelet = Kubelet::start(&stage.world, &stage.node, stage.node.cgroup().path())?;
    let ip = server.pod.ip4();
    wait_for("the kubelet is found", Duration::from_secs(40), || {
        if kubelet.probe(ip, 8080, "")? {
            return Ok(());
        }
        bail!("{}", stage.agent()?.log())
    })?;
    assert!(
        !kubelet.probe(ip, 8080, "child")?,
        "what it starts is another process"
    );
    Ok(())
}
