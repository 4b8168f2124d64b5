//! `cargo xtask miri`: the unsafe code that can run there, under miri.

use std::process::Command;

use anyhow::{Result, bail};

use crate::project::Project;
use crate::run;

/// What to type where miri is missing.
const INSTALL: &str = "rustup toolchain install nightly --component miri --component rust-src";

/// Runs the unsafe code that asks nothing of the kernel under miri, which needs a nightly compiler.
///
/// That is the layout of the types that cross to the BPF programs (mesh-common). The rest of our unsafe code is system calls.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// The verb.
pub(crate) fn run(project: &Project, _args: &Args) -> Result<()> {
    if run::output(nightly(project).args(["miri", "--version"])).is_err() {
        bail!("there is no nightly compiler with miri: {INSTALL}");
    }
    run::step("miri: mesh-common", || {
        run::show(
            nightly(project)
                .args([
                    "miri",
                    "test",
                    "--locked",
                    "--package",
                    "mesh-common",
                    "--target-dir",
                ])
                .arg(project.target().join("miri")),
        )
    })
}

/// A cargo of the nightly toolchain, with nothing of the one that runs xtask.
fn nightly(project: &Project) -> Command {
    let clean = project.foreign_cargo();
    let mut command = Command::new("rustup");
    command
        .current_dir(project.root())
        .args(["run", "nightly", "cargo"]);
    for (name, value) in clean.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}
