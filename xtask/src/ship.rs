//! What is given to others: binaries that need nothing of the machine they run on but its kernel, and the same bytes from the same sources.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::project::Project;
use crate::run;
use crate::toolchain::cargo_home;

/// The binaries that are shipped.
pub(crate) const BINARIES: [&str; 2] = ["mesh-agent", "meshctl"];

/// A build to be shipped.
pub(crate) struct Shipped {
    /// Its version, that of mesh-agent's manifest.
    pub(crate) version: String,
    /// When its sources are from, in seconds since 1970: what is made of it bears this time.
    pub(crate) time: u64,
    directory: PathBuf,
}

impl Shipped {
    /// Builds the binaries: optimised, linked statically, with neither debug information nor this machine's paths in them.
    pub(crate) fn build(project: &Project) -> Result<Self> {
        let target = project.target().join("shipped");
        build::objects(project)?;
        let mut cargo = project.foreign_cargo();
        cargo
            .env("CARGO_ENCODED_RUSTFLAGS", flags(project))
            .env("CARGO_PROFILE_RELEASE_STRIP", "debuginfo")
            .env("CFLAGS", maps(project))
            // Named, so that the flags are not those of build scripts and procedural macros, which cannot be static.
            .args([
                "build",
                "--locked",
                "--release",
                "--package",
                "mesh-agent",
                "--bins",
                "--target",
            ])
            .arg(host())
            .arg("--target-dir")
            .arg(&target);
        run::step("build: binaries to be shipped", || run::show(&mut cargo))?;
        let shipped = Self {
            version: version(project)?,
            time: time(project)?,
            directory: target.join(host()).join("release"),
        };
        let files: Vec<PathBuf> = BINARIES.iter().map(|name| shipped.directory.join(name)).collect();
        build::check_unswitchable(project, &files)?;
        for file in &files {
            check(project, file)?;
        }
        Ok(shipped)
    }

    /// A binary's bytes.
    pub(crate) fn binary(&self, name: &str) -> Result<Vec<u8>> {
        let file = self.directory.join(name);
        std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))
    }
}

/// What the binaries are built for: this machine's processors, by the name that Rust has for it.
pub(crate) fn host() -> String {
    format!("{}-unknown-linux-gnu", std::env::consts::ARCH)
}

/// The directories whose names must not get into a binary, and what stands for them.
fn places(project: &Project) -> [(PathBuf, &'static str); 2] {
    [(cargo_home(), "cargo"), (project.root().to_owned(), "mesh-agent")]
}

/// The compiler's flags, separated as CARGO_ENCODED_RUSTFLAGS has them.
fn flags(project: &Project) -> String {
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    for (place, name) in places(project) {
        flags.push(format!("--remap-path-prefix={}={name}", place.display()));
    }
    flags.join("\u{1f}")
}

/// The same for the C compiler.
fn maps(project: &Project) -> String {
    let flags = places(project).map(|(place, name)| format!("-ffile-prefix-map={}={name}", place.display()));
    flags.join(" ")
}

/// Fails if a binary wants a dynamic linker, or tells where it was built.
fn check(project: &Project, file: &Path) -> Result<()> {
    let headers = run::output(
        Command::new("readelf")
            .args(["--program-headers", "--wide"])
            .arg(file),
    )?;
    if headers.contains("INTERP") {
        bail!(
            "{} is linked dynamically: it would run on machines like this one only",
            file.display()
        );
    }
    let content = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    for (place, _) in places(project) {
        let place = format!("{}/", place.display());
        if content
            .windows(place.len())
            .any(|window| window == place.as_bytes())
        {
            bail!(
                "{} has {place} in it: another machine would build other bytes",
                file.display()
            );
        }
    }
    Ok(())
}

fn version(project: &Project) -> Result<String> {
    let metadata = project.metadata(&["--no-deps"])?;
    let packages = metadata["packages"].as_array();
    packages
        .into_iter()
        .flatten()
        .find(|package| package["name"] == "mesh-agent")
        .and_then(|package| package["version"].as_str())
        .map(str::to_owned)
        .context("cargo metadata knows no version of mesh-agent")
}

/// SOURCE_DATE_EPOCH (reproducible-builds.org), or when the last commit was made.
fn time(project: &Project) -> Result<u64> {
    let text =
        match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(text) => text,
            Err(_) => run::output(Command::new("git").current_dir(project.root()).args([
                "log",
                "-1",
                "--format=%ct",
            ]))
            .context("when the sources are from is told by git, or by SOURCE_DATE_EPOCH")?,
        };
    text.trim()
        .parse()
        .with_context(|| format!("{:?} is no number of seconds", text.trim()))
}
