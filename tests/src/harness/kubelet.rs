//! Pods as a kubelet and its runtime make them: a cgroup for each pod, one below for the sandbox with its first process, one for each
//! container.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

use super::app::{App, testapp};
use super::cgroup::Cgroup;
use super::node::{Node, Pod, PodSpec};
use super::process::{JoinExt, Proc, run};

/// Where a kubelet puts the cgroup of a pod, below the node's own.
#[derive(Clone, Copy, Debug)]
pub enum Layout {
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

/// A new uid.
pub fn new_uid() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("{:08x}-0d2d-4e55-a5d4-{number:012x}", std::process::id())
}

/// A pod as its kubelet sees it. What runs in it ends before its cgroups go.
#[derive(Debug)]
pub struct KubePod {
    /// The first process of its sandbox.
    pub pause: Option<Proc>,
    /// The programs in its containers.
    pub containers: Vec<App>,
    /// The cgroup above its containers'.
    pub cgroup: Cgroup,
    /// Where its kubelet puts it.
    pub layout: Layout,
    /// `metadata.uid`.
    pub uid: String,
    /// Its network.
    pub pod: Pod,
}

impl KubePod {
    /// As a pod is before its first process: its network is there, and its cgroup. Its document is the caller's affair.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(node: &Node, pod: Pod, layout: Layout, uid: &str) -> Result<Self> {
        Ok(Self {
            pause: None,
            containers: Vec::new(),
            cgroup: node.cgroup().child(&layout.cgroup(uid))?,
            layout,
            uid: uid.to_owned(),
            pod,
        })
    }

    /// What its document says: nothing of where it lives.
    pub fn spec(&self) -> PodSpec {
        PodSpec {
            uid: self.uid.clone(),
            netns: PathBuf::new(),
            cgroup: PathBuf::new(),
            ..self.pod.spec()
        }
    }

    /// Its network namespace, as the kernel names it.
    ///
    /// # Errors
    /// When the kernel refuses, or a program fails.
    pub fn netns(&self) -> Result<String> {
        use std::os::unix::fs::MetadataExt;
        Ok(format!("net:[{}]", self.pod.netns().open()?.metadata()?.ino()))
    }

    /// The cgroup of one of its containers.
    ///
    /// # Errors
    /// When the kernel refuses, or a program fails.
    pub fn container(&self, name: &str) -> Result<Cgroup> {
        let id = format!(
            "{:0>64}",
            name.bytes().map(|c| format!("{c:02x}")).collect::<String>()
        );
        self.cgroup.child(&self.layout.container(&id))
    }

    /// Starts what does nothing, as the first process of a container with a pid namespace of its own.
    ///
    /// # Errors
    /// When the kernel refuses, or a program fails.
    pub fn first_process(&self, container: &str) -> Result<Proc> {
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
    ///
    /// # Errors
    /// When the kernel refuses, or a program fails.
    pub fn serve(&mut self, container: &str) -> Result<()> {
        let cgroup = self.container(container)?;
        let command = self.pod.command_in(testapp()?, &cgroup)?;
        std::mem::forget(cgroup);
        let app = App::serve_with(&self.pod, command, "echo", 8080, &[])?;
        self.containers.push(app);
        Ok(())
    }

    /// What a client in a container of this pod is answered.
    ///
    /// # Errors
    /// When the kernel refuses, or a program fails.
    pub fn exchange(&self, server: IpAddr) -> Result<String> {
        self.exchange_from("client", server)
    }

    /// The same, in a container of this name.
    ///
    /// # Errors
    /// When the kernel refuses, or a program fails.
    pub fn exchange_from(&self, container: &str, server: IpAddr) -> Result<String> {
        let cgroup = self.container(container)?;
        let mut command = self.pod.command_in(testapp()?, &cgroup)?;
        let target = SocketAddr::new(server, 8080).to_string();
        command.args(["connect", &target, "exchange", "--timeout", "3000"]);
        let output = run(&mut command, Duration::from_secs(20))?;
        let report: Value =
            serde_json::from_str(output.stdout.trim()).with_context(|| format!("no report: {output:?}"))?;
        Ok(report["text"].as_str().unwrap_or_default().to_owned())
    }

    /// Ends all that runs in it, the sandbox last.
    pub fn end(&mut self) {
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
    let mut command = command;
    command.in_cgroup(cgroup)?.in_netns(pod.netns())?;
    Ok(command)
}

/// Starts a process as number 1 of a new pid namespace. This process is its parent, as a runtime's shim is.
///
/// # Errors
/// When the kernel refuses, or `start` fails.
pub fn in_new_pid_namespace(start: impl FnOnce() -> Result<Proc> + Send) -> Result<Proc> {
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
