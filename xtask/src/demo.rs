//! `cargo xtask demo`: sets up, builds, and becomes the demo (`mesh-demo` in the package mesh-tests).

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::e2e;
use crate::project::Project;
use crate::setup::{self, Part};

/// Shows two nodes carry traffic between unmodified programs over mutual TLS, step by step. Needs root.
///
/// Everything happens in network namespaces of its own, and is gone afterwards.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Print no pauses and no colours, and fail when a step does not show what it should: for CI.
    #[arg(long)]
    headless: bool,
    /// Leave it all up at the end, and say how to look around and how to remove it.
    #[arg(long)]
    keep: bool,
    /// Open a shell in this pod (order, payment, visitor or invoice) once the demo has run, or in the one that --keep left up.
    #[arg(long, value_name = "POD")]
    shell: Option<String>,
    /// Remove what an earlier `--keep`, or a killed demo, left up; show nothing.
    #[arg(long, conflicts_with_all = ["headless", "keep", "shell"])]
    clean: bool,
}

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    e2e::need_root("cargo xtask demo", "")?;
    let program = project.binary("mesh-demo", false);
    if !(args.clean && program.is_file()) {
        setup::ensure(project, &[Part::Bpf, Part::Programs])?;
        build::everything(project, false)?;
    }
    let mut demo = Command::new(program);
    demo.arg("--documents").arg(project.root().join("deploy/demo"));
    for (given, flag) in [
        (args.headless, "--headless"),
        (args.keep, "--keep"),
        (args.clean, "--clean"),
    ] {
        if given {
            demo.arg(flag);
        }
    }
    if let Some(pod) = &args.shell {
        demo.arg("--shell").arg(pod);
    }
    Err(demo.exec()).with_context(|| format!("cannot run {}", demo.get_program().to_string_lossy()))
}
