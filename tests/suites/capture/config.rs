//! The directory of documents: what is bad is named and changes nothing, what changes is in force at once, also under load.

use std::time::{Duration, Instant};

use anyhow::Result;
use mesh_tests::harness::{App, MESH, Scene, WEB4, wait_for};
use serde_json::Value;

fn rejection(config: &Value, file: &str) -> Option<Value> {
    let all = config["rejections"].as_array()?;
    all.iter()
        .find(|one| one["file"].as_str().is_some_and(|name| name.ends_with(file)))
        .cloned()
}

#[test]
fn a_bad_document_is_named_with_line_and_column_and_the_last_good_one_stays_in_force() -> Result<()> {
    let scene = Scene::start("c")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let good = std::fs::read_to_string(scene.config.dir().join("svc-web.yaml"))?;
    let bad = good.replace("port: 80\n", "port: eighty\n");
    assert_ne!(good, bad);
    scene.config.write("svc-web", &bad)?;
    let found = wait_for("the rejection is shown", Duration::from_secs(3), || {
        let config = scene.a1.meshctl(&["config"])?;
        rejection(&config, "svc-web.yaml").ok_or_else(|| anyhow::anyhow!("{config:#}"))
    })?;
    let line = 1 + bad
        .lines()
        .position(|line| line.contains("eighty"))
        .expect("it is there") as u64;
    assert_eq!(found["line"], line, "{found:#}");
    assert!(
        found["column"].as_u64().is_some_and(|column| column > 1),
        "{found:#}"
    );
    assert!(
        found["message"]
            .as_str()
            .is_some_and(|said| said.contains("eighty")),
        "{found:#}"
    );
    let report = scene.client.connect(WEB4, 80, "exchange", &[])?;
    assert_eq!(
        report.text,
        "ping\n",
        "the last good version no longer serves: {report:?}\n{}",
        scene.logs()
    );
    let text = scene.a1.meshctl_text(&["config"])?.success()?;
    assert!(
        text.contains("svc-web.yaml") && text.contains(&line.to_string()),
        "{text}"
    );
    assert!(scene.a1.metrics()?.sum("mesh_agent_config_rejections", &[]) >= 1.0);

    scene.config.write("svc-web", &good)?;
    wait_for("the rejection is gone", Duration::from_secs(3), || {
        let config = scene.a1.meshctl(&["config"])?;
        if rejection(&config, "svc-web.yaml").is_none() {
            Ok(())
        } else {
            anyhow::bail!("{config:#}")
        }
    })
}

#[test]
fn a_file_that_is_no_yaml_and_an_unknown_kind_are_named_and_harm_nothing() -> Result<()> {
    let scene = Scene::start("c")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    scene
        .config
        .write("broken", "apiVersion: v1\nkind: [Pod\nmetadata: {")?;
    scene.config.write(
        "strange",
        "apiVersion: example.org/v1\nkind: Gizmo\nmetadata:\n  name: g\n",
    )?;
    wait_for("both are named", Duration::from_secs(3), || {
        let config = scene.a1.meshctl(&["config"])?.to_string();
        if config.contains("broken.yaml") && config.contains("strange.yaml") && config.contains("Gizmo") {
            Ok(())
        } else {
            anyhow::bail!("{config}")
        }
    })?;
    let report = scene.client.connect(WEB4, 80, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}");
    Ok(())
}

#[test]
fn a_change_is_in_force_within_a_second() -> Result<()> {
    let scene = Scene::start("c")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let admitted = || -> Result<bool> {
        let report = scene
            .visitor
            .connect(scene.far.ip4(), 8080, "exchange", &["--timeout", "2000"])?;
        Ok(report.text == "ping\n")
    };
    assert!(admitted()?);
    for (mode, expected) in [("STRICT", false), ("PERMISSIVE", true), ("STRICT", false)] {
        let start = Instant::now();
        scene.config.peer_authentication(MESH, mode)?;
        let mut took = Duration::MAX;
        while took > Duration::from_secs(1) && start.elapsed() < Duration::from_secs(3) {
            // What counts is when the connection was tried that met the new mode.
            let tried = start.elapsed();
            if admitted()? == expected {
                took = tried;
            }
        }
        assert!(
            took <= Duration::from_secs(1),
            "{mode} was not in force after a second\n{}",
            scene.logs()
        );
    }
    Ok(())
}

#[test]
fn changes_under_load_lose_no_connection() -> Result<()> {
    let scene = Scene::start("c")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let kept = scene.client.connect_in_background(
        WEB4,
        80,
        "load",
        &["--seconds", "6", "--parallel", "4", "--pause", "2"],
    )?;
    let fresh = scene.client.connect_in_background(
        WEB4,
        80,
        "load-new",
        &["--seconds", "6", "--parallel", "2", "--pause", "5"],
    )?;
    let before = scene.versions()?;
    for n in 0..40u16 {
        scene.config.service(
            MESH,
            &format!("extra-{}", n % 5),
            "far",
            &[],
            &[("p", 1000 + n, 8080)],
        )?;
        scene
            .config
            .peer_authentication(MESH, if n % 2 == 0 { "STRICT" } else { "PERMISSIVE" })?;
        if n % 10 == 9 {
            scene.config.remove(&format!("svc-extra-{}", n % 5))?;
            scene.config.write("junk", "kind: {")?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    for running in [kept, fresh] {
        let report = running.report(Duration::from_secs(20))?;
        assert_eq!(
            (report.failed, report.error.as_deref()),
            (0, None),
            "{report:?}\n{}",
            scene.logs()
        );
        assert!(report.ok > 100, "{report:?}");
    }
    let after = scene.versions()?;
    assert!(
        after
            .iter()
            .zip(&before)
            .all(|(after, before)| *after > before + 5.0),
        "{before:?} → {after:?}"
    );
    Ok(())
}
