//! Whether the agent lives and whether it can take trials, as probes ask it: the event loop writes, the HTTP listener
//! reads. Time is a parameter.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An event loop that has not turned for so long hangs.
pub const STALLED_AFTER: Duration = Duration::from_secs(30);

/// The agent's health.
#[derive(Debug)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last_turn: Instant,
    /// Why there is no connection, if there is none.
    unconnected: Option<String>,
    stopping: bool,
}

impl Health {
    /// Of an agent that begins now and has no connection.
    pub fn new(now: Instant) -> Self {
        let unconnected = Some("it has not been reached yet".to_owned());
        Self { state: Mutex::new(State { last_turn: now, unconnected, stopping: false }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The event loop has turned.
    pub fn turned(&self, now: Instant) {
        self.state().last_turn = now;
    }

    /// There is a connection to the orchestrator.
    pub fn connected(&self) {
        self.state().unconnected = None;
    }

    /// There is none, for this reason.
    pub fn unconnected(&self, reason: String) {
        self.state().unconnected = Some(reason);
    }

    /// The agent was told to stop.
    pub fn stopping(&self) {
        self.state().stopping = true;
    }

    /// Whether the event loop turns.
    ///
    /// # Errors
    /// Since when it doesn't: a line for a person.
    pub fn alive(&self, now: Instant) -> Result<(), String> {
        let silent = now.saturating_duration_since(self.state().last_turn);
        if silent < STALLED_AFTER {
            return Ok(());
        }
        Err(format!("the event loop has not turned for {} s", silent.as_secs()))
    }

    /// Whether trials can be taken.
    ///
    /// # Errors
    /// Why not: a line for a person.
    pub fn ready(&self) -> Result<(), String> {
        let state = self.state();
        match &state.unconnected {
            _ if state.stopping => Err("the agent was told to stop".to_owned()),
            Some(reason) => Err(format!("there is no connection to the orchestrator: {reason}")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_not_alive() {
        let began = Instant::now();
        let health = Health::new(began);
        assert_eq!(health.alive(began), Ok(()));
        assert_eq!(health.alive(began + STALLED_AFTER - Duration::from_millis(1)), Ok(()));
        let stalled = health.alive(began + Duration::from_secs(42));
        assert_eq!(stalled, Err("the event loop has not turned for 42 s".to_owned()));
        health.turned(began + Duration::from_secs(42));
        assert_eq!(health.alive(began + Duration::from_secs(42)), Ok(()));
        // A clock that another thread read before.
        assert_eq!(health.alive(began), Ok(()));
    }

    #[test]
    fn an_agent_is_ready_while_it_is_connected_and_not_stopping() {
        let health = Health::new(Instant::now());
        assert!(health.ready().is_err_and(|why| why.contains("not been reached yet")));
        health.connected();
        assert_eq!(health.ready(), Ok(()));
        health.unconnected("timed out".to_owned());
        assert!(health.ready().is_err_and(|why| why.ends_with("to the orchestrator: timed out")));
        health.connected();
        health.stopping();
        assert_eq!(health.ready(), Err("the agent was told to stop".to_owned()));
    }
}
