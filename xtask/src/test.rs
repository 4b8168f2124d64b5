//! `cargo xtask test`: all that must hold before a change is merged.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::e2e;
use crate::lint;
use crate::project::Project;
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

/// What came of each step.
#[derive(Default)]
struct Report {
    steps: Vec<Step>,
}

struct Step {
    title: String,
    took: Duration,
    error: Option<String>,
    summaries: Vec<String>,
}

impl Report {
    /// Does a step, and notes how it went. Whether it went well.
    fn step(&mut self, title: &str, work: impl FnOnce(&mut Vec<String>) -> Result<()>) -> bool {
        let start = Instant::now();
        let mut summaries = Vec::new();
        let outcome = run::step(title, || work(&mut summaries));
        let error = outcome.err().map(|error| format!("{error:#}"));
        if let Some(error) = &error {
            eprintln!("error: {error}");
        }
        let good = error.is_none();
        self.steps.push(Step {
            title: title.to_owned(),
            took: start.elapsed(),
            error,
            summaries,
        });
        good
    }

    /// Prints the summary, and fails if a step failed.
    fn finish(self) -> Result<()> {
        println!("\nsummary");
        for step in &self.steps {
            let word = if step.error.is_none() { "ok" } else { "FAILED" };
            println!("  {word:<6} {:<20} {:>12}", step.title, run::seconds(step.took));
            // Doc tests of crates without any, and binaries without tests, say nothing worth a line.
            for summary in step
                .summaries
                .iter()
                .filter(|summary| !summary.contains(" 0 passed; 0 failed"))
            {
                println!("         {summary}");
            }
        }
        let failed: Vec<&str> = self
            .steps
            .iter()
            .filter(|step| step.error.is_some())
            .map(|step| step.title.as_str())
            .collect();
        if !failed.is_empty() {
            bail!("failed: {}", failed.join(", "));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Report;

    #[test]
    fn one_failed_step_fails_the_whole_and_is_named() {
        let mut report = Report::default();
        assert!(report.step("first", |_| Ok(())));
        assert!(!report.step("second", |_| anyhow::bail!("broken")));
        assert!(report.step("third", |_| Ok(())));
        assert_eq!(report.finish().unwrap_err().to_string(), "failed: second");
    }
}
