//! `cargo xtask fuzz`: the fuzz targets of mesh-agent/fuzz, for a while each.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::project::Project;
use crate::run;
use crate::setup::{self, Part};

const VERSION: &str = "0.13.2";

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
    let tool = tool(project)?;
    let chosen = if args.targets.is_empty() {
        known
    } else {
        args.targets.clone()
    };
    let place = project.target().join("fuzz");
    for target in &chosen {
        let corpus = place.join("corpus").join(target);
        let findings = place.join("findings").join(target);
        std::fs::create_dir_all(&corpus)?;
        std::fs::create_dir_all(&findings)?;
        let mut fuzz = project.foreign_cargo();
        fuzz.current_dir(project.root().join("mesh-agent/fuzz"))
            .env("PATH", path_with(&tool)?)
            // The sanitizers' switches are unstable; the stable compiler takes them like this.
            .env("RUSTC_BOOTSTRAP", "1")
            .args(["fuzz", "run", "--target-dir"])
            .arg(place.join("build"))
            .arg(target)
            .arg(&corpus)
            .args([
                "--",
                "-rss_limit_mb=2048",
                "-max_len=4096",
                "-print_final_stats=1",
            ])
            .arg(format!("-max_total_time={}", args.seconds))
            .arg(format!("-artifact_prefix={}/", findings.display()));
        run::step(&format!("fuzz {target} for {} s", args.seconds), || {
            run::show(&mut fuzz)
        })?;
    }
    println!(
        "fuzzed {} targets for {} s in all, without a finding",
        chosen.len(),
        chosen.len() as u32 * args.seconds
    );
    Ok(())
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

/// The folder with cargo-fuzz, which is installed below target/ where it is missing.
fn tool(project: &Project) -> Result<PathBuf> {
    let place = project.target().join("xtask/cargo-fuzz");
    let folder = place.join("bin");
    if !folder.join("cargo-fuzz").is_file() {
        let title = format!("install cargo-fuzz {VERSION}");
        let mut install = project.foreign_cargo();
        install
            .args(["install", "--locked", "--root"])
            .arg(&place)
            .arg(format!("cargo-fuzz@{VERSION}"));
        run::step(&title, || run::quietly(&title, &mut install))?;
    }
    Ok(folder)
}

fn path_with(folder: &std::path::Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let all = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
    Ok(std::env::join_paths(all)?)
}
