//! Requests on connections that are kept: how many, how long one takes, and what each hop adds.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::harness::{LoadServer, MESH, Pod};

use super::{both, micros};
use crate::Extent;
use crate::clients;
use crate::figures::{Aim, Figure, figures, sample};
use crate::stage::{PORT, PORTS, Side, Stage, pairs, whole};

/// How many services a question of `chain` goes through.
const HOPS: usize = 10;

pub(super) fn keep_alive(extent: Extent) -> Result<Vec<Figure>> {
    let seconds = extent.pick(2, 8);
    let mut stage = Stage::new()?;
    let servers = stage.http_servers()?;
    let runs = pairs(&mut stage, extent, |stage, side| {
        let before = stage.agents()?;
        let report = clients::wrk(stage.client(side), stage.http(side), 64, seconds)?;
        let cpu = stage.agents()?.cpu_seconds - before.cpu_seconds;
        let mut samples = vec![
            sample("requests", "/s", report.rate).aim(Aim::RatioAtLeast(0.35)),
            sample("p50", "µs", report.p50_micros),
            sample("p99", "µs", report.p99_micros),
            sample("p99.9", "µs", report.p999_micros),
        ];
        if side == Side::Mesh {
            let per_request = cpu * 1e6 / report.requests as f64;
            samples.push(sample("agents' CPU per request", "µs", per_request).aim(Aim::AtMost(28.0)));
        }
        Ok(samples)
    })?;
    drop(servers);
    let mut all = both("64 connections: ", &runs);
    let seconds = seconds.to_string();
    let runs = pairs(&mut stage, extent, |stage, side| {
        let to = stage.server(side);
        let report = stage.run(side, &["ask", &to, "--seconds", &seconds])?;
        Ok(vec![
            sample("requests", "/s", report.rate()),
            sample("p50", "µs", micros(report.p50_micros)).aim(Aim::RatioAtMost(1.8)),
            sample("p99", "µs", micros(report.p99_micros)),
            sample("p99.9", "µs", micros(report.p999_micros)),
        ])
    })?;
    all.extend(both("1 connection: ", &runs));
    Ok(all)
}

pub(super) fn fixed_rate(extent: Extent) -> Result<Vec<Figure>> {
    let seconds = extent.pick("2", "8");
    let mut stage = Stage::new()?;
    let runs = pairs(&mut stage, extent, |stage, side| {
        let to = stage.server(side);
        let args = [
            "ask",
            &to,
            "--rate",
            "2000",
            "--parallel",
            "16",
            "--seconds",
            seconds,
        ];
        let report = stage.run(side, &args)?;
        Ok(vec![
            sample("p50", "µs", micros(report.p50_micros)),
            sample("p99", "µs", micros(report.p99_micros)),
            sample("p99.9", "µs", micros(report.p999_micros)),
        ])
    })?;
    Ok(both("", &runs))
}

pub(super) fn same_node(extent: Extent) -> Result<Vec<Figure>> {
    let seconds = extent.pick(2, 5);
    let text = seconds.to_string();
    let mut stage = Stage::new()?;
    let near: Vec<LoadServer> = [Side::Mesh, Side::None]
        .into_iter()
        .map(|side| LoadServer::start(stage.neighbour(side), PORT, &["--ports", PORTS]))
        .collect::<Result<_>>()?;
    let to = |stage: &Stage, side| SocketAddr::new(stage.neighbour(side).ip4(), PORT).to_string();
    let asked = pairs(&mut stage, extent, |stage, side| {
        let args = ["ask", &to(stage, side), "--parallel", "64", "--seconds", &text];
        let report = stage.run(side, &args)?;
        Ok(vec![
            sample("requests", "/s", report.rate()),
            sample("p50", "µs", micros(report.p50_micros)),
            sample("p99", "µs", micros(report.p99_micros)),
        ])
    })?;
    let opened = pairs(&mut stage, extent, |stage, side| {
        let aim = format!("clean@{}", to(stage, side));
        let args = [
            "churn",
            &aim,
            "--seconds",
            &text,
            "--parallel",
            "64",
            "--ports",
            PORTS,
        ];
        let report = stage.run(side, &args)?;
        Ok(vec![sample("connections", "/s", report.rate())])
    })?;
    drop(near);
    let streamed = pairs(&mut stage, extent, |stage, side| {
        let (client, server) = (stage.client(side), stage.neighbour(side));
        let bits = clients::iperf3(client, server, "1", seconds, false)?.bits_per_second;
        Ok(vec![sample("throughput", "Gbit/s", bits / 1e9)])
    })?;
    let mut all = both("one stream: ", &streamed);
    all.extend(both("64 kept connections: ", &asked));
    all.extend(both("64 clients that connect: ", &opened));
    Ok(all)
}

/// Ten services in a row, on both nodes in turns: nine hops between nodes and one more from the client.
pub(super) fn chain(extent: Extent) -> Result<Vec<Figure>> {
    let seconds = extent.pick("2", "5");
    let mut stage = Stage::new()?;
    let mut rows = Vec::new();
    for side in [Side::Mesh, Side::None] {
        rows.push(row(&stage, side)?);
    }
    stage.scene.wait_captured()?;
    let runs = pairs(&mut stage, extent, |stage, side| {
        let (pods, _) = &rows[usize::from(side == Side::None)];
        let first = pods.first().context("a chain has a first service")?;
        let to = SocketAddr::new(first.ip4(), PORT).to_string();
        let report = stage
            .client(side)
            .load(Duration::from_secs(120), &["ask", &to, "--seconds", seconds])?;
        whole(&report)?;
        Ok(vec![
            sample("p50", "µs", micros(report.p50_micros)),
            sample("p99", "µs", micros(report.p99_micros)),
        ])
    })?;
    let added = |name: &str| -> Vec<f64> {
        let of = |side: usize| {
            runs[side]
                .iter()
                .filter_map(|run| run.iter().find(|sample| sample.name == name))
                .map(|sample| sample.value)
                .collect::<Vec<f64>>()
        };
        of(0)
            .iter()
            .zip(of(1))
            .map(|(mesh, none)| (mesh - none) / HOPS as f64 / 1e3)
            .collect()
    };
    let per_hop: Vec<_> = added("p50")
        .into_iter()
        .zip(added("p99"))
        .map(|(p50, p99)| {
            vec![
                sample("added per hop, p50", "ms", p50),
                sample("added per hop, p99", "ms", p99),
            ]
        })
        .collect();
    let mut all = both("", &runs);
    all.extend(figures("", super::MESH_SIDE, None, &per_hop, &[]));
    Ok(all)
}

/// The services of one side, the first of them first, and what they run.
fn row(stage: &Stage, side: Side) -> Result<(Vec<Pod>, Vec<LoadServer>)> {
    let (namespace, prefix) = match side {
        Side::Mesh => (MESH, "hop"),
        Side::None => ("outside", "step"),
    };
    let mut pods = Vec::new();
    for number in 0..HOPS {
        let node = if number % 2 == 0 {
            &stage.scene.n2
        } else {
            &stage.scene.n1
        };
        let pod = node.pod(namespace, &format!("{prefix}{number}"))?;
        stage.scene.config.pod(&pod.spec())?;
        pods.push(pod);
    }
    let mut servers = Vec::new();
    for (number, pod) in pods.iter().enumerate() {
        let next = pods
            .get(number + 1)
            .map(|next| SocketAddr::new(next.ip4(), PORT).to_string());
        let args: Vec<&str> = next.iter().flat_map(|next| ["--next", next.as_str()]).collect();
        servers.push(LoadServer::start(pod, PORT, &args)?);
    }
    Ok((pods, servers))
}
