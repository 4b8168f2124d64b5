//! What agents keep in memory.

use std::time::Duration;

use anyhow::Result;
use mesh_tests::harness::{MESH, resident};

use super::MESH_SIDE;
use crate::Extent;
use crate::figures::{Aim, Figure, figures, sample};
use crate::stage::{Side, Stage, whole};

const MIB: f64 = (1 << 20) as f64;

/// On a stage of its own each time: what an allocator has kept is not given back to be measured again.
pub(super) fn memory(extent: Extent) -> Result<Vec<Figure>> {
    let counts = extent.pick([1_000u32].as_slice(), &[1_000, 10_000]);
    let rounds = extent.pairs.min(2);
    let mut all = Vec::new();
    for &count in counts {
        let mut runs = Vec::new();
        for _ in 0..rounds {
            runs.push(connections(count)?);
        }
        all.extend(figures(
            &format!("{count} idle connections: "),
            MESH_SIDE,
            None,
            &runs,
            &[],
        ));
    }
    all.extend(figures("", MESH_SIDE, None, &[pods()?], &[]));
    Ok(all)
}

fn connections(count: u32) -> Result<Vec<crate::figures::Sample>> {
    let mut stage = Stage::new()?;
    // What starting took is given back a second later.
    std::thread::sleep(Duration::from_secs(3));
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
    Ok(vec![
        sample("agent without them", "MiB", idle / 2.0 / MIB).aim(Aim::AtMost(20.0)),
        sample("agent with them", "MiB", held / 2.0 / MIB),
        sample(
            "connection, per agent",
            "KiB",
            (held - idle) / 2.0 / f64::from(count) / 1024.0,
        )
        .aim(Aim::AtMost(5.0)),
    ])
}

/// The first node's agent, with more and more pods.
fn pods() -> Result<Vec<crate::figures::Sample>> {
    let stage = Stage::new()?;
    let mut pods = Vec::new();
    let mut samples = Vec::new();
    for (name, count) in [("agent with 30 pods", 30), ("agent with 100 pods", 100)] {
        // Two are there already.
        while pods.len() + 2 < count {
            let pod = stage.scene.n1.pod(MESH, &format!("more{}", pods.len()))?;
            stage.scene.config.pod(&pod.spec())?;
            pods.push(pod);
        }
        stage.scene.wait_enrolled(count)?;
        std::thread::sleep(Duration::from_secs(2));
        let bytes = resident(stage.scene.a1.pid())? as f64;
        samples.push(sample(name, "MiB", bytes / MIB));
    }
    Ok(samples)
}
