//! Sandboxes that the CNI plugin has announced: their network namespaces, before any process is in them. Kept until a process of the pod
//! shows the same, and as files over restarts, so that a pod whose sandbox is being made is not lost with its agent. Captures nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::Notify;
use tracing::warn;

/// How long a sandbox is waited for that was announced and in which no process has appeared.
const LIFETIME: Duration = Duration::from_secs(300);

/// Why an announcement does not count.
#[derive(Debug, Error)]
pub enum AnnounceError {
    /// What was given is no network namespace.
    #[error("{path} is no network namespace{}", .source.as_ref().map(|e| format!(": {e}")).unwrap_or_default())]
    NotANetns {
        /// Its path on the host.
        path: PathBuf,
        /// What the kernel says.
        source: Option<io::Error>,
    },
    /// It is the node's own.
    #[error("{0} is the node's own network namespace: such pods are never captured")]
    Host(PathBuf),
    /// The container's name cannot be that of a file.
    #[error("{0:?} is no container's id")]
    Container(String),
}

/// What the plugin says of a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announcement {
    /// The Pod's `metadata.uid`.
    pub pod: String,
    /// The sandbox's id at the container runtime (CNI_CONTAINERID).
    pub container: String,
    /// Path of its network namespace on the host (CNI_NETNS).
    pub netns: PathBuf,
    /// The addresses that the plugins before have given it.
    pub addresses: Vec<IpAddr>,
}

/// A sandbox that is waited for.
#[derive(Clone, Debug)]
pub(super) struct Awaited {
    /// Inode of its network namespace.
    pub(super) inode: u64,
    /// The namespace, open for as long as no process is known to be in it.
    pub(super) netns: Option<Arc<File>>,
}

#[derive(Debug)]
struct Entry {
    said: Announcement,
    awaited: Awaited,
    since: Instant,
}

/// All announcements, for all who ask. The latest of a pod counts.
#[derive(Debug, Default)]
pub struct Announcements {
    entries: Mutex<BTreeMap<String, Entry>>,
    /// Where they outlive the agent; `None` where they do not.
    directory: Option<PathBuf>,
    news: Notify,
}

impl Announcements {
    /// Those that are kept in `directory` (made where it is missing). Those whose namespace is not to be found are not awaited any more.
    pub fn kept_in(directory: PathBuf, now: Instant) -> Self {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
        let entries = made.and_then(|()| read(&directory, now)).unwrap_or_else(|error| {
            warn!(%error, directory = %directory.display(), "announced sandboxes of an earlier agent cannot be read");
            BTreeMap::new()
        });
        Self {
            entries: Mutex::new(entries),
            directory: Some(directory),
            news: Notify::new(),
        }
    }

    /// From now on the pod's sandbox is the one of which the network namespace is `netns`. Returns the namespace's inode.
    ///
    /// # Errors
    /// When it is no namespace of a pod's.
    pub fn announce(&self, said: Announcement, netns: File, now: Instant) -> Result<u64, AnnounceError> {
        if !is_file_name(&said.container) {
            return Err(AnnounceError::Container(said.container));
        }
        let inode = inode_of(&said.netns, &netns)?;
        let awaited = Awaited {
            inode,
            netns: Some(Arc::new(netns)),
        };
        if let Some(directory) = &self.directory
            && let Err(error) = write(directory, &said)
        {
            // Only a restart within the next moments would miss it.
            warn!(%error, pod = said.pod, "an announced sandbox cannot be kept for the agent's successor");
        }
        let entry = Entry {
            awaited,
            since: now,
            said,
        };
        let before = self.lock().insert(entry.said.pod.clone(), entry);
        if let Some(before) = before {
            self.forget_file(&before.said.container, true);
        }
        self.news.notify_one();
        Ok(inode)
    }

    /// The sandbox of this container is gone.
    pub fn withdraw(&self, container: &str) {
        self.lock().retain(|_, entry| entry.said.container != container);
        self.forget_file(container, false);
        self.news.notify_one();
    }

    /// No sandboxes exist but those of these containers.
    pub fn keep_only(&self, containers: &BTreeSet<String>) {
        let mut gone = Vec::new();
        self.lock().retain(|_, entry| {
            let stays = containers.contains(&entry.said.container);
            if !stays {
                gone.push(entry.said.container.clone());
            }
            stays
        });
        for container in gone {
            self.forget_file(&container, false);
        }
        self.news.notify_one();
    }

    /// Returns when something was announced or withdrawn since the last call returned. For one caller at a time.
    pub async fn changed(&self) {
        self.news.notified().await;
    }

    /// How many sandboxes are waited for.
    pub fn awaited(&self) -> usize {
        let waits = |entry: &&Entry| entry.awaited.netns.is_some();
        self.lock().values().filter(waits).count()
    }

    /// What is known of the sandbox of the pod with this uid.
    pub(super) fn of(&self, pod: &str) -> Option<Awaited> {
        self.lock().get(pod).map(|entry| entry.awaited.clone())
    }

    /// The addresses that its sandbox was given.
    pub(super) fn addresses(&self, pod: &str) -> Vec<IpAddr> {
        let entries = self.lock();
        let known = entries.get(pod).map(|entry| entry.said.addresses.clone());
        known.unwrap_or_default()
    }

    /// As if the plugin had announced a namespace with this inode.
    #[cfg(test)]
    pub(super) fn insert(&self, pod: &str, inode: u64, netns: File) {
        let entry = Entry {
            awaited: Awaited {
                inode,
                netns: Some(Arc::new(netns)),
            },
            since: Instant::now(),
            said: Announcement {
                pod: pod.to_owned(),
                container: pod.to_owned(),
                netns: PathBuf::new(),
                addresses: vec![IpAddr::from([10, 1, 0, 9])],
            },
        };
        self.lock().insert(pod.to_owned(), entry);
    }

    /// A process of the pod is in the namespace with this inode: nothing is waited for any more, and the namespace may go when it likes.
    pub(super) fn confirm(&self, pod: &str, inode: u64) {
        let mut entries = self.lock();
        if let Some(entry) = entries.get_mut(pod).filter(|entry| entry.awaited.inode == inode) {
            entry.awaited.netns = None;
        }
    }

    /// Gives up on sandboxes in which nothing has appeared for [`LIFETIME`], and forgets those of pods that have come and are not
    /// `wanted` any more.
    pub(super) fn expire(&self, wanted: impl Fn(&str) -> bool, now: Instant) {
        let mut over = Vec::new();
        self.lock().retain(|pod, entry| {
            let waits = entry.awaited.netns.is_some();
            let stays = if waits {
                now.saturating_duration_since(entry.since) < LIFETIME
            } else {
                wanted(pod)
            };
            if !stays {
                over.push((entry.said.clone(), waits));
            }
            stays
        });
        for (said, waited) in over {
            if waited {
                warn!(
                    pod = said.pod,
                    container = said.container,
                    "no process has appeared in a sandbox that was announced: given up"
                );
            }
            self.forget_file(&said.container, false);
        }
    }

    /// `unless_current`: not if some pod's announcement bears that container's name.
    fn forget_file(&self, container: &str, unless_current: bool) {
        let in_use = || {
            self.lock()
                .values()
                .any(|entry| entry.said.container == container)
        };
        if !is_file_name(container) || unless_current && in_use() {
            return;
        }
        if let Some(directory) = &self.directory
            && let Err(error) = fs::remove_file(file_of(directory, container))
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(%error, container, "an announcement that is over cannot be removed");
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_file_name(container: &str) -> bool {
    let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    (1..=128).contains(&container.len()) && !container.starts_with('.') && container.bytes().all(good)
}

fn file_of(directory: &Path, container: &str) -> PathBuf {
    directory.join(format!("{container}.json"))
}

fn inode_of(path: &Path, netns: &File) -> Result<u64, AnnounceError> {
    let wrong = |source| AnnounceError::NotANetns {
        path: path.to_owned(),
        source,
    };
    let kind = fstatfs(netns).map_err(|errno| wrong(Some(errno.into())))?;
    if kind.filesystem_type() != NSFS_MAGIC {
        return Err(wrong(None));
    }
    let inode = netns.metadata().map_err(|error| wrong(Some(error)))?.ino();
    let own = fs::metadata("/proc/thread-self/ns/net").map_err(|error| wrong(Some(error)))?;
    if own.ino() == inode {
        return Err(AnnounceError::Host(path.to_owned()));
    }
    Ok(inode)
}

/// Under another name first: a file is whole or not there.
fn write(directory: &Path, said: &Announcement) -> io::Result<()> {
    let path = file_of(directory, &said.container);
    let fresh = path.with_extension("new");
    fs::write(&fresh, serde_json::to_vec(said)?)?;
    fs::rename(&fresh, &path)
}

fn read(directory: &Path, now: Instant) -> io::Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    for file in fs::read_dir(directory)? {
        let path = file?.path();
        match reopened(&path) {
            Ok((said, awaited)) => {
                let entry = Entry {
                    awaited,
                    since: now,
                    said,
                };
                entries.insert(entry.said.pod.clone(), entry);
            }
            // The agent went while it wrote.
            Err(_) => drop(fs::remove_file(&path)),
        }
    }
    Ok(entries)
}

fn reopened(path: &Path) -> io::Result<(Announcement, Awaited)> {
    let said: Announcement = serde_json::from_slice(&fs::read(path)?)?;
    // A path of the runtime's may lead nowhere from here, or its sandbox is gone. The addresses are good for as long as the pod is.
    let found = File::open(&said.netns).ok().and_then(|netns| {
        let inode = inode_of(&said.netns, &netns).ok()?;
        Some((inode, Arc::new(netns)))
    });
    let awaited = Awaited {
        inode: found.as_ref().map_or(0, |(inode, _)| *inode),
        netns: found.map(|(_, netns)| netns),
    };
    Ok((said, awaited))
}

#[cfg(test)]
mod tests;
