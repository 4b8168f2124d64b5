//! What an agent takes for a kubelet: a process of that name which connects when it is told to.

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result};

use super::app::{Report, testapp};
use super::node::Node;
use super::process::JoinExt;
use super::world::World;

/// A process that is called `kubelet`. Ended on drop.
#[derive(Debug)]
pub struct Kubelet {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Kubelet {
    /// In the node's network, and directly in this cgroup.
    ///
    /// # Errors
    /// When it cannot be started there.
    pub fn start(world: &World, node: &Node, cgroup: &Path) -> Result<Self> {
        let program = world.dir().join("kubelet");
        if !program.exists() {
            std::fs::copy(testapp()?, &program)?;
        }
        let mut command = Command::new(&program);
        command.arg("ask").in_netns(node.netns())?;
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let kubelet = Self {
            orders: orders.context("no standard input")?,
            answers: BufReader::new(answers.context("no standard output")?),
            child,
        };
        // Before its first socket is made.
        std::fs::write(cgroup.join("cgroup.procs"), kubelet.child.id().to_string())?;
        Ok(kubelet)
    }

    /// Connects. `how` is empty, or `child` for a program that it starts, or the path of another network namespace.
    ///
    /// # Errors
    /// When it does not say how that went.
    pub fn connect(&mut self, ip: IpAddr, port: u16, how: &str) -> Result<Report> {
        writeln!(self.orders, "{} {how}", SocketAddr::new(ip, port))?;
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("no report: {line:?}"))
    }

    /// Whether it gets its answer.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn probe(&mut self, ip: IpAddr, port: u16, how: &str) -> Result<bool> {
        Ok(self.connect(ip, port, how)?.text == "ping\n")
    }

    /// How `meshctl check` names it.
    pub fn process(&self) -> String {
        format!("process {},", self.child.id())
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
