//! `cargo xtask fuzz`: the fuzz targets of mesh-agent/fuzz, for a while each.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::run;
use crate::setup::{self, Part};
use crate::stamp::{self, Inputs};

/// What libFuzzer needs: counters of edges with their places, and comparisons told (the LLVM pass SanitizerCoverage).
const INSTRUMENTED: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Fuzzes what parses bytes from outside: each target for a while. A finding fails, and its input is kept below target/fuzz.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which targets; all of them when none is named.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// How long each target runs.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    seconds: u32,
}

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    let known = targets(project)?;
    if let Some(unknown) = args.targets.iter().find(|name| !known.contains(name)) {
        bail!(
            "there is no fuzz target {unknown}; the targets are: {}",
            known.join(", ")
        );
    }
    setup::ensure(project, &[Part::Rust])?;
    let chosen = if args.targets.is_empty() {
        known
    } else {
        args.targets.clone()
    };
    let fuzzer = Fuzzer {
        place: project.target().join("fuzz"),
        seconds: args.seconds,
    };
    run::step("fuzz: build all targets", || {
        lock(project, &fuzzer.place)?;
        run::show(&mut fuzzer.build(project))
    })?;
    let mut found = Vec::new();
    let mut lines = Vec::new();
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for together in chosen.chunks(processors) {
        let title = format!("fuzz {} for {} s", together.join(", "), args.seconds);
        let ran = run::step(&title, || fuzzer.run_all(together))?;
        for (target, ran) in together.iter().zip(ran) {
            lines.push(format!(
                "  {target:<12} {:>12} executions in {}",
                ran.executions,
                run::seconds(ran.took)
            ));
            if let Some(fault) = ran.fault {
                eprintln!("error: {fault}");
                found.push(target.as_str());
            }
        }
    }
    lines.iter().for_each(|line| println!("{line}"));
    if !found.is_empty() {
        bail!(
            "found something: {}; the inputs are below {}",
            found.join(", "),
            fuzzer.place.join("findings").display()
        );
    }
    println!(
        "fuzzed {} targets for {} s in all, without a finding",
        chosen.len(),
        chosen.len() as u64 * u64::from(args.seconds)
    );
    Ok(())
}

/// Lets the targets be built with the versions of dependencies that the agent is built with: a workspace of its own would choose the
/// latest ones. What only the targets need, cargo adds.
fn lock(project: &Project, place: &Path) -> Result<()> {
    let from = project.root().join("Cargo.lock");
    let to = project.root().join("mesh-agent/fuzz/Cargo.lock");
    let stamp = Inputs::default().path(&from)?.stamp();
    let file = place.join("lock.stamp");
    if to.is_file() && stamp::is_current(&file, &stamp) {
        return Ok(());
    }
    std::fs::copy(&from, &to).with_context(|| format!("cannot write {}", to.display()))?;
    std::fs::create_dir_all(place)?;
    std::fs::write(&file, stamp).with_context(|| format!("cannot write {}", file.display()))
}

/// With a target named, build scripts and procedural macros are not instrumented.
fn host() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

struct Fuzzer {
    place: PathBuf,
    seconds: u32,
}

/// What one target did.
struct Ran {
    executions: u64,
    took: Duration,
    /// The end of its log, where it found something or did not run.
    fault: Option<String>,
}

impl Fuzzer {
    /// Builds all targets at once. Without a sanitizer: nearly all of the code is safe Rust, whose own checks find what is to be found, and
    /// libFuzzer's coverage does not need one; the instrumented build takes half as long and runs twice as fast.
    fn build(&self, project: &Project) -> Command {
        let mut build = project.foreign_cargo();
        build
            .current_dir(project.root().join("mesh-agent/fuzz"))
            .env("RUSTFLAGS", INSTRUMENTED.join(" "))
            .args(["build", "--release", "--bins", "--target"])
            .arg(host())
            .arg("--target-dir")
            .arg(self.place.join("build"));
        build
    }

    /// Runs these targets side by side.
    fn run_all(&self, targets: &[String]) -> Result<Vec<Ran>> {
        std::thread::scope(|scope| {
            let runs: Vec<_> = targets
                .iter()
                .map(|target| scope.spawn(|| self.run(target)))
                .collect();
            runs.into_iter()
                .map(|run| {
                    run.join()
                        .unwrap_or_else(|_| bail!("a thread that ran a target panicked"))
                })
                .collect()
        })
    }

    /// Runs one target for its time.
    fn run(&self, target: &str) -> Result<Ran> {
        let corpus = self.place.join("corpus").join(target);
        let findings = self.place.join("findings").join(target);
        std::fs::create_dir_all(&corpus)?;
        std::fs::create_dir_all(&findings)?;
        let log = findings.join("log");
        let file = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut fuzz = Command::new(self.place.join("build").join(host()).join("release").join(target));
        fuzz.arg(&corpus)
            .args([
                "-rss_limit_mb=2048",
                "-max_len=4096",
                "-timeout=20",
                "-print_final_stats=1",
            ])
            .arg(format!("-max_total_time={}", self.seconds))
            .arg(format!("-artifact_prefix={}/", findings.display()))
            .stdin(Stdio::null())
            .stderr(file);
        let start = Instant::now();
        let status = fuzz
            .status()
            .with_context(|| format!("cannot run {}", run::words(&fuzz)))?;
        let text = std::fs::read(&log)?;
        let text = String::from_utf8_lossy(&text);
        let executions = executions(&text).unwrap_or_default();
        let from = text.floor_char_boundary(text.len().saturating_sub(4000));
        let bad = !status.success() || executions == 0;
        Ok(Ran {
            executions,
            took: start.elapsed(),
            fault: bad.then(|| format!("{}\n{target} ended with {status}", &text[from..])),
        })
    }
}

/// How many inputs libFuzzer says that it has tried.
fn executions(log: &str) -> Option<u64> {
    let (_, after) = log.split_once("stat::number_of_executed_units:")?;
    after.lines().next()?.trim().parse().ok()
}

/// The targets that mesh-agent/fuzz/Cargo.toml names.
fn targets(project: &Project) -> Result<Vec<String>> {
    let manifest = project.root().join("mesh-agent/fuzz/Cargo.toml");
    let metadata = project.metadata(&["--no-deps", "--manifest-path", &manifest.to_string_lossy()])?;
    let bins = metadata["packages"][0]["targets"]
        .as_array()
        .into_iter()
        .flatten();
    Ok(bins
        .filter_map(|bin| bin["name"].as_str())
        .map(str::to_owned)
        .collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_fuzzer_that_tried_nothing_is_told_from_one_that_did() {
        let log = "Done 7 runs\nstat::number_of_executed_units: 1234\nstat::average_exec_per_sec: 1\n";
        assert_eq!(super::executions(log), Some(1234));
        assert_eq!(super::executions("==1== ERROR: libFuzzer"), None);
    }
}
