//! The Python virtual environment of the tests' independent HBONE peer, below target/.

use std::process::Command;

use anyhow::Result;

use super::{Missing, apt};
use crate::project::Project;
use crate::run;

/// PyPI packages: an HTTP/2 protocol stack, and certificates of every bad kind.
const PACKAGES: &[&str] = &["h2", "cryptography"];

/// Looks for the environment.
pub(super) fn look(project: &Project) -> Result<String, Missing> {
    let python = project.python();
    let imports = format!("import {}", PACKAGES.join(", "));
    if python.is_file() && run::output(Command::new(&python).args(["-c", &imports])).is_ok() {
        return Ok(format!("{} with {}", python.display(), PACKAGES.join(", ")));
    }
    let venv = project.target().join("peer-venv");
    Err(Missing {
        what: format!("a Python environment with {}", PACKAGES.join(", ")),
        commands: vec![
            format!("python3 -m venv {}", venv.display()),
            format!("{} -m pip install {}", python.display(), PACKAGES.join(" ")),
        ],
    })
}

/// Makes the environment.
pub(super) fn install(project: &Project) -> Result<()> {
    if run::output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
        apt::install(&["python3", "python3-venv"])?;
    }
    let venv = project.target().join("peer-venv");
    run::quietly(
        "python3 -m venv",
        Command::new("python3").args(["-m", "venv", "--clear"]).arg(venv),
    )?;
    let mut pip = Command::new(project.python());
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(PACKAGES);
    run::quietly("pip install", &mut pip)
}
