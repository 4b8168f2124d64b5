//! A poor line between a node and the fabric: `mesh-link`, which delays, loses, repeats and reorders frames in userspace. For kernels
//! without `sch_netem` too; what it does is the same wherever it runs.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::app::binary;
use super::netns::Netns;
use super::node::Node;
use super::process::{JoinExt, Proc, wait_for};
use super::world::World;

/// What is wrong with a line, in either direction. Loss, repetition and reordering are of TCP segments alone: an ARP that is lost costs a
/// second, and shows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Impairment {
    /// How long each frame takes, milliseconds.
    pub delay_millis: u32,
    /// Of a thousand segments, how many are lost.
    pub loss_per_mille: u32,
    /// Of a thousand segments, how many come twice.
    pub repeat_per_mille: u32,
    /// Of a thousand segments, how many come five milliseconds late, behind those sent after them.
    pub reorder_per_mille: u32,
}

/// What a line did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkTally {
    /// Frames that came in.
    pub frames: u64,
    /// Lost on purpose.
    pub lost: u64,
    /// Sent twice.
    pub repeated: u64,
    /// Held back.
    pub reordered: u64,
    /// Lost because more were on the line than it holds.
    pub overflowed: u64,
}

/// A line with an impairment; when dropped, the node is joined to the fabric as before.
#[derive(Debug)]
pub struct Link {
    fabric: Netns,
    proc: Proc,
    port: String,
    bridge: String,
    taps: [String; 2],
}

impl Link {
    /// Puts the line between `node` and the fabric.
    ///
    /// # Errors
    /// When the kernel has no TAP devices, or refuses otherwise.
    pub fn between(world: &World, node: &Node, impairment: Impairment) -> Result<Self> {
        let fabric = world.fabric();
        let name = node.name();
        let (port, bridge) = (format!("to-{name}"), format!("br-{name}"));
        let taps = [format!("out-{name}"), format!("in-{name}")];
        let mut command =
            std::process::Command::new(binary("mesh-link", "cargo build -p mesh-tests --bins")?);
        command.args(&taps);
        for (flag, value) in [
            ("--delay", impairment.delay_millis),
            ("--loss", impairment.loss_per_mille),
            ("--repeat", impairment.repeat_per_mille),
            ("--reorder", impairment.reorder_per_mille),
        ] {
            command.args([flag, &value.to_string()]);
        }
        command.in_cgroup(world.cgroup())?.in_netns(fabric)?;
        let mut link = Self {
            fabric: Netns::at(fabric.path()),
            proc: Proc::start(&format!("link-{name}"), &mut command, &world.log_dir())?,
            port,
            bridge,
            taps,
        };
        wait_for("the line is there", Duration::from_secs(5), || {
            if let Some(status) = link.proc.ended() {
                return Ok(Err(status));
            }
            if link.proc.stdout().contains("ready") {
                Ok(Ok(()))
            } else {
                bail!("nothing said yet")
            }
        })?
        .map_err(|status| {
            anyhow::anyhow!(
                "mesh-link ended with {status}: {} (has the kernel CONFIG_TUN?)",
                link.proc.stderr()
            )
        })?;
        let [outer, inner] = &link.taps;
        fabric.ip(&[
            "link",
            "add",
            &link.bridge,
            "type",
            "bridge",
            "forward_delay",
            "0",
            "mcast_snooping",
            "0",
        ])?;
        fabric.ip(&["link", "set", &link.bridge, "up"])?;
        fabric.ip(&["link", "set", outer, "master", "br0", "up"])?;
        fabric.ip(&["link", "set", inner, "master", &link.bridge, "up"])?;
        fabric.ip(&["link", "set", &link.port, "master", &link.bridge])?;
        Ok(link)
    }

    /// Takes the line away, and says what it did.
    ///
    /// # Errors
    /// When it does not end, or says nothing.
    pub fn finish(mut self) -> Result<LinkTally> {
        self.proc.terminate(Duration::from_secs(5))?;
        let stdout = self.proc.stdout();
        let last = stdout.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("no tally: {stdout}{}", self.proc.stderr()))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.proc.kill();
        let fabric = &self.fabric;
        fabric.ip(&["link", "set", &self.port, "master", "br0"]).ok();
        fabric.ip(&["link", "delete", &self.bridge]).ok();
    }
}
