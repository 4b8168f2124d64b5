//! Which version of a kind the API server serves, if any.

use mesh_core::manifest::Kind;
use serde::Deserialize;

use super::request::Requests;
use super::trouble::Trouble;

/// What the server says about a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Served {
    /// It has it in this version.
    In(&'static str),
    /// It does not, for this reason.
    Not(String),
}

#[derive(Deserialize)]
struct Group {
    versions: Vec<GroupVersion>,
}

#[derive(Deserialize)]
struct GroupVersion {
    version: String,
}

#[derive(Deserialize)]
struct Resources {
    resources: Vec<Resource>,
}

#[derive(Deserialize)]
struct Resource {
    name: String,
    #[serde(default)]
    verbs: Vec<String>,
}

/// Asks the server. A kind counts as absent only when the server has answered that it is: no error is taken for that.
pub(super) async fn served(requests: &Requests, kind: &'static Kind) -> Result<Served, Trouble> {
    if !kind.custom {
        let first = kind.versions.first().copied().unwrap_or("v1");
        return Ok(Served::In(first));
    }
    let group = match requests.get(&format!("/apis/{}", kind.group)).await {
        Err(Trouble::NotFound(_)) => {
            return Ok(Served::Not(format!(
                "the API server knows nothing of {}",
                kind.group
            )));
        }
        other => parse::<Group>(&other?)?,
    };
    let there: Vec<&str> = group.versions.iter().map(|one| one.version.as_str()).collect();
    for version in kind.versions.iter().filter(|version| there.contains(version)) {
        let resources = match requests.get(&format!("/apis/{}/{version}", kind.group)).await {
            Err(Trouble::NotFound(_)) => continue,
            other => parse::<Resources>(&other?)?,
        };
        let can = |resource: &Resource, verb: &str| resource.verbs.iter().any(|v| v == verb);
        let fits = |r: &Resource| r.name == kind.plural && can(r, "list") && can(r, "watch");
        if resources.resources.iter().any(fits) {
            return Ok(Served::In(version));
        }
    }
    Ok(Served::Not(format!(
        "the API server has {} in {}, and no {} in a version that this agent reads ({})",
        kind.group,
        there.join(", "),
        kind.plural,
        kind.versions.join(", ")
    )))
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Trouble> {
    serde_json::from_slice(bytes).map_err(|error| Trouble::Malformed(format!("discovery: {error}")))
}
