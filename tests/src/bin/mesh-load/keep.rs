//! Connections that are kept: asked on once, left alone, asked on again.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_tests::harness::LoadReport;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Barrier, Notify, Semaphore};
use tokio::task::LocalSet;

use crate::pulse::Pulse;
use crate::wire::{self, Want, ask, within};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to connect.
    to: SocketAddr,
    /// How many connections.
    #[arg(long, default_value_t = 1000)]
    count: usize,
    /// How many are opened, and asked on again, at a time; with as many as there are connections all of them are active at once.
    #[arg(long, default_value_t = 64)]
    parallel: usize,
    /// How many questions each is asked at the end, one after another.
    #[arg(long, default_value_t = 1)]
    questions: u64,
    /// How long any one step may take, milliseconds.
    #[arg(long, default_value_t = 30_000)]
    timeout: u64,
}

/// What the connections wait for together.
struct Stage {
    turns: Semaphore,
    all_open: Barrier,
    go_on: Notify,
}

pub(crate) async fn run(args: Args) -> Result<LoadReport> {
    let mut signals = signal(SignalKind::user_defined1())?;
    let (args, pulse) = (Rc::new(args), Pulse::new());
    let stage = Rc::new(Stage {
        turns: Semaphore::new(args.parallel.max(1)),
        all_open: Barrier::new(args.count + 1),
        go_on: Notify::new(),
    });
    let set = LocalSet::new();
    for _ in 0..args.count {
        set.spawn_local(one(Rc::clone(&args), pulse.clone(), Rc::clone(&stage)));
    }
    let conduct = async {
        stage.all_open.wait().await;
        wire::say(&serde_json::json!({"event": "held"}))?;
        signals.recv().await;
        stage.go_on.notify_waiters();
        anyhow::Ok(())
    };
    set.run_until(conduct).await?;
    set.await;
    Ok(pulse.finish())
}

async fn one(args: Rc<Args>, pulse: Pulse, stage: Rc<Stage>) {
    let limit = Duration::from_millis(args.timeout);
    let began = Instant::now();
    let opened = {
        let _turn = stage.turns.acquire().await;
        within(limit, open(&args, limit, &pulse)).await
    };
    if let Err(error) = &opened {
        pulse.count(
            "open",
            began,
            &Err(io::Error::new(error.kind(), wire::name(error))),
        );
    }
    let go_on = stage.go_on.notified();
    tokio::pin!(go_on);
    go_on.as_mut().enable();
    stage.all_open.wait().await;
    go_on.await;
    let Ok(mut tcp) = opened else { return };
    let _turn = stage.turns.acquire().await;
    for _ in 0..args.questions {
        let began = Instant::now();
        let asked = within(limit, again(&args, &mut tcp, &pulse)).await;
        pulse.count("ask again", began, &asked);
        if asked.is_err() {
            return;
        }
    }
    let began = Instant::now();
    if let Err(error) = within(limit, wire::end(&mut tcp)).await {
        pulse.count("end", began, &Err(error));
    }
}

async fn open(args: &Args, limit: Duration, pulse: &Pulse) -> io::Result<TcpStream> {
    let mut tcp = wire::open(args.to, limit).await?;
    tcp.write_all(&[Want::Answers as u8]).await?;
    again(args, &mut tcp, pulse).await?;
    Ok(tcp)
}

async fn again(args: &Args, tcp: &mut TcpStream, pulse: &Pulse) -> io::Result<()> {
    let seen = ask(tcp).await?;
    if !seen || tcp.peer_addr()? != args.to {
        pulse.wrong_name();
    }
    Ok(())
}
