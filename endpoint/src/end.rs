//! The process as a whole: one configuration, one job, one last message.
//!
//! ```text
//! Configure --valid--> job --> Done    exit 0
//!     |                 `----> Failed  exit 1
//!     `--invalid-------------> Failed  exit 1
//! end of the control socket, anywhere: no message, exit 3
//! ```

use std::os::fd::RawFd;
use std::process::ExitCode;

use toll_child::confinement::Confinement;
use toll_protocol::child::ChildEvent;
use toll_protocol::printable::printable;
use toll_protocol::report::{EndReport, Failure};
use toll_protocol::trial::NativeProgram;

use crate::clock::Clock;
use crate::config::{ConfigError, EndConfig};
use crate::control::{Control, ControlError};
use crate::iperf3::{self, Iperf3Error};
use crate::traffic::{self, TrafficError};

/// Why an end failed.
#[derive(Debug, thiserror::Error)]
pub enum EndError {
    /// The agent ended it, or can't be understood.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The configuration can't be run.
    #[error("the configuration is invalid")]
    Config(#[from] ConfigError),
    /// The traffic over kernel sockets failed.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// iperf3 failed.
    #[error(transparent)]
    Iperf3(#[from] Iperf3Error),
}

impl EndError {
    /// Whether the agent ended the process: nobody is left to be told.
    fn is_closed(&self) -> bool {
        matches!(
            self,
            Self::Control(ControlError::Closed)
                | Self::Traffic(TrafficError::Control(ControlError::Closed))
                | Self::Iperf3(Iperf3Error::Control(ControlError::Closed))
        )
    }

    /// As the agent is told: the chain of errors in one sentence, and iperf3's last words.
    fn failure(&self) -> Failure {
        let last_words = match self {
            Self::Iperf3(error) => error.last_words().to_vec(),
            _ => Vec::new(),
        };
        Failure { reason: chain(self), last_words }
    }
}

/// How the process ended, as its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// `Done` was sent.
    Done = 0,
    /// `Failed` was sent, or could not be.
    Failed = 1,
    /// The agent closed the control socket.
    Closed = 3,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// An error and its sources, outermost first.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// Runs one end to its last message, in `confinement` once what needs a right is open. On return the process shall exit at once: a traffic thread that still
/// waits for a peer ends with it.
pub fn run(descriptor: RawFd, confinement: Confinement) -> Exit {
    let mut control = match Control::from_descriptor(descriptor, Clock::start()) {
        Ok(control) => control,
        Err(error) => {
            // There is no socket to say it on.
            eprintln!("toll-endpoint: {}", printable(&chain(&error)));
            return Exit::Failed;
        }
    };
    let (event, exit) = match job(&mut control, confinement) {
        Ok(report) => (ChildEvent::Done(Box::new(report)), Exit::Done),
        Err(error) if error.is_closed() => return Exit::Closed,
        Err(error) => (ChildEvent::Failed(error.failure()), Exit::Failed),
    };
    match control.send(&event) {
        Ok(()) => exit,
        Err(ControlError::Closed) => Exit::Closed,
        Err(error) => {
            eprintln!("toll-endpoint: the last message could not be sent: {}", printable(&chain(&error)));
            Exit::Failed
        }
    }
}

fn job(control: &mut Control, confinement: Confinement) -> Result<EndReport, EndError> {
    let config = EndConfig::try_from(control.configuration()?)?;
    Ok(match config.program {
        NativeProgram::Endpoint => traffic::run(control, &config, confinement)?,
        NativeProgram::Iperf3 => iperf3::run(control, &config, confinement)?,
    })
}
