//! Many connections at once: active ones, and idle ones.

use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::harness::{LoadServer, WEB4, WEB6, wait_for};

use crate::remains::{LONG, expect_nothing, quiet_scene, settled, usage};

/// What an idle connection may cost an agent, bytes. What it does cost is in the bench.
const PER_IDLE_CONNECTION: u64 = 64 << 10;

#[test]
fn a_thousand_connections_are_active_at_once_and_every_name_is_true() -> Result<()> {
    let mut scene = quiet_scene()?;
    let mut server = LoadServer::start(&scene.far, 8080, &[])?;
    for web in [WEB4, WEB6] {
        let to = std::net::SocketAddr::new(web, 80).to_string();
        let args = [
            "keep",
            &to,
            "--count",
            "1000",
            "--parallel",
            "1000",
            "--questions",
            "20",
        ];
        let mut loading = scene.client.load_in_background(&args)?;
        loading.wait_held(LONG)?;
        assert_eq!(server.tally()?.open, 1000);
        loading.go_on()?;
        let report = loading.report(LONG)?;
        assert_eq!(
            (report.ok, report.failed, report.wrong_names),
            (20_000, 0, 0),
            "{report:?}\n{}",
            scene.logs()
        );
    }
    let tally = settled(&mut server)?;
    assert_eq!((tally.ended, tally.wrong_names), (2000, 0), "{tally:?}");
    expect_nothing(&mut scene)
}

#[test]
fn ten_thousand_idle_connections_cost_little_and_still_work() -> Result<()> {
    let mut scene = quiet_scene()?;
    let mut server = LoadServer::start(&scene.far, 8080, &[])?;
    let before = usage(&mut scene)?;
    let to = format!("{WEB4}:80");
    let args = ["keep", &to, "--count", "10000", "--parallel", "64"];
    let mut loading = scene.client.load_in_background(&args)?;
    loading.wait_held(LONG)?;
    assert_eq!(server.tally()?.open, 10_000, "{}", scene.logs());
    for agent in scene.agents() {
        wait_for("all of them are counted", Duration::from_secs(10), || {
            let live = agent.metrics()?.sum("mesh_agent_connections", &[]);
            ensure!(live == 10_000.0, "{live} connections");
            Ok(())
        })?;
    }
    std::thread::sleep(Duration::from_secs(2));
    let held = usage(&mut scene)?;
    for (before, held) in before.iter().zip(&held) {
        let each = held.resident.saturating_sub(before.resident) / 10_000;
        assert!(each < PER_IDLE_CONNECTION, "{each} bytes: {before:?} → {held:?}");
    }
    loading.go_on()?;
    let report = loading.report(LONG)?;
    assert_eq!(
        (report.ok, report.failed, report.wrong_names),
        (10_000, 0, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    let tally = settled(&mut server)?;
    assert_eq!((tally.ended, tally.wrong_names), (10_000, 0), "{tally:?}");
    expect_nothing(&mut scene)
}
