//! `mesh-agent`: runs the node's agent, removes what it left in the kernel, checks the host.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use super::ca::{self, CaCommand};
use super::exit::{AGENT_CODES, Exit, SANDBOX_HELP};
use super::render;
use crate::admin::{SocketError, host};
use crate::app::{self, AppError};
use crate::capture::{self, CaptureError, NodeBpffs};
use crate::cni;
use crate::handover::HandoverError;
use crate::sandbox::{self, InitArgs, SandboxArgs};
use crate::settings::{Settings, SettingsArgs};
use crate::telemetry::http::HttpError;
use crate::telemetry::logging::{Logging, LoggingError};

/// The node agent of a sidecarless service mesh.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, after_help = AGENT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Capture the enrolled pods of this node and carry their connections, until SIGTERM or SIGINT; SIGHUP reads the settings file and opens the access log anew.
    #[command(after_help = AGENT_CODES)]
    Run(Box<SettingsArgs>),
    /// Remove everything that an agent of this node has left in the kernel. Refused while one runs.
    #[command(after_help = AGENT_CODES)]
    Unload(Box<SettingsArgs>),
    /// Check whether this host has what capture needs. Changes nothing.
    #[command(after_help = AGENT_CODES)]
    Check(CheckArgs),
    /// See to it that the node has a bpffs, from an init container with the node's pid namespace: what is pinned there outlives containers.
    MountBpffs(MountArgs),
    /// The root that a mesh's agents share.
    #[command(subcommand)]
    Ca(CaCommand),
    /// The CNI plugin. Container runtimes run it under the name mesh-agent-cni; a running agent keeps it installed (--cni).
    #[command(subcommand)]
    Cni(CniCommand),
    /// Run a command as an enrolled workload of the local agent: its own network namespace, address and cgroup, gone when it ends.
    #[command(after_help = SANDBOX_HELP)]
    Sandbox(Box<SandboxArgs>),
    /// The process between a sandbox and its command.
    #[command(hide = true)]
    SandboxInit(InitArgs),
}

/// Where.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// The node's directory, which is this container's under the same path.
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub path: PathBuf,
}

/// What to do with the CNI plugin.
#[derive(Debug, Subcommand)]
pub enum CniCommand {
    /// Do what the container runtime asks by its environment and standard input (CNI 1.1.0), as mesh-agent-cni does.
    Call,
    /// Remove what an agent has installed on this host: the network configuration first. Pods then start without being captured first.
    Uninstall(Box<SettingsArgs>),
}

/// What to check, and how to print.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// How to print.
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: super::meshctl::Output,
    /// The settings to check under.
    #[command(flatten)]
    pub settings: Box<SettingsArgs>,
}

/// Runs the command; what goes wrong is said on standard error.
pub fn run(cli: Cli) -> ExitCode {
    let done = match cli.command {
        Command::Run(args) => serve(&args),
        Command::Unload(args) => unload(&args),
        Command::Check(args) => check(&args),
        Command::MountBpffs(args) => mount_bpffs(&args.path),
        Command::Ca(command) => ca::run(&command).map_err(Failed::from),
        Command::Cni(CniCommand::Call) => return cni::run_plugin(),
        Command::Cni(CniCommand::Uninstall(args)) => uninstall(&args),
        Command::Sandbox(args) => return sandbox::run(&args).into(),
        Command::SandboxInit(args) => return sandbox::init(&args).into(),
    };
    let exit = done.unwrap_or_else(|failure| {
        eprintln!("mesh-agent: {}", failure.message);
        failure.exit
    });
    exit.into()
}

/// A failure in words, with its class.
#[derive(Debug)]
struct Failed {
    exit: Exit,
    message: String,
}

impl Failed {
    fn new(exit: Exit, error: &dyn Error) -> Self {
        Self {
            exit,
            message: error.to_string(),
        }
    }
}

impl From<ca::Failed> for Failed {
    fn from(error: ca::Failed) -> Self {
        Self::new(Exit::Identity, &error)
    }
}

fn settings(args: &SettingsArgs) -> Result<Settings, Failed> {
    Settings::load(args).map_err(|error| Failed::new(Exit::Settings, &error))
}

fn serve(args: &SettingsArgs) -> Result<Exit, Failed> {
    let settings = settings(args)?;
    let logging = Logging::start(settings.log_format, &settings.log_filter, &settings.access_log)
        .map_err(|error| Failed::new(logging_class(&error), &error))?;
    #[cfg(feature = "mutants")]
    mutated()?;
    capture::join_parents_cgroup_namespace();
    app::run(&settings, || Settings::load(args), &logging)
        .map_err(|error| Failed::new(class(&error), &error))?;
    Ok(Exit::Success)
}

/// Says what a test build has switched off, loudly; does not start when it is asked for what it does not know.
#[cfg(feature = "mutants")]
fn mutated() -> Result<(), Failed> {
    use mesh_common::mutation::{VARIABLE, number, unknown};
    if let Some(name) = unknown() {
        return Err(Failed {
            exit: Exit::Settings,
            message: format!("{VARIABLE}={name} is no mechanism that can be switched off"),
        });
    }
    tracing::warn!(
        mechanism = number(),
        "THIS IS A TEST BUILD: a mechanism may be switched off; never run it where anything matters"
    );
    Ok(())
}

fn mount_bpffs(path: &Path) -> Result<Exit, Failed> {
    let done = capture::mount_on_node(path).map_err(|error| Failed::new(Exit::Host, &error))?;
    match done {
        NodeBpffs::Present => println!("{} is a bpffs", path.display()),
        NodeBpffs::Mounted => println!("mounted a bpffs at {} of the node", path.display()),
    }
    Ok(Exit::Success)
}

fn uninstall(args: &SettingsArgs) -> Result<Exit, Failed> {
    let wanted = SettingsArgs {
        cni: Some(true),
        ..args.clone()
    };
    let settings = settings(&wanted)?;
    let removed = cni::uninstall(&settings.cni.unwrap_or_default(), &settings.state_dir)
        .map_err(|error| Failed::new(Exit::Settings, &error))?;
    if removed.is_empty() {
        println!("the CNI plugin is not installed here");
    }
    for path in removed {
        println!("removed {}", path.display());
    }
    Ok(Exit::Success)
}

fn unload(args: &SettingsArgs) -> Result<Exit, Failed> {
    capture::join_parents_cgroup_namespace();
    let options = app::capture_options(&settings(args)?);
    let removed = capture::unload(&options).map_err(|error| Failed::new(capture_class(&error), &error))?;
    let dir = options.bpffs_dir.display();
    match removed {
        0 => println!("nothing was left in {dir}"),
        pins => println!("removed {pins} pins from {dir}"),
    }
    for other in siblings(&options.bpffs_dir) {
        println!(
            "not touched: {} is another node's (--node-name says which node is meant)",
            other.display()
        );
    }
    Ok(Exit::Success)
}

/// The directories of other nodes' agents beside this one's.
fn siblings(dir: &Path) -> Vec<PathBuf> {
    let entries = dir.parent().and_then(|parent| std::fs::read_dir(parent).ok());
    let found = entries.into_iter().flatten().flatten();
    let mut others: Vec<_> = found
        .map(|entry| entry.path())
        .filter(|path| path != dir && path.is_dir())
        .collect();
    others.sort();
    others
}

fn check(args: &CheckArgs) -> Result<Exit, Failed> {
    capture::join_parents_cgroup_namespace();
    let checks = host::checks(&app::capture_options(&settings(&args.settings)?));
    match args.output {
        super::meshctl::Output::Table => print!("{}", render::checks(&checks)),
        super::meshctl::Output::Json => match serde_json::to_string_pretty(&checks) {
            Ok(text) => println!("{text}"),
            Err(error) => return Err(Failed::new(Exit::Failure, &error)),
        },
    }
    Ok(if checks.failed() {
        Exit::CheckFailed
    } else {
        Exit::Success
    })
}

/// The exit code of a failure.
fn class(error: &AppError) -> Exit {
    match error {
        AppError::NoConfiguration | AppError::Source(_) => Exit::Settings,
        AppError::Capture(error) => capture_class(error),
        AppError::Ca(_) | AppError::Identities(_) => Exit::Identity,
        AppError::Handover(HandoverError::Refused(_) | HandoverError::Silent { .. }) => Exit::Conflict,
        AppError::Handover(_) => Exit::Settings,
        AppError::Socket(SocketError::Owned { .. }) => Exit::Conflict,
        AppError::Socket(_) | AppError::Sandboxes(_) => Exit::Settings,
        AppError::Http(HttpError::Bind { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
            Exit::Conflict
        }
        AppError::Http(HttpError::Bind { .. }) => Exit::Settings,
        AppError::Metrics(_) | AppError::Start { .. } => Exit::Failure,
    }
}

fn logging_class(error: &LoggingError) -> Exit {
    match error {
        LoggingError::Thread(_) => Exit::Failure,
        _ => Exit::Settings,
    }
}

fn capture_class(error: &CaptureError) -> Exit {
    match error {
        CaptureError::Locked { .. } => Exit::Conflict,
        _ => Exit::Host,
    }
}

#[cfg(test)]
mod tests;
