//! `cargo xtask dist`: what a release consists of, so that nobody needs a compiler to run the agent.

mod sbom;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::{Archive, digest, gzip};
use crate::project::Project;
use crate::run;
use crate::ship::{self, BINARIES, Shipped};

use sbom::Component;

/// Makes a release: a tarball of static binaries, documents and licences, the Helm chart, the list of what is in the binaries (SBOM), and checksums.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to put it; target/dist when nothing is given.
    #[arg(long, short, value_name = "DIRECTORY")]
    output: Option<PathBuf>,
}

/// What goes into the tarball of the project's own files.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "ARCHITECTURE.md",
    "SECURITY.md",
    "LICENSE",
    "docs",
    "deploy",
];

/// What the Helm chart consists of.
const CHART: [&str; 4] = ["Chart.yaml", "values.schema.json", "values.yaml", "templates"];

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    let output = args
        .output
        .clone()
        .unwrap_or_else(|| project.target().join("dist"));
    std::fs::create_dir_all(&output).with_context(|| format!("cannot make {}", output.display()))?;
    let shipped = Shipped::build(project)?;
    let name = format!("mesh-agent-{}-linux-{}", shipped.version, std::env::consts::ARCH);
    let made = run::step(&format!("release {name}"), || {
        let components = sbom::components(project, &ship::host())?;
        let sbom = serde_json::to_vec_pretty(&sbom::document(&shipped, &components))?;
        let tarball = tarball(project, &shipped, &name, &components, &sbom)?;
        Ok([
            (format!("{name}.tar.gz"), tarball),
            (format!("{name}.cdx.json"), sbom),
            (
                format!("mesh-agent-chart-{}.tgz", shipped.version),
                chart(project, shipped.time)?,
            ),
        ])
    })?;
    let mut sums = String::new();
    for (file, bytes) in &made {
        sums += &format!("{}  {file}\n", digest(bytes));
        write(&output.join(file), bytes)?;
    }
    write(&output.join("SHA256SUMS"), sums.as_bytes())?;
    println!("{sums}in {}", output.display());
    Ok(())
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    std::fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

fn tarball(
    project: &Project,
    shipped: &Shipped,
    name: &str,
    components: &[Component],
    sbom: &[u8],
) -> Result<Vec<u8>> {
    let root = Path::new(name);
    let mut archive = Archive::new(shipped.time);
    for binary in BINARIES {
        archive.file(root.join(binary), 0o755, &shipped.binary(binary)?)?;
    }
    archive.file(root.join("sbom.cdx.json"), 0o644, sbom)?;
    for document in DOCUMENTS {
        add(&mut archive, &project.root().join(document), &root.join(document))?;
    }
    for licence in ["LICENSE-MIT", "LICENSE-GPL-2.0"] {
        add(
            &mut archive,
            &project.ebpf().join(licence),
            &root.join("licences/mesh-ebpf").join(licence),
        )?;
    }
    for component in components {
        let place = root
            .join("licences")
            .join(format!("{}-{}", component.name, component.version));
        for file in component.licence_files()? {
            let name = file.file_name().context("a file without a name")?;
            add(&mut archive, &file, &place.join(name))?;
        }
    }
    gzip(&archive.finish()?)
}

/// The Helm chart as `helm package` has it: all but what its .helmignore leaves out.
fn chart(project: &Project, time: u64) -> Result<Vec<u8>> {
    let from = project.root().join("deploy/helm/mesh-agent");
    let mut archive = Archive::new(time);
    for part in CHART {
        add(
            &mut archive,
            &from.join(part),
            &Path::new("mesh-agent").join(part),
        )?;
    }
    gzip(&archive.finish()?)
}

/// Adds a file, or a directory with all that is in it, by name.
fn add(archive: &mut Archive, from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        let content = std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        return archive.file(to, 0o644, &content);
    }
    let entries = std::fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))?;
    let mut names = entries
        .map(|entry| Ok(entry?.file_name()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    for name in names {
        add(archive, &from.join(&name), &to.join(&name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_charts_archive_holds_the_chart_and_is_the_same_each_time() {
        let project = Project::find().unwrap();
        let archive = chart(&project, 1_700_000_000).unwrap();
        assert_eq!(archive, chart(&project, 1_700_000_000).unwrap());
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(archive.as_slice())
            .read_to_end(&mut unpacked)
            .unwrap();
        let mut files = tar::Archive::new(unpacked.as_slice());
        let files = files
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().into_owned());
        let files: BTreeSet<PathBuf> = files.collect();
        for wanted in [
            "Chart.yaml",
            "values.yaml",
            "values.schema.json",
            "templates/daemonset.yaml",
            "templates/_helpers.tpl",
        ] {
            assert!(
                files.contains(&Path::new("mesh-agent").join(wanted)),
                "{wanted}: {files:?}"
            );
        }
        assert!(
            !files.iter().any(|file| file.starts_with("mesh-agent/examples")),
            "{files:?}"
        );
    }
}
