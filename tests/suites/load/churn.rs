//! Very many connections, one after another and many at a time.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::harness::{LoadServer, MESH, Scene, WEB4, wait_for};

use crate::remains::{LONG, expect_nothing, quiet_scene, settled, usage};

/// What an agent may hold more of after a load than after its first moments, bytes: what its allocator keeps for the next one.
const MORE_MEMORY: u64 = 48 << 20;
/// Descriptors likewise: tunnels stay pooled for a while.
const MORE_DESCRIPTORS: usize = 64;

#[test]
fn a_hundred_thousand_connections_of_one_pod_leave_nothing_behind() -> Result<()> {
    let mut scene = quiet_scene()?;
    let mut server = LoadServer::start(&scene.far, 8080, &[])?;
    let clean = format!("clean@{WEB4}:80");
    let first = scene
        .client
        .load(LONG, &["churn", &clean, "--count", "4000", "--parallel", "64"])?;
    assert_eq!((first.ok, first.failed), (4000, 0), "{first:?}\n{}", scene.logs());
    let before = usage(&mut scene)?;
    let report = scene
        .client
        .load(LONG, &["churn", &clean, "--count", "100000", "--parallel", "64"])?;
    assert_eq!(
        (report.ok, report.failed, report.wrong_names),
        (100_000, 0, 0),
        "{:?}\n{}",
        report.errors,
        scene.logs()
    );
    let tally = settled(&mut server)?;
    assert_eq!(
        (tally.accepted, tally.ended, tally.wrong_names),
        (104_000, 104_000, 0),
        "{tally:?}"
    );
    expect_nothing(&mut scene)?;
    wait_for(
        "memory and descriptors are given back",
        Duration::from_secs(30),
        || {
            let after = usage(&mut scene)?;
            for (before, after) in before.iter().zip(&after) {
                ensure!(
                    after.resident < before.resident + MORE_MEMORY,
                    "{before:?} → {after:?}"
                );
                ensure!(
                    after.descriptors < before.descriptors + MORE_DESCRIPTORS,
                    "{before:?} → {after:?}"
                );
            }
            Ok(())
        },
    )
}

#[test]
fn a_hundred_thousand_failed_reset_and_clean_connections_leave_both_flow_maps_empty() -> Result<()> {
    let mut scene = quiet_scene()?;
    let mut server = LoadServer::start(&scene.far, 8080, &[])?;
    let mut strict = LoadServer::start(&scene.near, 8080, &[])?;
    let denied = format!("refused@{}:8080", scene.near.ip4());
    scene.config.peer_authentication(MESH, "STRICT")?;
    wait_for("plaintext is denied", Duration::from_secs(30), || {
        let probe = scene
            .visitor
            .load(LONG, &["churn", &denied, "--count", "1", "--timeout", "1000"])?;
        ensure!(probe.ok == 1, "{probe:?}");
        Ok(())
    })?;
    let heard = settled(&mut strict)?.accepted;
    let aims = mixed(&scene);
    let each = 95_000 / aims.len() as u64;
    let count = (each * aims.len() as u64).to_string();
    let mut args: Vec<&str> = vec!["churn", "--count", &count, "--parallel", "64"];
    args.extend(aims.iter().map(String::as_str));
    let plaintext = ["churn", &denied, "--count", "5000", "--parallel", "8"];
    let visitor = scene.visitor.load_in_background(&plaintext)?;
    let report = scene.client.load(LONG, &args)?;
    let visitor = visitor.report(LONG)?;
    assert_eq!(
        (report.ok, report.failed, report.wrong_names),
        (each * aims.len() as u64, 0, 0),
        "{:?}\n{}",
        report.errors,
        scene.logs()
    );
    assert_eq!((visitor.ok, visitor.failed), (5000, 0), "{visitor:?}");
    assert_eq!(
        strict.tally()?.accepted,
        heard,
        "plaintext to a strict pod arrived"
    );
    let tally = settled(&mut server)?;
    // Each clean one ended in order, each that was aborted behind its first answer was reset; of the others some never arrived.
    assert!(tally.ended >= each, "{tally:?}");
    assert!(tally.errors["reset"] >= each, "{tally:?}");
    expect_nothing(&mut scene)?;
    let after = scene.client.load(LONG, &["churn", &aims[0], "--count", "100"])?;
    assert_eq!((after.ok, after.failed), (100, 0), "{after:?}\n{}", scene.logs());
    Ok(())
}

/// Every way to fail that a client has, and a clean one first.
fn mixed(scene: &Scene) -> Vec<String> {
    let (far, outside) = (scene.far.ip4(), scene.visitor.ip4());
    let mut aims: Vec<String> = [
        "clean",
        "abort-open",
        "abort-sent",
        "abort-answered",
        "abort-half",
        "dropped",
        "server-reset",
    ]
    .iter()
    .map(|manner| format!("{manner}@{WEB4}:80"))
    .collect();
    aims.extend([
        // The service has no such port; nobody listens there, within the mesh and outside; a port of the agent's own.
        format!("refused@{WEB4}:81"),
        format!("refused@{far}:9"),
        format!("refused@{outside}:9"),
        format!("refused@{far}:15104"),
    ]);
    aims
}
