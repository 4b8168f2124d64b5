//! `cargo xtask manifests`: the manifests in deploy/kubernetes, which are the Helm chart with its default values, rendered by Helm.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::run;
use crate::setup::{self, Part};

/// Renders deploy/kubernetes from the Helm chart in deploy/helm: change the chart, then run this.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only say whether they are what the chart makes; write nothing.
    #[arg(long)]
    check: bool,
}

/// The chart's directory.
const CHART: &str = "deploy/helm/mesh-agent";
/// Where the manifests are.
const MANIFESTS: &str = "deploy/kubernetes";
/// Opens each file that is made here.
const HEADER: &str = "# Made from deploy/helm/mesh-agent by `cargo xtask manifests`: change that, or patch this by kustomize.\n";
/// What the ConfigMap holds, as the chart has it; kustomize makes a ConfigMap of the file again.
const SETTINGS: &str = "  settings.yaml: |\n";

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    if args.check {
        return check(project);
    }
    for (file, text) in rendered(project)? {
        let path = project.root().join(MANIFESTS).join(&file);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("cannot make {}", directory.display()))?;
        }
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{MANIFESTS}/{file}");
    }
    Ok(())
}

/// Fails if a manifest is not what the chart makes, or the chart is not of the workspace's version.
pub(crate) fn check(project: &Project) -> Result<()> {
    let chart = project.root().join(CHART).join("Chart.yaml");
    let chart =
        std::fs::read_to_string(&chart).with_context(|| format!("cannot read {}", chart.display()))?;
    let version = env!("CARGO_PKG_VERSION");
    for key in ["version", "appVersion"] {
        if !chart.lines().any(|line| line == format!("{key}: {version}")) {
            bail!("{CHART}/Chart.yaml: {key} is not {version}, the workspace's version");
        }
    }
    let mut others = Vec::new();
    for (file, text) in rendered(project)? {
        let path = project.root().join(MANIFESTS).join(&file);
        if std::fs::read_to_string(path).ok().as_deref() != Some(&text) {
            others.push(format!("{MANIFESTS}/{file}"));
        }
    }
    if !others.is_empty() {
        bail!(
            "not what the chart makes: {}; change {CHART}, then run `cargo xtask manifests`",
            others.join(", ")
        );
    }
    Ok(())
}

/// The manifests as the chart makes them, by their paths below [`MANIFESTS`].
fn rendered(project: &Project) -> Result<BTreeMap<String, String>> {
    setup::ensure(project, &[Part::Helm])?;
    let defaults = helm(project, "{}")?;
    let monitored = helm(project, r#"{"podMonitor": {"enabled": true}}"#)?;
    manifests(&defaults, &monitored)
}

/// What each template of the chart becomes with these values.
fn helm(project: &Project, values: &str) -> Result<BTreeMap<String, String>> {
    let mut command = Command::new(project.python("helm-venv"));
    command
        .arg("-B")
        .arg(project.root().join("tests/helm/helm.py"))
        .arg("render")
        .arg(project.root().join(CHART))
        .args([
            "--name",
            "mesh-agent",
            "--namespace",
            "mesh-system",
            "--values",
            "-",
        ]);
    let text = run::output_of(&mut command, values.as_bytes())?;
    let templates: BTreeMap<String, String> =
        serde_json::from_str(&text).context("Helm's answer is not what tests/helm/helm.py promises")?;
    let plain = templates.into_iter().filter_map(|(name, text)| {
        let name = PathBuf::from(name);
        Some((name.file_name()?.to_str()?.to_owned(), text))
    });
    Ok(plain.collect())
}

fn manifests(
    defaults: &BTreeMap<String, String>,
    monitored: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>> {
    let get = |templates: &BTreeMap<String, String>, name: &str| {
        let text = templates.get(name).map(|text| text.trim()).unwrap_or_default();
        if text.is_empty() {
            bail!("the chart makes nothing of templates/{name}");
        }
        Ok(format!("{text}\n"))
    };
    let mut files = BTreeMap::new();
    for name in ["rbac.yaml", "daemonset.yaml"] {
        files.insert(name.to_owned(), format!("{HEADER}{}", get(defaults, name)?));
    }
    files.insert(
        "settings.yaml".to_owned(),
        settings(&get(defaults, "configmap.yaml")?)?,
    );
    let monitor = get(monitored, "podmonitor.yaml")?;
    files.insert(
        "podmonitor/podmonitor.yaml".to_owned(),
        format!("{HEADER}{monitor}"),
    );
    Ok(files)
}

/// The settings file that is in a ConfigMap.
fn settings(config_map: &str) -> Result<String> {
    let (_, block) = config_map
        .split_once(SETTINGS)
        .context("the chart's ConfigMap has no settings.yaml")?;
    let mut file = String::new();
    for line in block.lines() {
        let line = match line.strip_prefix("    ") {
            Some(line) => line,
            None if line.is_empty() => line,
            None => bail!("{line:?} follows settings.yaml in the chart's ConfigMap"),
        };
        file.push_str(line);
        file.push('\n');
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_settings_file_is_what_the_config_map_holds() {
        let text =
            "kind: ConfigMap\ndata:\n  settings.yaml: |\n    # A word.\n    pods:\n      discover: true\n";
        assert_eq!(settings(text).unwrap(), "# A word.\npods:\n  discover: true\n");
        assert!(settings("kind: ConfigMap\n").is_err());
        assert!(settings("data:\n  settings.yaml: |\n    a: 1\n  other: 2\n").is_err());
    }

    #[test]
    fn a_template_that_makes_nothing_is_an_error_and_not_an_empty_manifest() {
        let of = |names: &[&str]| {
            let pairs = names
                .iter()
                .map(|name| ((*name).to_owned(), "kind: X\n".to_owned()));
            pairs.collect::<BTreeMap<_, _>>()
        };
        let mut defaults = of(&["rbac.yaml", "daemonset.yaml"]);
        defaults.insert(
            "configmap.yaml".to_owned(),
            format!("data:\n{SETTINGS}    a: 1\n"),
        );
        let made = manifests(&defaults, &of(&["podmonitor.yaml"])).unwrap();
        assert_eq!(made["settings.yaml"], "a: 1\n");
        assert!(made["rbac.yaml"].starts_with(HEADER));
        assert!(manifests(&defaults, &of(&[])).is_err());
        defaults.insert("rbac.yaml".to_owned(), "\n".to_owned());
        assert!(manifests(&defaults, &of(&["podmonitor.yaml"])).is_err());
    }
}
