//! How HBONE connections come to their ends: in words for the metric and the log.

use std::io;

use thiserror::Error;

use super::guard;

/// Why an HBONE connection ended other than in order.
#[derive(Debug, Error)]
pub enum Ended {
    /// No preface in time.
    #[error("it did not begin HTTP/2 in time")]
    Slow,
    /// It did not answer a PING in time.
    #[error("it answered no PING: it, its node or its network is gone, or it does not read")]
    Silent,
    /// HTTP/2 failed; whose fault it was is in h2's words.
    #[error("{0}")]
    Http2(#[from] h2::Error),
}

impl Ended {
    /// A short fixed word: the metric's label. A lower-case error code of RFC 9113 (section 7) where we cut the peer for breaking the
    /// protocol or a limit of h2's.
    pub fn reason(&self) -> &'static str {
        let error = match self {
            Ended::Slow => return "no_preface",
            Ended::Silent => return "silent",
            Ended::Http2(error) => error,
        };
        if let Some(io) = error.get_io() {
            return match io.kind() {
                guard::FLOOD => "frame_flood",
                guard::OVERSIZE => "frame_too_large",
                io::ErrorKind::InvalidData => "tls",
                _ => "io",
            };
        }
        if error.is_remote() {
            return "peer_goaway";
        }
        match error.reason() {
            Some(h2::Reason::PROTOCOL_ERROR) => "protocol_error",
            Some(h2::Reason::FLOW_CONTROL_ERROR) => "flow_control_error",
            Some(h2::Reason::FRAME_SIZE_ERROR) => "frame_size_error",
            Some(h2::Reason::STREAM_CLOSED) => "stream_closed",
            Some(h2::Reason::COMPRESSION_ERROR) => "compression_error",
            Some(h2::Reason::ENHANCE_YOUR_CALM) => "enhance_your_calm",
            _ => "http2",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_has_its_word() {
        let words = [
            (Ended::Slow, "no_preface"),
            (Ended::Silent, "silent"),
            (
                h2::Error::from(h2::Reason::PROTOCOL_ERROR).into(),
                "protocol_error",
            ),
            (h2::Error::from(h2::Reason::CANCEL).into(), "http2"),
        ];
        for (ended, word) in words {
            assert_eq!(ended.reason(), word, "{ended}");
        }
    }
}
