//! The stage: a node with an agent that looks for pods.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{
    Agent, AgentBuilder, KubePod, Layout, MESH, Manifests, Node, Pod, World, cgroup2_mount, new_uid, wait_for,
};
use serde_json::Value;

/// How long what should happen at once may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// The stage. Parts go in this order.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) agent: Option<Agent>,
    pub(crate) config: Manifests,
    pub(crate) node: Node,
    pub(crate) world: World,
}

impl Stage {
    /// A node whose agent looks for pods below the node's cgroup, without a container runtime.
    pub(crate) fn start() -> Result<Self> {
        Self::with(|agent| agent)
    }

    /// The same, with an adapted agent.
    pub(crate) fn with(adapt: impl FnOnce(AgentBuilder) -> AgentBuilder) -> Result<Self> {
        let world = World::new("p")?;
        let node = world.node("n1")?;
        let config = Manifests::new(world.dir().join("config"))?;
        config.namespace(MESH, true)?;
        let mut stage = Self {
            agent: None,
            config,
            node,
            world,
        };
        stage.agent = Some(adapt(stage.builder()?).start()?);
        Ok(stage)
    }

    /// The agent, to be adapted.
    pub(crate) fn builder(&self) -> Result<AgentBuilder> {
        let below = self
            .node
            .cgroup()
            .path()
            .strip_prefix(cgroup2_mount()?)?
            .to_owned();
        Ok(Agent::builder(&self.world, &self.node, &self.config)
            .arg("--pods-discover", "true")
            .arg("--pods-cri-socket", "off")
            .arg("--pods-cgroup", &below.to_string_lossy()))
    }

    pub(crate) fn agent(&self) -> Result<&Agent> {
        self.agent.as_ref().context("no agent runs")
    }

    /// A pod with sandbox and document.
    pub(crate) fn pod(&self, name: &str, layout: Layout) -> Result<KubePod> {
        let pod = self.sandbox(self.node.pod(MESH, name)?, layout, &new_uid())?;
        self.config.pod(&pod.spec())?;
        Ok(pod)
    }

    /// The sandbox of a pod, as the runtime makes it: its document is the caller's affair.
    pub(crate) fn sandbox(&self, pod: Pod, layout: Layout, uid: &str) -> Result<KubePod> {
        let mut made = KubePod::new(&self.node, pod, layout, uid)?;
        made.pause = Some(made.first_process("pause")?);
        Ok(made)
    }

    /// A pod as `meshctl workloads` has it.
    pub(crate) fn workload(&self, name: &str) -> Result<Value> {
        let all = self.agent()?.meshctl(&["workloads"])?;
        let mut all = all["workloads"].as_array().into_iter().flatten();
        all.find(|w| w["name"] == name)
            .cloned()
            .with_context(|| format!("no workload {name}"))
    }

    /// Waits until `meshctl workloads` shows a pod as `probe` wants it.
    pub(crate) fn wait(&self, name: &str, probe: impl Fn(&Value) -> bool) -> Result<Value> {
        wait_for(&format!("workload {name}"), SOON, || {
            let workload = self.workload(name)?;
            if probe(&workload) {
                Ok(workload)
            } else {
                bail!("{workload:#}")
            }
        })
    }

    /// Waits until a pod is captured.
    pub(crate) fn wait_captured(&self, name: &str) -> Result<Value> {
        self.wait(name, |w| w["capture"] == "captured")
    }

    /// Waits until the agent has looked for a pod in vain, for this reason.
    pub(crate) fn wait_pending(&self, name: &str, why: &str) -> Result<Value> {
        self.wait(name, |w| {
            let reason = w["capture_reason"].as_str().unwrap_or_default();
            w["capture"] == "pending" && reason.contains(why)
        })
    }

    /// Waits until a pod is captured in this network namespace.
    pub(crate) fn wait_captured_in(&self, pod: &KubePod) -> Result<Value> {
        let netns = pod.netns()?;
        self.wait(pod.pod.name(), |w| {
            w["capture"] == "captured" && w["sandbox"]["netns"] == netns.as_str()
        })
    }

    /// Connections that the agent carried.
    pub(crate) fn carried(&self) -> Result<f64> {
        Ok(self
            .agent()?
            .metrics()?
            .sum("istio_tcp_connections_opened_total", &[]))
    }

    /// Checks that what `client` connects to at `server` is carried by the agent.
    pub(crate) fn check_carried(&self, client: &KubePod, server: IpAddr) -> Result<()> {
        let before = self.carried()?;
        let text = client.exchange(server)?;
        if text != "ping\n" {
            bail!("the answer is {text:?}");
        }
        wait_for("the connection is counted", SOON, || {
            if self.carried()? > before {
                Ok(())
            } else {
                bail!("still {before}")
            }
        })
    }
}
