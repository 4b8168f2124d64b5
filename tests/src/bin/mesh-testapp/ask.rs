//! A process that stays and connects when it is told to, each time from a thread of its own, as a daemon does: `IP:PORT`; behind it `child`,
//! to have a program do it that it starts of itself, or the path of a network namespace to do it in.

use std::fs::File;
use std::io::{self, Write};
use std::process::{Command, Stdio};

use clap::Parser;
use mesh_tests::harness::Report;
use nix::sched::{CloneFlags, setns};

use crate::client;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: client::Args,
}

pub(crate) fn run() -> io::Result<()> {
    for line in io::stdin().lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let to = words.next().unwrap_or_default().to_owned();
        let how = words.next().map(str::to_owned);
        let asked = std::thread::spawn(move || ask(&to, how.as_deref())).join();
        let report = asked.map_err(|_| io::Error::other("the thread panicked"))??;
        let mut out = io::stdout();
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        out.flush()?;
    }
    Ok(())
}

fn ask(to: &str, how: Option<&str>) -> io::Result<Report> {
    let words = ["connect", to, "exchange", "--timeout", "3000"];
    match how {
        Some("child") => {
            let mut child = Command::new(std::env::current_exe()?);
            let output = child.args(words).stdin(Stdio::null()).output()?;
            return Ok(serde_json::from_slice(&output.stdout)?);
        }
        Some(netns) => setns(File::open(netns)?, CloneFlags::CLONE_NEWNET)?,
        None => {}
    }
    let line = Line::try_parse_from(words).map_err(io::Error::other)?;
    Ok(client::run(&line.args))
}
