//! The fixed words by which connections and handshakes are told apart: labels of metrics, fields of the access log.

/// Which side of a connection this agent is on; Istio's `reporter` label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Reporter {
    /// The client's node.
    Source,
    /// The server's node.
    Destination,
}

impl Reporter {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Reporter::Source => "source",
            Reporter::Destination => "destination",
        }
    }
}

/// How the bytes of a connection travel between nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Through HBONE.
    MutualTls,
    /// As they are.
    None,
}

/// What went wrong with a connection; the names are Istio's `response_flags` and ours where it has none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum ResponseFlag {
    /// Refused by policy or by the plan.
    Deny,
    /// The destination could not be reached.
    Connect,
    /// The TLS handshake failed.
    TlsFailure,
    /// The HTTP/2 handshake or connection failed.
    H2HandshakeFailure,
    /// The peer is not who it must be, or we have no certificate.
    IdentityError,
    /// The connection was reset, by either side.
    Reset,
    /// The flow table did not know the connection.
    UnknownFlow,
    /// It was idle for as long as the setting allows.
    IdleTimeout,
}

impl ResponseFlag {
    /// All of them, in the order of their numbers.
    pub const ALL: [ResponseFlag; 8] = [
        ResponseFlag::Deny,
        ResponseFlag::Connect,
        ResponseFlag::TlsFailure,
        ResponseFlag::H2HandshakeFailure,
        ResponseFlag::IdentityError,
        ResponseFlag::Reset,
        ResponseFlag::UnknownFlow,
        ResponseFlag::IdleTimeout,
    ];

    /// The name in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            ResponseFlag::Deny => "DENY",
            ResponseFlag::Connect => "CONNECT",
            ResponseFlag::TlsFailure => "TLS_FAILURE",
            ResponseFlag::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            ResponseFlag::IdentityError => "IDENTITY_ERROR",
            ResponseFlag::Reset => "RESET",
            ResponseFlag::UnknownFlow => "UNKNOWN_FLOW",
            ResponseFlag::IdleTimeout => "IDLE_TIMEOUT",
        }
    }
}

/// Which side of a TLS handshake, and of the tunnel over it, we were on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HandshakeRole {
    /// We dialled.
    Client,
    /// We accepted.
    Server,
}

impl HandshakeRole {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            HandshakeRole::Client => "client",
            HandshakeRole::Server => "server",
        }
    }
}
