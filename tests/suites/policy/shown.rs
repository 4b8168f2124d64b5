//! What people see of policies.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{App, MESH, Scene, wait_for};

const ALLOW: &str = "{selector: {matchLabels: {app: far}}, rules: [{from: [{source: {serviceAccounts: [client]}}], \
                     to: [{operation: {ports: ['8080']}}]}]}";

#[test]
fn a_refusal_has_one_id_in_the_tunnels_answer_the_logs_of_both_agents_and_meshctl() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    scene.change(|config| config.authorization(MESH, "far", ALLOW))?;
    assert!(!scene.near.reaches(scene.far.ip4(), 8080)?);
    assert!(!scene.visitor.reaches(scene.far.ip4(), 8080)?);
    let shown = scene.a2().meshctl(&["refusals"])?;
    let all = shown["refusals"].as_array().context("no list")?;
    let [near, visitor] = &all[..] else {
        panic!("{shown:#}")
    };
    for (refusal, name) in [(near, "near"), (visitor, "visitor")] {
        assert_eq!(refusal["source"]["workload"], name, "{refusal:#}");
        assert_eq!(refusal["destination"]["workload"], "far");
        assert_eq!(
            (&refusal["policy"], &refusal["rule"]),
            (&"AuthorizationPolicy mesh/far".into(), &0.into())
        );
        assert_eq!(refusal["field"], "source.serviceAccounts");
        assert!(refusal.get("stood_seconds").is_none());
        let id = refusal["id"].as_str().context("no id")?;
        let log = scene.a2().log();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(id)).collect();
        assert_eq!(
            lines.len(),
            2,
            "one of the refusal, one of the access log:\n{log}"
        );
        assert_eq!(
            lines
                .iter()
                .filter(|line| line.contains("connection failed"))
                .count(),
            1
        );
    }
    let id = near["id"].as_str().context("no id")?;
    assert_ne!(Some(id), visitor["id"].as_str());
    let at_the_client = scene.a1.log();
    assert!(
        at_the_client.contains(&format!("the refusal is {id} there")),
        "{at_the_client}"
    );
    let text = scene.a2().meshctl_text(&["refusals"])?.success()?;
    assert!(
        text.contains(id) && text.contains("source.serviceAccounts"),
        "{text}"
    );
    let denied = [
        ("policy", "far"),
        ("verdict", "denied"),
        ("action", "ALLOW"),
        ("namespace", MESH),
    ];
    let metrics = scene.a2().metrics()?;
    assert_eq!(metrics.sum("mesh_agent_policy_decisions_total", &denied), 2.0);
    Ok(())
}

#[test]
fn explain_says_what_then_happens() -> Result<()> {
    let scene = Scene::start("p")?;
    let _apps = [
        App::serve(&scene.far, "echo", 8080, &[])?,
        App::serve(&scene.far, "echo", 9090, &[])?,
        App::serve(&scene.near, "echo", 8080, &[])?,
    ];
    let deny = "{action: DENY, selector: {matchLabels: {app: near}}, rules: [{from: [{source: {notPrincipals: ['*']}}]}]}";
    scene.change(|config| {
        config.authorization(MESH, "far", ALLOW)?;
        config.authorization(MESH, "near", deny)
    })?;
    for (from, source) in [
        (&scene.client, "mesh/client"),
        (&scene.near, "mesh/near"),
        (&scene.visitor, "outside/visitor"),
    ] {
        for (to, destination, port) in [
            (&scene.far, "mesh/far", 8080),
            (&scene.far, "mesh/far", 9090),
            (&scene.near, "mesh/near", 8080),
        ] {
            let destination = format!("{destination}:{port}");
            for agent in scene.agents() {
                let said = agent.meshctl(&["explain", source, &destination])?;
                let happens = from.reaches(to.ip4(), port)?;
                ensure!(
                    said["allowed"] == happens,
                    "{source} {destination}: {happens}, {said:#}\n{}",
                    scene.logs()
                );
            }
        }
    }
    let said = scene.a1.meshctl(&["explain", "mesh/near", "web.mesh"])?;
    let way = &said["ways"][0];
    assert_eq!(
        (&way["mode"], &way["verdict"]),
        (&"mtls".into(), &"refused".into()),
        "{said:#}"
    );
    assert_eq!(
        (&way["policy"], &way["rule"]),
        (&"AuthorizationPolicy mesh/far".into(), &0.into())
    );
    assert_eq!(
        (&way["action"], &way["field"]),
        (&"ALLOW".into(), &"source.serviceAccounts".into())
    );
    let text = scene
        .a1
        .meshctl_text(&["explain", "mesh/near", "web.mesh"])?
        .success()?;
    for part in [
        "REFUSED (policy_denied)",
        "AuthorizationPolicy mesh/far (ALLOW)",
        "source.serviceAccounts",
        "mtls",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    let unknown = scene
        .a1
        .meshctl_text(&["explain", "mesh/nobody", "mesh/far:8080"])?;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(unknown.stderr.contains("nobody is called"), "{}", unknown.stderr);
    Ok(())
}

#[test]
fn readiness_for_strict_names_who_still_talks_plaintext() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let far = || -> Result<serde_json::Value> {
        let shown = scene.a2().meshctl(&["mtls", "readiness"])?;
        let all = shown["workloads"].as_array().context("no list")?;
        let far = all
            .iter()
            .find(|one| one["name"] == "far")
            .context("far is missing")?;
        Ok(far.clone())
    };
    assert!(scene.client.reaches(scene.far.ip4(), 8080)?);
    let before = far()?;
    assert_eq!(
        (&before["ready"], &before["sources"]),
        (&true.into(), &serde_json::json!([])),
        "{before:#}"
    );
    for _ in 0..2 {
        assert!(scene.visitor.reaches(scene.far.ip4(), 8080)?);
    }
    let after = far()?;
    let source = &after["sources"][0];
    assert_eq!(
        (&source["source"], &source["count"]),
        (&"outside/visitor".into(), &2.into()),
        "{after:#}"
    );
    assert_eq!(
        (&source["ports"], &after["ready"]),
        (&serde_json::json!([8080]), &false.into())
    );
    let text = scene.a2().meshctl_text(&["mtls", "readiness"])?.success()?;
    assert!(text.contains("outside/visitor") && text.contains("NO"), "{text}");
    scene.change(|config| config.peer_authentication(MESH, "STRICT"))?;
    assert!(!scene.visitor.reaches(scene.far.ip4(), 8080)?);
    assert_eq!(far()?["mtls"], "STRICT");
    Ok(())
}

#[test]
fn services_show_which_endpoints_clients_get_and_why_not_the_others() -> Result<()> {
    let scene = Scene::start("p")?;
    let web = || -> Result<serde_json::Value> {
        let shown = scene.a1.meshctl(&["services"])?;
        let all = shown["services"].as_array().context("no list")?;
        Ok(all
            .iter()
            .find(|one| one["name"] == "web")
            .context("web is missing")?
            .clone())
    };
    let endpoint = &web()?["ports"][0]["endpoints"][0];
    assert_eq!(
        (&endpoint["workload"], &endpoint["chosen"]),
        (&"mesh/far".into(), &true.into()),
        "{endpoint:#}"
    );
    let local = "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: mesh}\nspec: {clusterIP: 198.19.0.10, \
                 internalTrafficPolicy: Local, selector: {app: far}, ports: [{port: 80, targetPort: 8080}]}\n";
    scene.config.write("svc-web", local)?;
    wait_for("the change is shown", Duration::from_secs(5), || {
        let web = web()?;
        let endpoint = &web["ports"][0]["endpoints"][0];
        let why = endpoint["why_not"].as_str().unwrap_or_default();
        ensure!(
            endpoint["chosen"] == false && why.contains("internalTrafficPolicy"),
            "{web:#}"
        );
        Ok(())
    })?;
    let text = scene.a1.meshctl_text(&["services"])?.success()?;
    assert!(text.contains("mesh/web") && text.contains("mesh/far"), "{text}");
    Ok(())
}
