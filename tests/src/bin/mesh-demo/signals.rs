//! Ctrl-C, a closed terminal and SIGTERM end the demo between two of its actions, so that it still removes what it made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use mesh_tests::harness;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

static ASKED_TO_END: AtomicBool = AtomicBool::new(false);

extern "C" fn note(_signal: libc::c_int) {
    ASKED_TO_END.store(true, Ordering::Relaxed);
}

/// From now on the signals only leave a note. Programs that we start are not affected: handlers end with exec.
pub(crate) fn catch() -> Result<()> {
    let action = SigAction::new(SigHandler::Handler(note), SaFlags::SA_RESTART, SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }.with_context(|| format!("cannot handle {signal}"))?;
    }
    Ok(())
}

/// Like the harness's `wait_for`, and ends at once when somebody asked for the end.
pub(crate) fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    harness::wait_for(what, limit, || match check() {
        Ok(()) => probe().map(Ok),
        Err(interrupted) => Ok(Err(interrupted)),
    })?
}

/// Fails if somebody asked for the end.
pub(crate) fn check() -> Result<()> {
    if ASKED_TO_END.load(Ordering::Relaxed) {
        bail!("interrupted");
    }
    Ok(())
}
