//! What is measured, a module per kind of question.

mod changes;
mod connections;
mod fairness;
mod kubernetes;
mod memory;
mod requests;
mod streams;

use anyhow::Result;

use crate::Extent;
use crate::figures::{Figure, Sample, figures};

/// A scenario.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) about: &'static str,
    pub(crate) run: fn(Extent) -> Result<Vec<Figure>>,
}

/// All of them.
pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "one-stream",
        about: "bulk data on one connection, by iperf3",
        run: |extent| streams::bulk(extent, "1"),
    },
    Scenario {
        name: "eight-streams",
        about: "bulk data on eight connections, by iperf3",
        run: |extent| streams::bulk(extent, "8"),
    },
    Scenario {
        name: "keep-alive",
        about: "HTTP requests on 64 connections that are kept, by wrk; and questions of 64 bytes on a single one",
        run: requests::keep_alive,
    },
    Scenario {
        name: "fixed-rate",
        about: "2,000 questions a second over 16 connections, timed from when they are due",
        run: requests::fixed_rate,
    },
    Scenario {
        name: "connect-rate",
        about: "new connections with one request each, 64 at a time",
        run: connections::rate,
    },
    Scenario {
        name: "connect-request",
        about: "one client that connects, asks and closes, over and over",
        run: connections::single,
    },
    Scenario {
        name: "endurance",
        about: "new connections for a minute: whether the rate lasts",
        run: connections::endurance,
    },
    Scenario {
        name: "same-node",
        about: "client and server on one node: a stream, 64 kept connections, new connections",
        run: requests::same_node,
    },
    Scenario {
        name: "chain",
        about: "a question that goes through ten services, each behind the next",
        run: requests::chain,
    },
    Scenario {
        name: "memory",
        about: "memory of agents: idle, with idle connections, and with 30 and 100 pods",
        run: memory::memory,
    },
    Scenario {
        name: "changes",
        about: "from a file's change to its enforcement",
        run: changes::changes,
    },
    Scenario {
        name: "kubernetes",
        about: "one agent and the API of a cluster of 5,000 and of 50,000 pods: memory, and from a change to its effect",
        run: kubernetes::kubernetes,
    },
    Scenario {
        name: "fairness",
        about: "a neighbour's requests beside a flood of connections, and beside 500 handshakes a second, against without",
        run: fairness::fairness,
    },
    Scenario {
        name: "line-throughput",
        about: "bulk data on one connection over lines that lose, delay and reorder",
        run: streams::lines,
    },
];

const MESH_SIDE: &str = "mesh";
const NO_MESH: Option<&str> = Some("no mesh");

fn both(prefix: &str, [mesh, none]: &[Vec<Vec<Sample>>; 2]) -> Vec<Figure> {
    figures(prefix, MESH_SIDE, NO_MESH, mesh, none)
}

fn micros(micros: u64) -> f64 {
    micros as f64
}
