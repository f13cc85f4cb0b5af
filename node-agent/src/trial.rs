//! The life of one trial on one host, as a pure function: an event in, commands out. No I/O and no clock: time
//! comes as [`Event::DeadlinePassed`], after a [`Command::SetDeadline`].
//!
//! ```text
//!   New --Prepare--> SettingUp --NetworkUp--> Starting --ChildReady--> Ready --Start--> Running
//!    |                  |                      |    ^                    |                 |
//!    |               NetworkFailed    PortOpened    PortAttached         |            Done | failure
//!    |                  |                      v    |                    |                 |
//!    |                  |                     Attaching                  |                 |
//!    |                  |                         |                      |                 |
//!    |                  +-----------+-------------+----- failure, -------+-----------------+
//!    |                              |           deadline, Teardown
//!    |                              v
//!    |                          Releasing: child ended, then network removed
//!    |                              |
//!    | Refuse                       v                        Teardown
//!    +--------------------------> Released ------------------------------------> TornDown
//! ```
//! `Ready` answers `Prepare` that is said again, and a new connection, by saying `Ready` again; `Running` answers a new
//! connection so; whatever else is said twice changes nothing. `Releasing` goes straight to `TornDown` if the orchestrator
//! has asked for it meanwhile. The host is released as soon as the end has spoken its last word, whether or not the
//! orchestrator can be reached.

use std::net::SocketAddrV4;
use std::time::Duration;

use toll_protocol::report::{EndReport, Failure, Sample};
use toll_protocol::trial::EndReady;

#[cfg(test)]
mod tests;

/// From `Prepare` to the end being up.
pub const PREPARE_DEADLINE: Duration = Duration::from_secs(10);
/// From the end being up to `Start`: the other end may take its whole [`PREPARE_DEADLINE`].
pub const START_DEADLINE: Duration = Duration::from_secs(60);
/// What an end that has a deadline of its own may be late with saying so.
pub const RUN_GRACE: Duration = Duration::from_secs(2);
/// From the last message of a child to its exit, and from its being killed to its end.
pub const EXIT_GRACE: Duration = Duration::from_secs(1);

/// Where a trial is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum State {
    /// Nothing has been done.
    #[default]
    New,
    /// The host's network is being made ready.
    SettingUp {
        /// From `Start` to the end of the job at most.
        run: Duration,
    },
    /// The child runs and is not ready.
    Starting {
        /// As above.
        run: Duration,
    },
    /// The child's port is being joined to the wire.
    Attaching {
        /// As above.
        run: Duration,
    },
    /// The end waits for `Start`.
    Ready {
        /// As above.
        run: Duration,
        /// Where the other end finds it.
        ready: EndReady,
    },
    /// Traffic flows.
    Running {
        /// Where the other end finds it.
        ready: EndReady,
    },
    /// The outcome is known; what the host holds is given back.
    Releasing {
        /// What has become of the child.
        child: ChildState,
        /// A failure that waits for the last words of the child before it is told.
        failure: Option<Failure>,
        /// Whether `TornDown` is owed.
        teardown: bool,
    },
    /// The host holds nothing of the trial but these leftovers.
    Released {
        /// What could not be removed, and why.
        leftovers: Vec<String>,
    },
    /// `TornDown` has been said: the end.
    TornDown,
}

impl State {
    /// Its name in the diagram.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::New => "New",
            Self::SettingUp { .. } => "SettingUp",
            Self::Starting { .. } => "Starting",
            Self::Attaching { .. } => "Attaching",
            Self::Ready { .. } => "Ready",
            Self::Running { .. } => "Running",
            Self::Releasing { .. } => "Releasing",
            Self::Released { .. } => "Released",
            Self::TornDown => "TornDown",
        }
    }
}

/// What has become of the child of a trial that is being released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildState {
    /// It has said its last message and is about to exit.
    Exiting,
    /// It has been killed, and has not been reaped. One that sleeps in the kernel without end stays here, and the
    /// host with it: its port is still there.
    Killed,
    /// It has been reaped, or there has never been one.
    Gone,
}

/// What happens to a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The orchestrator wants the end up.
    Prepare {
        /// From `Start` to the end of the job at most.
        run: Duration,
    },
    /// The orchestrator wants the end up, and this host can't do it.
    Refuse(Failure),
    /// The network is ready.
    NetworkUp,
    /// The network could not be made ready.
    NetworkFailed(Failure),
    /// The child's port is open.
    PortOpened,
    /// The port is joined to the wire.
    PortAttached,
    /// The port could not be joined to the wire.
    PortFailed(Failure),
    /// The child is up.
    ChildReady(EndReady),
    /// The child's progress.
    Sample(Sample),
    /// The child is done.
    Done(Box<EndReport>),
    /// The child failed, or what it said could not be understood.
    ChildFailed(Failure),
    /// The child is dead and reaped; why, in case it has not said so itself. Comes once for every
    /// [`Command::SpawnChild`], also if there never was a process.
    ChildEnded(Failure),
    /// The orchestrator wants the end to run.
    Start {
        /// The other end.
        peer: SocketAddrV4,
    },
    /// The orchestrator wants the end to talk to somebody who is not its peer.
    Stranger(Failure),
    /// The connection to the orchestrator has been lost and found again.
    Reconnected,
    /// The time set last has passed.
    DeadlinePassed,
    /// The network of the trial has been removed, save these leftovers.
    NetworkRemoved {
        /// What is left, and why.
        leftovers: Vec<String>,
    },
    /// The orchestrator wants nothing of the trial left on the host.
    Teardown,
    /// The agent is told to stop.
    Shutdown,
}

/// What is to be done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Replace the deadline, or have none.
    SetDeadline(Option<Duration>),
    /// Make the network ready. Answered by [`Event::NetworkUp`] or [`Event::NetworkFailed`].
    SetUpNetwork,
    /// Start the child and configure it.
    SpawnChild,
    /// Join the child's port to the wire. Answered by [`Event::PortAttached`] or [`Event::PortFailed`].
    AttachPort,
    /// Tell the child that its port is joined to the wire.
    TellPortAttached,
    /// Tell the child to run.
    TellStart {
        /// The other end.
        peer: SocketAddrV4,
    },
    /// Kill the child. Followed by [`Event::ChildEnded`].
    KillChild,
    /// Remove the network. Answered by [`Event::NetworkRemoved`].
    RemoveNetwork,
    /// Say `Ready` to the orchestrator.
    SendReady(EndReady),
    /// Pass a sample on to the orchestrator.
    SendSample(Sample),
    /// The outcome of the trial, which is kept until it is acknowledged.
    Conclude(Result<Box<EndReport>, Failure>),
    /// Say `TornDown` to the orchestrator.
    SendTornDown {
        /// What could not be removed, and why.
        leftovers: Vec<String>,
    },
    /// An event that means nothing in this state: to be logged.
    Ignore(&'static str),
}

/// One step: where the trial is after `event`, and what is to be done.
pub fn transition(state: State, event: Event) -> (State, Vec<Command>) {
    use Command as C;
    match (state, event) {
        (State::New, Event::Prepare { run }) => {
            (State::SettingUp { run }, vec![C::SetDeadline(Some(PREPARE_DEADLINE)), C::SetUpNetwork])
        }
        (State::New, Event::Refuse(failure)) => {
            (State::Released { leftovers: Vec::new() }, vec![C::Conclude(Err(failure))])
        }
        (State::New, Event::Teardown | Event::Shutdown) => torn_down(Vec::new()),

        (State::SettingUp { run }, Event::NetworkUp) => (State::Starting { run }, vec![C::SpawnChild]),
        (State::SettingUp { .. }, Event::NetworkFailed(failure)) => give_up(false, failure, false),
        (State::Starting { run }, Event::PortOpened) => (State::Attaching { run }, vec![C::AttachPort]),
        (State::Attaching { run }, Event::PortAttached) => {
            (State::Starting { run }, vec![C::TellPortAttached])
        }
        (State::Attaching { .. }, Event::PortFailed(failure)) => give_up(true, failure, false),
        (State::Starting { run }, Event::ChildReady(ready)) => {
            (State::Ready { run, ready }, vec![C::SetDeadline(Some(START_DEADLINE)), C::SendReady(ready)])
        }
        // Prepare said again: the orchestrator has not heard the answer.
        (State::Ready { run, ready }, Event::Reconnected | Event::Prepare { .. }) => {
            (State::Ready { run, ready }, vec![C::SendReady(ready)])
        }
        (State::Ready { run, ready }, Event::Start { peer }) => (
            State::Running { ready },
            vec![C::SetDeadline(Some(run.saturating_add(RUN_GRACE))), C::TellStart { peer }],
        ),
        (State::Running { ready }, Event::Sample(sample)) => {
            (State::Running { ready }, vec![C::SendSample(sample)])
        }
        // An orchestrator that was killed when it had started this end, and not the other, has to start that: its
        // successor can't without knowing where this one is.
        (State::Running { ready }, Event::Reconnected) => {
            (State::Running { ready }, vec![C::SendReady(ready)])
        }
        (State::Running { .. }, Event::Done(report)) => (
            State::Releasing { child: ChildState::Exiting, failure: None, teardown: false },
            vec![C::SetDeadline(Some(EXIT_GRACE)), C::Conclude(Ok(report))],
        ),
        // Said again: the first has been obeyed.
        (State::Running { ready }, Event::Start { .. }) => {
            (State::Running { ready }, vec![C::Ignore("the end runs already")])
        }

        (State::Releasing { child, failure, teardown }, event) => releasing(child, failure, teardown, event),

        (State::Released { leftovers }, Event::Teardown | Event::Shutdown) => {
            if leftovers.is_empty() {
                torn_down(leftovers)
            } else {
                // What hindered the first attempt may be gone by now.
                let state = State::Releasing { child: ChildState::Gone, failure: None, teardown: true };
                (state, vec![C::RemoveNetwork])
            }
        }

        (state, event) => match has_child(&state) {
            Some(child) => interrupted(state, event, child),
            None => (state, vec![C::Ignore("it means nothing in this state")]),
        },
    }
}

/// Whether a trial that is under way has a child; `None` if it is not under way.
const fn has_child(state: &State) -> Option<bool> {
    match state {
        State::SettingUp { .. } => Some(false),
        State::Starting { .. } | State::Attaching { .. } | State::Ready { .. } | State::Running { .. } => {
            Some(true)
        }
        State::New | State::Releasing { .. } | State::Released { .. } | State::TornDown => None,
    }
}

/// What ends a trial that is under way, in whatever state it is.
fn interrupted(state: State, event: Event, child: bool) -> (State, Vec<Command>) {
    let out_of_order = |message: &str| {
        give_up(child, Failure::new(format!("the end's process said {message} out of order")), false)
    };
    match event {
        Event::ChildEnded(failure) if child => give_up(false, failure, false),
        Event::ChildFailed(failure) if child => {
            let state =
                State::Releasing { child: ChildState::Exiting, failure: Some(failure), teardown: false };
            (state, vec![Command::SetDeadline(Some(EXIT_GRACE))])
        }
        Event::PortOpened if child => out_of_order("PortOpened"),
        Event::ChildReady(_) if child => out_of_order("Ready"),
        Event::Sample(_) if child => out_of_order("Sample"),
        Event::Done(_) if child => out_of_order("Done"),
        Event::Start { .. } => {
            give_up(child, Failure::new("the orchestrator said Start before the end was ready"), false)
        }
        Event::Stranger(failure) => give_up(child, failure, false),
        Event::DeadlinePassed => give_up(child, Failure::new(overdue(&state)), false),
        Event::Shutdown => give_up(child, Failure::new("the agent was told to stop"), true),
        // The orchestrator ends the trial itself: it need not be told that the trial failed.
        Event::Teardown => release(child, None, true),
        _ => (state, vec![Command::Ignore("it means nothing in this state")]),
    }
}

/// What a deadline that has passed means.
fn overdue(state: &State) -> String {
    match state {
        State::Ready { .. } => format!("no Start came within {} s of Ready", START_DEADLINE.as_secs()),
        State::Running { .. } => "the end did not finish by its deadline and was stopped".to_owned(),
        _ => format!("the end was not ready within {} s", PREPARE_DEADLINE.as_secs()),
    }
}

/// Begins to release a trial that failed.
fn give_up(child: bool, failure: Failure, teardown: bool) -> (State, Vec<Command>) {
    release(child, Some(failure), teardown)
}

/// Begins to release the host: a living child is killed first.
fn release(child: bool, failure: Option<Failure>, teardown: bool) -> (State, Vec<Command>) {
    if child {
        return kill(failure, teardown);
    }
    let mut commands = vec![Command::SetDeadline(None)];
    commands.extend(failure.map(|failure| Command::Conclude(Err(failure))));
    commands.push(Command::RemoveNetwork);
    (State::Releasing { child: ChildState::Gone, failure: None, teardown }, commands)
}

/// Kills the child, and looks at what has become of it a little later.
fn kill(failure: Option<Failure>, teardown: bool) -> (State, Vec<Command>) {
    let state = State::Releasing { child: ChildState::Killed, failure, teardown };
    (state, vec![Command::SetDeadline(Some(EXIT_GRACE)), Command::KillChild])
}

/// A step on the way from the outcome to a clean host.
fn releasing(
    child: ChildState,
    failure: Option<Failure>,
    teardown: bool,
    event: Event,
) -> (State, Vec<Command>) {
    match (child, event) {
        (ChildState::Exiting | ChildState::Killed, Event::ChildEnded(ended)) => {
            let told = failure.map(|failure| with_last_words(failure, ended));
            release(false, told, teardown)
        }
        (ChildState::Exiting, Event::DeadlinePassed) => kill(failure, teardown),
        // The failure is told without the child's last words. The host is not free before the child ends, if ever.
        (ChildState::Killed, Event::DeadlinePassed) => {
            let told = failure.map_or(Command::Ignore("the end's process could not be killed"), |failure| {
                let reason = format!("{}; its process could not be killed", failure.reason);
                Command::Conclude(Err(Failure { reason, ..failure }))
            });
            (State::Releasing { child, failure: None, teardown }, vec![told])
        }
        (ChildState::Exiting, Event::Teardown | Event::Shutdown) => kill(failure, true),
        (ChildState::Gone, Event::NetworkRemoved { leftovers }) => {
            if teardown {
                torn_down(leftovers)
            } else {
                (State::Released { leftovers }, Vec::new())
            }
        }
        (child, Event::Teardown | Event::Shutdown) => {
            (State::Releasing { child, failure, teardown: true }, Vec::new())
        }
        (child, _) => (
            State::Releasing { child, failure, teardown },
            vec![Command::Ignore("the trial is being released")],
        ),
    }
}

/// A failure that came without last words gets those that the child left when it ended.
fn with_last_words(failure: Failure, ended: Failure) -> Failure {
    if failure.last_words.is_empty() { Failure { last_words: ended.last_words, ..failure } } else { failure }
}

fn torn_down(leftovers: Vec<String>) -> (State, Vec<Command>) {
    (State::TornDown, vec![Command::SetDeadline(None), Command::SendTornDown { leftovers }])
}
