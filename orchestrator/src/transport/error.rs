//! Why agents can't be listened for, or one was refused: an agent logs these words.

use std::net::SocketAddr;

use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::frame::FrameError;

use super::{HANDSHAKE, HELLO};
use toll_protocol::message::LONGEST;

/// Why agents can't be listened for, or one was refused.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The certificates can't be used.
    #[error("the orchestrator's certificates can't be used: {0}")]
    Certificates(String),
    /// The socket can't be opened.
    #[error("agents can't be listened for on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
    /// The connection ended.
    #[error("the connection ended")]
    Connection(#[from] quinn::ConnectionError),
    /// The stream ended.
    #[error("the stream ended")]
    Read(#[from] quinn::ReadError),
    /// Nothing more can be written.
    #[error("the stream takes nothing more")]
    Write(#[from] quinn::WriteError),
    /// A message was malformed.
    #[error("a message was malformed")]
    Frame(#[from] FrameError),
    /// The agent didn't introduce itself.
    #[error("no Hello came within {HELLO:?}")]
    NoHello,
    /// The name can't be a host's.
    #[error(
        "its name is none of a host: lower-case letters, digits and -, in parts joined by ., at most 253 of them \
         (toll-agent --name)"
    )]
    NoName,
    /// It tells more of itself than there is to tell.
    #[error("its Hello has more than {LONGEST} bytes")]
    LongHello,
    /// The name is not the certificate's.
    #[error("it says that it is `{name}`, and its certificate says otherwise")]
    Name {
        /// The name it gave.
        name: String,
    },
    /// The certificate is for something else.
    #[error(
        "its certificate is not one of an agent: client authentication is not among its extended key usages \
         (toll pki issue makes them)"
    )]
    Purpose,
    /// Another agent has the name.
    #[error(
        "`{name}` is connected from {holder} and answers there, and another agent of that name comes from {newcomer}: \
         stop one of them, or give it a name and a certificate of its own (toll pki issue)"
    )]
    Taken {
        /// The name.
        name: String,
        /// Where the agent is that has it.
        holder: SocketAddr,
        /// Where the one is that was refused.
        newcomer: SocketAddr,
    },
    /// Several processes want one name at the same time.
    #[error("several agents want to be `{name}` at the same time")]
    Busy {
        /// The name.
        name: String,
    },
    /// As many agents are connected as may be.
    #[error("the orchestrator has as many agents as it takes")]
    Full,
    /// The handshake took too long.
    #[error("the handshake did not end within {HANDSHAKE:?}")]
    SlowHandshake,
    /// The versions differ.
    #[error(
        "it speaks protocol version {theirs}, the orchestrator {PROTOCOL_VERSION}: install the same release on both"
    )]
    Version {
        /// The agent's.
        theirs: u32,
    },
}
