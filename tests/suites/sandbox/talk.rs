//! What commands in sandboxes see and say.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use mesh_tests::harness::{JoinExt, Proc, Report, id, testapp, wait_for};
use nix::sys::signal::Signal;

use crate::stage::{LIMIT, Stage};

#[test]
fn two_sandboxes_talk_over_mutual_tls_by_the_name_of_a_service() -> Result<()> {
    let stage = Stage::start()?;
    let mut shop = stage.serve("shop")?;
    let script = stage.connect("shop", "idle --count 2 --seconds 3")?;
    let mut order = stage.spawn(
        "order",
        &["--service-account", "order", "--quiet"],
        &["sh", "-c", &script],
    )?;
    wait_for(
        "two live connections in both roles",
        Duration::from_secs(20),
        || {
            ensure!(order.ended().is_none(), "{}{}", order.stdout(), order.stderr());
            let answer = stage.agent.meshctl(&["connections"])?;
            let all = answer["connections"].as_array().context("connections")?;
            for direction in ["outbound", "inbound"] {
                let good = all.iter().filter(|one| {
                    one["direction"] == direction
                        && one["security"] == "mutual_tls"
                        && one["source"]["identity"] == id("default", "order")
                        && one["destination"]["identity"] == id("default", "shop")
                });
                ensure!(good.count() == 2, "{answer:#}");
            }
            Ok(())
        },
    )?;
    ensure!(order.wait(LIMIT)?.success(), "{}", order.stderr());
    let report: Report = serde_json::from_str(order.stdout().trim()).context("a report")?;
    assert_eq!(report.ok, 2, "{report:?}");
    // The server saw the client itself, not the agent.
    let address = report.local.context("the client's address")?.ip();
    assert!(
        shop.stdout().contains(&format!("\"peer\":\"{address}:")),
        "{}",
        shop.stdout()
    );
    let labels = [
        ("source_workload", "order"),
        ("destination_workload", "shop"),
        ("destination_service_name", "shop"),
    ];
    for reporter in ["source", "destination"] {
        let labels = [&labels[..], &[("reporter", reporter)]].concat();
        let opened = stage
            .agent
            .metrics()?
            .sum("istio_tcp_connections_opened_total", &labels);
        assert_eq!(opened, 2.0, "{reporter}");
    }
    shop.terminate(LIMIT)?;
    stage.wait_gone()
}

#[test]
fn a_sandbox_reaches_the_host_and_the_host_reaches_it() -> Result<()> {
    let stage = Stage::start()?;
    let shop = stage.serve("shop")?;
    let record = std::fs::read_to_string(stage.directory().join("default.shop.sandbox"))?;
    let record: serde_json::Value = serde_json::from_str(&record)?;
    for address in record["addresses"].as_array().context("addresses")? {
        let address: std::net::IpAddr = address.as_str().context("an address")?.parse()?;
        stage.node.netns().enter(|| {
            let to = std::net::SocketAddr::new(address, 8080);
            std::net::TcpStream::connect_timeout(&to, Duration::from_secs(3))
                .map(drop)
                .with_context(|| format!("the host to {to}: {}", shop.stderr()))
        })?;
    }
    let mut host = Command::new(testapp()?);
    host.args(["serve", "echo", "--listen", "[::]:7777"])
        .in_netns(stage.node.netns())?;
    let host = Proc::start("host", &mut host, &stage.world.log_dir())?;
    wait_for("the server on the host listens", LIMIT, || {
        ensure!(host.stdout().contains("listening"), "{}", host.stderr());
        Ok(())
    })?;
    let to = format!("{}:7777", stage.node.address());
    let app = testapp()?;
    let answered = stage.run(
        "look",
        &["--quiet"],
        &[&app.to_string_lossy(), "connect", &to, "exchange"],
    )?;
    let report: Report =
        serde_json::from_str(answered.stdout.trim()).with_context(|| format!("{answered:?}"))?;
    assert_eq!(report.text, "ping\n", "{report:?}");
    Ok(())
}

#[test]
fn standard_input_environment_and_directory_are_the_callers() -> Result<()> {
    let stage = Stage::start()?;
    let echoed = stage.run_with_input("cat", &["sh", "-c", "cat; echo $PWD"], "one\ntwo\n")?;
    assert_eq!(
        echoed,
        format!("one\ntwo\n{}\n", std::env::current_dir()?.display())
    );
    stage.wait_gone()
}

#[test]
fn signals_reach_the_command_once_and_its_answer_counts() -> Result<()> {
    let stage = Stage::start()?;
    for (signal, name) in [
        (Signal::SIGTERM, "TERM"),
        (Signal::SIGINT, "INT"),
        (Signal::SIGUSR1, "USR1"),
    ] {
        let script = format!(
            "n=0; trap 'n=$((n+1)); echo got $n' {name}; trap 'exit 42' USR2; echo ready; while :; do sleep 0.02; done"
        );
        let mut sandbox = stage.spawn(&name.to_lowercase(), &["--quiet"], &["bash", "-c", &script])?;
        wait_for("the command runs", LIMIT, || {
            ensure!(sandbox.stdout().contains("ready"), "{}", sandbox.stderr());
            Ok(())
        })?;
        sandbox.signal(signal)?;
        wait_for("the signal arrives", LIMIT, || {
            ensure!(sandbox.stdout().contains("got 1"), "{}", sandbox.stdout());
            Ok(())
        })?;
        // Not HUP, which is ignored below nohup, and what is ignored at its start a shell cannot trap.
        sandbox.signal(Signal::SIGUSR2)?;
        let status = sandbox.wait(LIMIT)?;
        assert_eq!(status.code(), Some(42), "{name}");
        assert!(!sandbox.stdout().contains("got 2"), "{}", sandbox.stdout());
    }
    stage.wait_gone()
}

/// Runs a program on a terminal of its own, presses Ctrl-C when it says `ready`, and Ctrl-\ a moment later; prints what it said and its exit
/// code.
const ON_A_TERMINAL: &str = r"
import os, pty, select, sys, time
pid, terminal = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
said, pressed = b'', 0
while True:
    readable, _, _ = select.select([terminal], [], [], 1 if pressed == 1 else 30)
    if readable:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        if not part:
            break
        said += part
    if b'ready' in said and pressed == 0:
        os.write(terminal, b'\x03')
        pressed = 1
    elif not readable:
        os.write(terminal, b'\x1c')
        pressed = 2
print(said.decode(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
";

#[test]
fn the_command_has_the_terminal_and_its_keys_reach_it_once() -> Result<()> {
    let stage = Stage::start()?;
    let script = "n=0; trap 'n=$((n+1)); echo got $n' INT; trap 'exit 42' QUIT; test -t 0 && echo ready; while :; do sleep 0.02; done";
    let sandbox = stage.command("order", &["--quiet"], &["bash", "-c", script])?;
    let mut terminal = Command::new("python3");
    terminal
        .args(["-c", ON_A_TERMINAL])
        .arg(sandbox.get_program())
        .args(sandbox.get_args())
        .env("MESH_AGENT_ADMIN_SOCKET", stage.agent.admin_socket())
        .in_netns(stage.node.netns())?;
    let output = mesh_tests::harness::run(&mut terminal, LIMIT)?;
    assert!(output.stdout.contains("got 1"), "{output:?}");
    assert!(!output.stdout.contains("got 2"), "{output:?}");
    assert!(output.stdout.trim().ends_with(" 42"), "{output:?}");
    stage.wait_gone()
}

#[test]
fn a_sandbox_outlives_the_agent_and_is_captured_by_the_next() -> Result<()> {
    let mut stage = Stage::start()?;
    let shop = stage.serve("shop")?;
    stage.agent.kill();
    let stage = stage.restarted()?;
    let script = stage.connect("shop", "exchange")?;
    let output = stage.run("order", &["--quiet"], &["sh", "-c", &script])?;
    let report: Report = serde_json::from_str(output.stdout.trim()).with_context(|| format!("{output:?}"))?;
    assert_eq!(report.text, "ping\n", "{report:?} {}", shop.stderr());
    let labels = [
        ("destination_workload", "shop"),
        ("connection_security_policy", "mutual_tls"),
    ];
    let opened = stage
        .agent
        .metrics()?
        .sum("istio_tcp_connections_opened_total", &labels);
    assert_eq!(opened, 1.0);
    Ok(())
}
