//! Nodes and pods.
//!
//! Node n has 198.18.0.n and 2001:db8::n on the fabric; its pods have 198.18.n.0/24 and 2001:db8:n::/64, each behind a veth of its own
//! (routed, as most CNIs do it, so that traffic between two pods of a node crosses the node's namespace and can be captured there).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::cgroup::Cgroup;
use super::netns::Netns;
use super::process::JoinExt;
use super::world::World;

/// A node: a namespace that forwards between its pods and the fabric.
#[derive(Debug)]
pub struct Node {
    name: String,
    number: u8,
    netns: Netns,
    cgroup: Cgroup,
    prefix: String,
    log_dir: PathBuf,
    next_pod: AtomicU8,
}

impl Node {
    pub(super) fn create(world: &World, name: &str, number: u8) -> Result<Self> {
        let netns = Netns::create(&format!("{}-{name}", world.prefix()))?;
        let port = format!("to-{name}");
        let fabric = world.fabric();
        fabric.ip(&[
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            netns.name(),
        ])?;
        fabric.ip(&["link", "set", &port, "master", "br0", "up"])?;
        netns.ip(&["address", "add", &format!("198.18.0.{number}/24"), "dev", "eth0"])?;
        netns.ip(&[
            "address",
            "add",
            &format!("2001:db8::{number:x}/64"),
            "dev",
            "eth0",
            "nodad",
        ])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        netns.sysctl("ipv4/ip_forward", "1")?;
        netns.sysctl("ipv6/conf/all/forwarding", "1")?;
        // The other nodes' pods. A node that is not there does not answer; the routes do no harm.
        for other in (1..=4u8).filter(|other| *other != number) {
            netns.ip(&[
                "route",
                "add",
                &format!("198.18.{other}.0/24"),
                "via",
                &format!("198.18.0.{other}"),
            ])?;
            netns.ip(&[
                "route",
                "add",
                &format!("2001:db8:{other:x}::/64"),
                "via",
                &format!("2001:db8::{other:x}"),
            ])?;
        }
        Ok(Self {
            name: name.to_owned(),
            number,
            netns,
            cgroup: world.cgroup().child(name)?,
            prefix: world.prefix().to_owned(),
            log_dir: world.log_dir(),
            next_pod: AtomicU8::new(10),
        })
    }

    /// Its name, as in `spec.nodeName`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The cgroup above those of its pods and its agent.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Its address on the fabric.
    pub fn address(&self) -> IpAddr {
        Ipv4Addr::new(198, 18, 0, self.number).into()
    }

    /// A new pod on this node. `name` is unique in the world.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let host = self.next_pod.fetch_add(1, Ordering::Relaxed);
        self.pod_at(namespace, name, host)
    }

    /// A new pod with a given host part of its addresses (for a pod that takes over a dead one's address).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn pod_at(&self, namespace: &str, name: &str, host: u8) -> Result<Pod> {
        let netns = Netns::create(&format!("{}-{name}", self.prefix))?;
        let number = self.number;
        let ip4 = Ipv4Addr::new(198, 18, number, host);
        let ip6 = Ipv6Addr::new(0x2001, 0xdb8, number.into(), 0, 0, 0, 0, host.into());
        let gate4 = format!("198.18.{number}.1");
        let gate6 = format!("2001:db8:{number:x}::1");
        let veth = format!("p-{name}");
        let veth = veth.get(..15).unwrap_or(&veth).to_owned();
        let node = &self.netns;
        node.ip(&[
            "link",
            "add",
            &veth,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            netns.name(),
        ])?;
        node.ip(&["address", "add", &format!("{gate4}/32"), "dev", &veth])?;
        node.ip(&["address", "add", &format!("{gate6}/128"), "dev", &veth, "nodad"])?;
        node.ip(&["link", "set", &veth, "up"])?;
        node.ip(&["route", "add", &format!("{ip4}/32"), "dev", &veth])?;
        node.ip(&["route", "add", &format!("{ip6}/128"), "dev", &veth])?;
        netns.ip(&["address", "add", &format!("{ip4}/32"), "dev", "eth0"])?;
        netns.ip(&["address", "add", &format!("{ip6}/128"), "dev", "eth0", "nodad"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        netns.ip(&["route", "add", &gate4, "dev", "eth0"])?;
        netns.ip(&["route", "add", "default", "via", &gate4])?;
        netns.ip(&["route", "add", &gate6, "dev", "eth0"])?;
        netns.ip(&["route", "add", "default", "via", &gate6])?;
        Ok(Pod {
            spec: PodSpec {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                service_account: name.to_owned(),
                labels: vec![("app".to_owned(), name.to_owned())],
                node: self.name.clone(),
                addresses: vec![ip4.into(), ip6.into()],
                netns: netns.path().to_owned(),
                cgroup: self.cgroup.path().join(name),
                uid: String::new(),
                annotations: Vec::new(),
            },
            cgroup: self.cgroup.child(name)?,
            netns,
            veth,
            log_dir: self.log_dir.clone(),
        })
    }
}

impl Node {
    /// Removes a pod: its link first, so that nobody hears of its end, then its processes and the name of its namespace. Its addresses are
    /// free from then on.
    ///
    /// # Errors
    /// When its link is gone already.
    pub fn remove(&self, pod: Pod) -> Result<()> {
        let Pod {
            cgroup, netns, veth, ..
        } = pod;
        self.netns.ip(&["link", "delete", &veth])?;
        drop(cgroup);
        drop(netns);
        Ok(())
    }
}

/// What a pod's manifest says. Change it before writing the manifest to describe the pod differently.
#[derive(Clone, Debug)]
pub struct PodSpec {
    /// `metadata.namespace`.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
    /// `spec.serviceAccountName`; by default the pod's name.
    pub service_account: String,
    /// `metadata.labels`; by default `app: NAME`.
    pub labels: Vec<(String, String)>,
    /// `spec.nodeName`.
    pub node: String,
    /// `status.podIPs`.
    pub addresses: Vec<IpAddr>,
    /// The namespace's file. Empty: the manifest does not say where the pod lives, as on Kubernetes.
    pub netns: PathBuf,
    /// The cgroup's absolute path.
    pub cgroup: PathBuf,
    /// `metadata.uid`; left out when empty.
    pub uid: String,
    /// `metadata.annotations`, besides those that place it.
    pub annotations: Vec<(String, String)>,
}

impl PodSpec {
    /// Its document as an API server has it, with the status that a kubelet reports.
    pub fn document(&self) -> Value {
        let addresses: Vec<Value> = self.addresses.iter().map(|ip| json!({"ip": ip})).collect();
        let texts = |pairs: &[(String, String)]| -> Map<String, Value> {
            let pairs = pairs.iter().cloned();
            pairs.map(|(key, value)| (key, value.into())).collect()
        };
        let mut annotations = texts(&self.annotations);
        if self.netns != Path::new("") {
            annotations.insert("mesh-agent.io/netns".to_owned(), json!(self.netns));
            annotations.insert("mesh-agent.io/cgroup".to_owned(), json!(self.cgroup));
        }
        let mut document = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": self.name, "namespace": self.namespace, "labels": texts(&self.labels), "annotations": annotations,
            },
            "spec": {
                "nodeName": self.node, "serviceAccountName": self.service_account,
                "containers": [{"name": "app", "image": "none"}],
            },
            "status": {
                "phase": "Running", "podIP": self.addresses.first(), "podIPs": addresses,
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        if !self.uid.is_empty() {
            document["metadata"]["uid"] = json!(self.uid);
        }
        if self.addresses.is_empty() {
            document["status"] = json!({"phase": "Pending"});
        }
        document
    }
}

/// A pod: a namespace behind a node, and a cgroup.
#[derive(Debug)]
pub struct Pod {
    spec: PodSpec,
    cgroup: Cgroup,
    netns: Netns,
    veth: String,
    log_dir: PathBuf,
}

impl Pod {
    /// What its manifest says.
    pub fn spec(&self) -> PodSpec {
        self.spec.clone()
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Its IPv4 address.
    pub fn ip4(&self) -> IpAddr {
        self.spec.addresses[0]
    }

    /// Its IPv6 address.
    pub fn ip6(&self) -> IpAddr {
        self.spec.addresses[1]
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// The node's end of its veth.
    pub fn veth(&self) -> &str {
        &self.veth
    }

    /// Where its programs' output goes.
    pub fn log_dir(&self) -> &Path {
        &self.log_dir
    }

    /// `program`, to be started inside the pod: in its cgroup and its network namespace.
    ///
    /// # Errors
    /// When either is gone.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Result<Command> {
        self.command_in(program, &self.cgroup)
    }

    /// Like [`Pod::command`], in another cgroup: one below the pod's, or one that is none of its.
    ///
    /// # Errors
    /// When the namespace or the cgroup is gone.
    pub fn command_in(&self, program: impl AsRef<std::ffi::OsStr>, cgroup: &Cgroup) -> Result<Command> {
        let mut command = Command::new(program);
        command
            .in_cgroup(cgroup)?
            .in_netns(&self.netns)
            .with_context(|| format!("pod {}", self.spec.name))?;
        Ok(command)
    }
}
