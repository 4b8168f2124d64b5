//! The CNI plugin: pods are captured before their first process, with and without containerd, and what happens when the agent is away. Where
//! no runtime is at work, the test calls the plugin as libcni does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use mesh_tests::harness::{
    Cluster, CniAnswer, CniPlugin, KubePod, Layout, MESH, agent_binary, attached_to, cni_arguments, cni_list,
    new_uid, wait_for,
};
use serde_json::{Value, json};

use crate::containerd::Containerd;
use crate::stage::{SOON, Stage};

/// A node with the plugin installed, and a kubelet's pods.
struct Chain {
    stage: Stage,
    plugin: CniPlugin,
}

/// It is an error with this code, and says all this.
fn check_refused(answer: &CniAnswer, code: u64, words: &[&str]) {
    assert!(!answer.ok && answer.document["code"] == code, "{answer:?}");
    let message = answer.document["msg"].as_str().unwrap_or_default();
    for part in words {
        assert!(message.contains(part), "{part:?}: {answer:?}");
    }
}

impl Chain {
    fn start() -> Result<Self> {
        let mut plugin = Err(anyhow!("no agent was made"));
        let stage = Stage::with(|agent| {
            let dir = agent.ca_dir().parent().unwrap_or(agent.ca_dir());
            plugin = CniPlugin::prepare(dir, "one");
            match &plugin {
                Ok(plugin) => plugin.installed_by(agent).arg("--cni-wait", "3s"),
                Err(_) => agent,
            }
        })?;
        let chain = Self {
            plugin: plugin?,
            stage,
        };
        chain.plugin.wait_installed("one")?;
        Ok(chain)
    }

    /// ADD for a pod of the harness, which has got its address.
    fn add(&self, pod: &KubePod) -> Result<CniAnswer> {
        let arguments = cni_arguments(pod.pod.spec().namespace.as_str(), pod.pod.name(), &pod.uid);
        self.plugin.add(&arguments, &pod.pod, &json!({}))
    }

    /// A pod as it is when its CNI is called: its cgroup and its namespace, no process, and a document without an address.
    fn unborn(&self, namespace: &str, name: &str) -> Result<KubePod> {
        let pod = self.stage.node.pod(namespace, name)?;
        let made = KubePod::new(&self.stage.node, pod, Layout::Burstable, &new_uid())?;
        let mut spec = made.spec();
        spec.addresses.clear();
        self.stage.config.pod(&spec)?;
        Ok(made)
    }

    fn calls(&self, result: &str) -> Result<f64> {
        let metrics = self.stage.agent()?.metrics()?;
        Ok(metrics.sum("mesh_agent_cni_calls_total", &[("result", result)]))
    }
}

#[test]
fn a_pod_is_captured_before_any_process_of_it_is_there() -> Result<()> {
    let chain = Chain::start()?;
    let mut server = chain.stage.pod("server", Layout::Cgroupfs)?;
    server.serve("app")?;
    chain.stage.wait_captured("server")?;
    chain.stage.config.peer_authentication(MESH, "STRICT")?;
    let mut pod = chain.unborn(MESH, "newborn")?;
    let answer = chain.add(&pod)?;
    assert!(answer.ok, "{answer:?}");
    let shown = chain.stage.workload("newborn")?;
    assert_eq!(shown["capture"], "captured", "{shown:#}");
    assert_eq!(shown["sandbox"]["found_by"], "cni", "{shown:#}");
    assert_eq!(shown["sandbox"]["netns"], pod.netns()?.as_str());
    assert!(!attached_to(pod.cgroup.path())?.is_empty());
    assert_eq!(chain.calls("captured")?, 1.0);
    // What its very first process opens is carried, although no API server knows its address yet.
    chain.stage.check_carried(&pod, server.pod.ip4())?;
    pod.pause = Some(pod.first_process("pause")?);
    chain
        .stage
        .wait("newborn", |w| w["sandbox"]["found_by"] == "proc")?;
    let status = chain.stage.agent()?.meshctl(&["status"])?;
    assert_eq!(status["cni"]["awaited"], 0, "{status:#}");
    // The API server learns the address, and others reach the pod by it.
    chain.stage.config.pod(&pod.spec())?;
    pod.serve("app")?;
    chain.stage.wait("newborn", |w| {
        w["addresses"].as_array().is_some_and(|all| !all.is_empty())
    })?;
    chain.stage.check_carried(&server, pod.pod.ip4())?;
    assert_eq!(chain.stage.workload("newborn")?["capture"], "captured");
    // It goes: nothing of ours stays on its cgroup.
    pod.end();
    let delete = chain.plugin.configuration(&json!({}))?;
    let arguments = cni_arguments(MESH, "newborn", &pod.uid);
    assert!(
        chain
            .plugin
            .call("DEL", &arguments, pod.pod.netns().path(), &delete)?
            .ok
    );
    chain.stage.wait("newborn", |w| w["capture"] == "pending")?;
    assert!(attached_to(pod.cgroup.path())?.is_empty());
    Ok(())
}

#[test]
fn a_pod_that_cannot_be_captured_does_not_start_and_one_outside_the_mesh_does() -> Result<()> {
    let chain = Chain::start()?;
    chain.stage.config.namespace("outside", false)?;
    let outside = chain.unborn("outside", "outside")?;
    let answer = chain.add(&outside)?;
    assert!(answer.ok, "{answer:?}");
    assert_eq!(chain.calls("not-enrolled")?, 1.0);
    assert!(attached_to(outside.cgroup.path())?.is_empty());
    // Single packets with forged sources would be believed there.
    let forger = chain.unborn(MESH, "forger")?;
    forger.pod.netns().sysctl("ipv4/tcp_fastopen", "519")?;
    let answer = chain.add(&forger)?;
    check_refused(&answer, 100, &["does not capture mesh/forger"]);
    assert_eq!(chain.calls("refused")?, 1.0);
    // Of a pod that nobody has heard of, nothing is known.
    let stranger = chain.stage.node.pod(MESH, "stranger")?;
    let answer = chain.plugin.add(
        &cni_arguments(MESH, "stranger", "no-such-uid"),
        &stranger,
        &json!({}),
    )?;
    check_refused(&answer, 11, &["has not heard of the pod"]);
    assert_eq!(chain.calls("unknown")?, 1.0);
    // Namespaces that are excluded pass unseen.
    let answer = chain
        .plugin
        .add(&cni_arguments("kube-system", "dns", "u"), &stranger, &json!({}))?;
    assert!(answer.ok, "{answer:?}");
    Ok(())
}

#[test]
fn without_an_agent_pods_outside_the_mesh_start_and_others_wait_for_one() -> Result<()> {
    let mut chain = Chain::start()?;
    chain.stage.config.namespace("outside", false)?;
    let outside = chain.unborn("outside", "outside")?;
    let inside = chain.unborn(MESH, "inside")?;
    // Of this namespace one pod is enrolled by its own label: nobody can tell others by the namespace alone.
    chain.stage.config.namespace("mixed", false)?;
    let labelled = chain.stage.node.pod("mixed", "labelled")?;
    let mut spec = labelled.spec();
    spec.labels
        .push(("mesh-agent.io/dataplane".to_owned(), "enabled".to_owned()));
    chain.stage.config.pod(&spec)?;
    wait_for("the table is written", SOON, || {
        let path = chain.plugin.configuration(&json!({}))?["table"]
            .as_str()
            .map(PathBuf::from);
        let table: Value = serde_json::from_slice(&std::fs::read(path.context("no table")?)?)?;
        if table["namespaces"]["mixed"]["mixed"] == true {
            Ok(())
        } else {
            bail!("{table:#}")
        }
    })?;
    chain.stage.agent.as_mut().context("no agent")?.kill();

    let answer = chain.add(&outside)?;
    assert!(answer.ok, "{answer:?}");
    let answer = chain.add(&inside)?;
    check_refused(&answer, 11, &["it is part of the mesh", "Is mesh-agent running"]);
    let answer = chain
        .plugin
        .add(&cni_arguments("mixed", "other", "u"), &labelled, &json!({}))?;
    check_refused(&answer, 11, &["nobody can tell"]);
    let answer = chain
        .plugin
        .add(&cni_arguments("unheard-of", "other", "u"), &labelled, &json!({}))?;
    check_refused(&answer, 11, &["does not know the namespace"]);

    // The API server knows each pod.
    let cluster = Cluster::open(&chain.stage.world)?;
    let kubeconfig = chain.stage.world.dir().join("kubeconfig");
    let own = cluster.own().map(|server| server.kubeconfig());
    let Some(own) = own else { return Ok(()) };
    std::fs::copy(own, &kubeconfig)?;
    for (namespace, enrolled) in [("mixed", false), ("late", true)] {
        cluster.namespace(namespace, enrolled)?;
    }
    let mut other = labelled.spec();
    other.name = "other".to_owned();
    cluster.pod(&other)?;
    let with = json!({ "kubeconfig": kubeconfig });
    let answer = chain
        .plugin
        .add("K8S_POD_NAMESPACE=mixed;K8S_POD_NAME=other", &labelled, &with)?;
    assert!(answer.ok, "{answer:?}");
    let answer = chain
        .plugin
        .add("K8S_POD_NAMESPACE=mixed;K8S_POD_NAME=nobody", &labelled, &with)?;
    assert!(!answer.ok, "{answer:?}");
    other.namespace = "late".to_owned();
    cluster.pod(&other)?;
    let answer = chain
        .plugin
        .add("K8S_POD_NAMESPACE=late;K8S_POD_NAME=other", &labelled, &with)?;
    check_refused(&answer, 11, &["it is part of the mesh"]);

    // An agent is back while the plugin waits.
    let agent = chain.stage.agent.take().context("no agent")?;
    chain.stage.agent = Some(agent.restart()?);
    let answer = chain.add(&inside)?;
    assert!(answer.ok, "{answer:?}");
    assert_eq!(chain.stage.workload("inside")?["capture"], "captured");
    Ok(())
}

#[test]
fn a_sandbox_that_was_announced_outlives_the_agent_that_heard_of_it() -> Result<()> {
    let mut chain = Chain::start()?;
    let pod = chain.unborn(MESH, "newborn")?;
    assert!(chain.add(&pod)?.ok);
    let agent = chain.stage.agent.take().context("no agent")?;
    let mut agent = agent;
    agent.kill();
    chain.stage.agent = Some(agent.restart()?);
    let shown = chain.stage.wait_captured("newborn")?;
    assert_eq!(shown["sandbox"]["found_by"], "cni", "{shown:#}");
    // Garbage collection says that it is gone.
    let nothing = chain
        .plugin
        .configuration(&json!({ "cni.dev/valid-attachments": [] }))?;
    assert!(chain.plugin.call("GC", "", Path::new(""), &nothing)?.ok);
    chain.stage.wait("newborn", |w| w["capture"] == "pending")?;
    assert!(attached_to(pod.cgroup.path())?.is_empty());
    Ok(())
}

#[test]
fn the_clusters_configuration_is_followed_and_nothing_is_left_at_the_end() -> Result<()> {
    let mut chain = Chain::start()?;
    let list = chain.plugin.wait_installed("one")?;
    assert_eq!(list["plugins"][0], cni_list("one")["plugins"][0]);
    assert_eq!(list["plugins"][1]["type"], "mesh-agent-cni");
    // Its own CNI writes it anew, and somebody removes ours.
    std::fs::write(
        chain.plugin.conf.join("10-test.conflist"),
        cni_list("two").to_string(),
    )?;
    chain.plugin.wait_installed("two")?;
    std::fs::remove_file(chain.plugin.own_list())?;
    chain.plugin.wait_installed("two")?;
    // What cannot be read leaves what was: the runtime goes on with it.
    std::fs::write(chain.plugin.conf.join("10-test.conflist"), "{")?;
    wait_for("the check tells", SOON, || {
        let text = chain.stage.agent()?.meshctl_text(&["check"])?.stdout;
        if text.contains("cannot stand behind") {
            Ok(())
        } else {
            bail!("{text}")
        }
    })?;
    chain.plugin.wait_installed("two")?;
    assert_eq!(
        chain
            .stage
            .agent()?
            .metrics()?
            .sum("mesh_agent_cni_installed", &[]),
        0.0
    );
    // Another CNI takes over: the file behind the one that went, too.
    std::fs::remove_file(chain.plugin.conf.join("10-test.conflist"))?;
    std::fs::write(
        chain.plugin.conf.join("05-other.conf"),
        r#"{"cniVersion":"0.3.1","name":"o","type":"ptp"}"#,
    )?;
    wait_for("the other is followed", SOON, || {
        if chain.plugin.own_list().exists()
            || !chain.plugin.conf.join("05-other-mesh-agent.conflist").exists()
        {
            bail!("not yet")
        }
        Ok(())
    })?;
    let kept = chain.configuration_at("05-other-mesh-agent.conflist")?;
    let table = kept["table"].as_str().map(PathBuf::from).context("no table")?;
    chain.stage.agent.as_mut().context("no agent")?.stop()?;
    let mut left: Vec<_> = std::fs::read_dir(&chain.plugin.conf)?
        .chain(std::fs::read_dir(&chain.plugin.bin)?)
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<std::io::Result<_>>()?;
    left.sort();
    assert_eq!(left, ["05-other.conf"]);
    assert!(!table.exists());
    Ok(())
}

impl Chain {
    fn configuration_at(&self, name: &str) -> Result<Value> {
        let list: Value = serde_json::from_slice(&std::fs::read(self.plugin.conf.join(name))?)?;
        let plugins = list["plugins"].as_array().context("no plugins")?;
        plugins.last().cloned().context("no plugin")
    }
}

#[test]
fn what_else_runtimes_ask_is_answered_and_nonsense_is_told_with_a_code() -> Result<()> {
    let chain = Chain::start()?;
    let pod = chain.unborn(MESH, "checked")?;
    let named = cni_arguments(MESH, "checked", &pod.uid);
    let netns = pod.pod.netns().path().to_owned();
    let usual = chain.plugin.configuration(&json!({}))?;
    assert!(chain.add(&pod)?.ok);
    assert!(chain.plugin.call("CHECK", &named, &netns, &usual)?.ok);
    assert!(chain.plugin.call("STATUS", "", &netns, &usual)?.ok);
    let versions = chain
        .plugin
        .call("VERSION", "", &netns, &json!({ "cniVersion": "1.0.0" }))?;
    let spoken = versions.document["supportedVersions"]
        .as_array()
        .context("no versions")?;
    assert!(spoken.contains(&json!("1.1.0")), "{versions:?}");
    let code = |command: &str, configuration: &Value| -> Result<u64> {
        let answer = chain.plugin.call(command, &named, &netns, configuration)?;
        assert!(!answer.ok, "{answer:?}");
        answer.document["code"].as_u64().context("no code")
    };
    assert_eq!(code("NONSENSE", &usual)?, 4);
    assert_eq!(code("ADD", &json!({ "cniVersion": "1.0.0" }))?, 6);
    assert_eq!(code("ADD", &usual)?, 7, "without a result before it is no chain");
    assert_eq!(
        code(
            "ADD",
            &chain.plugin.configuration(&json!({ "cniVersion": "0.2.0" }))?
        )?,
        1
    );
    // Without its sandbox it is not as it must be any more.
    assert!(chain.plugin.call("DEL", &named, &netns, &usual)?.ok);
    chain.stage.wait("checked", |w| w["capture"] == "pending")?;
    assert_eq!(code("CHECK", &usual)?, 100);
    Ok(())
}

#[test]
fn containerd_waits_for_the_plugin_before_it_starts_a_pod() -> Result<()> {
    let mut stage = Stage::with(|agent| {
        let dir = agent
            .ca_dir()
            .parent()
            .unwrap_or(agent.ca_dir())
            .join("containerd");
        let (conf, bin) = (dir.join("net.d"), dir.join("cni"));
        std::fs::create_dir_all(&conf).ok();
        std::fs::create_dir_all(&bin).ok();
        agent
            .env("MESH_AGENT_CNI", "true")
            .arg("--cni-conf-dir", &conf.to_string_lossy())
            .arg("--cni-bin-dir", &bin.to_string_lossy())
            .arg("--cni-wait", "3s")
    })?;
    let conf = stage.world.dir().join("containerd/net.d");
    let runtime = Containerd::start(&stage)?;
    wait_for("the plugin is installed", SOON, || {
        Ok(std::fs::metadata(conf.join("10-mesh-mesh-agent.conflist")).map(drop)?)
    })?;
    let start = |stage: &Stage, name: &str, uid: &str, host: u8, attempt: u32| {
        let cgroup = stage
            .node
            .cgroup()
            .path()
            .join(format!("kubepods/burstable/pod{uid}"));
        // As a kubelet makes it, before it asks for the sandbox.
        std::fs::create_dir_all(&cgroup)?;
        runtime.run_sandbox(name, uid, attempt, host, &cgroup, false)
    };
    let document = |stage: &Stage, name: &str, uid: &str| -> Result<()> {
        let mut spec = stage.node.pod(MESH, &format!("s-{name}"))?.spec();
        spec.name = name.to_owned();
        spec.uid = uid.to_owned();
        spec.netns = PathBuf::new();
        spec.cgroup = PathBuf::new();
        spec.addresses.clear();
        stage.config.pod(&spec)
    };
    let first = new_uid();
    document(&stage, "first", &first)?;
    // The runtime reads its directory anew when something changes there, in its own time.
    let sandbox = wait_for("the runtime calls the plugin", Duration::from_secs(60), || {
        let sandbox = start(&stage, "first", &first, 40, 0)?;
        let calls = stage
            .agent()?
            .metrics()?
            .sum("mesh_agent_cni_calls_total", &[("result", "captured")]);
        if calls > 0.0 {
            return Ok(sandbox);
        }
        runtime.stop_sandbox(&sandbox)?;
        bail!("it was not called")
    })?;
    let shown = stage.workload("first")?;
    assert_eq!(shown["capture"], "captured", "{shown:#}");
    runtime.run_container(&sandbox, "app")?;
    stage.wait("first", |w| {
        w["capture"] == "captured" && w["sandbox"]["found_by"] != "cni"
    })?;
    let log = stage.agent()?.log();
    assert!(log.contains("captured before its first process"), "{log}");

    // Without an agent an enrolled pod does not start; with one, the next attempt does.
    stage.agent.as_mut().context("no agent")?.kill();
    let second = new_uid();
    document(&stage, "second", &second)?;
    let error = start(&stage, "second", &second, 41, 0)
        .err()
        .context("it has started")?;
    assert!(
        format!("{error:#}").contains("Is mesh-agent running on this node?"),
        "{error:#}"
    );
    let agent = stage.agent.take().context("no agent")?;
    stage.agent = Some(agent.restart()?);
    let sandbox = start(&stage, "second", &second, 41, 1)?;
    assert_eq!(stage.workload("second")?["capture"], "captured");
    runtime.stop_sandbox(&sandbox)?;
    stage.wait("second", |w| w["capture"] == "pending")?;
    Ok(())
}

#[test]
fn the_binary_is_the_plugin_under_its_other_name_only() -> Result<()> {
    let done = Command::new(agent_binary()?)
        .env("CNI_COMMAND", "VERSION")
        .output()?;
    assert_eq!(
        done.status.code(),
        Some(2),
        "without a command it says how it is used"
    );
    Ok(())
}
