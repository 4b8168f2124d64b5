//! One node with an agent, and sandboxes on it.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{
    Agent, JoinExt, Manifests, Node, Output, Proc, World, agent_binary, cgroup2_mount, run, testapp, wait_for,
};

/// How long a sandbox may take for a short command.
pub(crate) const LIMIT: Duration = Duration::from_secs(40);

/// Removes what sandboxes leave that are killed with their agent, as at the end of a test.
struct Rest(String);

impl Drop for Rest {
    fn drop(&mut self) {
        for name in names(Path::new("/run/netns"), |name| name.starts_with(&self.0)) {
            let _ = run(Command::new("ip").args(["netns", "delete", &name]), LIMIT);
        }
        let Ok(mount) = cgroup2_mount() else { return };
        let cgroup = mount.join(&self.0);
        for child in names(&cgroup, |name| {
            name.starts_with("default.") || name.starts_with("elsewhere.")
        }) {
            // Takes along what still runs in it.
            drop(mesh_tests::harness::Cgroup::create(cgroup.join(child)));
        }
        let _ = std::fs::remove_dir(cgroup);
    }
}

pub(crate) struct Stage {
    pub(crate) agent: Agent,
    pub(crate) config: Manifests,
    /// Dropped when the agent is gone.
    rest: Rest,
    pub(crate) node: Node,
    pub(crate) world: World,
}

impl Stage {
    pub(crate) fn start() -> Result<Self> {
        let world = World::new("s")?;
        // Sandboxes are named after their node, so the tests that run side by side need nodes of different names.
        let node = world.node(&format!("n{}", world.prefix()))?;
        let config = Manifests::new(world.dir().join("config"))?;
        config.namespace("default", false)?;
        let agent = Agent::builder(&world, &node, &config).start()?;
        Ok(Self {
            agent,
            config,
            rest: Rest(format!("mesh-sandbox-{}", node.name())),
            node,
            world,
        })
    }

    /// The stage with the agent started again, after a kill.
    pub(crate) fn restarted(self) -> Result<Self> {
        let Self {
            agent,
            config,
            rest,
            node,
            world,
        } = self;
        Ok(Self {
            agent: agent.restart()?,
            config,
            rest,
            node,
            world,
        })
    }

    /// `mesh-agent sandbox --name NAME OPTIONS… -- COMMAND…`, on the node.
    pub(crate) fn command(&self, name: &str, options: &[&str], command: &[&str]) -> Result<Command> {
        let mut sandbox = self.bare(name, options, command)?;
        sandbox.in_netns(self.node.netns())?;
        Ok(sandbox)
    }

    /// The same where the test runs.
    pub(crate) fn bare(&self, name: &str, options: &[&str], command: &[&str]) -> Result<Command> {
        let mut sandbox = Command::new(agent_binary()?);
        sandbox
            .args(["sandbox", "--name", name])
            .args(options)
            .arg("--")
            .args(command)
            .env("MESH_AGENT_ADMIN_SOCKET", self.agent.admin_socket());
        Ok(sandbox)
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, name: &str, options: &[&str], command: &[&str]) -> Result<Output> {
        run(&mut self.command(name, options, command)?, LIMIT)
    }

    /// Runs it to its end with this on its standard input.
    pub(crate) fn run_with_input(&self, name: &str, command: &[&str], input: &str) -> Result<String> {
        let mut child = self
            .command(name, &["--quiet"], command)?
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(input.as_bytes())?;
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts it, in a process group of its own.
    pub(crate) fn spawn(&self, name: &str, options: &[&str], command: &[&str]) -> Result<Proc> {
        let mut sandbox = self.command(name, options, command)?;
        sandbox.process_group(0);
        Proc::start(&format!("sandbox-{name}"), &mut sandbox, &self.world.log_dir())
    }

    /// Starts a sandbox that publishes the service NAME:80 over an echo server, and waits until that listens.
    pub(crate) fn serve(&self, name: &str) -> Result<Proc> {
        let app = testapp()?;
        let service = format!("{name}:80:8080");
        let server = self.spawn(
            name,
            &["--service-account", name, "--service", &service],
            &[&app.to_string_lossy(), "serve", "echo", "--listen", "[::]:8080"],
        )?;
        wait_for("the server in the sandbox listens", LIMIT, || {
            ensure!(server.stdout().contains("listening"), "{}", server.stderr());
            Ok(())
        })?;
        Ok(server)
    }

    /// A shell script that connects to the service NAME:80 and does MODE ARGUMENTS….
    pub(crate) fn connect(&self, service: &str, rest: &str) -> Result<String> {
        let app = testapp()?;
        Ok(format!(
            "set -e; address=$(getent ahostsv4 {service} | head -n1 | cut -d' ' -f1); exec {} connect $address:80 {rest}",
            app.display()
        ))
    }

    /// The directory of the agent's sandboxes.
    pub(crate) fn directory(&self) -> PathBuf {
        self.world.dir().join("sandboxes").join(self.node.name())
    }

    /// The processes of the sandbox NAME that live.
    pub(crate) fn processes(&self, name: &str) -> Result<Vec<u32>> {
        let cgroup = cgroup2_mount()?
            .join(&self.rest.0)
            .join(format!("default.{name}"));
        let listed = std::fs::read_to_string(cgroup.join("cgroup.procs"))?;
        listed.lines().map(|pid| Ok(pid.parse()?)).collect()
    }

    /// What there is of sandboxes on this node: namespaces, cgroups, links, records and documents.
    pub(crate) fn remains(&self) -> Result<Vec<String>> {
        let begins = format!("mesh-sandbox-{}", self.node.name());
        let mut found = names(Path::new("/run/netns"), |name| name.starts_with(&begins));
        found.extend(names(&cgroup2_mount()?, |name| name == begins));
        found.extend(names(&self.directory(), |name| name.contains('.')));
        let links = self.node.netns().enter(|| {
            let links = nix::net::if_::if_nameindex()?;
            let named = |link: &nix::net::if_::Interface| link.name().to_string_lossy().into_owned();
            Ok(links.iter().map(named).collect::<Vec<_>>())
        })?;
        found.extend(
            links
                .into_iter()
                .filter(|link| link.starts_with("msb") || link == "mesh-sandbox"),
        );
        Ok(found)
    }

    /// Waits until nothing of any sandbox is left, and the agent has forgotten its workload.
    pub(crate) fn wait_gone(&self) -> Result<()> {
        wait_for("nothing is left of the sandbox", Duration::from_secs(10), || {
            let remains = self.remains()?;
            ensure!(remains.is_empty(), "{remains:?}");
            let workloads = self.agent.meshctl(&["workloads"])?;
            ensure!(
                workloads["workloads"].as_array().is_some_and(Vec::is_empty),
                "{workloads:#}"
            );
            let pods = self.agent.meshctl(&["bpf"])?;
            ensure!(pods["pods"].as_array().is_some_and(Vec::is_empty), "{pods:#}");
            Ok(())
        })
    }
}

fn names(dir: &Path, wanted: impl Fn(&str) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| wanted(name)).collect()
}
