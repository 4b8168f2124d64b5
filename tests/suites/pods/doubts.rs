//! What is not captured, and what nobody is deceived by: host-network pods, namespaces that containers make, cgroups that imitate.

use std::process::Command;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{
    JoinExt, KubePod, Layout, MESH, Netns, Proc, attached_to, in_new_pid_namespace, new_uid,
};
use serde_json::Value;

use crate::stage::Stage;

fn reason(workload: &Value) -> &str {
    workload["capture_reason"].as_str().unwrap_or_default()
}

/// A process that does nothing in a container of `pod` and in `netns`.
fn sleeper(stage: &Stage, pod: &KubePod, container: &str, netns: &Netns, first: bool) -> Result<Proc> {
    let cgroup = pod.container(container)?;
    let mut command = Command::new("sleep");
    command.arg("600").in_cgroup(&cgroup)?.in_netns(netns)?;
    std::mem::forget(cgroup);
    let name = format!("{}-{container}", pod.pod.name());
    let logs = stage.world.log_dir();
    let start = || Proc::start(&name, &mut command, &logs);
    if first {
        in_new_pid_namespace(start)
    } else {
        Proc::start(&name, &mut command, &logs)
    }
}

#[test]
fn a_sandbox_in_the_nodes_network_namespace_is_never_captured_whatever_its_document_says() -> Result<()> {
    let stage = Stage::start()?;
    let mut pod = stage.sandbox(stage.node.pod(MESH, "onhost")?, Layout::Burstable, &new_uid())?;
    pod.end();
    let host = stage.node.netns();
    let _pause = sleeper(&stage, &pod, "pause2", host, true)?;
    stage.config.pod(&pod.spec())?;
    let shown = stage.wait("onhost", |w| w["capture"] == "failed")?;
    assert!(reason(&shown).contains("host network"), "{shown:#}");
    assert_eq!(attached_to(pod.cgroup.path())?.len(), 0);
    let text = stage.agent()?.meshctl_text(&["workloads"])?.success()?;
    assert!(
        text.contains("mesh/onhost is not captured: its sandbox is in the node's"),
        "{text}"
    );
    Ok(())
}

#[test]
fn a_namespace_that_a_container_makes_does_not_take_the_place_of_the_sandboxes() -> Result<()> {
    let stage = Stage::start()?;
    let mut pod = stage.sandbox(stage.node.pod(MESH, "nester")?, Layout::Burstable, &new_uid())?;
    let nested = Netns::create(&format!("{}-nested", stage.world.prefix()))?;
    let mut inner = Vec::new();
    for i in 0..5 {
        inner.push(sleeper(&stage, &pod, "app", &nested, i % 2 == 0 && i > 0)?);
    }
    stage.config.pod(&pod.spec())?;
    // Two of the five look like first processes of containers, against one sandbox: a doubt. With one of them there is none.
    drop(inner.pop());
    drop(inner.pop());
    stage.wait_captured_in(&pod)?;
    let client = stage.pod("client", Layout::Cgroupfs)?;
    stage.wait_captured("client")?;
    pod.serve("app2")?;
    stage.check_carried(&client, pod.pod.ip4())
}

#[test]
fn processes_that_do_not_agree_are_a_refusal_until_they_do() -> Result<()> {
    let stage = Stage::start()?;
    let mut pod = stage.sandbox(stage.node.pod(MESH, "unclear")?, Layout::Systemd, &new_uid())?;
    // As with hostPID: nobody is the first of a pid namespace.
    pod.end();
    let other = Netns::create(&format!("{}-other", stage.world.prefix()))?;
    let _mine = sleeper(&stage, &pod, "a", pod.pod.netns(), false)?;
    let theirs = sleeper(&stage, &pod, "b", &other, false)?;
    stage.config.pod(&pod.spec())?;
    let shown = stage.wait("unclear", |w| w["capture"] == "failed")?;
    assert!(
        reason(&shown).contains("different network namespaces"),
        "{shown:#}"
    );
    assert_eq!(attached_to(pod.cgroup.path())?.len(), 0);
    drop(theirs);
    stage.wait_captured_in(&pod)?;
    Ok(())
}

#[test]
fn a_captured_pod_stays_captured_where_it_is_when_doubts_come_up() -> Result<()> {
    let stage = Stage::start()?;
    let mut pod = stage.pod("steady", Layout::Burstable)?;
    stage.wait_captured_in(&pod)?;
    let other = Netns::create(&format!("{}-other", stage.world.prefix()))?;
    let mut moved = Vec::new();
    for container in ["b", "c", "d"] {
        moved.push(sleeper(&stage, &pod, container, &other, true)?);
    }
    // Longer than a sandbox is believed to be where it was.
    std::thread::sleep(std::time::Duration::from_secs(7));
    let shown = stage.wait_captured_in(&pod)?;
    assert_eq!(shown["capture"], "captured");
    pod.serve("app")?;
    let client = stage.pod("client", Layout::Cgroupfs)?;
    stage.wait_captured("client")?;
    stage.check_carried(&client, pod.pod.ip4())
}

#[test]
fn a_cgroup_below_a_container_that_imitates_another_pods_is_not_taken_for_it() -> Result<()> {
    let stage = Stage::start()?;
    let hostile = stage.pod("hostile", Layout::Burstable)?;
    stage.wait_captured_in(&hostile)?;
    let victim = new_uid();
    let own = hostile.container("app")?;
    for path in [
        format!("kubepods/pod{victim}/x"),
        format!("kubepods/burstable/pod{victim}"),
    ] {
        let fake = own.child(&path)?;
        let mut command = Command::new("sleep");
        command
            .arg("600")
            .in_cgroup(&fake)?
            .in_netns(hostile.pod.netns())?;
        std::mem::forget(fake);
        let name = format!("fake-{}", path.len());
        let logs = stage.world.log_dir();
        std::mem::forget(in_new_pid_namespace(|| Proc::start(&name, &mut command, &logs))?);
    }
    let pod = stage.node.pod(MESH, "victim")?;
    let mut spec = pod.spec();
    spec.uid.clone_from(&victim);
    spec.netns = std::path::PathBuf::new();
    stage.config.pod(&spec)?;
    stage.wait_pending("victim", "no cgroup of pod")?;
    let pod = stage.sandbox(pod, Layout::Burstable, &victim)?;
    stage.wait_captured_in(&pod)?;
    let shown = stage.workload("hostile")?;
    if shown["sandbox"]["netns"] != hostile.netns()?.as_str() {
        bail!("{shown:#}");
    }
    Ok(())
}

#[test]
fn two_cgroups_that_bear_one_uid_are_a_refusal() -> Result<()> {
    let stage = Stage::start()?;
    let pod = stage.sandbox(stage.node.pod(MESH, "twice")?, Layout::Burstable, &new_uid())?;
    let path = format!("system.slice/docker-1.scope/kubepods/pod{}", pod.uid);
    let _other = stage.node.cgroup().child(&path).context("another cgroup")?;
    stage.config.pod(&pod.spec())?;
    let shown = stage.wait("twice", |w| w["capture"] == "failed")?;
    assert!(
        reason(&shown).contains("several cgroups bear its uid"),
        "{shown:#}"
    );
    Ok(())
}
