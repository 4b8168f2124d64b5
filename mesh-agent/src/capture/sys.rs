//! What has no safe wrapper elsewhere: BPF map elements by shared reference, links and queries that aya does not offer, the netns cookie,
//! and descriptors in the reactor.
//! The only unsafe code of the capture module.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use aya::Pod;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_LINK_DETACH: libc::c_int = 34;

const BPF_LINK_TYPE_CGROUP: u32 = 3;
const BPF_LINK_TYPE_NETNS: u32 = 5;
const BPF_F_QUERY_EFFECTIVE: u32 = 1;

/// The kernel's own "not supported", which leaks to user space from some map operations.
const ENOTSUPP: i32 = 524;

/// The part of `union bpf_attr` that the map element commands read (`linux/bpf.h`).
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// A BPF map, by descriptor. The kernel synchronises: everything goes by shared reference, from any thread.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    fd: OwnedFd,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// A table over `fd`, whose key and value sizes must be those of `K` and `V` (the caller knows: they are in `mesh-common`).
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            types: PhantomData,
        }
    }

    /// Writes an element.
    pub(super) fn insert(&self, key: &K, value: &V) -> io::Result<()> {
        self.call(
            BPF_MAP_UPDATE_ELEM,
            std::ptr::from_ref(key) as u64,
            std::ptr::from_ref(value) as u64,
        )
    }

    /// Removes an element; true where there was one.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        found(self.call(BPF_MAP_DELETE_ELEM, std::ptr::from_ref(key) as u64, 0)).map(|hit| hit.is_some())
    }

    /// Reads an element.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(BPF_MAP_LOOKUP_ELEM, key)
    }

    /// Reads an element and removes it, in one step where the kernel can.
    pub(super) fn take(&self, key: &K) -> io::Result<Option<V>> {
        match self.read(BPF_MAP_LOOKUP_AND_DELETE_ELEM, key) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EINVAL | ENOTSUPP)) => {
                let value = self.get(key)?;
                self.remove(key)?;
                Ok(value)
            }
            other => other,
        }
    }

    /// All keys, at about this moment. Elements that come and go meanwhile may be missed or met twice.
    pub(super) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys = Vec::new();
        let mut last: Option<K> = None;
        loop {
            let mut next = MaybeUninit::<K>::uninit();
            let from = last.as_ref().map_or(0, |key| std::ptr::from_ref(key) as u64);
            if found(self.call(BPF_MAP_GET_NEXT_KEY, from, next.as_mut_ptr() as u64))?.is_none() {
                return Ok(keys);
            }
            // SAFETY: the call succeeded, so the kernel wrote a whole key; every bit pattern of a `Pod` is valid.
            let key = unsafe { next.assume_init() };
            keys.push(key);
            last = Some(key);
        }
    }

    fn read(&self, command: libc::c_int, key: &K) -> io::Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        let done = self.call(command, std::ptr::from_ref(key) as u64, value.as_mut_ptr() as u64);
        // SAFETY: the call succeeded, so the kernel wrote a whole value; every bit pattern of a `Pod` is valid.
        Ok(found(done)?.map(|()| unsafe { value.assume_init() }))
    }

    /// `key` and `value` are addresses of a `K` and of a `V` (of a second `K` for the next-key command), or 0.
    fn call(&self, command: libc::c_int, key: u64, value: u64) -> io::Result<()> {
        let attr = ElementAttr {
            map_fd: self.fd.as_raw_fd() as u32,
            pad: 0,
            key,
            value,
            flags: 0,
        };
        // SAFETY: the attribute lives through the call, and its pointers are to memory of the map's key and value sizes.
        let done =
            unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<ElementAttr>()) };
        if done < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}

impl<K, V> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn found(done: io::Result<()>) -> io::Result<Option<()>> {
    match done {
        Ok(()) => Ok(Some(())),
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The part of `union bpf_attr` that BPF_LINK_CREATE reads.
#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
}

/// The part of `union bpf_attr` that BPF_OBJ_PIN reads.
#[repr(C)]
struct PinAttr {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

/// The part of `union bpf_attr` that BPF_PROG_QUERY reads and writes.
#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    pad: u32,
}

/// bpf(2) with an attribute of which the kernel reads `size_of::<A>()` bytes.
fn bpf<A>(command: libc::c_int, attr: &mut A) -> io::Result<libc::c_long> {
    // SAFETY: the attribute lives through the call; the callers see to its pointers.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(done)
    }
}

/// The part of `union bpf_attr` that BPF_LINK_UPDATE reads.
#[repr(C)]
struct UpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// The part of `union bpf_attr` that BPF_OBJ_GET_INFO_BY_FD reads and writes.
#[repr(C)]
struct InfoAttr {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// Attaches a loaded program to a cgroup or a network namespace, for as long as the link is open or pinned. Links are many by nature;
/// any flag is EINVAL on some kernels.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: target.as_raw_fd() as u32,
        attach_type,
        flags: 0,
    };
    new_descriptor(bpf(BPF_LINK_CREATE, &mut attr)?)
}

/// Exchanges the program of a link, in one step: at no moment does none run.
///
/// # Errors
/// ENOLINK when what the link was attached to is gone; EINVAL when the program is of another kind.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = UpdateAttr {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        flags: 0,
        old_prog_fd: 0,
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Detaches a link from its hook at once, whoever else has it open or pinned.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = link.as_raw_fd() as u32;
    bpf(BPF_LINK_DETACH, &mut attr).map(drop)
}

/// What a link is attached to. Zero in place of an id: to nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LinkTarget {
    /// The cgroup with this id (the inode of its directory).
    Cgroup(u64),
    /// The network namespace with this inode.
    Netns(u64),
}

/// What the kernel tells of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Its id.
    pub(super) id: u32,
    /// The id of its program.
    pub(super) program: u32,
    /// What it is attached to, where that is of a kind that we know, and at which hook (`enum bpf_attach_type`).
    pub(super) place: Option<(LinkTarget, u32)>,
}

/// Asks the kernel about a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    // `struct bpf_link_info`: type, id, program, four bytes of padding, then by type. Longer than the kernel's: it wants zeros there.
    let mut words = [0u32; 32];
    let mut attr = InfoAttr {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of_val(&words) as u32,
        info: words.as_mut_ptr() as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    let [kind, id, program, _, first, second, third, ..] = words;
    let place = match kind {
        // A u64 and a u32.
        BPF_LINK_TYPE_CGROUP => {
            let [a, b, c, d] = first.to_ne_bytes();
            let [e, f, g, h] = second.to_ne_bytes();
            Some((
                LinkTarget::Cgroup(u64::from_ne_bytes([a, b, c, d, e, f, g, h])),
                third,
            ))
        }
        BPF_LINK_TYPE_NETNS => Some((LinkTarget::Netns(u64::from(first)), second)),
        _ => None,
    };
    Ok(LinkInfo { id, program, place })
}

/// Opens the BPF object that is pinned at `path`.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: 0,
        file_flags: 0,
    };
    new_descriptor(bpf(BPF_OBJ_GET, &mut attr)?)
}

/// Pins a BPF object at `path`, on a bpffs.
pub(super) fn pin_object(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = PinAttr {
        pathname: path.as_ptr() as u64,
        bpf_fd: object.as_raw_fd() as u32,
        file_flags: 0,
    };
    bpf(BPF_OBJ_PIN, &mut attr).map(drop)
}

/// The descriptor that a command of bpf(2) has made.
fn new_descriptor(made: libc::c_long) -> io::Result<OwnedFd> {
    let fd = libc::c_int::try_from(made).map_err(io::Error::other)?;
    // SAFETY: the callers pass what a command that makes a descriptor returned: a new one, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Ids of the programs that run at a hook of a cgroup (`effective`: those of its ancestors too, in the order in which they run) or of a
/// network namespace. More than 64 are not shown.
pub(super) fn attached_programs(
    target: BorrowedFd<'_>,
    attach_type: u32,
    effective: bool,
) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        target_fd: target.as_raw_fd() as u32,
        attach_type,
        query_flags: if effective { BPF_F_QUERY_EFFECTIVE } else { 0 },
        attach_flags: 0,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        pad: 0,
    };
    match bpf(BPF_PROG_QUERY, &mut attr) {
        // ENOSPC: the kernel filled what there is room for.
        Err(e) if e.raw_os_error() != Some(libc::ENOSPC) => return Err(e),
        _ => {}
    }
    let found = (attr.prog_cnt as usize).min(ids.len());
    Ok(ids.into_iter().take(found).collect())
}

/// Cookie of the network namespace that `socket` lives in (`SO_NETNS_COOKIE`, Linux 5.14).
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: both pointers are to live values of the sizes given.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(cookie)
    }
}

/// Enters a descriptor into this runtime's reactor, to wait until it is readable.
pub(super) fn async_readable(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the `Arc` keeps the descriptor open, and the same, for as long as the `AsyncFd` lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Enters a ring buffer into this runtime's reactor, to wait until there is something to read.
pub(super) fn async_ring(ring: RingBuf<MapData>) -> io::Result<AsyncFd<RingBuf<MapData>>> {
    // SAFETY: the ring buffer owns its map's descriptor, and never exchanges or closes it while it lives.
    Ok(unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }?)
}
