//! Where it is measured: the tests' scene, and pods beside it that the mesh does not know, on the same nodes and over the same wires.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{LoadReport, LoadServer, Pod, Scene, Usage};

use crate::Extent;
use crate::figures::Sample;

/// How many ports the servers listen on, so that clients without the mesh do not run out of ports of their own.
pub(crate) const PORTS: &str = "16";
pub(crate) const PORT: u16 = 8080;
/// Where HTTP is served.
const HTTP_PORT: u16 = 8180;
/// How long a run may take at most.
const LONG: Duration = Duration::from_secs(300);

/// With the mesh or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Mesh,
    None,
}

/// The scene and what is beside it. Fields drop in order: programs before what they run in.
pub(crate) struct Stage {
    _servers: [LoadServer; 2],
    plain: [Pod; 3],
    pub(crate) scene: Scene,
}

impl Stage {
    /// Sets it up: agents with default settings, servers on both far pods.
    pub(crate) fn new() -> Result<Self> {
        // The agents' log goes to a file, the access log with it, as it would on a node.
        let scene = Scene::with("bench", true, |agent| agent.env("MESH_AGENT_LOG", "info"))?;
        let plain = [
            scene.n1.pod("outside", "plain")?,
            scene.n1.pod("outside", "plainnear")?,
            scene.n2.pod("outside", "plainfar")?,
        ];
        let servers = [
            LoadServer::start(&scene.far, PORT, &["--ports", PORTS])?,
            LoadServer::start(&plain[2], PORT, &["--ports", PORTS])?,
        ];
        Ok(Self {
            _servers: servers,
            plain,
            scene,
        })
    }

    /// The client on n1.
    pub(crate) fn client(&self, side: Side) -> &Pod {
        match side {
            Side::Mesh => &self.scene.client,
            Side::None => &self.plain[0],
        }
    }

    /// The client's neighbour.
    pub(crate) fn neighbour(&self, side: Side) -> &Pod {
        match side {
            Side::Mesh => &self.scene.near,
            Side::None => &self.plain[1],
        }
    }

    /// The server on n2, first of its ports.
    pub(crate) fn server(&self, side: Side) -> String {
        SocketAddr::new(self.far(side).ip4(), PORT).to_string()
    }

    /// The pod on n2 that serves.
    pub(crate) fn far(&self, side: Side) -> &Pod {
        match side {
            Side::Mesh => &self.scene.far,
            Side::None => &self.plain[2],
        }
    }

    /// Servers of HTTP on both far pods, for as long as they are kept.
    pub(crate) fn http_servers(&self) -> Result<[LoadServer; 2]> {
        Ok([
            LoadServer::http(self.far(Side::Mesh), HTTP_PORT)?,
            LoadServer::http(self.far(Side::None), HTTP_PORT)?,
        ])
    }

    /// Where they listen.
    pub(crate) fn http(&self, side: Side) -> SocketAddr {
        SocketAddr::new(self.far(side).ip4(), HTTP_PORT)
    }

    /// Runs a client to its end; a failure of one connection is a failure of the run, since its figures would be those of something else.
    pub(crate) fn run(&self, side: Side, args: &[&str]) -> Result<LoadReport> {
        self.run_in(self.client(side), args)
    }

    /// As [`Stage::run`], in another pod.
    pub(crate) fn run_in(&self, pod: &Pod, args: &[&str]) -> Result<LoadReport> {
        let report = pod.load(LONG, args)?;
        whole(&report).with_context(|| format!("mesh-load {}", args.join(" ")))?;
        Ok(report)
    }

    /// What both agents use together.
    pub(crate) fn agents(&mut self) -> Result<Usage> {
        let second = self.scene.a2.as_mut().context("the scene has a second agent")?;
        let pids = [self.scene.a1.proc().pid(), second.proc().pid()];
        let [one, two] = [Usage::of(pids[0])?, Usage::of(pids[1])?];
        Ok(Usage {
            resident: one.resident + two.resident,
            descriptors: one.descriptors + two.descriptors,
            cpu_seconds: one.cpu_seconds + two.cpu_seconds,
        })
    }
}

/// That nothing failed, and something was done.
pub(crate) fn whole(report: &LoadReport) -> Result<()> {
    ensure!(
        report.failed == 0 && report.ok > 0,
        "{} failed, {} went well: {:?}",
        report.failed,
        report.ok,
        report.errors
    );
    Ok(())
}

/// Runs of `measure` with the mesh and without, in turns; which goes first alternates too.
pub(crate) fn pairs(
    stage: &mut Stage,
    extent: Extent,
    mut measure: impl FnMut(&mut Stage, Side) -> Result<Vec<Sample>>,
) -> Result<[Vec<Vec<Sample>>; 2]> {
    let (mut mesh, mut none) = (Vec::new(), Vec::new());
    for pair in 0..extent.pairs {
        let order = if pair % 2 == 0 {
            [Side::Mesh, Side::None]
        } else {
            [Side::None, Side::Mesh]
        };
        for side in order {
            let samples = measure(stage, side)?;
            match side {
                Side::Mesh => mesh.push(samples),
                Side::None => none.push(samples),
            }
        }
    }
    Ok([mesh, none])
}
