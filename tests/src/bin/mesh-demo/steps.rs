//! The story, step by step; each step checks what it shows.

mod policy;

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mesh_tests::harness::{Capture, Captured, KernelObjects, Output, Proc};

use crate::show::Show;
use crate::signals;
use crate::stage::{CLUSTER_IP, PORT, SERVICE, Stage};

/// What order's request carries, and no wire may show.
const SECRET: &str = "card=4111-1111-canary-of-order";
/// What visitor's request carries: it goes in plaintext, so a capture that works shows it.
const OPEN: &str = "card=4222-2222-canary-of-visitor";
/// The port of the tunnel between agents.
const HBONE: u16 = 15008;
/// How soon a change of the documents must be in force, with a second for the probing itself.
const PROMPT: Duration = Duration::from_secs(2);
/// The nodes.
const NODES: [&str; 2] = ["node-a", "node-b"];
/// Lines of the statement that a connection reads while the policy changes, at five a second.
const LINES: usize = 30;

/// Plays the story. With `keep` the agents are still running at its end.
pub(crate) fn all(show: &mut Show, stage: &mut Stage, keep: bool) -> Result<()> {
    nodes(show, stage)?;
    agents(show, stage)?;
    let capture = stage.capture()?;
    let answer = mutual_tls(show, stage)?;
    real_address(show, stage, &answer)?;
    permissive(show, stage)?;
    wire(show, stage, capture)?;
    let statement = live_connection(show, stage)?;
    strict(show, stage, statement)?;
    policy::play(show, stage)?;
    counters(show, stage)?;
    if keep { Ok(()) } else { stop(show, stage) }
}

fn nodes(show: &mut Show, stage: &Stage) -> Result<()> {
    show.step("Two nodes, four pods, ordinary programs");
    show.say(
        "node-a                                  node-b\n\
         ├ order    shop    198.18.1.10  enrolled   └ payment  shop    198.18.2.10  enrolled: python3, port 8080\n\
         ├ visitor  street  198.18.1.11  not enrolled\n\
         └ invoice  shop    198.18.1.12  enrolled",
    );
    let prefix = stage.world.prefix();
    show.say(&format!(
        "order$ is a prompt in that pod (later: cargo xtask demo --keep, then --shell order);\n\
         node-a$, node-b$ and link$ are nsenter --net=/run/netns/{prefix}-node-a (-node-b, -fabric)."
    ));
    show.command("host", &format!("ls {}", stage.config_dir().display()));
    let mut names: Vec<String> = std::fs::read_dir(stage.config_dir())?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    show.output(&names.join("  "));
    let url = format!("http://{}:{PORT}/", stage.pod("payment")?.ip4());
    let answer = curl(show, stage, "order", &[&url])?;
    show.verdict(
        answer.status.success(),
        "the network between the pods works, still without a mesh",
        &said(&answer),
    )
}

fn agents(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.step("One agent on each node");
    let start = Instant::now();
    stage.start_agents()?;
    for (agent, node) in stage.agents.iter().zip(NODES) {
        show.command(node, &format!("mesh-agent {}", agent.args().join(" ")));
    }
    show.verdict(
        true,
        &format!("both are ready after {:.1} s", start.elapsed().as_secs_f32()),
        "",
    )?;
    let text = meshctl(show, stage, 0, &["workloads"])?;
    let json = stage.agents[0].meshctl(&["workloads"])?;
    let state = |name: &str| {
        let all = json["workloads"].as_array();
        all.into_iter()
            .flatten()
            .find(|one| one["name"] == name)
            .map(|one| (&one["enrolment"], &one["capture"]))
    };
    let known = state("order")
        .is_some_and(|(enrolment, capture)| enrolment == "enrolled" && capture == "captured")
        && state("payment")
            .is_some_and(|(enrolment, capture)| enrolment == "enrolled" && capture != "captured")
        && state("visitor")
            .is_some_and(|(enrolment, capture)| enrolment == "not-enrolled" && capture != "captured");
    show.verdict(
        known,
        "node-a's agent knows the workloads of both nodes, and has captured its own",
        &said(&text),
    )
}

fn mutual_tls(show: &mut Show, stage: &Stage) -> Result<String> {
    show.step("order calls payment by its service's name");
    show.say("(The demo has no DNS: --resolve gives the name its cluster address, which no interface has.)");
    let resolve = format!("{SERVICE}:80:{CLUSTER_IP}");
    let answer = curl(
        show,
        stage,
        "order",
        &[
            "--resolve",
            &resolve,
            &format!("http://{SERVICE}/charge"),
            "-d",
            SECRET,
        ],
    )?;
    show.verdict(
        answer.stdout.contains("accepted"),
        "payment accepted it",
        &said(&answer),
    )?;
    let url = format!("http://[{}]:{PORT}/charge", stage.pod("payment")?.ip6());
    let sixth = curl(show, stage, "order", &[&url, "-d", SECRET])?;
    show.verdict(
        sixth.stdout.contains("accepted"),
        "and so it does over IPv6, by the pod's address",
        &said(&sixth),
    )?;
    Ok(answer.stdout)
}

fn real_address(show: &mut Show, stage: &Stage, answer: &str) -> Result<()> {
    show.step("payment sees order's real address");
    let order = stage.pod("order")?;
    show.command("payment", "# its own log");
    let log = stage.payment_log();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("/charge")).collect();
    show.output(&lines.join("\n"));
    let v4 = order.ip4().to_string();
    show.verdict(answer.contains(&v4), &format!("its answer named {v4}"), answer)?;
    let v6 = order.ip6().to_string();
    let sees =
        lines.iter().any(|line| line.starts_with(&v4)) && lines.iter().any(|line| line.starts_with(&v6));
    show.verdict(
        sees,
        &format!("its log names {v4} and {v6}: no proxy's address"),
        &log,
    )
}

fn permissive(show: &mut Show, stage: &Stage) -> Result<()> {
    show.step("visitor is not in the mesh: allowed while payment is PERMISSIVE");
    let answer = curl(show, stage, "visitor", &[&visit(stage)?, "-d", OPEN])?;
    let address = stage.pod("visitor")?.ip4().to_string();
    show.verdict(
        answer.stdout.contains(&address),
        "payment accepted it, and saw visitor's real address",
        &said(&answer),
    )
}

fn wire(show: &mut Show, stage: &Stage, capture: Capture) -> Result<()> {
    show.step("What a packet capture between the nodes holds");
    show.command(
        "link",
        "tcpdump -i br0 -w link.pcap      # it ran from step 3 to here",
    );
    let captured = capture.finish()?;
    show.verdict(
        !captured.contains(SECRET.as_bytes()) && !captured.contains(b"canary-of-order"),
        "nothing of what order sent is in it in plaintext",
        SECRET,
    )?;
    show.verdict(
        captured.contains(OPEN.as_bytes()),
        "what visitor sent is (so the capture does see plaintext where there is some)",
        "visitor's canary is not in the capture",
    )?;
    let records = tls_records(&captured, stage)?;
    show.verdict(
        records >= 4,
        &format!("order's packets go to payment's port {HBONE}, {records} of them begin a TLS record"),
        &format!("{records} TLS records"),
    )?;
    let order = [stage.pod("order")?.ip4(), stage.pod("order")?.ip6()];
    let astray = captured.segments().into_iter().find(|segment| {
        (order.contains(&segment.from.ip()) && segment.to.port() != HBONE)
            || (order.contains(&segment.to.ip()) && segment.from.port() != HBONE)
    });
    show.verdict(
        astray.is_none(),
        "no other TCP packet of order's is on the link",
        &format!("{astray:?}"),
    )
}

/// How many segments between order and payment's tunnel port begin a TLS record (application data, or a handshake).
fn tls_records(captured: &Captured, stage: &Stage) -> Result<usize> {
    let payment = [stage.pod("payment")?.ip4(), stage.pod("payment")?.ip6()];
    let begins = |bytes: &[u8]| matches!(bytes, [0x14..=0x17, 3, 1 | 3, ..]);
    let tunnel = |address: std::net::SocketAddr| address.port() == HBONE && payment.contains(&address.ip());
    Ok(captured
        .segments()
        .iter()
        .filter(|segment| (tunnel(segment.to) || tunnel(segment.from)) && begins(&segment.payload))
        .count())
}

fn live_connection(show: &mut Show, stage: &Stage) -> Result<Proc> {
    show.step("A live connection, and who is at its ends");
    let url = format!("http://{SERVICE}/statement?n={LINES}");
    let resolve = format!("{SERVICE}:80:{CLUSTER_IP}");
    show.command("order", &format!("curl -sSN --resolve {resolve} '{url}' &"));
    let statement = stage.curl_in_background("order", &["--resolve", &resolve, &url])?;
    signals::wait_for("the statement begins", Duration::from_secs(5), || {
        if statement.stdout().contains("line 0") {
            Ok(())
        } else {
            bail!("curl says: {}", statement.stderr())
        }
    })?;
    let identity = |name: &str| format!("spiffe://cluster.local/ns/shop/sa/{name}");
    let text = meshctl(show, stage, 1, &["connections"])?;
    let json = stage.agents[1].meshctl(&["connections"])?.to_string();
    let both = json.contains(&identity("order")) && json.contains(&identity("payment"));
    show.verdict(
        both,
        "node-b's agent knows it, and both proven identities",
        &format!("{}{json}", said(&text)),
    )?;
    for (node, name, other) in [(0, "order", "payment"), (1, "payment", "order")] {
        let text = meshctl(show, stage, node, &["certs"])?;
        let json = stage.agents[node].meshctl(&["certs"])?.to_string();
        let only = json.contains(&identity(name)) && !json.contains(&identity(other));
        show.verdict(
            only,
            &format!("this node holds a certificate for {name}, and none for {other}"),
            &said(&text),
        )?;
    }
    Ok(statement)
}

fn strict(show: &mut Show, stage: &Stage, mut statement: Proc) -> Result<()> {
    show.step("STRICT, applied live");
    let target = stage.config_dir().join("payment-mtls.yaml");
    show.command(
        "host",
        &format!("cp deploy/demo/strict.yaml {}", target.display()),
    );
    stage.apply("strict", "payment-mtls")?;
    let written = Instant::now();
    let url = visit(stage)?;
    let (refused, after) = loop {
        let asked = written.elapsed();
        let answer = stage.curl("visitor", &[&url, "-d", OPEN])?;
        if !answer.status.success() || asked > PROMPT {
            break (answer, asked);
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    show.command("visitor", &format!("curl -sS {url} -d {OPEN}"));
    show.output(&said(&refused));
    show.verdict(
        !refused.status.success() && after <= PROMPT,
        &format!(
            "visitor is refused, {:.2} s after the file was written",
            after.as_secs_f32()
        ),
        &said(&refused),
    )?;
    let resolve = format!("{SERVICE}:80:{CLUSTER_IP}");
    let answer = curl(
        show,
        stage,
        "order",
        &[
            "--resolve",
            &resolve,
            &format!("http://{SERVICE}/charge"),
            "-d",
            SECRET,
        ],
    )?;
    show.verdict(
        answer.stdout.contains("accepted"),
        "order goes on",
        &said(&answer),
    )?;
    let status = statement.wait(Duration::from_secs(30))?;
    let whole = statement.stdout().lines().count() == LINES;
    show.verdict(
        status.success() && whole,
        &format!("the connection that was open all the while lost none of its {LINES} lines"),
        &format!("{status}: {}{}", statement.stdout(), statement.stderr()),
    )
}

fn counters(show: &mut Show, stage: &Stage) -> Result<()> {
    show.step("The counters");
    let wanted = "istio_tcp_connections_opened_total";
    // Each line has two dozen labels; these three say it.
    let pipeline = format!(
        "curl -sS http://127.0.0.1:15020/metrics | grep ^{wanted} | grep -oE \
         '(source_principal|destination_workload|connection_security_policy)=[^,]*|[0-9.]+$' | paste -sd '   \\n'"
    );
    show.command("node-b", &pipeline);
    let text = stage.on_node(1, "sh", &["-c", &pipeline])?.success()?;
    show.output(&text);
    let metrics = stage.agents[1].metrics()?;
    let secure = metrics.sum(
        wanted,
        &[
            ("reporter", "destination"),
            ("connection_security_policy", "mutual_tls"),
            ("source_principal", "spiffe://cluster.local/ns/shop/sa/order"),
        ],
    );
    show.verdict(
        secure >= 4.0,
        &format!("node-b counted {secure} connections from order over mutual TLS"),
        &text,
    )?;
    let opened = metrics.sum(wanted, &[("reporter", "destination")]);
    let flagged = metrics.sum(
        wanted,
        &[
            ("reporter", "destination"),
            ("connection_security_policy", "none"),
        ],
    );
    show.verdict(
        flagged >= 1.0,
        &format!("and {flagged} of {opened} in plaintext: visitor's"),
        &metrics.show("istio_tcp_connections"),
    )
}

fn stop(show: &mut Show, stage: &mut Stage) -> Result<()> {
    show.step("The agents stop");
    let mut objects = Vec::new();
    for agent in &mut stage.agents {
        objects.push(KernelObjects::of(agent.proc().pid())?);
        show.command("host", &format!("kill -TERM {}", agent.proc().pid()));
        agent.stop()?;
    }
    show.verdict(true, "both ended cleanly", "")?;
    let programs: usize = objects.iter().map(|of| of.count("prog")).sum();
    let links: usize = objects.iter().map(|of| of.count("link")).sum();
    let gone: Result<()> = objects.iter().try_for_each(KernelObjects::wait_until_gone);
    show.command("host", "bpftool prog list; bpftool link list; bpftool map list");
    show.verdict(
        programs > 0 && gone.is_ok(),
        &format!("none of their {programs} BPF programs and {links} links, and none of their maps, is left in the kernel"),
        &gone.err().map(|error| format!("{error:#}")).unwrap_or_default(),
    )?;
    let url = format!("http://{}:{PORT}/", stage.pod("payment")?.ip4());
    let answer = curl(show, stage, "order", &[&url])?;
    show.verdict(
        answer.status.success(),
        "order still reaches payment, as it did before the mesh",
        &said(&answer),
    )
}

/// Where visitor goes: the pod itself, in plaintext.
fn visit(stage: &Stage) -> Result<String> {
    Ok(format!("http://{}:{PORT}/charge", stage.pod("payment")?.ip4()))
}

/// Shows and runs a curl in a pod.
fn curl(show: &Show, stage: &Stage, pod: &str, args: &[&str]) -> Result<Output> {
    let shown: Vec<String> = args.iter().map(|word| quoted(word)).collect();
    show.command(pod, &format!("curl -sS {}", shown.join(" ")));
    let answer = stage.curl(pod, args)?;
    show.output(&said(&answer));
    Ok(answer)
}

/// Shows and runs meshctl against the agent of a node (0 is node-a).
fn meshctl(show: &Show, stage: &Stage, node: usize, args: &[&str]) -> Result<Output> {
    signals::check()?;
    let agent = &stage.agents[node];
    show.command(
        "host",
        &format!(
            "meshctl --socket {} {}",
            agent.admin_socket().display(),
            args.join(" ")
        ),
    );
    let output = agent.meshctl_text(args)?;
    show.output(&said(&output));
    if !output.status.success() {
        bail!(
            "meshctl {} ended with {}: {}",
            args.join(" "),
            output.status,
            said(&output)
        );
    }
    Ok(output)
}

/// All that a program said.
fn said(output: &Output) -> String {
    format!("{}{}", output.stdout, output.stderr)
}

fn quoted(word: &str) -> String {
    if word.contains(['[', ' ', '?', '&']) {
        format!("'{word}'")
    } else {
        word.to_owned()
    }
}
