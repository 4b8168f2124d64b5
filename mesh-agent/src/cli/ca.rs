//! `mesh-agent ca`: makes the root that the agents of a mesh share.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;

use clap::{ArgGroup, Args, Subcommand};
use mesh_core::model::TrustDomain;
use thiserror::Error;
use zeroize::Zeroizing;

use super::exit::Exit;
use crate::identity::{CaError, EmbeddedCa, NewRoot};

/// What to do with the root.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Make a new root, for all agents of a mesh: as a Secret to apply, or as files. Whoever has its key can be anybody in the mesh.
    Init(InitArgs),
}

/// What root, and where it goes.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("where").required(true)))]
pub struct InitArgs {
    /// The trust domain of all identities, as the agents have it.
    #[arg(
        long,
        env = "MESH_AGENT_TRUST_DOMAIN",
        value_name = "DOMAIN",
        default_value = "cluster.local"
    )]
    pub trust_domain: TrustDomain,
    /// Print a Kubernetes Secret with it: `mesh-agent ca init --secret mesh-system/mesh-agent-ca | kubectl apply -f -`
    #[arg(long, value_name = "NAMESPACE/NAME", group = "where", value_parser = secret_name)]
    pub secret: Option<SecretName>,
    /// Put it into this directory, root.crt and root.key; what is there already is kept.
    #[arg(long, value_name = "DIR", group = "where")]
    pub output: Option<PathBuf>,
}

/// Which Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretName {
    namespace: String,
    name: String,
}

fn secret_name(text: &str) -> Result<SecretName, String> {
    let (namespace, name) = text.split_once('/').ok_or("it is NAMESPACE/NAME")?;
    // RFC 1123, as the Kubernetes API has names; a namespace has no dots.
    let fits = |part: &str, longest: usize, dots: bool| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        part.len() <= longest
            && part.starts_with(plain)
            && part.ends_with(plain)
            && part.chars().all(|c| plain(c) || c == '-' || dots && c == '.')
    };
    if !fits(namespace, 63, false) || !fits(name, 253, true) {
        return Err("names have lower-case letters, digits and `-`".to_owned());
    }
    Ok(SecretName {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    })
}

/// Why there is no new root.
#[derive(Debug, Error)]
pub enum Failed {
    /// The root could not be made or kept.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// It would have been shown to whoever looks at the screen.
    #[error(
        "a Secret with a private key is not printed on a terminal: pipe it, as in `mesh-agent ca init --secret {0}/{1} | kubectl apply -f -`"
    )]
    Terminal(String, String),
    /// Nobody reads what is printed.
    #[error("the Secret could not be printed: {0}")]
    Print(#[from] std::io::Error),
}

/// Runs the command.
pub(super) fn run(command: &CaCommand) -> Result<Exit, Failed> {
    let CaCommand::Init(args) = command;
    if let Some(dir) = &args.output {
        drop(EmbeddedCa::open(dir, &args.trust_domain)?);
        println!("the root of {} is in {}", args.trust_domain, dir.display());
    }
    if let Some(name) = &args.secret {
        let mut out = std::io::stdout().lock();
        if out.is_terminal() {
            return Err(Failed::Terminal(name.namespace.clone(), name.name.clone()));
        }
        out.write_all(secret(name, &NewRoot::make(&args.trust_domain)?).as_bytes())?;
        out.flush()?;
    }
    Ok(Exit::Success)
}

fn secret(SecretName { namespace, name }: &SecretName, root: &NewRoot) -> Zeroizing<String> {
    let mut text = Zeroizing::new(String::with_capacity(8192));
    text.push_str("apiVersion: v1\nkind: Secret\ntype: Opaque\nmetadata:\n");
    for (key, value) in [("namespace", namespace), ("name", name)] {
        text.push_str("  ");
        text.push_str(key);
        text.push_str(": \"");
        text.push_str(value);
        text.push_str("\"\n");
    }
    text.push_str("stringData:\n");
    for (file, pem) in [
        ("root.crt", root.certificate.as_str()),
        ("root.key", root.key.as_str()),
    ] {
        text.push_str("  ");
        text.push_str(file);
        text.push_str(": |\n");
        for line in pem.lines() {
            text.push_str("    ");
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_secret_holds_a_root_that_agents_take() {
        let domain: TrustDomain = "mesh.example".parse().unwrap();
        let name = secret_name("mesh-system/mesh-agent-ca").unwrap();
        let text = secret(&name, &NewRoot::make(&domain).unwrap());
        let document: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(document["kind"], "Secret");
        assert_eq!(document["metadata"]["namespace"], "mesh-system");
        assert_eq!(document["metadata"]["name"], "mesh-agent-ca");
        let dir = tempfile::tempdir().unwrap();
        for file in ["root.crt", "root.key"] {
            let path = dir.path().join(file);
            std::fs::write(&path, document["stringData"][file].as_str().unwrap()).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o400)).unwrap();
        }
        EmbeddedCa::given(dir.path(), &domain).unwrap();
    }

    #[test]
    fn a_root_goes_to_one_place() {
        #[derive(Debug, clap::Parser)]
        struct Line {
            #[command(subcommand)]
            _command: CaCommand,
        }
        let parse = |line: &str| <Line as clap::Parser>::try_parse_from(line.split(' '));
        for good in [
            "ca init --secret a/b",
            "ca init --output /x --trust-domain mesh.example",
            "ca init --trust-domain mesh.example --secret a/b",
        ] {
            parse(good).unwrap();
        }
        for bad in [
            "ca init",
            "ca init --secret a/b --output /x",
            "ca init --secret a",
            "ca",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_no_name_of_a_secret_is_refused() {
        for bad in [
            "", "name", "/name", "ns/", "a.b/name", "ns/Name", "ns/a b", "ns/-a", "ns/\"x",
        ] {
            assert!(secret_name(bad).is_err(), "{bad}");
        }
        assert!(secret_name("ns/a.b").is_ok());
    }
}
