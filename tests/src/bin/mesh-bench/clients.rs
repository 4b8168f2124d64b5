//! Other programs' clients: iperf3 and wrk.

use std::io::Write;
use std::net::SocketAddr;
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use mesh_tests::harness::{Pod, Proc, wait_for};
use serde::Deserialize;

/// Where iperf3 listens.
const IPERF_PORT: u16 = 5201;

/// What iperf3 saw arrive.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Bulk {
    pub(crate) bytes: f64,
    pub(crate) bits_per_second: f64,
}

/// `iperf3 -P PARALLEL` from `client` to `server`, or back with `reverse`; its server lives as long as the run.
pub(crate) fn iperf3(
    client: &Pod,
    server: &Pod,
    parallel: &str,
    seconds: u32,
    reverse: bool,
) -> Result<Bulk> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(default)]
        error: Option<String>,
        end: Option<End>,
    }
    #[derive(Deserialize)]
    struct End {
        sum_received: Bulk,
    }
    let port = IPERF_PORT.to_string();
    let mut serve = server.command("iperf3")?;
    serve.args(["--server", "--one-off", "--port", &port, "--forceflush"]);
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("iperf3-{}", COUNT.fetch_add(1, Ordering::Relaxed));
    let mut serving = Proc::start(&name, &mut serve, server.log_dir())?;
    wait_for("iperf3 listens", Duration::from_secs(10), || {
        if serving.stdout().contains("listening") {
            Ok(())
        } else {
            bail!("not yet: {}", serving.stderr())
        }
    })?;
    let mut command = client.command("iperf3")?;
    let seconds_text = seconds.to_string();
    command.args(["--client", &server.ip4().to_string(), "--port", &port, "--json"]);
    command.args(["--parallel", parallel, "--time", &seconds_text]);
    if reverse {
        command.arg("--reverse");
    }
    let output = command.output().context("cannot run iperf3")?;
    let answer: Answer = serde_json::from_slice(&output.stdout).with_context(|| words(&output))?;
    if let Some(error) = answer.error {
        bail!("iperf3: {error}");
    }
    serving.wait(Duration::from_secs(10))?;
    Ok(answer.end.with_context(|| words(&output))?.sum_received)
}

/// What wrk measured.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Requests {
    pub(crate) requests: u64,
    errors: u64,
    pub(crate) rate: f64,
    pub(crate) p50_micros: f64,
    pub(crate) p99_micros: f64,
    pub(crate) p999_micros: f64,
}

/// Has wrk print what it measured as JSON; times are in microseconds there.
const SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format('\n{"requests":%d,"errors":%d,"rate":%.3f,"p50_micros":%.1f,"p99_micros":%.1f,"p999_micros":%.1f}\n',
    summary.requests, e.connect + e.read + e.write + e.status + e.timeout, summary.requests / (summary.duration / 1e6),
    latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// `wrk` with this many connections on one thread; an error of any request is an error of the run.
pub(crate) fn wrk(client: &Pod, to: SocketAddr, connections: u32, seconds: u32) -> Result<Requests> {
    let path = client.log_dir().join("wrk.lua");
    std::fs::File::create(&path)
        .and_then(|mut file| file.write_all(SCRIPT.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = client.command("wrk")?;
    command.args(["--threads", "1", "--connections", &connections.to_string()]);
    command.args(["--duration", &format!("{seconds}s"), "--script"]);
    command.arg(&path).arg(format!("http://{to}/"));
    let output = command.output().context("cannot run wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text.lines().rev().find(|line| line.starts_with('{'));
    let measured: Requests = last
        .and_then(|line| serde_json::from_str(line).ok())
        .with_context(|| words(&output))?;
    ensure!(measured.errors == 0, "wrk met {} errors: {text}", measured.errors);
    Ok(measured)
}

fn words(output: &Output) -> String {
    format!(
        "{}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
