//! A Kubernetes cluster for the tests: the one that `KUBECONFIG` names, or else an API server of our own. Tests write to it as anybody
//! does, through its API.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, bail};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::config::Kubeconfig;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use super::netns::Netns;
use super::node::PodSpec;
use super::relay::Relay;
use super::world::World;
use crate::apiserver::ApiServer;

/// A cluster, and the right to write to it. What a test has made is removed on drop.
pub struct Cluster {
    runtime: Runtime,
    client: Client,
    server: Option<ApiServer>,
    kubeconfig: PathBuf,
    address: SocketAddr,
    host: String,
    made: Mutex<Vec<Value>>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Cluster {
    /// The cluster to test with.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub fn open(world: &World) -> Result<Self> {
        let (server, kubeconfig) = match std::env::var_os("KUBECONFIG") {
            Some(path) => (None, PathBuf::from(path)),
            None => {
                let server = ApiServer::start(&world.dir().join("apiserver"))?;
                let kubeconfig = server.kubeconfig();
                (Some(server), kubeconfig)
            }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let read = Kubeconfig::read_from(&kubeconfig).context("the kubeconfig")?;
        let config = Config::try_from(read).context("the kubeconfig")?;
        let host = config
            .cluster_url
            .host()
            .context("the server has no host")?
            .to_owned();
        let port = config.cluster_url.port_u16().unwrap_or(443);
        let address = (host.trim_matches(['[', ']']), port)
            .to_socket_addrs()?
            .next()
            .context("the server has no address")?;
        let client = {
            let _entered = runtime.enter();
            Client::try_from(config)?
        };
        Ok(Self {
            runtime,
            client,
            server,
            kubeconfig,
            address,
            host,
            made: Mutex::default(),
        })
    }

    /// The server's faults are ours to make only where it is our own; `None` otherwise, which is told.
    pub fn own(&self) -> Option<&ApiServer> {
        if self.server.is_none() {
            println!("not run: this needs an API server whose faults can be made (unset KUBECONFIG)");
        }
        self.server.as_ref()
    }

    /// A way to the server that leads through `at` in `netns`.
    ///
    /// # Errors
    /// When nothing can listen there.
    pub fn relay(&self, netns: &Netns, at: SocketAddr) -> Result<Relay> {
        Relay::start(netns, at, self.address)
    }

    /// Writes a kubeconfig that leads to the server at `address`, a relay's.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, file: &Path, address: SocketAddr) -> Result<()> {
        let mut config = Kubeconfig::read_from(&self.kubeconfig)?;
        for named in &mut config.clusters {
            if let Some(cluster) = &mut named.cluster {
                cluster.server = Some(format!("https://{address}"));
                cluster.tls_server_name.get_or_insert_with(|| self.host.clone());
            }
        }
        let new = file.with_extension("new");
        std::fs::write(&new, serde_json::to_vec(&config)?)?;
        std::fs::rename(new, file)?;
        Ok(())
    }

    /// Makes an object, or gives it this shape; its `status` too, if there is one.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn put(&self, object: Value) -> Result<()> {
        let (api, name) = self.api(&object)?;
        let typed: DynamicObject = serde_json::from_value(object.clone())?;
        self.runtime.block_on(async {
            match api.create(&PostParams::default(), &typed).await {
                Ok(_) => self.made.lock().map_or((), |mut made| made.push(object.clone())),
                Err(kube::Error::Api(status)) if status.code == 409 => {
                    api.patch(&name, &PatchParams::default(), &Patch::Merge(&object))
                        .await?;
                }
                Err(error) => return Err(error.into()),
            }
            if object.get("status").is_some() {
                let status = json!({"status": object["status"]});
                api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
                    .await?;
            }
            Ok(())
        })
    }

    /// An object as the server has it, by its kind and names.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn get(&self, object: &Value) -> Result<Value> {
        let (api, name) = self.api(object)?;
        Ok(serde_json::to_value(self.runtime.block_on(api.get(&name))?)?)
    }

    /// Gives each of these objects, which are there, its new shape, sixteen at a time, so many times in turn; `shape` says the shape by
    /// the number of the turn.
    ///
    /// # Errors
    /// When the server refuses one.
    pub fn storm(&self, objects: &[Value], turns: usize, shape: impl Fn(usize) -> Value) -> Result<()> {
        self.runtime.block_on(async {
            for turn in 0..turns {
                let patch = shape(turn);
                for some in objects.chunks(16) {
                    let mut under_way = tokio::task::JoinSet::new();
                    for object in some {
                        let ((api, name), patch) = (self.api(object)?, patch.clone());
                        under_way.spawn(async move {
                            api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
                                .await
                        });
                    }
                    while let Some(done) = under_way.join_next().await {
                        done??;
                    }
                }
            }
            Ok(())
        })
    }

    /// Removes an object, of which kind and names count.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn delete(&self, object: &Value) -> Result<()> {
        let (api, name) = self.api(object)?;
        let now = DeleteParams::default().grace_period(0);
        self.runtime
            .block_on(api.delete(&name, &now))
            .map(drop)
            .context("delete")
    }

    /// The Events about an object.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn events(&self, namespace: &str, name: &str) -> Result<Vec<Value>> {
        let resource = ApiResource {
            group: "events.k8s.io".into(),
            version: "v1".into(),
            api_version: "events.k8s.io/v1".into(),
            kind: "Event".into(),
            plural: "events".into(),
        };
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        let list = self.runtime.block_on(api.list(&Default::default()))?;
        let about = |event: &DynamicObject| event.data["regarding"]["name"] == name;
        Ok(list
            .items
            .into_iter()
            .filter(about)
            .map(|event| event.data)
            .collect())
    }

    /// A Namespace whose pods are enrolled, or not.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn namespace(&self, name: &str, enrolled: bool) -> Result<()> {
        let wish = if enrolled { "enabled" } else { "disabled" };
        self.put(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"mesh-agent.io/dataplane": wish}},
        }))
    }

    /// A Pod with its status, as a kubelet would report it; placed by annotations.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn pod(&self, pod: &PodSpec) -> Result<()> {
        self.put(pod.document())
    }

    /// The CustomResourceDefinition of an Istio security kind, served in `versions`.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn define(&self, kind: &str, versions: &[&str]) -> Result<()> {
        let object = definition(kind, versions)?;
        self.put(object)
    }

    /// Removes such a definition, and with it all objects.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn undefine(&self, kind: &str) -> Result<()> {
        self.delete(&definition(kind, &["v1"])?)
    }

    fn api(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            plural: plural(&kind)?.to_owned(),
            api_version: api_version.clone(),
            kind,
        };
        let meta = &object["metadata"];
        let api = match meta["namespace"].as_str() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        };
        Ok((api, text(&meta["name"])))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.server.is_some() {
            return;
        }
        let made = self
            .made
            .lock()
            .map(|mut made| std::mem::take(&mut *made))
            .unwrap_or_default();
        for object in made.iter().rev() {
            drop(self.delete(object));
        }
    }
}

fn plural(kind: &str) -> Result<&'static str> {
    Ok(match kind {
        "Namespace" => "namespaces",
        "Node" => "nodes",
        "Pod" => "pods",
        "Service" => "services",
        "EndpointSlice" => "endpointslices",
        "DaemonSet" => "daemonsets",
        "Lease" => "leases",
        "AuthorizationPolicy" => "authorizationpolicies",
        "PeerAuthentication" => "peerauthentications",
        "CustomResourceDefinition" => "customresourcedefinitions",
        other => bail!("the tests do not know the plural of {other}"),
    })
}

fn definition(kind: &str, versions: &[&str]) -> Result<Value> {
    let plural = plural(kind)?;
    let version = |(i, name): (usize, &&str)| {
        json!({
            "name": name, "served": true, "storage": i == 0,
            "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
        })
    };
    let versions: Vec<Value> = versions.iter().enumerate().map(version).collect();
    Ok(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.security.istio.io")},
        "spec": {
            "group": "security.istio.io", "scope": "Namespaced", "versions": versions,
            "names": {"plural": plural, "singular": kind.to_ascii_lowercase(), "kind": kind, "listKind": format!("{kind}List")},
        },
    }))
}
