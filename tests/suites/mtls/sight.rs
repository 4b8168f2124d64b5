//! What the agents say agrees with what the programs at both ends counted.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{App, MESH, Scene, WEB4, id, wait_for};

#[test]
fn the_metrics_of_both_agents_equal_what_the_clients_counted() -> Result<()> {
    let scene = Scene::start("g")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let text = "t".repeat(1000);
    let report = scene.client.connect(
        WEB4,
        80,
        "many",
        &["--count", "20", "--parallel", "2", "--text", &text],
    )?;
    assert_eq!((report.ok, report.failed), (40, 0), "{report:?}");
    for (agent, reporter) in [(&scene.a1, "source"), (scene.a2(), "destination")] {
        wait_for(
            &format!("the counters of the {reporter}"),
            Duration::from_secs(5),
            || {
                let metrics = agent.metrics()?;
                let labels = [
                    ("reporter", reporter),
                    ("source_workload", "client"),
                    ("destination_workload", "far"),
                    ("destination_workload_namespace", MESH),
                    ("source_principal", &id(MESH, "client")),
                    ("destination_principal", &id(MESH, "far")),
                ];
                let sum = |name: &str| metrics.sum(&format!("istio_tcp_{name}_total"), &labels);
                let seen = [
                    "connections_opened",
                    "connections_closed",
                    "received_bytes",
                    "sent_bytes",
                ]
                .map(sum);
                ensure!(
                    seen == [40.0, 40.0, 40_000.0, 40_000.0],
                    "{seen:?}\n{}",
                    metrics.show("istio_tcp")
                );
                Ok(())
            },
        )?;
    }
    Ok(())
}

/// Requests and answers of different lengths, so that the two cannot be mistaken for each other; every label at both ends.
#[test]
fn request_bytes_are_received_and_answers_sent_and_each_end_names_the_other_and_the_service() -> Result<()> {
    let scene = Scene::start("g")?;
    scene.change(|config| {
        let mut far = scene.far.spec();
        far.labels.push(("version".to_owned(), "v7".to_owned()));
        config.pod(&far)
    })?;
    scene.wait_captured()?;
    let (request, answer) = (30_011, 170_003);
    let _far = App::serve(&scene.far, "bulk", 8080, &["--bytes", &answer.to_string()])?;
    let report = scene
        .client
        .connect(WEB4, 80, "bulk", &["--bytes", &request.to_string()])?;
    assert_eq!((report.sent, report.received), (request, answer), "{report:?}");
    for (agent, reporter, security) in [
        (&scene.a1, "source", "unknown"),
        (scene.a2(), "destination", "mutual_tls"),
    ] {
        wait_for(
            &format!("the counters of the {reporter}"),
            Duration::from_secs(5),
            || {
                let metrics = agent.metrics()?;
                let labels = [
                    ("reporter", reporter),
                    ("source_workload", "client"),
                    ("source_workload_namespace", MESH),
                    ("source_principal", &id(MESH, "client")),
                    ("source_app", "client"),
                    ("source_version", "latest"),
                    ("source_cluster", "Kubernetes"),
                    ("source_canonical_service", "client"),
                    ("source_canonical_revision", "latest"),
                    ("destination_workload", "far"),
                    ("destination_workload_namespace", MESH),
                    ("destination_principal", &id(MESH, "far")),
                    ("destination_app", "far"),
                    ("destination_version", "v7"),
                    ("destination_cluster", "Kubernetes"),
                    ("destination_canonical_service", "far"),
                    ("destination_canonical_revision", "v7"),
                    ("destination_service", "web.mesh.svc.cluster.local"),
                    ("destination_service_name", "web"),
                    ("destination_service_namespace", MESH),
                    ("request_protocol", "tcp"),
                    ("connection_security_policy", security),
                    ("response_flags", "-"),
                ];
                let all = |name: &str| metrics.sum(&format!("istio_tcp_{name}_total"), &[]);
                let ours = |name: &str| metrics.sum(&format!("istio_tcp_{name}_total"), &labels);
                for (name, expected) in [
                    ("connections_opened", 1.0),
                    ("connections_closed", 1.0),
                    ("received_bytes", request as f64),
                    ("sent_bytes", answer as f64),
                ] {
                    let seen = [ours(name), all(name)];
                    ensure!(
                        seen == [expected, expected],
                        "{name}: {seen:?}\n{}",
                        metrics.show("istio_tcp")
                    );
                }
                Ok(())
            },
        )?;
    }
    Ok(())
}

#[test]
fn each_connection_has_one_access_log_line_at_each_end() -> Result<()> {
    let scene = Scene::start("g")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    for _ in 0..7 {
        assert_eq!(scene.client.connect(WEB4, 80, "exchange", &[])?.text, "ping\n");
    }
    for (agent, direction) in [(&scene.a1, "outbound"), (scene.a2(), "inbound")] {
        wait_for("seven lines", Duration::from_secs(5), || {
            let log = agent.log();
            let lines: Vec<_> = log
                .lines()
                .filter(|line| line.contains("connection complete") && line.contains(direction))
                .collect();
            ensure!(lines.len() == 7, "{lines:#?}");
            for line in lines {
                for part in [
                    &id(MESH, "client"),
                    &id(MESH, "far"),
                    "client",
                    "far",
                    &scene.client.ip4().to_string(),
                ] {
                    ensure!(line.contains(part), "{part} is missing: {line}");
                }
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn live_connections_identities_certificates_and_programs_are_shown() -> Result<()> {
    let scene = Scene::start("g")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let idle = scene
        .client
        .connect_in_background(WEB4, 80, "idle", &["--count", "3", "--seconds", "3"])?;
    for (agent, direction) in [(&scene.a1, "outbound"), (scene.a2(), "inbound")] {
        wait_for("three live connections", Duration::from_secs(3), || {
            let answer = agent.meshctl(&["connections"])?;
            let all = answer["connections"].as_array().context("connections")?;
            let good = all.iter().filter(|one| {
                one["direction"] == direction
                    && one["security"] == "mutual_tls"
                    && one["source"]["identity"] == id(MESH, "client")
                    && one["destination"]["identity"] == id(MESH, "far")
            });
            ensure!(good.count() == 3 && all.len() == 3, "{answer:#}");
            Ok(())
        })?;
    }
    let certs = scene.a1.meshctl(&["certs"])?;
    let ids: Vec<_> = certs["certificates"]
        .as_array()
        .context("certificates")?
        .iter()
        .map(|c| c["identity"].clone())
        .collect();
    assert!(
        ids.contains(&id(MESH, "client").into()) && ids.contains(&id(MESH, "near").into()),
        "{certs:#}"
    );
    assert!(
        !ids.contains(&id(MESH, "far").into()),
        "a node has certificates of its own pods only: {certs:#}"
    );
    let bpf = scene.a1.meshctl(&["bpf"])?;
    assert_eq!(bpf["pods"].as_array().map(Vec::len), Some(2), "{bpf:#}");
    let status = scene.a1.meshctl(&["status"])?;
    assert_eq!(
        (&status["ready"], &status["pods"]["captured"]),
        (&true.into(), &2.into()),
        "{status:#}"
    );
    for command in [
        "check",
        "status",
        "workloads",
        "connections",
        "certs",
        "bpf",
        "config",
    ] {
        let output = scene.a1.meshctl_text(&[command])?;
        assert!(
            output.status.success() && !output.stdout.is_empty(),
            "meshctl {command}: {output:?}"
        );
    }
    assert_eq!(idle.report(Duration::from_secs(15))?.ok, 3);
    Ok(())
}

#[test]
fn a_failed_connection_says_who_failed_and_why() -> Result<()> {
    let scene = Scene::start("g")?;
    scene.client.connect(scene.far.ip4(), 8080, "exchange", &[])?;
    wait_for("both ends log the failure", Duration::from_secs(5), || {
        for agent in scene.agents() {
            let log = agent.log();
            let line = log
                .lines()
                .find(|line| line.contains("connection failed"))
                .context("no line")?;
            ensure!(line.contains("CONNECT") || line.contains("503"), "{line}");
        }
        Ok(())
    })
}

#[test]
fn the_admin_socket_is_for_root_alone_and_keys_are_not_in_the_logs() -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let scene = Scene::start("g")?;
    let mode = std::fs::metadata(scene.a1.admin_socket())?.permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let key = std::fs::metadata(scene.world.dir().join("ca/root.key"))?
        .permissions()
        .mode()
        & 0o777;
    assert_eq!(key, 0o600);
    assert!(!scene.logs().contains("PRIVATE KEY"));
    Ok(())
}

#[test]
fn idle_connections_end_and_budgets_refuse_as_the_settings_say_and_both_are_shown() -> Result<()> {
    let scene = Scene::with("g", true, |agent| {
        agent.arg("--idle-timeout", "1500ms").arg("--budget-streams", "3")
    })?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let report = scene.client.connect(WEB4, 80, "await", &[])?;
    assert_eq!(
        (report.text.as_str(), report.end.as_str()),
        ("ping\n", "reset"),
        "{report:?}\n{}",
        scene.logs()
    );
    wait_for("the flag in log and metrics", Duration::from_secs(5), || {
        ensure!(
            scene.agents().any(|agent| agent.log().contains("IDLE_TIMEOUT")),
            "{}",
            scene.logs()
        );
        let mut counted = 0.0;
        for agent in scene.agents() {
            let labels = [("flag", "IDLE_TIMEOUT"), ("reason", "idle_timeout")];
            counted += agent
                .metrics()?
                .sum("mesh_agent_connection_failures_total", &labels);
        }
        ensure!(counted > 0.0, "not counted");
        Ok(())
    })?;
    // Twenty at a time are more than a budget of three on each worker.
    scene
        .client
        .connect(WEB4, 80, "idle", &["--count", "20", "--seconds", "0.5"])?;
    wait_for("the refusals", Duration::from_secs(5), || {
        let metrics = scene.a2().metrics()?;
        let refused = metrics.sum("mesh_agent_budget_refusals_total", &[("budget", "stream")]);
        ensure!(refused > 0.0, "{}", metrics.show("mesh_agent_budget"));
        let shown = scene.a2().meshctl(&["workloads"])?;
        let far = shown["workloads"]
            .as_array()
            .and_then(|all| all.iter().find(|w| w["name"] == "far"))
            .context("far")?;
        ensure!(
            far["usage"]["refused"]["stream"].as_u64() == Some(refused as u64),
            "{far:#}"
        );
        let text = scene.a2().meshctl_text(&["workloads"])?.stdout;
        ensure!(text.contains("its stream budget has refused"), "{text}");
        Ok(())
    })
}
