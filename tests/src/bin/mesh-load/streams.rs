//! Bulk data, a blocking thread per direction: byte for byte what it must be, or as fast as it goes.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use mesh_tests::harness::LoadReport;
use mesh_tests::stream;

use crate::wire::{self, Want};

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Way {
    /// From client to server.
    Up,
    /// From server to client.
    Down,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to connect.
    to: SocketAddr,
    /// Which way.
    way: Way,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    parallel: usize,
    /// This many bytes on each, and every one of them checked; without it, whatever goes in `--seconds`, unchecked.
    #[arg(long)]
    bytes: Option<u64>,
    /// For how long, seconds.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// How long it may stand still, milliseconds.
    #[arg(long, default_value_t = 20_000)]
    timeout: u64,
}

pub(crate) fn run(args: &Args) -> LoadReport {
    let start = Instant::now();
    let moved = AtomicU64::new(0);
    let outcomes: Vec<io::Result<()>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.parallel.max(1))
            .map(|_| scope.spawn(|| one(args, start, &moved)))
            .collect();
        threads
            .into_iter()
            .map(|thread| {
                thread
                    .join()
                    .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
            })
            .collect()
    });
    let mut report = LoadReport {
        bytes: moved.into_inner(),
        seconds: start.elapsed().as_secs_f64(),
        ..LoadReport::default()
    };
    for outcome in outcomes {
        match outcome {
            Ok(()) => report.ok += 1,
            Err(error) => {
                report.failed += 1;
                *report.errors.entry(wire::name(&error)).or_default() += 1;
            }
        }
    }
    report
}

fn one(args: &Args, start: Instant, moved: &AtomicU64) -> io::Result<()> {
    let limit = Duration::from_millis(args.timeout);
    let mut tcp = TcpStream::connect_timeout(&args.to, limit)?;
    tcp.set_read_timeout(Some(limit))?;
    tcp.set_write_timeout(Some(limit))?;
    match (args.bytes, args.way) {
        (Some(bytes), Way::Up) => {
            tcp.write_all(&[Want::Check as u8])?;
            stream::send(&tcp, 1, bytes)?;
            let mut counted = [0; 8];
            tcp.read_exact(&mut counted)?;
            moved.fetch_add(u64::from_be_bytes(counted), Ordering::Relaxed);
            Ok(())
        }
        (Some(bytes), Way::Down) => {
            tcp.write_all(&[Want::Data as u8])?;
            tcp.write_all(&bytes.to_be_bytes())?;
            moved.fetch_add(stream::check(&tcp, 2)?, Ordering::Relaxed);
            Ok(())
        }
        (None, way) => rush(&tcp, way, start + Duration::from_secs_f64(args.seconds), moved),
    }
}

/// As fast as it goes until `end`.
fn rush(mut tcp: &TcpStream, way: Way, end: Instant, moved: &AtomicU64) -> io::Result<()> {
    let want = match way {
        Way::Up => Want::Sink,
        Way::Down => Want::Source,
    };
    tcp.write_all(&[want as u8])?;
    let mut buffer = vec![0x5a; 128 << 10];
    while Instant::now() < end {
        let n = match way {
            Way::Up => tcp.write(&buffer)?,
            Way::Down => tcp.read(&mut buffer)?,
        };
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        moved.fetch_add(n as u64, Ordering::Relaxed);
    }
    tcp.shutdown(Shutdown::Both)
}
