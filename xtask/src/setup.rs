//! `cargo xtask setup`: finds what the other verbs need, and installs what it may.

mod apt;
mod bpf;
mod python;

use anyhow::{Result, bail};

use crate::project::Project;
use crate::run;

/// Finds or installs the BPF toolchain and the programs that tests and demo use.
///
/// On Debian, as root, packages come by apt-get. Elsewhere the exact commands are printed. bpf-linker and Python virtual
/// environments are put below target/, for this project alone.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only report what is there and what is missing; install nothing. Fails if anything is missing.
    #[arg(long)]
    check: bool,
}

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    let everything = [Part::Rust, Part::Bpf, Part::Programs, Part::Python, Part::Helm];
    if args.check {
        return check(project, &everything);
    }
    ensure(project, &everything)?;
    for part in everything {
        println!(
            "ok: {}",
            part.look(project).unwrap_or_else(|missing| missing.what)
        );
    }
    Ok(())
}

/// What there is to set up.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// rustfmt and clippy, and a C compiler.
    Rust,
    /// Compiler and linker for the BPF programs.
    Bpf,
    /// What the demo and the tests run.
    Programs,
    /// What the tests' independent HBONE peer needs.
    Python,
    /// Helm, which renders the manifests.
    Helm,
}

/// What is not there, and what to do about it.
pub(crate) struct Missing {
    /// In words.
    what: String,
    /// Commands for a person.
    commands: Vec<String>,
}

impl Part {
    /// What is there, in words; or what is missing.
    fn look(self, project: &Project) -> Result<String, Missing> {
        match self {
            Self::Rust => apt::look_rust(project),
            Self::Bpf => bpf::look(project),
            Self::Programs => apt::look_programs(),
            Self::Python => python::PEER.look(project),
            Self::Helm => python::HELM.look(project),
        }
    }

    /// Installs what is missing, where we may.
    fn install(self, project: &Project) -> Result<()> {
        match self {
            Self::Rust => apt::install_rust(project),
            Self::Bpf => bpf::install(project),
            Self::Programs => apt::install_programs(),
            Self::Python => python::PEER.install(project),
            Self::Helm => python::HELM.install(project),
        }
    }
}

/// Makes sure that these parts are there: installs what it may; else fails with the commands that a person can run.
pub(crate) fn ensure(project: &Project, parts: &[Part]) -> Result<()> {
    for part in parts {
        let Err(missing) = part.look(project) else {
            continue;
        };
        let installed = run::step(&format!("setup: {}", missing.what), || part.install(project));
        match (part.look(project), installed) {
            (Ok(_), _) => {}
            (Err(still), Ok(())) => bail!("{}", still.advice()),
            (Err(still), Err(error)) => bail!("{error:#}\n{}", still.advice()),
        }
    }
    Ok(())
}

/// Makes sure of these programs, given with their packages; installs what is missing, where we may.
pub(crate) fn programs(wanted: &[(&'static str, &'static str)]) -> Result<()> {
    let Err(missing) = apt::look_for(wanted) else {
        return Ok(());
    };
    let installed = run::step(&format!("setup: {}", missing.what), || {
        apt::install_missing(wanted)
    });
    match (apt::look_for(wanted), installed) {
        (Ok(_), _) => Ok(()),
        (Err(still), Ok(())) => bail!("{}", still.advice()),
        (Err(still), Err(error)) => bail!("{error:#}; {}", still.advice()),
    }
}

fn check(project: &Project, parts: &[Part]) -> Result<()> {
    let mut complete = true;
    for part in parts {
        match part.look(project) {
            Ok(found) => println!("ok:      {found}"),
            Err(missing) => {
                complete = false;
                println!("missing: {}", missing.advice());
            }
        }
    }
    if !complete {
        bail!(
            "something is missing: `cargo xtask setup` as root on Debian installs it; or run the commands above"
        );
    }
    Ok(())
}

impl Missing {
    fn advice(&self) -> String {
        let mut text = self.what.clone();
        if !self.commands.is_empty() {
            text.push_str("; run:");
            for command in &self.commands {
                text.push_str("\n    ");
                text.push_str(command);
            }
        }
        text
    }
}
