//! What is wrong with a set of documents, each with a code that stays the same ([`Code`]): what reading them says, and what only shows
//! when they stand together.
//!
//! Only what is certain is said. What depends on documents that may not be among these (`meshctl analyze -f`) is left out, unless
//! [`Known`] says that these are all. Decides nothing about connections; says nothing that a rejection or a notice says already.

mod authentication;
mod authorization;
mod code;
mod pods;
mod services;
#[cfg(test)]
mod tests;
mod world;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::manifest::{self, Accepted, Locator, NoticeKind, Origin, Path, Template};
use crate::model::ObjectRef;
use crate::plan::AllowedExclusions;
use crate::snapshot::{Diagnostics, MeshSettings};

pub use code::Code;
use world::World;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It is not in force.
    Error,
    /// It does not do what it seems to ask for, or much more.
    Warning,
    /// Worth knowing; may be meant.
    Info,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        })
    }
}

/// Something that is wrong, or worth knowing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// Where, when it came from a file.
    pub origin: Option<Origin>,
    /// How much it matters.
    pub severity: Severity,
    /// [`Code`], as text.
    pub code: Cow<'static, str>,
    /// About which object.
    pub object: Option<ObjectRef>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub advice: String,
}

/// What the documents leave open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// These are all the documents there are.
    pub everything: bool,
    /// The settings are those of the mesh, and not assumed.
    pub settings: bool,
}

/// What is to be looked at.
#[derive(Debug)]
pub struct Documents<'a> {
    /// The settings under which they count.
    pub settings: MeshSettings,
    /// Which exclusions the agent's settings allow.
    pub allowed: AllowedExclusions,
    /// What they leave open.
    pub known: Known,
    /// The accepted objects; of two with one name the first counts.
    pub accepted: &'a [Accepted],
    /// Pods that other documents make.
    pub templates: &'a [Template],
    /// What was said about them already.
    pub diagnostics: Diagnostics,
}

/// What is wrong with `documents`, in the order of their places. `Locator`s are asked for nothing: places are those of objects.
pub fn analyze(documents: Documents<'_>) -> Vec<Finding> {
    findings(documents, |origin, _| origin.clone())
}

/// What is wrong with the `files`, given by name and content, in the order of their places. They may be a part of what is applied.
pub fn files(settings: MeshSettings, settings_known: bool, files: &[(&str, &[u8])]) -> Vec<Finding> {
    let (mut accepted, mut templates) = (Vec::new(), Vec::new());
    let mut diagnostics = Diagnostics::default();
    for (name, bytes) in files {
        let (contents, of_others) = manifest::parse_with_templates(name, bytes);
        accepted.extend(contents.accepted);
        templates.extend(of_others);
        diagnostics.rejections.extend(contents.rejections);
        diagnostics.notices.extend(contents.notices);
    }
    let documents = Documents {
        settings,
        // What the agents allow is not known: nothing is said about it.
        allowed: AllowedExclusions::all(),
        known: Known {
            everything: false,
            settings: settings_known,
        },
        accepted: &accepted,
        templates: &templates,
        diagnostics,
    };
    let contents: HashMap<&str, &[u8]> = files.iter().copied().collect();
    let mut locators: HashMap<&str, Locator<'_>> = HashMap::new();
    findings(documents, |origin, path| {
        let Some((name, bytes)) = contents.get_key_value(&*origin.file) else {
            return origin.clone();
        };
        let locator = locators.entry(name).or_insert_with(|| Locator::new(bytes));
        locator.find(origin, path).unwrap_or_else(|| origin.clone())
    })
}

fn findings(documents: Documents<'_>, place: impl FnMut(&Origin, &Path) -> Origin) -> Vec<Finding> {
    let world = World::new(documents);
    let mut report = Report {
        place,
        found: Vec::new(),
    };
    of_documents(&world, &mut report.found);
    let mut say = |found: Found<'_>| report.add(found);
    authorization::look(&world, &mut say);
    authentication::look(&world, &mut say);
    services::look(&world, &mut say);
    pods::look(&world, &mut say);
    // The replicas of one owner say the same.
    report.found.sort();
    report.found.dedup();
    report.found
}

/// What was said when they were read and put together.
fn of_documents(world: &World<'_>, found: &mut Vec<Finding>) {
    for rejection in &world.diagnostics().rejections {
        found.push(Finding {
            origin: Some(rejection.origin.clone()),
            severity: Code::Rejected.severity(),
            code: Code::Rejected.as_str().into(),
            object: rejection.object.clone(),
            message: rejection.message.clone(),
            advice: "correct the document: it is not in force, and an earlier good version of it stays so where there is one"
                .to_owned(),
        });
    }
    for notice in &world.diagnostics().notices {
        let (code, advice) = of_notice(notice.kind);
        found.push(Finding {
            origin: notice.origin.clone(),
            severity: code.severity(),
            code: code.as_str().into(),
            object: notice.object.as_ref().map(|object| world.shown(object)),
            message: notice.message.clone(),
            advice: advice.to_owned(),
        });
    }
}

fn of_notice(kind: NoticeKind) -> (Code, &'static str) {
    match kind {
        NoticeKind::UnknownKind => (
            Code::ForeignKind,
            "nothing, unless it is to have an effect in this mesh",
        ),
        NoticeKind::KindWithoutEffect => (
            Code::KindWithoutEffect,
            "do not rely on it in this mesh; docs/configuration.md lists the kinds that count",
        ),
        NoticeKind::UnknownField => (
            Code::UnknownField,
            "is it misspelt, or of a newer version? Correct it, or take it out",
        ),
        NoticeKind::Ignored => (Code::Ignored, "set right what the message names, or take it out"),
        NoticeKind::Conflict => (Code::Conflict, "leave one of the two"),
        NoticeKind::Changed => (
            Code::Changed,
            "write what is meant in the way that the message names",
        ),
        NoticeKind::HttpAttribute => (
            Code::HttpAttribute,
            "decide by identity, namespace, address or port in this rule, or do not rely on it",
        ),
    }
}

/// One finding of the looks below.
struct Found<'a> {
    code: Code,
    object: &'a Named<'a>,
    /// Within the object's document.
    path: Path,
    message: String,
    advice: String,
}

/// An object that findings can be about.
#[derive(Clone, Debug)]
struct Named<'a> {
    name: ObjectRef,
    origin: &'a Origin,
    /// Where its document begins within that of its owner.
    path: Path,
}

struct Report<F> {
    place: F,
    found: Vec<Finding>,
}

impl<F: FnMut(&Origin, &Path) -> Origin> Report<F> {
    fn add(&mut self, found: Found<'_>) {
        let Found {
            code,
            object,
            path,
            message,
            advice,
        } = found;
        let path = Path(object.path.0.iter().chain(&path.0).cloned().collect());
        self.found.push(Finding {
            origin: Some((self.place)(object.origin, &path)),
            severity: code.severity(),
            code: code.as_str().into(),
            object: Some(object.name.clone()),
            message,
            advice,
        });
    }
}

/// `one` or `many`, with the number.
fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// How many findings there are of each severity.
pub fn tally(findings: &[Finding]) -> BTreeMap<Severity, usize> {
    let mut counts = BTreeMap::new();
    for finding in findings {
        *counts.entry(finding.severity).or_default() += 1;
    }
    counts
}
