//! The last step before a sandbox's command: a process that moves into the sandbox and becomes the command. Has no threads.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Pid, getppid};

/// The exit codes that shells have for a command that cannot be executed, and for one that is not there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// Of what goes wrong before.
pub(super) const NO_SANDBOX: u8 = 125;

/// Where to go, and what to become.
#[derive(Clone, Debug, Args)]
pub struct InitArgs {
    /// The sandbox's process, which this one is not to outlive.
    #[arg(long)]
    pub parent: i32,
    /// The network namespace.
    #[arg(long)]
    pub netns: PathBuf,
    /// The cgroup.
    #[arg(long)]
    pub cgroup: PathBuf,
    /// What to see as /etc/hosts.
    #[arg(long)]
    pub hosts: PathBuf,
    /// The command.
    #[arg(required = true, trailing_var_arg = true)]
    pub command: Vec<std::ffi::OsString>,
}

/// Becomes the command; gives an exit code where it cannot.
pub fn init(args: &InitArgs) -> u8 {
    if let Err(error) = move_in(args) {
        eprintln!("mesh-agent sandbox: cannot move into the sandbox: {error}");
        return NO_SANDBOX;
    }
    let Some((program, arguments)) = args.command.split_first() else {
        return NO_SANDBOX;
    };
    let error = Command::new(program).args(arguments).exec();
    eprintln!("mesh-agent sandbox: {}: {error}", Path::new(program).display());
    if error.kind() == io::ErrorKind::NotFound {
        NOT_FOUND
    } else {
        NOT_EXECUTABLE
    }
}

fn move_in(args: &InitArgs) -> io::Result<()> {
    fs::write(args.cgroup.join("cgroup.procs"), "0")?;
    setns(File::open(&args.netns)?, CloneFlags::CLONE_NEWNET)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)?;
    let hosts = Path::new("/etc/hosts");
    if hosts.exists() {
        mount(Some(&args.hosts), hosts, none, MsFlags::MS_BIND, none)?;
    }
    // What the sandbox's process held back is the command's to receive.
    SigSet::empty().thread_set_mask()?;
    set_pdeathsig(Signal::SIGKILL)?;
    if getppid() != Pid::from_raw(args.parent) {
        return Err(io::Error::other("the sandbox has ended already"));
    }
    Ok(())
}
