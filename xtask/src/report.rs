//! Steps that are all done, whatever becomes of one, and their summary at the end.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::run;

/// What came of each step.
#[derive(Default)]
pub(crate) struct Report {
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
    pub(crate) fn step(&mut self, title: &str, work: impl FnOnce(&mut Vec<String>) -> Result<()>) -> bool {
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
    pub(crate) fn finish(self) -> Result<()> {
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
