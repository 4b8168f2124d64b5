//! The BPF objects: embedded, loaded, attached. Owns the loaded programs of the node; hands out descriptors of the maps.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapInfo};
use aya::programs::{Program, SkLookup};
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use aya_log::EbpfLogger;
#[cfg(feature = "mutants")]
use mesh_common::mutation;
use mesh_common::{NodeConst, PodConst, maps, programs};

use super::debug_log::Forward;
use super::error::{CaptureError, causes};
use super::links::{CGROUP_HOOKS, Hook, PodLinks, SK_LOOKUP, Target};
use super::sys::link_create;

/// `enum bpf_attach_type` of `linux/bpf.h`.
const BPF_CGROUP_SOCK_OPS: u32 = 3;
const BPF_CGROUP_INET4_CONNECT: u32 = 10;
const BPF_CGROUP_INET6_CONNECT: u32 = 11;

mod embedded {
    include!(concat!(env!("OUT_DIR"), "/objects.rs"));
}

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

    /// Whether the maps pinned in `pins` are those that the objects declare. Reads them only.
    ///
    /// # Errors
    /// Names the map that is missing or is otherwise.
    pub(super) fn fits(pins: &Path) -> Result<(), Refused> {
        let refused = |what: &str, why: String| (what.to_owned(), why);
        let object =
            embedded::NODE.ok_or_else(|| refused("the node's object", "it is not built in".into()))?;
        let object = aya_obj::Object::parse(object).map_err(|e| refused("the node's object", causes(&e)))?;
        for name in maps::ALL {
            // One that the node's programs do not use is not in their object.
            let Some(declared) = object.maps.get(name) else {
                continue;
            };
            let pinned = MapInfo::from_pin(pins.join(name)).map_err(|e| refused(name, causes(&e)))?;
            let kind = pinned.map_type().map_err(|e| refused(name, causes(&e)))?;
            let is = (
                kind as u32,
                pinned.key_size(),
                pinned.value_size(),
                pinned.max_entries(),
            );
            let wanted = (
                declared.map_type(),
                declared.key_size(),
                declared.value_size(),
                declared.max_entries(),
            );
            if is != wanted {
                return Err(refused(
                    name,
                    format!("(kind, key, value, elements) are {is:?}, and {wanted:?} here"),
                ));
            }
        }
        Ok(())
    }

    /// Attaches the delivery program to the agent's own cgroup, for as long as the link is kept.
    pub(super) fn attach_agent(&mut self, cgroup: &File) -> Result<OwnedFd, CaptureError> {
        self.attach_sock_ops(programs::AGENT_SOCK_OPS, cgroup)
    }

    /// Attaches the program that notes probes to the kubelet's own cgroup, for as long as the link is kept.
    pub(super) fn attach_kubelet(&self, cgroup: &File) -> Result<Vec<OwnedFd>, CaptureError> {
        let noting = self.attach_sock_ops(programs::KUBELET_SOCK_OPS, cgroup)?;
        Ok(vec![noting])
    }

    /// The same for a cgroup that the kubelet shares with others. What notes comes before what marks.
    pub(super) fn attach_shared_kubelet(&self, cgroup: &File) -> Result<Vec<OwnedFd>, CaptureError> {
        let noting = self.attach_sock_ops(programs::SHARED_SOCK_OPS, cgroup)?;
        let over6 = self.attach_to(programs::KUBELET_CONNECT6, cgroup, BPF_CGROUP_INET6_CONNECT)?;
        let over4 = self.attach_to(programs::KUBELET_CONNECT4, cgroup, BPF_CGROUP_INET4_CONNECT)?;
        Ok(vec![noting, over6, over4])
    }

    fn attach_sock_ops(&self, name: &str, cgroup: &File) -> Result<OwnedFd, CaptureError> {
        self.attach_to(name, cgroup, BPF_CGROUP_SOCK_OPS)
    }

    fn attach_to(&self, name: &str, cgroup: &File, attach_type: u32) -> Result<OwnedFd, CaptureError> {
        let load = |(what, why)| CaptureError::Load { what, why };
        let program = self.program(name).map_err(load)?;
        link_create(program, cgroup.as_fd(), attach_type)
            .map_err(CaptureError::load(format!("program {name}")))
    }

    /// Attaches to a pod, `sk_lookup` first and `connect` last, pinning each link in `dir`. Links that an earlier agent has left there
    /// go on with our programs. On an error those that are new are detached again.
    pub(super) fn attach_pod(
        &self,
        pod: PodConst,
        netns: Target<'_>,
        cgroup: Target<'_>,
        dir: &Path,
    ) -> Result<PodLinks, Refused> {
        let mut links = PodLinks::new(dir);
        let attached = self.put_all(pod, netns, cgroup, &mut links);
        match attached {
            Ok(()) => Ok(links),
            Err(refused) => {
                links.detach_new();
                Err(refused)
            }
        }
    }

    fn put_all(
        &self,
        pod: PodConst,
        netns: Target<'_>,
        cgroup: Target<'_>,
        links: &mut PodLinks,
    ) -> Result<(), Refused> {
        // The links keep the programs.
        let lookup = load_lookup(&self.maps, pod)?;
        put(links, SK_LOOKUP, program_of(&lookup, SK_LOOKUP.program)?, netns)?;
        CGROUP_HOOKS
            .iter()
            .try_for_each(|hook| put(links, *hook, self.program(hook.program)?, cgroup))
    }

    fn program(&self, name: &str) -> Result<BorrowedFd<'_>, Refused> {
        program_of(&self.bpf, name)
    }
}

fn program_of<'a>(bpf: &'a Ebpf, name: &str) -> Result<BorrowedFd<'a>, Refused> {
    let refused = |why: String| (format!("program {name}"), why);
    let program = bpf
        .program(name)
        .ok_or_else(|| refused("it is not in the object".into()))?;
    Ok(program.fd().map_err(|e| refused(causes(&e)))?.as_fd())
}

fn put(links: &mut PodLinks, hook: Hook, program: BorrowedFd<'_>, target: Target<'_>) -> Result<(), Refused> {
    links.put(hook, program, target).map_err(|error| {
        (
            format!("program {} at {}", hook.program, hook.name),
            causes(&error),
        )
    })
}

type LoadError = Box<dyn std::error::Error + Send + Sync>;

/// Loads a pod's own instance of `sk_lookup` over the shared maps.
fn load_lookup(pins: &Path, pod: PodConst) -> Result<Ebpf, Refused> {
    let load = || -> Result<Ebpf, LoadError> {
        let object = embedded::POD.ok_or("it is not built in")?;
        let mut bpf = loader(Some(pins))
            .override_global(programs::POD_CONST, &pod, true)
            .load(object)?;
        let program = bpf
            .program_mut(programs::SK_LOOKUP)
            .ok_or("it is not in the object")?;
        let program: &mut SkLookup = program.try_into()?;
        program.load()?;
        Ok(bpf)
    };
    load().map_err(|error| (format!("program {}", programs::SK_LOOKUP), causes(&*error)))
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
