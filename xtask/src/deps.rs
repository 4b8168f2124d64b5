//! The look at the dependencies: what deny.toml bans, licences that it does not allow, and dependencies that no source mentions.

mod licence;
mod unused;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::project::Project;
use crate::run;

/// Fails if a dependency is banned, wrongly licensed or unused.
pub(crate) fn check(project: &Project) -> Result<()> {
    let path = project.root().join("deny.toml");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let rules = Rules::parse(&text).with_context(|| format!("{} is not what it must be", path.display()))?;
    let mut faults = BTreeSet::new();
    for target in &rules.targets {
        // Not `cargo metadata`: it also lists what no feature switches on.
        let mut tree = project.cargo();
        tree.args([
            "tree",
            "--locked",
            "--workspace",
            "--prefix",
            "none",
            "--format",
            "{p}|{l}",
            "--target",
            target,
        ]);
        faults.extend(rules.faults(&run::output(&mut tree)?));
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

    /// What is wrong with the packages of a `cargo tree`, whose lines are `NAME VERSION …|LICENCE`.
    fn faults(&self, tree: &str) -> Vec<String> {
        let mut faults = Vec::new();
        for line in tree.lines() {
            let Some((package, licence)) = line.split_once('|') else {
                continue;
            };
            let name = package.split(' ').next().unwrap_or_default();
            let licence = licence.trim_end_matches("(*)").trim();
            if let Some((_, reason)) = self.banned.iter().find(|(banned, _)| banned == name) {
                faults.push(format!(
                    "{name} is banned ({reason}): `cargo tree -i {name}` shows who brings it"
                ));
            }
            if licence.is_empty() {
                faults.push(format!("{name} names no licence"));
            } else if !licence::allowed(licence, &self.allowed) {
                faults.push(format!(
                    "{name} is licensed as {licence}, which deny.toml does not allow"
                ));
            }
        }
        faults
    }
}

fn array(value: &Value) -> Result<&Vec<Value>> {
    value
        .as_array()
        .context("cargo metadata printed something unexpected")
}

#[cfg(test)]
mod tests {
    use super::Rules;

    const RULES: &str = r#"
        [graph]
        targets = ["x86_64-unknown-linux-gnu"]
        [licenses]
        allow = ["MIT"]
        [bans]
        deny = [{ crate = "ring", reason = "one cryptography library" }]
    "#;

    #[test]
    fn an_allowed_licence_is_no_fault() {
        let rules = Rules::parse(RULES).unwrap();
        assert_eq!(
            rules.faults("good v1.0.0|MIT\nbetter v2.0.0 (/there)|MIT (*)\n\n"),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_banned_crate_and_a_licence_that_is_not_allowed_are_faults() {
        let rules = Rules::parse(RULES).unwrap();
        let faults = rules.faults("ring v0.17.8|GPL-3.0\nbare v1.0.0|\n");
        assert_eq!(faults.len(), 3);
        assert!(
            faults[0].contains("banned (one cryptography library)"),
            "{faults:?}"
        );
        assert!(faults[1].contains("licensed as GPL-3.0"), "{faults:?}");
        assert_eq!(faults[2], "bare names no licence");
    }

    #[test]
    fn the_projects_own_rules_can_be_read() {
        let rules = Rules::parse(include_str!("../../deny.toml")).unwrap();
        assert!(rules.banned.iter().any(|(name, _)| name == "ring"));
        assert!(rules.allowed.iter().any(|name| name == "Apache-2.0"));
    }
}
