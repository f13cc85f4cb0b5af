//! States of a trial on a host, as the log of its agent tells them: so that a fault comes at every one.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::fleet::{Fleet, LIMIT};
use crate::stillness::{self, Stillness};

/// Campaigns that may be needed until each state has been met: one mostly is enough.
const CAMPAIGNS: usize = 8;

/// The trial that a host is in, by the log of its agent, read from some point on.
struct Trial {
    log: File,
    /// The beginning of a line whose end has not been written.
    part: String,
    /// The state that it is in.
    state: Option<String>,
    /// The process of its end, if it has one.
    process: Option<Pid>,
}

impl Trial {
    /// From now on.
    fn from_now(log: &Path) -> Result<Self> {
        let mut log = File::open(log)?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self { log, part: String::new(), state: None, process: None })
    }

    /// Reads on.
    fn read(&mut self) -> Result<()> {
        self.log.read_to_string(&mut self.part)?;
        let rest = self.part.split_off(self.part.rfind('\n').map_or(0, |last| last + 1));
        let lines = std::mem::replace(&mut self.part, rest);
        let field = |line: &str, name: &str| {
            let value = line.split_once(name)?.1;
            value.trim_start_matches('"').split(['"', ' ']).next().map(str::to_owned)
        };
        for line in lines.lines() {
            if let Some(state) = field(line, "enters=") {
                if state == "SettingUp" {
                    self.process = None;
                }
                self.state = Some(state);
            }
            if let Some(process) = field(line, "process=") {
                self.process = process.parse().ok().map(Pid::from_raw);
            }
        }
        Ok(())
    }
}

type Strike<'f> = dyn FnMut(&mut Fleet, usize, Option<Pid>) -> Result<()> + 'f;
type Mend<'f> = dyn FnMut(&mut Fleet, usize) -> Result<()> + 'f;
type Check<'f> = dyn FnMut(&mut Fleet, &str, &[String]) -> Result<Ending> + 'f;

/// How a struck campaign has ended, if everything holds that must hold at all times.
pub enum Ending {
    /// The blows cost no more than they may.
    AsItMust,
    /// More trials have failed than the blows may cost, for these reasons.
    TooDear(String),
}

/// A fault for trials at each of some states.
pub struct Fault<'f> {
    /// The states.
    pub states: &'f [&'f str],
    /// Whether it strikes the process of an end, which must be there.
    pub of_an_end: bool,
    /// What it does, on a host, to the process of its end. Meanwhile the host's agent stands still.
    pub strike: &'f mut Strike<'f>,
    /// What follows, when the agent goes on, if the blow has left it alive.
    pub mend: &'f mut Mend<'f>,
    /// What must hold of a campaign in the end, which was struck in these states.
    pub check: &'f mut Check<'f>,
}

/// Stops the agent of host `index` when its trial is in one of `states`. `None` if campaign `id` is over before. What the
/// log of an agent that stands still says is true until it goes on, however short the state and however slow the blow.
fn catch(fleet: &Fleet, id: &str, index: usize, states: &[&str], of_an_end: bool) -> Result<Option<Trial>> {
    let agent = fleet.hosts[index].agent.as_ref().context("an agent runs")?;
    let mut trial = Trial::from_now(&agent.log)?;
    let is_wanted = |trial: &Trial| {
        let state = trial.state.as_deref();
        state.is_some_and(|state| states.contains(&state)) && (trial.process.is_some() || !of_an_end)
    };
    let (deadline, mut asked) = (Instant::now() + LIMIT, Instant::now());
    while Instant::now() < deadline {
        trial.read()?;
        if is_wanted(&trial) {
            agent.stop()?;
            trial.read()?;
            if is_wanted(&trial) {
                return Ok(Some(trial));
            }
            agent.signal(Signal::SIGCONT)?;
        }
        if asked.elapsed() > Duration::from_millis(200) {
            asked = Instant::now();
            if fleet.status(id).is_ok_and(|status| status.state.is_over()) {
                return Ok(None);
            }
        }
        // Some states last for a millisecond.
        std::thread::park_timeout(Duration::from_micros(200));
    }
    bail!("no trial was in any of {states:?} within {LIMIT:?}")
}

/// Runs campaigns and strikes trials, on the hosts in turn, until a blow has met each state. Trials that fail by a limit of
/// time while the machine stands still are nobody's: a campaign with more failures than its blows may cost is repeated then.
/// Nothing else is forgiven.
///
/// # Errors
/// When a state is never met, or a campaign does not end as it must.
pub fn at_every_state(fleet: &mut Fleet, campaign: &str, fault: &mut Fault<'_>) -> Result<()> {
    let mut missing = fault.states.to_vec();
    let mut stillness = Stillness::watch(fleet.directory.path())?;
    let mut turn = 0;
    for _ in 0..CAMPAIGNS {
        let id = fleet.submit(campaign)?;
        stillness.longest()?;
        let (before, mut met) = (missing.clone(), Vec::new());
        while !missing.is_empty() {
            let index = turn % fleet.hosts.len();
            let Some(trial) = catch(fleet, &id, index, &missing, fault.of_an_end)? else { break };
            turn += 1;
            (fault.strike)(fleet, index, trial.process)?;
            fleet.hosts[index].agent.as_mut().context("the agent")?.go_on()?;
            let state = trial.state.context("a state")?;
            missing.retain(|missing| *missing != state);
            met.push(state);
            (fault.mend)(fleet, index)?;
        }
        if let Ending::TooDear(why) = (fault.check)(fleet, &id, &met)? {
            let longest = stillness.longest()?;
            ensure!(longest >= stillness::LIMIT, "{why}");
            eprintln!("{id} is repeated, the machine stood still for {longest:?}: {why}");
            missing = before;
        }
        if missing.is_empty() {
            return Ok(());
        }
    }
    bail!("no blow has met a trial in {missing:?}")
}
