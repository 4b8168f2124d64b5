//! How sandboxes end, how they do not begin, and that nothing stays.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::harness::{run, wait_for};
use nix::sys::signal::Signal;

use crate::stage::{LIMIT, Stage};

/// The exit code where there was no sandbox.
const NO_SANDBOX: Option<i32> = Some(125);

#[test]
fn the_exit_code_is_the_commands_and_nothing_is_left() -> Result<()> {
    let stage = Stage::start()?;
    let plain = stage.world.dir().join("plain");
    std::fs::write(&plain, "no program")?;
    for (command, code) in [
        (&["true"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&[&*plain.to_string_lossy()], 126),
        (&["no-such-command"], 127),
    ] {
        let output = stage.run("order", &["--service", "order:80"], command)?;
        assert_eq!(output.status.code(), Some(code), "{command:?}: {}", output.stderr);
        let remains = stage.remains()?;
        assert!(remains.is_empty(), "{command:?}: {remains:?}");
    }
    stage.wait_gone()
}

#[test]
fn what_the_command_leaves_running_ends_with_it() -> Result<()> {
    let stage = Stage::start()?;
    let script = "setsid sleep 1000 >/dev/null 2>&1 & echo $!";
    let output = stage.run("order", &["--quiet"], &["bash", "-c", script])?;
    let pid: u32 = output.stdout.trim().parse()?;
    // Dead, if perhaps not yet waited for by the first process of the system.
    let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    assert!(state.is_empty() || state.contains(") Z "), "{state}");
    stage.wait_gone()
}

#[test]
fn a_sandbox_that_is_killed_takes_its_command_along_and_the_agent_removes_the_rest() -> Result<()> {
    let stage = Stage::start()?;
    let mut shop = stage.serve("shop")?;
    ensure!(stage.remains()?.len() >= 5, "{:?}", stage.remains()?);
    shop.signal(Signal::SIGKILL)?;
    shop.wait(LIMIT)?;
    stage.wait_gone()?;
    wait_for("the agent says so", Duration::from_secs(5), || {
        let log = stage.agent.log();
        ensure!(log.contains("a sandbox ended without cleaning up"), "{log}");
        Ok(())
    })?;
    // Its name and its service are free again.
    let mut again = stage.serve("shop")?;
    again.terminate(LIMIT)?;
    stage.wait_gone()
}

#[test]
fn a_command_does_not_outlive_its_sandbox_also_where_no_agent_looks() -> Result<()> {
    let mut stage = Stage::start()?;
    let mut shop = stage.serve("shop")?;
    stage.agent.kill();
    let command = stage.processes("shop")?;
    ensure!(command.len() == 1, "{command:?}");
    shop.signal(Signal::SIGKILL)?;
    shop.wait(LIMIT)?;
    wait_for("the kernel ends the command", Duration::from_secs(5), || {
        let left = stage.processes("shop")?;
        ensure!(left.is_empty(), "{left:?} of {command:?}");
        Ok(())
    })?;
    let remains = stage.remains()?;
    ensure!(
        remains.len() >= 5,
        "nobody was there to remove anything: {remains:?}"
    );
    stage.restarted()?.wait_gone()
}

#[test]
fn what_a_command_has_started_ends_with_the_agents_next_look_when_its_sandbox_is_killed() -> Result<()> {
    let mut stage = Stage::start()?;
    // The kernel ends the command with its sandbox, not what the command has started.
    let script = "setsid sleep 1000 >/dev/null 2>&1 & echo started; wait";
    let mut order = stage.spawn("order", &["--quiet"], &["bash", "-c", script])?;
    wait_for("both run", LIMIT, || {
        ensure!(order.stdout().contains("started"), "{}", order.stderr());
        let processes = stage.processes("order")?;
        ensure!(processes.len() == 2, "{processes:?}");
        Ok(())
    })?;
    stage.agent.proc().signal(Signal::SIGSTOP)?;
    order.signal(Signal::SIGKILL)?;
    order.wait(LIMIT)?;
    wait_for("the command is gone", Duration::from_secs(5), || {
        let left = stage.processes("order")?;
        ensure!(left.len() == 1, "{left:?}");
        Ok(())
    })?;
    // Longer than the agent takes to look.
    std::thread::sleep(Duration::from_secs(3));
    ensure!(
        stage.processes("order")?.len() == 1,
        "something else has ended it"
    );
    stage.agent.proc().signal(Signal::SIGCONT)?;
    stage.wait_gone()?;
    let log = stage.agent.log();
    ensure!(log.contains("a sandbox ended without cleaning up"), "{log}");
    Ok(())
}

#[test]
fn what_is_left_of_a_sandbox_that_died_without_an_agent_goes_with_the_next_agent() -> Result<()> {
    let mut stage = Stage::start()?;
    let mut shop = stage.serve("shop")?;
    stage.agent.kill();
    shop.signal(Signal::SIGKILL)?;
    shop.wait(LIMIT)?;
    let remains = stage.remains()?;
    assert!(remains.len() >= 5, "{remains:?}");
    stage.restarted()?.wait_gone()
}

#[test]
fn names_that_are_taken_are_refused_and_their_holder_is_named() -> Result<()> {
    let stage = Stage::start()?;
    let shop = stage.serve("shop")?;
    let pod = stage.node.pod("default", "billing")?;
    stage.config.pod(&pod.spec())?;
    wait_for("the pod is known", Duration::from_secs(5), || {
        let workloads = stage.agent.meshctl(&["workloads"])?;
        ensure!(
            workloads["workloads"]
                .as_array()
                .is_some_and(|all| all.len() == 2),
            "{workloads:#}"
        );
        Ok(())
    })?;
    let pid = shop.pid().to_string();
    for (name, options, said) in [
        ("shop", &[][..], &["default/shop already", pid.as_str()][..]),
        (
            "other",
            &["--service", "shop:90"],
            &["default/shop publishes the service default/shop"],
        ),
        (
            "billing",
            &[],
            &["Pod default/billing in the agent's configuration"],
        ),
        ("Shop", &[], &["\"Shop\" is not a name"]),
        ("a.b", &[], &["\"a.b\" is not a name"]),
    ] {
        let output = stage.run(name, options, &["true"])?;
        assert_eq!(output.status.code(), NO_SANDBOX, "{name}: {}", output.stderr);
        for said in said {
            assert!(output.stderr.contains(said), "{name}: {}", output.stderr);
        }
    }
    // The same name in another namespace is another one.
    let output = stage.run("shop", &["--namespace", "elsewhere", "--quiet"], &["true"])?;
    assert!(output.status.success(), "{output:?}");
    Ok(())
}

#[test]
fn without_an_agent_on_another_network_or_without_root_there_is_no_sandbox_and_it_says_why() -> Result<()> {
    let mut stage = Stage::start()?;
    let elsewhere = run(&mut stage.bare("order", &[], &["true"])?, LIMIT)?;
    assert_eq!(elsewhere.status.code(), NO_SANDBOX);
    assert!(
        elsewhere.stderr.contains("another network namespace"),
        "{elsewhere:?}"
    );
    // Where nobody may look, the same words come from the kernel.
    let copy = stage.world.dir().join("mesh-agent");
    std::fs::copy(mesh_tests::harness::agent_binary()?, &copy)?;
    let mut command = std::process::Command::new(&copy);
    command
        .args(["sandbox", "--name", "order", "--", "true"])
        .uid(65534)
        .gid(65534);
    let nobody = run(&mut command, LIMIT)?;
    assert_eq!(nobody.status.code(), NO_SANDBOX);
    assert!(nobody.stderr.contains("needs root"), "{nobody:?}");
    stage.agent.stop()?;
    let none = stage.run("order", &[], &["true"])?;
    assert_eq!(none.status.code(), NO_SANDBOX);
    assert!(none.stderr.contains("no agent runs behind"), "{none:?}");
    let remains = stage.remains()?;
    assert!(remains.is_empty(), "{remains:?}");
    Ok(())
}

#[test]
fn a_sandbox_that_cannot_be_made_does_not_run_its_command() -> Result<()> {
    let stage = Stage::start()?;
    std::fs::remove_dir_all(stage.directory())?;
    std::fs::write(stage.directory(), "")?;
    let output = stage.run("order", &[], &["echo", "ran"])?;
    assert_eq!(output.status.code(), NO_SANDBOX, "{output:?}");
    assert!(
        output.stderr.contains(&*stage.directory().to_string_lossy()),
        "{output:?}"
    );
    assert!(!output.stdout.contains("ran"), "{output:?}");
    Ok(())
}
