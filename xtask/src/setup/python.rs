//! The Python virtual environment of the tests' independent HBONE peer, below target/.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Missing, apt};
use crate::project::Project;
use crate::run;
use crate::stamp;

/// What is to be in it.
fn requirements(project: &Project) -> PathBuf {
    project.root().join("tests/peer/requirements.txt")
}

/// A copy of the requirements that it was made from.
fn made_from(project: &Project) -> PathBuf {
    venv(project).join("requirements.txt")
}

fn venv(project: &Project) -> PathBuf {
    project.target().join("peer-venv")
}

/// Looks for the environment.
pub(super) fn look(project: &Project) -> Result<String, Missing> {
    let python = project.python();
    let wanted = std::fs::read_to_string(requirements(project)).unwrap_or_default();
    let runs = || run::output(Command::new(&python).args(["-c", "import h2"])).is_ok();
    if stamp::is_current(&made_from(project), &wanted) && runs() {
        return Ok(format!("{} with what tests/peer requires", python.display()));
    }
    let file = requirements(project);
    Err(Missing {
        what: "a Python environment for tests/peer".to_owned(),
        commands: vec![
            format!("python3 -m venv {}", venv(project).display()),
            format!("{} -m pip install -r {}", python.display(), file.display()),
            format!("cp {} {}", file.display(), made_from(project).display()),
        ],
    })
}

/// Makes the environment.
pub(super) fn install(project: &Project) -> Result<()> {
    if run::output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        apt::install(&["python3", "python3-venv"])?;
    }
    let mut make = Command::new("python3");
    run::quietly(
        "python3 -m venv",
        make.args(["-m", "venv", "--clear"]).arg(venv(project)),
    )?;
    let mut pip = Command::new(project.python());
    pip.args([
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "-r",
    ])
    .arg(requirements(project));
    run::quietly("pip install", &mut pip)?;
    std::fs::copy(requirements(project), made_from(project))
        .map(drop)
        .context("cannot write into the Python environment")
}
