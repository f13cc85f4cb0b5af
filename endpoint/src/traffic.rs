//! Kinds of traffic over kernel sockets: one file each, named as in [`toll_protocol::traffic`], and one line in [`run`].

pub mod datagram;
pub mod request_response;
pub mod stream;

use toll_child::confinement::{Confinement, ConfinementError};
use toll_protocol::latencies::LatenciesError;
use toll_protocol::report::EndReport;
use toll_protocol::traffic::Traffic;
use toll_protocol::units::Span;

use crate::config::EndConfig;
use crate::control::{Control, ControlError};
use crate::meter::MeterError;
use crate::socket::SocketError;
use crate::worker::WorkerError;

/// Why an end gave no figure.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// The agent ended it, or can't be understood.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The process has rights that it was to give up.
    #[error("the end's process could not give up its rights")]
    Confinement(#[from] ConfinementError),
    /// There was no connection.
    #[error("the connection did not come about")]
    Socket(#[source] SocketError),
    /// A traffic thread stopped by an error.
    #[error("the stream broke off")]
    Worker(#[from] WorkerError),
    /// The interval could not be measured.
    #[error("the stream gave no figure")]
    Meter(#[from] MeterError),
    /// Latencies could not be kept.
    #[error("the latencies could not be kept")]
    Latencies(#[from] LatenciesError),
    /// A receiver sent payload.
    #[error("the receiver sent payload: it is to send none")]
    UnexpectedPayload,
    /// The path carries no such datagrams.
    #[error(
        "datagrams of {size} bytes with 28 of headers don't fit the path's MTU of {mtu}: ask for less, or set the MTU"
    )]
    Mtu {
        /// UDP payload.
        size: u16,
        /// Bytes of IP packet.
        mtu: u32,
    },
    /// Something did not happen in time.
    #[error("waited {waited} for {what}")]
    TimedOut {
        /// Since `Start`, or since the connection.
        waited: Span,
        /// For what.
        what: &'static str,
    },
}

impl From<SocketError> for TrafficError {
    fn from(error: SocketError) -> Self {
        match error {
            SocketError::Control(error) => Self::Control(error),
            error => Self::Socket(error),
        }
    }
}

/// Runs the job, from readiness to the report, in `confinement` once its sockets are open.
///
/// # Errors
/// [`TrafficError`].
pub fn run(
    control: &mut Control,
    config: &EndConfig,
    confinement: Confinement,
) -> Result<EndReport, TrafficError> {
    match &config.job.traffic {
        Traffic::Stream(stream) => stream::run(control, config, stream, confinement),
        Traffic::Datagram(datagram) => datagram::run(control, config, datagram, confinement),
        Traffic::RequestResponse(parameters) => {
            request_response::run(control, config, parameters, confinement)
        }
    }
}
