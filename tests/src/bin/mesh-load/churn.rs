//! A new connection for everything, ended in one manner or another.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use mesh_tests::harness::LoadReport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

use crate::pulse::Pulse;
use crate::wire::{self, MESSAGE, Want, ask, within};

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Manner {
    /// A question, its answer, the client's end, the server's end.
    Clean,
    /// Not a byte: the client ends at once, and waits for the server's end.
    Silent,
    /// Not a byte, and closed without a wait.
    Dropped,
    /// The client sends all it has to say, ends its side, and only then receives the answer.
    Half,
    /// The server ends first; the client sends on, then ends.
    ServerFirst,
    /// Both end at once: the server is asked to end, and the client ends in the same breath.
    Both,
    /// Reset once it stands.
    AbortOpen,
    /// Reset right behind a question.
    AbortSent,
    /// Reset with half of the answer received.
    AbortAnswered,
    /// Reset after the client's end.
    AbortHalf,
    /// Reset while the server sends without end.
    AbortFlooded,
    /// The server resets.
    ServerReset,
    /// Nobody is to answer: refused, or reset before a byte.
    Refused,
}

/// A manner and where to: `clean@198.18.0.1:80`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Aim {
    manner: Manner,
    to: SocketAddr,
}

impl FromStr for Aim {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (manner, to) = text.split_once('@').ok_or("MANNER@ADDRESS:PORT is wanted")?;
        Ok(Self {
            manner: Manner::from_str(manner, false)?,
            to: to.parse().map_err(|_| format!("{to} is not ADDRESS:PORT"))?,
        })
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// MANNER@ADDRESS:PORT, taken in turns.
    #[arg(required = true)]
    aims: Vec<Aim>,
    /// How many connections at most.
    #[arg(long, default_value_t = u64::MAX)]
    count: u64,
    /// For how long at most, seconds.
    #[arg(long, default_value_t = 3600.0)]
    seconds: f64,
    /// How many at a time.
    #[arg(long, default_value_t = 32)]
    parallel: usize,
    /// Connections per second at most; 0: as many as can be.
    #[arg(long, default_value_t = 0)]
    rate: u64,
    /// Spread over as many ports of each destination, so that a client does not run out of its own.
    #[arg(long, default_value_t = 1)]
    ports: u16,
    /// Bind to this port first: all connections come from it, one after another.
    #[arg(long, default_value_t = 0)]
    from: u16,
    /// How long any one connection may take, milliseconds.
    #[arg(long, default_value_t = 30_000)]
    timeout: u64,
}

pub(crate) async fn run(args: Args) -> LoadReport {
    let args = Rc::new(args);
    let pulse = Pulse::new();
    let next = Rc::new(Cell::new(0));
    let set = LocalSet::new();
    for _ in 0..args.parallel.max(1) {
        let (args, pulse, next) = (Rc::clone(&args), pulse.clone(), Rc::clone(&next));
        set.spawn_local(worker(args, pulse, next));
    }
    set.await;
    pulse.finish()
}

async fn worker(args: Rc<Args>, pulse: Pulse, next: Rc<Cell<u64>>) {
    let limit = Duration::from_millis(args.timeout);
    let end = Duration::from_secs_f64(args.seconds);
    while next.get() < args.count && pulse.elapsed() < end {
        let number = next.get();
        next.set(number + 1);
        if args.rate > 0 {
            let due = Duration::from_secs_f64(number as f64 / args.rate as f64);
            tokio::time::sleep(due.saturating_sub(pulse.elapsed())).await;
        }
        let aims = args.aims.len() as u64;
        let mut aim = args.aims[usize::try_from(number % aims).unwrap_or(0)];
        let shift = (number / aims) % u64::from(args.ports.max(1));
        aim.to
            .set_port(aim.to.port().wrapping_add(u16::try_from(shift).unwrap_or(0)));
        let began = Instant::now();
        let outcome = within(limit, one(&args, aim, limit, &pulse)).await;
        pulse.count(&label(aim.manner), began, &outcome);
    }
}

fn label(manner: Manner) -> String {
    manner
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

async fn one(args: &Args, aim: Aim, limit: Duration, pulse: &Pulse) -> io::Result<()> {
    let opened = wire::open_from(args.from, aim.to, limit).await;
    if aim.manner == Manner::Refused {
        return refused(opened).await;
    }
    let mut tcp = opened?;
    if tcp.peer_addr()? != aim.to {
        pulse.wrong_name();
    }
    match aim.manner {
        Manner::Clean => {
            tcp.write_all(&[Want::Answers as u8]).await?;
            if !ask(&mut tcp).await? {
                pulse.wrong_name();
            }
            wire::end(&mut tcp).await
        }
        Manner::Silent => wire::end(&mut tcp).await,
        Manner::Half => half(tcp).await,
        Manner::ServerFirst => {
            tcp.write_all(&[Want::End as u8]).await?;
            wire::expect_end(&mut tcp).await?;
            tcp.write_all(&[b'.'; 100]).await?;
            tcp.shutdown().await
        }
        Manner::Both => {
            tcp.write_all(&[Want::End as u8]).await?;
            wire::end(&mut tcp).await
        }
        Manner::ServerReset => {
            tcp.write_all(&[Want::Reset as u8]).await?;
            match tcp.read(&mut [0; 16]).await {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
                other => Err(io::Error::other(format!("{other:?} instead of a reset"))),
            }
        }
        Manner::Dropped | Manner::Refused => Ok(()),
        Manner::AbortOpen
        | Manner::AbortSent
        | Manner::AbortAnswered
        | Manner::AbortHalf
        | Manner::AbortFlooded => {
            reach(aim.manner, &mut tcp).await?;
            wire::abort(tcp)
        }
    }
}

/// Brings a connection to the point at which it is aborted.
async fn reach(manner: Manner, tcp: &mut TcpStream) -> io::Result<()> {
    let mut some = [0; MESSAGE / 2];
    match manner {
        Manner::AbortSent | Manner::AbortAnswered | Manner::AbortHalf => {
            tcp.write_all(&[Want::Answers as u8]).await?;
            tcp.write_all(&wire::message(tcp.local_addr()?)).await?;
        }
        Manner::AbortFlooded => tcp.write_all(&[Want::Source as u8]).await?,
        _ => {}
    }
    match manner {
        Manner::AbortAnswered | Manner::AbortFlooded => tcp.read_exact(&mut some).await.map(drop),
        Manner::AbortHalf => tcp.shutdown().await,
        _ => Ok(()),
    }
}

/// Four questions at once, the end, and then all answers.
async fn half(mut tcp: TcpStream) -> io::Result<()> {
    let mine = wire::message(tcp.local_addr()?);
    let mut questions = vec![Want::Answers as u8];
    (0..4).for_each(|_| questions.extend(mine));
    tcp.write_all(&questions).await?;
    tcp.shutdown().await?;
    let mut answers = Vec::new();
    tcp.read_to_end(&mut answers).await?;
    if answers == questions[1..] {
        Ok(())
    } else {
        Err(io::Error::other(format!(
            "{} bytes of answers, not those expected",
            answers.len()
        )))
    }
}

async fn refused(opened: io::Result<TcpStream>) -> io::Result<()> {
    let mut tcp = match opened {
        Ok(tcp) => tcp,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error),
        Err(_) => return Ok(()),
    };
    // The mesh answers the handshake before it knows that there is nobody; then the connection is reset.
    // The reset may come before the byte leaves; the failed write takes the error with it, and a read would find a mere end.
    if tcp.write_all(&[Want::Answers as u8]).await.is_err() {
        return Ok(());
    }
    match tcp.read(&mut [0; 16]).await {
        Err(_) => Ok(()),
        Ok(n) => Err(io::Error::other(format!("{n} bytes where a refusal was due"))),
    }
}
