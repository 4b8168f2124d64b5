//! The plugin's files on the node: the binary, its credentials and its table, and last the network configuration that names it. Keeps them
//! as they must be for as long as the agent runs, and removes them: the configuration first, so that no runtime looks for what is gone.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::json;
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::call::Entry;
use super::chain::{self, ChainError};
use super::table::{Table, write_whole};
use super::{PLUGIN, socket_beside};
use crate::settings::{Cni, Settings};
use crate::state::SnapshotCell;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Where a pod finds its credentials.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Why the plugin is not installed.
#[derive(Debug, Error)]
pub enum InstallError {
    /// A file cannot be had.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// There is nothing to stand behind.
    #[error("{0} holds no network configuration yet: the cluster's own CNI puts one there")]
    Nothing(PathBuf),
    /// The cluster's configuration cannot be chained.
    #[error("the plugin cannot stand behind {path}: {why}")]
    Chain {
        /// The cluster's file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

fn failed<'p>(action: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> InstallError + use<'p> {
    move |source| InstallError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// How the installation stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InstallationStatus {
    /// Not looked at yet.
    Unknown,
    /// The runtime calls the plugin by this file.
    Installed(PathBuf),
    /// It is not installed, for this reason: pods are found after they have begun.
    Missing(String),
}

/// Where what is installed.
#[derive(Clone, Debug)]
pub struct Installation {
    cni: Cni,
    socket: PathBuf,
    /// What is kept for the plugin.
    directory: PathBuf,
    /// Credentials that are there already.
    kubeconfig: Option<PathBuf>,
    in_cluster: bool,
    status: Arc<Mutex<InstallationStatus>>,
    /// The binary as it was put there: inode, length, and when it was changed.
    binary: Arc<Mutex<Option<(u64, u64, i64)>>>,
    /// What is wrong with the credentials.
    told: Arc<Mutex<Option<String>>>,
}

impl Installation {
    /// Under these settings; `None` where they want none.
    pub fn of(settings: &Settings) -> Option<Self> {
        let kubernetes = settings.kubernetes.as_ref();
        // As the source has it.
        let named = || std::env::split_paths(&std::env::var_os("KUBECONFIG")?).next();
        let kubeconfig = kubernetes.and_then(|kubernetes| kubernetes.kubeconfig.clone().or_else(named));
        Some(Self {
            cni: settings.cni.clone()?,
            socket: socket_beside(&settings.admin_socket),
            directory: settings.state_dir.join("cni"),
            in_cluster: kubernetes.is_some() && kubeconfig.is_none(),
            kubeconfig,
            status: Arc::new(Mutex::new(InstallationStatus::Unknown)),
            binary: Arc::default(),
            told: Arc::default(),
        })
    }

    /// How it stands.
    pub fn status(&self) -> InstallationStatus {
        self.status.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn entry(&self) -> Entry {
        let written = self.in_cluster.then(|| self.directory.join("kubeconfig"));
        Entry {
            kind: PLUGIN.to_owned(),
            socket: self.socket.clone(),
            kubeconfig: self.kubeconfig.clone().or(written),
            table: Some(self.table()),
            exclude_namespaces: self.cni.exclude_namespaces.clone(),
            wait_ms: u64::try_from(self.cni.wait.as_millis()).unwrap_or(u64::MAX),
        }
    }

    fn table(&self) -> PathBuf {
        self.directory.join("namespaces.json")
    }

    /// Puts in place what is missing or out of date. Returns the file by which runtimes call the plugin.
    fn ensure(&self) -> Result<PathBuf, InstallError> {
        self.binary()?;
        if self.in_cluster {
            self.complain(self.credentials());
        }
        self.configuration()
    }

    fn binary(&self) -> Result<(), InstallError> {
        let path = self.cni.bin_dir.join(PLUGIN);
        let seen = || {
            let file = fs::symlink_metadata(&path).ok()?;
            Some((file.ino(), file.len(), file.ctime()))
        };
        let mut known = self.binary.lock().unwrap_or_else(PoisonError::into_inner);
        // Not read again and again: it is large.
        if known.is_none() || *known != seen() {
            let own = Path::new("/proc/self/exe");
            let content = fs::read(own).map_err(failed("read", own))?;
            put(&path, &content, 0o755)?;
            *known = seen();
        }
        Ok(())
    }

    /// Without credentials the plugin is as good as before while there is an agent. Told once.
    fn complain(&self, credentials: Result<(), InstallError>) {
        let now = credentials.err().map(|error| error.to_string());
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = now.as_ref().filter(|_| *told != now) {
            warn!(
                error,
                "the CNI plugin cannot ask the API server when the agent is away"
            );
        }
        *told = now;
    }

    /// What a pod is given by its kubelet, for the plugin, which runs outside of pods. The token is renewed by the kubelet.
    fn credentials(&self) -> Result<(), InstallError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)
            .map_err(failed("make", &self.directory))?;
        let given = Path::new(SERVICE_ACCOUNT);
        let (token, ca) = (given.join("token"), given.join("ca.crt"));
        let token = fs::read_to_string(&token).map_err(failed("read", &token))?;
        let ca_content = fs::read(&ca).map_err(failed("read", &ca))?;
        let ca = self.directory.join("ca.crt");
        put(&ca, &ca_content, 0o644)?;
        let variable = |name: &str| std::env::var(name).unwrap_or_default();
        let (host, port) = (
            variable("KUBERNETES_SERVICE_HOST"),
            variable("KUBERNETES_SERVICE_PORT"),
        );
        let host = if host.contains(':') {
            format!("[{host}]")
        } else {
            host
        };
        let document = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "cluster",
            "clusters": [{ "name": "cluster", "cluster": { "server": format!("https://{host}:{port}"), "certificate-authority": ca } }],
            "users": [{ "name": "mesh-agent", "user": { "token": token.trim() } }],
            "contexts": [{ "name": "cluster", "context": { "cluster": "cluster", "user": "mesh-agent" } }],
        });
        put(
            &self.directory.join("kubeconfig"),
            document.to_string().as_bytes(),
            0o600,
        )
    }

    fn configuration(&self) -> Result<PathBuf, InstallError> {
        let directory = &self.cni.conf_dir;
        let names = configurations(directory)?;
        let primary = chain::primary(names.iter().map(String::as_str));
        let ours = primary.map(chain::name_beside);
        let made = primary.map(|primary| {
            let path = directory.join(primary);
            let content = fs::read(&path).map_err(failed("read", &path))?;
            let chained = chain::with_entry(&content, &self.entry());
            chained.map_err(|why: ChainError| InstallError::Chain {
                path,
                why: why.to_string(),
            })
        });
        // Behind which nothing stands any more: the cluster's CNI has taken another name, or has gone.
        for stale in names
            .iter()
            .filter(|name| chain::is_ours(name) && Some(*name) != ours.as_ref())
        {
            remove_ours(&directory.join(stale))?;
        }
        match (ours, made) {
            (Some(ours), Some(made)) => {
                let path = directory.join(ours);
                put(&path, &made?, 0o644)?;
                Ok(path)
            }
            _ => Err(InstallError::Nothing(directory.clone())),
        }
    }
}

/// The names in the directory that runtimes read.
fn configurations(directory: &Path) -> Result<Vec<String>, InstallError> {
    let entries = fs::read_dir(directory).map_err(failed("read", directory))?;
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    Ok(names.filter(|name| chain::is_configuration(name)).collect())
}

/// Writes what is not there yet, whole.
fn put(path: &Path, content: &[u8], mode: u32) -> Result<(), InstallError> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    write_whole(path, content, mode).map_err(failed("write", path))
}

fn remove(path: &Path) -> Result<bool, InstallError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed("remove", path)(error)),
    }
}

fn remove_ours(path: &Path) -> Result<bool, InstallError> {
    let ours = fs::read(path).is_ok_and(|content| chain::has_entry(&content));
    if ours { remove(path) } else { Ok(false) }
}

/// Removes what was installed; returns the files. The pods that are being started meanwhile are started anew by their kubelet.
///
/// # Errors
/// When a file cannot be removed; those before it are gone.
pub fn uninstall(cni: &Cni, state_dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let mut paths = Vec::new();
    if cni.conf_dir.is_dir() {
        let names = configurations(&cni.conf_dir)?;
        for name in names.iter().filter(|name| chain::is_ours(name)) {
            let path = cni.conf_dir.join(name);
            if remove_ours(&path)? {
                paths.push(path);
            }
        }
    }
    let kept = state_dir.join("cni");
    let rest = ["kubeconfig", "ca.crt", "namespaces.json"].map(|name| kept.join(name));
    for path in rest.into_iter().chain([cni.bin_dir.join(PLUGIN)]) {
        if remove(&path)? {
            paths.push(path);
        }
    }
    let _ = fs::remove_dir(&kept);
    Ok(paths)
}

/// Keeps the plugin installed, and its table of namespaces as `snapshots` have it, until `stop`. Leaves everything in place then.
pub async fn keep(installation: Installation, snapshots: Arc<SnapshotCell>, stop: CancellationToken) {
    let mut written: Option<Table> = None;
    loop {
        let (installation, snapshot) = (installation.clone(), snapshots.load());
        let before = written.take();
        let pass = move || {
            let table = (snapshot.version() > 0).then(|| Table {
                namespaces: snapshot.namespaces().clone(),
                istio_label_left: snapshot.istio_label_left(),
            });
            let written = match table {
                Some(table) if before.as_ref() != Some(&table) => installation.write(table),
                _ => before,
            };
            installation.look();
            written
        };
        let Ok(now) = tokio::task::spawn_blocking(pass).await else {
            warn!("a look at the CNI plugin's files has panicked: they stay as they are");
            return;
        };
        written = now;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

impl Installation {
    fn look(&self) {
        let now = match self.ensure() {
            Ok(path) => InstallationStatus::Installed(path),
            Err(error) => InstallationStatus::Missing(error.to_string()),
        };
        let mut status = self.status.lock().unwrap_or_else(PoisonError::into_inner);
        if *status != now {
            match &now {
                InstallationStatus::Installed(path) => {
                    info!(configuration = %path.display(), "the CNI plugin is installed")
                }
                InstallationStatus::Missing(why) => {
                    warn!(
                        why,
                        "the CNI plugin is not installed: pods are captured only after they have begun"
                    );
                }
                InstallationStatus::Unknown => {}
            }
            *status = now;
        }
    }

    fn write(&self, table: Table) -> Option<Table> {
        let made = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.directory);
        match made.and_then(|()| table.write(&self.table())) {
            Ok(()) => Some(table),
            Err(error) => {
                warn!(%error, path = %self.table().display(), "the CNI plugin's table of namespaces cannot be written");
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
