//! What is measured.

use std::time::Duration;

use anyhow::Result;
use mesh_tests::harness::{Impairment, Link, MESH, id};

use crate::Extent;
use crate::figures::{Figure, Sample, figures, sample};
use crate::stage::{PORTS, Side, Stage, pairs, whole};

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
        name: "connect-rate",
        about: "new connections with one request each, 32 at a time, for a minute: rate, and whether it lasts",
        run: connect_rate,
    },
    Scenario {
        name: "keep-alive",
        about: "requests of 64 bytes on 64 connections that are kept, and on a single one",
        run: keep_alive,
    },
    Scenario {
        name: "one-stream",
        about: "bulk data on one connection",
        run: |extent| bulk(extent, "1"),
    },
    Scenario {
        name: "eight-streams",
        about: "bulk data on eight connections",
        run: |extent| bulk(extent, "8"),
    },
    Scenario {
        name: "idle-memory",
        about: "memory of agents without connections, and with 10,000 idle ones",
        run: idle_memory,
    },
    Scenario {
        name: "fairness",
        about: "a neighbour's requests beside a flood of connections, and beside 500 handshakes a second, against without",
        run: fairness,
    },
    Scenario {
        name: "line-throughput",
        about: "bulk data on one connection over lines that lose, delay and reorder",
        run: line_throughput,
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

fn connect_rate(extent: Extent) -> Result<Vec<Figure>> {
    let (seconds, edge) = extent.pick(("10", 3), ("60", 10));
    let mut stage = Stage::new()?;
    let runs = pairs(&mut stage, extent, |stage, side| {
        let aim = format!("clean@{}", stage.server(side));
        let before = stage.agents()?;
        let args = [
            "churn",
            &aim,
            "--seconds",
            seconds,
            "--parallel",
            "32",
            "--ports",
            PORTS,
        ];
        let report = stage.run(side, &args)?;
        let cpu = stage.agents()?.cpu_seconds - before.cpu_seconds;
        let (first, last) = report.first_and_last(edge);
        let mut samples = vec![
            sample("connections", "/s", report.rate()),
            sample("first seconds", "/s", first),
            sample("last seconds", "/s", last),
            sample("last ÷ first", "", last / first.max(1.0)),
            sample("p50", "µs", micros(report.p50_micros)),
            sample("p99", "µs", micros(report.p99_micros)),
        ];
        if side == Side::Mesh {
            samples.push(sample(
                "agents' CPU per connection",
                "µs",
                cpu * 1e6 / report.ok as f64,
            ));
        }
        Ok(samples)
    })?;
    Ok(both("", &runs))
}

fn keep_alive(extent: Extent) -> Result<Vec<Figure>> {
    let seconds = extent.pick("2", "10");
    let mut stage = Stage::new()?;
    let mut all = Vec::new();
    for (prefix, parallel) in [("64 connections: ", "64"), ("1 connection: ", "1")] {
        let runs = pairs(&mut stage, extent, |stage, side| {
            let to = stage.server(side);
            let before = stage.agents()?;
            let report = stage.run(side, &["ask", &to, "--parallel", parallel, "--seconds", seconds])?;
            let cpu = stage.agents()?.cpu_seconds - before.cpu_seconds;
            let mut samples = vec![
                sample("requests", "/s", report.rate()),
                sample("p50", "µs", micros(report.p50_micros)),
                sample("p99", "µs", micros(report.p99_micros)),
            ];
            if side == Side::Mesh {
                samples.push(sample(
                    "agents' CPU per request",
                    "µs",
                    cpu * 1e6 / report.ok as f64,
                ));
            }
            Ok(samples)
        })?;
        all.extend(both(prefix, &runs));
    }
    Ok(all)
}

fn bulk(extent: Extent, parallel: &str) -> Result<Vec<Figure>> {
    let seconds = extent.pick("2", "10");
    let mut stage = Stage::new()?;
    let mut all = Vec::new();
    for (prefix, way) in [("up: ", "up"), ("down: ", "down")] {
        let runs = pairs(&mut stage, extent, |stage, side| {
            let to = stage.server(side);
            let before = stage.agents()?;
            let report = stage.run(
                side,
                &["stream", &to, way, "--parallel", parallel, "--seconds", seconds],
            )?;
            let cpu = stage.agents()?.cpu_seconds - before.cpu_seconds;
            let mut samples = vec![sample("throughput", "Gbit/s", report.bits_per_second() / 1e9)];
            if side == Side::Mesh {
                samples.push(sample("agents' CPU per GB", "s", cpu * 1e9 / report.bytes as f64));
            }
            Ok(samples)
        })?;
        all.extend(both(prefix, &runs));
    }
    Ok(all)
}

/// On a stage of its own each time: what an allocator has kept is not given back to be measured again.
fn idle_memory(extent: Extent) -> Result<Vec<Figure>> {
    let count = extent.pick(1_000u32, 10_000);
    let mut runs = Vec::new();
    for _ in 0..extent.pairs {
        let mut stage = Stage::new()?;
        let idle = stage.agents()?.resident as f64;
        let to = stage.server(Side::Mesh);
        let number = count.to_string();
        let args = ["keep", &to, "--count", &number, "--parallel", "64"];
        let mut loading = stage.client(Side::Mesh).load_in_background(&args)?;
        loading.wait_held(Duration::from_secs(120))?;
        std::thread::sleep(Duration::from_secs(3));
        let held = stage.agents()?.resident as f64;
        loading.go_on()?;
        whole(&loading.report(Duration::from_secs(120))?)?;
        runs.push(vec![
            sample("idle agent", "MiB", idle / 2.0 / f64::from(1 << 20)),
            sample(
                "agent with idle connections",
                "MiB",
                held / 2.0 / f64::from(1 << 20),
            ),
            sample(
                "idle connection, per agent",
                "bytes",
                (held - idle) / 2.0 / f64::from(count),
            ),
        ]);
    }
    Ok(figures("", MESH_SIDE, None, &runs, &[]))
}

/// What stands beside the neighbour's requests.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    Connections,
    Handshakes,
}

/// The same with and without the mesh: on a machine whose cores the flood uses up, a neighbour waits for those without any mesh too.
fn fairness(extent: Extent) -> Result<Vec<Figure>> {
    let mut stage = Stage::new()?;
    let mut all = Vec::new();
    for (prefix, beside, sides) in [
        ("flood, mesh: ", Beside::Connections, Side::Mesh),
        ("flood, no mesh: ", Beside::Connections, Side::None),
        ("500 handshakes/s, mesh: ", Beside::Handshakes, Side::Mesh),
    ] {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for pair in 0..extent.pairs {
            let mut turns = [beside, Beside::Nothing];
            if pair % 2 == 1 {
                turns.reverse();
            }
            for turn in turns {
                let samples = neighbour(&mut stage, extent, turn, sides)?;
                match turn {
                    Beside::Nothing => without.push(samples),
                    _ => with.push(samples),
                }
            }
        }
        all.extend(figures(prefix, "beside it", Some("alone"), &with, &without));
    }
    Ok(all)
}

fn neighbour(stage: &mut Stage, extent: Extent, beside: Beside, side: Side) -> Result<Vec<Sample>> {
    let seconds = extent.pick(3u32, 10);
    let longer = (seconds + 2).to_string();
    let to = stage.server(side);
    let aim = format!("clean@{to}");
    let flood = match beside {
        Beside::Nothing => None,
        Beside::Connections => {
            let args = [
                "churn",
                &aim,
                "--seconds",
                &longer,
                "--parallel",
                "64",
                "--ports",
                PORTS,
            ];
            Some(stage.client(side).load_in_background(&args)?)
        }
        Beside::Handshakes => {
            let leaf = stage
                .scene
                .ca()?
                .leaf(stage.scene.world.dir(), "flood", &[&id(MESH, "client")])?;
            let gate = format!("{}:15008", stage.scene.far.ip4());
            let (cert, key) = (leaf.cert.to_string_lossy(), leaf.key.to_string_lossy());
            let args = [
                "shake",
                &gate,
                "--cert",
                &cert,
                "--key",
                &key,
                "--rate",
                "500",
                "--seconds",
                &longer,
            ];
            Some(stage.scene.visitor.load_in_background(&args)?)
        }
    };
    std::thread::sleep(Duration::from_secs(1));
    let seconds = seconds.to_string();
    let args = [
        "ask",
        &to,
        "--parallel",
        "4",
        "--pause",
        "1000",
        "--seconds",
        &seconds,
    ];
    let report = stage.run_in(stage.neighbour(side), &args)?;
    if let Some(flood) = flood {
        whole(&flood.report(Duration::from_secs(120))?)?;
    }
    Ok(vec![
        sample("p50", "µs", micros(report.p50_micros)),
        sample("p99", "µs", micros(report.p99_micros)),
    ])
}

fn line_throughput(extent: Extent) -> Result<Vec<Figure>> {
    let seconds = extent.pick("4", "15");
    let line = Impairment::default();
    let lines = [
        ("good line: ", line),
        (
            "1 % loss: ",
            Impairment {
                loss_per_mille: 10,
                ..line
            },
        ),
        (
            "5 % loss: ",
            Impairment {
                loss_per_mille: 50,
                ..line
            },
        ),
        (
            "50 ms each way: ",
            Impairment {
                delay_millis: 50,
                ..line
            },
        ),
        (
            "10 ms, 1 % loss: ",
            Impairment {
                delay_millis: 10,
                loss_per_mille: 10,
                ..line
            },
        ),
        (
            "2 ms, 5 % out of order: ",
            Impairment {
                delay_millis: 2,
                reorder_per_mille: 50,
                ..line
            },
        ),
    ];
    let mut stage = Stage::new()?;
    let mut all = Vec::new();
    for (prefix, line) in lines {
        let link = Link::between(&stage.scene.world, &stage.scene.n2, line)?;
        for (way, prefix) in [
            ("up", format!("{prefix}up: ")),
            ("down", format!("{prefix}down: ")),
        ] {
            let runs = pairs(&mut stage, extent, |stage, side| {
                let to = stage.server(side);
                let report = stage.run(side, &["stream", &to, way, "--seconds", seconds])?;
                Ok(vec![sample(
                    "throughput",
                    "Mbit/s",
                    report.bits_per_second() / 1e6,
                )])
            })?;
            all.extend(both(&prefix, &runs));
        }
        link.finish()?;
    }
    Ok(all)
}
