//! The lines of a watch: one JSON document each, put together from the parts in which they arrive.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};

/// Longest line. An object has 1.5 MiB at most in etcd; JSON and managedFields are counted in.
const MAX_LINE: usize = 32 << 20;

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    rest: BytesMut,
    done: VecDeque<Bytes>,
    /// How much of `rest` is known to hold no line end.
    looked: usize,
}

impl Lines {
    /// Takes the next bytes. `Err` when a line is longer than any object can be.
    pub(super) fn push(&mut self, mut bytes: impl Buf) -> Result<(), String> {
        while bytes.has_remaining() {
            let chunk = bytes.chunk();
            let length = chunk.len();
            self.rest.extend_from_slice(chunk);
            bytes.advance(length);
        }
        while let Some(end) = self
            .rest
            .get(self.looked..)
            .and_then(|new| new.iter().position(|b| *b == b'\n'))
        {
            let line = self.rest.split_to(self.looked + end + 1).freeze();
            self.looked = 0;
            if !line.trim_ascii().is_empty() {
                self.done.push_back(line);
            }
        }
        self.looked = self.rest.len();
        if self.looked > MAX_LINE {
            return Err(format!("an event is longer than {} MiB", MAX_LINE >> 20));
        }
        Ok(())
    }

    /// The next whole line.
    pub(super) fn pop(&mut self) -> Option<Bytes> {
        self.done.pop_front()
    }

    /// Whether the stream ended within a line.
    pub(super) fn is_torn(&self) -> bool {
        !self.rest.trim_ascii().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_from_any_parts() {
        let text = "{\"a\":1}\n\n{\"b\":2}\r\n{\"c\"";
        for size in 1..text.len() {
            let mut lines = Lines::default();
            for part in text.as_bytes().chunks(size) {
                lines.push(part).unwrap();
            }
            assert_eq!(lines.pop().unwrap(), "{\"a\":1}\n");
            assert_eq!(lines.pop().unwrap(), "{\"b\":2}\r\n");
            assert_eq!(lines.pop(), None);
            assert!(lines.is_torn());
        }
    }

    #[test]
    fn a_line_without_an_end_is_refused_before_it_fills_memory() {
        let mut lines = Lines::default();
        let part = vec![b' '; 1 << 20];
        let refused = (0..64).any(|_| lines.push(part.as_slice()).is_err());
        assert!(refused);
    }
}
