//! The first file system of a guest: busybox, the modules that the tests need, and what to do.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use super::packages::Kernel;
use crate::project::Project;
use crate::run;

/// What the guest needs of its kernel that Debian has as modules. Those that are built in are not found, which is as well.
const MODULES: &[&str] = &[
    // The host's root directory.
    "virtio_pci",
    "virtio_rng",
    "9pnet_virtio",
    "9p",
    // The nodes and pods of the tests, and what looks at them.
    "veth",
    "bridge",
    "dummy",
    "af_packet",
    "tcp_diag",
    "inet_diag",
    "udp_diag",
    "unix_diag",
    "netlink_diag",
    "sch_netem",
    "sch_ingress",
    "tcp_bbr",
];

/// Makes the image for `kernel`, with `steps` as its script.
pub(super) fn make(project: &Project, kernel: &Kernel, steps: &str) -> Result<PathBuf> {
    let base = project.target().join("kernels");
    let root = base.join(format!("{}.root", kernel.release));
    let _ = fs::remove_dir_all(&root);
    let modules = root.join("modules");
    fs::create_dir_all(&modules).with_context(|| format!("cannot make {}", modules.display()))?;
    let dependencies = fs::read_to_string(kernel.modules.join("modules.dep"))
        .or_else(|_| depmod(kernel))
        .context("the modules' dependencies cannot be read")?;
    let mut order = String::new();
    for path in ordered(&dependencies, MODULES) {
        let name = plain_name(&path);
        copy_module(&kernel.modules.join(&path), &modules.join(&name))?;
        order.push_str(&name);
        order.push('\n');
    }
    fs::write(modules.join("order"), order)?;
    fs::copy(run::which("busybox").context("no busybox")?, root.join("busybox"))?;
    fs::write(root.join("steps"), steps)?;
    fs::write(root.join("init"), include_str!("init.sh"))?;
    run::output(
        Command::new("chmod")
            .arg("755")
            .arg(root.join("init"))
            .arg(root.join("busybox")),
    )?;
    let image = base.join(format!("{}.cpio", kernel.release));
    archive(&root, &image)?;
    Ok(image)
}

/// Packages leave this to the installation.
fn depmod(kernel: &Kernel) -> std::io::Result<String> {
    let base = kernel.modules.ancestors().nth(3).unwrap_or(Path::new("/"));
    let depmod = run::which("depmod").unwrap_or_else(|| "depmod".into());
    let done = Command::new(depmod)
        .arg("-b")
        .arg(base)
        .arg(&kernel.release)
        .status()?;
    if !done.success() {
        return Err(std::io::Error::other("depmod failed (apt-get install kmod)"));
    }
    fs::read_to_string(kernel.modules.join("modules.dep"))
}

/// The wanted modules' files in the order in which to load them, by `modules.dep`.
fn ordered(dependencies: &str, wanted: &[&str]) -> Vec<String> {
    let lines = || dependencies.lines().filter_map(|line| line.split_once(':'));
    let mut seen = BTreeSet::new();
    let mut order = Vec::new();
    for name in wanted {
        let named = |path: &str| plain_name(path).trim_end_matches(".ko").replace('-', "_") == *name;
        let Some((path, needs)) = lines().find(|(path, _)| named(path)) else {
            continue;
        };
        // What is needed most deeply stands last.
        let needs = needs.split_whitespace().rev();
        for path in needs.chain(std::iter::once(path)) {
            if seen.insert(path.to_owned()) {
                order.push(path.to_owned());
            }
        }
    }
    order
}

/// The file's name without its directory and its compression.
fn plain_name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.trim_end_matches(".xz").to_owned()
}

fn copy_module(from: &Path, to: &Path) -> Result<()> {
    if from.extension().is_none_or(|extension| extension != "xz") {
        fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
        return Ok(());
    }
    let unpacked = File::create(to)?;
    let status = Command::new("xz")
        .arg("-dc")
        .arg(from)
        .stdout(unpacked)
        .status()?;
    if !status.success() {
        bail!("xz -dc {} ended with {status}", from.display());
    }
    Ok(())
}

/// All below `root` as the archive that the kernel unpacks.
fn archive(root: &Path, to: &Path) -> Result<()> {
    let mut pack = Command::new("sh");
    pack.args(["-c", "find . | busybox cpio -o -H newc 2>/dev/null"])
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(File::create(to).with_context(|| format!("cannot make {}", to.display()))?);
    let status = pack.status()?;
    if !status.success() {
        bail!("busybox cpio ended with {status}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn modules_come_behind_those_they_need_and_once() {
        let dependencies = "kernel/net/9p/9pnet.ko.xz:\n\
                            kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/v/virtio.ko.xz\n\
                            kernel/fs/9p/9p.ko.xz: kernel/net/9p/9pnet.ko.xz kernel/fs/netfs.ko.xz\n\
                            kernel/net/x/af-packet.ko:\n";
        assert_eq!(
            super::ordered(dependencies, &["9pnet_virtio", "9p", "af_packet", "built_in"]),
            [
                "kernel/v/virtio.ko.xz",
                "kernel/net/9p/9pnet.ko.xz",
                "kernel/net/9p/9pnet_virtio.ko.xz",
                "kernel/fs/netfs.ko.xz",
                "kernel/fs/9p/9p.ko.xz",
                "kernel/net/x/af-packet.ko",
            ]
        );
        assert_eq!(super::plain_name("a/b.ko.xz"), "b.ko");
    }
}
