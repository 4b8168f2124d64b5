//! Questions and answers over connections that are kept: requests per second, and how long one takes.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use mesh_tests::harness::LoadReport;
use tokio::io::AsyncWriteExt;
use tokio::task::LocalSet;

use crate::pulse::Pulse;
use crate::wire::{self, Want, ask, within};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to connect.
    to: SocketAddr,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    parallel: usize,
    /// For how long, seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Pause behind an answer, microseconds.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// Questions per second over all connections, asked when they are due whatever became of those before; the time of one counts from then. 0:
    /// each connection asks as soon as it has its answer.
    #[arg(long, default_value_t = 0, conflicts_with_all = ["new", "pause"])]
    rate: u64,
    /// How long an answer may take, milliseconds.
    #[arg(long, default_value_t = 10_000)]
    timeout: u64,
    /// A new connection for each question; then the time of one is that of connection, question and answer.
    #[arg(long)]
    new: bool,
}

pub(crate) async fn run(args: Args) -> LoadReport {
    let (args, pulse) = (Rc::new(args), Pulse::new());
    let set = LocalSet::new();
    for number in 0..args.parallel.max(1) {
        let (args, pulse) = (Rc::clone(&args), pulse.clone());
        set.spawn_local(async move {
            let mut schedule = Schedule::of(&args, number);
            while pulse.elapsed() < Duration::from_secs_f64(args.seconds) {
                let began = Instant::now();
                if let Err(error) = questions(&args, &pulse, schedule.as_mut()).await {
                    pulse.count("ask", began, &Err(error));
                }
            }
        });
    }
    set.await;
    pulse.finish()
}

/// When one connection's questions are due, since the beginning.
struct Schedule {
    next: Duration,
    every: Duration,
}

impl Schedule {
    /// Of the connection with this number; their questions are spread evenly.
    fn of(args: &Args, number: usize) -> Option<Self> {
        let rate = (args.rate > 0).then_some(args.rate as f64)?;
        Some(Self {
            next: Duration::from_secs_f64(number as f64 / rate),
            every: Duration::from_secs_f64(args.parallel.max(1) as f64 / rate),
        })
    }

    /// Waits until the next is due, and says from when it counts: a connection that is behind counts what it is late. One that waited counts
    /// from the end of its wait, since how late a timer ends is none of the mesh's doing.
    async fn due(&mut self, pulse: &Pulse) -> Instant {
        let due = self.next;
        self.next += self.every;
        let now = pulse.elapsed();
        if let Some(late) = now.checked_sub(due) {
            return Instant::now() - late;
        }
        tokio::time::sleep(due - now).await;
        Instant::now()
    }
}

/// Questions on one connection until the time is over.
async fn questions(args: &Args, pulse: &Pulse, mut schedule: Option<&mut Schedule>) -> io::Result<()> {
    let limit = Duration::from_millis(args.timeout);
    let mut began = Instant::now();
    let mut tcp = wire::open(args.to, limit).await?;
    tcp.write_all(&[Want::Answers as u8]).await?;
    loop {
        if let Some(schedule) = &mut schedule {
            began = schedule.due(pulse).await;
        } else if !args.new {
            began = Instant::now();
        }
        if !within(limit, ask(&mut tcp)).await? {
            pulse.wrong_name();
        }
        pulse.count("ask", began, &Ok(()));
        if args.pause > 0 {
            tokio::time::sleep(Duration::from_micros(args.pause)).await;
        }
        if args.new || pulse.elapsed() >= Duration::from_secs_f64(args.seconds) {
            return within(limit, wire::end(&mut tcp)).await;
        }
    }
}
