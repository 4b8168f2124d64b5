//! The plugin's run: from the runtime's call to its answer. Lets a pod through only when the agent has captured it, or when it is known not
//! to be part of the mesh.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use mesh_core::snapshot::{IstioLabel, MeshSettings};
use serde_json::Value;

use super::call::{self, Command, Configuration, Fault};
use super::cluster;
use super::table::Table;
use super::talk::{self, Answer, PodName, Question};
use super::verdict::{self, Standing};

/// Bytes of a network configuration at most.
const LONGEST: u64 = 1 << 20;
/// Between two questions to an agent that is away.
const AGAIN: Duration = Duration::from_millis(250);
/// Between two questions to the API server.
const ASK_CLUSTER: Duration = Duration::from_secs(5);
/// How long the agent may take to hear of a sandbox that goes.
const BRIEFLY: Duration = Duration::from_secs(1);
/// Beyond the wait that the agent was given: for its answer to come.
const MARGIN: Duration = Duration::from_secs(2);

/// Does what the environment asks; answers on standard output, as CNI has it.
pub fn run() -> ExitCode {
    let environment = |key: &str| std::env::var(key).unwrap_or_default();
    let mut input = Vec::new();
    let read = io::stdin().lock().take(LONGEST).read_to_end(&mut input);
    let done = match read {
        Ok(_) => answer(&environment, &input),
        Err(error) => Err(Fault::new(
            Fault::IO,
            format!("standard input cannot be read: {error}"),
        )),
    };
    match done {
        Ok(document) => {
            if let Some(document) = document {
                println!("{document}");
            }
            ExitCode::SUCCESS
        }
        Err(fault) => {
            eprintln!("{}: {}", super::PLUGIN, fault.message);
            println!("{}", fault.document(&version_of(&input)));
            ExitCode::FAILURE
        }
    }
}

fn version_of(input: &[u8]) -> String {
    let document: Value = serde_json::from_slice(input).unwrap_or_default();
    let version = document.get("cniVersion").and_then(Value::as_str);
    version.unwrap_or("1.0.0").to_owned()
}

fn answer(environment: &dyn Fn(&str) -> String, input: &[u8]) -> Result<Option<Value>, Fault> {
    let command = Command::parse(&environment("CNI_COMMAND"))?;
    match command {
        Command::Version => return Ok(Some(call::versions(&version_of(input)))),
        // Without an agent, pods that are not enrolled go on being started: the node's network is as ready as it was.
        Command::Status => return Ok(None),
        _ => {}
    }
    let configuration = Configuration::read(input)?;
    let container = environment("CNI_CONTAINERID");
    let pod = call::pod(&environment("CNI_ARGS"));
    let socket = &configuration.entry.socket;
    match command {
        Command::Add => {
            let result = configuration.prev_result.clone().ok_or_else(|| {
                Fault::new(
                    Fault::CONFIGURATION,
                    format!(
                        "{} is no network by itself: it has to stand behind another plugin in a list",
                        super::PLUGIN
                    ),
                )
            })?;
            if let Some(pod) = pod {
                add(&configuration, &pod, &container, &environment("CNI_NETNS"))?;
            }
            Ok(Some(result))
        }
        Command::Check => {
            match pod {
                Some(pod) if !is_excluded(&configuration, &pod) => check(socket, &pod)?,
                _ => {}
            }
            Ok(None)
        }
        // What goes, goes: the agent finds out by itself what it is not told.
        Command::Delete => {
            let _ = talk::ask(socket, &Question::Delete { container }, None, BRIEFLY);
            Ok(None)
        }
        Command::Collect => {
            if let Some(containers) = configuration.containers() {
                let _ = talk::ask(socket, &Question::Collect { containers }, None, BRIEFLY);
            }
            Ok(None)
        }
        Command::Status | Command::Version => Ok(None),
    }
}

fn is_excluded(configuration: &Configuration, pod: &PodName) -> bool {
    configuration.entry.exclude_namespaces.contains(&pod.namespace)
}

fn add(configuration: &Configuration, pod: &PodName, container: &str, netns: &str) -> Result<(), Fault> {
    if is_excluded(configuration, pod) {
        return Ok(());
    }
    let open = |error| {
        Fault::new(
            Fault::ENVIRONMENT,
            format!("CNI_NETNS={netns:?} cannot be opened: {error}"),
        )
    };
    let opened = File::open(netns).map_err(open)?;
    let deadline = Instant::now() + configuration.entry.wait();
    let mut told = None;
    let mut next_look = Instant::now();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let question = Question::Add {
            pod: pod.clone(),
            container: container.to_owned(),
            netns: netns.into(),
            addresses: configuration.addresses(),
            wait: u64::try_from(left.as_millis()).unwrap_or(u64::MAX),
        };
        let (agent, why) = match talk::ask(
            &configuration.entry.socket,
            &question,
            Some(&opened),
            left + MARGIN,
        ) {
            Ok(Answer::Captured | Answer::NotEnrolled) => return Ok(()),
            Ok(Answer::Refused(why)) => {
                let message = format!(
                    "mesh-agent does not capture {}/{}: {why}",
                    pod.namespace, pod.name
                );
                return Err(Fault::new(Fault::REFUSED, message));
            }
            Ok(Answer::Unknown(why)) => ("says", why),
            Err(error) => ("cannot be asked", error.to_string()),
        };
        if Instant::now() >= next_look {
            next_look = Instant::now() + ASK_CLUSTER;
            match elsewhere(configuration, pod) {
                Standing::NotEnrolled => return Ok(()),
                standing => told = Some(standing),
            }
        }
        if Instant::now() >= deadline {
            return Err(late(configuration, pod, agent, &why, told));
        }
        sleep(AGAIN);
    }
}

fn late(
    configuration: &Configuration,
    pod: &PodName,
    agent: &str,
    why: &str,
    told: Option<Standing>,
) -> Fault {
    let standing = match told {
        Some(Standing::Unknown(unknown)) => {
            format!("whether it is part of the mesh is not known ({unknown})")
        }
        _ => "it is part of the mesh".to_owned(),
    };
    let message = format!(
        "{}/{} was not captured within {} s, and {standing}: the agent at {} {agent}: {why}. Is mesh-agent running on this node?",
        pod.namespace,
        pod.name,
        configuration.entry.wait().as_secs(),
        configuration.entry.socket.display(),
    );
    Fault::new(Fault::LATER, message)
}

/// What others than the agent know of the pod: the API server; where that cannot be asked, the agent's table.
fn elsewhere(configuration: &Configuration, pod: &PodName) -> Standing {
    let asked = match &configuration.entry.kubeconfig {
        Some(kubeconfig) => cluster::documents(kubeconfig, pod),
        None => Err("no API server to ask".to_owned()),
    };
    match asked {
        Ok((document, namespace)) => {
            let settings = settings(configuration.entry.table.as_deref());
            verdict::by_documents(settings, document.as_bytes(), namespace.as_bytes(), pod)
        }
        Err(why) => match table(configuration.entry.table.as_deref()) {
            Some(table) => match verdict::by_table(&table, pod) {
                Standing::Unknown(unknown) => Standing::Unknown(format!("{why}; {unknown}")),
                known => known,
            },
            None => Standing::Unknown(format!("{why}; the agent's table of namespaces cannot be read")),
        },
    }
}

fn table(path: Option<&Path>) -> Option<Table> {
    Table::read(path?).ok()
}

/// Whether a pod is enrolled depends on one of these alone: whose Istio's label is here, as the agent knew it.
fn settings(known: Option<&Path>) -> MeshSettings {
    let left = table(known).is_some_and(|table| table.istio_label_left);
    MeshSettings {
        istio_label: match left {
            true => IstioLabel::Leave,
            false => IstioLabel::Enrol,
        },
        ..MeshSettings::default()
    }
}

fn check(socket: &Path, pod: &PodName) -> Result<(), Fault> {
    let question = Question::Check { pod: pod.clone() };
    match talk::ask(socket, &question, None, BRIEFLY) {
        Ok(Answer::Captured | Answer::NotEnrolled | Answer::Unknown(_)) => Ok(()),
        Ok(Answer::Refused(why)) => {
            let message = format!(
                "mesh-agent has not captured {}/{}: {why}",
                pod.namespace, pod.name
            );
            Err(Fault::new(Fault::REFUSED, message))
        }
        Err(error) => {
            let message = format!("the agent at {} cannot be asked: {error}", socket.display());
            Err(Fault::new(Fault::LATER, message))
        }
    }
}

#[cfg(test)]
mod tests;
