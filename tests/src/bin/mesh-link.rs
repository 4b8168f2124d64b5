//! A line between two TAP devices, as good or as bad as one wants it: frames that leave by one come in by the other, later, twice, in
//! another order, or not at all. Says `ready`, and at SIGTERM what it did. The same seed impairs the same frames.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use mesh_tests::harness::LinkTally;
use mesh_tests::stream::Stream;
use tokio::signal::unix::{SignalKind, signal};

/// Frames on the line at most, per direction: a second of them at 500 Mbit/s.
const CAPACITY: usize = 40_000;
/// How late a reordered segment is.
const LATE: Duration = Duration::from_millis(5);
/// Longest frame: TAP devices have no offloads here.
const FRAME: usize = 64 << 10;

#[derive(Debug, Clone, Parser)]
struct Cli {
    /// The TAP device of one end; made here.
    one: String,
    /// The TAP device of the other end.
    other: String,
    /// How long each frame takes, milliseconds.
    #[arg(long, default_value_t = 0)]
    delay: u64,
    /// Of a thousand TCP segments, how many are lost.
    #[arg(long, default_value_t = 0)]
    loss: u64,
    /// Of a thousand TCP segments, how many come twice.
    #[arg(long, default_value_t = 0)]
    repeat: u64,
    /// Of a thousand TCP segments, how many are held back for five milliseconds.
    #[arg(long, default_value_t = 0)]
    reorder: u64,
    /// Which segments it hits.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Default)]
struct Counts {
    frames: AtomicU64,
    lost: AtomicU64,
    repeated: AtomicU64,
    reordered: AtomicU64,
    overflowed: AtomicU64,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    let (one, other) = (tap(&cli.one)?, tap(&cli.other)?);
    let counts = Arc::new(Counts::default());
    start(cli, cli.seed, one.try_clone()?, other.try_clone()?, &counts);
    start(cli, cli.seed.wrapping_add(1) << 8, other, one, &counts);
    println!("ready");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        signal(SignalKind::terminate())?.recv().await;
        anyhow::Ok(())
    })?;
    let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let tally = LinkTally {
        frames: get(&counts.frames),
        lost: get(&counts.lost),
        repeated: get(&counts.repeated),
        reordered: get(&counts.reordered),
        overflowed: get(&counts.overflowed),
    };
    println!("{}", serde_json::to_string(&tally)?);
    // The threads end with the process.
    Ok(())
}

/// A TAP device in the namespace of this process.
fn tap(name: &str) -> Result<File> {
    let path = "/dev/net/tun";
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {path}"))?;
    // ifreq: the name, then the flags.
    let mut request = [0u8; 40];
    anyhow::ensure!(
        name.len() < 16,
        "{name}: an interface's name has at most 15 characters"
    );
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = i16::try_from(libc::IFF_TAP | libc::IFF_NO_PI).context("flags of a TAP device")?;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: the descriptor is open, and the request is as long as an ifreq (40 bytes), which is what the kernel reads and writes.
    let outcome = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    if outcome < 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("cannot make the TAP device {name}"));
    }
    Ok(file)
}

/// A frame on its way: ordered by when it is due, then by when it came.
type OnTheLine = Reverse<(Instant, u64, Vec<u8>)>;

/// One direction: a thread that reads and decides, one that waits and writes.
fn start(cli: &Cli, seed: u64, mut from: File, to: File, counts: &Arc<Counts>) {
    let (line, end) = sync_channel(CAPACITY);
    let (cli, counts) = (cli.clone(), Arc::clone(counts));
    std::thread::spawn(move || {
        let mut chance = Chance(Stream::new(seed | 1));
        let mut buffer = vec![0; FRAME];
        for number in (0..).step_by(2) {
            // Fails while the device is down.
            let Ok(n) = from.read(&mut buffer) else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            counts.frames.fetch_add(1, Ordering::Relaxed);
            decide(&cli, &mut chance, &buffer[..n], number, &line, &counts);
        }
    });
    std::thread::spawn(move || deliver(&end, to));
}

fn decide(
    cli: &Cli,
    chance: &mut Chance,
    frame: &[u8],
    number: u64,
    line: &SyncSender<OnTheLine>,
    counts: &Counts,
) {
    let mut due = Instant::now() + Duration::from_millis(cli.delay);
    let mut copies = 1;
    if is_tcp(frame) {
        if chance.hits(cli.loss) {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        if chance.hits(cli.repeat) {
            counts.repeated.fetch_add(1, Ordering::Relaxed);
            copies = 2;
        }
        if chance.hits(cli.reorder) {
            counts.reordered.fetch_add(1, Ordering::Relaxed);
            due += LATE;
        }
    }
    for copy in 0..copies {
        if let Err(TrySendError::Full(_)) = line.try_send(Reverse((due, number + copy, frame.to_vec()))) {
            counts.overflowed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes each frame when it is due.
fn deliver(end: &Receiver<OnTheLine>, mut to: File) {
    let mut waiting: BinaryHeap<OnTheLine> = BinaryHeap::new();
    loop {
        // All of it first: a frame that was held back must not leave before those that have overtaken it.
        end.try_iter()
            .take(CAPACITY)
            .for_each(|frame| waiting.push(frame));
        let now = Instant::now();
        let rest = waiting
            .peek()
            .map_or(Duration::from_secs(1), |Reverse((due, ..))| {
                due.saturating_duration_since(now)
            });
        if rest.is_zero() {
            if let Some(Reverse((_, _, frame))) = waiting.pop() {
                // A frame that the device does not take is lost, as on any line.
                let _ = to.write(&frame);
            }
            continue;
        }
        match end.recv_timeout(rest) {
            Ok(frame) => waiting.push(frame),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Whether an Ethernet frame carries TCP over IPv4 or IPv6 (without extension headers).
fn is_tcp(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some([0x08, 0x00]) => frame.get(23) == Some(&6),
        Some([0x86, 0xdd]) => frame.get(20) == Some(&6),
        _ => false,
    }
}

struct Chance(Stream);

impl Chance {
    fn hits(&mut self, per_mille: u64) -> bool {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes) % 1000 < per_mille
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_are_hit_as_were_wanted() {
        let mut chance = Chance(Stream::new(7));
        let hits = (0..100_000).filter(|_| chance.hits(50)).count();
        assert!((4_500..5_500).contains(&hits), "{hits}");
        assert!((0..1000).all(|_| !chance.hits(0)));
    }

    #[test]
    fn only_tcp_is_hit() {
        let mut frame = [0; 60];
        frame[12..14].copy_from_slice(&[0x08, 0x06]);
        frame[23] = 6;
        assert!(!is_tcp(&frame), "ARP");
        frame[12..14].copy_from_slice(&[0x08, 0x00]);
        assert!(is_tcp(&frame));
        frame[23] = 17;
        assert!(!is_tcp(&frame), "UDP");
    }
}
