//! What is on the wire, by tcpdump: packets of an interface in a pcap file, and a small reader of it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::netns::Netns;
use super::process::{JoinExt, Proc, wait_for};
use super::world::World;

/// A TCP segment on the wire.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its sender.
    pub from: SocketAddr,
    /// Its receiver.
    pub to: SocketAddr,
    /// The flags byte (FIN 1, SYN 2, RST 4, PSH 8, ACK 16).
    pub flags: u8,
    /// What it carries.
    pub payload: Vec<u8>,
}

/// A running tcpdump; killed on drop.
#[derive(Debug)]
pub struct Capture {
    proc: Proc,
    file: PathBuf,
}

impl Capture {
    /// Captures everything on `interface` of `netns`, and returns once that has begun.
    ///
    /// # Errors
    /// When tcpdump is missing or refuses.
    pub fn start(world: &World, netns: &Netns, interface: &str) -> Result<Self> {
        let name = format!("tcpdump-{}-{interface}", netns.name());
        let file = world.dir().join(format!("{name}.pcap"));
        let mut command = Command::new("tcpdump");
        // -U and immediate mode: each packet is written at once. The buffer is large so that a bulk transfer loses little.
        command
            .args([
                "-i",
                interface,
                "-n",
                "-U",
                "--immediate-mode",
                "-s",
                "0",
                "-B",
                "65536",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file);
        command.in_cgroup(world.cgroup())?.in_netns(netns)?;
        let mut proc = Proc::start(&name, &mut command, &world.log_dir()).context("is tcpdump installed?")?;
        wait_for("tcpdump listens", Duration::from_secs(10), || {
            match proc.ended() {
                Some(status) => bail!("tcpdump ended with {status}: {}", proc.stderr()),
                None if proc.stderr().contains("listening on") => Ok(()),
                None => bail!("it says {}", proc.stderr()),
            }
        })?;
        Ok(Self { proc, file })
    }

    /// Ends the capture and gives the bytes of the file.
    ///
    /// # Errors
    /// When tcpdump did not end well.
    pub fn finish(mut self) -> Result<Captured> {
        // Packets reach the capture a moment after the application has them.
        std::thread::sleep(Duration::from_millis(200));
        self.proc.signal(Signal::SIGINT)?;
        self.proc.wait(Duration::from_secs(10))?;
        let bytes =
            std::fs::read(&self.file).with_context(|| format!("cannot read {}", self.file.display()))?;
        Ok(Captured { bytes })
    }
}

/// A finished capture.
#[derive(Debug)]
pub struct Captured {
    bytes: Vec<u8>,
}

impl Captured {
    /// Whether these bytes stand anywhere in it, in one packet.
    pub fn contains(&self, needle: &[u8]) -> bool {
        !needle.is_empty() && self.bytes.windows(needle.len()).any(|window| window == needle)
    }

    /// All TCP segments over IPv4 and IPv6.
    pub fn segments(&self) -> Vec<Segment> {
        // pcap: 24 bytes of header, then per packet 16 bytes (seconds, fraction, captured length, length) in the writer's order.
        let mut found = Vec::new();
        let mut at = 24;
        while let Some(header) = self.bytes.get(at..at + 16) {
            let length = u32::from_ne_bytes([header[8], header[9], header[10], header[11]]) as usize;
            let Some(packet) = self.bytes.get(at + 16..at + 16 + length) else {
                break;
            };
            found.extend(segment(packet));
            at += 16 + length;
        }
        found
    }
}

/// A TCP segment in an Ethernet frame, if it is one.
fn segment(frame: &[u8]) -> Option<Segment> {
    let word = |bytes: &[u8], at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let ip = frame.get(14..)?;
    let (source, target, tcp) = match word(frame, 12)? {
        0x0800 if *ip.get(9)? == 6 => {
            let header = usize::from(*ip.first()? & 0xf) * 4;
            let total = usize::from(word(ip, 2)?);
            let address = |at: usize| -> Option<IpAddr> {
                Some(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?).into())
            };
            // A total length of 0 is a segment that offload made larger than 64 KiB.
            (
                address(12)?,
                address(16)?,
                if total == 0 {
                    ip.get(header..)?
                } else {
                    ip.get(header..total)?
                },
            )
        }
        0x86dd if *ip.get(6)? == 6 => {
            let length = usize::from(word(ip, 4)?);
            let address = |at: usize| -> Option<IpAddr> {
                Some(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?).into())
            };
            (
                address(8)?,
                address(24)?,
                if length == 0 {
                    ip.get(40..)?
                } else {
                    ip.get(40..40 + length)?
                },
            )
        }
        _ => return None,
    };
    let offset = usize::from(*tcp.get(12)? >> 4) * 4;
    Some(Segment {
        from: SocketAddr::new(source, word(tcp, 0)?),
        to: SocketAddr::new(target, word(tcp, 2)?),
        flags: *tcp.get(13)?,
        payload: tcp.get(offset..)?.to_vec(),
    })
}
