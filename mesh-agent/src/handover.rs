//! How an agent takes over from the one that runs for the same node: a socket beside the admin socket, `PATH.handover`, and a few messages
//! on it, a line of JSON each. Only carries the messages; what giving up and taking over mean is the app's part.
//!
//! ```text
//! successor                              predecessor
//!     ── take_over ─►                    stops enrolling, gives up ports, sockets and the lock on the pins; goes on accepting
//!     ◄─ yielded ──
//!     (captures the pods, is ready)
//!     ── taken ────►                     drains and ends
//!     (or the connection ends)           takes everything back
//!     ◄─ draining ──                     again and again: how many connections it has left
//!                                        (the connection ends: it has left)
//! ```

mod ledger;

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use crate::admin::{SocketError, private_listener};

pub use ledger::{Counts, Leaving, Ledger};

/// How long a predecessor may take to yield: it waits for the pass over its pods that is under way.
const YIELD_LIMIT: Duration = Duration::from_secs(20);
/// How long a successor may take to say what it wants.
const HELLO_LIMIT: Duration = Duration::from_secs(2);
/// Bytes of a message at most.
const LONGEST: u64 = 4096;

/// Why an agent does not get to take over.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// The running agent says no.
    #[error("the agent that runs does not yield: {0}")]
    Refused(String),
    /// The running agent says nothing.
    #[error(
        "the agent that runs does not yield: no answer on {path} within {} s ({source}); end it, or start without --take-over", YIELD_LIMIT.as_secs()
    )]
    Silent {
        /// Where it was asked.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be used.
    #[error("the handover socket {path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error(transparent)]
    Socket(#[from] SocketError),
}

/// What is said on the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case")]
enum Message {
    /// By the successor, first.
    TakeOver(Claim),
    /// By the predecessor: what only one agent can have is free.
    Yielded(Estate),
    /// By the predecessor: it stays.
    Refused { why: String },
    /// By the successor: every connection from now on is its own.
    Taken,
    /// By the predecessor, which leaves: so many connections have yet to end.
    Draining { connections: usize },
}

/// Who wants to take over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The node that it is for.
    pub node: String,
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
}

/// What a successor has to know of the agent that yields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estate {
    /// Its version.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// The id of the cgroup that its sockets are made in.
    pub agent_cgroup: u64,
    /// How handovers ended so far. (Older versions do not say.)
    #[serde(default)]
    pub handovers: Counts,
}

/// Where the agent with this admin socket can be asked to yield.
fn path_beside(admin_socket: &Path) -> PathBuf {
    let mut path = admin_socket.as_os_str().to_owned();
    path.push(".handover");
    PathBuf::from(path)
}

/// A running agent that has yielded. Dropped without [`taken`](Self::taken), it takes back what it has given up.
#[derive(Debug)]
pub struct Predecessor {
    stream: UnixStream,
    path: PathBuf,
    estate: Estate,
}

impl Predecessor {
    /// Asks the agent that has `admin_socket` to yield; `None` when there is none. Blocks until it has.
    ///
    /// # Errors
    /// When it does not.
    pub fn ask(admin_socket: &Path, claim: Claim) -> Result<Option<Self>, HandoverError> {
        let path = path_beside(admin_socket);
        let io_error = |source| HandoverError::Io {
            path: path.clone(),
            source,
        };
        let stream = match UnixStream::connect(&path) {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Ok(None),
            Err(error) => return Err(io_error(error)),
        };
        stream.set_read_timeout(Some(YIELD_LIMIT)).map_err(io_error)?;
        stream.set_write_timeout(Some(YIELD_LIMIT)).map_err(io_error)?;
        let said = say(&stream, &Message::TakeOver(claim)).and_then(|()| hear(&stream));
        match said {
            Ok(Message::Yielded(estate)) => Ok(Some(Self { stream, path, estate })),
            Ok(Message::Refused { why }) => Err(HandoverError::Refused(why)),
            Ok(other) => Err(HandoverError::Refused(format!("it says {other:?}"))),
            Err(source) => Err(HandoverError::Silent { path, source }),
        }
    }

    /// What is to be known of it.
    pub fn estate(&self) -> &Estate {
        &self.estate
    }

    /// Tells it that it is not needed any more. What it says from then on comes from what this returns.
    ///
    /// # Errors
    /// When it is gone.
    pub fn taken(self) -> Result<Departure, HandoverError> {
        match say(&self.stream, &Message::Taken) {
            Ok(()) => Ok(Departure {
                stream: self.stream,
                estate: self.estate,
                since: SystemTime::now(),
            }),
            Err(source) => Err(HandoverError::Io {
                path: self.path,
                source,
            }),
        }
    }
}

/// A predecessor that was relieved and leaves.
#[derive(Debug)]
pub struct Departure {
    stream: UnixStream,
    estate: Estate,
    since: SystemTime,
}

impl Departure {
    /// Enters in `ledger` what it says, until it has left. One of a version that says nothing is never entered.
    ///
    /// # Errors
    /// When it cannot be listened to; it leaves all the same.
    pub async fn follow(self, ledger: &Ledger) -> io::Result<()> {
        self.stream.set_nonblocking(true)?;
        let mut stream = tokio::io::BufReader::new(tokio::net::UnixStream::from_std(self.stream)?);
        while let Ok(Message::Draining { connections }) = listen_to(&mut stream).await {
            ledger.heard(Some(Leaving {
                version: self.estate.version.clone(),
                pid: self.estate.pid,
                since: self.since,
                connections,
            }));
        }
        ledger.heard(None);
        Ok(())
    }
}

fn is_nobody(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}

fn line(message: &Message) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

fn say(mut stream: &UnixStream, message: &Message) -> io::Result<()> {
    stream.write_all(&line(message)?)
}

fn hear(stream: &UnixStream) -> io::Result<Message> {
    let mut text = String::new();
    let mut reader = BufReader::new(io::Read::take(stream, LONGEST));
    if reader.read_line(&mut text)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&text)?)
}

/// The socket on which this agent can be asked to yield. Dropping it removes the file.
#[derive(Debug)]
pub struct Door {
    path: PathBuf,
    inode: u64,
    listener: UnixListener,
}

impl Door {
    /// Opens the door beside `admin_socket`, which must be ours.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(admin_socket: &Path) -> Result<Self, HandoverError> {
        let path = path_beside(admin_socket);
        let io_error = |source| HandoverError::Io {
            path: path.clone(),
            source,
        };
        let listener = UnixListener::from_std(private_listener(&path)?).map_err(io_error)?;
        let inode = fs::symlink_metadata(&path).map_err(io_error)?.ino();
        Ok(Self {
            path,
            inode,
            listener,
        })
    }

    /// Waits for an agent that wants to take over. Whoever says something else, or nothing, is sent away.
    pub async fn knock(&self) -> Visitor {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => match Visitor::hear_out(stream).await {
                    Ok(visitor) => return visitor,
                    Err(error) => {
                        tracing::warn!(%error, "somebody on the handover socket is no agent: sent away")
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "the handover socket does not accept: pausing");
                    tokio::time::sleep(HELLO_LIMIT).await;
                }
            }
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// How a handover ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The successor serves every new connection.
    Taken,
    /// The successor is gone, or said something else.
    Failed,
}

/// An agent that wants to take over.
#[derive(Debug)]
pub struct Visitor {
    stream: tokio::io::BufReader<tokio::net::UnixStream>,
    claim: Claim,
}

impl Visitor {
    async fn hear_out(stream: tokio::net::UnixStream) -> io::Result<Self> {
        let uid = stream.peer_cred()?.uid();
        if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let mut stream = tokio::io::BufReader::new(stream);
        match tokio::time::timeout(HELLO_LIMIT, listen_to(&mut stream)).await?? {
            Message::TakeOver(claim) => Ok(Self { stream, claim }),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Who it is.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Sends it away.
    pub async fn refuse(mut self, why: &str) {
        let why = why.to_owned();
        let _ = self.tell(&Message::Refused { why }).await;
    }

    /// Tells it that everything is free, and waits for what becomes of it.
    pub async fn yielded(&mut self, estate: Estate) -> Outcome {
        if self.tell(&Message::Yielded(estate)).await.is_err() {
            return Outcome::Failed;
        }
        match listen_to(&mut self.stream).await {
            Ok(Message::Taken) => Outcome::Taken,
            Ok(_) | Err(_) => Outcome::Failed,
        }
    }

    /// Tells it, after it has taken over, how many connections have yet to end here.
    ///
    /// # Errors
    /// When it does not listen.
    pub async fn draining(&mut self, connections: usize) -> io::Result<()> {
        self.tell(&Message::Draining { connections }).await
    }

    async fn tell(&mut self, message: &Message) -> io::Result<()> {
        self.stream.write_all(&line(message)?).await
    }
}

async fn listen_to(stream: &mut tokio::io::BufReader<tokio::net::UnixStream>) -> io::Result<Message> {
    let mut text = String::new();
    if stream.take(LONGEST).read_line(&mut text).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_str(&text)?)
}

#[cfg(test)]
mod tests;
