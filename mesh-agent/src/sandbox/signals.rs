//! The signals that a sandbox passes on to its command.
//!
//! They are read from a descriptor, which says where each came from: what the terminal sends goes to the command by itself, since both
//! are in one process group.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Those that are passed on.
const PASSED: [Signal; 7] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
];
/// Those of them that end a sandbox whose command has not begun.
const ENDING: [Signal; 4] = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM];

/// A signal that has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Came {
    /// A child has ended, or stopped.
    Child,
    /// One that a process sent to us alone.
    Sent(Signal),
    /// One that the terminal, or the kernel, sent to our whole process group.
    Shared(Signal),
}

/// The descriptor.
#[derive(Debug)]
pub(super) struct Signals(SignalFd);

impl Signals {
    /// From now on the signals wait here. Before any thread or child is made.
    pub(super) fn hold() -> io::Result<Self> {
        let mut set: SigSet = PASSED.into_iter().collect();
        set.add(Signal::SIGCHLD);
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(
            &set,
            SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK,
        )?))
    }

    /// The next signal; `None` when none has come in time.
    pub(super) fn next(&self, wait: Option<Duration>) -> io::Result<Option<Came>> {
        if let Some(came) = self.read()? {
            return Ok(Some(came));
        }
        let timeout = wait.map_or(PollTimeout::NONE, |wait| {
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], timeout) {
            // Stopped and continued.
            Ok(_) | Err(nix::errno::Errno::EINTR) => self.read(),
            Err(error) => Err(error.into()),
        }
    }

    fn read(&self) -> io::Result<Option<Came>> {
        let Some(info) = self.0.read_signal()? else {
            return Ok(None);
        };
        let number = i32::try_from(info.ssi_signo).unwrap_or_default();
        Ok(Some(match Signal::try_from(number)? {
            Signal::SIGCHLD => Came::Child,
            signal if info.ssi_code == libc::SI_KERNEL => Came::Shared(signal),
            signal => Came::Sent(signal),
        }))
    }

    /// The signal that says to end before the command has begun, where one came within `wait`.
    pub(super) fn end(&self, wait: Duration) -> io::Result<Option<Signal>> {
        Ok(match self.next(Some(wait))? {
            Some(Came::Sent(signal) | Came::Shared(signal)) if ENDING.contains(&signal) => Some(signal),
            _ => None,
        })
    }
}
