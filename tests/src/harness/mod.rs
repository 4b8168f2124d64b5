//! Real nodes and pods on one kernel: network namespaces joined by veth, cgroups, real agents, ordinary programs.
//!
//! Owns everything it makes: a [`World`] removes its namespaces, cgroups, mounts, files and processes when dropped, also on panic,
//! and what a killed run left behind is removed by the next one. Never touches what it did not make.
//! Every wait and every command is bounded in time.

mod agent;
mod app;
mod capture;
mod certs;
mod cgroup;
mod cluster;
mod cni;
mod kubelet;
mod link;
mod load;
mod manifests;
mod netns;
mod node;
mod observe;
mod peer;
mod prober;
mod process;
mod relay;
mod scene;
mod world;

pub use agent::{Agent, AgentBuilder, Metrics, agent_binary};
pub use app::{App, AppEvent, Report, Running, testapp};
pub use capture::{Capture, Captured, Segment};
pub use certs::{Leaf, TestCa};
pub use cgroup::{Cgroup, cgroup2_mount};
pub use cluster::Cluster;
pub use cni::{CniAnswer, CniPlugin, cni_arguments, cni_list};
pub use kubelet::{KubePod, Layout, in_new_pid_namespace, new_uid};
pub use link::{Impairment, Link, LinkTally};
pub use load::{LoadReport, LoadServer, LoadTally, Loading, Turned};
pub use manifests::{Manifests, authorization_yaml};
pub use netns::Netns;
pub use node::{Node, Pod, PodSpec};
pub use observe::{KernelObjects, Usage, attached_to, map_entries, resident, sockets};
pub use peer::{PeerServer, Place, hostile_client, peer_client};
pub use prober::Kubelet;
pub use process::{JoinExt, Output, Proc, run, wait_for};
pub use relay::Relay;
pub use scene::{MESH, NEAR4, OWN4, OWN6, Scene, TRUST_DOMAIN, WEB4, WEB6, id};
pub use world::World;
