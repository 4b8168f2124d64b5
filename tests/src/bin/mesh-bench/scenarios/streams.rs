//! Bulk data, over the nodes' own wires and over bad lines.

use anyhow::Result;
use mesh_tests::harness::{Impairment, Link};

use super::both;
use crate::Extent;
use crate::clients;
use crate::figures::{Aim, Figure, sample};
use crate::stage::{Side, Stage, pairs};

pub(super) fn bulk(extent: Extent, parallel: &str) -> Result<Vec<Figure>> {
    let seconds = extent.pick(2, 8);
    let aim = if parallel == "1" { 0.40 } else { 0.25 };
    let mut stage = Stage::new()?;
    let mut all = Vec::new();
    for (prefix, reverse) in [("up: ", false), ("down: ", true)] {
        let runs = pairs(&mut stage, extent, |stage, side| {
            let before = stage.agents()?;
            let report = clients::iperf3(stage.client(side), stage.far(side), parallel, seconds, reverse)?;
            let cpu = stage.agents()?.cpu_seconds - before.cpu_seconds;
            let mut samples = vec![
                sample("throughput", "Gbit/s", report.bits_per_second / 1e9).aim(Aim::RatioAtLeast(aim)),
            ];
            if side == Side::Mesh {
                samples
                    .push(sample("agents' CPU per GB", "s", cpu * 1e9 / report.bytes).aim(Aim::AtMost(0.75)));
            }
            Ok(samples)
        })?;
        all.extend(both(prefix, &runs));
    }
    Ok(all)
}

pub(super) fn lines(extent: Extent) -> Result<Vec<Figure>> {
    let seconds = extent.pick("2", "6");
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
                let megabits = report.bits_per_second() / 1e6;
                Ok(vec![
                    sample("throughput", "Mbit/s", megabits).aim(Aim::RatioAtLeast(0.7)),
                ])
            })?;
            all.extend(both(&prefix, &runs));
        }
        link.finish()?;
    }
    Ok(all)
}
