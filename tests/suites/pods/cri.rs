//! Pods of a real container runtime: containerd with runc, where the tests ask over CRI for what a kubelet asks for. The runtime lives in the
//! node's network namespace and in a mount namespace of its own, as on a node that is itself a container.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{
    App, Cgroup, JoinExt, MESH, Netns, PodSpec, attached_to, new_uid, run, testapp, wait_for,
};
use serde_json::Value;

use crate::containerd::{Containerd, Sandbox};
use crate::stage::{SOON, Stage};

/// A pod whose sandbox is containerd's.
struct RuntimePod {
    name: &'static str,
    uid: String,
    host: u8,
    cgroup: PathBuf,
    sandbox: Sandbox,
}

impl RuntimePod {
    fn spec(&self, stage: &Stage) -> PodSpec {
        PodSpec {
            namespace: MESH.to_owned(),
            name: self.name.to_owned(),
            service_account: self.name.to_owned(),
            labels: vec![("app".to_owned(), self.name.to_owned())],
            node: stage.node.name().to_owned(),
            addresses: vec![std::net::IpAddr::from([198, 18, 1, self.host])],
            netns: PathBuf::new(),
            cgroup: PathBuf::new(),
            uid: self.uid.clone(),
            annotations: Vec::new(),
        }
    }

    fn address(&self) -> std::net::IpAddr {
        std::net::IpAddr::from([198, 18, 1, self.host])
    }

    /// The namespace of its sandbox.
    fn netns(&self) -> Netns {
        Netns::at(&PathBuf::from(format!("/proc/{}/ns/net", self.sandbox.pid)))
    }

    /// The kernel's name for it.
    fn netns_name(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;
        Ok(format!("net:[{}]", self.netns().open()?.metadata()?.ino()))
    }

    /// A command in a container of it.
    fn command(&self, container: &str) -> Result<std::process::Command> {
        let cgroup = Cgroup::create(self.cgroup.join(container))?;
        let mut command = std::process::Command::new(testapp()?);
        command.in_cgroup(&cgroup)?.in_netns(&self.netns())?;
        std::mem::forget(cgroup);
        Ok(command)
    }
}

fn make(stage: &Stage, runtime: &Containerd, name: &'static str, host: u8) -> Result<RuntimePod> {
    remake(stage, runtime, name, host, &new_uid(), 0)
}

fn remake(
    stage: &Stage,
    runtime: &Containerd,
    name: &'static str,
    host: u8,
    uid: &str,
    attempt: u32,
) -> Result<RuntimePod> {
    let cgroup = stage
        .node
        .cgroup()
        .path()
        .join(format!("kubepods/burstable/pod{uid}"));
    let sandbox = runtime.run_sandbox(name, uid, attempt, host, &cgroup, false)?;
    runtime.run_container(&sandbox, "app")?;
    Ok(RuntimePod {
        name,
        uid: uid.to_owned(),
        host,
        cgroup,
        sandbox,
    })
}

fn wait_found(stage: &Stage, pod: &RuntimePod) -> Result<Value> {
    let netns = pod.netns_name()?;
    stage.wait(pod.name, |w| {
        w["capture"] == "captured"
            && w["sandbox"]["netns"] == netns.as_str()
            && w["sandbox"]["found_by"] == "cri"
    })
}

fn check_carried(stage: &Stage, client: &RuntimePod, server: &RuntimePod) -> Result<()> {
    let before = stage.carried()?;
    let mut command = client.command("client")?;
    let target = std::net::SocketAddr::new(server.address(), 8080).to_string();
    command.args(["connect", &target, "exchange", "--timeout", "3000"]);
    let output = run(&mut command, Duration::from_secs(20))?;
    let report: Value =
        serde_json::from_str(output.stdout.trim()).with_context(|| format!("no report: {output:?}"))?;
    assert_eq!(report["text"], "ping\n", "{report:#}");
    wait_for("the connection is counted", SOON, || {
        if stage.carried()? > before {
            Ok(())
        } else {
            bail!("still {before}")
        }
    })
}

fn wait_runtime(stage: &Stage, state: &str) -> Result<Value> {
    wait_for(
        &format!("the runtime is {state}"),
        Duration::from_secs(30),
        || {
            let status = stage.agent()?.meshctl(&["status"])?;
            let runtime = status["container_runtime"].clone();
            if runtime["state"] == state {
                Ok(runtime)
            } else {
                bail!("{runtime}")
            }
        },
    )
}

#[test]
fn sandboxes_of_containerd_are_found_by_its_word_and_the_kernels() -> Result<()> {
    let mut stage = Stage::with(|agent| {
        let socket = Containerd::socket_below(agent.ca_dir().parent().unwrap_or(agent.ca_dir()));
        agent.arg("--pods-cri-socket", &format!("unix://{}", socket.display()))
    })?;
    // The runtime is not there yet: the agent says so, and waits for nothing.
    let down = wait_runtime(&stage, "down")?;
    assert!(
        down["detail"]
            .as_str()
            .unwrap_or_default()
            .contains("through /proc"),
        "{down}"
    );
    stage.agent.as_mut().context("no agent")?.wait_ready()?;
    let text = stage.agent()?.meshctl_text(&["check"])?.stdout;
    assert!(text.contains("container runtime"), "{text}");

    let mut runtime = Containerd::start(&stage)?;
    let client = make(&stage, &runtime, "client", 20)?;
    let server = make(&stage, &runtime, "server", 21)?;
    stage.config.pod(&client.spec(&stage))?;
    stage.config.pod(&server.spec(&stage))?;
    let up = wait_runtime(&stage, "up")?;
    assert!(
        up["detail"]
            .as_str()
            .unwrap_or_default()
            .starts_with("containerd "),
        "{up}"
    );
    let shown = wait_found(&stage, &server)?;
    assert_eq!(
        shown["sandbox"]["cgroup"],
        server.cgroup.to_string_lossy().as_ref(),
        "{shown:#}"
    );
    wait_found(&stage, &client)?;
    let app = serve(&stage, &server)?;
    check_carried(&stage, &client, &server)?;
    let metrics = stage.agent()?.metrics()?;
    assert_eq!(metrics.sum("mesh_agent_sandboxes_found", &[("by", "cri")]), 2.0);
    assert_eq!(metrics.sum("mesh_agent_container_runtime_up", &[]), 1.0);

    // The sandbox is made anew: another namespace, the same pod.
    drop(app);
    runtime.stop_sandbox(&server.sandbox)?;
    let server = remake(&stage, &runtime, "server", 22, &server.uid, 1)?;
    stage.config.pod(&server.spec(&stage))?;
    wait_found(&stage, &server)?;
    let app = serve(&stage, &server)?;
    check_carried(&stage, &client, &server)?;

    // Without the runtime nothing changes for those that are captured, and new ones are found all the same.
    runtime.kill();
    wait_runtime(&stage, "down")?;
    check_carried(&stage, &client, &server)?;
    runtime.restart(&stage)?;
    wait_runtime(&stage, "up")?;
    wait_found(&stage, &server)?;
    check_carried(&stage, &client, &server)?;
    drop(app);

    // A Job: its sandbox is stopped while its document stands.
    runtime.stop_sandbox(&client.sandbox)?;
    let shown = stage.wait("client", |w| w["capture"] == "pending")?;
    assert!(
        shown["capture_reason"]
            .as_str()
            .is_some_and(|why| why.contains("no ")),
        "{shown:#}"
    );
    assert!(!client.cgroup.exists() || attached_to(&client.cgroup)?.is_empty());
    Ok(())
}

#[test]
fn a_sandbox_of_containerd_on_the_nodes_network_is_refused() -> Result<()> {
    let stage = Stage::with(|agent| {
        let socket = Containerd::socket_below(agent.ca_dir().parent().unwrap_or(agent.ca_dir()));
        agent.arg("--pods-cri-socket", &socket.to_string_lossy())
    })?;
    let runtime = Containerd::start(&stage)?;
    let uid = new_uid();
    let cgroup = stage.node.cgroup().path().join(format!("kubepods/pod{uid}"));
    let sandbox = runtime.run_sandbox("onhost", &uid, 0, 30, &cgroup, true)?;
    let pod = RuntimePod {
        name: "onhost",
        uid,
        host: 30,
        cgroup,
        sandbox,
    };
    stage.config.pod(&pod.spec(&stage))?;
    let shown = stage.wait("onhost", |w| w["capture"] == "failed")?;
    assert!(
        shown["capture_reason"]
            .as_str()
            .is_some_and(|why| why.contains("host network")),
        "{shown:#}"
    );
    assert!(attached_to(&pod.cgroup)?.is_empty());
    Ok(())
}

fn serve(stage: &Stage, pod: &RuntimePod) -> Result<App> {
    let stand_in = stage.node.pod(MESH, &format!("s{}", pod.host))?;
    App::serve_with(&stand_in, pod.command("server")?, "echo", 8080, &[])
}
