//! New connections: how many, how long one takes, and whether it stays so.

use anyhow::Result;

use super::{both, micros};
use crate::Extent;
use crate::figures::{Aim, Figure, figures, sample};
use crate::stage::{PORTS, Side, Stage, pairs};

pub(super) fn rate(extent: Extent) -> Result<Vec<Figure>> {
    let seconds = extent.pick("2", "10");
    let mut stage = Stage::new()?;
    let runs = pairs(&mut stage, extent, |stage, side| {
        let aim = format!("clean@{}", stage.server(side));
        let before = stage.agents()?;
        let report = stage.run(
            side,
            &[
                "churn",
                &aim,
                "--seconds",
                seconds,
                "--parallel",
                "64",
                "--ports",
                PORTS,
            ],
        )?;
        let cpu = stage.agents()?.cpu_seconds - before.cpu_seconds;
        let mut samples = vec![
            sample("connections", "/s", report.rate()).aim(Aim::RatioAtLeast(0.40)),
            sample("p50", "µs", micros(report.p50_micros)),
            sample("p99", "µs", micros(report.p99_micros)),
        ];
        if side == Side::Mesh {
            samples.push(sample(
                "agents' CPU per 1,000 connections",
                "s",
                cpu * 1e3 / report.ok as f64,
            ));
        }
        Ok(samples)
    })?;
    Ok(both("", &runs))
}

pub(super) fn single(extent: Extent) -> Result<Vec<Figure>> {
    let seconds = extent.pick("2", "5");
    let mut stage = Stage::new()?;
    let runs = pairs(&mut stage, extent, |stage, side| {
        let to = stage.server(side);
        let report = stage.run(side, &["ask", &to, "--new", "--seconds", seconds])?;
        Ok(vec![
            sample("p50", "µs", micros(report.p50_micros)).aim(Aim::RatioAtMost(5.0)),
            sample("p99", "µs", micros(report.p99_micros)),
        ])
    })?;
    Ok(both("", &runs))
}

/// Only with the mesh: what is compared is the end with the beginning.
pub(super) fn endurance(extent: Extent) -> Result<Vec<Figure>> {
    let (seconds, edge) = extent.pick(("5", 2), ("60", 10));
    let stage = Stage::new()?;
    let aim = format!("clean@{}", stage.server(Side::Mesh));
    let args = [
        "churn",
        &aim,
        "--seconds",
        seconds,
        "--parallel",
        "64",
        "--ports",
        PORTS,
    ];
    let report = stage.run(Side::Mesh, &args)?;
    let (first, last) = report.first_and_last(edge);
    let run = vec![
        sample("connections in all", "", report.ok as f64),
        sample("first seconds", "/s", first),
        sample("last seconds", "/s", last),
        sample("last ÷ first", "", last / first.max(1.0)).aim(Aim::AtLeast(0.8)),
    ];
    Ok(figures("", super::MESH_SIDE, None, &[run], &[]))
}
