//! A policy, applied live: whom it lets in, whom it refuses, what becomes of a connection that stands, and who says why.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::{PROMPT, SECRET, curl, meshctl, said};
use crate::show::Show;
use crate::signals;
use crate::stage::{CLUSTER_IP, SERVICE, Stage};

/// The node of payment.
const NODE_B: usize = 1;
const DECISIONS: &str = "mesh_agent_policy_decisions_total";

pub(super) fn play(show: &mut Show, stage: &Stage) -> Result<()> {
    show.step("A policy, applied live: only order may");
    let resolve = format!("{SERVICE}:80:{CLUSTER_IP}");
    let charge = format!("http://{SERVICE}/charge");
    let args = ["--resolve", resolve.as_str(), charge.as_str(), "-d", SECRET];
    let before = curl(show, stage, "invoice", &args)?;
    show.verdict(
        before.stdout.contains("accepted"),
        "invoice, another pod of the mesh, reaches payment still",
        &said(&before),
    )?;
    let url = format!("http://{SERVICE}/statement?n=60");
    show.command("invoice", &format!("curl -sSN --resolve {resolve} '{url}' &"));
    let mut statement = stage.curl_in_background("invoice", &["--resolve", &resolve, &url])?;
    signals::wait_for("the statement begins", Duration::from_secs(5), || {
        if statement.stdout().contains("line 0") {
            Ok(())
        } else {
            bail!("curl says: {}", statement.stderr())
        }
    })?;
    let target = stage.config_dir().join("payment-authz.yaml");
    show.command(
        "host",
        &format!("cp deploy/demo/allow-order.yaml {}", target.display()),
    );
    stage.apply("allow-order", "payment-authz")?;
    let written = Instant::now();
    let ended = statement.wait(Duration::from_secs(10));
    let after = written.elapsed();
    let cut = ended.as_ref().is_ok_and(|status| !status.success());
    show.output(&statement.stderr());
    show.verdict(
        cut && after <= PROMPT,
        &format!(
            "the connection that invoice had open was closed, {:.2} s after the file was written",
            after.as_secs_f32()
        ),
        &format!("{ended:?} after {after:?}: {}", statement.stdout()),
    )?;
    let refused = curl(show, stage, "invoice", &args)?;
    show.verdict(!refused.status.success(), "invoice is refused", &said(&refused))?;
    let allowed = curl(show, stage, "order", &args)?;
    show.verdict(
        allowed.stdout.contains("accepted"),
        "order goes on",
        &said(&allowed),
    )?;
    explained(show, stage)?;
    counted(show, stage)
}

fn explained(show: &mut Show, stage: &Stage) -> Result<()> {
    let question = ["explain", "shop/invoice", SERVICE];
    let text = meshctl(show, stage, NODE_B, &question)?;
    let json = stage.agents[NODE_B].meshctl(&question)?;
    let way = &json["ways"][0];
    show.verdict(
        json["allowed"] == false
            && way["policy"] == "AuthorizationPolicy shop/payment"
            && way["rule"] == 0
            && way["field"] == "source.principals",
        "meshctl names the policy, the rule and the field that did not hold",
        &said(&text),
    )?;
    let json = stage.agents[NODE_B].meshctl(&["explain", "shop/order", SERVICE])?;
    show.verdict(
        json["allowed"] == true,
        "and says that order may, by the same code",
        &json.to_string(),
    )?;
    let text = meshctl(show, stage, NODE_B, &["refusals"])?;
    let json = stage.agents[NODE_B].meshctl(&["refusals"])?;
    let all = json["refusals"].as_array().map_or(&[][..], Vec::as_slice);
    let ids: Vec<&str> = all
        .iter()
        .filter(|one| one["source"]["workload"] == "invoice")
        .filter_map(|one| one["id"].as_str())
        .collect();
    let log = stage.agents[NODE_B].log();
    show.verdict(
        ids.len() == 2 && ids.iter().all(|id| log.contains(id)),
        "each refusal has an id, which the log has, too",
        &said(&text),
    )
}

fn counted(show: &mut Show, stage: &Stage) -> Result<()> {
    let pipeline = format!("curl -sS http://127.0.0.1:15020/metrics | grep ^{DECISIONS}");
    show.command("node-b", &pipeline);
    let text = stage.on_node(NODE_B, "sh", &["-c", &pipeline])?.success()?;
    show.output(&text);
    let metrics = stage.agents[NODE_B].metrics()?;
    let count = |verdict| metrics.sum(DECISIONS, &[("policy", "payment"), ("verdict", verdict)]);
    show.verdict(
        count("allowed") >= 1.0 && count("denied") == 1.0 && count("closed") == 1.0,
        "it is counted: order let in, invoice refused, its open connection closed",
        &text,
    )
}
