//! A load generator: many connections from one thread, and a server that can take them. It knows nothing of the mesh, and reports what it
//! counted and how long things took as JSON. What happens on one connection in detail is `mesh-testapp`'s.

mod asks;
mod churn;
mod http;
mod keep;
mod pulse;
mod server;
mod shake;
mod streams;
mod until;
mod wire;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Makes load, and bears it.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Listens. SIGUSR1 has it print its tally as JSON, SIGTERM too, and end.
    Serve(server::Args),
    /// Opens a new connection for everything it does, and ends it in one manner or another.
    Churn(churn::Args),
    /// Opens connections, asks on each, says `held`, keeps them until SIGUSR1, and asks on each once more.
    Keep(keep::Args),
    /// Asks over and over on connections that it keeps.
    Ask(asks::Args),
    /// Sends or receives bulk data, checked or as fast as it goes.
    Stream(streams::Args),
    /// Answers HTTP/1.1 requests with 64 bytes, for other programs' clients. SIGTERM ends it.
    ServeHttp(http::Args),
    /// Opens connections one after another until one is served, or refused, and says when that was.
    Until(until::Args),
    /// Makes TLS handshakes at a steady rate, none of them resumed.
    Shake(shake::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    // Many shells allow 1024 descriptors, and as many as one likes to who asks.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    // Bulk data goes by blocking threads: nothing of a runtime's is in its figures.
    if let Command::Stream(args) = &command {
        return wire::say(&streams::run(args));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match command {
            Command::Serve(args) => server::run(args).await,
            Command::Churn(args) => wire::say(&churn::run(args).await),
            Command::Keep(args) => wire::say(&keep::run(args).await?),
            Command::Ask(args) => wire::say(&asks::run(args).await),
            Command::ServeHttp(args) => http::run(args).await,
            Command::Until(args) => wire::say(&until::run(args).await?),
            Command::Shake(args) => wire::say(&shake::run(args).await?),
            Command::Stream(_) => Ok(()),
        }
    })
}
