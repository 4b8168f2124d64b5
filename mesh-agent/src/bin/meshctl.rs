//! `meshctl`: shows what the mesh agent of this node does.

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::cli::exit::Exit;
use mesh_agent::cli::meshctl;

fn main() -> ExitCode {
    let cli = meshctl::Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => runtime.block_on(meshctl::run(cli)).into(),
        Err(error) => {
            eprintln!("meshctl: cannot start: {error}");
            Exit::Failure.into()
        }
    }
}
