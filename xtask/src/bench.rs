//! `cargo xtask bench`: builds for speed and becomes the bench (`mesh-bench` in the package mesh-tests).

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::e2e;
use crate::project::Project;
use crate::setup::{self, Part};

/// Measures what the mesh costs: pairs of runs with it and without it, in network namespaces of its own. Needs root.
///
/// Asserts nothing about speed. docs/benchmarks.md says how to read it.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which scenarios; all of them when none is named. `--list` names them.
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Short runs, for a look: their figures are not to be published.
    #[arg(long)]
    quick: bool,
    /// How many pairs of runs; 3 unless given, with `--quick` one.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..))]
    pairs: Option<u8>,
    /// How to print: `text` or `json`.
    #[arg(short, long, default_value = "text")]
    output: String,
    /// Name the scenarios and end.
    #[arg(long)]
    list: bool,
}

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    if !args.list {
        e2e::need_root("cargo xtask bench", "")?;
        setup::ensure(project, &[Part::Bpf, Part::Programs])?;
    }
    build::everything(project, true)?;
    let mut bench = Command::new(project.binary("mesh-bench", true));
    bench.args(&args.scenarios);
    let pairs = args.pairs.unwrap_or(if args.quick { 1 } else { 3 });
    bench.args(["--pairs", &pairs.to_string(), "--output", &args.output]);
    bench.arg("--keep").arg(project.target().join("bench"));
    for (given, flag) in [(args.quick, "--quick"), (args.list, "--list")] {
        if given {
            bench.arg(flag);
        }
    }
    bench.env("MESH_AGENT_BIN", project.binary("mesh-agent", true));
    Err(bench.exec()).with_context(|| format!("cannot run {}", bench.get_program().to_string_lossy()))
}
