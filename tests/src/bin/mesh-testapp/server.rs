//! The server in its manners.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use clap::ValueEnum;
use mesh_tests::harness::AppEvent;

use crate::stream;

/// What the server does with a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Mode {
    /// Sends back what it receives; ends when the client ends.
    Echo,
    /// Answers HTTP/1.1 requests with `peer=ADDRESS` and keeps the connection.
    Http,
    /// Speaks first: sends the text, then echoes.
    Banner,
    /// Sends the text and ends its sending side at once; goes on receiving.
    Talk,
    /// Receives to the end, then sends how many bytes it got, as text.
    Sink,
    /// Never reads.
    Stall,
    /// Sends without end, and never reads.
    Pour,
    /// Resets the connection after the first byte.
    Reset,
    /// Sends `--bytes` of the stream of seed 2 while it checks what it receives against seed 1.
    Bulk,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to do with a connection.
    mode: Mode,
    /// Where to listen.
    #[arg(long)]
    listen: Vec<SocketAddr>,
    /// What to say first, in the manners that speak first.
    #[arg(long, default_value = "hello\n")]
    text: String,
    /// How much to send in bulk.
    #[arg(long, default_value_t = 0)]
    bytes: u64,
    /// Set SO_REUSEPORT on the listeners.
    #[arg(long)]
    reuse_port: bool,
}

fn say(event: &AppEvent) {
    let line = serde_json::to_string(event).unwrap_or_default();
    let mut out = io::stdout().lock();
    writeln!(out, "{line}").ok();
    out.flush().ok();
}

fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

pub(crate) fn run(args: &Args) -> io::Result<()> {
    std::thread::scope(|scope| {
        for address in &args.listen {
            let listener = listen(*address, args.reuse_port)
                .map_err(|e| io::Error::other(format!("cannot listen on {address}: {e}")))?;
            say(&AppEvent {
                event: "listening".to_owned(),
                local: listener.local_addr().ok(),
                ..AppEvent::default()
            });
            scope.spawn(move || accept(&listener, args));
        }
        Ok(())
    })
}

fn accept(listener: &TcpListener, args: &Args) {
    std::thread::scope(|scope| {
        for connection in 1.. {
            let Ok((tcp, peer)) = listener.accept() else {
                std::thread::sleep(Duration::from_millis(5));
                continue;
            };
            let event = AppEvent {
                event: "accepted".to_owned(),
                connection,
                peer: Some(canonical(peer)),
                peer_name: tcp.peer_addr().ok().map(canonical),
                local: tcp.local_addr().ok().map(canonical),
                ..AppEvent::default()
            };
            say(&event);
            let builder = std::thread::Builder::new().stack_size(256 << 10);
            builder
                .spawn_scoped(scope, move || {
                    let (received, end) = serve(tcp, peer, args);
                    say(&AppEvent {
                        event: "closed".to_owned(),
                        received,
                        end,
                        ..event
                    });
                })
                .ok();
        }
    });
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Serves one connection; gives bytes received and how the receiving side ended.
fn serve(tcp: TcpStream, peer: SocketAddr, args: &Args) -> (u64, String) {
    let mut received = 0;
    let end = match args.mode {
        Mode::Echo => copy(&tcp, &mut received, true),
        Mode::Banner => (&tcp)
            .write_all(args.text.as_bytes())
            .and_then(|()| copy(&tcp, &mut received, true)),
        Mode::Talk => (&tcp)
            .write_all(args.text.as_bytes())
            .and_then(|()| tcp.shutdown(Shutdown::Write))
            .and_then(|()| copy(&tcp, &mut received, false)),
        Mode::Sink => copy(&tcp, &mut received, false)
            .and_then(|()| (&tcp).write_all(received.to_string().as_bytes()))
            .and_then(|()| tcp.shutdown(Shutdown::Write)),
        Mode::Http => http(&tcp, canonical(peer), &mut received),
        Mode::Bulk => bulk(&tcp, args.bytes, &mut received),
        Mode::Stall => loop {
            std::thread::sleep(Duration::from_secs(60));
        },
        Mode::Pour => {
            let block = vec![0x5a; 64 << 10];
            loop {
                if let Err(error) = (&tcp).write_all(&block) {
                    break Err(error);
                }
            }
        }
        Mode::Reset => {
            let mut one = [0];
            let first = (&tcp).read(&mut one);
            return match first.and_then(|_| stream::reset(tcp)) {
                Ok(()) => (1, "we reset".to_owned()),
                Err(error) => (0, stream::name(&error)),
            };
        }
    };
    (
        received,
        end.map_or_else(|error| stream::name(&error), |()| "eof".to_owned()),
    )
}

fn copy(mut tcp: &TcpStream, received: &mut u64, back: bool) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = tcp.read(&mut buffer)?;
        if n == 0 {
            if back {
                tcp.shutdown(Shutdown::Write)?;
            }
            return Ok(());
        }
        *received += n as u64;
        if back {
            tcp.write_all(&buffer[..n])?;
        }
    }
}

fn http(mut tcp: &TcpStream, peer: SocketAddr, received: &mut u64) -> io::Result<()> {
    let mut lines = BufReader::new(tcp);
    let mut line = String::new();
    loop {
        line.clear();
        let n = lines.read_line(&mut line)?;
        *received += n as u64;
        if n == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            let body = format!("peer={peer}\n");
            let head = format!(
                "HTTP/1.1 200 OK\r\nserver: testapp\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            tcp.write_all((head + &body).as_bytes())?;
        }
    }
}

fn bulk(tcp: &TcpStream, bytes: u64, received: &mut u64) -> io::Result<()> {
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| stream::send(tcp, 2, bytes));
        *received = stream::check(tcp, 1)?;
        sender
            .join()
            .map_err(|_| io::Error::other("the sender panicked"))??;
        Ok(())
    })
}
