//! Running programs: bounded in time, ended by pid, their output kept.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup::Cgroup;
use super::netns::Netns;

/// What a finished command said.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a command that succeeded.
    ///
    /// # Errors
    /// When it did not: with all it said.
    pub fn success(self) -> Result<String> {
        if !self.status.success() {
            bail!("ended with {}: {}{}", self.status, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }
}

/// Runs `command` to its end, at most `limit`; then it is killed.
///
/// # Errors
/// When it cannot be started or does not end in time.
pub fn run(command: &mut Command, limit: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {shown}"))?;
    let stdout = reader(child.stdout.take());
    let stderr = reader(child.stderr.take());
    let status = wait_child(&mut child, limit);
    if status.is_none() {
        child.kill().ok();
        child.wait().ok();
    }
    let (stdout, stderr) = (
        stdout.join().unwrap_or_default(),
        stderr.join().unwrap_or_default(),
    );
    match status {
        Some(status) => Ok(Output {
            status,
            stdout,
            stderr,
        }),
        None => bail!("{shown} did not end within {limit:?}; it said: {stdout}{stderr}"),
    }
}

fn reader<R: Read + Send + 'static>(stream: Option<R>) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut stream) = stream {
            stream.read_to_end(&mut bytes).ok();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// `limit`, times what `MESH_TEST_PATIENCE` says (a whole number): for slow machines, such as emulated ones. No test's verdict gets milder
/// by it, only later.
pub(super) fn patient(limit: Duration) -> Duration {
    static FACTOR: LazyLock<u32> = LazyLock::new(|| {
        let factor = std::env::var("MESH_TEST_PATIENCE").ok();
        factor.and_then(|n| n.parse().ok()).unwrap_or(1).max(1)
    });
    limit.saturating_mul(*FACTOR)
}

fn wait_child(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + patient(limit);
    let mut pause = Duration::from_millis(1);
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(status),
            Ok(None) if Instant::now() < end => std::thread::sleep(pause),
            _ => return None,
        }
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Polls `probe` until it gives a value.
///
/// # Errors
/// When it has given none within `limit`: with the last error it gave.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Result<T>) -> Result<T> {
    let limit = patient(limit);
    let end = Instant::now() + limit;
    loop {
        match probe() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= end => {
                return Err(error.context(format!("{what}: not within {limit:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Where a command is to run. Joining happens between fork and exec, so that nothing of it runs elsewhere.
pub trait JoinExt {
    /// Joins the cgroup before it begins.
    ///
    /// # Errors
    /// When the cgroup cannot be opened.
    fn in_cgroup(&mut self, cgroup: &Cgroup) -> Result<&mut Self>;
    /// Joins the network namespace before it begins. Mounts stay as they are: `/sys` is that of the host.
    ///
    /// # Errors
    /// When the namespace cannot be opened.
    fn in_netns(&mut self, netns: &Netns) -> Result<&mut Self>;
}

impl JoinExt for Command {
    fn in_cgroup(&mut self, cgroup: &Cgroup) -> Result<&mut Self> {
        let path = cgroup.path().join("cgroup.procs");
        let procs = File::options()
            .write(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        // SAFETY: the closure only calls write(2) on a descriptor it owns, which is async-signal-safe.
        unsafe {
            self.pre_exec(move || (&procs).write_all(b"0"));
        }
        Ok(self)
    }

    fn in_netns(&mut self, netns: &Netns) -> Result<&mut Self> {
        let file: OwnedFd = netns.open()?.into();
        // SAFETY: the closure only calls setns(2) on a descriptor it owns, which is async-signal-safe.
        unsafe {
            self.pre_exec(move || {
                if libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) == 0 {
                    Ok(())
                } else {
                    Err(std::io::Error::last_os_error())
                }
            });
        }
        Ok(self)
    }
}

/// A running program: killed, and waited for, on drop. Its output goes to files.
#[derive(Debug)]
pub struct Proc {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
    ended: Option<ExitStatus>,
}

impl Proc {
    /// Starts `command`; its output goes to `NAME.out` and `NAME.err` in `dir`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &mut Command, dir: &Path) -> Result<Self> {
        let stdout = dir.join(format!("{name}.out"));
        let stderr = dir.join(format!("{name}.err"));
        let open = |path: &Path| {
            File::options()
                .append(true)
                .create(true)
                .open(path)
                .with_context(|| format!("cannot open {}", path.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open(&stdout)?)
            .stderr(open(&stderr)?)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Self {
            child,
            name: name.to_owned(),
            stdout,
            stderr,
            ended: None,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it wrote to standard output so far.
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// Everything it wrote to standard error so far.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// The file its standard error goes to.
    pub fn stderr_path(&self) -> &Path {
        &self.stderr
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended
    }

    /// Sends a signal to this process alone.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if let Some(status) = self.ended() {
            bail!(
                "{} has already ended with {status}: {}",
                self.name,
                tail(&self.stderr())
            );
        }
        let pid = i32::try_from(self.child.id()).context("a pid fits an i32")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it still runs after `limit`.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.ended() {
            return Ok(status);
        }
        self.ended = wait_child(&mut self.child, limit);
        self.ended.with_context(|| {
            format!(
                "{} still runs after {limit:?}: {}",
                self.name,
                tail(&self.stderr())
            )
        })
    }

    /// SIGTERM, then waits for its end.
    ///
    /// # Errors
    /// When it is gone already or still runs after `limit`.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait(limit)
    }

    /// SIGKILL, and waits for its end.
    pub fn kill(&mut self) -> Option<i32> {
        if self.ended().is_none() {
            self.child.kill().ok();
            self.ended = self.child.wait().ok();
        }
        self.ended.and_then(|status| status.signal())
    }
}

impl Drop for Proc {
    fn drop(&mut self) {
        self.kill();
    }
}

fn read_lossy(path: &Path) -> String {
    std::fs::read(path).map_or_else(
        |_| String::new(),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

/// The last lines of a log, for messages.
pub(super) fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
