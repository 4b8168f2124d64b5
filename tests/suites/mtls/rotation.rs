//! Certificates that live ten seconds, under load.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use mesh_tests::harness::{App, MESH, Scene, WEB4, id};

#[test]
fn ten_second_certificates_rotate_under_load_without_one_failed_request() -> Result<()> {
    let scene = Scene::with("r", true, |agent| agent.arg("--certificate-lifetime", "10s"))?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let kept = scene.client.connect_in_background(
        WEB4,
        80,
        "load",
        &["--seconds", "26", "--parallel", "4", "--pause", "3"],
    )?;
    let fresh = scene.client.connect_in_background(
        WEB4,
        80,
        "load-new",
        &["--seconds", "26", "--parallel", "2", "--pause", "5"],
    )?;
    // A pod that connects rarely meets a new certificate each time.
    let mut serials = BTreeSet::new();
    for _ in 0..5 {
        std::thread::sleep(Duration::from_secs(5));
        let report = scene.near.connect(WEB4, 80, "exchange", &[])?;
        assert_eq!(
            report.text,
            "ping\n",
            "not renewed in time? {report:?}\n{}",
            scene.logs()
        );
        for agent in scene.agents() {
            let certs = agent.meshctl(&["certs"])?;
            for one in certs["certificates"].as_array().context("certificates")? {
                assert_eq!(one["state"], "valid", "not renewed in time: {one:#}");
                assert!(
                    one["expires_in_seconds"]
                        .as_i64()
                        .is_some_and(|left| (0..=10).contains(&left)),
                    "{one:#}"
                );
                serials.insert((one["identity"].to_string(), one["serial"].to_string()));
            }
        }
    }
    for running in [kept, fresh] {
        let report = running.report(Duration::from_secs(30))?;
        assert_eq!(
            (report.failed, report.error.as_deref()),
            (0, None),
            "{report:?}\n{}",
            scene.logs()
        );
        assert!(report.ok > 1000 && report.longest_gap_millis < 1000, "{report:?}");
    }
    for name in ["client", "near", "far"] {
        let count = serials
            .iter()
            .filter(|(identity, _)| identity.contains(&id(MESH, name)))
            .count();
        assert!(
            count >= 4,
            "{name} had {count} certificates in 25 seconds: {serials:#?}"
        );
    }
    Ok(())
}
