//! A model of the host answers the commands of the state machine; orchestrator, child and clock do as they like.

use proptest::prelude::*;
use toll_protocol::traffic::TrafficReport;
use toll_protocol::units::Span;

use super::*;

fn report() -> Box<EndReport> {
    Box::new(EndReport {
        sent_bytes: 0,
        received_bytes: 1,
        ..EndReport::new(TrafficReport::Stream(Default::default()), Span(1))
    })
}

fn address() -> SocketAddrV4 {
    "10.77.0.1:4000".parse().expect("an address")
}

fn failure() -> Failure {
    Failure::new("model")
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        Just(Event::Prepare { run: Duration::from_secs(1) }),
        Just(Event::Refuse(failure())),
        Just(Event::NetworkUp),
        Just(Event::NetworkFailed(failure())),
        Just(Event::PortOpened),
        Just(Event::PortAttached),
        Just(Event::PortFailed(failure())),
        Just(Event::ChildReady(EndReady { address: address() })),
        Just(Event::Sample(Sample { at: Span(1), sent_bytes: 0, received_bytes: 1 })),
        Just(Event::Done(report())),
        Just(Event::ChildFailed(failure())),
        Just(Event::ChildEnded(failure())),
        Just(Event::Start { peer: address() }),
        Just(Event::Stranger(failure())),
        Just(Event::Reconnected),
        Just(Event::DeadlinePassed),
        Just(Event::NetworkRemoved { leftovers: Vec::new() }),
        Just(Event::NetworkRemoved { leftovers: vec!["tb".to_owned()] }),
        Just(Event::Teardown),
        Just(Event::Shutdown),
    ]
}

/// The host: what the trial holds of it, and the answers that are on their way.
#[derive(Debug, Default)]
struct Host {
    state: State,
    child: bool,
    killed: bool,
    spawned: u32,
    network: bool,
    deadline: bool,
    answers: Vec<Answer>,
    torn_down: u32,
    concluded: u32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    Network,
    Port,
    Removed,
}

impl Host {
    fn step(&mut self, event: Event) -> Result<(), TestCaseError> {
        let (state, commands) = transition(std::mem::take(&mut self.state), event);
        self.state = state;
        for command in commands {
            match command {
                Command::SetDeadline(deadline) => self.deadline = deadline.is_some(),
                Command::SetUpNetwork => {
                    prop_assert!(!self.network);
                    self.network = true;
                    self.answers.push(Answer::Network);
                }
                Command::SpawnChild => {
                    prop_assert!(!self.child && self.network);
                    self.child = true;
                    self.spawned += 1;
                }
                Command::AttachPort => self.answers.push(Answer::Port),
                Command::KillChild => {
                    prop_assert!(self.spawned == 1 && !self.killed);
                    self.killed = true;
                }
                Command::RemoveNetwork => {
                    prop_assert!(!self.child, "the network goes after the child");
                    self.answers.push(Answer::Removed);
                }
                Command::SendTornDown { .. } => {
                    prop_assert!(!self.child && !self.network, "TornDown tells the truth");
                    self.torn_down += 1;
                }
                Command::Conclude(_) => self.concluded += 1,
                Command::TellPortAttached
                | Command::TellStart { .. }
                | Command::SendReady(_)
                | Command::SendSample(_)
                | Command::Ignore(_) => {}
            }
        }
        prop_assert!(self.torn_down <= 1 && self.concluded <= 1 && self.spawned <= 1);
        Ok(())
    }

    /// Turns an event that the host can't send now into one that it can.
    fn possible(&mut self, event: Event, good: bool) -> Option<Event> {
        match event {
            Event::NetworkUp | Event::NetworkFailed(_) | Event::PortAttached | Event::PortFailed(_) => {
                self.answer(good)
            }
            Event::NetworkRemoved { .. } => self.answer(good),
            Event::PortOpened
            | Event::ChildReady(_)
            | Event::Sample(_)
            | Event::Done(_)
            | Event::ChildFailed(_) => self.child.then_some(event),
            Event::ChildEnded(_) => std::mem::take(&mut self.child).then_some(event),
            Event::DeadlinePassed => std::mem::take(&mut self.deadline).then_some(event),
            Event::Prepare { .. }
            | Event::Refuse(_)
            | Event::Start { .. }
            | Event::Stranger(_)
            | Event::Reconnected
            | Event::Teardown
            | Event::Shutdown => Some(event),
        }
    }

    fn answer(&mut self, good: bool) -> Option<Event> {
        if self.answers.is_empty() {
            return None;
        }
        Some(match (self.answers.remove(0), good) {
            (Answer::Network, true) => Event::NetworkUp,
            (Answer::Network, false) => Event::NetworkFailed(failure()),
            (Answer::Port, true) => Event::PortAttached,
            (Answer::Port, false) => Event::PortFailed(failure()),
            (Answer::Removed, _) => {
                // The set-up that was under way is over before the removal begins.
                self.network = false;
                Event::NetworkRemoved { leftovers: Vec::new() }
            }
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn every_history_ends_released_and_torn_down_once(
        history in prop::collection::vec((any_event(), any::<bool>()), 0..40),
    ) {
        let mut host = Host::default();
        for (event, good) in history {
            if let Some(event) = host.possible(event, good) {
                host.step(event)?;
            }
        }
        host.step(Event::Teardown)?;
        // From here on nothing happens but what the host owes.
        for _ in 0..20 {
            if let Some(event) = host.answer(true) {
                host.step(event)?;
            }
            if host.child && host.killed {
                host.child = false;
                host.step(Event::ChildEnded(failure()))?;
            }
            if std::mem::take(&mut host.deadline) {
                host.step(Event::DeadlinePassed)?;
            }
        }
        prop_assert_eq!(&host.state, &State::TornDown);
        prop_assert_eq!(host.torn_down, 1);
        prop_assert!(!host.child && !host.network && host.answers.is_empty());
    }

    #[test]
    fn without_an_orchestrator_the_host_is_released_all_the_same(
        history in prop::collection::vec((any_event(), any::<bool>()), 0..40),
    ) {
        let mut host = Host::default();
        host.step(Event::Prepare { run: Duration::from_secs(1) })?;
        for (event, good) in history {
            if let Some(event) = host.possible(event, good) {
                host.step(event)?;
            }
        }
        for _ in 0..20 {
            if let Some(event) = host.answer(true) {
                host.step(event)?;
            }
            if host.child && host.killed {
                host.child = false;
                host.step(Event::ChildEnded(failure()))?;
            }
            if std::mem::take(&mut host.deadline) {
                host.step(Event::DeadlinePassed)?;
            }
        }
        prop_assert!(matches!(&host.state, State::Released { .. } | State::TornDown), "{:?}", host.state);
        prop_assert!(!host.child && !host.network);
    }

    #[test]
    fn no_sequence_of_events_panics_or_repeats_itself(events in prop::collection::vec(any_event(), 0..60)) {
        let (mut state, mut torn_down, mut concluded) = (State::New, 0, 0);
        for event in events {
            let (next, commands) = transition(state, event);
            state = next;
            torn_down += commands.iter().filter(|c| matches!(c, Command::SendTornDown { .. })).count();
            concluded += commands.iter().filter(|c| matches!(c, Command::Conclude(_))).count();
        }
        prop_assert!(torn_down <= 1 && concluded <= 1);
    }
}

/// Every state that a trial can be in, by the shortest way to it.
fn states() -> Vec<State> {
    let (run, ready) = (Duration::from_secs(3), EndReady { address: address() });
    let releasing = |child| State::Releasing { child, failure: None, teardown: false };
    vec![
        State::SettingUp { run },
        State::Starting { run },
        State::Attaching { run },
        State::Ready { run, ready },
        State::Running { ready },
        releasing(ChildState::Exiting),
        releasing(ChildState::Killed),
        releasing(ChildState::Gone),
    ]
}

#[test]
fn an_end_that_runs_tells_a_new_orchestrator_where_it_is() {
    let ready = EndReady { address: address() };
    let (state, commands) = transition(State::Running { ready }, Event::Reconnected);
    assert_eq!((state, commands), (State::Running { ready }, vec![Command::SendReady(ready)]));
}

#[test]
fn the_way_of_a_trial() {
    let (run, ready) = (Duration::from_secs(3), EndReady { address: address() });
    let way = [
        (Event::Prepare { run }, vec![Command::SetDeadline(Some(PREPARE_DEADLINE)), Command::SetUpNetwork]),
        (Event::NetworkUp, vec![Command::SpawnChild]),
        (Event::PortOpened, vec![Command::AttachPort]),
        (Event::PortAttached, vec![Command::TellPortAttached]),
        (
            Event::ChildReady(ready),
            vec![Command::SetDeadline(Some(START_DEADLINE)), Command::SendReady(ready)],
        ),
        (
            Event::Start { peer: address() },
            vec![Command::SetDeadline(Some(run + RUN_GRACE)), Command::TellStart { peer: address() }],
        ),
        (
            Event::Done(report()),
            vec![Command::SetDeadline(Some(EXIT_GRACE)), Command::Conclude(Ok(report()))],
        ),
        (Event::ChildEnded(failure()), vec![Command::SetDeadline(None), Command::RemoveNetwork]),
        (Event::NetworkRemoved { leftovers: Vec::new() }, vec![]),
        (Event::Teardown, vec![Command::SetDeadline(None), Command::SendTornDown { leftovers: Vec::new() }]),
    ];
    let mut state = State::New;
    for (event, expected) in way {
        let (next, commands) = transition(state, event.clone());
        assert_eq!(commands, expected, "after {event:?}");
        state = next;
    }
    assert_eq!(state, State::TornDown);
}

#[test]
fn a_second_prepare_changes_nothing_and_ready_is_said_again() {
    for state in states() {
        let (next, commands) = transition(state.clone(), Event::Prepare { run: Duration::ZERO });
        assert_eq!(next, state);
        match state {
            State::Ready { ready, .. } => assert_eq!(commands, [Command::SendReady(ready)]),
            _ => assert!(matches!(commands[..], [Command::Ignore(_)]), "{state:?}"),
        }
    }
}

#[test]
fn what_is_said_again_after_the_outcome_is_harmless() {
    let released = || State::Released { leftovers: Vec::new() };
    for state in [released(), State::TornDown].into_iter().chain(states().into_iter().skip(4)) {
        let again =
            [Event::Prepare { run: Duration::ZERO }, Event::Start { peer: address() }, Event::Reconnected];
        for event in again {
            let asked = matches!((&state, &event), (State::Running { .. }, Event::Reconnected));
            let (next, commands) = transition(state.clone(), event);
            assert_eq!(next, state);
            assert!(matches!(commands[..], [Command::Ignore(_)]) || asked, "{state:?}");
        }
    }
    let (gone, commands) = transition(State::TornDown, Event::Teardown);
    assert_eq!(gone, State::TornDown);
    assert!(matches!(commands[..], [Command::Ignore(_)]));
}

#[test]
fn start_before_ready_fails_the_trial() {
    for state in states().into_iter().take(3) {
        let (next, _) = transition(state.clone(), Event::Start { peer: address() });
        assert!(matches!(next, State::Releasing { .. }), "{state:?}");
    }
}

#[test]
fn a_child_that_dies_gives_its_last_words() {
    let ended = Failure { reason: "killed by signal 9".to_owned(), last_words: vec!["panicked".to_owned()] };
    for state in states().into_iter().skip(1).take(4) {
        let (_, commands) = transition(state.clone(), Event::ChildEnded(ended.clone()));
        assert!(commands.contains(&Command::Conclude(Err(ended.clone()))), "{state:?}");
        // One that is stopped by its deadline keeps the deadline as reason.
        let (killed, _) = transition(state.clone(), Event::DeadlinePassed);
        let (_, commands) = transition(killed, Event::ChildEnded(ended.clone()));
        let told = commands.iter().find_map(|command| match command {
            Command::Conclude(Err(failure)) => Some(failure.clone()),
            _ => None,
        });
        let told = told.expect("an outcome");
        assert_ne!(told.reason, ended.reason);
        assert_eq!(told.last_words, ended.last_words);
    }
}

#[test]
fn leftovers_are_tried_again_on_teardown() {
    let released = State::Released { leftovers: vec!["tb0: busy".to_owned()] };
    let (state, commands) = transition(released, Event::Teardown);
    assert_eq!(commands, [Command::RemoveNetwork]);
    let (state, commands) = transition(state, Event::NetworkRemoved { leftovers: Vec::new() });
    assert_eq!(state, State::TornDown);
    assert!(commands.contains(&Command::SendTornDown { leftovers: Vec::new() }));
}

#[test]
fn a_failure_is_told_though_the_child_can_not_be_killed() {
    for state in states().into_iter().skip(1).take(4) {
        let (killed, commands) = transition(state.clone(), Event::DeadlinePassed);
        assert_eq!(commands, [Command::SetDeadline(Some(EXIT_GRACE)), Command::KillChild], "{state:?}");
        let (stuck, commands) = transition(killed, Event::DeadlinePassed);
        let [Command::Conclude(Err(told))] = &commands[..] else { panic!("{state:?}: {commands:?}") };
        assert!(told.reason.ends_with("; its process could not be killed"), "{}", told.reason);
        // The host is still held, and what happens later is told no second time.
        assert!(matches!(stuck, State::Releasing { child: ChildState::Killed, .. }), "{stuck:?}");
        let (stuck, commands) = transition(stuck, Event::Teardown);
        assert_eq!(commands, []);
        let (gone, commands) = transition(stuck, Event::ChildEnded(failure()));
        assert_eq!(commands, [Command::SetDeadline(None), Command::RemoveNetwork]);
        let (over, _) = transition(gone, Event::NetworkRemoved { leftovers: Vec::new() });
        assert_eq!(over, State::TornDown);
    }
    // One that had said its result and does not exit: there is nothing to tell.
    let done = State::Releasing { child: ChildState::Exiting, failure: None, teardown: false };
    let (killed, commands) = transition(done, Event::DeadlinePassed);
    assert_eq!(commands, [Command::SetDeadline(Some(EXIT_GRACE)), Command::KillChild]);
    let (_, commands) = transition(killed, Event::DeadlinePassed);
    assert!(matches!(commands[..], [Command::Ignore(_)]), "{commands:?}");
}
