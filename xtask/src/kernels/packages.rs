//! Where the emulator and the kernels come from: Debian's packages. Kernels are unpacked below target/, never installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::run;
use crate::setup;

/// A kernel out of a package.
pub(super) struct Kernel {
    /// Such as `6.1.0-56-amd64`.
    pub(super) release: String,
    /// The image to boot.
    pub(super) file: PathBuf,
    /// Its modules.
    pub(super) modules: PathBuf,
}

/// The programs that are needed, with their packages.
const TOOLS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("setpriv", "util-linux"),
    ("busybox", "busybox-static"),
    ("depmod", "kmod"),
    ("xz", "xz-utils"),
    ("file", "file"),
    ("dpkg-deb", "dpkg"),
];

/// Makes sure of the emulator and what builds an image; otherwise why it cannot be had.
pub(super) fn tools() -> Result<(), String> {
    if !cfg!(target_arch = "x86_64") {
        return Err("these kernels are for x86-64".to_owned());
    }
    setup::programs(TOOLS).map_err(|error| format!("{error:#}"))?;
    let busybox = run::which("busybox").unwrap_or_default();
    let kind = run::output(Command::new("file").arg("-L").arg(&busybox)).unwrap_or_default();
    if kind.contains("dynamically linked") {
        return Err("busybox is dynamically linked here: apt-get install busybox-static".to_owned());
    }
    Ok(())
}

/// The newest kernel of `series` that Debian's lists hold, unpacked.
pub(super) fn kernel(project: &Project, series: &str) -> Result<Kernel> {
    let listed = run::output(Command::new("apt-cache").args([
        "search",
        "--names-only",
        &format!("^linux-image-{}[.].*-amd64$", series.replace('.', "[.]")),
    ]))?;
    let package = newest(&listed, series)
        .with_context(|| format!("the package lists hold no kernel {series} (apt-get update?)"))?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let directory = project.target().join("kernels").join(&release);
    let unpacked = Kernel {
        file: directory.join(format!("boot/vmlinuz-{release}")),
        modules: modules(&directory, &release),
        release,
    };
    if !unpacked.file.is_file() {
        fetch(&package, &directory)?;
    }
    if !unpacked.file.is_file() {
        bail!("{package} holds no {}", unpacked.file.display());
    }
    Ok(Kernel {
        modules: modules(&directory, &unpacked.release),
        ..unpacked
    })
}

/// Older packages have their modules below lib, newer ones below usr/lib.
fn modules(directory: &Path, release: &str) -> PathBuf {
    let newer = directory.join("usr/lib/modules").join(release);
    if newer.is_dir() {
        newer
    } else {
        directory.join("lib/modules").join(release)
    }
}

fn fetch(package: &str, directory: &Path) -> Result<()> {
    let part = directory.with_extension("part");
    let _ = std::fs::remove_dir_all(&part);
    std::fs::create_dir_all(&part).with_context(|| format!("cannot make {}", part.display()))?;
    run::quietly(
        &format!("apt-get download {package}"),
        Command::new("apt-get")
            .args(["download", package])
            .current_dir(&part),
    )?;
    let archive = std::fs::read_dir(&part)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get has downloaded nothing")?;
    run::quietly(
        "dpkg-deb -x",
        Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&part),
    )?;
    std::fs::remove_file(&archive)?;
    std::fs::rename(&part, directory).with_context(|| format!("cannot make {}", directory.display()))
}

/// The package with the highest version among the lines of `apt-cache search`, without the flavours for clouds and real time.
fn newest(listed: &str, series: &str) -> Option<String> {
    let names = listed.lines().filter_map(|line| line.split_whitespace().next());
    let prefix = format!("linux-image-{series}.");
    let plain = names.filter(|name| {
        let rest = name
            .strip_prefix(&prefix)
            .and_then(|rest| rest.strip_suffix("-amd64"));
        rest.is_some_and(|rest| !rest.ends_with("-cloud") && !rest.ends_with("-rt"))
    });
    plain.max_by_key(|name| numbers(name)).map(str::to_owned)
}

fn numbers(name: &str) -> Vec<u32> {
    let parts = name.split(|c: char| !c.is_ascii_digit());
    parts.filter_map(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_newest_plain_kernel_of_a_series_is_taken() {
        let listed = "linux-image-6.1.0-9-amd64 - x\nlinux-image-6.1.0-56-amd64 - x\nlinux-image-6.1.0-57-rt-amd64 - x\n\
                      linux-image-6.12.9+deb12-amd64 - x\nlinux-image-6.12.117+deb12-amd64 - x\nlinux-image-6.12-amd64 - x\n\
                      linux-image-6.12.118+deb12-cloud-amd64 - x\nlinux-image-6.12.119+deb12-amd64-dbg - x\n";
        let newest = |series| super::newest(listed, series);
        assert_eq!(newest("6.1").as_deref(), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(
            newest("6.12").as_deref(),
            Some("linux-image-6.12.117+deb12-amd64")
        );
        assert_eq!(newest("6.6"), None);
    }
}
