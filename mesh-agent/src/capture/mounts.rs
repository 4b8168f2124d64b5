//! What is mounted where, from `/proc/self/mountinfo` (`proc(5)`). Decides nothing.

use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mount {
    /// Which directory of the file system it shows.
    pub(super) root: PathBuf,
    /// Where.
    pub(super) point: PathBuf,
    /// The file system's type.
    pub(super) kind: String,
}

/// All mounts of this mount namespace, in order: a later one covers an earlier one at the same place.
pub(super) fn read() -> io::Result<Vec<Mount>> {
    Ok(parse(&std::fs::read_to_string("/proc/self/mountinfo")?))
}

/// The mounts that `text` lists; lines of another shape are left out.
pub(super) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (place, source) = line.split_once(" - ")?;
    let mut fields = place.split(' ').skip(3);
    Some(Mount {
        root: unescape(fields.next()?),
        point: unescape(fields.next()?),
        kind: source.split(' ').next()?.to_owned(),
    })
}

/// Blanks, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| first == b'\\');
        let code = code.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_optional_fields_and_escapes() {
        let text = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
                    42 31 0:39 /a\\040b /mnt/x\\134y rw shared:1 master:2 - bpf none rw\n\
                    nonsense\n";
        assert_eq!(
            parse(text),
            [
                Mount {
                    root: "/".into(),
                    point: "/sys/fs/cgroup/unified".into(),
                    kind: "cgroup2".into()
                },
                Mount {
                    root: "/a b".into(),
                    point: "/mnt/x\\y".into(),
                    kind: "bpf".into()
                },
            ]
        );
    }
}
