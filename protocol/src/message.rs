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
use crate::frame::{MAX_MESSAGE, Message};
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
        #[serde(deserialize_with = "crate::bounded::map::<_, _, { crate::bounded::MOST_LABELS }>")]
        labels: BTreeMap<String, String>,
        /// Trials that the agent knows: those under way, those not torn down, those whose outcome has not been
        /// acknowledged. The orchestrator takes every other trial that it believes this agent to be in for lost.
        #[serde(deserialize_with = "crate::bounded::list::<_, _, { crate::bounded::MOST_HELD }>")]
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
        #[serde(deserialize_with = "crate::bounded::first_lines::<_, { crate::bounded::MOST_LEFTOVERS }>")]
        leftovers: Vec<String>,
    },
}

impl Message for ToAgent {
    const FROM_OUTSIDE: bool = false;
}

/// Bytes of what an agent says of its host, which is kept as long as the host is known, and of all that has no kind of its own.
pub const LONGEST: usize = 128 << 10;
/// Bytes of a failure, which may quote a child at length.
const LONGEST_FAILURE: usize = 512 << 10;

impl Message for FromAgent {
    const FROM_OUTSIDE: bool = true;

    fn longest(&self) -> usize {
        match self {
            Self::Result { .. } => MAX_MESSAGE,
            Self::Hello { .. }
            | Self::Nic { .. }
            | Self::Ready { .. }
            | Self::Sample { .. }
            | Self::TornDown { .. } => LONGEST,
            Self::Failed { .. } => LONGEST_FAILURE,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounded::{MOST_CAUSES, MOST_LEFTOVERS, MOST_SAMPLES, MOST_WORDS};
    use crate::frame::{Decoder, FrameError, encode};

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

    fn decoded(message: &FromAgent) -> Result<FromAgent, FrameError> {
        let mut decoder = Decoder::default();
        decoder.push(&encode(message)?);
        decoder.next_message().map(|message| message.expect("is whole"))
    }

    #[test]
    fn what_an_agent_says_has_no_more_entries_than_is_held() {
        let trial = TrialId::new(1);
        let lines = |count: usize| (0..count).map(|line| line.to_string()).collect::<Vec<_>>();
        let failed =
            |last_words| FromAgent::Failed { trial, failure: Failure { reason: "r".into(), last_words } };
        let few = failed(lines(MOST_WORDS));
        assert_eq!(decoded(&few).expect("is taken"), few);
        let Ok(FromAgent::Failed { failure, .. }) = decoded(&failed(lines(10_000))) else {
            panic!("is a failure")
        };
        assert_eq!(failure.last_words.len(), MOST_WORDS);
        assert_eq!(failure.last_words[0], "(9489 lines before these were left out)");
        assert_eq!(failure.last_words[MOST_WORDS - 1], "9999");
        let torn_down = FromAgent::TornDown { trial, leftovers: lines(10_000) };
        let Ok(FromAgent::TornDown { leftovers, .. }) = decoded(&torn_down) else { panic!("is torn down") };
        assert_eq!(
            (leftovers.len(), leftovers[MOST_LEFTOVERS - 1].as_str()),
            (MOST_LEFTOVERS, "and 9937 more")
        );
    }

    #[test]
    fn what_an_agent_says_is_as_long_as_its_kind_may_be() {
        let trial = TrialId::new(1);
        let failed = |length| FromAgent::Failed { trial, failure: Failure::new("x".repeat(length)) };
        assert!(decoded(&failed(LONGEST_FAILURE / 2)).is_ok());
        let error = decoded(&failed(LONGEST_FAILURE)).expect_err("is too long");
        assert!(matches!(error, FrameError::TooLong { longest: LONGEST_FAILURE, .. }), "{error}");
        let torn_down = FromAgent::TornDown { trial, leftovers: vec!["x".repeat(LONGEST)] };
        assert!(decoded(&torn_down).is_err());
    }

    /// A report as an agent writes it, with `samples` of them and `causes` of exits.
    fn report(samples: usize, causes: usize) -> String {
        let samples = vec![r#"{"at_seconds":0.1,"sent_bytes":0,"received_bytes":9}"#; samples].join(",");
        let cause = |cause| format!(r#""{cause}":{{"count":1,"handling_seconds":0}}"#);
        let causes = (0..causes).map(cause).collect::<Vec<_>>().join(",");
        format!(
            r#"{{"result":{{"trial":"000000000001","report":{{"sent_bytes":0,"received_bytes":1,
            "traffic":{{"kind":"stream"}},"interval_seconds":1,"samples":[{samples}],"threads":[],
            "times":[],"transmit_stages":null,"receive_stages":null,"host_cpu":null,"cpu":{{"guest_seconds":null,
            "vmm_seconds":null,"host_seconds":null}},"exits":{{"by_cause":{{{causes}}},"kvm_userspace":null,"kvm_all":null}},
            "frames":null,"spared":null,"start_to_first_frame_seconds":null,"overhead_bytes":null,"nic":null,
            "flags":[]}}}}}}"#
        )
    }

    #[test]
    fn a_report_has_no_more_entries_than_an_end_can_measure() {
        let read = |text: String| {
            let mut decoder = Decoder::default();
            decoder.push(&u32::try_from(text.len()).expect("is short").to_be_bytes());
            decoder.push(text.as_bytes());
            decoder.next_message::<FromAgent>().map(drop)
        };
        read(report(MOST_SAMPLES, MOST_CAUSES)).expect("an hour, and every cause");
        for (samples, causes) in [(MOST_SAMPLES + 1, 1), (1, MOST_CAUSES + 1)] {
            let error = read(report(samples, causes)).expect_err("is too much");
            let FrameError::Malformed(why) = error else { panic!("{error}") };
            assert!(why.to_string().contains("entries stand here"), "{why}");
        }
    }
}
