//! The Python virtual environments of the tests, below target/: of the independent HBONE peer, and of Helm.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Missing, apt};
use crate::project::Project;
use crate::run;
use crate::stamp;

/// One of the environments.
pub(super) struct Environment {
    /// Its directory, below target/.
    directory: &'static str,
    /// Where in the project what belongs into it is: `requirements.txt`, and the scripts that run in it.
    scripts: &'static str,
    /// What must be possible to import.
    module: &'static str,
}

/// That of the independent HBONE peer.
pub(super) const PEER: Environment = Environment {
    directory: "peer-venv",
    scripts: "tests/peer",
    module: "h2",
};

/// That of Helm.
pub(super) const HELM: Environment = Environment {
    directory: "helm-venv",
    scripts: "tests/helm",
    module: "helm_python",
};

impl Environment {
    /// What is to be in it.
    fn requirements(&self, project: &Project) -> PathBuf {
        project.root().join(self.scripts).join("requirements.txt")
    }

    /// A copy of the requirements that it was made from.
    fn made_from(&self, project: &Project) -> PathBuf {
        self.path(project).join("requirements.txt")
    }

    fn path(&self, project: &Project) -> PathBuf {
        project.target().join(self.directory)
    }

    fn python(&self, project: &Project) -> PathBuf {
        project.python(self.directory)
    }

    /// Looks for the environment.
    pub(super) fn look(&self, project: &Project) -> Result<String, Missing> {
        let python = self.python(project);
        let wanted = std::fs::read_to_string(self.requirements(project)).unwrap_or_default();
        let import = format!("import {}", self.module);
        let runs = || run::output(Command::new(&python).args(["-c", &import])).is_ok();
        if stamp::is_current(&self.made_from(project), &wanted) && runs() {
            return Ok(format!(
                "{} with what {} requires",
                python.display(),
                self.scripts
            ));
        }
        let file = self.requirements(project);
        Err(Missing {
            what: format!("a Python environment for {}", self.scripts),
            commands: vec![
                format!("python3 -m venv {}", self.path(project).display()),
                format!("{} -m pip install -r {}", python.display(), file.display()),
                format!("cp {} {}", file.display(), self.made_from(project).display()),
            ],
        })
    }

    /// Makes the environment.
    pub(super) fn install(&self, project: &Project) -> Result<()> {
        if run::output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_err() {
            apt::install(&["python3", "python3-venv"])?;
        }
        let mut make = Command::new("python3");
        run::quietly(
            "python3 -m venv",
            make.args(["-m", "venv", "--clear"]).arg(self.path(project)),
        )?;
        let mut pip = Command::new(self.python(project));
        pip.args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "-r",
        ])
        .arg(self.requirements(project));
        run::quietly("pip install", &mut pip)?;
        std::fs::copy(self.requirements(project), self.made_from(project))
            .map(drop)
            .context("cannot write into the Python environment")
    }
}
