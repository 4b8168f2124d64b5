//! The BPF objects: embedded, loaded, attached. Owns the loaded programs of the node; hands out descriptors of the maps.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::{CgroupAttachMode, CgroupSockAddr, Program, SkLookup, SockOps};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use aya_log::EbpfLogger;
#[cfg(feature = "mutants")]
use mesh_common::mutation;
use mesh_common::{NodeConst, PodConst, maps, programs};

use super::debug_log::Forward;
use super::error::{CaptureError, causes};
use super::sys::{link_set_option, pin_object};

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/objects.rs"));
}

/// The links of a pod on its cgroup: name of the pin, program. In the order in which they are attached.
const CGROUP_HOOKS: [(&str, &str); 6] = [
    ("setsockopt", programs::SETSOCKOPT),
    ("sock_ops", programs::POD_SOCK_OPS),
    ("getpeername6", programs::GETPEERNAME6),
    ("getpeername4", programs::GETPEERNAME4),
    ("connect6", programs::CONNECT6),
    ("connect4", programs::CONNECT4),
];

/// What the kernel refused, and why.
pub(super) type Refused = (String, String);

/// The node's object, loaded.
#[derive(Debug)]
pub(super) struct NodeObject {
    bpf: Ebpf,
    maps: PathBuf,
}

impl NodeObject {
    /// Whether the programs are part of this binary.
    pub(super) fn is_embedded() -> bool {
        embedded::NODE.is_some() && embedded::POD.is_some()
    }

    /// Loads programs and maps; the maps are pinned in `pins`, so that each pod's object shares them.
    pub(super) fn load(pins: Option<&Path>, node: NodeConst) -> Result<Self, CaptureError> {
        let object = embedded::NODE.ok_or(CaptureError::NotBuilt)?;
        let mut bpf = loader(pins)
            .override_global(programs::NODE_CONST, &node, true)
            .load(object)
            .map_err(CaptureError::load("the node's maps"))?;
        for (name, program) in bpf.programs_mut() {
            let loaded = match program {
                Program::CgroupSockAddr(program) => program.load(),
                Program::SockOps(program) => program.load(),
                Program::CgroupSockopt(program) => program.load(),
                _ => continue,
            };
            loaded.map_err(CaptureError::load(format!("program {name}")))?;
        }
        Ok(Self {
            bpf,
            maps: pins.map(Path::to_owned).unwrap_or_default(),
        })
    }

    /// The reader of the programs' debug lines. Once: nobody else can have it then.
    pub(super) fn debug_lines(&mut self) -> Result<EbpfLogger<Forward>, CaptureError> {
        EbpfLogger::init_with_logger(&mut self.bpf, Forward)
            .map_err(CaptureError::load("the ring buffer of debug lines"))
    }

    /// A descriptor of a map.
    pub(super) fn map(&self, name: &str) -> Result<OwnedFd, CaptureError> {
        let io = || CaptureError::io(format!("the map {name}"));
        let data = self.bpf.map(name).and_then(map_data);
        let data = data.ok_or_else(|| io()(std::io::ErrorKind::NotFound.into()))?;
        data.fd().as_fd().try_clone_to_owned().map_err(io())
    }

    /// A map for aya's typed views.
    pub(super) fn view(&self, name: &str) -> Option<&Map> {
        self.bpf.map(name)
    }

    /// Names, ids and sizes of what is loaded.
    pub(super) fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.bpf.programs()
    }

    /// Attaches the delivery program to the agent's own cgroup, for as long as the link is kept.
    pub(super) fn attach_agent(&mut self, cgroup: &File) -> Result<FdLink, CaptureError> {
        let attached = self.attach(programs::AGENT_SOCK_OPS, cgroup);
        attached.map_err(|(what, why)| CaptureError::Load { what, why })
    }

    /// Attaches the program that notes probes to the kubelet's cgroup, for as long as the link is kept.
    pub(super) fn attach_kubelet(&mut self, cgroup: &File) -> Result<FdLink, CaptureError> {
        let attached = self.attach(programs::KUBELET_SOCK_OPS, cgroup);
        attached.map_err(|(what, why)| CaptureError::Load { what, why })
    }

    /// Attaches to a pod, `sk_lookup` first and `connect` last, pinning each link in `dir`. Returns the links in the order in which they
    /// were attached; on an error those attached so far are detached again.
    pub(super) fn attach_pod(
        &mut self,
        pod: PodConst,
        netns: &File,
        cgroup: &File,
        dir: &Path,
    ) -> Result<PodLinks, Refused> {
        let mut links = PodLinks::default();
        let attached = attach_lookup(&self.maps, pod, netns)
            .and_then(|link| links.pin(link, dir, "sk_lookup"))
            .and_then(|()| {
                CGROUP_HOOKS.iter().try_for_each(|(hook, program)| {
                    self.attach_pinned(program, cgroup, &mut links, dir, hook)
                })
            });
        match attached {
            Ok(()) => Ok(links),
            Err(refused) => {
                links.detach();
                Err(refused)
            }
        }
    }

    fn attach_pinned(
        &mut self,
        name: &str,
        cgroup: &File,
        links: &mut PodLinks,
        dir: &Path,
        hook: &'static str,
    ) -> Result<(), Refused> {
        match self.bpf.program(name) {
            // aya gives no descriptor of such a link away, so it cannot pin it.
            Some(Program::CgroupSockopt(program)) => {
                let refused = |why: &dyn std::error::Error| (format!("program {name}"), causes(why));
                let fd = program.fd().map_err(|e| refused(&e))?.as_fd();
                let link = link_set_option(fd, cgroup.as_fd()).map_err(|e| refused(&e))?;
                links.pin_raw(link, dir, hook)
            }
            _ => links.pin(self.attach(name, cgroup)?, dir, hook),
        }
    }

    fn attach(&mut self, name: &str, cgroup: &File) -> Result<FdLink, Refused> {
        let refused = |why: String| (format!("program {name}"), why);
        let program = self.bpf.program_mut(name);
        let program = program.ok_or_else(|| refused("it is not in the object".into()))?;
        // Links are many by nature; any flag is EINVAL on some kernels.
        let mode = CgroupAttachMode::Single;
        let link = match program {
            Program::CgroupSockAddr(program) => link_sock_addr(program, cgroup, mode),
            Program::SockOps(program) => link_sock_ops(program, cgroup, mode),
            _ => return Err(refused("it is of another type".into())),
        };
        link.map_err(|error| refused(causes(&*error)))
    }
}

type LinkError = Box<dyn std::error::Error + Send + Sync>;

fn link_sock_addr(
    program: &mut CgroupSockAddr,
    cgroup: &File,
    mode: CgroupAttachMode,
) -> Result<FdLink, LinkError> {
    let id = program.attach(cgroup, mode)?;
    Ok(program.take_link(id)?.try_into()?)
}

fn link_sock_ops(program: &mut SockOps, cgroup: &File, mode: CgroupAttachMode) -> Result<FdLink, LinkError> {
    let id = program.attach(cgroup, mode)?;
    Ok(program.take_link(id)?.try_into()?)
}

/// Loads a pod's own instance of `sk_lookup` over the shared maps and attaches it. The link keeps it.
fn attach_lookup(pins: &Path, pod: PodConst, netns: &File) -> Result<FdLink, Refused> {
    let refused = |error: LinkError| (format!("program {}", programs::SK_LOOKUP), causes(&*error));
    let load = || -> Result<FdLink, LinkError> {
        let object = embedded::POD.ok_or("it is not built in")?;
        let mut bpf = loader(Some(pins))
            .override_global(programs::POD_CONST, &pod, true)
            .load(object)?;
        let program = bpf
            .program_mut(programs::SK_LOOKUP)
            .ok_or("it is not in the object")?;
        let program: &mut SkLookup = program.try_into()?;
        program.load()?;
        let id = program.attach(netns)?;
        Ok(program.take_link(id)?.into())
    };
    load().map_err(refused)
}

fn loader(pins: Option<&Path>) -> EbpfLoader<'static> {
    let mut loader = EbpfLoader::new();
    // Nothing in the objects is relocated against the kernel's types.
    loader.btf(None).verifier_log_level(VerifierLogLevel::STATS);
    #[cfg(feature = "mutants")]
    loader.override_global(mutation::GLOBAL, mutation::number(), true);
    if let Some(pins) = pins {
        for name in maps::ALL {
            loader.map_pin_path(name, pins.join(name));
        }
    }
    loader
}

fn map_data(map: &Map) -> Option<&MapData> {
    match map {
        Map::HashMap(data)
        | Map::LpmTrie(data)
        | Map::SockMap(data)
        | Map::PerCpuArray(data)
        | Map::SkStorage(data)
        | Map::Array(data)
        | Map::RingBuf(data) => Some(data),
        _ => None,
    }
}

/// The pinned links of a pod, in the order in which they were attached. Dropped without [`detach`](Self::detach) they stay pinned,
/// and the pod captured.
#[derive(Debug, Default)]
pub(super) struct PodLinks(Vec<PodLink>);

#[derive(Debug)]
struct PodLink {
    hook: &'static str,
    path: PathBuf,
    link: PinnedLink,
}

impl PodLinks {
    fn pin(&mut self, link: FdLink, dir: &Path, hook: &'static str) -> Result<(), Refused> {
        let path = dir.join(hook);
        let pinned = link.pin(&path);
        let link = pinned.map_err(|error| (format!("the pin {}", path.display()), causes(&error)))?;
        self.0.push(PodLink { hook, path, link });
        Ok(())
    }

    fn pin_raw(&mut self, link: OwnedFd, dir: &Path, hook: &'static str) -> Result<(), Refused> {
        let path = dir.join(hook);
        let refused = |why: &dyn std::error::Error| (format!("the pin {}", path.display()), causes(why));
        pin_object(link.as_fd(), &path).map_err(|e| refused(&e))?;
        let link = PinnedLink::from_pin(&path).map_err(|e| refused(&e))?;
        self.0.push(PodLink { hook, path, link });
        Ok(())
    }

    /// Detaches, last attached first: `connect` before `sk_lookup`.
    pub(super) fn detach(&mut self) {
        while let Some(PodLink { hook, link, .. }) = self.0.pop() {
            if let Err(error) = link.unpin() {
                tracing::warn!(hook, %error, "a pin of ours was gone already");
            }
        }
    }

    /// Hook, id of the link, id of its program.
    pub(super) fn describe(&self) -> Vec<(&'static str, u32, u32)> {
        let ids = |link: &PodLink| {
            // `PinnedLink` lends nothing of its descriptor: ask by the pin.
            let info = FdLink::from(PinnedLink::from_pin(&link.path).ok()?).info().ok()?;
            Some((link.hook, info.id(), info.program_id()))
        };
        self.0.iter().filter_map(ids).collect()
    }
}
