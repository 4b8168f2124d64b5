//! The client in its manners.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use mesh_tests::harness::Report;
use socket2::{Domain, Socket, Type};

use crate::stream;

/// What the client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Sends the text, ends its sending side, receives to the end.
    Exchange,
    /// Receives first, then as `exchange`.
    Listen,
    /// Receives to the end, then waits a little and sends the text.
    Late,
    /// Sends the text, receives as much as it sent, then resets the connection.
    Reset,
    /// Sends the text and receives to the end without ending its sending side.
    Await,
    /// Sends until no byte has gone for two seconds.
    Flood,
    /// Sends `--bytes` of the stream of seed 1 while it checks what it receives against seed 2.
    Bulk,
    /// Opens `--count` connections one after another (times `--parallel`): text there and back on each.
    Many,
    /// Sends the text and receives it back, over and over on `--parallel` connections, for `--seconds`.
    Load,
    /// Like `load`, with a new connection each time.
    LoadNew,
    /// Opens `--count` connections and reads nothing for `--seconds`.
    Hold,
    /// Opens `--count` connections and writes on each as much as it takes, for `--seconds`; reads nothing.
    Press,
    /// Opens `--count` connections, keeps them idle for `--seconds`, then exchanges the text on each.
    Idle,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to connect.
    to: SocketAddr,
    /// What to do.
    mode: Mode,
    /// Connect an IPv4 destination from an IPv6 socket.
    #[arg(long)]
    mapped: bool,
    /// Bind to this address first.
    #[arg(long)]
    bind: Option<IpAddr>,
    /// What to send.
    #[arg(long, default_value = "ping\n")]
    text: String,
    /// How much to send in bulk, or at most in a flood.
    #[arg(long, default_value_t = 1 << 30)]
    bytes: u64,
    /// How many connections.
    #[arg(long, default_value_t = 1)]
    count: u64,
    /// How many at a time.
    #[arg(long, default_value_t = 1)]
    parallel: u64,
    /// For how long, seconds.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Pause between requests under load, milliseconds.
    #[arg(long, default_value_t = 0)]
    pause: u64,
    /// How long to wait for any one answer, milliseconds.
    #[arg(long, default_value_t = 5000)]
    timeout: u64,
    /// Receive buffer (SO_RCVBUF), bytes.
    #[arg(long)]
    receive_buffer: Option<usize>,
}

impl Args {
    fn limit(&self) -> Duration {
        Duration::from_millis(self.timeout)
    }

    fn open(&self) -> io::Result<TcpStream> {
        let to = match self.to.ip() {
            IpAddr::V4(v4) if self.mapped => SocketAddr::new(v4.to_ipv6_mapped().into(), self.to.port()),
            _ => self.to,
        };
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        if to.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        if let Some(ip) = self.bind {
            socket.bind(&SocketAddr::new(ip, 0).into())?;
        }
        if let Some(size) = self.receive_buffer {
            socket.set_recv_buffer_size(size)?;
        }
        socket.connect_timeout(&to.into(), self.limit())?;
        let stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(self.limit()))?;
        stream.set_write_timeout(Some(self.limit()))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn ask(&self, mut tcp: &TcpStream) -> io::Result<()> {
        let mut back = vec![0; self.text.len()];
        tcp.write_all(self.text.as_bytes())?;
        tcp.read_exact(&mut back)?;
        if back != self.text.as_bytes() {
            return Err(io::Error::other("wrong answer"));
        }
        Ok(())
    }
}

pub(crate) fn run(args: &Args) -> Report {
    let start = Instant::now();
    let mut report = Report::default();
    let result = match args.mode {
        Mode::Many | Mode::Load | Mode::LoadNew => {
            many(args, &mut report);
            Ok(())
        }
        Mode::Idle => idle(args, &mut report),
        Mode::Hold | Mode::Press => press(args, &mut report),
        _ => one(args, &mut report),
    };
    if let Err(error) = result {
        report.error.get_or_insert_with(|| stream::name(&error));
    }
    report.millis = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
    report
}

fn one(args: &Args, report: &mut Report) -> io::Result<()> {
    let tcp = args
        .open()
        .map_err(|e| io::Error::new(e.kind(), format!("connect: {}", stream::name(&e))))
        .inspect_err(|e| {
            report.error = Some(e.to_string());
        })?;
    report.connected = true;
    report.local = tcp.local_addr().ok();
    report.peer = tcp.peer_addr().ok();
    match args.mode {
        Mode::Exchange => {
            send(args, &tcp, report)?;
            tcp.shutdown(Shutdown::Write)?;
            receive(&tcp, report);
        }
        Mode::Listen => {
            let mut first = vec![0; 4096];
            let n = (&tcp).read(&mut first)?;
            report.text = String::from_utf8_lossy(&first[..n]).into_owned();
            report.received = n as u64;
            send(args, &tcp, report)?;
            tcp.shutdown(Shutdown::Write)?;
            receive(&tcp, report);
        }
        Mode::Late => {
            receive(&tcp, report);
            std::thread::sleep(Duration::from_millis(300));
            send(args, &tcp, report)?;
        }
        Mode::Await => {
            send(args, &tcp, report)?;
            receive(&tcp, report);
        }
        Mode::Reset => {
            args.ask(&tcp)?;
            report.sent = args.text.len() as u64;
            stream::reset(tcp)?;
        }
        Mode::Flood => flood(&tcp, args.bytes, report)?,
        Mode::Bulk => {
            let (sent, received) = std::thread::scope(|scope| {
                let sender = scope.spawn(|| stream::send(&tcp, 1, args.bytes));
                let received = stream::check(&tcp, 2);
                (
                    sender
                        .join()
                        .unwrap_or_else(|_| Err(io::Error::other("the sender panicked"))),
                    received,
                )
            });
            report.sent = sent?;
            report.received = received?;
            report.end = "eof".to_owned();
        }
        Mode::Many | Mode::Load | Mode::LoadNew | Mode::Idle | Mode::Hold | Mode::Press => {}
    }
    Ok(())
}

fn send(args: &Args, mut tcp: &TcpStream, report: &mut Report) -> io::Result<()> {
    tcp.write_all(args.text.as_bytes())?;
    report.sent += args.text.len() as u64;
    Ok(())
}

fn receive(mut tcp: &TcpStream, report: &mut Report) {
    let mut buffer = vec![0; 64 << 10];
    report.end = loop {
        match tcp.read(&mut buffer) {
            Ok(0) => break "eof".to_owned(),
            Ok(n) => {
                report.received += n as u64;
                if report.text.len() < 64 << 10 {
                    report.text.push_str(&String::from_utf8_lossy(&buffer[..n]));
                }
            }
            Err(error) => break stream::name(&error),
        }
    };
}

fn flood(mut tcp: &TcpStream, limit: u64, report: &mut Report) -> io::Result<()> {
    tcp.set_write_timeout(Some(Duration::from_secs(2)))?;
    let buffer = vec![0x5a; 64 << 10];
    while report.sent < limit {
        match tcp.write(&buffer) {
            Ok(n) => report.sent += n as u64,
            Err(error) => {
                report.end = stream::name(&error);
                return Ok(());
            }
        }
    }
    report.end = "limit".to_owned();
    Ok(())
}

/// What all threads of a run count together.
struct Tally {
    report: Report,
    last_answer: Instant,
}

fn many(args: &Args, report: &mut Report) {
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    let tally = Mutex::new(Tally {
        report: Report::default(),
        last_answer: Instant::now(),
    });
    std::thread::scope(|scope| {
        for _ in 0..args.parallel.max(1) {
            scope.spawn(|| {
                let mut left = args.count;
                let mut kept = None;
                let go_on = |left: u64| {
                    if args.mode == Mode::Many {
                        left > 0
                    } else {
                        Instant::now() < end
                    }
                };
                while go_on(left) {
                    left = left.saturating_sub(1);
                    let result = request(args, &mut kept);
                    count(&tally, args, result);
                    if args.pause > 0 {
                        std::thread::sleep(Duration::from_millis(args.pause));
                    }
                }
            });
        }
    });
    if let Ok(tally) = tally.into_inner() {
        *report = tally.report;
        report.connected = report.ok > 0;
    }
}

/// One request, on the kept connection under `load`, otherwise on a new one that it ends in order.
fn request(args: &Args, kept: &mut Option<TcpStream>) -> io::Result<()> {
    if args.mode == Mode::Load {
        let tcp = match kept {
            Some(tcp) => tcp,
            None => kept.insert(args.open()?),
        };
        return args.ask(tcp).inspect_err(|_| *kept = None);
    }
    let tcp = args.open()?;
    args.ask(&tcp)?;
    tcp.shutdown(Shutdown::Write)?;
    let mut rest = [0; 16];
    match (&tcp).read(&mut rest)? {
        0 => Ok(()),
        _ => Err(io::Error::other("more than was sent")),
    }
}

fn count(tally: &Mutex<Tally>, args: &Args, result: io::Result<()>) {
    let Ok(mut tally) = tally.lock() else { return };
    match result {
        Ok(()) => {
            let now = Instant::now();
            let gap = u64::try_from((now - tally.last_answer).as_millis()).unwrap_or(u64::MAX);
            tally.last_answer = now;
            let report = &mut tally.report;
            report.longest_gap_millis = report.longest_gap_millis.max(gap);
            report.ok += 1;
            report.sent += args.text.len() as u64;
            report.received += args.text.len() as u64;
        }
        Err(error) => {
            let name = stream::name(&error);
            tally.report.failed += 1;
            tally.report.error.get_or_insert_with(|| name.clone());
            *tally.report.errors.entry(name).or_default() += 1;
        }
    }
}

fn idle(args: &Args, report: &mut Report) -> io::Result<()> {
    let all = (0..args.count)
        .map(|_| args.open())
        .collect::<io::Result<Vec<_>>>()?;
    report.connected = true;
    for tcp in &all {
        args.ask(tcp)?;
    }
    std::thread::sleep(Duration::from_secs_f64(args.seconds));
    for tcp in &all {
        args.ask(tcp)?;
        report.ok += 1;
        report.peer = tcp.peer_addr().ok();
        report.local = tcp.local_addr().ok();
    }
    Ok(())
}

fn press(args: &Args, report: &mut Report) -> io::Result<()> {
    let all = (0..args.count)
        .map(|_| args.open())
        .collect::<io::Result<Vec<_>>>()?;
    report.connected = true;
    let block = vec![0x5a; 64 << 10];
    for tcp in &all {
        tcp.set_nonblocking(true)?;
    }
    let end = Instant::now() + Duration::from_secs_f64(args.seconds);
    while Instant::now() < end {
        if args.mode == Mode::Press {
            for mut tcp in &all {
                while let Ok(n) = tcp.write(&block) {
                    report.sent += n as u64;
                }
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    for tcp in &all {
        match tcp.take_error()? {
            None => report.ok += 1,
            Some(_) => report.failed += 1,
        }
    }
    Ok(())
}
