//! The look at the dependencies: what deny.toml bans, licences that it does not allow, and dependencies that no source mentions.

mod licence;
mod unused;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::project::Project;

/// Fails if a dependency is banned, wrongly licensed or unused.
pub(crate) fn check(project: &Project) -> Result<()> {
    let path = project.root().join("deny.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules = Rules::parse(&text).with_context(|| format!("{} is not what it must be", path.display()))?;
    let mut faults = BTreeSet::new();
    for target in &rules.targets {
        let metadata = project.metadata(&["--locked", "--filter-platform", target])?;
        faults.extend(rules.faults(&metadata)?);
    }
    faults.extend(unused::find(&project.metadata(&["--no-deps"])?)?);
    if !faults.is_empty() {
        let list: Vec<String> = faults.into_iter().collect();
        bail!("dependencies:\n  {}", list.join("\n  "));
    }
    Ok(())
}

/// What deny.toml says.
struct Rules {
    targets: Vec<String>,
    allowed: Vec<String>,
    banned: Vec<(String, String)>,
}

impl Rules {
    fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse()?;
        let strings = |section: &str, key: &str| -> Result<Vec<String>> {
            let list = table
                .get(section)
                .and_then(|section| section.get(key))
                .and_then(toml::Value::as_array);
            let list = list.with_context(|| format!("[{section}] has no list `{key}`"))?;
            Ok(list
                .iter()
                .filter_map(|item| item.as_str().map(str::to_owned))
                .collect())
        };
        let bans = table
            .get("bans")
            .and_then(|bans| bans.get("deny"))
            .and_then(toml::Value::as_array);
        let word =
            |ban: &toml::Value, key: &str| ban.get(key).and_then(toml::Value::as_str).map(str::to_owned);
        let mut banned = Vec::new();
        for ban in bans.context("[bans] has no list `deny`")? {
            let name = word(ban, "crate").context("an entry of [bans] deny has no `crate`")?;
            banned.push((name, word(ban, "reason").unwrap_or_default()));
        }
        Ok(Self {
            targets: strings("graph", "targets")?,
            allowed: strings("licenses", "allow")?,
            banned,
        })
    }

    /// What is wrong with the packages that are built for one target.
    fn faults(&self, metadata: &Value) -> Result<Vec<String>> {
        let built: BTreeSet<&str> = array(&metadata["resolve"]["nodes"])?
            .iter()
            .filter_map(|node| node["id"].as_str())
            .collect();
        let mut faults = Vec::new();
        for package in array(&metadata["packages"])? {
            let (Some(id), Some(name)) = (package["id"].as_str(), package["name"].as_str()) else {
                continue;
            };
            if !built.contains(id) {
                continue;
            }
            if let Some((_, reason)) = self.banned.iter().find(|(banned, _)| banned == name) {
                faults.push(format!(
                    "{name} is banned ({reason}): `cargo tree -i {name}` shows who brings it"
                ));
            }
            match package["license"].as_str() {
                None => faults.push(format!("{name} names no licence")),
                Some(licence) if !licence::allowed(licence, &self.allowed) => {
                    faults.push(format!(
                        "{name} is licensed as {licence}, which deny.toml does not allow"
                    ));
                }
                Some(_) => {}
            }
        }
        Ok(faults)
    }
}

fn array(value: &Value) -> Result<&Vec<Value>> {
    value
        .as_array()
        .context("cargo metadata printed something unexpected")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::Rules;

    const RULES: &str = r#"
        [graph]
        targets = ["x86_64-unknown-linux-gnu"]
        [licenses]
        allow = ["MIT"]
        [bans]
        deny = [{ crate = "ring", reason = "one cryptography library" }]
    "#;

    fn metadata(name: &str, licence: &str) -> serde_json::Value {
        json!({
            "packages": [{ "id": "a", "name": name, "license": licence }, { "id": "b", "name": "ring", "license": "GPL-3.0" }],
            "resolve": { "nodes": [{ "id": "a" }] },
        })
    }

    #[test]
    fn what_is_only_in_the_lock_file_is_no_fault() {
        let rules = Rules::parse(RULES).unwrap();
        assert_eq!(
            rules.faults(&metadata("good", "MIT")).unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_banned_crate_and_a_licence_that_is_not_allowed_are_faults() {
        let rules = Rules::parse(RULES).unwrap();
        let faults = rules.faults(&metadata("ring", "GPL-3.0")).unwrap();
        assert_eq!(faults.len(), 2);
        assert!(
            faults[0].contains("banned (one cryptography library)"),
            "{faults:?}"
        );
        assert!(faults[1].contains("licensed as GPL-3.0"), "{faults:?}");
    }

    #[test]
    fn the_projects_own_rules_can_be_read() {
        let rules = Rules::parse(include_str!("../../deny.toml")).unwrap();
        assert!(rules.banned.iter().any(|(name, _)| name == "ring"));
        assert!(rules.allowed.iter().any(|name| name == "Apache-2.0"));
    }
}
