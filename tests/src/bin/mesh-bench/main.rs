//! The bench: what the mesh costs, in pairs of runs with it and without it, on namespaces of its own. Asserts nothing; what must be right
//! under load is the suite `load`'s.

mod clients;
mod facts;
mod figures;
mod scenarios;
mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use serde::Serialize;

use crate::facts::Facts;
use crate::figures::Figure;
use crate::scenarios::{SCENARIOS, Scenario};

/// Measures what the mesh costs. Needs root.
#[derive(Debug, Parser)]
struct Cli {
    /// Which scenarios; all of them when none is named.
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Short runs, for a look: their figures are not to be published.
    #[arg(long)]
    quick: bool,
    /// How many pairs of runs.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    pairs: u8,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
    /// Name the scenarios and end.
    #[arg(long)]
    list: bool,
    /// Where to keep all values of this run as JSON, in a file of its own.
    #[arg(long)]
    keep: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// How long and how often to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) quick: bool,
    pub(crate) pairs: u8,
}

impl Extent {
    /// One value for a look, another for figures.
    pub(crate) fn pick<T>(self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }
}

#[derive(Debug, Serialize)]
struct Measured {
    facts: Facts,
    quick: bool,
    pairs: u8,
    scenarios: Vec<Outcome>,
}

#[derive(Debug, Serialize)]
struct Outcome {
    scenario: &'static str,
    about: &'static str,
    /// How long it took, seconds.
    seconds: f64,
    /// How much of the processors others used just before it, 0 to 1.
    others: f64,
    figures: Vec<Figure>,
    /// Why there are no figures.
    error: Option<String>,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every scenario gave its figures.
fn run(cli: &Cli) -> Result<bool> {
    if cli.list {
        for scenario in SCENARIOS {
            println!("{:<18} {}", scenario.name, scenario.about);
        }
        return Ok(true);
    }
    let chosen = choose(&cli.scenarios)?;
    let extent = Extent {
        quick: cli.quick,
        pairs: cli.pairs,
    };
    let facts = Facts::collect()?;
    if cli.output == Format::Text {
        println!("{facts}");
    }
    let mut measured = Measured {
        facts,
        quick: cli.quick,
        pairs: cli.pairs,
        scenarios: Vec::new(),
    };
    for scenario in chosen {
        eprintln!("==> {}: {}", scenario.name, scenario.about);
        let outcome = Outcome::of(scenario, extent);
        if cli.output == Format::Text {
            outcome.print();
        }
        measured.scenarios.push(outcome);
    }
    if let Some(dir) = &cli.keep {
        let path = keep(dir, &measured)?;
        eprintln!("all values are in {}", path.display());
    }
    if cli.output == Format::Json {
        println!("{}", serde_json::to_string_pretty(&measured)?);
    }
    Ok(measured.scenarios.iter().all(|outcome| outcome.error.is_none()))
}

impl Outcome {
    /// Runs it. On a machine that others use there are figures and no verdicts.
    fn of(scenario: &'static Scenario, extent: Extent) -> Self {
        let others = facts::use_by_others();
        let began = Instant::now();
        let (mut figures, error) = match (scenario.run)(extent) {
            Ok(figures) => (figures, None),
            Err(error) => (Vec::new(), Some(format!("{error:#}"))),
        };
        if others < facts::QUIET && !extent.quick {
            figures::judge(&mut figures);
        }
        Self {
            scenario: scenario.name,
            about: scenario.about,
            seconds: began.elapsed().as_secs_f64(),
            others,
            figures,
            error,
        }
    }

    fn print(&self) {
        println!("\n{}: {} ({:.0} s)", self.scenario, self.about, self.seconds);
        if self.others >= facts::QUIET {
            println!(
                "  others used {:.0} % of the processors when it began: no verdicts",
                self.others * 100.0
            );
        }
        figures::print(&self.figures);
        self.error
            .iter()
            .for_each(|error| println!("  no figures: {error}"));
    }
}

/// Writes everything to a new file below `dir`.
fn keep(dir: &Path, measured: &Measured) -> Result<PathBuf> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let path = dir.join(format!("bench-{seconds}.json"));
    let text = serde_json::to_vec_pretty(measured)?;
    std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::write(&path, text))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn choose(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(SCENARIOS.iter().collect());
    }
    let known = || SCENARIOS.iter().map(|s| s.name).collect::<Vec<_>>().join(", ");
    names
        .iter()
        .map(|name| {
            SCENARIOS
                .iter()
                .find(|scenario| scenario.name == name)
                .with_context(|| format!("there is no scenario {name}; the scenarios are: {}", known()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_are_found_by_name_and_unknown_ones_are_named_with_those_there_are() {
        assert_eq!(choose(&[]).unwrap().len(), SCENARIOS.len());
        assert_eq!(choose(&["fairness".to_owned()]).unwrap()[0].name, "fairness");
        let error = choose(&["fariness".to_owned()]).unwrap_err().to_string();
        assert!(
            error.contains("fariness") && error.contains("connect-rate"),
            "{error}"
        );
    }
}
