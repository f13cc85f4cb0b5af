//! What an agent and the process of one end (`toll-vmm`, `toll-endpoint`) say to each other over a socket pair:
//! one configuration, commands down, events up. Framed by [`crate::frame`].
//!
//! ```text
//! agent                         child
//!   | Configure ----------------> |
//!   | <-------------- PortOpened  |   (virtual ends: the VMM holds its port, the agent joins it to the wire)
//!   | PortAttached -------------> |
//!   | <------------------- Ready  |   (listening, or booted and waiting for its peer)
//!   | Start --------------------> |
//!   | <------------------ Sample  |   every 100 ms
//!   | <---------- Done | Failed   |   the last message; the child then exits
//! ```
//! The end of the socket is an order to exit at once.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::decorators::{Capture, Impairments};
use crate::engine::Engine;
use crate::frame::Message;
pub use crate::port::{Outside, VmmPort};
use crate::report::{EndReport, Failure, Sample};
use crate::traffic::Job;
use crate::trial::{Adapter, EndReady, NativeProgram, TrialId};
use crate::units::{Bytes, InterfaceAddress, MacAddress, Span};

/// A virtual end: the one document that configures `toll-vmm`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// The trial it belongs to.
    pub trial: TrialId,
    /// What runs the program.
    pub engine: Engine,
    /// The adapter model.
    pub adapter: Adapter,
    /// The host side of it.
    pub port: VmmPort,
    /// What is wrong with the wire behind it.
    pub impairments: Option<Impairments>,
    /// A capture of what crosses it, and the file for that.
    pub capture: Option<(Capture, PathBuf)>,
    /// The adapter's MAC address.
    pub mac: MacAddress,
    /// The payload program's IPv4 address.
    pub address: InterfaceAddress,
    /// Who takes what it sends to other networks. With address translation that is the translator.
    pub gateway: Option<Ipv4Addr>,
    /// MTU of the path, in bytes of IP packet.
    pub mtu: u16,
    /// Guest memory.
    pub memory: Bytes,
    /// Its part in the traffic.
    pub job: Job,
    /// CPU to pin the vCPU thread to.
    pub cpu: Option<u32>,
    /// CPU to pin the adapter's own thread to.
    pub io_cpu: Option<u32>,
    /// From `Start` to the end of the job at most; also the limit for booting.
    pub deadline: Span,
}

/// A native end: the one document that configures `toll-endpoint`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointConfig {
    /// The trial it belongs to.
    pub trial: TrialId,
    /// Who produces the traffic.
    pub program: NativeProgram,
    /// The host's address on the test NIC.
    pub address: InterfaceAddress,
    /// The test NIC, by which alone the traffic goes.
    pub interface: String,
    /// Largest TCP segment in bytes, where the trial's MTU is smaller than the NIC's.
    pub segment: Option<u16>,
    /// Its part in the traffic.
    pub job: Job,
    /// CPU to pin the traffic thread to.
    pub cpu: Option<u32>,
    /// From `Start` to the end of the job at most.
    pub deadline: Span,
}

/// From the agent to the child. `C` is [`VmmConfig`] or [`EndpointConfig`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChildCommand<C> {
    /// The first message, sent once.
    Configure(C),
    /// The port is joined to the wire and up.
    PortAttached,
    /// Run: a connecting end connects to this peer, a listening one has it as a hint only.
    Start {
        /// The other end.
        peer: std::net::SocketAddrV4,
    },
}

/// From the child to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChildEvent {
    /// A virtual end's port is open.
    PortOpened,
    /// The end is up.
    Ready(EndReady),
    /// Progress, every 100 ms of the measured interval.
    Sample(Sample),
    /// The job is done; the last message.
    Done(Box<EndReport>),
    /// The end failed; the last message.
    Failed(Failure),
}

impl<C: DeserializeOwned> Message for ChildCommand<C> {
    const FROM_OUTSIDE: bool = false;
}

/// Bytes of what a child says, but for what it measured. Its agent tells the orchestrator, in whose language a character may take
/// three times as many, and adds words of its own.
const LONGEST: usize = 32 << 10;
/// Bytes of what a child measured: an hour's samples take half of it. The agent adds what the NIC was.
const LONGEST_REPORT: usize = 3 << 20;

impl Message for ChildEvent {
    const FROM_OUTSIDE: bool = true;

    fn longest(&self) -> usize {
        match self {
            Self::Done(_) => LONGEST_REPORT,
            Self::PortOpened | Self::Ready(_) | Self::Sample(_) | Self::Failed(_) => LONGEST,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Decoder, FrameError, encode};

    #[test]
    fn what_a_child_says_of_its_failure_fits_into_what_its_agent_may_say_of_it() {
        let says = |length: usize| {
            let mut decoder = Decoder::default();
            // Each takes three times as much where it is made printable.
            let reason = "\u{202e}".repeat(length / 3);
            decoder.push(&encode(&ChildEvent::Failed(Failure::new(reason))).expect("encodes"));
            decoder.next_message::<ChildEvent>()
        };
        let Ok(Some(ChildEvent::Failed(failure))) = says(LONGEST - 100) else { panic!("is a failure") };
        let told = crate::message::FromAgent::Failed { trial: TrialId::new(1), failure };
        let told = encode(&told).expect("encodes");
        assert!(told.len() < crate::message::LONGEST, "{}", told.len());
        assert!(matches!(says(LONGEST), Err(FrameError::TooLong { longest: LONGEST, .. })));
    }
}
