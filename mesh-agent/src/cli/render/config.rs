//! What is wrong with documents, in words.

use mesh_core::manifest::{NoticeKind, Origin};
use mesh_core::model::ObjectRef;

use super::duration;
use crate::admin::document::Config;
use crate::sources::KindStatus;

/// `meshctl config`.
pub(in crate::cli) fn config(config: &Config) -> String {
    let age = duration(config.age_seconds);
    let mut out = format!("Snapshot {} has been in force for {age}.\n", config.version);
    for source in &config.sources {
        let state = if source.synced { "" } else { ", not read yet" };
        let files = match source.kinds.is_empty() {
            true => format!(", {} files", source.files.len()),
            false => String::new(),
        };
        out += &format!("{}: {} objects{files}{state}\n", source.name, source.objects);
        if let Some(server) = &source.server {
            let version = server.version.as_deref().unwrap_or("of an unknown version");
            out += &format!("  {}, {version}\n", server.address);
        }
        for kind in &source.kinds {
            out += &kind_line(kind);
        }
        for file in &source.files {
            if let Some(error) = &file.error {
                out += &format!("  {} cannot be read: {error}\n", file.path);
            }
            if file.held > 0 {
                out += &format!(
                    "  {}: the last good version of {} objects stays in force\n",
                    file.path, file.held
                );
            }
        }
    }
    if config.rejections.is_empty() {
        out += "\nNo document is rejected.\n";
    } else {
        out += "\nRejected:\n";
    }
    for rejection in &config.rejections {
        out += &note(
            Some(&rejection.origin),
            rejection.object.as_ref(),
            &rejection.message,
        );
    }
    for (kind, title) in [
        (NoticeKind::Conflict, "Conflicts"),
        (NoticeKind::Changed, "In force, but not as written"),
        (
            NoticeKind::HttpAttribute,
            "Attributes of HTTP, which are not looked at",
        ),
        (NoticeKind::Ignored, "Ignored"),
        (NoticeKind::UnknownField, "Unknown fields"),
        (
            NoticeKind::KindWithoutEffect,
            "Kinds of meshes without effect here",
        ),
        (NoticeKind::UnknownKind, "Unknown kinds"),
    ] {
        let mut notices = config
            .notices
            .iter()
            .filter(|notice| notice.kind == kind)
            .peekable();
        if notices.peek().is_some() {
            out += &format!("\n{title}:\n");
        }
        for notice in notices {
            out += &note(notice.origin.as_ref(), notice.object.as_ref(), &notice.message);
        }
    }
    out
}

/// The place on a line of its own, so that editors and terminals make it a link; then what there is to say, indented.
fn note(origin: Option<&Origin>, object: Option<&ObjectRef>, message: &str) -> String {
    let mut out = String::new();
    if let Some(origin) = origin {
        out += &format!("{origin}\n");
    }
    if let Some(object) = object {
        out += &format!("  {object}\n");
    }
    for line in message.lines() {
        out += &format!("  {line}\n");
    }
    out
}

fn kind_line(kind: &KindStatus) -> String {
    let version = kind.api_version.as_deref().unwrap_or("no version");
    let heard = match kind.age_seconds {
        Some(age) => format!("heard {} ago", duration(age)),
        None => "not heard yet".to_owned(),
    };
    let mut line = format!(
        "  {} ({version}): {}, {} objects, {heard}\n",
        kind.kind,
        kind.state.as_str(),
        kind.objects
    );
    if let Some(problem) = &kind.problem {
        line += &format!("    {problem}\n");
    }
    line
}
