//! `cargo xtask test`: all that must hold before a change is merged.

use anyhow::Result;

use crate::e2e;
use crate::lint;
use crate::project::Project;
use crate::report::Report;
use crate::run;
use crate::setup::{self, Part};

/// Checks and tests everything: what `lint` checks, unit tests, then the end-to-end suites on real namespaces.
///
/// All of it needs root (network namespaces, cgroups, BPF). Goes on after a failure, and ends with a summary.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out what needs root or a BPF toolchain: the end-to-end suites.
    #[arg(long)]
    unprivileged: bool,
}

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    if !args.unprivileged {
        e2e::need_root(
            "cargo xtask test",
            "or leave the end-to-end suites out: cargo xtask test --unprivileged",
        )?;
    }
    setup::ensure(project, &[Part::Rust])?;
    let mut report = Report::default();
    for (title, check) in lint::CHECKS {
        report.step(title, |_| check(project));
    }
    report.step("unit tests", |summaries| unit_tests(project, summaries));
    if !args.unprivileged {
        let ready = report.step("set up and build", |_| e2e::prepare(project));
        for suite in if ready { e2e::suites(project)? } else { Vec::new() } {
            let names = [suite];
            report.step(&format!("suite {}", names[0]), |summaries| {
                e2e::suite(project, &names, &[], summaries)
            });
        }
    }
    report.finish()
}

/// The tests that need nothing of the machine. Doc tests are among them.
fn unit_tests(project: &Project, summaries: &mut Vec<String>) -> Result<()> {
    let unit = ["test", "--locked", "--workspace", "--lib", "--bins"];
    run::tests(project.cargo().args(unit).arg("--no-fail-fast"), summaries)?;
    run::tests(
        project
            .cargo()
            .args(["test", "--locked", "--workspace", "--doc", "--quiet"]),
        summaries,
    )
}
