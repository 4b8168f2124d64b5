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
    /// Leave out what needs root or a BPF toolchain: the end-to-end suites, and the unit tests that touch the kernel.
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
    let privileged = !args.unprivileged;
    let ready = !privileged || report.step("set up and build", |_| e2e::prepare(project));
    report.step("unit tests", |summaries| {
        unit_tests(project, privileged && ready, summaries)
    });
    if privileged && ready {
        for suite in e2e::suites(project)? {
            let names = [suite];
            report.step(&format!("suite {}", names[0]), |summaries| {
                e2e::suite(project, &names, &[], summaries)
            });
        }
    }
    if !privileged {
        println!(
            "left out, since they need root: unit tests that capture real sockets, and the end-to-end suites"
        );
    }
    report.finish()
}

/// The tests of the crates themselves, doc tests among them. Those that need root and BPF must run where it is `privileged`; elsewhere
/// they say that they did not.
fn unit_tests(project: &Project, privileged: bool, summaries: &mut Vec<String>) -> Result<()> {
    let mut unit = project.cargo();
    unit.args([
        "test",
        "--locked",
        "--workspace",
        "--lib",
        "--bins",
        "--no-fail-fast",
    ]);
    if privileged {
        unit.env("MESH_PRIVILEGED", "1");
    }
    run::tests(&mut unit, summaries)?;
    let doc = ["test", "--locked", "--workspace", "--doc", "--quiet"];
    run::tests(project.cargo().args(doc), summaries)
}
