//! The demo: two "nodes" on one machine carry traffic between unmodified programs over mutual TLS, shown step by step with the
//! commands that a person could repeat, and checked. Started by `cargo xtask demo`. What it makes, it removes.

mod shell;
mod show;
mod signals;
mod stage;
mod steps;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use mesh_tests::harness::World;

use crate::show::Show;
use crate::stage::Stage;

/// Shows two nodes carry traffic between unmodified programs over mutual TLS.
#[derive(Parser)]
struct Args {
    /// The directory of the demo's documents and programs.
    #[arg(long, default_value = "deploy/demo")]
    documents: PathBuf,
    /// No colours, no shell.
    #[arg(long)]
    headless: bool,
    /// Leave everything up at the end.
    #[arg(long)]
    keep: bool,
    /// Open a shell in this pod.
    #[arg(long, value_name = "POD", value_parser = stage::PODS)]
    shell: Option<String>,
    /// Remove what earlier demos left.
    #[arg(long)]
    clean: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = if args.clean { clean() } else { demo(&args) };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn clean() -> Result<()> {
    let removed = World::remove_kept()?;
    println!("removed {removed}");
    Ok(())
}

fn demo(args: &Args) -> Result<()> {
    if let Some(pod) = &args.shell
        && let Some(kept) = shell::kept()?
    {
        return shell::open_kept(&kept, pod);
    }
    signals::catch()?;
    let mut show = Show::new(args.headless);
    let mut stage = Stage::build(&show, &args.documents)?;
    if let Err(error) = steps::all(&mut show, &mut stage, args.keep || args.shell.is_some()) {
        // What the agents said is gone with the world: the end of it is evidence.
        stage.show_logs(&show);
        return Err(error);
    }
    if let Some(pod) = &args.shell {
        shell::open(&stage, pod)?;
    }
    if args.keep {
        return shell::leave_up(&show, stage);
    }
    let traces = stage.traces();
    drop(stage);
    show.step("Nothing is left");
    traces.check_gone(&show)?;
    println!("\nall of it held, in {}", show.elapsed());
    Ok(())
}
