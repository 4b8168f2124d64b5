//! A new agent takes over from the one that runs: no new connection fails, what stands lives on, and an upgrade that fails costs nothing.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{
    Agent, App, LoadReport, LoadServer, Loading, Manifests, Scene, WEB4, WEB6, attached_to, wait_for,
};

use nix::sys::signal::Signal;

use crate::pins::{dir, pins};

/// How long anything may take on a machine that does much else besides.
const LONG: Duration = Duration::from_secs(400);
/// How long a predecessor takes to leave: handshakes that have begun may end, then connections drain.
const LEAVING: Duration = Duration::from_secs(60);

/// The scene, with agents that do not log each connection and drain for `drain`.
fn scene(drain: &str) -> Result<Scene> {
    Scene::with("u", true, |agent| {
        agent
            .env("MESH_AGENT_LOG", "info,access=off")
            .arg("--drain", drain)
    })
}

/// Servers and clients that open connection after connection, each way that there is.
struct Load {
    _servers: Vec<LoadServer>,
    /// With the word whether the server is shown the client under its true name.
    clients: Vec<(Loading, bool)>,
    each: u64,
}

impl Load {
    /// `each` connections on each way, at most `rate` of them per second.
    fn start(scene: &Scene, each: u64, rate: u64) -> Result<Self> {
        let servers = vec![
            LoadServer::start(&scene.far, 8080, &[])?,
            LoadServer::start(&scene.near, 8080, &[])?,
            LoadServer::start(&scene.visitor, 8080, &[])?,
        ];
        let (count, rate) = (each.to_string(), rate.to_string());
        let churn = |aims: [String; 2]| {
            let how = ["--count", &count, "--rate", &rate, "--parallel", "8"].map(str::to_owned);
            [&["churn".to_owned()][..], &aims, &how].concat()
        };
        let clean = |ip, port| format!("clean@{}", SocketAddr::new(ip, port));
        let web = SocketAddr::new(WEB4, 80);
        let ways = [
            // Through the tunnel, to the other node.
            (&scene.client, true, churn([clean(WEB4, 80), clean(WEB6, 80)])),
            // Through the tunnel within the node, and in plaintext from outside to both nodes.
            (
                &scene.client,
                true,
                churn([clean(scene.near.ip4(), 8080), clean(scene.far.ip6(), 8080)]),
            ),
            (
                &scene.visitor,
                true,
                churn([clean(scene.near.ip4(), 8080), clean(scene.far.ip6(), 8080)]),
            ),
            // Out of the mesh: from the pod's address, and another port than the client's.
            (
                &scene.near,
                false,
                churn([clean(scene.visitor.ip4(), 8080), clean(scene.visitor.ip6(), 8080)]),
            ),
            // The client ends its side first, and without a word.
            (
                &scene.near,
                true,
                churn([format!("half@{web}"), format!("silent@{web}")]),
            ),
        ];
        let mut clients = Vec::new();
        for (pod, names, args) in &ways {
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            clients.push((pod.load_in_background(&args)?, *names));
        }
        Ok(Self {
            _servers: servers,
            clients,
            each,
        })
    }

    /// Waits for the end; every connection must have gone well, under its true name. How many there were.
    fn expect_no_loss(self, logs: impl Fn() -> String) -> Result<u64> {
        self.expect_few_losses(0, logs)
    }

    /// Waits for the end; all but `few` of each client's connections must have gone well, and none under a wrong name. How many went well.
    fn expect_few_losses(self, few: u64, logs: impl Fn() -> String) -> Result<u64> {
        let mut total = 0;
        for (client, names) in self.clients {
            let LoadReport {
                ok,
                failed,
                wrong_names,
                errors,
                ..
            } = client.report(LONG)?;
            ensure!(
                ok + failed == self.each && failed <= few && (wrong_names == 0 || !names),
                "connections were lost: {ok} went well, {failed} did not, {wrong_names} under wrong names: {errors:?}\n{}",
                logs()
            );
            total += ok;
        }
        Ok(total)
    }

    fn expect_running(&mut self) -> Result<()> {
        for (client, _) in &mut self.clients {
            ensure!(client.is_running(), "the load ended before the upgrade did");
        }
        Ok(())
    }
}

/// Waits until an agent that has been relieved is gone.
fn wait_left(mut agent: Agent) -> Result<()> {
    let status = agent.proc().wait(LEAVING)?;
    ensure!(status.success(), "{status}: {}", agent.log());
    ensure!(
        agent.log().contains("left: the pods are the successor's"),
        "{}",
        agent.log()
    );
    Ok(())
}

/// Exchanges the agents of both nodes, one after the other, and waits until the old ones are gone.
fn upgrade_both(scene: Scene) -> Result<Scene> {
    let Scene { a1, a2, .. } = scene;
    let a2 = a2.context("this scene has a second agent")?;
    let next1 = a1.successor().start()?;
    let next2 = a2.successor().start()?;
    wait_left(a1)?;
    wait_left(a2)?;
    Ok(Scene {
        a1: next1,
        a2: Some(next2),
        ..scene
    })
}

#[test]
fn an_upgrade_of_both_agents_loses_none_of_twenty_thousand_connections() -> Result<()> {
    let scene = scene("2s")?;
    let before = [pins(&scene, &scene.n1), pins(&scene, &scene.n2)];
    let mut load = Load::start(&scene, 4_400, 110)?;
    let mut scene = upgrade_both(scene)?;
    load.expect_running()?;
    let total = load.expect_no_loss(|| scene.logs())?;
    ensure!(total >= 20_000, "{total} connections are too few");
    println!("{total} connections, 0 lost");
    ensure!(
        [pins(&scene, &scene.n1), pins(&scene, &scene.n2)] == before,
        "the pins are other ones"
    );
    scene.a1.stop()?;
    ensure!(!dir(&scene, &scene.n1).exists(), "{:?}", pins(&scene, &scene.n1));
    ensure!(attached_to(scene.client.cgroup().path())?.is_empty());
    Ok(())
}

fn loses_nothing_under(cookies: &str) -> Result<()> {
    let scene = scene("1s")?;
    for pod in [&scene.client, &scene.near, &scene.far, &scene.visitor] {
        pod.netns().sysctl("ipv4/tcp_syncookies", cookies)?;
    }
    let mut load = Load::start(&scene, 1_200, 50)?;
    let scene = upgrade_both(scene)?;
    load.expect_running()?;
    load.expect_no_loss(|| scene.logs()).map(drop)
}

#[test]
fn an_upgrade_loses_nothing_without_syn_cookies() -> Result<()> {
    loses_nothing_under("0")
}

#[test]
fn an_upgrade_loses_nothing_with_syn_cookies_on_overflow() -> Result<()> {
    loses_nothing_under("1")
}

#[test]
fn an_upgrade_from_another_abi_loses_nothing_either() -> Result<()> {
    let scene = scene("1s")?;
    let run = dir(&scene, &scene.n1).join("run-1");
    let seal = std::fs::read_dir(&run)?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("abi-"))
        })
        .context("the run has no ABI")?;
    std::fs::rename(&seal, seal.with_file_name("abi-1"))?;
    let mut load = Load::start(&scene, 1_200, 60)?;
    let Scene { a1, .. } = scene;
    let next = a1.successor().start()?;
    wait_left(a1)?;
    let a1 = next;
    let scene = Scene { a1, ..scene };
    load.expect_running()?;
    load.expect_no_loss(|| scene.logs())?;
    let left = pins(&scene, &scene.n1);
    ensure!(left.iter().all(|pin| pin.starts_with("run-2/")), "{left:?}");
    Ok(())
}

#[test]
fn established_connections_live_until_the_drain_time_ends() -> Result<()> {
    let mut scene = scene("4s")?;
    let _far = LoadServer::start(&scene.far, 8080, &[])?;
    let keep = |to: &str| scene.client.load_in_background(&["keep", to, "--count", "20"]);
    let mut short = keep(&format!("{WEB4}:80"))?;
    short.wait_held(LONG)?;
    let mut long = keep(&format!("{WEB4}:80"))?;
    long.wait_held(LONG)?;
    let next = scene.a1.successor().start()?;
    wait_for(
        "the new agent knows of the old one",
        Duration::from_secs(15),
        || {
            let status = next.meshctl(&["status"])?;
            let old = &status["predecessor"];
            ensure!(
                old["pid"] == scene.a1.pid() && old["connections"] == 40,
                "{status:#}"
            );
            Ok(())
        },
    )?;
    ensure!(handovers(&next)? == [1, 0, 0]);
    // They stand on the old agent, and go on.
    short.go_on()?;
    let report = short.report(LONG)?;
    ensure!(
        (report.ok, report.failed) == (20, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    ensure!(
        scene.a1.proc().ended().is_none(),
        "the old agent has connections left"
    );
    // These do not end by themselves: they are ended.
    let began = Instant::now();
    ensure!(scene.a1.proc().wait(LEAVING)?.success());
    ensure!(began.elapsed() > Duration::from_secs(2), "it left at once");
    wait_for(
        "it has left for the new one, too",
        Duration::from_secs(15),
        || {
            let status = next.meshctl(&["status"])?;
            ensure!(status["predecessor"].is_null(), "{status:#}");
            Ok(())
        },
    )?;
    long.go_on()?;
    let report = long.report(LONG)?;
    ensure!((report.ok, report.failed) == (0, 20), "{report:?}");
    drop(next);
    Ok(())
}

/// Handovers that went well, that failed, and that were refused, as the agent counts them.
fn handovers(agent: &Agent) -> Result<[u64; 3]> {
    let metrics = agent.metrics()?;
    let count = |result| metrics.sum("mesh_agent_handovers_total", &[("result", result)]) as u64;
    Ok(["taken_over", "failed", "refused"].map(count))
}

#[test]
fn an_upgrade_that_fails_costs_next_to_nothing_and_the_old_agent_goes_on() -> Result<()> {
    let mut scene = scene("1s")?;
    let load = Load::start(&scene, 1_200, 60)?;
    // One that cannot have a port: it finds out after the old agent has given up its own.
    let _taken = scene
        .n1
        .netns()
        .enter(|| Ok(std::net::TcpListener::bind("127.0.0.1:15999")?))?;
    let bad = scene.a1.successor().arg("--metrics-address", "127.0.0.1:15999");
    let output = bad.run_to_end(|_| {})?;
    ensure!(output.status.code() == Some(5), "{output:?}");
    wait_for("the old agent is back", Duration::from_secs(15), || {
        ensure!(scene.a1.ready()?.0);
        scene.a1.meshctl(&["status"]).map(drop)
    })?;
    ensure!(handovers(&scene.a1)? == [0, 1, 0]);
    // Some that are killed on their way, early and late. They know of a pod that cannot be captured, so they are never done in time.
    let theirs = Manifests::new(scene.world.dir().join("theirs"))?;
    for entry in std::fs::read_dir(scene.config.dir())? {
        let entry = entry?;
        std::fs::copy(entry.path(), theirs.dir().join(entry.file_name()))?;
    }
    let nowhere = scene.n1.pod("mesh", "nowhere")?;
    let mut spec = nowhere.spec();
    spec.netns = scene.world.dir().join("not-there");
    theirs.pod(&spec)?;
    for millis in [30, 150, 400, 900, 2500] {
        let successor = scene.a1.successor();
        let mut doomed = successor
            .arg("--config-dir", &theirs.dir().to_string_lossy())
            .spawn()?;
        std::thread::sleep(Duration::from_millis(millis));
        doomed.kill();
        ensure!(scene.a1.proc().ended().is_none(), "{}", scene.a1.log());
        ensure!(
            !scene.a1.log().contains("relieved"),
            "the successor was complete after {millis} ms, without a pod of its own"
        );
        wait_for("the old agent is back", Duration::from_secs(15), || {
            ensure!(scene.a1.ready()?.0);
            scene.a1.meshctl(&["status"]).map(drop)
        })?;
    }
    // Those that are killed early may not have asked yet.
    let counted = handovers(&scene.a1)?;
    ensure!(
        matches!(counted, [0, failed, 0] if (2..=6).contains(&failed)),
        "{counted:?}"
    );
    // What came while listeners were a dead successor's is refused, until the old agent has heard of its death: milliseconds, of a minute.
    load.expect_few_losses(24, || scene.logs())?;
    // It still has the say over its pods.
    let late = scene.n1.pod("mesh", "late")?;
    scene.change(|config| config.pod(&late.spec()))?;
    scene.wait_captured()?;
    let _far = App::serve(&scene.far, "echo", 8081, &[])?;
    let report = late.connect(scene.far.ip4(), 8081, "exchange", &[])?;
    ensure!(report.text == "ping\n", "{report:?}");
    scene.a1.stop()?;
    ensure!(!dir(&scene, &scene.n1).exists(), "{:?}", pins(&scene, &scene.n1));
    Ok(())
}

#[test]
fn an_agent_that_is_not_to_take_over_or_is_of_another_node_is_sent_away() -> Result<()> {
    let scene = scene("1s")?;
    let shy = scene
        .a1
        .successor()
        .arg("--take-over", "false")
        .run_to_end(|_| {})?;
    let said = format!("{}{}", shy.stdout, shy.stderr);
    ensure!(
        shy.status.code() == Some(5) && said.contains("owns the admin socket"),
        "{said}"
    );
    let stranger = scene.a1.successor().arg("--node-name", "n9").run_to_end(|_| {})?;
    let said = format!("{}{}", stranger.stdout, stranger.stderr);
    ensure!(
        stranger.status.code() == Some(5) && said.contains("agent of node n1"),
        "{said}"
    );
    // Neither has disturbed the one that runs. The first has not asked it.
    ensure!(scene.a1.ready()?.0);
    ensure!(handovers(&scene.a1)? == [0, 0, 1]);
    Ok(())
}

#[test]
fn an_agent_that_does_not_answer_keeps_its_node() -> Result<()> {
    let mut scene = scene("1s")?;
    scene.a1.proc().signal(nix::sys::signal::Signal::SIGSTOP)?;
    let output = scene
        .a1
        .successor()
        .run_to_end_within(Duration::from_secs(60), |_| {});
    scene.a1.proc().signal(nix::sys::signal::Signal::SIGCONT)?;
    let output = output?;
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(
        output.status.code() == Some(5) && said.contains("does not yield"),
        "{said}"
    );
    wait_for("the old agent goes on", Duration::from_secs(15), || {
        ensure!(scene.a1.ready()?.0);
        Ok(())
    })
}

/// Waits until a successor serves every new connection.
fn wait_relieved(agent: &Agent) -> Result<()> {
    wait_for("it is relieved", Duration::from_secs(20), || {
        let log = agent.log();
        ensure!(log.contains("relieved: draining"), "{log}");
        Ok(())
    })
}

/// As a probe in a container that is not the agent's asks, and as one in the agent's own does.
#[test]
fn readiness_can_be_asked_of_the_agent_of_ones_own_container_alone() -> Result<()> {
    let scene = Scene::with("u", false, |agent| agent)?;
    let ready = scene.a1.meshctl(&["ready", "--own"])?;
    ensure!(
        ready["ready"] == true && ready["pid"] == scene.a1.pid(),
        "{ready}"
    );
    let meshctl = mesh_tests::harness::agent_binary()?.with_file_name("meshctl");
    let elsewhere = |args: &[&str]| {
        let mut command = std::process::Command::new("unshare");
        command.args(["--mount", "--"]).arg(&meshctl).args(args);
        let args = scene.a1.args().iter().skip_while(|arg| *arg != "--admin-socket");
        command.arg("--socket").args(args.skip(1).take(1));
        mesh_tests::harness::run(&mut command, Duration::from_secs(15))
    };
    let said = elsewhere(&["ready"])?;
    ensure!(said.status.success() && said.stdout == "ready\n", "{said:?}");
    let said = elsewhere(&["ready", "--own"])?;
    ensure!(
        said.status.code() == Some(8) && said.stdout.contains("another container's"),
        "{said:?}"
    );
    Ok(())
}

/// What a supervisor does that starts the new agent first and ends the old one then, such as a DaemonSet with a surge.
#[test]
fn a_supervisor_that_ends_the_old_agent_does_not_cut_short_what_it_carries() -> Result<()> {
    let mut scene = Scene::with("u", true, |agent| agent.arg("--drain", "20s"))?;
    let _far = LoadServer::start(&scene.far, 8080, &[])?;
    let mut kept = scene
        .client
        .load_in_background(&["keep", &format!("{WEB4}:80"), "--count", "5"])?;
    kept.wait_held(LONG)?;
    let next = scene.a1.successor().start()?;
    wait_relieved(&scene.a1)?;
    scene.a1.proc().signal(Signal::SIGTERM)?;
    wait_for("it has heard", Duration::from_secs(15), || {
        let log = scene.a1.log();
        ensure!(log.contains("leaving already"), "{log}");
        Ok(())
    })?;
    kept.go_on()?;
    let report = kept.report(LONG)?;
    ensure!(
        (report.ok, report.failed) == (5, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    ensure!(scene.a1.proc().wait(LEAVING)?.success(), "it ends by itself");
    drop(next);
    Ok(())
}

#[test]
fn an_agent_that_is_to_linger_stays_until_it_is_told_to_stop() -> Result<()> {
    let mut scene = Scene::with("u", false, |agent| agent.arg("--linger", "true"))?;
    let mut next = scene.a1.successor().start()?;
    let stays = |agent: &Agent| agent.log().contains("staying until told to stop");
    wait_for("it has left", LEAVING, || {
        ensure!(stays(&scene.a1), "{}", scene.a1.log());
        Ok(())
    })?;
    ensure!(
        scene.a1.proc().ended().is_none(),
        "a supervisor would start it again"
    );
    scene.a1.proc().signal(Signal::SIGTERM)?;
    ensure!(scene.a1.proc().wait(LEAVING)?.success());
    // One that nobody relieves stops when it is told to.
    next.stop()?;
    ensure!(!stays(&next), "{}", next.log());
    Ok(())
}
