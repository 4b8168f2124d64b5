//! What becomes of a pod in its life: new sandboxes, Jobs, init and ephemeral containers; and of a node: reboots, restarts, upgrades.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{KubePod, Layout, MESH, attached_to, run, wait_for};

use crate::stage::{SOON, Stage};

#[test]
fn a_sandbox_made_anew_with_another_namespace_and_address_is_captured_in_place_of_the_old_one() -> Result<()>
{
    let stage = Stage::start()?;
    let client = stage.pod("client", Layout::Cgroupfs)?;
    let mut old = stage.pod("server", Layout::Burstable)?;
    stage.wait_captured("client")?;
    stage.wait_captured_in(&old)?;
    old.serve("app")?;
    stage.check_carried(&client, old.pod.ip4())?;
    // The new sandbox is there before the old one's last process is gone: the pod is where its oldest is.
    let new = stage.node.pod(MESH, "server2")?;
    let new = stage.sandbox(new, old.layout, &old.uid)?;
    std::thread::sleep(Duration::from_secs(1));
    stage.wait_captured_in(&old)?;
    old.end();
    let mut spec = new.spec();
    spec.name = "server".to_owned();
    stage.config.pod(&spec)?;
    let netns = new.netns()?;
    stage.wait("server", |w| {
        w["capture"] == "captured" && w["sandbox"]["netns"] == netns.as_str()
    })?;
    let mut new = new;
    new.serve("app2")?;
    stage.check_carried(&client, new.pod.ip4())?;
    Ok(())
}

/// Waits until a pod's end of its link is gone from the node: its namespace is, then.
fn wait_namespace_gone(stage: &Stage, pod: &KubePod) -> Result<()> {
    let node = stage.node.netns().name().to_owned();
    wait_for("the network namespace is gone", SOON, || {
        let mut command = Command::new("ip");
        command.args(["-n", &node, "link", "show", pod.pod.veth()]);
        if run(&mut command, Duration::from_secs(5))?.status.success() {
            bail!("{} is still there", pod.pod.veth())
        }
        Ok(())
    })
}

#[test]
fn a_job_ends_by_itself_and_nothing_of_ours_keeps_its_namespace() -> Result<()> {
    let stage = Stage::start()?;
    let mut server = stage.pod("server", Layout::Cgroupfs)?;
    server.serve("app")?;
    let mut job = stage.pod("job", Layout::Systemd)?;
    stage.wait_captured("server")?;
    stage.wait_captured_in(&job)?;
    assert!(!attached_to(job.cgroup.path())?.is_empty());
    // Its work is a connection; then its container ends, and the sandbox, and the name of its namespace goes. The document says nothing
    // of it yet.
    stage.check_carried(&job, server.pod.ip4())?;
    let name = job.pod.netns().name().to_owned();
    run(
        Command::new("ip").args(["netns", "delete", &name]),
        Duration::from_secs(10),
    )?
    .success()?;
    job.end();
    wait_namespace_gone(&stage, &job)?;
    let shown = stage.wait("job", |w| w["capture"] == "pending")?;
    let why = shown["capture_reason"].as_str().unwrap_or_default();
    assert!(why.contains("no process"), "{shown:#}");
    assert!(attached_to(job.cgroup.path())?.is_empty());
    // And its API object says that it has succeeded.
    let path = stage.config.dir().join("pod-job.yaml");
    let text = std::fs::read_to_string(path)?.replace("phase: Running", "phase: Succeeded");
    stage.config.write("pod-job", &text)?;
    wait_for("the job is forgotten", SOON, || match stage.workload("job") {
        Err(_) => Ok(()),
        Ok(shown) => bail!("{shown:#}"),
    })
}

#[test]
fn init_containers_containers_and_ephemeral_ones_are_captured_alike() -> Result<()> {
    let stage = Stage::start()?;
    let mut server = stage.pod("server", Layout::Cgroupfs)?;
    server.serve("app")?;
    let mut pod = stage.pod("phases", Layout::Kind)?;
    stage.wait_captured("server")?;
    stage.wait_captured_in(&pod)?;
    let target = server.pod.ip4();
    let check = |pod: &KubePod, container: &str| -> Result<()> {
        let before = stage.carried()?;
        let text = pod.exchange_from(container, target)?;
        assert_eq!(text, "ping\n", "{container}");
        wait_for(container, SOON, || {
            if stage.carried()? > before {
                Ok(())
            } else {
                bail!("still {before}")
            }
        })
    };
    check(&pod, "init-1")?;
    check(&pod, "init-2")?;
    pod.serve("app")?;
    check(&pod, "sidecar")?;
    check(&pod, "debugger")?;
    // A container that is made again is another cgroup below the same pod's.
    pod.containers.clear();
    pod.serve("app-again")?;
    stage.check_carried(&server, pod.pod.ip4())?;
    stage.wait_captured_in(&pod)?;
    Ok(())
}

#[test]
fn after_a_reboot_all_pods_are_found_with_new_namespaces_and_processes() -> Result<()> {
    let mut stage = Stage::start()?;
    let mut pods = vec![
        stage.pod("a", Layout::Burstable)?,
        stage.pod("b", Layout::Systemd)?,
    ];
    for pod in &pods {
        stage.wait_captured_in(pod)?;
    }
    // The power goes: no process, no namespace, no cgroup and no pin is left; the documents are.
    stage.agent.as_mut().context("no agent")?.kill();
    let agent = stage.agent.take();
    let before: Vec<(String, Layout, String)> = pods
        .iter()
        .map(|pod| (pod.pod.name().to_owned(), pod.layout, pod.uid.clone()))
        .collect();
    pods.clear();
    for entry in std::fs::read_dir(stage.world.bpffs())? {
        let path = entry?.path();
        // Its files are the kernel's own.
        if path.is_dir() {
            std::fs::remove_dir_all(path)?;
        }
    }
    drop(agent);
    let mut again = Vec::new();
    for (name, layout, uid) in before {
        let pod = stage.sandbox(stage.node.pod(MESH, &name)?, layout, &uid)?;
        stage.config.pod(&pod.spec())?;
        again.push(pod);
    }
    stage.agent = Some(stage.builder()?.start()?);
    for pod in &again {
        stage.wait_captured_in(pod)?;
    }
    let [a, b] = again.as_mut_slice() else {
        bail!("two pods")
    };
    b.serve("app")?;
    stage.check_carried(a, b.pod.ip4())
}

#[test]
fn a_restart_and_an_upgrade_find_the_pods_again_and_keep_them() -> Result<()> {
    let mut stage = Stage::start()?;
    let client = stage.pod("client", Layout::Cgroupfs)?;
    let mut server = stage.pod("server", Layout::Kind)?;
    server.serve("app")?;
    stage.wait_captured("client")?;
    stage.wait_captured_in(&server)?;
    // A crash: found again, adopted, not made anew.
    let agent = stage.agent.take().context("no agent")?;
    stage.agent = Some(agent.restart()?);
    stage.wait_captured_in(&server)?;
    stage.check_carried(&client, server.pod.ip4())?;
    let bpf = stage.agent()?.meshctl(&["bpf"])?;
    assert_eq!(bpf["adopted"], true, "{bpf:#}");
    // An upgrade.
    let mut old = stage.agent.take().context("no agent")?;
    stage.agent = Some(old.successor().start()?);
    stage.wait_captured_in(&server)?;
    stage.check_carried(&client, server.pod.ip4())?;
    let ended = old.proc().wait(Duration::from_secs(30))?;
    assert!(ended.success(), "{ended}");
    stage.wait_captured_in(&client)?;
    stage.check_carried(&client, server.pod.ip4())
}

#[test]
fn a_pod_that_is_deleted_is_released_and_its_namespace_goes() -> Result<()> {
    let stage = Stage::start()?;
    let mut pod = stage.pod("gone", Layout::Burstable)?;
    stage.wait_captured_in(&pod)?;
    stage.config.remove("pod-gone")?;
    wait_for("the pod is released", SOON, || {
        if attached_to(pod.cgroup.path())?.is_empty() {
            Ok(())
        } else {
            bail!("programs are attached")
        }
    })?;
    run(
        Command::new("ip").args(["netns", "delete", pod.pod.netns().name()]),
        Duration::from_secs(10),
    )?
    .success()?;
    pod.end();
    wait_namespace_gone(&stage, &pod)
}
