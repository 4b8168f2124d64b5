//! The BPF toolchain: Debian's compiler with a ready BPF core, elsewhere a nightly; and a bpf-linker that fits it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Missing, apt};
use crate::project::Project;
use crate::run;
use crate::toolchain::{self, Compiler, LINKER_VERSION, Toolchain};

/// Debian's compiler with its BPF core.
const COMPILER_PACKAGES: &[&str] = &["rustc-web", "libstd-rust-web-dev-bpf"];
/// What bpf-linker is linked with.
const LINKER_PACKAGES: &[&str] = &["llvm-22-dev", "libpolly-22-dev", "libzstd-dev"];
/// The LLVM of `LINKER_PACKAGES`.
const DEBIAN_LLVM: u32 = 22;
/// The nightly of those who have no such packages.
const NIGHTLY: &[&str] = &[
    "toolchain",
    "install",
    "nightly",
    "--profile",
    "minimal",
    "--component",
    "rust-src",
];

/// Looks for compiler and linker.
pub(super) fn look(project: &Project) -> Result<String, Missing> {
    Toolchain::find(project)
        .map(|found| format!("BPF toolchain: {}", found.description()))
        .map_err(|what| Missing {
            what: format!("BPF toolchain: {what}"),
            commands: commands(project),
        })
}

/// Installs compiler and linker.
pub(super) fn install(project: &Project) -> Result<()> {
    if toolchain::compiler().is_none() {
        install_compiler()?;
    }
    let found = toolchain::compiler()
        .context("the compiler was installed, and still none is found that compiles for BPF")?;
    if toolchain::linker(project, found.llvm).is_ok() {
        return Ok(());
    }
    if llvm_prefix(found.llvm).is_none() && found.llvm == DEBIAN_LLVM && apt::may_install() {
        apt::install(LINKER_PACKAGES)?;
    }
    let prefix = llvm_prefix(found.llvm)
        .with_context(|| format!("bpf-linker needs the development files of LLVM {}", found.llvm))?;
    run::quietly(
        &format!("cargo install bpf-linker@{LINKER_VERSION}"),
        &mut install_linker(project, found.llvm, &prefix),
    )
}

fn install_compiler() -> Result<()> {
    if apt::may_install() {
        apt::refresh()?;
        if COMPILER_PACKAGES.iter().all(|package| apt::is_known(package)) {
            return apt::install(COMPILER_PACKAGES);
        }
    }
    if run::which("rustup").is_some() {
        return run::quietly(
            "rustup toolchain install nightly",
            Command::new("rustup").args(NIGHTLY),
        );
    }
    bail!(
        "there is neither a Debian with {} nor rustup",
        COMPILER_PACKAGES.join(" and ")
    );
}

fn install_linker(project: &Project, llvm: u32, prefix: &Path) -> Command {
    let mut command = project.foreign_cargo();
    let mut path = vec![prefix.join("bin")];
    path.extend(std::env::split_paths(
        &std::env::var_os("PATH").unwrap_or_default(),
    ));
    if let Ok(path) = std::env::join_paths(path) {
        command.env("PATH", path);
    }
    command
        .env("LLVM_PREFIX", prefix)
        .env("CARGO_TARGET_DIR", toolchain::linker_root(project).join("build"))
        .arg("install")
        .arg(format!("bpf-linker@{LINKER_VERSION}"))
        .args([
            "--locked",
            "--no-default-features",
            "--features",
            &format!("llvm-{llvm}"),
            "--root",
        ])
        .arg(toolchain::linker_root(project));
    command
}

/// Where LLVM's development files of this major version are.
fn llvm_prefix(llvm: u32) -> Option<PathBuf> {
    let mut candidates = vec![
        PathBuf::from(format!("/usr/lib/llvm-{llvm}")),
        PathBuf::from(format!("/usr/lib/llvm{llvm}")),
    ];
    candidates.extend(std::env::var_os("LLVM_PREFIX").map(PathBuf::from));
    candidates.extend(run::which("llvm-config").and_then(|tool| Some(tool.parent()?.parent()?.to_owned())));
    candidates.into_iter().find(|prefix| {
        run::output(Command::new(prefix.join("bin/llvm-config")).arg("--version"))
            .is_ok_and(|version| version.trim().starts_with(&format!("{llvm}.")))
    })
}

/// What a person can run instead of us.
fn commands(project: &Project) -> Vec<String> {
    let mut commands = Vec::new();
    let found = toolchain::compiler();
    let debian = run::which("apt-get").is_some() && (found.is_none() || is_ready(found.as_ref()));
    let llvm = found.as_ref().map_or(DEBIAN_LLVM, |found| found.llvm);
    if debian {
        let packages: Vec<&str> = COMPILER_PACKAGES.iter().chain(LINKER_PACKAGES).copied().collect();
        commands.push("apt-get update".to_owned());
        commands.push(apt::command_line(&packages));
    } else {
        if found.is_none() {
            commands.push(format!("rustup {}", NIGHTLY.join(" ")));
        }
        commands.push(format!(
            "# install the development files of LLVM {llvm} or later (see https://apt.llvm.org), then:"
        ));
    }
    let prefix = llvm_prefix(llvm).unwrap_or_else(|| PathBuf::from(format!("/usr/lib/llvm-{llvm}")));
    commands.push(format!(
        "PATH={0}/bin:$PATH LLVM_PREFIX={0} {1}",
        prefix.display(),
        run::words(&install_linker(project, llvm, &prefix)),
    ));
    commands
}

fn is_ready(found: Option<&toolchain::Found>) -> bool {
    found.is_some_and(|found| matches!(found.compiler, Compiler::Ready(_)))
}
