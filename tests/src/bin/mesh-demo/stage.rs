//! What the demo plays on: two nodes, four pods, their documents, and an agent on each node. Removed on drop.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use mesh_tests::harness::{Agent, Capture, JoinExt, Manifests, Node, Output, Pod, Proc, World, run};

use crate::show::Show;
use crate::signals;

/// Begins the names of everything that a demo makes; in the documents it stands for the prefix of this one.
pub(crate) const NAME: &str = "mesh-demo";
/// The pods.
pub(crate) const PODS: [&str; 4] = ["order", "payment", "visitor", "invoice"];
/// The service's name, as an application knows it.
pub(crate) const SERVICE: &str = "payment.shop.svc.cluster.local";
/// Its cluster address, as in deploy/demo/mesh/services.yaml.
pub(crate) const CLUSTER_IP: &str = "198.19.0.10";
/// The port that payment listens on.
pub(crate) const PORT: u16 = 8080;

/// The stage. Its fields are in the order in which they are to be dropped.
pub(crate) struct Stage {
    /// The agents of node-a and node-b.
    pub(crate) agents: Vec<Agent>,
    payment: Proc,
    /// order, payment, visitor, invoice.
    pods: Vec<Pod>,
    nodes: Vec<Node>,
    manifests: Manifests,
    documents: PathBuf,
    /// The world that all of it is in.
    pub(crate) world: World,
}

impl Stage {
    /// Builds the nodes and pods, and starts payment. Agents come later.
    pub(crate) fn build(show: &Show, documents: &Path) -> Result<Self> {
        let documents = documents
            .canonicalize()
            .with_context(|| format!("no documents at {}", documents.display()))?;
        let world = World::new(NAME)?;
        show.say(&format!(
            "Building two nodes and four pods out of namespaces and cgroups ({}-*) …",
            world.prefix()
        ));
        let nodes = vec![world.node("node-a")?, world.node("node-b")?];
        signals::check()?;
        let pods = vec![
            nodes[0].pod("shop", "order")?,
            nodes[1].pod("shop", "payment")?,
            nodes[0].pod("street", "visitor")?,
            nodes[0].pod("shop", "invoice")?,
        ];
        signals::check()?;
        let manifests = Manifests::new(world.dir().join("config"))?;
        let mut command = pods[1].command("python3")?;
        command.arg("-B").arg(documents.join("payment.py"));
        let payment = Proc::start("payment", &mut command, &world.log_dir())?;
        let mut stage = Self {
            agents: Vec::new(),
            payment,
            pods,
            nodes,
            manifests,
            documents,
            world,
        };
        for file in ["namespaces", "pods", "services"] {
            stage.apply(&format!("mesh/{file}"), file)?;
        }
        stage.apply("permissive", "payment-mtls")?;
        stage.wait_for_payment()?;
        Ok(stage)
    }

    /// Starts both agents, and waits until they are ready.
    pub(crate) fn start_agents(&mut self) -> Result<()> {
        for node in &self.nodes {
            self.agents
                .push(Agent::builder(&self.world, node, &self.manifests).spawn()?);
        }
        for agent in &mut self.agents {
            agent.wait_ready()?;
        }
        Ok(())
    }

    /// Puts `FROM.yaml` of the documents into the agents' directory as `TO.yaml`, with this demo's names in it.
    pub(crate) fn apply(&self, from: &str, to: &str) -> Result<()> {
        let path = self.documents.join(format!("{from}.yaml"));
        let text =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        self.manifests.write(to, &localise(&text, self.world.prefix()))
    }

    /// The directory that the agents read.
    pub(crate) fn config_dir(&self) -> &Path {
        self.manifests.dir()
    }

    /// A pod, by name.
    pub(crate) fn pod(&self, name: &str) -> Result<&Pod> {
        self.pods
            .iter()
            .find(|pod| pod.name() == name)
            .with_context(|| format!("there is no pod {name}"))
    }

    /// Captures what goes between the nodes.
    pub(crate) fn capture(&self) -> Result<Capture> {
        Capture::start(&self.world, self.world.fabric(), "br0")
    }

    /// Runs `curl ARGS…` in a pod.
    pub(crate) fn curl(&self, pod: &str, args: &[&str]) -> Result<Output> {
        signals::check()?;
        let mut command = self.pod(pod)?.command("curl")?;
        command.args(["-sS", "--max-time", "5"]).args(args);
        run(&mut command, Duration::from_secs(10))
    }

    /// Starts `curl ARGS…` in a pod.
    pub(crate) fn curl_in_background(&self, pod: &str, args: &[&str]) -> Result<Proc> {
        let mut command = self.pod(pod)?.command("curl")?;
        command.args(["-sS", "-N", "--max-time", "60"]).args(args);
        Proc::start(&format!("{pod}-curl"), &mut command, &self.world.log_dir())
    }

    /// Runs a program in a node's network namespace.
    pub(crate) fn on_node(&self, node: usize, program: &str, args: &[&str]) -> Result<Output> {
        signals::check()?;
        let mut command = Command::new(program);
        command.args(args).in_netns(self.nodes[node].netns())?;
        run(&mut command, Duration::from_secs(10))
    }

    /// What must be gone once the stage is dropped.
    pub(crate) fn traces(&self) -> Traces {
        Traces {
            prefix: self.world.prefix().to_owned(),
            directory: self.world.dir().to_owned(),
            cgroup: self.world.cgroup().path().to_owned(),
        }
    }

    /// Prints the ends of the agents' logs.
    pub(crate) fn show_logs(&self, show: &Show) {
        for agent in &self.agents {
            show.say(&format!(
                "the end of the log of an agent ({}):",
                agent.admin_socket().display()
            ));
            let log = agent.log();
            let lines: Vec<&str> = log.lines().collect();
            show.output(&lines[lines.len().saturating_sub(20)..].join("\n"));
        }
    }

    /// What payment itself logged.
    pub(crate) fn payment_log(&self) -> String {
        self.payment.stderr()
    }

    fn wait_for_payment(&mut self) -> Result<()> {
        signals::wait_for("payment listens", Duration::from_secs(10), || {
            let args = ["-sS", "--max-time", "1", &format!("http://127.0.0.1:{PORT}/")];
            let mut command = self.pods[1].command("curl")?;
            run(command.args(args), Duration::from_secs(3))?.success()
        })
        .map(drop)
        .with_context(|| format!("payment said: {}", self.payment.stderr()))
    }
}

/// The documents name namespaces and cgroups `mesh-demo…`; this puts the names of this demo in their place.
fn localise(text: &str, prefix: &str) -> String {
    text.replace(&format!("/run/netns/{NAME}-"), &format!("/run/netns/{prefix}-"))
        .replace(&format!("cgroup: {NAME}/"), &format!("cgroup: {prefix}/"))
}

/// What a stage leaves if it is not removed well.
pub(crate) struct Traces {
    prefix: String,
    directory: PathBuf,
    cgroup: PathBuf,
}

impl Traces {
    /// States that namespaces, cgroups, mounts, files and processes are gone.
    pub(crate) fn check_gone(&self, show: &Show) -> Result<()> {
        let started = Instant::now();
        let mut left = self.left();
        while !left.is_empty() && started.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(Duration::from_millis(50));
            left = self.left();
        }
        show.verdict(
            left.is_empty(),
            "no namespace, cgroup, mount, file or process is left",
            &left.join(", "),
        )
    }

    fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
            if entry
                .file_name()
                .to_string_lossy()
                .starts_with(&format!("{}-", self.prefix))
            {
                left.push(format!("namespace {}", entry.file_name().to_string_lossy()));
            }
        }
        left.extend(
            [&self.directory, &self.cgroup]
                .into_iter()
                .filter(|path| path.exists())
                .map(|path| path.display().to_string()),
        );
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        left.extend(
            mounts
                .lines()
                .filter(|line| line.contains(&self.prefix))
                .map(|line| format!("mount {line}")),
        );
        left.extend(processes_naming(&self.prefix));
        left
    }
}

/// Processes that have `word` in their command line, except this one.
fn processes_naming(word: &str) -> Vec<String> {
    let me = std::process::id().to_string();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && *pid != me)
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(word).then(|| format!("process {pid} {line}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::localise;

    #[test]
    fn documents_get_this_demos_names() {
        let text = "netns: /run/netns/mesh-demo-order\ncgroup: mesh-demo/node-a/order\n";
        let expected = "netns: /run/netns/mesh-demo7-0-order\ncgroup: mesh-demo7-0/node-a/order\n";
        assert_eq!(localise(text, "mesh-demo7-0"), expected);
    }

    #[test]
    fn every_pods_document_names_what_is_to_be_replaced() {
        let text = include_str!("../../../../deploy/demo/mesh/pods.yaml");
        let localised = localise(text, "x9-0");
        for pod in super::PODS {
            assert!(
                localised.contains(&format!("mesh-agent.io/netns: /run/netns/x9-0-{pod}\n")),
                "{localised}"
            );
            assert!(localised.contains(&format!("/{pod}\nspec:")), "{localised}");
        }
    }
}
