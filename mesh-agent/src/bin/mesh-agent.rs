//! `mesh-agent`: the node agent.

use std::process::ExitCode;

use clap::Parser;
use mesh_agent::cli::agent;

/// The data path allocates per connection from several threads; jemalloc keeps these apart and gives memory back.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    agent::run(agent::Cli::parse())
}
