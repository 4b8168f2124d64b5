//! What one pod's load does to another's requests.

use std::time::Duration;

use anyhow::Result;
use mesh_tests::harness::{MESH, id};

use super::micros;
use crate::Extent;
use crate::figures::{Aim, Figure, Sample, figures, sample};
use crate::stage::{PORTS, Side, Stage, whole};

/// What stands beside the neighbour's requests.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    Connections,
    Handshakes,
}

/// The same with and without the mesh: on a machine whose cores the flood uses up, a neighbour waits for those without any mesh too.
pub(super) fn fairness(extent: Extent) -> Result<Vec<Figure>> {
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
    let seconds = extent.pick(2u32, 6);
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
    let p99 = sample("p99", "µs", micros(report.p99_micros));
    let p99 = match side {
        Side::Mesh => p99.aim(Aim::RatioAtMost(1.5)),
        Side::None => p99,
    };
    Ok(vec![sample("p50", "µs", micros(report.p50_micros)), p99])
}
