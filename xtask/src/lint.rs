//! `cargo xtask lint`: formatting, clippy, a look at the dependencies, and whether the manifests are those of the chart.

use anyhow::{Result, bail};

use crate::deps;
use crate::manifests;
use crate::project::Project;
use crate::report::Report;
use crate::run;
use crate::setup::{self, Part};

/// Checks formatting, clippy's advice, the dependencies and the manifests. Needs neither root nor a BPF toolchain.
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
    ("nothing can be switched off", unswitchable),
    ("manifests", manifests::check),
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

/// The feature that lets a mechanism be switched off is for test builds: no build without an explicit `--features mutants` has it.
fn unswitchable(project: &Project) -> Result<()> {
    let metadata = project.metadata(&[])?;
    let nodes = metadata["resolve"]["nodes"].as_array().into_iter().flatten();
    let mut asked = 0;
    for node in nodes {
        let name = node["id"].as_str().unwrap_or_default();
        let ours = ["/mesh-common", "/mesh-agent", "/core"]
            .iter()
            .any(|end| name.split('#').next().is_some_and(|path| path.ends_with(end)));
        let features = node["features"].as_array().into_iter().flatten();
        if ours {
            asked += 1;
            if features
                .filter_map(|feature| feature.as_str())
                .any(|feature| feature == FOR_TESTS)
            {
                bail!(
                    "{name} is built with the feature {FOR_TESTS} by default: it lets the environment switch protections off"
                );
            }
        }
    }
    if asked < 3 {
        bail!(
            "cargo metadata shows {asked} of our crates: the check for the feature {FOR_TESTS} looked at nothing"
        );
    }
    Ok(())
}

/// See `mesh-common/src/mutation.rs`.
const FOR_TESTS: &str = "mutants";

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
