//! The directory of sandboxes: their records, which are locked while they live, and their documents. One lock orders all who change it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::error::SandboxError;
use super::place;

/// A service that a sandbox publishes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Published {
    pub(super) name: String,
    /// Its ports, with those of the sandbox behind them.
    pub(super) ports: Vec<(u16, u16)>,
    pub(super) place: u32,
    pub(super) addresses: Vec<IpAddr>,
}

/// What there is of a sandbox. All of it can be removed by whoever reads this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub(super) namespace: String,
    pub(super) name: String,
    /// The process that holds the record.
    pub(super) pid: u32,
    pub(super) place: u32,
    pub(super) addresses: Vec<IpAddr>,
    pub(super) services: Vec<Published>,
    /// The name of its network namespace.
    pub(super) netns: String,
    /// The host's end of its link.
    pub(super) link: String,
    pub(super) cgroup: PathBuf,
}

impl Record {
    /// `namespace/name`.
    pub fn shown(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn file(&self, extension: &str) -> String {
        // Neither part holds a dot.
        format!("{}.{}.{extension}", self.namespace, self.name)
    }
}

/// The record of a sandbox that lives: unlocked when this is dropped, or when the process ends.
#[derive(Debug)]
pub(super) struct Held {
    _file: File,
}

/// What else the document of a sandbox says.
#[derive(Clone, Debug)]
pub(super) struct About<'a> {
    pub(super) uid: &'a str,
    pub(super) node: &'a str,
    pub(super) service_account: &'a str,
    pub(super) labels: &'a [(String, String)],
}

/// The label by which a sandbox's services find it.
const SELECTED: &str = "mesh-agent.io/sandbox";

/// The directory.
#[derive(Clone, Debug)]
pub struct Registry {
    dir: PathBuf,
    cluster_domain: String,
}

/// The directory while nobody else changes it.
#[derive(Debug)]
pub(super) struct Locked<'r> {
    registry: &'r Registry,
    _lock: File,
}

impl Registry {
    /// The directory `dir`; names of services end with `cluster_domain`.
    pub fn new(dir: PathBuf, cluster_domain: String) -> Self {
        Self { dir, cluster_domain }
    }

    /// Its path.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory, for root alone.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn make(&self) -> Result<(), SandboxError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)
            .map_err(SandboxError::io("make the directory", &self.dir))
    }

    /// Removes the sandboxes whose process is gone, and gives their records. Does nothing while somebody changes the directory.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn sweep(&self) -> Result<Vec<Record>, SandboxError> {
        // Somebody may have removed it.
        self.make()?;
        let lock = self.lock_file()?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Vec::new()),
            Err(TryLockError::Error(source)) => {
                return Err(SandboxError::io("lock", &self.dir)(source));
            }
        }
        let locked = Locked {
            registry: self,
            _lock: lock,
        };
        locked.sweep()
    }

    /// Waits for the directory's lock.
    pub(super) fn lock(&self) -> Result<Locked<'_>, SandboxError> {
        let lock = self.lock_file()?;
        lock.lock().map_err(SandboxError::io("lock", &self.dir))?;
        Ok(Locked {
            registry: self,
            _lock: lock,
        })
    }

    fn lock_file(&self) -> Result<File, SandboxError> {
        let path = self.dir.join("lock");
        open(&path).map_err(SandboxError::io("open", path))
    }

    /// The file of names that sandboxes see as /etc/hosts.
    pub(super) fn hosts(&self) -> PathBuf {
        self.dir.join("hosts")
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}

impl Locked<'_> {
    /// The records of the sandboxes that live.
    pub(super) fn living(&self) -> Result<Vec<Record>, SandboxError> {
        Ok(self
            .records()?
            .into_iter()
            .filter_map(|(record, dead)| (!dead).then_some(record?))
            .collect())
    }

    /// Removes the sandboxes whose process is gone, and gives their records.
    pub(super) fn sweep(&self) -> Result<Vec<Record>, SandboxError> {
        let mut swept = Vec::new();
        for (record, dead) in self.records()? {
            match record {
                Some(record) if dead => {
                    self.remove(&record);
                    swept.push(record);
                }
                _ => {}
            }
        }
        Ok(swept)
    }

    /// Each record with the word whether its process is gone. One that was not written to its end belongs to nothing, and goes.
    fn records(&self) -> Result<Vec<(Option<Record>, bool)>, SandboxError> {
        let dir = &self.registry.dir;
        let list = || SandboxError::io("list", dir.clone());
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).map_err(list())? {
            let path = entry.map_err(list())?.path();
            if path.extension().is_none_or(|extension| extension != "sandbox") {
                continue;
            }
            let Ok(mut file) = open(&path) else { continue };
            let dead = file.try_lock().is_ok();
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            let record = serde_json::from_str::<Record>(&text).ok();
            if record.is_none() && dead {
                let _ = fs::remove_file(&path);
            }
            found.push((record, dead));
        }
        Ok(found)
    }

    /// Enters a sandbox: from now on this process answers for it.
    pub(super) fn enter(&self, record: &Record) -> Result<Held, SandboxError> {
        let path = self.registry.dir.join(record.file("sandbox"));
        let failed = || SandboxError::io("write", path.clone());
        let mut file = open(&path).map_err(failed())?;
        let text = serde_json::to_string(record).map_err(|error| failed()(error.into()))?;
        file.lock()
            .and_then(|()| file.set_len(0))
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(text.as_bytes()))
            .map_err(failed())?;
        Ok(Held { _file: file })
    }

    /// Writes the sandbox's document, whereupon the agent takes it into the mesh; and the names of its services for all to see.
    pub(super) fn publish(&self, record: &Record, about: &About<'_>) -> Result<(), SandboxError> {
        let path = self.registry.dir.join(record.file("yaml"));
        let fresh = self.registry.dir.join(record.file("new"));
        fs::write(&fresh, documents(record, about))
            .and_then(|()| fs::rename(&fresh, &path))
            .map_err(SandboxError::io("write", &path))?;
        self.write_hosts()
    }

    /// Removes all that there is of a sandbox; what cannot be removed is said and left.
    pub(super) fn remove(&self, record: &Record) {
        let dir = &self.registry.dir;
        let _ = fs::remove_file(dir.join(record.file("yaml")));
        let _ = fs::remove_file(dir.join(record.file("new")));
        place::remove(record);
        let _ = fs::remove_file(dir.join(record.file("sandbox")));
        if let Err(error) = self.write_hosts() {
            tracing::warn!(%error, "the names of sandboxes' services are not up to date");
        }
        let last = fs::read_dir(dir).is_ok_and(|entries| {
            let mut paths = entries.flatten().map(|entry| entry.path());
            !paths.any(|path| path.extension().is_some_and(|extension| extension == "sandbox"))
        });
        if last {
            place::remove_bridge();
            let _ = fs::remove_file(self.registry.hosts());
        }
    }

    /// The host's names and those of all sandboxes' services; in place, since it is mounted in every sandbox.
    fn write_hosts(&self) -> Result<(), SandboxError> {
        let path = self.registry.hosts();
        let mut text = fs::read_to_string("/etc/hosts").unwrap_or_default();
        text.push_str("\n# Services of sandboxes.\n");
        for record in self.living()? {
            for line in names(&record, &self.registry.cluster_domain) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(SandboxError::io("write", path))
    }
}

/// The lines of `/etc/hosts` for a sandbox's services.
fn names(record: &Record, cluster_domain: &str) -> Vec<String> {
    let namespace = &record.namespace;
    let of = |service: &Published| {
        let name = &service.name;
        let names = format!(
            "{name} {name}.{namespace} {name}.{namespace}.svc {name}.{namespace}.svc.{cluster_domain}"
        );
        let lines = service.addresses.iter();
        lines
            .map(|address| format!("{address} {names}"))
            .collect::<Vec<_>>()
    };
    record.services.iter().flat_map(of).collect()
}

/// The Pod and its Services. JSON, which is YAML too.
fn documents(record: &Record, about: &About<'_>) -> String {
    let mut labels: serde_json::Map<_, _> = about
        .labels
        .iter()
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    labels.insert("mesh-agent.io/dataplane".into(), json!("enabled"));
    labels.insert(SELECTED.into(), json!(record.name));
    let ips: Vec<_> = record.addresses.iter().map(|ip| json!({ "ip": ip })).collect();
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": record.name,
            "namespace": record.namespace,
            "uid": about.uid,
            "labels": labels,
            "annotations": {
                "mesh-agent.io/netns": place::netns_path(record),
                "mesh-agent.io/cgroup": record.cgroup,
            },
        },
        "spec": {
            "nodeName": about.node,
            "serviceAccountName": about.service_account,
            "containers": [{ "name": "sandbox", "image": "none" }],
        },
        "status": { "phase": "Running", "podIP": record.addresses.first(), "podIPs": ips },
    });
    let service = |service: &Published| {
        let dual = service.addresses.len() > 1;
        let port = |(port, target): &(u16, u16)| json!({ "name": format!("p{port}"), "port": port, "targetPort": target });
        let ports: Vec<_> = service.ports.iter().map(port).collect();
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": service.name, "namespace": record.namespace },
            "spec": {
                "selector": { SELECTED: record.name },
                "clusterIP": service.addresses.first(),
                "clusterIPs": service.addresses,
                "ipFamilyPolicy": if dual { "RequireDualStack" } else { "SingleStack" },
                "ports": ports,
            },
        })
    };
    let all = std::iter::once(pod).chain(record.services.iter().map(service));
    all.map(|document| format!("---\n{document}\n")).collect()
}

#[cfg(test)]
mod tests {
    use mesh_core::snapshot::{MeshSettings, Snapshot};

    use super::*;

    fn record(name: &str) -> Record {
        Record {
            namespace: "shop".into(),
            name: name.into(),
            pid: 1,
            place: 7,
            addresses: vec!["198.19.192.7".parse().unwrap(), "fd6d::7".parse().unwrap()],
            services: vec![Published {
                name: format!("{name}-web"),
                ports: vec![(80, 8080), (443, 8443)],
                place: 2100,
                addresses: vec!["198.19.200.52".parse().unwrap(), "fd6d::834".parse().unwrap()],
            }],
            netns: "mesh-sandbox-test-none".into(),
            link: "msbtestnone".into(),
            cgroup: "/nowhere/mesh-sandbox/none".into(),
        }
    }

    fn about(labels: &[(String, String)]) -> About<'_> {
        About {
            uid: "0f",
            node: "n1",
            service_account: "orders",
            labels,
        }
    }

    #[test]
    fn the_documents_are_an_enrolled_pod_and_services_that_find_it() {
        let labels = [("app".to_owned(), "order: \"1\"".to_owned())];
        let settings = MeshSettings {
            node_name: "n1".into(),
            ..MeshSettings::default()
        };
        let snapshot = Snapshot::from_yaml(settings, &documents(&record("order"), &about(&labels)));
        assert_eq!(snapshot.diagnostics().rejections, []);
        assert_eq!(snapshot.diagnostics().notices, []);
        let pod = snapshot.local_workloads().next().unwrap();
        assert!(pod.enrolment.is_enrolled());
        assert_eq!(pod.labels["app"], "order: \"1\"");
        assert_eq!(
            pod.identity.to_string(),
            "spiffe://cluster.local/ns/shop/sa/orders"
        );
        let place = pod.location.as_ref().unwrap();
        assert_eq!(place.netns, "/run/netns/mesh-sandbox-test-none");
        for vip in ["198.19.200.52", "fd6d::834"] {
            let service = snapshot.service_by_vip(vip.parse().unwrap()).unwrap();
            let addresses: Vec<_> = service.endpoints[&80]
                .iter()
                .map(|e| e.address.to_string())
                .collect();
            assert_eq!(addresses, ["198.19.192.7:8080", "[fd6d::7]:8080"]);
        }
    }

    #[test]
    fn a_record_lives_as_long_as_it_is_held_and_is_swept_with_its_document_and_names_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(dir.path().join("sandboxes/n1"), "cluster.local".into());
        registry.make().unwrap();
        let locked = registry.lock().unwrap();
        let (one, two) = (record("one"), record("two"));
        let held = locked.enter(&one).unwrap();
        locked.publish(&one, &about(&[])).unwrap();
        drop(locked.enter(&two).unwrap());
        locked.publish(&two, &about(&[])).unwrap();
        assert_eq!(locked.living().unwrap(), std::slice::from_ref(&one));
        assert_eq!(registry.sweep().unwrap(), [], "not while somebody changes it");
        drop(locked);
        assert_eq!(registry.sweep().unwrap(), [two]);
        let hosts = || fs::read_to_string(registry.hosts()).unwrap();
        assert!(
            hosts().contains(
                "198.19.200.52 one-web one-web.shop one-web.shop.svc one-web.shop.svc.cluster.local"
            )
        );
        assert!(!hosts().contains("two-web"));
        let mut left: Vec<_> = fs::read_dir(registry.dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["hosts", "lock", "shop.one.sandbox", "shop.one.yaml"]);
        drop(held);
        assert_eq!(registry.sweep().unwrap(), [one]);
        assert!(!registry.hosts().exists(), "the last one takes the names along");
    }

    #[test]
    fn a_record_that_was_not_written_to_its_end_is_nobodys() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::new(dir.path().into(), "cluster.local".into());
        fs::write(dir.path().join("shop.half.sandbox"), "{\"namespace\":\"sh").unwrap();
        assert_eq!(registry.sweep().unwrap(), []);
        assert!(!dir.path().join("shop.half.sandbox").exists());
    }
}
