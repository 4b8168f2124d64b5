//! A way to a server that can be cut: listens in a namespace, and carries each connection to a port that this process reaches.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

use super::netns::Netns;

/// A relay; it ends on drop.
#[derive(Debug)]
pub struct Relay {
    netns: Netns,
    at: SocketAddr,
    to: SocketAddr,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    ended: Arc<AtomicBool>,
    live: Arc<Mutex<Vec<TcpStream>>>,
}

impl Relay {
    /// Listens at `at` in `netns` for what is to go to `to`.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(netns: &Netns, at: SocketAddr, to: SocketAddr) -> Result<Self> {
        let mut relay = Self {
            netns: Netns::at(netns.path()),
            at,
            to,
            open: None,
        };
        relay.mend()?;
        Ok(relay)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.at
    }

    /// Resets all connections, and refuses new ones.
    pub fn cut(&mut self) {
        if let Some(open) = self.open.take() {
            open.ended.store(true, Ordering::Release);
            for stream in open.live.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                drop(stream.shutdown(Shutdown::Both));
            }
        }
    }

    /// Listens again.
    ///
    /// # Errors
    /// When it cannot.
    pub fn mend(&mut self) -> Result<()> {
        self.cut();
        let at = self.at;
        let bind = || TcpListener::bind(at).with_context(|| format!("cannot listen at {at}"));
        let listener = super::process::wait_for("the relay listens", Duration::from_secs(5), || {
            self.netns.enter(bind)
        })?;
        listener.set_nonblocking(true)?;
        let open = Open {
            ended: Arc::default(),
            live: Arc::default(),
        };
        let (ended, live, to) = (open.ended.clone(), open.live.clone(), self.to);
        self.open = Some(open);
        thread::spawn(move || accept(&listener, &ended, &live, to));
        Ok(())
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
    }
}

fn accept(listener: &TcpListener, ended: &AtomicBool, live: &Mutex<Vec<TcpStream>>, to: SocketAddr) {
    while !ended.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((stream, _)) => drop(carry(stream, to, ended, live)),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn carry(
    near: TcpStream,
    to: SocketAddr,
    ended: &AtomicBool,
    live: &Mutex<Vec<TcpStream>>,
) -> io::Result<()> {
    let far = TcpStream::connect_timeout(&to, Duration::from_secs(3))?;
    near.set_nonblocking(false)?;
    let mut live = live.lock().unwrap_or_else(PoisonError::into_inner);
    if ended.load(Ordering::Acquire) {
        return Ok(());
    }
    live.extend([near.try_clone()?, far.try_clone()?]);
    for (from, to) in [(near.try_clone()?, far.try_clone()?), (far, near)] {
        thread::spawn(move || copy(from, to));
    }
    Ok(())
}

fn copy(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length) = from.read(&mut buffer)
        && length > 0
        && let Some(bytes) = buffer.get(..length)
        && to.write_all(bytes).is_ok()
    {}
    drop(to.shutdown(Shutdown::Write));
}
