//! `cargo xtask e2e --mutate`: proof that the tests would go red. A build of the agent in which one mechanism at a time can be switched off,
//! and for each mechanism the test that must fail without it. Owns no test: it runs those of the suites and of the crates.

mod proofs;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use mesh_common::mutation::VARIABLE;

use crate::build;
use crate::e2e;
use crate::project::Project;
use crate::run::{self, TestProgram};
use crate::setup::{self, Part};
pub(crate) use proofs::{PROOFS, Proof};

/// A test that runs longer is ended: a mechanism that is off may leave it waiting. That is a failure like another, but proves nothing.
const LONGEST: Duration = Duration::from_secs(180);

/// The verb: proves the mechanisms of these names, or all of them.
pub(crate) fn run(project: &Project, names: &[String]) -> Result<()> {
    let chosen = chosen(names)?;
    e2e::need_root("cargo xtask e2e --mutate", "")?;
    setup::ensure(project, &[Part::Rust, Part::Programs, Part::Python])?;
    let programs = programs(project)?;
    let tests = Tests { project, programs };
    run::step("without a mutation everything is green", || {
        green(&tests, &chosen)
    })?;
    let mut lines = Vec::new();
    let mut bad = Vec::new();
    for proof in &chosen {
        let outcome = tests.run(proof, Some(proof))?;
        let verdict = Verdict::of(proof, &outcome);
        println!(
            "    {:<20} {} ({})",
            proof.mechanism.name(),
            verdict.word(),
            run::seconds(outcome.took)
        );
        if !matches!(verdict, Verdict::Red) {
            println!("{}", outcome.text.trim_end());
            bad.push(proof.mechanism.name());
        }
        lines.push(format!(
            "{:<20} {:<12} {}::{} says {:?}",
            proof.mechanism.name(),
            verdict.word(),
            proof.program,
            proof.test,
            outcome.said(proof.says).unwrap_or("nothing"),
        ));
    }
    println!("\n{:<20} {:<12} test", "mechanism off", "outcome");
    lines.iter().for_each(|line| println!("{line}"));
    if !bad.is_empty() {
        bail!("not proven: {}", bad.join(", "));
    }
    println!(
        "each of {} mechanisms is missed by its test when it is switched off",
        lines.len()
    );
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Proof>> {
    if names.is_empty() {
        return Ok(PROOFS.iter().collect());
    }
    let find = |name: &String| {
        PROOFS
            .iter()
            .find(|proof| proof.mechanism.name() == name)
            .ok_or_else(|| {
                let known: Vec<&str> = PROOFS.iter().map(|proof| proof.mechanism.name()).collect();
                anyhow!(
                    "there is no mechanism {name}; the mechanisms are: {}",
                    known.join(", ")
                )
            })
    };
    names.iter().map(find).collect()
}

/// Builds the agent with switchable mechanisms, its unit tests, and the suites as they are.
fn programs(project: &Project) -> Result<BTreeMap<String, TestProgram>> {
    let mut programs = build::mutants(project)?;
    let mut suites = project.cargo();
    suites.args(["test", "--locked", "--workspace", "--no-run"]);
    for name in e2e::suites(project)? {
        suites.args(["--test", &name]);
    }
    programs.extend(run::step("build: suites", || run::test_programs(&mut suites))?);
    Ok(programs
        .into_iter()
        .map(|program| (program.name.clone(), program))
        .collect())
}

/// Fails unless each of the tests is green while nothing is switched off.
fn green(tests: &Tests<'_>, chosen: &[&Proof]) -> Result<()> {
    let distinct: BTreeMap<_, _> = chosen
        .iter()
        .map(|proof| ((proof.program, proof.test), *proof))
        .collect();
    for proof in distinct.values() {
        let outcome = tests.run(proof, None)?;
        if outcome.end != End::Passed {
            println!("{}", outcome.text.trim_end());
            bail!("{}::{} is not green to begin with", proof.program, proof.test);
        }
    }
    Ok(())
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passed,
    Failed,
    /// It was ended, or did not run at all.
    Neither,
}

struct Outcome {
    end: End,
    text: String,
    took: Duration,
}

impl Outcome {
    /// What the failing test said: the line with the expected words, or its first one.
    fn said(&self, expected: &str) -> Option<&str> {
        let first = || {
            let (_, after) = self
                .text
                .split_once("panicked at ")
                .or_else(|| self.text.split_once("Error: "))?;
            let skipped = usize::from(self.text.contains("panicked at "));
            after.lines().nth(skipped)
        };
        let mut lines = self.text.lines();
        let line = lines.find(|line| line.contains(expected)).or_else(first)?;
        Some(line.get(..line.floor_char_boundary(160)).unwrap_or(line).trim())
    }
}

/// What an outcome proves.
enum Verdict {
    Red,
    StillGreen,
    /// Red for another reason than the missing mechanism.
    OtherReason,
    Hung,
}

impl Verdict {
    fn of(proof: &Proof, outcome: &Outcome) -> Self {
        match outcome.end {
            End::Passed => Verdict::StillGreen,
            End::Neither => Verdict::Hung,
            End::Failed if outcome.text.contains(proof.says) => Verdict::Red,
            End::Failed => Verdict::OtherReason,
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Verdict::Red => "red",
            Verdict::StillGreen => "STILL GREEN",
            Verdict::OtherReason => "RED, BUT WHY",
            Verdict::Hung => "HUNG",
        }
    }
}

struct Tests<'a> {
    project: &'a Project,
    programs: BTreeMap<String, TestProgram>,
}

impl Tests<'_> {
    /// Runs one test against the build with switchable mechanisms, with the mechanism of `off` switched off.
    fn run(&self, proof: &Proof, off: Option<&Proof>) -> Result<Outcome> {
        let program = self.programs.get(proof.program);
        let program = program.with_context(|| format!("there is no test program {}", proof.program))?;
        let mut command = Command::new(&program.file);
        command
            .current_dir(&program.directory)
            .args(["--exact", proof.test, "--nocapture"])
            .env("MESH_PRIVILEGED", "1")
            .env(
                "MESH_AGENT_BIN",
                build::mutants_target(self.project).join("debug/mesh-agent"),
            )
            .env("MESH_PEER_PYTHON", self.project.python("peer-venv"))
            // What a property test finds against a mutation is no regression to keep in the tree.
            .env("PROPTEST_DISABLE_FAILURE_PERSISTENCE", "1")
            .env_remove(VARIABLE);
        if let Some(off) = off {
            command.env(VARIABLE, off.mechanism.name());
        }
        let start = Instant::now();
        let text = finish(command, &self.project.target().join("mutants/output"))?;
        Ok(Outcome {
            end: end_of(&text),
            text,
            took: start.elapsed(),
        })
    }
}

/// libtest's own words decide: a program that crashed, or ran no test, has neither passed nor failed.
fn end_of(text: &str) -> End {
    if text.contains("test result: ok. 1 passed;") {
        End::Passed
    } else if text.contains("test result: FAILED. 0 passed; 1 failed;") {
        End::Failed
    } else {
        End::Neither
    }
}

/// Runs a program to its end, or to [`LONGEST`], and returns what it printed.
fn finish(mut command: Command, output: &PathBuf) -> Result<String> {
    // Into a file: a pipe would stay open with any process that outlives the test.
    let file = std::fs::File::create(output).with_context(|| format!("cannot write {}", output.display()))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {}", run::words(&command)))?;
    let deadline = Instant::now() + LONGEST;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            end(&mut child);
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let mut text = Vec::new();
    std::fs::File::open(output)?.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Ends a program with all that it has started.
fn end(child: &mut Child) {
    use nix::sys::signal::{Signal, killpg};
    use nix::unistd::Pid;
    if let Ok(pid) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use mesh_common::mutation::Mechanism;

    use super::*;

    #[test]
    fn every_mechanism_that_can_be_switched_off_has_its_test() {
        let proven: BTreeSet<_> = PROOFS.iter().map(|proof| proof.mechanism).collect();
        let all: BTreeSet<_> = Mechanism::ALL.iter().copied().collect();
        assert_eq!(proven, all);
        assert_eq!(PROOFS.len(), all.len(), "each once");
    }

    #[test]
    fn only_libtests_own_word_makes_a_test_red() {
        assert_eq!(
            end_of("test result: ok. 1 passed; 0 failed; 0 ignored"),
            End::Passed
        );
        assert_eq!(
            end_of("test result: FAILED. 0 passed; 1 failed; 0 ignored"),
            End::Failed
        );
        assert_eq!(
            end_of("test result: ok. 0 passed; 0 failed; 9 filtered out"),
            End::Neither
        );
        assert_eq!(end_of("Segmentation fault"), End::Neither);
    }

    #[test]
    fn a_test_that_fails_for_another_reason_proves_nothing() {
        let outcome = Outcome {
            end: End::Failed,
            text: "thread 'x' panicked at a.rs:1:2:\nno Python\n".into(),
            took: Duration::ZERO,
        };
        let proof = |says| Proof {
            mechanism: Mechanism::PeerSan,
            program: "mtls",
            test: "x",
            says,
        };
        assert_eq!(outcome.said("was served"), Some("no Python"));
        assert!(matches!(
            Verdict::of(&proof("was served"), &outcome),
            Verdict::OtherReason
        ));
        assert!(matches!(Verdict::of(&proof("Python"), &outcome), Verdict::Red));
    }
}
