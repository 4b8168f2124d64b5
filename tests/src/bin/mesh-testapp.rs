//! An ordinary network program in many manners: server and client for the end-to-end tests. It knows nothing of the mesh, and reports
//! what it saw as JSON.

#[path = "mesh-testapp/ask.rs"]
mod ask;
#[path = "mesh-testapp/client.rs"]
mod client;
#[path = "mesh-testapp/server.rs"]
mod server;
#[path = "mesh-testapp/stream.rs"]
mod stream;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// An ordinary network program in many manners.
#[derive(Debug, Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Listens and says on standard output what happens, a line of JSON each.
    Serve(server::Args),
    /// Connects and gives one report as JSON.
    Connect(client::Args),
    /// Connects where each line of standard input says, and gives a report as a line of JSON for each.
    Ask,
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => match server::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
        Command::Connect(args) => {
            let report = client::run(&args);
            println!("{}", serde_json::to_string(&report).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Command::Ask => match ask::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error}");
                ExitCode::FAILURE
            }
        },
    }
}
