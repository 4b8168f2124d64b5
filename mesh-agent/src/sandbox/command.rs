//! Makes a sandbox, runs its command, and takes it down.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use clap::Args;
use mesh_core::model::WorkloadUid;
use nix::sys::signal::kill;
use nix::unistd::{Pid, geteuid};
use tokio::runtime::Runtime;

use super::error::SandboxError;
use super::init::NO_SANDBOX;
use super::place;
use super::registry::{About, Held, Locked, Published, Record, Registry};
use super::signals::{Came, Signals};
use crate::admin::DEFAULT_SOCKET;
use crate::admin::client::{Client, ClientError};
use crate::admin::document::{
    CaptureState, CertificateState, Certificates, EnrolmentState, SandboxHost, WorkloadEntry, Workloads,
};
use crate::settings::{Half, SandboxRanges};

/// How long the agent may take to capture the sandbox and to issue its certificate.
const CAPTURE: Duration = Duration::from_secs(15);
/// How long it may take to forget one of the same name that has ended.
const FORGET: Duration = Duration::from_secs(3);
/// Between two questions to the agent.
const PAUSE: Duration = Duration::from_millis(50);

/// Whose sandbox, and what runs in it.
#[derive(Clone, Debug, Args)]
pub struct SandboxArgs {
    /// Name of the workload.
    #[arg(long, value_name = "NAME")]
    pub name: String,
    /// Its service account, which makes its identity [default: default]
    #[arg(long, value_name = "NAME")]
    pub service_account: Option<String>,
    /// Its namespace.
    #[arg(short, long, value_name = "NAME", default_value = "default")]
    pub namespace: String,
    /// A label of it; may be repeated [default: app=NAME]
    #[arg(short, long = "label", value_name = "KEY=VALUE", value_parser = label)]
    pub labels: Vec<(String, String)>,
    /// A service that leads to it: SERVICE:PORT, or SERVICE:PORT:ITS-PORT; may be repeated. Other sandboxes know it by this name.
    #[arg(long = "service", value_name = "SERVICE:PORT", value_parser = service)]
    pub services: Vec<ServiceArg>,
    /// The agent's admin socket.
    #[arg(long, value_name = "PATH", env = "MESH_AGENT_ADMIN_SOCKET", default_value = DEFAULT_SOCKET)]
    pub socket: PathBuf,
    /// Do not say where the sandbox is.
    #[arg(short, long)]
    pub quiet: bool,
    /// The command and its arguments.
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// A service as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceArg {
    name: String,
    port: u16,
    target: u16,
}

fn label(text: &str) -> Result<(String, String), String> {
    let part = |text: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        text.chars().all(good)
    };
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && key.split('/').all(part) && part(value) => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("expected KEY=VALUE, as in app=order".to_owned()),
    }
}

fn service(text: &str) -> Result<ServiceArg, String> {
    let parsed = || {
        let mut parts = text.split(':');
        let name = parts.next().filter(|name| is_name(name))?;
        let port = parts.next()?.parse().ok().filter(|port| *port > 0)?;
        let target = match parts.next() {
            Some(target) => target.parse().ok().filter(|port| *port > 0)?,
            None => port,
        };
        parts.next().is_none().then(|| ServiceArg {
            name: name.to_owned(),
            port,
            target,
        })
    };
    parsed().ok_or_else(|| "expected SERVICE:PORT or SERVICE:PORT:ITS-PORT, as in order:80:8080".to_owned())
}

/// A DNS label (RFC 1123), as Kubernetes wants the names of namespaces and services, and we of sandboxes.
fn is_name(text: &str) -> bool {
    let inner = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-';
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes.iter().copied().all(inner)
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}

/// Runs the command in a sandbox. Gives its exit code, 128 and the signal's number where a signal ended it, or 125 where there was no
/// sandbox.
pub fn run(args: &SandboxArgs) -> u8 {
    let lines = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_target(false);
    // Fails only where something else logs already.
    let _ = lines.with_max_level(tracing::Level::WARN).try_init();
    match sandboxed(args) {
        Ok(status) => code(status),
        Err(error) => {
            eprintln!("mesh-agent sandbox: {error}");
            NO_SANDBOX
        }
    }
}

fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal))
        .unwrap_or(i32::from(NO_SANDBOX));
    u8::try_from(code).unwrap_or(NO_SANDBOX)
}

fn sandboxed(args: &SandboxArgs) -> Result<ExitStatus, SandboxError> {
    for (what, value) in [("--name", &args.name), ("--namespace", &args.namespace)] {
        if !is_name(value) {
            let value = value.clone();
            return Err(SandboxError::Name { what, value });
        }
    }
    if !geteuid().is_root() {
        return Err(SandboxError::NotRoot);
    }
    let signals = Signals::hold().map_err(SandboxError::Start)?;
    let agent = Agent::of(&args.socket)?;
    let sandbox = Sandbox::make(args, &agent)?;
    agent.wait_captured(&sandbox, &signals)?;
    if !args.quiet {
        let addresses: Vec<String> = sandbox.record.addresses.iter().map(IpAddr::to_string).collect();
        let names: Vec<&str> = sandbox
            .record
            .services
            .iter()
            .map(|service| service.name.as_str())
            .collect();
        let services = if names.is_empty() {
            String::new()
        } else {
            format!(", and the service {} leads to it", names.join(", "))
        };
        eprintln!(
            "mesh-agent sandbox: {} is in the mesh at {}{services}",
            sandbox.record.shown(),
            addresses.join(" and ")
        );
    }
    let child = sandbox.start(&args.command)?;
    attend(child, &signals).map_err(SandboxError::Start)
}

/// Waits for the command's end and passes signals on to it.
fn attend(mut child: Child, signals: &Signals) -> std::io::Result<ExitStatus> {
    let pid = i32::try_from(child.id()).map_err(std::io::Error::other)?;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        match signals.next(None)? {
            // Not reaped yet, so the number is still its own.
            Some(Came::Sent(signal)) => drop(kill(Pid::from_raw(pid), signal)),
            Some(Came::Child | Came::Shared(_)) | None => {}
        }
    }
}

/// The agent that takes sandboxes into the mesh.
struct Agent {
    runtime: Runtime,
    client: Client,
    host: SandboxHost,
}

impl Agent {
    fn of(socket: &Path) -> Result<Self, SandboxError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(SandboxError::Start)?;
        let client = Client::new(socket);
        let host: SandboxHost = runtime.block_on(client.document("/sandbox"))?;
        let here = std::fs::metadata("/proc/self/ns/net")
            .map_err(SandboxError::Start)?
            .ino();
        if here != host.netns {
            let (node, pid) = (host.node, host.pid);
            return Err(SandboxError::Elsewhere { node, pid });
        }
        Ok(Self {
            runtime,
            client,
            host,
        })
    }

    fn ask<T: serde::de::DeserializeOwned>(&self, target: &str) -> Result<T, ClientError> {
        self.runtime.block_on(self.client.document(target))
    }

    fn workloads(&self) -> Result<Vec<WorkloadEntry>, SandboxError> {
        Ok(self.ask::<Workloads>("/workloads")?.workloads)
    }

    /// The ranges, without IPv6 where the host has none.
    fn ranges(&self) -> SandboxRanges {
        if Path::new("/proc/sys/net/ipv6").exists() {
            self.host.ranges
        } else {
            self.host.ranges.only_v4()
        }
    }

    /// Waits until every connection of the sandbox will be captured and carried.
    fn wait_captured(&self, sandbox: &Sandbox, signals: &Signals) -> Result<(), SandboxError> {
        let Record { namespace, name, .. } = &sandbox.record;
        let end = Instant::now() + CAPTURE;
        loop {
            let all = self.workloads()?;
            let uid = WorkloadUid::new(namespace, name, &sandbox.uid);
            let found = all.iter().find(|entry| entry.uid == uid.as_str());
            let why = match found.map(|entry| (entry, entry.capture)) {
                Some((entry, CaptureState::Captured)) => match self.certificate(&entry.identity)? {
                    None => return Ok(()),
                    Some(why) => why,
                },
                Some((entry, _)) if entry.enrolment == EnrolmentState::Refused => {
                    entry.enrolment_reason.clone().unwrap_or_default()
                }
                Some((entry, _)) => entry.capture_reason.clone().unwrap_or_default(),
                None => "it has not read the sandbox's document (see `meshctl config`)".to_owned(),
            };
            if Instant::now() >= end {
                let (namespace, name) = (namespace.clone(), name.clone());
                return Err(SandboxError::NotCaptured { namespace, name, why });
            }
            if let Some(signal) = signals.end(PAUSE).map_err(SandboxError::Start)? {
                return Err(SandboxError::Interrupted(signal.as_str()));
            }
        }
    }

    /// Why there is no valid certificate of `identity`; `None` when there is one.
    fn certificate(&self, identity: &str) -> Result<Option<String>, SandboxError> {
        let all = self.ask::<Certificates>("/certs")?.certificates;
        let found = all.iter().find(|entry| entry.identity == identity);
        Ok(match found {
            Some(entry)
                if matches!(
                    entry.state,
                    CertificateState::Valid | CertificateState::RenewalFailing
                ) =>
            {
                None
            }
            Some(entry) => Some(
                entry
                    .error
                    .clone()
                    .unwrap_or_else(|| format!("{identity} has no certificate yet")),
            ),
            None => Some(format!("{identity} has no certificate yet")),
        })
    }
}

/// A sandbox; removed on drop.
struct Sandbox {
    registry: Registry,
    record: Record,
    uid: String,
    /// Ours as long as this is open.
    _held: Held,
}

impl Sandbox {
    fn make(args: &SandboxArgs, agent: &Agent) -> Result<Self, SandboxError> {
        let host = &agent.host;
        let registry = Registry::new(host.directory.clone(), host.cluster_domain.clone());
        let locked = registry.lock()?;
        locked.sweep()?;
        let living = locked.living()?;
        free(args, &living)?;
        let workloads = not_configured(args, agent)?;
        let ranges = agent.ranges();
        let record = allot(args, host, &ranges, &living, &workloads)?;
        let held = locked.enter(&record)?;
        let uid = format!("{:032x}", rand::random::<u128>());
        let sandbox = Self {
            registry: registry.clone(),
            record,
            uid,
            _held: held,
        };
        match sandbox.furnish(args, &locked, host, &ranges) {
            Ok(()) => {
                drop(locked);
                Ok(sandbox)
            }
            Err(error) => {
                // Its drop takes the lock.
                drop(locked);
                drop(sandbox);
                Err(error)
            }
        }
    }

    fn furnish(
        &self,
        args: &SandboxArgs,
        locked: &Locked<'_>,
        host: &SandboxHost,
        ranges: &SandboxRanges,
    ) -> Result<(), SandboxError> {
        place::make(&self.record, ranges)?;
        let mut labels = args.labels.clone();
        if !labels.iter().any(|(key, _)| key == "app") {
            labels.push(("app".to_owned(), args.name.clone()));
        }
        let about = About {
            uid: &self.uid,
            node: &host.node,
            service_account: args.service_account.as_deref().unwrap_or("default"),
            labels: &labels,
        };
        locked.publish(&self.record, &about)
    }

    fn start(&self, command: &[OsString]) -> Result<Child, SandboxError> {
        let program = std::env::current_exe().map_err(SandboxError::Start)?;
        Command::new(program)
            .arg("sandbox-init")
            .arg(format!("--parent={}", std::process::id()))
            .arg("--netns")
            .arg(place::netns_path(&self.record))
            .arg("--cgroup")
            .arg(&self.record.cgroup)
            .arg("--hosts")
            .arg(self.registry.hosts())
            .arg("--")
            .args(command)
            .spawn()
            .map_err(SandboxError::Start)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        match self.registry.lock() {
            Ok(locked) => locked.remove(&self.record),
            Err(error) => eprintln!("mesh-agent sandbox: left for the agent to remove: {error}"),
        }
    }
}

/// Whether nobody has the names.
fn free(args: &SandboxArgs, living: &[Record]) -> Result<(), SandboxError> {
    for other in living.iter().filter(|other| other.namespace == args.namespace) {
        if other.name == args.name {
            return Err(SandboxError::Taken {
                namespace: other.namespace.clone(),
                name: other.name.clone(),
                pid: other.pid,
            });
        }
        let mut theirs = other.services.iter();
        if let Some(taken) = theirs.find(|theirs| args.services.iter().any(|ours| ours.name == theirs.name)) {
            return Err(SandboxError::ServiceTaken {
                service: format!("{}/{}", args.namespace, taken.name),
                holder: other.shown(),
            });
        }
    }
    Ok(())
}

/// The workloads that the agent knows, among which there is none of our name. One that was a sandbox has a moment to go.
fn not_configured(args: &SandboxArgs, agent: &Agent) -> Result<Vec<WorkloadEntry>, SandboxError> {
    let end = Instant::now() + FORGET;
    loop {
        let all = agent.workloads()?;
        let ours = |entry: &WorkloadEntry| entry.namespace == args.namespace && entry.name == args.name;
        if !all.iter().any(ours) {
            return Ok(all);
        }
        if Instant::now() >= end {
            return Err(SandboxError::Configured {
                namespace: args.namespace.clone(),
                name: args.name.clone(),
            });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Gives the sandbox and its services addresses and names that are free.
fn allot(
    args: &SandboxArgs,
    host: &SandboxHost,
    ranges: &SandboxRanges,
    living: &[Record],
    workloads: &[WorkloadEntry],
) -> Result<Record, SandboxError> {
    let used: BTreeSet<IpAddr> = workloads
        .iter()
        .flat_map(|w| w.addresses.iter().copied())
        .collect();
    let mut taken: BTreeSet<u32> = living.iter().map(|other| other.place).collect();
    taken.extend(
        living
            .iter()
            .flat_map(|other| &other.services)
            .map(|service| service.place),
    );
    let mut take = |half, name: &str| {
        let full = || SandboxError::Full {
            range: ranges.v4.to_string(),
        };
        let place = ranges
            .place(half, name, &taken, |address| used.contains(&address))
            .ok_or_else(full)?;
        taken.insert(place);
        Ok::<_, SandboxError>((place, ranges.addresses(place)))
    };
    let full_name = format!("{}.{}", args.namespace, args.name);
    let (place, addresses) = take(Half::Sandboxes, &full_name)?;
    let mut services: Vec<Published> = Vec::new();
    for ServiceArg { name, port, target } in &args.services {
        if let Some(known) = services.iter_mut().find(|known| known.name == *name) {
            known.ports.push((*port, *target));
            continue;
        }
        let (place, addresses) = take(Half::Services, &format!("{}.{name}", args.namespace))?;
        services.push(Published {
            name: name.clone(),
            ports: vec![(*port, *target)],
            place,
            addresses,
        });
    }
    let mut hasher = DefaultHasher::new();
    (&host.node, &full_name).hash(&mut hasher);
    Ok(Record {
        namespace: args.namespace.clone(),
        name: args.name.clone(),
        pid: std::process::id(),
        place,
        addresses,
        services,
        netns: format!("mesh-sandbox-{}-{full_name}", host.node),
        // Names of links have 15 characters at most.
        link: format!("msb{:012x}", hasher.finish() & 0xffff_ffff_ffff),
        cgroup: host
            .cgroup_root
            .join(format!("mesh-sandbox-{}", host.node))
            .join(full_name),
    })
}

#[cfg(test)]
mod tests;
