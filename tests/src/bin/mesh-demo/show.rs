//! What the demo prints: headings, the commands that a person could repeat, what came back, and verdicts. Colours only on a terminal.

use std::io::IsTerminal;
use std::time::Instant;

use anyhow::{Result, bail};

/// Lines of a program's output that are shown; the rest is only counted.
const LINES: usize = 24;

/// Prints the demo's story, and counts its steps.
pub(crate) struct Show {
    colours: bool,
    start: Instant,
    steps: u32,
}

impl Show {
    /// Colours, if standard output is a terminal and nobody minds them.
    pub(crate) fn new(plain: bool) -> Self {
        let colours = !plain && std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self {
            colours,
            start: Instant::now(),
            steps: 0,
        }
    }

    /// Begins a step.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        println!("\n{}", self.paint("1", &format!("{}. {title}", self.steps)));
    }

    /// A command that a person could repeat, and where.
    pub(crate) fn command(&self, place: &str, command: &str) {
        println!("   {} {command}", self.paint("36", &format!("{place}$")));
    }

    /// A remark.
    pub(crate) fn say(&self, text: &str) {
        for line in text.lines() {
            println!("   {line}");
        }
    }

    /// What a program printed.
    pub(crate) fn output(&self, text: &str) {
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().take(LINES) {
            println!("     {}", self.paint("2", line));
        }
        if lines.len() > LINES {
            println!("     … and {} lines more", lines.len() - LINES);
        }
    }

    /// States what was to be seen; fails if it was not.
    pub(crate) fn verdict(&self, holds: bool, claim: &str, evidence: &str) -> Result<()> {
        if holds {
            println!("   {} {claim}", self.paint("32", "✓"));
            return Ok(());
        }
        println!("   {} NOT SO: {claim}", self.paint("31", "✗"));
        bail!(
            "step {} did not show that {claim}: {}",
            self.steps,
            evidence.trim()
        )
    }

    /// How long the demo has run, in words.
    pub(crate) fn elapsed(&self) -> String {
        format!("{:.1} s", self.start.elapsed().as_secs_f32())
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Show;

    #[test]
    fn a_verdict_that_does_not_hold_is_an_error_with_its_evidence() {
        let mut show = Show::new(true);
        show.step("first");
        assert!(show.verdict(true, "all is well", "").is_ok());
        let error = show
            .verdict(false, "all is well", "curl: (7) refused\n")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "step 1 did not show that all is well: curl: (7) refused"
        );
    }
}
