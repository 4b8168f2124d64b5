//! What is refused, dropped or lost is counted exactly, and told with what to do about it; and what each hook does can be watched.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::harness::{Agent, App, Pod, Scene, WEB4, run, wait_for};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(10);

/// The counter of the BPF programs called `event`.
fn counted(agent: &Agent, event: &str) -> Result<f64> {
    Ok(agent
        .metrics()?
        .sum("mesh_agent_bpf_events_total", &[("event", event)]))
}

/// The events of a kind that the agent has kept.
fn told(agent: &Agent, event: &str) -> Result<Vec<Value>> {
    let answer = agent.meshctl(&["bpf", "events"])?;
    let all = answer["events"].as_array().context("no list of events")?;
    Ok(all.iter().filter(|e| e["event"] == event).cloned().collect())
}

/// Waits for an event of a kind and gives the latest.
fn wait_told(agent: &Agent, event: &str) -> Result<Value> {
    wait_for(&format!("an event {event}"), SOON, || {
        let last = told(agent, event)?.pop();
        last.with_context(|| format!("none; the log: {}", agent.log()))
    })
}

fn wait_logged(agent: &Agent, what: &str) -> Result<()> {
    wait_for(&format!("{what:?} in the log"), SOON, || {
        ensure!(agent.log().contains(what), "{}", agent.log());
        Ok(())
    })
}

fn belongs_to(event: &Value, pod: &Pod) -> bool {
    let name = format!("mesh/{}", pod.name());
    event["workload"]
        .as_str()
        .is_some_and(|uid| uid == name || uid.starts_with(&format!("{name}/")))
}

/// Runs Python in the pod.
fn python(pod: &Pod, before: &[&str], code: &str) -> Result<String> {
    let mut command = match before {
        [] => pod.command("python3")?,
        [program, args @ ..] => {
            let mut command = pod.command(program)?;
            command.args(args).arg("python3");
            command
        }
    };
    command.args(["-c", code]);
    run(&mut command, Duration::from_secs(60))?.success()
}

/// A process of the pod, in a network namespace of its own, opens connections one after another; how many were refused with EPERM. It
/// stays for a moment: its pod is found by its cgroup.
fn refused_elsewhere(pod: &Pod, to: IpAddr, count: u32) -> Result<u32> {
    let code = format!(
        "
import socket, time
refused = 0
for _ in range({count}):
    s = socket.socket()
    try:
        s.connect(('{to}', 80))
    except PermissionError:
        refused += 1
    s.close()
time.sleep(3)
print(refused)
"
    );
    Ok(python(pod, &["unshare", "--net"], &code)?.trim().parse()?)
}

#[test]
fn a_process_of_the_pod_in_another_network_namespace_is_refused_with_an_event_that_says_what_to_do()
-> Result<()> {
    let scene = Scene::start("e")?;
    assert_eq!(refused_elsewhere(&scene.client, WEB4, 1)?, 1);
    let event = wait_told(&scene.a1, "connect_refused_netns")?;
    assert!(
        belongs_to(&event, &scene.client),
        "by the process's cgroup: {event:#}"
    );
    assert_eq!(
        (&event["to"], &event["protocol"], &event["process"]),
        (&format!("{WEB4}:80").into(), &"tcp".into(), &"python3".into()),
        "{event:#}"
    );
    assert!(event["pid"].as_u64().is_some_and(|pid| pid > 0), "{event:#}");
    let advice = event["advice"].as_str().unwrap_or_default();
    assert!(advice.contains("another network namespace"), "{event:#}");
    assert_eq!(counted(&scene.a1, "connect_refused_netns")?, 1.0);
    let workload = [
        ("event", "connect_refused_netns"),
        ("workload", scene.client.name()),
        ("namespace", "mesh"),
    ];
    let metrics = scene.a1.metrics()?;
    assert_eq!(
        metrics.sum("mesh_agent_bpf_event_reports_total", &workload),
        1.0,
        "{}",
        metrics.show("mesh_agent_bpf_event_reports")
    );
    wait_logged(&scene.a1, advice)?;
    let table = scene.a1.meshctl_text(&["bpf", "events"])?.success()?;
    assert!(
        table.contains("connect_refused_netns") && table.contains("python3"),
        "{table}"
    );
    Ok(())
}

#[test]
fn a_flood_of_refusals_is_counted_exactly_and_told_within_a_budget() -> Result<()> {
    let scene = Scene::start("e")?;
    assert_eq!(refused_elsewhere(&scene.client, WEB4, 2000)?, 2000);
    wait_for("counted and told add up", SOON, || {
        let metrics = scene.a1.metrics()?;
        let count = |event| metrics.sum("mesh_agent_bpf_events_total", &[("event", event)]);
        let told = metrics.sum("mesh_agent_bpf_event_reports_total", &[]);
        let all = (count("connect_refused_netns"), told, count("events_suppressed"));
        ensure!(
            all.0 == 2000.0 && all.1 + all.2 == all.0 && told > 0.0 && all.2 > 0.0,
            "{all:?}"
        );
        Ok(())
    })?;
    let lines = |what: &str| scene.a1.log().lines().filter(|line| line.contains(what)).count();
    assert!(
        (1..=12).contains(&lines("connects from another network namespace")),
        "{}",
        scene.a1.log()
    );
    wait_for("the rest is summed up", Duration::from_secs(20), || {
        ensure!(lines("more in 10 s") > 0, "{}", scene.a1.log());
        Ok(())
    })?;
    let answer = scene.a1.meshctl(&["bpf", "events"])?;
    assert!(answer["events"].as_array().is_some_and(|all| all.len() <= 64));
    assert!(answer["suppressed"].as_u64().is_some_and(|n| n > 0), "{answer:#}");
    // A flood of one kind hides no other.
    scene
        .visitor
        .connect(scene.near.ip4(), 15001, "exchange", &["--timeout", "3000"])?;
    wait_told(&scene.a1, "dropped_agent_port").map(drop)
}

#[test]
fn a_connection_from_outside_to_an_agent_port_is_dropped_with_an_event() -> Result<()> {
    let scene = Scene::start("e")?;
    let report = scene
        .visitor
        .connect(scene.client.ip4(), 15001, "exchange", &["--timeout", "3000"])?;
    assert_eq!(report.error.as_deref(), Some("connect: refused"), "{report:?}");
    let event = wait_told(&scene.a1, "dropped_agent_port")?;
    assert!(belongs_to(&event, &scene.client), "{event:#}");
    assert_eq!(event["to"], format!("{}:15001", scene.client.ip4()), "{event:#}");
    let from = event["from"].as_str().unwrap_or_default();
    assert!(
        from.starts_with(&format!("{}:", scene.visitor.ip4())),
        "{event:#}"
    );
    Ok(())
}

/// Runs bpftool commands in one go.
fn bpftool_batch(dir: &Path, commands: &str) -> Result<()> {
    let file = dir.join("bpftool.batch");
    std::fs::write(&file, commands)?;
    let mut bpftool = Command::new("bpftool");
    bpftool.args(["batch", "file"]).arg(&file);
    run(&mut bpftool, Duration::from_secs(60))?.success().map(drop)
}

/// Every element of a hand-off map: keys that no connection has.
fn each_handoff(pin: &Path, verb: &str, value: &str) -> String {
    let mut commands = String::new();
    for n in 0..32 * 1024_u32 {
        let bytes = n.to_ne_bytes().map(|b| b.to_string()).join(" ");
        let key = format!("{bytes} {}", ["0"; 44].join(" "));
        let _ = writeln!(commands, "map {verb} pinned {} key {key} {value}", pin.display());
    }
    commands
}

#[test]
fn a_full_hand_off_map_refuses_connections_with_an_event_and_nothing_goes_uncaptured() -> Result<()> {
    let scene = Scene::start("e")?;
    let far = App::serve(&scene.far, "echo", 8080, &[])?;
    let outside = App::serve(&scene.visitor, "echo", 8080, &[])?;
    let pin = scene.world.bpffs().join("n1/n1/run-1/maps/HANDOFF");
    let value = format!("value {}", ["0"; 20].join(" "));
    bpftool_batch(scene.world.dir(), &each_handoff(&pin, "update", &value))?;
    for (to, port) in [(WEB4, 80), (scene.far.ip6(), 8080), (scene.visitor.ip4(), 8080)] {
        let report = scene
            .client
            .connect(to, port, "exchange", &["--timeout", "3000"])?;
        assert_eq!(
            report.error.as_deref(),
            Some("connect: refused"),
            "{to}: {report:?}"
        );
    }
    let event = wait_told(&scene.a1, "handoff_full")?;
    assert!(belongs_to(&event, &scene.client), "{event:#}");
    assert_eq!(
        event["to"],
        format!("{}:8080", scene.visitor.ip4()),
        "what the application asked for: {event:#}"
    );
    assert_eq!(counted(&scene.a1, "handoff_full")?, 3.0);
    // Without a hand-off the packets to the rewrite port are found wanting, too.
    let missed = wait_told(&scene.a1, "lookup_missed")?;
    assert!(belongs_to(&missed, &scene.client), "{missed:#}");
    assert_eq!(counted(&scene.a1, "lookup_missed")?, 3.0);
    let check = scene.a1.meshctl_text(&["check"])?.stdout;
    assert!(check.contains("HANDOFF holds 32768 of 32768"), "{check}");
    assert!(far.events_of("accepted").is_empty() && outside.events_of("accepted").is_empty());
    bpftool_batch(scene.world.dir(), &each_handoff(&pin, "delete", ""))?;
    let report = scene.client.connect(WEB4, 80, "exchange", &[])?;
    assert_eq!(report.text, "ping\n", "{report:?}");
    Ok(())
}

#[test]
fn what_was_refused_while_the_agent_was_dead_is_told_by_its_successor() -> Result<()> {
    let mut scene = Scene::start("e")?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    scene.client.connect(WEB4, 80, "exchange", &[])?;
    let captured = counted(&scene.a1, "connect_captured")?;
    assert!(captured >= 1.0 && told(&scene.a1, "dropped_no_listener")?.is_empty());
    scene.a1.kill();
    for _ in 0..3 {
        let report = scene
            .client
            .connect(WEB4, 80, "exchange", &["--timeout", "3000"])?;
        assert_eq!(report.error.as_deref(), Some("connect: refused"), "{report:?}");
    }
    let a1 = scene.a1.restart()?;
    let event = wait_told(&a1, "dropped_no_listener")?;
    assert!(belongs_to(&event, &scene.client), "{event:#}");
    wait_logged(&a1, "the agent's listener for the pod is not there")?;
    assert!(counted(&a1, "dropped_no_listener")? >= 3.0);
    assert_eq!(
        counted(&a1, "connect_captured")?,
        captured + 3.0,
        "counters go on over a crash"
    );
    assert!(told(&a1, "dropped_no_listener")?.len() >= 3);
    Ok(())
}

/// Lines of the BPF programs in an agent's log, by hook.
fn debug_lines(agent: &Agent, hook: &str) -> Vec<String> {
    let log = agent.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("DEBUG mesh_agent::bpf") && line.contains(hook));
    lines.map(str::to_owned).collect()
}

#[test]
fn the_debug_log_shows_what_each_hook_does_for_one_pod_and_goes_off_by_itself() -> Result<()> {
    let scene = Scene::with("e", true, |agent| agent.env("MESH_AGENT_LOG", "info"))?;
    let _far = App::serve(&scene.far, "echo", 8080, &[])?;
    scene.client.connect(WEB4, 80, "exchange", &[])?;
    assert!(debug_lines(&scene.a1, "").is_empty(), "{}", scene.a1.log());
    let name = format!("mesh/{}", scene.client.name());
    let status = scene
        .a1
        .meshctl(&["bpf", "log", "on", "--pod", &name, "--for", "600"])?;
    assert_eq!(status["on"], true, "{status:#}");
    scene.client.connect(WEB4, 80, "exchange", &[])?;
    scene.near.connect(WEB4, 80, "exchange", &[])?;
    for (hook, what) in [
        ("connect", format!("{WEB4}:80: connect_captured")),
        ("sock_ops", format!("{WEB4}:80: handed_over")),
        ("sk_lookup", "steered_outbound".to_owned()),
        ("getpeername", format!("{WEB4}:80: peer_shown")),
    ] {
        wait_for(&format!("a line of {hook}"), SOON, || {
            let lines = debug_lines(&scene.a1, hook);
            let count = lines.iter().filter(|line| line.contains(&what)).count();
            if count == 0 {
                bail!("{lines:#?}\n{}", scene.a1.log());
            }
            Ok(())
        })?;
    }
    let captured = debug_lines(&scene.a1, "connect_captured");
    assert_eq!(captured.len(), 1, "the other pod is not asked for: {captured:#?}");
    let bpf = scene.a1.meshctl(&["bpf"])?;
    assert_eq!(bpf["log"]["on"], true, "{:#}", bpf["log"]);
    let check = scene.a1.meshctl_text(&["check"])?.stdout;
    assert!(check.contains("debug lines are on"), "{check}");

    scene.a1.meshctl(&["bpf", "log", "on", "--for", "1"])?;
    std::thread::sleep(Duration::from_millis(1200));
    wait_logged(&scene.a1, "went off by itself")?;
    assert_eq!(scene.a1.meshctl(&["bpf"])?["log"]["on"], false);
    let before = debug_lines(&scene.a1, "").len();
    scene.client.connect(WEB4, 80, "exchange", &[])?;
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(debug_lines(&scene.a1, "").len(), before);

    // On again after it went off, for all pods; and off by hand.
    scene.a1.meshctl(&["bpf", "log", "on"])?;
    scene.near.connect(WEB4, 80, "exchange", &[])?;
    wait_for("lines again", SOON, || {
        ensure!(debug_lines(&scene.a1, "").len() > before, "{}", scene.a1.log());
        Ok(())
    })?;
    assert_eq!(scene.a1.meshctl(&["bpf", "log", "off"])?["on"], false);
    for wrong in [&["--pod", "mesh/nobody"][..], &["--for", "0"], &["--for", "3601"]] {
        let answer = scene.a1.meshctl_text(&[&["bpf", "log", "on"], wrong].concat())?;
        assert!(!answer.status.success(), "{wrong:?}: {answer:?}");
    }
    Ok(())
}
