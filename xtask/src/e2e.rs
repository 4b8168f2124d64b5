//! `cargo xtask e2e`: the end-to-end suites, on real namespaces with real agents. A suite is a file in tests/suites.

use anyhow::{Context, Result, bail};

use crate::build;
use crate::kernels;
use crate::mutate;
use crate::project::Project;
use crate::run;
use crate::setup::{self, Part};

/// The suite that needs Helm and kustomize.
const CHART: &str = "chart";

/// Runs the end-to-end suites: real namespaces, cgroups, agents and clients. Needs root.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which suites; all of them when none is named, but `kernels`: the core of capture on Debian's older kernels, under qemu.
    #[arg(value_name = "SUITE")]
    suites: Vec<String>,
    /// For the test programs, after `--`: a filter of tests by name, `--nocapture`, `--list` …
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
    /// Proves that the tests would go red: switches off one mechanism after another (those named; all of them when none is) in a
    /// test-only build, and runs the test that must fail then.
    #[arg(long, value_name = "MECHANISM", num_args = 0.., conflicts_with_all = ["suites", "arguments"])]
    mutate: Option<Vec<String>>,
}

/// The verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    if let Some(mechanisms) = &args.mutate {
        return mutate::run(project, mechanisms);
    }
    let known = suites(project)?;
    let is_known = |name: &String| known.contains(name) || name == kernels::NAME;
    if let Some(unknown) = args.suites.iter().find(|name| !is_known(name)) {
        bail!(
            "there is no suite {unknown}; the suites are: {}, and {}, which is run when it is named",
            known.join(", "),
            kernels::NAME
        );
    }
    need_root("cargo xtask e2e", "")?;
    prepare(project)?;
    let (guests, mut chosen): (Vec<String>, Vec<String>) = args
        .suites
        .iter()
        .cloned()
        .partition(|name| name == kernels::NAME);
    if args.suites.is_empty() {
        chosen = known;
    }
    let mut summaries = Vec::new();
    let mut outcome = Ok(());
    if !chosen.is_empty() {
        outcome = run::step(&format!("suites {}", chosen.join(", ")), || {
            suite(project, &chosen, &args.arguments, &mut summaries)
        });
    }
    if !guests.is_empty() {
        outcome = outcome.and(kernels::run(project, &args.arguments, &mut summaries));
    }
    for summary in summaries {
        println!("{summary}");
    }
    outcome
}

/// The names of all suites, in order.
pub(crate) fn suites(project: &Project) -> Result<Vec<String>> {
    let directory = project.root().join("tests/suites");
    let entries =
        std::fs::read_dir(&directory).with_context(|| format!("cannot list {}", directory.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// Fails, with advice, for anybody but root.
pub(crate) fn need_root(command: &str, otherwise: &str) -> Result<()> {
    if run::is_root() {
        return Ok(());
    }
    let mut text = format!(
        "this needs root, for network namespaces, cgroups and BPF: sudo --preserve-env=PATH,HOME,CARGO_HOME,RUSTUP_HOME {command}"
    );
    if !otherwise.is_empty() {
        text.push_str("\n       ");
        text.push_str(otherwise);
    }
    bail!("{text}")
}

/// Sets up and builds what the suites run.
pub(crate) fn prepare(project: &Project) -> Result<()> {
    setup::ensure(project, &[Part::Rust, Part::Bpf, Part::Programs, Part::Python])?;
    build::everything(project, false)
}

/// Runs these suites one after the other; all of them, even after a failure.
pub(crate) fn suite(
    project: &Project,
    names: &[String],
    arguments: &[String],
    summaries: &mut Vec<String>,
) -> Result<()> {
    if names.iter().any(|name| name == CHART) {
        setup::ensure(project, &[Part::Helm])?;
        setup::programs(&[("kubectl", "kubernetes-client")])?;
    }
    let mut cargo = project.cargo();
    cargo.args(["test", "--locked", "--workspace", "--no-fail-fast"]);
    for name in names {
        cargo.args(["--test", name]);
    }
    cargo.arg("--").args(arguments);
    cargo
        .env("MESH_AGENT_BIN", project.binary("mesh-agent", false))
        .env("MESH_PEER_PYTHON", project.python("peer-venv"))
        .env("MESH_HELM_PYTHON", project.python("helm-venv"));
    run::tests(&mut cargo, summaries)
}
