//! Signals, readiness, exit codes: what a supervisor sees of the agent.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{Agent, LoadServer, Manifests, Scene, WEB4, World, agent_binary, run, wait_for};
use nix::sys::signal::Signal;

const SOON: Duration = Duration::from_secs(15);

#[test]
fn sigterm_lets_connections_finish_within_the_drain_time() -> Result<()> {
    let mut scene = Scene::with("s", true, |agent| agent.arg("--drain", "20s"))?;
    let _far = LoadServer::start(&scene.far, 8080, &[])?;
    let mut kept = scene
        .client
        .load_in_background(&["keep", &format!("{WEB4}:80"), "--count", "5"])?;
    kept.wait_held(SOON)?;
    scene.a1.proc().signal(Signal::SIGTERM)?;
    wait_for("it says that it is stopping", SOON, || {
        let (ready, why) = scene.a1.ready()?;
        ensure!(!ready && why.contains("stopping"), "{why}");
        Ok(())
    })?;
    kept.go_on()?;
    let report = kept.report(SOON)?;
    ensure!(
        (report.ok, report.failed) == (5, 0),
        "{report:?}\n{}",
        scene.logs()
    );
    ensure!(
        scene.a1.proc().wait(SOON)?.success(),
        "it ends when the last connection has"
    );
    Ok(())
}

#[test]
fn sighup_takes_what_can_change_and_names_what_cannot() -> Result<()> {
    let world = World::new("s")?;
    let node = world.node("n1")?;
    let config = Manifests::new(world.dir().join("config"))?;
    config.namespace("mesh", true)?;
    let file = world.dir().join("settings.yaml");
    let (first, second) = (world.dir().join("one.log"), world.dir().join("two.log"));
    let write = |more: &str, log: &std::path::Path| {
        fs::write(&file, format!("accessLogFile: {}\n{more}", log.display())).context("settings")
    };
    write("log: {filter: warn}\n", &first)?;
    // The environment would have the last word on the filter.
    let mut agent = Agent::builder(&world, &node, &config)
        .without_env("MESH_AGENT_LOG")
        .arg("--settings", &file.to_string_lossy())
        .start()?;
    ensure!(!agent.log().contains("SIGHUP") && first.exists());
    let hangup = |agent: &mut Agent, says: &str| {
        let before = agent.log().matches(says).count();
        agent.proc().signal(Signal::SIGHUP)?;
        wait_for(says, SOON, || {
            ensure!(agent.log().matches(says).count() > before, "{}", agent.log());
            Ok(())
        })
    };
    // The filter first, or the rest would not be seen.
    write(
        "log: {filter: info}\nclusterDomain: other.local\ncertificateLifetime: 1h\n",
        &second,
    )?;
    hangup(&mut agent, "in force now: log, access-log-file")?;
    hangup(
        &mut agent,
        "not in force before a restart or an upgrade: certificate-lifetime, cluster-domain",
    )?;
    ensure!(second.exists(), "the access log has moved");
    fs::write(&file, "nonsense: true\n")?;
    hangup(&mut agent, "the settings stay as they were")?;
    ensure!(agent.log().contains("nonsense"), "{}", agent.log());
    ensure!(agent.ready()?.0);
    agent.stop()
}

#[test]
fn an_agent_is_not_ready_before_its_configuration_is_in_force_and_its_pods_are_captured() -> Result<()> {
    let world = World::new("s")?;
    let node = world.node("n1")?;
    let config = Manifests::new(world.dir().join("config"))?;
    config.namespace("mesh", true)?;
    // A pod whose network namespace is not there yet.
    let late = node.pod("mesh", "late")?;
    let mut spec = late.spec();
    let netns = std::mem::replace(&mut spec.netns, world.dir().join("not-yet"));
    config.pod(&spec)?;
    let mut agent = Agent::builder(&world, &node, &config).spawn()?;
    let mut answers = Vec::new();
    wait_for("it says what it waits for", SOON, || {
        let (ready, why) = agent.ready()?;
        answers.push(ready);
        ensure!(why.contains("pod mesh/late is not captured"), "{why}");
        Ok(())
    })?;
    ensure!(
        !answers.contains(&true),
        "it was ready before its pod was captured"
    );
    std::os::unix::fs::symlink(&netns, world.dir().join("not-yet"))?;
    agent.wait_ready()?;
    agent.stop()
}

/// How an agent that is to fail ends, and what it says.
fn fails(builder: &mesh_tests::harness::AgentBuilder, code: i32, says: &str) -> Result<()> {
    fails_with(builder, code, says, |_| {})
}

fn fails_with(
    builder: &mesh_tests::harness::AgentBuilder,
    code: i32,
    says: &str,
    adapt: impl FnOnce(&mut Command),
) -> Result<()> {
    let output = builder.run_to_end(adapt)?;
    let said = format!("{}{}", output.stdout, output.stderr);
    ensure!(
        output.status.code() == Some(code) && said.contains(says),
        "exit code {code} and {says:?} are expected, not {}: {said}",
        output.status
    );
    Ok(())
}

#[test]
fn each_kind_of_failure_has_its_exit_code_and_says_what_to_do() -> Result<()> {
    let world = World::new("s")?;
    let node = world.node("n1")?;
    let config = Manifests::new(world.dir().join("config"))?;
    config.namespace("mesh", true)?;
    let agent = || Agent::builder(&world, &node, &config);
    let file = world.dir().join("a-file");
    fs::write(&file, "nodeName: [\n")?;
    let path = file.to_string_lossy().into_owned();
    fails(&agent().arg("--no-such-flag", "1"), 2, "--no-such-flag")?;
    fails(&agent().arg("--settings", &path), 3, "a-file:")?;
    fails(&agent().arg("--trust-domain", "Not A Domain"), 3, "trust domain")?;
    fails(
        &agent().arg("--config-dir", "/nonexistent/config"),
        3,
        "--config-dir",
    )?;
    fails(&agent().arg("--admin-socket", &path), 3, "is not a socket")?;
    fails(&agent().arg("--cgroup-root", "/nonexistent"), 4, "cgroup2")?;
    fails(&agent().arg("--bpffs-dir", &path), 4, "bpffs")?;
    fails_with(&agent(), 4, "CAP_", |command| {
        // SAFETY: prctl(2) is async-signal-safe; root gets at exec what the bounding set leaves.
        unsafe {
            command.pre_exec(|| {
                for capability in [12, 21, 38, 39] {
                    // CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF (capabilities(7))
                    libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
                }
                Ok(())
            });
        }
    })?;
    let _taken = node
        .netns()
        .enter(|| Ok(std::net::TcpListener::bind("127.0.0.1:15998")?))?;
    fails(
        &agent().arg("--readiness-address", "127.0.0.1:15998"),
        5,
        "does another agent run?",
    )?;
    fails(&agent().arg("--ca-dir", &path), 6, "a-file")?;
    let mut meshctl = Command::new(agent_binary()?.with_file_name("meshctl"));
    meshctl
        .arg("status")
        .env("MESH_AGENT_ADMIN_SOCKET", world.dir().join("nobody.sock"));
    ensure!(run(&mut meshctl, SOON)?.status.code() == Some(7));
    // None of them has left anything.
    let left = world.bpffs().join("n1/n1");
    ensure!(!left.exists(), "{} stays", left.display());
    let mut good = agent().start()?;
    good.stop()
}

#[test]
fn an_agent_that_gets_no_descriptors_says_so_with_the_code_of_faults_without_a_class() -> Result<()> {
    let world = World::new("s")?;
    let node = world.node("n1")?;
    let config = Manifests::new(world.dir().join("config"))?;
    config.namespace("mesh", true)?;
    let agent = Agent::builder(&world, &node, &config);
    fails_with(&agent, 1, "cannot start the control threads", |command| {
        // SAFETY: setrlimit(2) is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                // One more than the three that it begins with.
                let limit = libc::rlimit {
                    rlim_cur: 4,
                    rlim_max: 4,
                };
                match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    })?;
    // With as many as it likes it runs.
    agent.start()?.stop()
}

#[test]
fn a_check_that_fails_has_a_code_of_its_own() -> Result<()> {
    let check = |cgroup_root: &str| {
        let mut command = Command::new(agent_binary()?);
        command.args(["check", "--node-name", "n1", "--cgroup-root", cgroup_root]);
        run(&mut command, SOON)
    };
    let failed = check("/nonexistent")?;
    ensure!(
        failed.status.code() == Some(8) && failed.stdout.contains("cgroup2"),
        "{failed:?}"
    );
    let whole = check(&mesh_tests::harness::cgroup2_mount()?.to_string_lossy())?;
    ensure!(whole.status.success(), "{whole:?}");
    Ok(())
}

#[test]
fn descriptors_are_raised_and_budgets_follow_from_what_there_are() -> Result<()> {
    let world = World::new("s")?;
    let node = world.node("n1")?;
    let pod = node.pod("mesh", "server")?;
    let config = Manifests::new(world.dir().join("config"))?;
    config.namespace("mesh", true)?;
    config.pod(&pod.spec())?;
    let mut agent = Agent::builder(&world, &node, &config).spawn_with(|command| {
        // SAFETY: setrlimit(2) is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                let limit = libc::rlimit {
                    rlim_cur: 512,
                    rlim_max: 2000,
                };
                match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
    })?;
    agent.wait_ready()?;
    let limits = fs::read_to_string(format!("/proc/{}/limits", agent.pid()))?;
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"))
        .context("no limit")?;
    ensure!(line.split_whitespace().nth(3) == Some("2000"), "{line}");
    let check = agent.meshctl_text(&["check"])?.stdout;
    ensure!(
        check.contains("2000 descriptors; a workload may have 600"),
        "{check}"
    );
    agent.stop()
}
