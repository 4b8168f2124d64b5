//! Who is let in.

use anyhow::{Result, ensure};
use mesh_tests::harness::{App, MESH, Scene, authorization_yaml};

/// What was decided about connections by a policy, as the metrics of `far`'s agent say.
fn decided(scene: &Scene, policy: &str, verdict: &str) -> Result<f64> {
    let labels = [("policy", policy), ("verdict", verdict)];
    Ok(scene
        .a2()
        .metrics()?
        .sum("mesh_agent_policy_decisions_total", &labels))
}

#[test]
fn a_policy_lets_in_whom_it_names_and_refuses_others_with_the_reason() -> Result<()> {
    let scene = Scene::start("p")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let _other = App::serve(&scene.far, "echo", 9090, &[])?;
    let _near = App::serve(&scene.near, "echo", 8080, &[])?;
    for from in [&scene.client, &scene.near, &scene.visitor] {
        assert!(
            from.reaches(scene.far.ip4(), 8080)?,
            "without policies everybody is let in"
        );
    }
    let allow = "{selector: {matchLabels: {app: far}}, rules: [{from: [{source: {principals: [cluster.local/ns/mesh/sa/client]}}], \
                 to: [{operation: {ports: ['8080']}}]}]}";
    scene.change(|config| config.authorization(MESH, "far", allow))?;
    let before = far.events_of("accepted").len();
    assert!(scene.client.reaches(scene.far.ip4(), 8080)?, "{}", scene.logs());
    assert!(!scene.near.reaches(scene.far.ip4(), 8080)?, "another identity");
    assert!(!scene.visitor.reaches(scene.far.ip4(), 8080)?, "no identity");
    assert!(!scene.client.reaches(scene.far.ip4(), 9090)?, "another port");
    assert!(scene.visitor.reaches(scene.near.ip4(), 8080)?, "another workload");
    assert_eq!(
        far.events_of("accepted").len(),
        before + 1,
        "no connection but the one"
    );
    let log = scene.a2().log();
    for words in [
        "AuthorizationPolicy mesh/far rule 0: source.principals wants cluster.local/ns/mesh/sa/client, the connection has \
         spiffe://cluster.local/ns/mesh/sa/near",
        "operation.ports wants 8080, the connection has 9090",
        "it came in plaintext",
    ] {
        assert!(log.contains(words), "{words}\n{log}");
    }
    let metrics = scene.a2().metrics()?;
    let denied = metrics.sum(
        "mesh_agent_connection_failures_total",
        &[("reason", "policy_denied")],
    );
    assert_eq!(denied, 3.0, "{}", metrics.show("mesh_agent_conn"));
    let deny = "{action: DENY, rules: [{from: [{source: {serviceAccounts: [client]}}], to: [{operation: {methods: [GET]}}]}]}";
    scene.change(|config| config.authorization(MESH, "no-client", deny))?;
    assert!(
        !scene.client.reaches(scene.far.ip4(), 8080)?,
        "a DENY wins, its HTTP part left out"
    );
    assert!(
        scene
            .a2()
            .log()
            .contains("AuthorizationPolicy mesh/no-client rule 0 denies it")
    );
    scene.change(|config| {
        config.remove("authz-no-client")?;
        config.remove("authz-far")
    })?;
    assert!(scene.near.reaches(scene.far.ip4(), 8080)?);
    Ok(())
}

#[test]
fn audit_and_dry_run_policies_are_counted_and_refuse_nobody() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    scene.change(|config| {
        config.authorization(
            MESH,
            "watch",
            "{action: AUDIT, rules: [{from: [{source: {serviceAccounts: [client]}}]}]}",
        )?;
        config.dry_run(
            MESH,
            "maybe",
            "{rules: [{from: [{source: {serviceAccounts: [near]}}]}]}",
        )
    })?;
    for from in [&scene.client, &scene.near, &scene.visitor] {
        assert!(from.reaches(scene.far.ip4(), 8080)?, "{}", scene.logs());
    }
    assert_eq!(decided(&scene, "watch", "audited")?, 1.0);
    assert_eq!(decided(&scene, "maybe", "dry_run_allowed")?, 1.0);
    assert_eq!(
        decided(&scene, "maybe", "dry_run_denied")?,
        2.0,
        "client and visitor"
    );
    let log = scene.a2().log();
    assert!(
        log.contains("audited") && log.contains("AuthorizationPolicy mesh/watch"),
        "{log}"
    );
    let explained = scene.a2().meshctl(&["explain", "mesh/client", "mesh/far:8080"])?;
    let way = &explained["ways"][0];
    assert_eq!(way["verdict"], "allowed", "{explained:#}");
    assert!(
        way["dry_run"]
            .as_str()
            .is_some_and(|text| text.starts_with("refused")),
        "{way:#}"
    );
    assert_eq!(way["audited"][0], "AuthorizationPolicy mesh/watch rule 0");
    Ok(())
}

#[test]
fn a_policy_holds_for_the_mesh_from_the_root_namespace_and_else_for_its_own() -> Result<()> {
    let scene = Scene::start("p")?;
    let _apps = [
        App::serve(&scene.far, "echo", 8080, &[])?,
        App::serve(&scene.far, "echo", 9090, &[])?,
        App::serve(&scene.near, "echo", 9090, &[])?,
    ];
    let deny = "{action: DENY, rules: [{to: [{operation: {ports: ['9090']}}]}]}";
    scene.change(|config| config.authorization("outside", "ports", deny))?;
    assert!(
        scene.client.reaches(scene.far.ip4(), 9090)?,
        "it is another namespace's"
    );
    scene.change(|config| config.authorization("istio-system", "ports", deny))?;
    for to in [&scene.far, &scene.near] {
        assert!(!scene.client.reaches(to.ip4(), 9090)?, "{}", scene.logs());
    }
    assert!(scene.client.reaches(scene.far.ip4(), 8080)?);
    scene.change(|config| {
        config.authorization(
            MESH,
            "ports",
            "{selector: {matchLabels: {app: near}}, rules: [{}]}",
        )
    })?;
    assert!(
        scene.client.reaches(scene.near.ip4(), 9090)?,
        "the file has another policy now"
    );
    Ok(())
}

#[test]
fn a_client_outside_the_mesh_is_known_by_its_address_alone() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let (v4, v6) = (scene.visitor.ip4(), scene.visitor.ip6());
    let blocks =
        |field: &str| format!("{{rules: [{{from: [{{source: {{{field}: ['{v4}', '{v6}/128']}}}}]}}]}}");
    scene.change(|config| config.authorization(MESH, "blocks", &blocks("ipBlocks")))?;
    for to in [scene.far.ip4(), scene.far.ip6()] {
        assert!(scene.visitor.reaches(to, 8080)?, "{to}\n{}", scene.logs());
        assert!(!scene.client.reaches(to, 8080)?, "{to}: another address");
    }
    scene.change(|config| config.authorization(MESH, "blocks", &blocks("notIpBlocks")))?;
    for to in [scene.far.ip4(), scene.far.ip6()] {
        assert!(!scene.visitor.reaches(to, 8080)?, "{to}");
        assert!(scene.client.reaches(to, 8080)?, "{to}\n{}", scene.logs());
    }
    let nobody = "{rules: [{from: [{source: {principals: ['*']}}]}]}";
    scene.change(|config| config.authorization(MESH, "blocks", nobody))?;
    assert!(
        !scene.visitor.reaches(scene.far.ip4(), 8080)?,
        "it has no identity"
    );
    Ok(())
}

#[test]
fn hundreds_of_policies_that_select_others_decide_nothing() -> Result<()> {
    const MANY: usize = 400;
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let one = |n: usize| {
        let spec = format!("{{selector: {{matchLabels: {{app: other-{n}}}}}}}");
        authorization_yaml(MESH, &format!("other-{n:03}"), "", &spec)
    };
    let all: Vec<String> = (0..MANY).map(one).collect();
    scene.change(|config| config.write("many", &all.join("---\n")))?;
    for from in [&scene.client, &scene.near, &scene.visitor] {
        assert!(from.reaches(scene.far.ip4(), 8080)?, "{}", scene.logs());
    }
    let deny = "{action: DENY, rules: [{from: [{source: {serviceAccounts: [near]}}]}]}";
    scene.change(|config| config.authorization(MESH, "one", deny))?;
    assert!(scene.client.reaches(scene.far.ip4(), 8080)?);
    assert!(
        !scene.near.reaches(scene.far.ip4(), 8080)?,
        "the one that selects it counts"
    );
    let listed = scene.a2().meshctl(&["policies"])?;
    let listed = listed["policies"].as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(listed.len(), MANY + 1);
    let selecting: Vec<_> = listed
        .iter()
        .filter(|policy| policy["selects"].as_array().is_some_and(|all| !all.is_empty()))
        .map(|policy| policy["name"].clone())
        .collect();
    assert_eq!(selecting, ["one"]);
    Ok(())
}

#[test]
fn a_bad_document_leaves_the_last_good_policy_in_force() -> Result<()> {
    let scene = Scene::start("p")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    let good = "{rules: [{from: [{source: {serviceAccounts: [client]}}]}]}";
    scene.change(|config| config.authorization(MESH, "far", good))?;
    let holds = || -> Result<()> {
        ensure!(
            scene.client.reaches(scene.far.ip4(), 8080)?,
            "client: {}",
            scene.logs()
        );
        ensure!(!scene.near.reaches(scene.far.ip4(), 8080)?, "near was let in");
        Ok(())
    };
    holds()?;
    for bad in [
        "{action: PERHAPS}",
        "{rules: everybody}",
        "{selector: {}, targetRefs: [{kind: Service, name: web}]}",
    ] {
        scene.change(|config| config.authorization(MESH, "far", bad))?;
        holds()?;
        let shown = scene.a2().meshctl(&["policies"])?;
        let policy = &shown["policies"][0];
        assert_eq!(
            (&policy["name"], &policy["in_force"]),
            (&"far".into(), &true.into())
        );
        let problem = policy["problems"][0].as_str().unwrap_or_default();
        assert!(
            problem.contains("authz-far.yaml:") && problem.contains("rejected"),
            "{shown:#}"
        );
    }
    scene.change(|config| config.authorization(MESH, "far", "{rules: [{}]}"))?;
    assert!(
        scene.near.reaches(scene.far.ip4(), 8080)?,
        "a good one replaces it"
    );
    Ok(())
}
