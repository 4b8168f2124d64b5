//! What has no safe wrapper elsewhere: BPF map elements by shared reference, the netns cookie, and descriptors in the reactor.
//! The only unsafe code of the capture module.

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use aya::Pod;
use aya::maps::{MapData, RingBuf};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_int = 4;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;

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

    /// Reads an element.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        self.read(BPF_MAP_LOOKUP_ELEM, key)
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
