//! What the orchestrator and an agent say to each other over one QUIC stream, framed by [`crate::frame`].
//!
//! ```text
//! agent                          orchestrator
//!   | Hello ----------------------> |
//!   | <-------------------- Welcome |   or the connection is closed with both versions named
//!   | Nic ------------------------> |   whenever the test NIC is not as it was told
//!   | <-------------------- Prepare |   per trial, to both agents
//!   | Ready ----------------------> |
//!   | <---------------------- Start |   when both are ready
//!   | Sample ---------------------> |
//!   | Result | Failed ------------> |   kept by the agent until it is acknowledged
//!   | <--------------- Acknowledged |   the ledger has it
//!   | <------------------- Teardown |   also ends a trial early
//!   | TornDown -------------------> |   nothing of the trial is left on the host
//! ```

use std::collections::BTreeMap;
use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

use crate::facts::{HostFacts, NicFacts};
use crate::frame::Message;
use crate::report::{EndReport, Failure, Sample};
use crate::trial::{EndReady, EndSpec, TrialId};

/// One process of an agent: drawn at random when it starts, and told on each of its connections. What tells an agent that
/// dials again from another one of the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(pub u64);

/// From the orchestrator to an agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToAgent {
    /// The agent is taken.
    Welcome {
        /// Version that both will speak.
        version: u32,
    },
    /// Bring one end of a trial up.
    Prepare {
        /// The trial.
        trial: TrialId,
        /// This agent's end of it.
        end: Box<EndSpec>,
    },
    /// Both ends are up: run.
    Start {
        /// The trial.
        trial: TrialId,
        /// The other end.
        peer: SocketAddrV4,
    },
    /// The result is durable; the agent may forget it.
    Acknowledged {
        /// The trial.
        trial: TrialId,
    },
    /// Remove everything of the trial from the host.
    Teardown {
        /// The trial.
        trial: TrialId,
    },
}

/// From an agent to the orchestrator.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromAgent {
    /// The first message.
    Hello {
        /// Version of the protocol the agent speaks.
        version: u32,
        /// The agent's name, which must be that of its certificate.
        name: String,
        /// Its process.
        instance: Instance,
        /// Its host.
        facts: Box<HostFacts>,
        /// What campaigns select hosts by: the agent's `--label` options.
        labels: BTreeMap<String, String>,
        /// Trials that the agent knows: those under way, those not torn down, those whose outcome has not been
        /// acknowledged. The orchestrator takes every other trial that it believes this agent to be in for lost.
        held: Vec<TrialId>,
    },
    /// The test NIC is not as it was told before: somebody has changed its MTU, its address or its offloads.
    Nic {
        /// As it is now; nothing if it is gone.
        nic: Option<Box<NicFacts>>,
    },
    /// An end is up.
    Ready {
        /// The trial.
        trial: TrialId,
        /// Where it is.
        ready: EndReady,
    },
    /// Progress.
    Sample {
        /// The trial.
        trial: TrialId,
        /// Bytes so far.
        sample: Sample,
    },
    /// What the end measured.
    Result {
        /// The trial.
        trial: TrialId,
        /// The figures.
        report: Box<EndReport>,
    },
    /// The end failed.
    Failed {
        /// The trial.
        trial: TrialId,
        /// Why.
        failure: Failure,
    },
    /// Nothing of the trial is left on the host.
    TornDown {
        /// The trial.
        trial: TrialId,
        /// What could not be removed, and why.
        leftovers: Vec<String>,
    },
}

impl Message for ToAgent {
    const FROM_OUTSIDE: bool = false;
}

impl Message for FromAgent {
    const FROM_OUTSIDE: bool = true;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Decoder, encode};

    #[test]
    fn what_an_agent_says_is_printable_as_it_arrives() {
        let failure = Failure {
            reason: "\u{1b}[2J\u{1b}]0;x\u{7}".into(),
            last_words: vec!["ok\rtoll: all is well\n".into(), "a\u{202e}b".into(), "C:\\x \"ä\"".into()],
        };
        let mut decoder = Decoder::default();
        decoder.push(&encode(&FromAgent::Failed { trial: TrialId::new(1), failure }).expect("encodes"));
        let Ok(Some(FromAgent::Failed { failure, .. })) = decoder.next_message() else {
            panic!("is a failure")
        };
        assert_eq!(failure.reason, "\\u{1b}[2J\\u{1b}]0;x\\u{7}");
        assert_eq!(failure.last_words, ["ok\\rtoll: all is well\\n", "a\\u{202e}b", "C:\\x \"ä\""]);
    }
}
