//! Looking around: a shell in a pod, and a demo that stays up after the end.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use mesh_tests::harness::cgroup2_mount;

use crate::show::Show;
use crate::stage::{CLUSTER_IP, NAME, PODS, PORT, SERVICE, Stage};

/// The prefix of the newest demo that was left up.
pub(crate) fn kept() -> Result<Option<String>> {
    Ok(mesh_tests::harness::World::kept(NAME)?.pop())
}

/// Becomes a shell in a pod of a demo that was left up.
pub(crate) fn open_kept(prefix: &str, pod: &str) -> Result<()> {
    let mount = cgroup2_mount()?;
    let home = ["node-a", "node-b"].map(|node| mount.join(prefix).join(node).join(pod));
    let cgroup = home
        .iter()
        .find(|path| path.is_dir())
        .with_context(|| format!("{prefix} has no pod {pod}"))?;
    let mut shell = enter(cgroup, &netns(prefix, pod), pod);
    Err(shell.exec()).context("cannot run a shell")
}

/// Runs a shell in a pod, until the person ends it.
pub(crate) fn open(stage: &Stage, pod: &str) -> Result<()> {
    println!(
        "\nA shell in {pod}; `exit` ends it and removes the demo. Try:\n   {}",
        hint(pod)
    );
    let prefix = stage.world.prefix();
    let status = enter(stage.pod(pod)?.cgroup().path(), &netns(prefix, pod), pod)
        .status()
        .context("cannot run a shell")?;
    if status.code().is_none() {
        bail!("the shell ended with {status}");
    }
    Ok(())
}

/// Leaves everything up: says how to look around and how to remove it, and ends this process without removing anything.
pub(crate) fn leave_up(show: &Show, stage: Stage) -> Result<()> {
    stage.world.keep()?;
    println!(
        "\nall of it held, in {}; it stays up. To look around:",
        show.elapsed()
    );
    for pod in PODS {
        show.command("host", &format!("cargo xtask demo --shell {pod}"));
        show.command(&format!("  {pod}"), &hint(pod));
    }
    for agent in &stage.agents {
        let socket = agent.admin_socket().display();
        show.command("host", &format!("meshctl --socket {socket} connections"));
    }
    show.command(
        "host",
        &format!(
            "ls {0} {1}",
            stage.config_dir().display(),
            stage.world.log_dir().display()
        ),
    );
    println!("To remove it:");
    show.command("host", "cargo xtask demo --clean");
    // The agents and programs must outlive this process.
    std::mem::forget(stage);
    Ok(())
}

fn hint(pod: &str) -> String {
    match pod {
        "order" => format!("curl --resolve {SERVICE}:80:{CLUSTER_IP} http://{SERVICE}/"),
        "payment" => format!("ss -tn; curl http://127.0.0.1:{PORT}/"),
        _ => format!("curl http://198.18.2.10:{PORT}/"),
    }
}

fn netns(prefix: &str, pod: &str) -> PathBuf {
    Path::new("/run/netns").join(format!("{prefix}-{pod}"))
}

/// A shell in a cgroup and a network namespace: what makes a pod here.
fn enter(cgroup: &Path, netns: &Path, pod: &str) -> Command {
    let mut shell = Command::new("sh");
    shell
        .args([
            "-c",
            "echo $$ > \"$1/cgroup.procs\" && exec nsenter --net=\"$2\" \"${SHELL:-/bin/sh}\"",
        ])
        .arg("sh")
        .args([cgroup, netns])
        .env("PS1", format!("{pod}$ "));
    shell
}
