//! Cuts a file into documents at its markers, so that a bad document does not spoil its neighbours.
//!
//! A line that begins with `---` or `...` and then ends or goes on with white space is a marker wherever it stands, inside block
//! scalars and quotes too (YAML 1.2.2, 9.1.2 and 6.7): lines are enough to find them.

/// A document's text and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Document<'a> {
    /// The text, with its `---` line where it has one.
    pub(super) text: &'a str,
    /// How many lines of the file come before it.
    pub(super) line_offset: u64,
}

/// The documents of `text` in order, without those that hold only comments and white space.
pub(super) fn documents(text: &str) -> Vec<Document<'_>> {
    let mut found = Vec::new();
    let mut start = 0;
    let mut start_line = 0;
    let mut at = 0;
    let mut open = false;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let number = number as u64;
        if is_marker(line, "---") {
            if open {
                push(&mut found, text, start, at, start_line);
                (start, start_line) = (at, number);
            }
            open = true;
        } else if is_marker(line, "...") {
            push(&mut found, text, start, at, start_line);
            (start, start_line) = (at + line.len(), number + 1);
            open = false;
        } else if !is_silent(line) && !line.starts_with('%') {
            open = true; // directives, comments and blank lines belong to what follows
        }
        at += line.len();
    }
    push(&mut found, text, start, at, start_line);
    found
}

fn push<'a>(found: &mut Vec<Document<'a>>, text: &'a str, start: usize, end: usize, line_offset: u64) {
    let Some(part) = text.get(start..end) else { return };
    let mut lines = part.split_inclusive('\n');
    let content = |line: &str| {
        let rest = if is_marker(line, "---") {
            line.get(3..).unwrap_or("")
        } else {
            line
        };
        !is_silent(rest)
    };
    if lines.any(content) {
        found.push(Document {
            text: part,
            line_offset,
        });
    }
}

fn is_silent(line: &str) -> bool {
    let line = line.trim_start_matches('\u{feff}').trim();
    line.is_empty() || line.starts_with('#')
}

fn is_marker(line: &str, marker: &str) -> bool {
    let line = line.strip_prefix('\u{feff}').unwrap_or(line);
    line.strip_prefix(marker)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(text: &str) -> Vec<(&str, u64)> {
        documents(text)
            .into_iter()
            .map(|d| (d.text, d.line_offset))
            .collect()
    }

    #[test]
    fn documents_are_cut_at_markers_and_know_their_lines() {
        let table: &[(&str, &[(&str, u64)])] = &[
            ("", &[]),
            ("a: 1", &[("a: 1", 0)]),
            (
                "---\na: 1\n---\nb: 2\n",
                &[("---\na: 1\n", 0), ("---\nb: 2\n", 2)],
            ),
            ("a: 1\n---\n---\nb: 2", &[("a: 1\n", 0), ("---\nb: 2", 2)]),
            ("# only\n---\n# comments\n", &[]),
            ("a: 1\n...\nb: 2\n", &[("a: 1\n", 0), ("b: 2\n", 2)]),
            (
                "a: |\n  x\n--- # next\nb: 2",
                &[("a: |\n  x\n", 0), ("--- # next\nb: 2", 2)],
            ),
            ("a: ----\n----: b\n", &[("a: ----\n----: b\n", 0)]),
            ("%YAML 1.2\n---\na: 1\n", &[("%YAML 1.2\n---\na: 1\n", 0)]),
            (
                "a: 1\r\n---\r\nb: 2\r\n",
                &[("a: 1\r\n", 0), ("---\r\nb: 2\r\n", 1)],
            ),
            (
                "--- {a: 1}\n--- {b: 2}\n",
                &[("--- {a: 1}\n", 0), ("--- {b: 2}\n", 1)],
            ),
        ];
        for (text, expected) in table {
            assert_eq!(cut(text), *expected, "{text:?}");
        }
    }
}
