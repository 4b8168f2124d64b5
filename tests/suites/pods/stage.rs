//! The stage: a node with an agent that looks for pods, and pods as a kubelet and its runtime make them: a cgroup for each pod, one below for
//! the sandbox with its first process, one for each container.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::{
    Agent, AgentBuilder, App, Cgroup, MESH, Manifests, Node, Pod, PodSpec, Proc, World, cgroup2_mount, run,
    testapp, wait_for,
};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

/// How long what should happen at once may take on a busy machine.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Where a kubelet puts the cgroup of a pod, below the node's own.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Layout {
    /// Driver cgroupfs, a guaranteed pod.
    Cgroupfs,
    /// Driver cgroupfs, a burstable pod.
    Burstable,
    /// Driver systemd, a best-effort pod.
    Systemd,
    /// The kubelet of kind: driver systemd, with a root of its own.
    Kind,
}

impl Layout {
    fn cgroup(self, uid: &str) -> String {
        let escaped = uid.replace('-', "_");
        match self {
            Self::Cgroupfs => format!("kubepods/pod{uid}"),
            Self::Burstable => format!("kubepods/burstable/pod{uid}"),
            Self::Systemd => {
                format!("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{escaped}.slice")
            }
            Self::Kind => format!(
                "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{escaped}.slice"
            ),
        }
    }

    fn container(self, id: &str) -> String {
        match self {
            Self::Cgroupfs | Self::Burstable => id.to_owned(),
            Self::Systemd => format!("crio-{id}.scope"),
            Self::Kind => format!("cri-containerd-{id}.scope"),
        }
    }
}

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
    pub(crate) fn with(adapt: impl Fn(AgentBuilder) -> AgentBuilder) -> Result<Self> {
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
        let pod = self.sandbox(self.node.pod(MESH, name)?, layout, &uid())?;
        self.config.pod(&pod.spec())?;
        Ok(pod)
    }

    /// The sandbox of a pod, as the runtime makes it: its document is the caller's affair.
    pub(crate) fn sandbox(&self, pod: Pod, layout: Layout, uid: &str) -> Result<KubePod> {
        let cgroup = self.node.cgroup().child(&layout.cgroup(uid))?;
        let mut made = KubePod {
            pause: None,
            containers: Vec::new(),
            cgroup,
            layout,
            uid: uid.to_owned(),
            pod,
        };
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

/// A new uid.
pub(crate) fn uid() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-0d2d-4e55-a5d4-{number:012x}", std::process::id())
}

/// A pod as its kubelet sees it. What runs in it ends before its cgroups go.
#[derive(Debug)]
pub(crate) struct KubePod {
    pub(crate) pause: Option<Proc>,
    pub(crate) containers: Vec<App>,
    pub(crate) cgroup: Cgroup,
    pub(crate) layout: Layout,
    pub(crate) uid: String,
    pub(crate) pod: Pod,
}

impl KubePod {
    /// What its document says: nothing of where it lives.
    pub(crate) fn spec(&self) -> PodSpec {
        PodSpec {
            uid: self.uid.clone(),
            netns: PathBuf::new(),
            cgroup: PathBuf::new(),
            ..self.pod.spec()
        }
    }

    /// Its network namespace, as the kernel names it.
    pub(crate) fn netns(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;
        Ok(format!("net:[{}]", self.pod.netns().open()?.metadata()?.ino()))
    }

    /// The cgroup of one of its containers.
    pub(crate) fn container(&self, name: &str) -> Result<Cgroup> {
        let id = format!(
            "{:0>64}",
            name.bytes().map(|c| format!("{c:02x}")).collect::<String>()
        );
        self.cgroup.child(&self.layout.container(&id))
    }

    /// Starts what does nothing, as the first process of a container with a pid namespace of its own.
    pub(crate) fn first_process(&self, container: &str) -> Result<Proc> {
        let cgroup = self.container(container)?;
        // The cgroup of a container lives as long as the pod's: it goes with that.
        let mut command = Command::new("sleep");
        command.arg("600");
        let mut command = placed(command, &self.pod, &cgroup)?;
        std::mem::forget(cgroup);
        let name = format!("{}-{container}", self.pod.name());
        in_new_pid_namespace(|| Proc::start(&name, &mut command, self.pod.log_dir()))
    }

    /// Starts an echo server at port 8080 in a container of its own.
    pub(crate) fn serve(&mut self, container: &str) -> Result<()> {
        let cgroup = self.container(container)?;
        let command = self.pod.command_in(testapp()?, &cgroup)?;
        std::mem::forget(cgroup);
        let app = App::serve_with(&self.pod, command, "echo", 8080, &[])?;
        self.containers.push(app);
        Ok(())
    }

    /// What a client in a container of this pod is answered.
    pub(crate) fn exchange(&self, server: IpAddr) -> Result<String> {
        self.exchange_from("client", server)
    }

    /// The same, in a container of this name.
    pub(crate) fn exchange_from(&self, container: &str, server: IpAddr) -> Result<String> {
        let cgroup = self.container(container)?;
        let mut command = self.pod.command_in(testapp()?, &cgroup)?;
        let target = std::net::SocketAddr::new(server, 8080).to_string();
        command.args(["connect", &target, "exchange", "--timeout", "3000"]);
        let output = run(&mut command, Duration::from_secs(20))?;
        let report: Value =
            serde_json::from_str(output.stdout.trim()).with_context(|| format!("no report: {output:?}"))?;
        Ok(report["text"].as_str().unwrap_or_default().to_owned())
    }

    /// Ends all that runs in it, the sandbox last.
    pub(crate) fn end(&mut self) {
        self.containers.clear();
        self.pause = None;
    }
}

impl Drop for KubePod {
    fn drop(&mut self) {
        self.end();
    }
}

fn placed(command: Command, pod: &Pod, cgroup: &Cgroup) -> Result<Command> {
    use mesh_tests::harness::JoinExt;
    let mut command = command;
    command.in_cgroup(cgroup)?.in_netns(pod.netns())?;
    Ok(command)
}

/// Starts a process as number 1 of a new pid namespace. This process is its parent, as a runtime's shim is.
pub(crate) fn in_new_pid_namespace(start: impl FnOnce() -> Result<Proc> + Send) -> Result<Proc> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWPID).context("cannot make a pid namespace")?;
            start()
        });
        match thread.join() {
            Ok(started) => started,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
