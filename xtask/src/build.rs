//! `cargo xtask build`: the BPF programs, then the binaries that embed them.

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};

use crate::project::Project;
use crate::run;
use crate::setup::{self, Part};
use crate::stamp::{self, Inputs};
use crate::toolchain::{TARGET, Toolchain};

/// The BPF programs' binaries in mesh-ebpf; each becomes `mesh-ebpf/target/objects/NAME.bpf.o`, which mesh-agent embeds.
const OBJECTS: &[&str] = &["node", "pod"];

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
    for name in ["mesh-agent", "meshctl"] {
        println!("{}", project.binary(name, args.release).display());
    }
    Ok(())
}

/// Builds all there is to build.
pub(crate) fn everything(project: &Project, release: bool) -> Result<()> {
    setup::ensure(project, &[Part::Bpf])?;
    programs(project)?;
    let mut cargo = project.cargo();
    cargo.args(["build", "--locked", "--workspace", "--bins"]);
    if release {
        cargo.arg("--release");
    }
    run::step("build: binaries", || run::show(&mut cargo))
}

/// Compiles the BPF programs, if they are not those of these sources and this compiler.
fn programs(project: &Project) -> Result<()> {
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
    let file = objects(project).join("stamp");
    let present = OBJECTS.iter().all(|name| object(project, name).is_file());
    if present && stamp::is_current(&file, &stamp) {
        return Ok(());
    }
    run::step("build: BPF programs", || {
        run::show(&mut toolchain.cargo(project, &project.ebpf()))?;
        publish(project)
    })?;
    std::fs::write(&file, stamp).with_context(|| format!("cannot write {}", file.display()))
}

/// Puts the objects where mesh-agent's build script looks for them.
fn publish(project: &Project) -> Result<()> {
    let directory = objects(project);
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    for name in OBJECTS {
        let built = project
            .ebpf()
            .join("target")
            .join(TARGET)
            .join("release")
            .join(name);
        if !built.is_file() {
            bail!(
                "mesh-ebpf was built, but has no program {name}: {} is missing",
                built.display()
            );
        }
        let object = object(project, name);
        std::fs::copy(&built, &object).with_context(|| format!("cannot write {}", object.display()))?;
    }
    Ok(())
}

fn objects(project: &Project) -> PathBuf {
    project.ebpf().join("target/objects")
}

fn object(project: &Project, name: &str) -> PathBuf {
    objects(project).join(format!("{name}.bpf.o"))
}
