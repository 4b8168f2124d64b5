//! Those who must notice nothing, and what the agents may cost meanwhile.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use mesh_tests::harness::{Agent, App, Leaf, Pod, Scene, id, resident};

/// 1 MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// The limits that memory budgets are made of, as docs/configuration.md ("Limits") has them.
pub(crate) mod limits {
    use super::MIB;

    /// What one stream may have in flight towards a reader that stalls (`streamWindow`).
    pub(crate) const STREAM_WINDOW: u64 = 4 * MIB;
    /// What is held for one workload on both workers of an agent before new streams are refused: twice `bufferedBytes`.
    pub(crate) const BUFFERED: u64 = 2 * 2 * 64 * MIB;
    /// What a stream holds towards a peer that gives no window: h2's send buffer and one read.
    pub(crate) const UNSENT: u64 = (512 + 256) << 10;
    /// A TLS connection: its read buffer, and HTTP/2's and TLS's own.
    pub(crate) const CONNECTION: u64 = 160 << 10;
    /// What the agent may gain by ordinary work at the side: caches, arenas of the allocator, tables.
    pub(crate) const WORK: u64 = 48 * MIB;
}

/// The certificate of the visitor: good, but of a workload that nobody captures.
pub(crate) fn visitor(scene: &Scene) -> Result<Leaf> {
    scene.ca()?.leaf(
        &scene.world.dir().join("certs"),
        "visitor",
        &[&id("outside", "visitor")],
    )
}

/// A pod of the second node beside the one that is attacked, with an echo on port 8080.
pub(crate) fn bystander(scene: &Scene) -> Result<(Pod, App)> {
    let pod = scene.n2.pod("mesh", "bystander")?;
    scene.change(|config| config.pod(&pod.spec()))?;
    scene.wait_captured()?;
    let app = App::serve(&pod, "echo", 8080, &[])?;
    Ok((pod, app))
}

/// One who exchanges all the time: over connections that stand, and over new ones.
#[derive(Clone, Copy)]
pub(crate) struct Neighbour<'a> {
    pub(crate) from: &'a Pod,
    pub(crate) to: IpAddr,
    pub(crate) port: u16,
}

/// Does `work` while `neighbours` exchange. None of their exchanges may fail, and no agent may end, panic, or grow by more than
/// `budget` bytes.
pub(crate) fn beside<T: Send>(
    scene: &Scene,
    neighbours: &[Neighbour<'_>],
    budget: u64,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    let agents: Vec<&Agent> = scene.agents().collect();
    let before: Vec<u64> = agents
        .iter()
        .map(|agent| resident(agent.pid()))
        .collect::<Result<_>>()?;
    let peaks: Vec<AtomicU64> = before.iter().map(|n| AtomicU64::new(*n)).collect();
    let done = AtomicBool::new(false);
    let exchanged = AtomicU64::new(0);
    let trouble = Mutex::new(Vec::new());
    let outcome = std::thread::scope(|scope| {
        for neighbour in neighbours {
            for mode in ["load", "load-new"] {
                let (done, exchanged, trouble) = (&done, &exchanged, &trouble);
                scope.spawn(move || {
                    let args = [
                        "--parallel",
                        "2",
                        "--pause",
                        "5",
                        "--seconds",
                        "1",
                        "--timeout",
                        "20000",
                    ];
                    let mut rounds = 0;
                    while rounds == 0 || !done.load(Ordering::Relaxed) {
                        rounds += 1;
                        match neighbour.from.connect(neighbour.to, neighbour.port, mode, &args) {
                            Ok(report) if report.failed == 0 && report.ok > 0 => {
                                exchanged.fetch_add(report.ok, Ordering::Relaxed);
                            }
                            Ok(report) => trouble.lock().expect("whole").push(format!("{mode}: {report:?}")),
                            Err(error) => trouble.lock().expect("whole").push(format!("{mode}: {error:#}")),
                        }
                    }
                });
            }
        }
        {
            let (done, agents, peaks) = (&done, &agents, &peaks);
            let pids: Vec<u32> = agents.iter().map(|agent| agent.pid()).collect();
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    for (pid, peak) in pids.iter().zip(peaks) {
                        peak.fetch_max(resident(*pid).unwrap_or(u64::MAX), Ordering::Relaxed);
                    }
                    std::thread::sleep(Duration::from_millis(25));
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        done.store(true, Ordering::Relaxed);
        outcome
    });
    let outcome = outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let trouble = trouble.into_inner().expect("whole");
    ensure!(
        trouble.is_empty(),
        "a neighbour noticed: {}\n{}",
        trouble.join("\n"),
        scene.logs()
    );
    ensure!(exchanged.into_inner() > 0 || neighbours.is_empty());
    for ((agent, before), peak) in agents.iter().zip(before).zip(peaks) {
        let gained = peak.into_inner().saturating_sub(before);
        println!(
            "{} MiB of {} MiB (before: {} MiB)",
            gained / MIB,
            budget / MIB,
            before / MIB
        );
        ensure!(
            gained <= budget,
            "the agent gained {} MiB, its budget was {} MiB\n{}",
            gained / MIB,
            budget / MIB,
            scene.logs()
        );
        ensure!(!agent.log().contains("panicked"), "{}", scene.logs());
    }
    Ok(outcome)
}

/// How often an agent cut a tunnel for `reason`.
pub(crate) fn cut(agent: &Agent, role: &str, reason: &str) -> Result<f64> {
    let labels = [("role", role), ("reason", reason)];
    Ok(agent.metrics()?.sum("mesh_agent_tunnels_cut_total", &labels))
}
