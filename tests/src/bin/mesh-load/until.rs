//! When something came into force: connections, one after another, until one is served, or refused.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Result, bail};
use clap::ValueEnum;
use mesh_tests::harness::Turned;
use tokio::io::AsyncWriteExt;

use crate::wire::{self, Want, ask, within};

/// What is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Outcome {
    /// A connection on which a question is answered.
    Served,
    /// One that is refused, or reset before the answer.
    Refused,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What is waited for.
    outcome: Outcome,
    /// Where to connect.
    to: SocketAddr,
    /// For how long at most, seconds.
    #[arg(long, default_value_t = 30.0)]
    seconds: f64,
}

pub(crate) async fn run(args: Args) -> Result<Turned> {
    let start = Instant::now();
    let mut attempts = 0;
    while start.elapsed() < Duration::from_secs_f64(args.seconds) {
        attempts += 1;
        let outcome = match attempt(args.to).await {
            Ok(()) => Outcome::Served,
            Err(_) => Outcome::Refused,
        };
        if outcome == args.outcome {
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
            return Ok(Turned {
                attempts,
                at_micros: u64::try_from(now.as_micros())?,
            });
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bail!("not one of {attempts} connections came to that");
}

/// A connection, a question, its answer.
async fn attempt(to: SocketAddr) -> io::Result<()> {
    let limit = Duration::from_secs(2);
    let mut tcp = wire::open(to, limit).await?;
    tcp.write_all(&[Want::Answers as u8]).await?;
    within(limit, ask(&mut tcp)).await?;
    within(limit, wire::end(&mut tcp)).await
}
