//! The server: does what each connection's first byte wants, and keeps a tally.

use std::cell::RefCell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::harness::LoadTally;
use mesh_tests::stream::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;

use crate::wire::{self, MESSAGE, Want};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen; with `--ports`, there and on the ports behind.
    listen: SocketAddr,
    /// How many ports.
    #[arg(long, default_value_t = 1)]
    ports: u16,
    /// End every connection at once, before a byte, and receive to the end.
    #[arg(long)]
    end_first: bool,
    /// Ask this server, too, before a question is answered, over a connection kept beside that of the client.
    #[arg(long)]
    next: Option<SocketAddr>,
}

type Tally = Rc<RefCell<LoadTally>>;

pub(crate) async fn run(args: Args) -> Result<()> {
    let mut asked = signal(SignalKind::user_defined1())?;
    let mut ended = signal(SignalKind::terminate())?;
    let tally = Tally::default();
    let set = LocalSet::new();
    for n in 0..args.ports.max(1) {
        let address = SocketAddr::new(args.listen.ip(), args.listen.port() + n);
        let listener = listen(address).with_context(|| format!("cannot listen on {address}"))?;
        set.spawn_local(accept(listener, Rc::clone(&tally), args.end_first, args.next));
    }
    wire::say(&*tally.borrow())?;
    set.run_until(async {
        loop {
            tokio::select! {
                _ = asked.recv() => wire::say(&*tally.borrow())?,
                _ = ended.recv() => return wire::say(&*tally.borrow()),
            }
        }
    })
    .await
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM.nonblocking(),
        None,
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

async fn accept(listener: TcpListener, tally: Tally, end_first: bool, next: Option<SocketAddr>) {
    loop {
        let Ok((tcp, peer)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        };
        let tally = Rc::clone(&tally);
        {
            let mut tally = tally.borrow_mut();
            tally.accepted += 1;
            tally.open += 1;
        }
        let _ = tcp.set_nodelay(true);
        tokio::task::spawn_local(async move {
            let outcome = serve(tcp, peer, &tally, end_first, next).await;
            let mut tally = tally.borrow_mut();
            tally.open -= 1;
            match outcome {
                Ok(()) => tally.ended += 1,
                Err(error) => *tally.errors.entry(wire::name(&error)).or_default() += 1,
            }
        });
    }
}

async fn serve(
    mut tcp: TcpStream,
    peer: SocketAddr,
    tally: &Tally,
    end_first: bool,
    next: Option<SocketAddr>,
) -> io::Result<()> {
    if tcp.peer_addr().is_ok_and(|name| name != peer) {
        tally.borrow_mut().wrong_names += 1;
    }
    if end_first {
        tcp.shutdown().await?;
        return drain(&mut tcp, tally).await;
    }
    let mut first = [0];
    if tcp.read(&mut first).await? == 0 {
        return Ok(());
    }
    match Want::parse(first[0]) {
        Some(Want::Answers) => {
            let next = match next {
                Some(next) => Some(asking(next).await?),
                None => None,
            };
            answers(&mut tcp, next, tally).await
        }
        Some(Want::Check) => check(&mut tcp, tally).await,
        Some(Want::Data) => data(&mut tcp).await,
        Some(Want::Sink) => drain(&mut tcp, tally).await,
        Some(Want::Source) => loop {
            tcp.write_all(&SOURCE).await?;
        },
        Some(Want::Reset) => wire::abort(tcp),
        Some(Want::End) => {
            tcp.shutdown().await?;
            drain(&mut tcp, tally).await
        }
        Some(Want::Never) => {
            tcp.shutdown().await?;
            drain(&mut tcp, tally).await?;
            wire::abort(tcp)
        }
        None => Err(io::Error::other("an unknown first byte")),
    }
}

/// A connection to the next server of a chain, on which it will be asked.
async fn asking(next: SocketAddr) -> io::Result<TcpStream> {
    let mut tcp = wire::open(next, Duration::from_secs(10)).await?;
    tcp.write_all(&[Want::Answers as u8]).await?;
    Ok(tcp)
}

static SOURCE: [u8; 128 << 10] = [0x5a; 128 << 10];

/// Each question is answered with the client's name as this socket has it now.
async fn answers(tcp: &mut TcpStream, mut next: Option<TcpStream>, tally: &Tally) -> io::Result<()> {
    let mut question = [0; MESSAGE];
    loop {
        // Cut off within a question is an error, at its edge it is the end.
        if tcp.read(&mut question[..1]).await? == 0 {
            return Ok(());
        }
        tcp.read_exact(&mut question[1..]).await?;
        tally.borrow_mut().received += MESSAGE as u64;
        if let Some(next) = &mut next
            && !wire::ask(next).await?
        {
            return Err(io::Error::other("the next server saw another client"));
        }
        let answer = wire::message(tcp.peer_addr()?);
        tcp.write_all(&answer).await?;
    }
}

async fn drain(tcp: &mut TcpStream, tally: &Tally) -> io::Result<()> {
    let mut buffer = vec![0; 128 << 10];
    loop {
        match tcp.read(&mut buffer).await? {
            0 => return Ok(()),
            n => tally.borrow_mut().received += n as u64,
        }
    }
}

async fn check(tcp: &mut TcpStream, tally: &Tally) -> io::Result<()> {
    let mut stream = Stream::new(1);
    let (mut got, mut expected) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut received = 0u64;
    loop {
        let n = tcp.read(&mut got).await?;
        if n == 0 {
            break;
        }
        stream.fill(&mut expected[..n]);
        if got[..n] != expected[..n] {
            return Err(io::Error::other(format!("wrong bytes behind {received}")));
        }
        received += n as u64;
    }
    tally.borrow_mut().received += received;
    tcp.write_all(&received.to_be_bytes()).await
}

async fn data(tcp: &mut TcpStream) -> io::Result<()> {
    let mut left = tcp.read_u64().await?;
    let mut stream = Stream::new(2);
    let mut buffer = vec![0; 64 << 10];
    while left > 0 {
        let n = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        stream.fill(&mut buffer[..n]);
        tcp.write_all(&buffer[..n]).await?;
        left -= n as u64;
    }
    tcp.shutdown().await?;
    tcp.read(&mut [0; 16]).await.map(drop)
}
