//! `meshctl`: asks the node's agent and shows what it says.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::de::DeserializeOwned;
use thiserror::Error;

use super::exit::{CTL_CODES, Exit};
use super::render;

mod analyze;

use crate::admin::client::{Client, ClientError, connections_target, explain_target, older_target};
use crate::admin::document::{BpfLogWanted, Check, Checks, ConnectionFilter, ExplainQuery, Level, Status};
use crate::admin::{DEFAULT_SOCKET, host};
use crate::capture::CaptureOptions;
pub use analyze::AnalyzeArgs;

/// Shows what the mesh agent of this node does.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, after_help = CTL_CODES)]
pub struct Cli {
    /// The agent's admin socket.
    #[arg(long, global = true, value_name = "PATH", env = "MESH_AGENT_ADMIN_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// How to print: a table, or the admin API's JSON.
    #[arg(short, long, global = true, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
    /// How long to wait for the agent's answer, in seconds.
    #[arg(long, global = true, value_name = "SECONDS", default_value_t = 10)]
    pub timeout: u64,
    /// What to show.
    #[command(subcommand)]
    pub command: Command,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// The admin API's JSON.
    Json,
}

/// What to show.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check the host and the agent; works without a running agent, too. Lists what capture does not see.
    Check,
    /// Version, configuration, pods, connections, certificates in short.
    Status,
    /// Whether the agent is ready, and what it waits for; exit code 8 when it is not. For probes.
    Ready(ReadyArgs),
    /// The workloads that the agent knows: identity, enrolment, capture, mTLS mode.
    Workloads,
    /// The live connections.
    Connections(ConnectionArgs),
    /// Why a connection would be let in or refused: policy, rule and field.
    Explain(ExplainArgs),
    /// The AuthorizationPolicies: whom they select on this node, what they decided, what is wrong with them.
    Policies,
    /// The latest refusals, with their ids.
    Refusals,
    /// The services: their endpoints, which of them clients of this node get, and why not the others.
    Services,
    /// Mutual TLS.
    Mtls(MtlsArgs),
    /// The certificates of this node's identities.
    Certs,
    /// The BPF maps and what the BPF programs counted; their latest events; their debug log.
    Bpf(BpfArgs),
    /// Rejected documents with file, line and column; unknown fields, conflicts, and what is ignored.
    Config,
    /// What is wrong with manifests (-f), or with the documents of the running agent: findings with codes, places and advice.
    Analyze(AnalyzeArgs),
}

/// Whose readiness counts.
#[derive(Debug, Args)]
pub struct ReadyArgs {
    /// Only that of the agent in this container: while one agent takes over from another, the one that answers may be either.
    #[arg(long)]
    pub own: bool,
}

/// What to explain.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Who connects: NAMESPACE/POD, NAMESPACE/SERVICE-ACCOUNT, a SPIFFE id, or an address.
    #[arg(value_name = "SRC")]
    pub source: String,
    /// Where to: NAMESPACE/POD, a Service's host name (NAME.NAMESPACE will do), or an address; the port may be left out where there is only one.
    #[arg(value_name = "DST[:PORT]")]
    pub destination: String,
}

/// What of mutual TLS.
#[derive(Debug, Args)]
pub struct MtlsArgs {
    /// What.
    #[command(subcommand)]
    pub command: MtlsCommand,
}

/// What of mutual TLS.
#[derive(Debug, Subcommand)]
pub enum MtlsCommand {
    /// Who still talks plaintext to the workloads of this node, and which of these may go STRICT.
    Readiness,
}

/// What of BPF.
#[derive(Debug, Args)]
pub struct BpfArgs {
    /// What else than programs, maps and counters.
    #[command(subcommand)]
    pub command: Option<BpfCommand>,
}

/// What of BPF.
#[derive(Debug, Subcommand)]
pub enum BpfCommand {
    /// What the BPF programs refused, dropped or lost of late.
    Events,
    /// Switch the debug lines of the BPF programs on (in the agent's log) or off.
    Log(LogArgs),
}

/// How to switch the debug lines.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// On or off.
    pub switch: Switch,
    /// Only for this pod.
    #[arg(long, value_name = "NAMESPACE/NAME")]
    pub pod: Option<String>,
    /// For how long, in seconds, an hour at most: it goes off by itself.
    #[arg(long = "for", value_name = "SECONDS", default_value_t = 300)]
    pub seconds: u64,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

/// Which connections to show.
#[derive(Debug, Args)]
pub struct ConnectionArgs {
    /// Only those of which one side is this workload.
    #[arg(long, value_name = "NAME")]
    pub workload: Option<String>,
    /// Only those of which one side is in this namespace.
    #[arg(short, long, value_name = "NAME")]
    pub namespace: Option<String>,
    /// Instead, those of captured pods that the agent does not carry, because they are older than capture.
    #[arg(long)]
    pub older: bool,
}

/// Why nothing could be shown.
#[derive(Debug, Error)]
enum CtlError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the agent behind {path} did not answer within {seconds} s: see its log")]
    Timeout { path: PathBuf, seconds: u64 },
    #[error(
        "cannot tell whose mount namespace {path} is: {source}; does meshctl see the host's processes (hostPID)?"
    )]
    Namespace {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{0}")]
    Documents(#[from] crate::sources::ReadError),
    #[error("{0}")]
    Settings(#[from] crate::settings::SettingsError),
    #[error("cannot print: {0}")]
    Print(#[from] std::io::Error),
    #[error("cannot print as JSON: {0}")]
    Json(#[from] serde_json::Error),
}

impl CtlError {
    fn exit(&self) -> Exit {
        match self {
            CtlError::Client(
                ClientError::Absent { .. }
                | ClientError::Gone { .. }
                | ClientError::Forbidden { .. }
                | ClientError::Io { .. },
            )
            | CtlError::Timeout { .. } => Exit::NoAgent,
            CtlError::Documents(_) | CtlError::Settings(_) => Exit::Settings,
            // Whoever read our output has seen enough, as with `| head`.
            CtlError::Print(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Exit::Success,
            _ => Exit::Failure,
        }
    }
}

/// Runs the command and prints to standard output; errors go to standard error.
pub async fn run(cli: Cli) -> Exit {
    match show(&cli).await {
        Ok(exit) => exit,
        Err(error) => {
            let exit = error.exit();
            if exit != Exit::Success {
                eprintln!("meshctl: {error}");
            }
            exit
        }
    }
}

async fn show(cli: &Cli) -> Result<Exit, CtlError> {
    let ask = Ask {
        client: Client::new(&cli.socket),
        cli,
    };
    let text = match &cli.command {
        Command::Check => return ask.check().await,
        Command::Ready(args) => return ask.ready(args.own).await,
        Command::Analyze(args) => return ask.analyze(args).await,
        Command::Status => ask.shown("/status", render::status).await?,
        Command::Workloads => ask.shown("/workloads", render::workloads).await?,
        Command::Connections(args) => {
            let filter = ConnectionFilter {
                workload: args.workload.clone(),
                namespace: args.namespace.clone(),
            };
            if args.older {
                ask.shown(&older_target(&filter), render::older).await?
            } else {
                ask.shown(&connections_target(&filter), render::connections)
                    .await?
            }
        }
        Command::Explain(args) => {
            let query = ExplainQuery {
                source: args.source.clone(),
                destination: args.destination.clone(),
            };
            ask.shown(&explain_target(&query), render::explanation).await?
        }
        Command::Policies => ask.shown("/policies", render::policies).await?,
        Command::Refusals => ask.shown("/refusals", render::refusals).await?,
        Command::Services => ask.shown("/services", render::services).await?,
        Command::Mtls(MtlsArgs {
            command: MtlsCommand::Readiness,
        }) => ask.shown("/mtls/readiness", render::readiness).await?,
        Command::Certs => ask.shown("/certs", render::certificates).await?,
        Command::Bpf(BpfArgs { command: None }) => ask.shown("/bpf", render::bpf).await?,
        Command::Bpf(BpfArgs {
            command: Some(BpfCommand::Events),
        }) => ask.shown("/bpf/events", render::bpf_events).await?,
        Command::Bpf(BpfArgs {
            command: Some(BpfCommand::Log(args)),
        }) => {
            let wanted = BpfLogWanted {
                on: args.switch == Switch::On,
                seconds: args.seconds,
                pod: args.pod.clone(),
            };
            let answer = ask.in_time(ask.client.post("/bpf/log", &wanted)).await?;
            ask.print(&answer, render::bpf_log)?
        }
        Command::Config => ask.shown("/config", render::config).await?,
    };
    print(&text)?;
    Ok(Exit::Success)
}

/// A question to the agent.
struct Ask<'a> {
    client: Client,
    cli: &'a Cli,
}

impl Ask<'_> {
    async fn bytes(&self, target: &str) -> Result<Bytes, CtlError> {
        self.in_time(self.client.get(target)).await
    }

    async fn in_time(
        &self,
        answer: impl Future<Output = Result<Bytes, ClientError>>,
    ) -> Result<Bytes, CtlError> {
        let seconds = self.cli.timeout;
        match tokio::time::timeout(Duration::from_secs(seconds), answer).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(CtlError::Timeout {
                path: self.cli.socket.clone(),
                seconds,
            }),
        }
    }

    /// The answer as it is to be printed.
    async fn shown<T: DeserializeOwned>(
        &self,
        target: &str,
        table: fn(&T) -> String,
    ) -> Result<String, CtlError> {
        self.print(&self.bytes(target).await?, table)
    }

    fn print<T: DeserializeOwned>(&self, bytes: &[u8], table: fn(&T) -> String) -> Result<String, CtlError> {
        Ok(match self.cli.output {
            Output::Json => {
                serde_json::to_string_pretty(&serde_json::from_slice::<serde_json::Value>(bytes)?)?
            }
            Output::Table => table(&serde_json::from_slice(bytes)?),
        })
    }
}

/// What `meshctl ready` says.
#[derive(serde::Serialize)]
struct Ready {
    ready: bool,
    /// Which agent has answered.
    pid: u32,
    /// What holds it up.
    reasons: Vec<String>,
}

/// Whether the process is in our container: containers have mount namespaces of their own, and an agent stays in its own.
fn is_neighbour(pid: u32) -> Result<bool, CtlError> {
    let namespace = |who: &str| {
        let path = PathBuf::from(format!("/proc/{who}/ns/mnt"));
        std::fs::read_link(&path).map_err(|source| CtlError::Namespace { path, source })
    };
    Ok(namespace("self")? == namespace(&pid.to_string())?)
}

impl Ask<'_> {
    /// Whether the agent is ready; the agent of another container, which may be the one that answers, says nothing of ours.
    async fn ready(&self, own: bool) -> Result<Exit, CtlError> {
        let status: Status = serde_json::from_slice(&self.bytes("/status").await?)?;
        let mut answer = Ready {
            ready: status.ready,
            pid: status.pid,
            reasons: status.not_ready,
        };
        if own && !is_neighbour(status.pid)? {
            answer.ready = false;
            answer.reasons = vec![format!(
                "the agent that answers, process {}, is another container's",
                status.pid
            )];
        }
        print(&match self.cli.output {
            Output::Json => serde_json::to_string_pretty(&answer)?,
            Output::Table => render::ready(answer.ready, &answer.reasons),
        })?;
        Ok(if answer.ready {
            Exit::Success
        } else {
            Exit::CheckFailed
        })
    }

    /// What the agent says of itself where one runs, else what can be seen of the host without it.
    async fn check(&self) -> Result<Exit, CtlError> {
        let checks: Checks = match self.bytes("/check").await {
            Ok(bytes) => serde_json::from_slice(&bytes)?,
            Err(error) if error.exit() == Exit::NoAgent => without_agent(&error, host_checks().await),
            Err(error) => return Err(error),
        };
        print(&match self.cli.output {
            Output::Json => serde_json::to_string_pretty(&checks)?,
            Output::Table => render::checks(&checks),
        })?;
        Ok(if checks.failed() {
            Exit::CheckFailed
        } else {
            Exit::Success
        })
    }
}

/// Loads programs into the kernel for a moment: off the async thread.
async fn host_checks() -> Checks {
    let options = CaptureOptions::new(&host::default_node_name(), 1);
    tokio::task::spawn_blocking(move || host::checks(&options))
        .await
        .unwrap_or_default()
}

/// The host's checks with the one that says why the agent's are not there.
fn without_agent(error: &CtlError, mut host: Checks) -> Checks {
    host.checks.push(Check {
        name: "agent".to_owned(),
        // An agent that is there and does not answer is worse than none.
        level: match error {
            CtlError::Timeout { .. } => Level::Fail,
            _ => Level::Warn,
        },
        detail: error.to_string(),
        hint: Some("only the host was checked".to_owned()),
    });
    host
}

fn print(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    out.flush()
}

#[cfg(test)]
mod tests;
