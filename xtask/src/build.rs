//! `cargo xtask build`: the BPF programs, then the binaries that embed them.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use mesh_common::mutation;

use crate::project::Project;
use crate::run::{self, TestProgram};
use crate::setup::{self, Part};
use crate::ship::BINARIES;
use crate::stamp::{self, Inputs};
use crate::toolchain::{TARGET, Toolchain};

/// The BPF programs' binaries in mesh-ebpf; each becomes `NAME.bpf.o` of its variant's directory, which mesh-agent embeds.
const OBJECTS: &[&str] = &["node", "pod"];

/// Which BPF objects: those that are shipped, or those in which a mechanism can be switched off.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Variant {
    Shipped,
    Mutants,
}

impl Variant {
    /// Where cargo builds, below mesh-ebpf.
    fn target(self) -> &'static str {
        match self {
            Variant::Shipped => "target",
            Variant::Mutants => "target/mutants",
        }
    }

    fn objects(self, project: &Project) -> PathBuf {
        project.ebpf().join(self.target()).join("objects")
    }

    fn object(self, project: &Project, name: &str) -> PathBuf {
        let suffix = match self {
            Variant::Shipped => "bpf.o",
            Variant::Mutants => "mutants.bpf.o",
        };
        self.objects(project).join(format!("{name}.{suffix}"))
    }
}

/// Builds the BPF programs and the binaries.
///
/// The BPF programs are compiled only when their sources or their compiler changed.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build optimised binaries (target/release) instead of quick ones (target/debug).
    #[arg(long)]
    release: bool,
}

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    everything(project, args.release)?;
    for name in BINARIES {
        println!("{}", project.binary(name, args.release).display());
    }
    Ok(())
}

/// Builds all there is to build.
pub(crate) fn everything(project: &Project, release: bool) -> Result<()> {
    objects(project)?;
    let mut cargo = project.cargo();
    cargo.args(["build", "--locked", "--workspace", "--bins"]);
    if release {
        cargo.arg("--release");
    }
    run::step("build: binaries", || run::show(&mut cargo))?;
    let files = BINARIES.map(|name| project.binary(name, release));
    check_unswitchable(project, &files)
}

/// Builds the BPF programs that are shipped.
pub(crate) fn objects(project: &Project) -> Result<()> {
    setup::ensure(project, &[Part::Bpf])?;
    programs(project, Variant::Shipped)
}

/// Where the test build with switchable mechanisms goes: away from what anybody might run or ship.
pub(crate) fn mutants_target(project: &Project) -> PathBuf {
    project.target().join("mutants")
}

/// Builds the agent in which `MESH_MUTATION` switches a mechanism off, and the unit tests of the crates that ask about it. The binaries
/// are in [`mutants_target`]; returns the programs of the unit tests.
pub(crate) fn mutants(project: &Project) -> Result<Vec<TestProgram>> {
    setup::ensure(project, &[Part::Bpf])?;
    programs(project, Variant::Mutants)?;
    let cargo = |verb: &str| {
        let mut cargo = project.cargo();
        cargo
            // All packages, as everywhere: with fewer of them, dependencies would be others, by their features.
            .args([
                verb,
                "--locked",
                "--workspace",
                "--features",
                "mesh-agent/mutants",
                "--target-dir",
            ])
            .arg(mutants_target(project));
        cargo
    };
    run::step("build: binaries with switchable mechanisms", || {
        run::show(cargo("build").args(["--bin", "mesh-agent", "--bin", "meshctl"]))
    })?;
    run::step("build: unit tests with switchable mechanisms", || {
        let mut tests = cargo("test");
        tests.args(["--lib", "--no-run"]);
        run::show(&mut tests)?;
        run::test_programs(&mut tests)
    })
}

/// Nothing that could be switched off is in what is shipped: neither the variable in the binaries nor the global in the objects.
pub(crate) fn check_unswitchable(project: &Project, binaries: &[PathBuf]) -> Result<()> {
    let binaries = binaries.iter().map(|file| (file.clone(), mutation::VARIABLE));
    let objects = OBJECTS
        .iter()
        .map(|name| (Variant::Shipped.object(project, name), mutation::GLOBAL));
    for (file, word) in binaries.chain(objects) {
        let content = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        if content
            .windows(word.len())
            .any(|window| window == word.as_bytes())
        {
            bail!(
                "{} has {word} in it: it was built with the feature `mutants`, which is for tests only",
                file.display()
            );
        }
    }
    Ok(())
}

/// Compiles the BPF programs, if they are not those of these sources and this compiler.
fn programs(project: &Project, variant: Variant) -> Result<()> {
    let toolchain =
        Toolchain::find(project).map_err(|missing| anyhow!("{missing}: run `cargo xtask setup`"))?;
    let mut inputs = Inputs::default().word(&toolchain.description());
    let common = project.root().join("mesh-common");
    for path in ["src", "Cargo.toml", "Cargo.lock", "build.rs"] {
        inputs = inputs
            .path(&project.ebpf().join(path))?
            .path(&common.join(path))?;
    }
    let stamp = inputs.stamp();
    let file = variant.objects(project).join("stamp");
    let present = OBJECTS.iter().all(|name| variant.object(project, name).is_file());
    if present && stamp::is_current(&file, &stamp) {
        return Ok(());
    }
    run::step("build: BPF programs", || {
        let mut cargo = toolchain.cargo(project, &project.ebpf());
        if variant == Variant::Mutants {
            cargo.args(["--features", "mutants", "--target-dir", variant.target()]);
        }
        run::show(&mut cargo)?;
        publish(project, variant)
    })?;
    std::fs::write(&file, stamp).with_context(|| format!("cannot write {}", file.display()))
}

/// Puts the objects where mesh-agent's build script looks for them.
fn publish(project: &Project, variant: Variant) -> Result<()> {
    let directory = variant.objects(project);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let release = project.ebpf().join(variant.target()).join(TARGET).join("release");
    for name in OBJECTS {
        let built = release.join(name);
        if !built.is_file() {
            bail!(
                "mesh-ebpf was built, but has no program {name}: {} is missing",
                built.display()
            );
        }
        let object = variant.object(project, name);
        std::fs::copy(&built, &object).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(())
}
