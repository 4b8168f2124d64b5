//! What these tests play on: two nodes whose way to the API server leads over a relay, and pods that the API describes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Agent, AgentBuilder, Cluster, Manifests, Node, Pod, Relay, World, wait_for};
use serde_json::{Value, json};

/// The namespace of the enrolled pods.
pub(crate) const SHOP: &str = "mesh-tests-shop";
/// A namespace that is not enrolled.
pub(crate) const OUTSIDE: &str = "mesh-tests-outside";
/// For a change to be in force, on a machine that does much else besides.
pub(crate) const SOON: Duration = Duration::from_secs(15);
/// For a kind to be found again, which is looked for every half minute.
pub(crate) const LATER: Duration = Duration::from_secs(50);

/// Nodes n1 and n2; pods `client` and `near` on n1, `far` on n2, enrolled; `visitor` on n1, not enrolled.
pub(crate) struct Stage {
    pub(crate) client: Pod,
    pub(crate) near: Pod,
    pub(crate) far: Pod,
    pub(crate) visitor: Pod,
    pub(crate) relay: Relay,
    pub(crate) n1: Node,
    pub(crate) n2: Node,
    pub(crate) cluster: Cluster,
    manifests: Manifests,
    kubeconfig: PathBuf,
    pub(crate) world: World,
}

impl Stage {
    /// The stage; `kinds` of Istio are defined in v1.
    pub(crate) fn set(name: &str, kinds: &[&str]) -> Result<Self> {
        let world = World::new(name)?;
        let cluster = Cluster::open(&world)?;
        let (n1, n2) = (world.node("n1")?, world.node("n2")?);
        let (client, near) = (n1.pod(SHOP, "client")?, n1.pod(SHOP, "near")?);
        let visitor = n1.pod(OUTSIDE, "visitor")?;
        let far = n2.pod(SHOP, "far")?;
        for kind in kinds {
            cluster.define(kind, &["v1"])?;
        }
        cluster.namespace(SHOP, true)?;
        cluster.namespace(OUTSIDE, false)?;
        for pod in [&client, &near, &far, &visitor] {
            cluster.pod(&pod.spec())?;
        }
        let relay = cluster.relay(n1.netns(), SocketAddr::new(n1.address(), 6443))?;
        let kubeconfig = world.dir().join("kubeconfig");
        cluster.kubeconfig(&kubeconfig, relay.address())?;
        let manifests = Manifests::new(world.dir().join("unused"))?;
        Ok(Self {
            client,
            near,
            far,
            visitor,
            relay,
            n1,
            n2,
            cluster,
            manifests,
            kubeconfig,
            world,
        })
    }

    /// From now on the agents' kubeconfig leads over this relay.
    pub(crate) fn lead_over(&self, relay: &Relay) -> Result<()> {
        self.cluster.kubeconfig(&self.kubeconfig, relay.address())
    }

    /// An agent of `node` that follows the cluster and no files.
    pub(crate) fn agent(&self, node: &Node) -> AgentBuilder {
        Agent::builder(&self.world, node, &self.manifests)
            .without_arg("--config-dir")
            .arg("--kubeconfig", &self.kubeconfig.to_string_lossy())
            .arg("--kubernetes-pod-placement", "annotations")
    }

    /// A Service without a selector, at port 80, which leads to port 8080 of these pods.
    pub(crate) fn service(&self, name: &str, endpoints: &[&Pod]) -> Result<()> {
        self.cluster.put(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": SHOP},
            "spec": {"ports": [{"name": "web", "port": 80, "targetPort": 8080, "protocol": "TCP"}]},
        }))?;
        self.endpoints(name, endpoints)
    }

    /// Where a Service leads.
    pub(crate) fn endpoints(&self, service: &str, endpoints: &[&Pod]) -> Result<()> {
        let endpoint = |pod: &&Pod| {
            json!({
                "addresses": [pod.ip4()], "nodeName": pod.spec().node,
                "conditions": {"ready": true, "serving": true, "terminating": false},
            })
        };
        let endpoints: Vec<Value> = endpoints.iter().map(endpoint).collect();
        self.cluster.put(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("{service}-tests"), "namespace": SHOP,
                "labels": {"kubernetes.io/service-name": service, "endpointslice.kubernetes.io/managed-by": "mesh-tests"},
            },
            "endpoints": endpoints,
            "ports": [{"name": "web", "port": 8080, "protocol": "TCP"}],
        }))
    }

    /// An AuthorizationPolicy that lets nobody in.
    pub(crate) fn nobody(&self) -> Value {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": "nobody", "namespace": SHOP}, "spec": {},
        })
    }
}

/// What `meshctl config` says about a kind.
pub(crate) fn kind(agent: &Agent, name: &str) -> Result<Value> {
    let config = agent.meshctl(&["config"])?;
    let sources = config["sources"].as_array().context("no sources")?;
    let mut kinds = sources
        .iter()
        .flat_map(|source| source["kinds"].as_array().into_iter().flatten());
    let found = kinds.find(|kind| kind["kind"] == name).cloned();
    found.with_context(|| format!("no kind {name}: {config:#}"))
}

/// Waits until a kind is in this state.
pub(crate) fn state_of(agent: &Agent, name: &str, state: &str, limit: Duration) -> Result<Value> {
    wait_for(&format!("{name} is {state}"), limit, || {
        let kind = kind(agent, name)?;
        ensure!(kind["state"] == state, "{kind:#}");
        Ok(kind)
    })
}

/// Waits until these workloads of the agent's node are captured, and no others.
pub(crate) fn captured(agent: &Agent, names: &[&str]) -> Result<()> {
    wait_for("the pods are captured", SOON, || {
        let answer = agent.meshctl(&["workloads"])?;
        let all = answer["workloads"].as_array().context("no list of workloads")?;
        let captured = all
            .iter()
            .filter(|w| w["local"] == true && w["capture"] == "captured");
        let mut found: Vec<&str> = captured.filter_map(|w| w["name"].as_str()).collect();
        found.sort_unstable();
        ensure!(found == names, "{found:?}");
        Ok(())
    })
}

/// The ClusterIP that a Service has been given, as the agent knows it.
pub(crate) fn vip(agent: &Agent, name: &str) -> Result<IpAddr> {
    wait_for("the service has an address", SOON, || {
        let services = agent.meshctl(&["services"])?;
        let all = services["services"].as_array().context("no list of services")?;
        let found = all
            .iter()
            .find(|service| service["name"] == name && service["namespace"] == SHOP);
        let text = found.and_then(|service| service["addresses"][0].as_str());
        Ok(text.with_context(|| format!("{services:#}"))?.parse()?)
    })
}

/// Waits until `from` is answered `text` at that address.
pub(crate) fn answered(from: &Pod, to: SocketAddr, text: &str) -> Result<()> {
    wait_for(&format!("{to} answers {text:?}"), SOON, || {
        let report = from.connect(to.ip(), to.port(), "exchange", &[])?;
        ensure!(report.text.trim() == text, "{report:?}");
        Ok(())
    })
}

/// Waits until `from` gets no byte from that address.
pub(crate) fn refused(from: &Pod, to: SocketAddr) -> Result<()> {
    wait_for(&format!("{to} refuses"), SOON, || {
        let report = from.connect(to.ip(), to.port(), "exchange", &[])?;
        ensure!(report.text.is_empty(), "{report:?}");
        Ok(())
    })
}
