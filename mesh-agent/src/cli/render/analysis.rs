//! Findings about documents, in words.

use mesh_core::analyze::{self, Severity};

use crate::admin::document::Analysis;

/// `meshctl analyze`.
pub(in crate::cli) fn analysis(analysis: &Analysis) -> String {
    let mut out = String::new();
    for finding in &analysis.findings {
        // The place on a line of its own, so that editors and terminals make it a link.
        let place = finding.origin.as_ref().map(|origin| format!("{origin}: "));
        let object = finding.object.as_ref().map(|object| format!(" {object}"));
        out += &format!(
            "{}{} {}{}\n  {}\n  -> {}\n",
            place.unwrap_or_default(),
            finding.severity,
            finding.code,
            object.unwrap_or_default(),
            finding.message,
            finding.advice,
        );
    }
    let counts = analyze::tally(&analysis.findings);
    let count = |severity| counts.get(&severity).copied().unwrap_or_default();
    let (errors, warnings, infos) = (
        count(Severity::Error),
        count(Severity::Warning),
        count(Severity::Info),
    );
    if !out.is_empty() {
        out += "\n";
    }
    out + &format!(
        "{errors} errors, {warnings} warnings, {infos} infos (docs/analyze.md explains each code)\n"
    )
}
