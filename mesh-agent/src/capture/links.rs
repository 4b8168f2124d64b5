//! A pod's links: made, pinned, taken over from an agent that is gone or leaving, detached. Owns the order of the hooks. Never leaves a hook
//! without a program on its way from one agent to the next.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use mesh_common::mutation::{self, Mechanism};
use mesh_common::programs;
use tracing::{debug, warn};

use super::bpffs::{HOOKS, fresh_pin};
use super::sys::{LinkTarget, link_create, link_detach, link_info, link_update, open_pin, pin_object};

/// A hook of a pod's cgroup or network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hook {
    /// Name of its pin.
    pub(super) name: &'static str,
    /// Name of its program in the object.
    pub(super) program: &'static str,
    /// `enum bpf_attach_type` of `linux/bpf.h`.
    attach_type: u32,
}

const fn hook(name: &'static str, program: &'static str, attach_type: u32) -> Hook {
    Hook {
        name,
        program,
        attach_type,
    }
}

/// The hook of the network namespace: what receives what the others send.
pub(super) const SK_LOOKUP: Hook = hook("sk_lookup", programs::SK_LOOKUP, 36);

/// The hooks of the cgroup, in the order in which they are attached: what sends traffic to us comes last.
pub(super) const CGROUP_HOOKS: [Hook; 6] = [
    hook("setsockopt", programs::SETSOCKOPT, 22),
    hook("sock_ops", programs::POD_SOCK_OPS, 3),
    hook("getpeername6", programs::GETPEERNAME6, 30),
    hook("getpeername4", programs::GETPEERNAME4, 29),
    hook("connect6", programs::CONNECT6, 11),
    hook("connect4", programs::CONNECT4, 10),
];

/// What a hook is attached to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    /// The cgroup or the namespace, open.
    pub(super) file: BorrowedFd<'a>,
    /// The same, as the kernel tells it of a link.
    pub(super) is: LinkTarget,
}

/// How a link came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// It is an earlier agent's: its program was exchanged.
    Adopted,
    /// An earlier agent's stood in its place and did not fit.
    Replacing,
    /// Nothing was there.
    New,
}

#[derive(Debug)]
struct PodLink {
    hook: &'static str,
    origin: Origin,
    link: OwnedFd,
}

/// The pinned links of a pod, in the order in which they were attached. Dropped without [`detach`](Self::detach) they stay pinned,
/// and the pod captured.
#[derive(Debug)]
pub(super) struct PodLinks {
    dir: PathBuf,
    links: Vec<PodLink>,
}

impl PodLinks {
    /// None yet; their pins go into `dir`.
    pub(super) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            links: Vec::new(),
        }
    }

    /// Puts `program` to work at `hook` of `target`: in the link that is pinned there, where it fits, so that at no moment none runs;
    /// else in a new link, which takes the place of one that does not fit only when it is attached.
    pub(super) fn put(&mut self, hook: Hook, program: BorrowedFd<'_>, target: Target<'_>) -> io::Result<()> {
        let pin = self.dir.join(hook.name);
        settle(&pin)?;
        let (link, origin) = match adopt(&pin, hook, program, target.is) {
            Adoption::Done(link) => (link, Origin::Adopted),
            found => {
                let link = link_create(program, target.file, hook.attach_type)?;
                match found {
                    Adoption::Nothing => pin_object(link.as_fd(), &pin)?,
                    _ => replace_pin(link.as_fd(), &pin)?,
                }
                let origin = match found {
                    Adoption::Nothing => Origin::New,
                    _ => Origin::Replacing,
                };
                (link, origin)
            }
        };
        debug!(hook = hook.name, ?origin, dir = %self.dir.display(), "attached");
        self.links.push(PodLink {
            hook: hook.name,
            origin,
            link,
        });
        Ok(())
    }

    /// Detaches, last attached first: `connect` before `sk_lookup`.
    pub(super) fn detach(&mut self) {
        while let Some(link) = self.links.pop() {
            self.unpin(&link);
        }
    }

    /// Takes back what was not there before. What an earlier agent had attached stays, with our programs.
    pub(super) fn detach_new(&mut self) {
        while let Some(link) = self.links.pop() {
            if link.origin == Origin::New {
                self.unpin(&link);
            }
        }
    }

    /// Lets go of the links that send traffic to us: from now on their pins alone keep them, and where a successor has removed those,
    /// nothing does.
    pub(super) fn stop_sending(&mut self) {
        self.links.retain(|link| !link.hook.starts_with("connect"));
    }

    /// How many links were an earlier agent's.
    pub(super) fn adopted(&self) -> usize {
        let adopted = |link: &&PodLink| link.origin == Origin::Adopted;
        self.links.iter().filter(adopted).count()
    }

    /// Hook, id of the link, id of its program.
    pub(super) fn describe(&self) -> Vec<(&'static str, u32, u32)> {
        let ids = |link: &PodLink| {
            let info = link_info(link.link.as_fd()).ok()?;
            Some((link.hook, info.id, info.program))
        };
        self.links.iter().filter_map(ids).collect()
    }

    fn unpin(&self, link: &PodLink) {
        // A predecessor that is leaving may have it open, too. (A cgroup or namespace that is gone has detached it already.)
        let _ = link_detach(link.link.as_fd());
        if let Err(error) = fs::remove_file(self.dir.join(link.hook)) {
            warn!(hook = link.hook, %error, "a pin of ours was gone already");
        }
    }
}

/// Detaches what is pinned in `dir`, in the order of [`HOOKS`], whoever else has it open.
pub(super) fn detach_pinned(dir: &Path) {
    for hook in HOOKS {
        if let Ok(link) = open_pin(&dir.join(hook)) {
            let _ = link_detach(link.as_fd());
        }
    }
}

enum Adoption {
    /// The pinned link runs our program now.
    Done(OwnedFd),
    /// Something is pinned there that cannot.
    Unfit,
    /// Nothing is pinned there.
    Nothing,
}

fn adopt(pin: &Path, hook: Hook, program: BorrowedFd<'_>, target: LinkTarget) -> Adoption {
    let link = match open_pin(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Adoption::Nothing,
        Err(error) => {
            warn!(pin = %pin.display(), %error, "a pin of an earlier agent cannot be opened: replaced");
            return Adoption::Unfit;
        }
    };
    let place = link_info(link.as_fd()).ok().and_then(|info| info.place);
    if place != Some((target, hook.attach_type)) && !mutation::is_off(Mechanism::LinkTarget) {
        debug!(pin = %pin.display(), ?place, "a link of an earlier agent is attached elsewhere, or to nothing any more: replaced");
        return Adoption::Unfit;
    }
    match link_update(link.as_fd(), program) {
        Ok(()) => Adoption::Done(link),
        // ENOLINK: what it was attached to went a moment ago. EINVAL: it is no link, or one of another kind.
        Err(error) => {
            warn!(pin = %pin.display(), %error, "a link of an earlier agent cannot be taken over: replaced");
            Adoption::Unfit
        }
    }
}

/// Ends what a crash has left half done: a link that was to take another's place takes it where that one has gone, and goes where it has
/// not.
fn settle(pin: &Path) -> io::Result<()> {
    let fresh = fresh_pin(pin);
    let done = match pin.exists() {
        true => fs::remove_file(&fresh),
        false => fs::rename(&fresh, pin),
    };
    match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The new link is attached already, so the old one may go with its pin.
fn replace_pin(link: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let fresh = fresh_pin(pin);
    pin_object(link, &fresh)?;
    fs::rename(&fresh, pin)
}
