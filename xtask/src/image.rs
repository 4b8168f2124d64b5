//! `cargo xtask image`: a container image of the agent as one file, made without Docker.

mod oci;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::run;
use crate::ship::{BINARIES, Shipped};

use oci::Image;

/// Makes a container image as one file, for `ctr images import`, `docker load` and registries. It holds the two binaries and nothing else.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The image's name; that of the manifests in deploy/ when none is given.
    #[arg(long, value_name = "NAME:TAG")]
    name: Option<String>,
    /// Where to write it; target/image/mesh-agent-VERSION-ARCHITECTURE.tar when nothing is given.
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    if let Some(name) = &args.name {
        check(name)?;
    }
    let shipped = Shipped::build(project)?;
    let name = args
        .name
        .clone()
        .unwrap_or_else(|| default_name(&shipped.version));
    let output = args.output.clone().unwrap_or_else(|| {
        let file = format!("mesh-agent-{}-{}.tar", shipped.version, oci::architecture());
        project.target().join("image").join(file)
    });
    let bytes = run::step(&format!("image {name}"), || make(&shipped, &name))?;
    if let Some(directory) = output.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    std::fs::write(&output, &bytes).with_context(|| format!("cannot write {}", output.display()))?;
    println!("{} ({} MiB)", output.display(), bytes.len() >> 20);
    println!(
        "on each node: ctr --namespace k8s.io images import {}",
        output.display()
    );
    Ok(())
}

/// What the image is called in deploy/: a name of no registry, so that nobody's image is pulled in its place.
pub(crate) fn default_name(version: &str) -> String {
    format!("localhost/mesh-agent:{version}")
}

fn make(shipped: &Shipped, name: &str) -> Result<Vec<u8>> {
    let mut image = Image::new(name, &shipped.version, shipped.time);
    for binary in BINARIES {
        image.file(&format!("usr/local/bin/{binary}"), 0o755, shipped.binary(binary)?);
    }
    image.archive()
}

/// A name with its registry and its tag, so that container runtimes do not complete it each in its way.
fn check(name: &str) -> Result<()> {
    let tagged = name.rsplit_once('/').is_some_and(|(registry, last)| {
        !registry.is_empty()
            && last
                .split_once(':')
                .is_some_and(|(a, b)| !a.is_empty() && !b.is_empty())
    });
    let plain = name
        .chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "./:_-".contains(c));
    if !tagged || !plain {
        bail!(
            "{name:?} is no image name with registry and tag, such as registry.example/mesh/mesh-agent:0.1.0"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_needs_its_registry_and_its_tag() {
        for good in ["localhost/mesh-agent:0.1.0", "registry.example:5000/a/b:v1"] {
            check(good).unwrap();
        }
        for bad in [
            "mesh-agent",
            "mesh-agent:1",
            "localhost/mesh-agent",
            "localhost/Mesh:1",
            "a/b:",
            "a/b c:1",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        check(&default_name("0.1.0")).unwrap();
    }

    #[test]
    fn the_daemonset_runs_the_image_that_is_made_here() {
        let project = Project::find().unwrap();
        let manifest = project.root().join("deploy/kubernetes/daemonset.yaml");
        let manifest = std::fs::read_to_string(manifest).unwrap();
        let wanted = format!("image: {}\n", default_name(env!("CARGO_PKG_VERSION")));
        assert!(manifest.contains(&wanted), "{wanted}");
    }
}
