//! The project's own commands, one verb per file. Every verb first does what it needs (`demo` on a fresh clone sets up and
//! builds), and skips what is already done. Nothing here is part of the agent.

mod archive;
mod bench;
mod build;
mod demo;
mod deps;
mod dist;
#[cfg(test)]
mod documents;
mod e2e;
mod fuzz;
mod image;
mod kernels;
mod lint;
mod manifests;
mod miri;
mod mutate;
mod project;
mod report;
mod run;
mod setup;
mod ship;
mod stamp;
mod test;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::project::Project;

/// Builds, tests and shows mesh-agent. Every verb does what it needs first.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    Setup(setup::Args),
    Build(build::Args),
    Demo(demo::Args),
    Test(test::Args),
    E2e(e2e::Args),
    Lint(lint::Args),
    Bench(bench::Args),
    Image(image::Args),
    Dist(dist::Args),
    Manifests(manifests::Args),
    Fuzz(fuzz::Args),
    Miri(miri::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Project::find().and_then(|project| match &cli.verb {
        Verb::Setup(args) => setup::run(&project, args),
        Verb::Build(args) => build::run(&project, args),
        Verb::Demo(args) => demo::run(&project, args),
        Verb::Test(args) => test::run(&project, args),
        Verb::E2e(args) => e2e::run(&project, args),
        Verb::Bench(args) => bench::run(&project, args),
        Verb::Image(args) => image::run(&project, args),
        Verb::Dist(args) => dist::run(&project, args),
        Verb::Manifests(args) => manifests::run(&project, args),
        Verb::Lint(args) => lint::run(&project, args),
        Verb::Fuzz(args) => fuzz::run(&project, args),
        Verb::Miri(args) => miri::run(&project, args),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Cli::command().debug_assert();
    }
}
