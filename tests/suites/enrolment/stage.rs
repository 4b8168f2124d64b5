//! The stage of these tests: one node with an agent, an enrolled pod `server`, a pod `visitor` outside the mesh.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{
    Agent, AgentBuilder, Cgroup, JoinExt, MESH, Manifests, Metrics, Netns, Node, Pod, Proc, Report, World,
    run, wait_for,
};
use serde_json::Value;

/// The stage. Parts go in this order.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) server: Pod,
    pub(crate) visitor: Pod,
    pub(crate) config: Manifests,
    pub(crate) node: Node,
    pub(crate) world: World,
}

impl Stage {
    /// Starts it; `adapt` changes the agent, `server` the text of the server's manifest. The namespace is enrolled when `enrolled`.
    pub(crate) fn start(
        enrolled: bool,
        adapt: impl Fn(AgentBuilder, &Node) -> AgentBuilder,
        server: impl Fn(&str) -> String,
    ) -> Result<Self> {
        let world = World::new("e")?;
        let node = world.node("n1")?;
        let pods = (node.pod(MESH, "server")?, node.pod("outside", "visitor")?);
        let config = Manifests::new(world.dir().join("config"))?;
        config.namespace(MESH, enrolled)?;
        config.namespace("outside", false)?;
        config.pod(&pods.0.spec())?;
        config.pod(&pods.1.spec())?;
        rewrite(&config, "pod-server", server)?;
        let agent = adapt(Agent::builder(&world, &node, &config), &node).start()?;
        let stage = Self {
            agent,
            server: pods.0,
            visitor: pods.1,
            config,
            node,
            world,
        };
        if enrolled {
            stage.wait_captured()?;
        }
        Ok(stage)
    }

    /// Waits until the server is captured.
    pub(crate) fn wait_captured(&self) -> Result<()> {
        wait_for("the server is captured", Duration::from_secs(15), || {
            let server = self.workload("server")?;
            if server["capture"] == "captured" {
                Ok(())
            } else {
                bail!("{server:#}")
            }
        })
    }

    /// A pod as `meshctl workloads` has it.
    pub(crate) fn workload(&self, name: &str) -> Result<Value> {
        let all = self.agent.meshctl(&["workloads"])?;
        let mut all = all["workloads"].as_array().into_iter().flatten();
        all.find(|w| w["name"] == name)
            .cloned()
            .with_context(|| format!("no workload {name}"))
    }

    /// Waits until `meshctl workloads` shows the server as `probe` wants it.
    pub(crate) fn wait_workload(&self, what: &str, probe: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(what, Duration::from_secs(10), || {
            let server = self.workload("server")?;
            if probe(&server) {
                Ok(server)
            } else {
                bail!("{server:#}")
            }
        })
    }

    /// A line of `meshctl check`.
    pub(crate) fn check(&self, name: &str) -> Result<Value> {
        // A check that fails ends meshctl with an error; its answer stands all the same.
        let output = self.agent.meshctl_text(&["check", "-o", "json"])?;
        let all: Value = serde_json::from_str(&output.stdout).with_context(|| format!("{output:?}"))?;
        let mut all = all["checks"].as_array().into_iter().flatten();
        all.find(|check| check["name"] == name)
            .cloned()
            .with_context(|| format!("no check {name}"))
    }

    /// Changes the server's manifest.
    pub(crate) fn change_server(&self, change: impl Fn(&str) -> String) -> Result<()> {
        self.config.pod(&self.server.spec())?;
        rewrite(&self.config, "pod-server", change)
    }

    /// How often the BPF programs counted `event`.
    pub(crate) fn event(&self, event: &str) -> Result<f64> {
        Ok(self
            .agent
            .metrics()?
            .sum("mesh_agent_bpf_events_total", &[("event", event)]))
    }

    /// Connections that the agent carried.
    pub(crate) fn carried(&self) -> Result<f64> {
        Ok(carried(&self.agent.metrics()?))
    }

    /// Connects from `cgroup` and `netns`: exchange of a text.
    pub(crate) fn connect_from(
        &self,
        cgroup: &Cgroup,
        netns: &Netns,
        ip: IpAddr,
        port: u16,
    ) -> Result<Report> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mesh-testapp"));
        command
            .args([
                "connect",
                &SocketAddr::new(ip, port).to_string(),
                "exchange",
                "--timeout",
                "3000",
            ])
            .in_cgroup(cgroup)?
            .in_netns(netns)?;
        let output = run(&mut command, Duration::from_secs(20))?;
        serde_json::from_str(output.stdout.trim()).with_context(|| format!("no report: {output:?}"))
    }

    /// A process that does nothing in `cgroup` and `netns`.
    pub(crate) fn sleeper(&self, name: &str, cgroup: &Cgroup, netns: &Netns) -> Result<Proc> {
        let mut command = Command::new("sleep");
        command.arg("600").in_cgroup(cgroup)?.in_netns(netns)?;
        Proc::start(name, &mut command, &self.world.log_dir())
    }
}

/// Connections that the agent carried.
pub(crate) fn carried(metrics: &Metrics) -> f64 {
    metrics.sum("istio_tcp_connections_opened_total", &[])
}

/// The manifest with these annotations besides its own.
pub(crate) fn annotated(text: &str, annotations: &[(&str, &str)]) -> String {
    let mut lines = String::from("  annotations:\n");
    for (key, value) in annotations {
        lines += &format!("    mesh-agent.io/{key}: \"{value}\"\n");
    }
    text.replace("  annotations:\n", &lines)
}

/// Rewrites a document in place; `change` must change something, or return it as it is.
pub(crate) fn rewrite(config: &Manifests, file: &str, change: impl Fn(&str) -> String) -> Result<()> {
    let path = config.dir().join(format!("{file}.yaml"));
    let text = std::fs::read_to_string(path)?;
    config.write(file, &change(&text))
}
