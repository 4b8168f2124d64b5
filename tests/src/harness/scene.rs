//! The scene that most tests play in: two nodes with an agent each, three enrolled pods, one visitor, and services.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::agent::{Agent, AgentBuilder};
use super::certs::TestCa;
use super::manifests::Manifests;
use super::node::{Node, Pod};
use super::process::wait_for;
use super::world::World;

/// The service `web` (port 80 to 8080 of `far`).
pub const WEB4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 0, 10));
/// The same in IPv6.
pub const WEB6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x10));
/// The service `own` (port 80 to 8080 of `client`).
pub const OWN4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 0, 11));
/// The same in IPv6.
pub const OWN6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0xffff, 0, 0, 0, 0, 0x11));
/// The service `near` (port 80 to 8080 of `near`).
pub const NEAR4: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 19, 0, 12));
/// The namespace of the enrolled pods.
pub const MESH: &str = "mesh";
/// The trust domain of the agents, which is their default.
pub const TRUST_DOMAIN: &str = "cluster.local";

/// Nodes n1 and n2; pods `client` and `near` on n1 and `far` on n2, all enrolled; `visitor` on n1, not enrolled.
#[derive(Debug)]
pub struct Scene {
    /// The agent of n1.
    pub a1: Agent,
    /// The agent of n2, unless the scene has none.
    pub a2: Option<Agent>,
    /// Enrolled, on n1.
    pub client: Pod,
    /// Enrolled, on n1.
    pub near: Pod,
    /// Enrolled, on n2.
    pub far: Pod,
    /// Not enrolled, on n1.
    pub visitor: Pod,
    /// The documents that both agents read.
    pub config: Manifests,
    /// The first node.
    pub n1: Node,
    /// The second node.
    pub n2: Node,
    /// What holds it all.
    pub world: World,
}

impl Scene {
    /// The scene with default settings.
    ///
    /// # Errors
    /// When anything of it cannot be had.
    pub fn start(name: &str) -> Result<Self> {
        Self::with(name, true, |agent| agent)
    }

    /// The scene with the agents adapted by `adapt`; n2 has one only when `second`.
    ///
    /// # Errors
    /// When anything of it cannot be had.
    pub fn with(name: &str, second: bool, adapt: impl Fn(AgentBuilder) -> AgentBuilder) -> Result<Self> {
        let world = World::new(name)?;
        let (n1, n2) = (world.node("n1")?, world.node("n2")?);
        let (client, near) = (n1.pod(MESH, "client")?, n1.pod(MESH, "near")?);
        let visitor = n1.pod("outside", "visitor")?;
        let far = n2.pod(MESH, "far")?;
        let config = Manifests::new(world.dir().join("config"))?;
        config.namespace(MESH, true)?;
        config.namespace("outside", false)?;
        for pod in [&client, &near, &far, &visitor] {
            config.pod(&pod.spec())?;
        }
        let http = [("http", 80, 8080)];
        config.service(MESH, "web", "far", &[WEB4, WEB6], &http)?;
        config.service(MESH, "own", "client", &[OWN4, OWN6], &http)?;
        config.service(MESH, "near", "near", &[NEAR4], &http)?;
        let a1 = adapt(Agent::builder(&world, &n1, &config)).start()?;
        let a2 = if second {
            Some(adapt(Agent::builder(&world, &n2, &config)).start()?)
        } else {
            None
        };
        let scene = Self {
            a1,
            a2,
            client,
            near,
            far,
            visitor,
            config,
            n1,
            n2,
            world,
        };
        scene.wait_captured()?;
        Ok(scene)
    }

    /// The agents there are.
    pub fn agents(&self) -> impl Iterator<Item = &Agent> {
        std::iter::once(&self.a1).chain(&self.a2)
    }

    /// The agent of n2.
    ///
    /// # Panics
    /// When the scene was made without.
    pub fn a2(&self) -> &Agent {
        self.a2.as_ref().expect("this scene has a second agent")
    }

    /// Waits until every enrolled pod of each agent's node is captured, as `meshctl workloads` says.
    ///
    /// # Errors
    /// When one is not within ten seconds.
    pub fn wait_captured(&self) -> Result<()> {
        for agent in self.agents() {
            wait_for("all pods are captured", Duration::from_secs(10), || {
                let answer = agent.meshctl(&["workloads"])?;
                let all = answer["workloads"].as_array().context("no list of workloads")?;
                let mut local = all
                    .iter()
                    .filter(|w| w["local"] == true && w["enrolment"] == "enrolled")
                    .peekable();
                if local.peek().is_none() || !local.all(|w| w["capture"] == "captured") {
                    bail!("{answer:#}");
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Waits until the first node's agent has captured this many pods.
    ///
    /// # Errors
    /// When it has not within a minute.
    pub fn wait_enrolled(&self, count: usize) -> Result<()> {
        wait_for("so many pods are captured", Duration::from_secs(60), || {
            let answer = self.a1.meshctl(&["workloads"])?;
            let all = answer["workloads"].as_array().context("no list of workloads")?;
            let captured = all
                .iter()
                .filter(|w| w["local"] == true && w["capture"] == "captured")
                .count();
            if captured >= count {
                Ok(())
            } else {
                bail!("{captured} of {count}")
            }
        })
    }

    /// The highest snapshot version that each agent has in force, by its metrics.
    ///
    /// # Errors
    /// When metrics cannot be read.
    pub fn versions(&self) -> Result<Vec<f64>> {
        self.agents()
            .map(|agent| Ok(agent.metrics()?.sum("mesh_agent_snapshot_version", &[])))
            .collect()
    }

    /// Changes documents by `edit` and waits until both agents have a newer snapshot in force.
    ///
    /// # Errors
    /// When they have not within ten seconds.
    pub fn change(&self, edit: impl FnOnce(&Manifests) -> Result<()>) -> Result<()> {
        let before = self.versions()?;
        edit(&self.config)?;
        wait_for("the change is in force", Duration::from_secs(10), || {
            let now = self.versions()?;
            if now.iter().zip(&before).all(|(now, before)| now > before) {
                Ok(())
            } else {
                bail!("{before:?} → {now:?}")
            }
        })
    }

    /// The agents' CA.
    ///
    /// # Errors
    /// When its files cannot be read.
    pub fn ca(&self) -> Result<TestCa> {
        TestCa::of_agents(&self.world.dir().join("ca"))
    }

    /// The end of both agents' logs, for messages.
    pub fn logs(&self) -> String {
        let logs: Vec<String> = self
            .agents()
            .map(|agent| super::process::tail(&agent.log()))
            .collect();
        logs.join("\n---\n")
    }
}

/// The SPIFFE id of a service account of the scene.
pub fn id(namespace: &str, service_account: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{namespace}/sa/{service_account}")
}
