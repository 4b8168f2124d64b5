//! How long after a file's change connections are treated by it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use mesh_tests::harness::MESH;

use super::MESH_SIDE;
use crate::Extent;
use crate::figures::{Figure, Sample, figures, sample};
use crate::stage::{Side, Stage};

const POLICY: &str = "deny-client";

/// A policy that denies is written, and removed again, while a client opens connection after connection.
pub(super) fn changes(extent: Extent) -> Result<Vec<Figure>> {
    let stage = Stage::new()?;
    let mut runs = Vec::new();
    for _ in 0..extent.pick(3, 10) {
        let denied = turn(&stage, "refused", "denied after", || {
            stage.scene.config.write(
                POLICY,
                &format!(
                    "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {POLICY}, namespace: {MESH}}}\n\
                     spec:\n  action: DENY\n  selector: {{matchLabels: {{app: far}}}}\n  \
                     rules: [{{from: [{{source: {{serviceAccounts: [{MESH}/client]}}}}]}}]\n"
                ),
            )
        })?;
        let allowed = turn(&stage, "served", "allowed again after", || {
            stage.scene.config.remove(POLICY)
        })?;
        runs.push(vec![denied, allowed]);
    }
    Ok(figures("", MESH_SIDE, None, &runs, &[]))
}

/// From `change` to the first connection with that outcome.
fn turn(
    stage: &Stage,
    outcome: &str,
    name: &'static str,
    change: impl FnOnce() -> Result<()>,
) -> Result<Sample> {
    let to = stage.server(Side::Mesh);
    let waiting = stage
        .client(Side::Mesh)
        .load_in_background(&["until", outcome, &to])?;
    std::thread::sleep(Duration::from_millis(300));
    let began = SystemTime::now().duration_since(UNIX_EPOCH)?;
    change()?;
    let turned = waiting.turned(Duration::from_secs(40))?;
    let took = Duration::from_micros(turned.at_micros).saturating_sub(began);
    Ok(sample(name, "ms", took.as_secs_f64() * 1e3))
}
