//! Which objects of a set of files are in force: the last good version of each, for as long as its document is there in some form.
//! Pure: what was read comes in, a report goes out.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use mesh_common::mutation::{self, Mechanism};
use mesh_core::manifest::{Accepted, Contents, Origin, Rejection};
use mesh_core::model::ObjectRef;

use super::{FileStatus, Report};

/// What reading a file gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Its contents.
    Read(Contents),
    /// Nothing, for this reason.
    Unreadable(String),
}

/// The objects in force, and from which file each came.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    in_force: BTreeMap<Arc<str>, Vec<Accepted>>,
}

impl Ledger {
    /// Takes over what all files (by path, in order of precedence) hold now, and says what is in force.
    ///
    /// An object leaves when its document leaves. While its document is bad, the last good version stays; while a document cannot be
    /// told apart, or its file cannot be read, everything that the file gave before stays.
    pub(super) fn apply(&mut self, files: &BTreeMap<Arc<str>, Arc<Outcome>>) -> Report {
        let last = self.last_good();
        let accepted_somewhere: HashSet<ObjectRef> =
            files.values().flat_map(|outcome| names(outcome)).collect();
        let mut report = Report::default();
        let mut in_force = BTreeMap::new();
        for (file, outcome) in files {
            let mut held = Vec::new();
            let own: HashSet<ObjectRef> = names(outcome).collect();
            let missing = candidates(outcome, self.in_force.get(file));
            for name in missing {
                let Some((from, good)) = last.get(&name) else {
                    continue;
                };
                let lost = !accepted_somewhere.contains(&name);
                if !own.contains(&name) && (lost || from == file) && !held.contains(good) {
                    held.push(good.clone());
                }
            }
            describe(file, outcome, &held, &mut report);
            let mut objects = held;
            if let Outcome::Read(contents) = &**outcome {
                objects.extend(contents.accepted.iter().cloned());
            }
            report.accepted.extend(objects.iter().cloned());
            in_force.insert(file.clone(), objects);
        }
        self.in_force = in_force;
        report
    }

    /// The version in force of each object, with its file.
    fn last_good(&self) -> HashMap<ObjectRef, (Arc<str>, Accepted)> {
        let mut last = HashMap::new();
        for (file, objects) in &self.in_force {
            for object in objects {
                last.entry(object.object.name())
                    .or_insert_with(|| (file.clone(), object.clone()));
            }
        }
        last
    }
}

fn names(outcome: &Outcome) -> impl Iterator<Item = ObjectRef> {
    let accepted = match outcome {
        Outcome::Read(contents) => contents.accepted.as_slice(),
        Outcome::Unreadable(_) => &[],
    };
    accepted.iter().map(|one| one.object.name())
}

/// The objects whose last good version this file may hold in force.
fn candidates(outcome: &Outcome, before: Option<&Vec<Accepted>>) -> Vec<ObjectRef> {
    if mutation::is_off(Mechanism::LastGoodState) {
        return Vec::new();
    }
    let all_before = || before.into_iter().flatten().map(|one| one.object.name());
    match outcome {
        Outcome::Unreadable(_) => all_before().collect(),
        Outcome::Read(contents) => {
            let mut found: Vec<ObjectRef> = contents
                .rejections
                .iter()
                .filter_map(|r| r.object.clone())
                .collect();
            if contents.rejections.iter().any(|r| r.object.is_none()) {
                found.extend(all_before());
            }
            found
        }
    }
}

fn describe(file: &Arc<str>, outcome: &Outcome, held: &[Accepted], report: &mut Report) {
    let mut status = FileStatus {
        path: file.to_string(),
        accepted: 0,
        held: held.len(),
        rejected: 0,
        error: None,
    };
    match outcome {
        Outcome::Read(contents) => {
            status.accepted = contents.accepted.len();
            status.rejected = contents.rejections.len();
            report.rejections.extend(contents.rejections.iter().cloned());
            report.notices.extend(contents.notices.iter().cloned());
        }
        Outcome::Unreadable(error) => {
            status.error = Some(error.clone());
            report.rejections.push(Rejection {
                origin: Origin {
                    file: file.clone(),
                    line: 0,
                    column: 0,
                },
                object: None,
                message: format!("the file cannot be read: {error}; what it held before stays in force"),
            });
        }
    }
    report.files.push(status);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str, label: &str) -> String {
        format!(
            "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels: {{mesh-agent.io/dataplane: {label}}}\n"
        )
    }

    fn files(list: &[(&str, Option<&str>)]) -> BTreeMap<Arc<str>, Arc<Outcome>> {
        let outcome = |path: &str, text: &Option<&str>| match text {
            Some(text) => Outcome::Read(mesh_core::manifest::parse(path, text.as_bytes())),
            None => Outcome::Unreadable("permission denied".into()),
        };
        list.iter()
            .map(|(path, text)| ((*path).into(), Arc::new(outcome(path, text))))
            .collect()
    }

    fn in_force(report: &Report) -> Vec<String> {
        let show = |one: &Accepted| format!("{}@{}:{}", one.object.name(), one.origin.file, one.origin.line);
        report.accepted.iter().map(show).collect()
    }

    #[test]
    fn the_last_good_version_stays_while_its_document_is_bad_and_leaves_with_it() {
        let mut ledger = Ledger::default();
        let (a, b) = (namespace("a", "enabled"), namespace("b", "enabled"));
        let good = format!("{a}{b}");
        assert_eq!(
            in_force(&ledger.apply(&files(&[("f", Some(&good))]))),
            ["Namespace a@f:2", "Namespace b@f:8"]
        );

        let bad = format!("{a}{}", b.replace("labels: {", "labels: 7 #"));
        let report = ledger.apply(&files(&[("f", Some(&bad))]));
        assert_eq!(in_force(&report), ["Namespace b@f:8", "Namespace a@f:2"]);
        assert_eq!((report.rejections.len(), report.files[0].held), (1, 1));
        // Still there after another look at the same bad file.
        assert_eq!(ledger.apply(&files(&[("f", Some(&bad))])).accepted.len(), 2);

        assert_eq!(
            in_force(&ledger.apply(&files(&[("f", Some(&a))]))),
            ["Namespace a@f:2"]
        );
        assert!(ledger.apply(&files(&[])).accepted.is_empty());
    }

    #[test]
    fn everything_a_file_gave_stays_while_a_document_cannot_be_told_apart_or_the_file_not_be_read() {
        let mut ledger = Ledger::default();
        let (a, b) = (namespace("a", "enabled"), namespace("b", "enabled"));
        ledger.apply(&files(&[("f", Some(&format!("{a}{b}")))]));
        let report = ledger.apply(&files(&[("f", Some(&format!("{a}---\n{{{{{{\n")))]));
        assert_eq!(report.accepted.len(), 2);
        let report = ledger.apply(&files(&[("f", None)]));
        assert_eq!((report.accepted.len(), report.rejections.len()), (2, 1));
        assert!(report.rejections[0].message.contains("permission denied"));
        assert_eq!(ledger.apply(&files(&[("f", Some(&b))])).accepted.len(), 1);
    }

    #[test]
    fn an_object_that_moves_to_another_file_and_turns_bad_stays_in_its_last_good_version() {
        let mut ledger = Ledger::default();
        let a = namespace("a", "enabled");
        ledger.apply(&files(&[("f", Some(&a))]));
        let report = ledger.apply(&files(&[("g", Some(&a.replace("labels: {", "labels: 7 #")))]));
        assert_eq!(in_force(&report), ["Namespace a@f:2"]);
    }

    #[test]
    fn a_bad_document_that_was_never_good_holds_nothing() {
        let mut ledger = Ledger::default();
        let bad = namespace("a", "enabled").replace("labels: {", "labels: 7 #");
        assert!(ledger.apply(&files(&[("f", Some(&bad))])).accepted.is_empty());
    }

    #[test]
    fn of_two_good_versions_the_first_file_comes_first_also_while_it_is_bad() {
        let mut ledger = Ledger::default();
        let a = namespace("a", "enabled");
        let both = files(&[("f", Some(&a)), ("g", Some(&a))]);
        assert_eq!(
            in_force(&ledger.apply(&both)),
            ["Namespace a@f:2", "Namespace a@g:2"]
        );
        let bad = a.replace("labels: {", "labels: 7 #");
        let report = ledger.apply(&files(&[("f", Some(&bad)), ("g", Some(&a))]));
        assert_eq!(in_force(&report), ["Namespace a@f:2", "Namespace a@g:2"]);
    }
}
