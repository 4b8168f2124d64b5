//! `cargo xtask lint`: formatting, clippy, and a look at the dependencies.

use anyhow::Result;

use crate::deps;
use crate::project::Project;
use crate::report::Report;
use crate::run;
use crate::setup::{self, Part};

/// Checks formatting, clippy's advice and the dependencies. Needs neither root nor a BPF toolchain.
///
/// Dependencies: none that is banned or wrongly licensed by deny.toml, and none that is not used.
#[derive(clap::Args)]
pub(crate) struct Args {}

/// The verb.
pub(crate) fn run(project: &Project, _args: &Args) -> Result<()> {
    setup::ensure(project, &[Part::Rust])?;
    let mut report = Report::default();
    for (title, check) in CHECKS {
        report.step(title, |_| check(project));
    }
    report.finish()
}

/// One of the checks.
pub(crate) type Check = fn(&Project) -> Result<()>;

/// All of them, cheapest first.
pub(crate) const CHECKS: &[(&str, Check)] = &[
    ("formatting", formatting),
    ("dependencies", deps::check),
    ("clippy", clippy),
];

fn formatting(project: &Project) -> Result<()> {
    run::show(project.cargo().args(["fmt", "--all", "--check"]))?;
    let ebpf = project.ebpf().join("Cargo.toml");
    if ebpf.is_file() {
        run::show(
            project
                .cargo()
                .args(["fmt", "--check", "--manifest-path"])
                .arg(ebpf),
        )?;
    }
    Ok(())
}

fn clippy(project: &Project) -> Result<()> {
    run::show(project.cargo().args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}
