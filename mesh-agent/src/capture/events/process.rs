//! What `/proc` says of a process: best effort, for it may be gone.

use std::fs;

/// Its name, without what would disturb a terminal or a log.
pub(super) fn name(pid: u32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(printable(name.trim_end_matches('\n')))
}

/// Processes name themselves.
fn printable(name: &str) -> String {
    let shown = |c: char| if c.is_control() { '?' } else { c };
    name.chars().take(32).map(shown).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_cannot_write_control_characters_into_the_log() {
        assert_eq!(printable("curl\u{1b}[31m\nWARN"), "curl?[31m?WARN");
        assert!(name(std::process::id()).is_some_and(|name| !name.is_empty()));
        assert_eq!(name(u32::MAX), None);
    }
}
