//! Debian packages, and the programs that come from them.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::Missing;
use crate::project::Project;
use crate::run;

/// Programs that demo and tests run, and the Debian packages that bring them.
const PROGRAMS: &[(&str, &str)] = &[
    ("ip", "iproute2"),
    ("ss", "iproute2"),
    ("tc", "iproute2"),
    ("nsenter", "util-linux"),
    ("tcpdump", "tcpdump"),
    ("bpftool", "bpftool"),
    ("curl", "curl"),
    ("socat", "socat"),
    ("iperf3", "iperf3"),
    ("wrk", "wrk"),
    ("python3", "python3"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
];
/// What compiles C and C++ for the crates that have some.
const COMPILERS: &[(&str, &str)] = &[
    ("cc", "build-essential"),
    ("c++", "build-essential"),
    ("make", "build-essential"),
];
/// Package lists older than this are fetched again before an installation.
const LISTS_AGE: Duration = Duration::from_hours(24);

/// Looks for the programs.
pub(super) fn look_programs() -> Result<String, Missing> {
    look_for(PROGRAMS)
}

/// Installs the packages of the missing ones.
pub(super) fn install_programs() -> Result<()> {
    install_missing(PROGRAMS)
}

/// Installs the packages of those that are missing.
pub(super) fn install_missing(programs: &[(&str, &'static str)]) -> Result<()> {
    install(&packages_missing(programs))
}

/// Looks for rustfmt, clippy and a C compiler.
pub(super) fn look_rust(project: &Project) -> Result<String, Missing> {
    look_for(COMPILERS)?;
    for component in ["fmt", "clippy"] {
        if run::output(project.cargo().args([component, "--version"])).is_err() {
            return Err(Missing {
                what: format!("cargo {component} is missing"),
                commands: vec!["rustup component add rustfmt clippy".to_owned()],
            });
        }
    }
    Ok("cargo fmt, cargo clippy, a C compiler".to_owned())
}

/// Installs what of them is missing.
pub(super) fn install_rust(project: &Project) -> Result<()> {
    let packages = packages_missing(COMPILERS);
    if !packages.is_empty() {
        install(&packages)?;
    }
    if look_rust(project).is_err() {
        run::quietly(
            "rustup component add",
            Command::new("rustup").args(["component", "add", "rustfmt", "clippy"]),
        )?;
    }
    Ok(())
}

/// Looks for programs, given with their packages.
pub(super) fn look_for(programs: &[(&str, &'static str)]) -> Result<String, Missing> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| run::which(program).is_none())
        .map(|(program, _)| *program)
        .collect();
    if missing.is_empty() {
        let names: Vec<&str> = programs.iter().map(|(program, _)| *program).collect();
        return Ok(names.join(", "));
    }
    Err(Missing {
        what: format!("{} missing", missing.join(", ")),
        commands: vec![command_line(&packages_missing(programs))],
    })
}

fn packages_missing(programs: &[(&str, &'static str)]) -> Vec<&'static str> {
    let mut packages: Vec<&'static str> = programs
        .iter()
        .filter(|(program, _)| run::which(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

/// The command that installs `packages`, for a person.
pub(super) fn command_line(packages: &[&str]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// Whether this is a system with Debian's packages on which we may install some.
pub(super) fn may_install() -> bool {
    run::is_root() && run::which("apt-get").is_some()
}

/// Whether Debian's lists hold `package`.
pub(super) fn is_known(package: &str) -> bool {
    run::output(Command::new("apt-cache").args(["show", "--no-all-versions", package]))
        .is_ok_and(|text| !text.is_empty())
}

/// Fetches the package lists if they are old or absent.
pub(super) fn refresh() -> Result<()> {
    let fetched = |path: &str| Path::new(path).metadata().and_then(|found| found.modified()).ok();
    let age = fetched("/var/lib/apt/periodic/update-success-stamp")
        .or_else(|| fetched("/var/lib/apt/lists/partial"))
        .and_then(|time| time.elapsed().ok());
    let any = std::fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries
            .filter_map(Result::ok)
            .any(|entry| entry.file_name().to_string_lossy().ends_with("_Packages"))
    });
    if any && age.is_some_and(|age| age < LISTS_AGE) {
        return Ok(());
    }
    run::quietly("apt-get update", apt_get().arg("update"))
}

/// Installs `packages`; removes nothing for it.
pub(super) fn install(packages: &[&str]) -> Result<()> {
    if !may_install() {
        bail!("only root on a system with apt-get may install packages");
    }
    refresh()?;
    let mut command = apt_get();
    command
        .args(["install", "-y", "--no-install-recommends", "--no-remove"])
        .args(packages);
    run::quietly(&command_line(packages), &mut command)
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command
}
