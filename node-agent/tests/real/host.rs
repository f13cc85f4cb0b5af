//! Two hosts and an orchestrator, each in a network namespace:
//!
//! ```text
//!   orchestrator 10.99.1.1 --- control 10.99.1.2 [ host a ] test0 10.77.0.1
//!                                                               |  the wire that trials run over
//!   orchestrator 10.99.2.1 --- control 10.99.2.2 [ host b ] test0 10.77.0.2
//! ```
//! On a shared wire there is a switch between them, and an office that is none of the tests' business:
//!
//! ```text
//!   [ host a ] test0 ---- [ switch ] ---- test0 [ host b ]        each with test0 on a bridge br0 of its own
//!                             +---------- eth0  [ office ] 10.77.0.9         for the wire that is one
//! ```

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use toll_protocol::facts::Wire;
use toll_protocol::message::{FromAgent, ToAgent};
use toll_protocol::report::{EndReport, Failure};
use toll_protocol::traffic::stream::Stream;
use toll_protocol::traffic::{Job, Timing, Traffic};
use toll_protocol::trial::{Direction, EndKind, EndSpec, NativeProgram, Open, TrialId};
use toll_protocol::units::{Bytes, InterfaceAddress, MacAddress, Span};

use crate::agents::{Agent, at, build_endpoint};
use crate::namespace::Namespace;
use crate::orchestrator::{Authority, Peer, Server};

/// The test NIC of every host.
pub const NIC: &str = "test0";

/// The office's address.
pub const OFFICE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 9);

/// The fleet.
pub struct Fleet {
    pub authority: Authority,
    pub control: Namespace,
    pub a: Namespace,
    pub b: Namespace,
    /// Another host on a shared wire.
    pub office: Option<Namespace>,
    /// The switch lives as long.
    _switch: Option<Namespace>,
    /// Of both agents.
    options: Vec<String>,
}

/// Both agents, seen from the orchestrator and from the system.
pub struct Pair {
    pub server: Server,
    pub a: (Agent, Peer),
    pub b: (Agent, Peer),
}

impl Fleet {
    /// Two hosts whose NICs are the agents' own, joined by a cable.
    pub fn new() -> Self {
        let fleet = Self::unjoined(&["--nic", NIC, "--wire", "exclusive"]);
        fleet.a.join(NIC, &fleet.b, NIC);
        fleet.a.address(NIC, Ipv4Addr::new(10, 77, 0, 1));
        fleet.b.address(NIC, Ipv4Addr::new(10, 77, 0, 2));
        fleet
    }

    /// Two hosts and an office on a switch. The wire of the agents is a bridge of the host, or else their default.
    pub fn shared(wire: Wire) -> Self {
        let nic = if wire == Wire::Bridge { "br0" } else { NIC };
        let mut fleet = Self::unjoined(&[
            "--nic",
            nic,
            "--guest-addresses",
            "10.77.0.100-10.77.0.150",
            "--label",
            "rack=b4",
        ]);
        let (switch, office) = (Namespace::new(), Namespace::new());
        switch.bridge("sw0");
        for (host, port, name) in
            [(&fleet.a, "to-a", NIC), (&fleet.b, "to-b", NIC), (&office, "to-office", "eth0")]
        {
            switch.join(port, host, name);
            switch.enslave(port, "sw0");
        }
        for (host, last) in [(&fleet.a, 1), (&fleet.b, 2)] {
            if wire == Wire::Bridge {
                host.bridge(nic);
                host.enslave(NIC, nic);
            }
            host.address(nic, Ipv4Addr::new(10, 77, 0, last));
        }
        office.address("eth0", OFFICE);
        (fleet.office, fleet._switch) = (Some(office), Some(switch));
        fleet
    }

    fn unjoined(options: &[&str]) -> Self {
        build_endpoint();
        let (control, a, b) = (Namespace::new(), Namespace::new(), Namespace::new());
        for (host, name, network) in [(&a, "to-a", 1), (&b, "to-b", 2)] {
            control.join(name, host, "control");
            control.address(name, Ipv4Addr::new(10, 99, network, 1));
            host.address("control", Ipv4Addr::new(10, 99, network, 2));
        }
        let options = options.iter().map(|&option| option.to_owned()).collect();
        Self { authority: Authority::new(), control, a, b, office: None, _switch: None, options }
    }

    /// Runs `test` as the orchestrator, with the agent of host a; checks afterwards that the host is as before.
    pub fn with_one(&self, test: impl AsyncFnOnce(&Self, Server, Agent, Peer) + Send) {
        let before = self.a.state();
        self.control.run(async || {
            let server = Server::listen(&self.authority, 0);
            let agent = self.start_a(server.port);
            let peer = server.accept().await;
            assert_eq!(peer.name, "a");
            test(self, server, agent, peer).await;
        });
        assert_eq!(self.a.state(), before, "the host is as it was");
    }

    /// The same with both agents.
    pub fn with_both(&self, test: impl AsyncFnOnce(&mut Pair) + Send) {
        let before = (self.a.state(), self.b.state());
        self.control.run(async || {
            let server = Server::listen(&self.authority, 0);
            let (a, b) = (self.start_a(server.port), self.start_b(server.port));
            let (first, second) = (server.accept().await, server.accept().await);
            let (for_a, for_b) = if first.name == "a" { (first, second) } else { (second, first) };
            let mut pair = Pair { server, a: (a, for_a), b: (b, for_b) };
            test(&mut pair).await;
            for (agent, _) in [pair.a, pair.b] {
                assert!(agent.terminate().await.success());
            }
            pair.server.close();
        });
        assert_eq!((self.a.state(), self.b.state()), before, "the hosts are as they were");
    }

    pub fn start_a(&self, port: u16) -> Agent {
        Agent::start(
            &self.a,
            &self.authority,
            "a",
            &at(Ipv4Addr::new(10, 99, 1, 1), port),
            true,
            &self.options,
        )
    }

    /// The agent of host a with `more` options.
    pub fn start_a_with(&self, port: u16, more: &[&str]) -> Agent {
        let orchestrator = at(Ipv4Addr::new(10, 99, 1, 1), port);
        let options = [self.options.clone(), more.iter().map(|&option| option.to_owned()).collect()].concat();
        Agent::start(&self.a, &self.authority, "a", &orchestrator, true, &options)
    }

    /// The agent of host a that is at `program`.
    pub fn start_a_of(&self, program: &Path, port: u16) -> Agent {
        let orchestrator = at(Ipv4Addr::new(10, 99, 1, 1), port);
        Agent::start_program(program, &self.a, &self.authority, "a", &orchestrator, true, &self.options)
    }

    pub fn start_a_without_kvm(&self, port: u16) -> Agent {
        Agent::start(
            &self.a,
            &self.authority,
            "a",
            &at(Ipv4Addr::new(10, 99, 1, 1), port),
            false,
            &self.options,
        )
    }

    fn start_b(&self, port: u16) -> Agent {
        Agent::start(
            &self.b,
            &self.authority,
            "b",
            &at(Ipv4Addr::new(10, 99, 2, 1), port),
            true,
            &self.options,
        )
    }
}

/// A native end that moves traffic for so long.
pub fn native(direction: Direction, open: Open, duration: Span) -> EndSpec {
    EndSpec {
        // As host a sees it.
        peer: Some(Ipv4Addr::new(10, 77, 0, 2)),
        ..EndSpec::new(
            EndKind::Native { program: NativeProgram::Endpoint },
            Job {
                open,
                direction,
                timing: Timing { warm_up: Span::from_millis(50), duration },
                traffic: Traffic::Stream(Stream { write_size: Bytes(64 << 10), ..Stream::default() }),
            },
            InterfaceAddress { address: Ipv4Addr::new(10, 77, 0, 101), prefix: 24 },
            MacAddress([0x52, 0x54, 0, 0, 0, 1]),
            1500,
            Span::from_millis(8_000),
        )
    }
}

/// Where an end on the host whose NIC has this last number stands.
fn place(end: &EndSpec, last: u8) -> Ipv4Addr {
    match end.kind {
        EndKind::Native { .. } => Ipv4Addr::new(10, 77, 0, last),
        EndKind::Virtual { .. } => end.address.address,
    }
}

/// What became of a trial at one end.
pub type Outcome = Result<Box<EndReport>, Failure>;

impl Peer {
    pub async fn prepare(&mut self, trial: TrialId, end: EndSpec) {
        self.say(&ToAgent::Prepare { trial, end: Box::new(end) }).await;
    }

    /// Waits for `Ready`, or gives the reason why there is none.
    pub async fn ready(&mut self, wanted: TrialId) -> Result<SocketAddrV4, Failure> {
        self.hear(|message| match message {
            FromAgent::Ready { trial, ready } if *trial == wanted => Some(Ok(ready.address)),
            FromAgent::Failed { trial, failure } if *trial == wanted => Some(Err(failure.clone())),
            _ => None,
        })
        .await
    }

    pub async fn outcome(&mut self, wanted: TrialId) -> Outcome {
        self.hear(|message| match message {
            FromAgent::Result { trial, report } if *trial == wanted => Some(Ok(report.clone())),
            FromAgent::Failed { trial, failure } if *trial == wanted => Some(Err(failure.clone())),
            _ => None,
        })
        .await
    }

    /// Acknowledges the outcome, tears the trial down and returns what is left.
    pub async fn tear_down(&mut self, wanted: TrialId) -> Vec<String> {
        self.say(&ToAgent::Acknowledged { trial: wanted }).await;
        self.say(&ToAgent::Teardown { trial: wanted }).await;
        self.torn_down(wanted).await
    }

    pub async fn torn_down(&mut self, wanted: TrialId) -> Vec<String> {
        self.hear(|message| match message {
            FromAgent::TornDown { trial, leftovers } if *trial == wanted => Some(leftovers.clone()),
            _ => None,
        })
        .await
    }
}

impl Pair {
    /// Brings both ends of a trial up and starts them.
    pub async fn start(&mut self, trial: TrialId, mut a: EndSpec, mut b: EndSpec) {
        (a.peer, b.peer) = (Some(place(&b, 2)), Some(place(&a, 1)));
        self.a.1.prepare(trial, a).await;
        self.b.1.prepare(trial, b).await;
        let a = self.a.1.ready(trial).await.expect("a is ready");
        let b = self.b.1.ready(trial).await.expect("b is ready");
        self.a.1.say(&ToAgent::Start { trial, peer: b }).await;
        self.b.1.say(&ToAgent::Start { trial, peer: a }).await;
    }

    /// A whole trial.
    pub async fn run(&mut self, trial: TrialId, a: EndSpec, b: EndSpec) -> (Outcome, Outcome) {
        self.start(trial, a, b).await;
        let outcomes = (self.a.1.outcome(trial).await, self.b.1.outcome(trial).await);
        for peer in [&mut self.a.1, &mut self.b.1] {
            assert_eq!(peer.tear_down(trial).await, Vec::<String>::new());
        }
        outcomes
    }
}
