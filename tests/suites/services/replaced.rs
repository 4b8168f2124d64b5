//! Pods that come to an address after others: new connections reach the one that is there, under its identity, or nobody.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::harness::{
    Agent, App, MESH, Manifests, Node, Pod, PodSpec, Report, Scene, World, id, wait_for,
};

use crate::lines;

/// The host part of a pod's addresses.
fn host(pod: &Pod) -> Result<u8> {
    match pod.ip4() {
        IpAddr::V4(v4) => Ok(v4.octets()[3]),
        IpAddr::V6(_) => bail!("no IPv4 address"),
    }
}

/// As the pod is described: with a uid, as pods from an API server have one.
fn spec(pod: &Pod) -> PodSpec {
    let mut spec = pod.spec();
    spec.uid = format!("uid-of-{}", pod.name());
    spec
}

/// Connects until it is answered; each try before must have failed.
fn reach(client: &Pod, to: IpAddr, answer: &str) -> Result<Report> {
    wait_for("the new pod answers", Duration::from_secs(20), || {
        let report = client.connect(to, 8080, "exchange", &["--timeout", "3000"])?;
        ensure!(report.text == answer, "{report:?}");
        Ok(report)
    })
}

#[test]
fn a_pod_that_takes_over_an_address_is_met_under_its_own_identity_only() -> Result<()> {
    let scene = Scene::start("r")?;
    let old = scene.n2.pod(MESH, "old")?;
    scene.change(|config| config.pod(&spec(&old)))?;
    scene.wait_captured()?;
    let (address, number) = (old.ip4(), host(&old)?);
    let app = App::serve(&old, "echo", 8080, &[])?;
    let warm = scene.client.connect(address, 8080, "many", &["--count", "5"])?;
    assert_eq!((warm.ok, warm.failed), (5, 0), "{warm:?}");
    let held = scene
        .client
        .connect_in_background(address, 8080, "await", &["--timeout", "60000"])?;
    app.wait_events("accepted", 6)?;

    scene.n2.remove(old)?;
    let new = scene.n2.pod_at(MESH, "new", number)?;
    let app = App::serve(&new, "talk", 8080, &["--text", "new\n"])?;
    // Described before its predecessor is forgotten, so that at no moment the address is nobody's.
    scene.change(|config| {
        config.pod(&spec(&new))?;
        config.remove("pod-old")
    })?;
    let report = reach(&scene.client, address, "new\n")?;
    let line = lines(&scene.a1, &report)?;
    assert!(
        line.contains(&id(MESH, "new")) && !line.contains(&id(MESH, "old")),
        "{line}"
    );
    let line = lines(scene.a2(), &report)?;
    assert!(
        line.contains(&id(MESH, "new")) && line.contains(&id(MESH, "client")),
        "{line}"
    );
    // Whatever else reached the new pod came from under mutual TLS to it, never by way of its predecessor.
    let accepted = app.events_of("accepted").len();
    let log = scene.a2().log();
    let delivered = log.lines().filter(|line| {
        line.contains("connection complete")
            && line.contains(&format!("{address}:8080"))
            && line.contains(&id(MESH, "new"))
    });
    assert_eq!(delivered.count(), accepted);
    // The stream to the old pod has ended, by a reset.
    let held = held.report(Duration::from_secs(40))?;
    assert_eq!(
        (held.text.as_str(), held.end.as_str()),
        ("ping\n", "reset"),
        "{held:?}"
    );
    Ok(())
}

#[test]
fn a_client_pod_that_takes_over_an_address_inherits_no_identity_pool_or_affinity() -> Result<()> {
    let scene = Scene::start("r")?;
    let _far = App::serve(&scene.far, "talk", 8080, &["--text", "far\n"])?;
    let service: IpAddr = "198.19.0.50".parse()?;
    scene.change(|config| {
        config.write(
            "svc-sticky",
            &format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: sticky, namespace: {MESH}}}, \
                 spec: {{clusterIP: {service}, selector: {{app: far}}, sessionAffinity: ClientIP, ports: [{{port: 8080}}]}}}}\n"
            ),
        )
    })?;
    let old = scene.n1.pod(MESH, "old")?;
    scene.change(|config| config.pod(&spec(&old)))?;
    scene.wait_captured()?;
    let (address, number) = (old.ip4(), host(&old)?);
    let first = old.connect(service, 8080, "exchange", &[])?;
    assert_eq!(first.text, "far\n", "{first:?}");
    assert!(lines(scene.a2(), &first)?.contains(&id(MESH, "old")));
    let sessions = || Ok::<_, anyhow::Error>(scene.a1.meshctl(&["status"])?["sessions"]["live"].clone());
    assert_eq!(sessions()?, 1);

    scene.n1.remove(old)?;
    let new = scene.n1.pod_at(MESH, "new", number)?;
    scene.change(|config| {
        config.pod(&spec(&new))?;
        config.remove("pod-old")
    })?;
    scene.wait_captured()?;
    assert_eq!(new.ip4(), address);
    wait_for(
        "the old pod's session is forgotten",
        Duration::from_secs(5),
        || {
            let live = sessions()?;
            ensure!(live == 0, "{live}");
            Ok(())
        },
    )?;
    let report = reach(&new, service, "far\n")?;
    for agent in scene.agents() {
        let line = lines(agent, &report)?;
        assert!(
            line.contains(&id(MESH, "new")) && !line.contains(&id(MESH, "old")),
            "{line}"
        );
    }
    assert_eq!(sessions()?, 1);
    Ok(())
}

/// Two nodes whose agents read documents of their own.
struct Apart {
    a1: Agent,
    _a2: Agent,
    c1: Manifests,
    c2: Manifests,
    client: Pod,
    n2: Node,
    _n1: Node,
    _world: World,
}

impl Apart {
    fn start() -> Result<(Self, Pod)> {
        let world = World::new("r")?;
        let (n1, n2) = (world.node("n1")?, world.node("n2")?);
        let (client, old) = (n1.pod(MESH, "client")?, n2.pod(MESH, "old")?);
        let config = |name: &str| {
            let config = Manifests::new(world.dir().join(name))?;
            config.namespace(MESH, true)?;
            config.pod(&spec(&client))?;
            config.pod(&spec(&old))?;
            Ok::<_, anyhow::Error>(config)
        };
        let (c1, c2) = (config("c1")?, config("c2")?);
        let apart = Self {
            a1: Agent::builder(&world, &n1, &c1).start()?,
            _a2: Agent::builder(&world, &n2, &c2).start()?,
            c1,
            c2,
            client,
            n2,
            _n1: n1,
            _world: world,
        };
        Ok((apart, old))
    }

    fn failures(&self, reason: &str) -> Result<f64> {
        Ok(self
            .a1
            .metrics()?
            .sum("mesh_agent_connection_failures_total", &[("reason", reason)]))
    }
}

fn replace(config: &Manifests, new: &Pod) -> Result<()> {
    config.pod(&spec(new))?;
    config.remove("pod-old")
}

#[test]
fn a_client_that_still_believes_in_the_old_pod_is_refused_for_the_identity_that_it_meets() -> Result<()> {
    let (apart, old) = Apart::start()?;
    let address = old.ip4();
    {
        let _app = App::serve(&old, "talk", 8080, &["--text", "old\n"])?;
        reach(&apart.client, address, "old\n")?;
    }
    let number = host(&old)?;
    apart.n2.remove(old)?;
    let new = apart.n2.pod_at(MESH, "new", number)?;
    let app = App::serve(&new, "talk", 8080, &["--text", "new\n"])?;
    replace(&apart.c2, &new)?;
    wait_for(
        "the client's agent meets the new identity",
        Duration::from_secs(20),
        || {
            let report = apart
                .client
                .connect(address, 8080, "exchange", &["--timeout", "3000"])?;
            assert!(report.text.is_empty(), "accepted all the same: {report:?}");
            ensure!(apart.failures("unexpected_identity")? >= 1.0, "{report:?}");
            Ok(())
        },
    )?;
    assert!(app.events_of("accepted").is_empty(), "{:?}", app.events());
    let log = apart.a1.log();
    let told = log
        .lines()
        .find(|line| line.contains("connection failed") && line.contains("unexpected_identity"))
        .context("no line")?;
    for identity in [id(MESH, "old"), id(MESH, "new")] {
        assert!(told.contains(&identity), "{identity}: {told}");
    }
    replace(&apart.c1, &new)?;
    reach(&apart.client, address, "new\n").map(drop)
}

#[test]
fn a_new_pod_that_its_own_node_does_not_know_yet_gets_nothing_in_plaintext() -> Result<()> {
    let (apart, old) = Apart::start()?;
    let (address, number) = (old.ip4(), host(&old)?);
    apart.n2.remove(old)?;
    let new = apart.n2.pod_at(MESH, "new", number)?;
    let app = App::serve(&new, "talk", 8080, &["--text", "new\n"])?;
    replace(&apart.c1, &new)?;
    for _ in 0..5 {
        let report = apart
            .client
            .connect(address, 8080, "exchange", &["--timeout", "3000"])?;
        assert!(report.text.is_empty(), "{report:?}");
    }
    assert!(app.events_of("accepted").is_empty(), "{:?}", app.events());
    replace(&apart.c2, &new)?;
    reach(&apart.client, address, "new\n").map(drop)
}
