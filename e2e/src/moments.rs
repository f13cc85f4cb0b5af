//! States of a trial on a host, as the log of its agent tells them: so that a fault comes at every one.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::fleet::{Fleet, LIMIT};

/// The log of an agent, read from some point on.
pub struct States {
    log: File,
    /// The beginning of a line whose end has not been written.
    part: String,
}

impl States {
    /// From now on.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn from_now(log: &Path) -> Result<Self> {
        let mut log = File::open(log)?;
        log.seek(SeekFrom::End(0))?;
        Ok(Self { log, part: String::new() })
    }

    /// States that trials have entered since this was last asked, the last one last.
    ///
    /// # Errors
    /// When the log can't be read.
    pub fn entered(&mut self) -> Result<Vec<String>> {
        self.log.read_to_string(&mut self.part)?;
        let rest = self.part.split_off(self.part.rfind('\n').map_or(0, |last| last + 1));
        let lines = std::mem::replace(&mut self.part, rest);
        let name = |line: &str| line.split_once("enters=\"")?.1.split('"').next().map(str::to_owned);
        Ok(lines.lines().filter_map(name).collect())
    }
}

/// Waits until a trial on host `index` enters `state`; the host's log from there on. `None` if `id` is over before.
fn wait_until(fleet: &Fleet, id: &str, index: usize, state: &str) -> Result<Option<States>> {
    let log = fleet.hosts[index].agent.as_ref().context("an agent runs")?.log.clone();
    let mut states = States::from_now(&log)?;
    let (deadline, mut asked) = (Instant::now() + LIMIT, Instant::now());
    while Instant::now() < deadline {
        if states.entered()?.iter().any(|entered| entered == state) {
            return Ok(Some(states));
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
    bail!("no trial entered {state} within {LIMIT:?}")
}

/// Strikes trials at each of `states`, on the hosts in turn, until each has been met; `mend` follows each blow that had
/// something to strike. Between the word of the log and the blow the trial may have gone on: which state was met is what
/// the log says right after it. After some attempts without a hit a state of `brief` is left. How many blows it took.
///
/// # Errors
/// When a state is not met, or something can't be struck or mended.
pub fn at_every_state(
    fleet: &mut Fleet,
    id: &str,
    states: &[&str],
    brief: &[&str],
    mut strike: impl FnMut(&mut Fleet, usize) -> Result<bool>,
    mut mend: impl FnMut(&mut Fleet, usize) -> Result<()>,
) -> Result<u32> {
    let (mut met, mut blows) = (BTreeSet::new(), 0);
    for state in states {
        let mut attempts = 0;
        while !met.contains(*state) {
            attempts += 1;
            let index = blows as usize % fleet.hosts.len();
            let Some(mut log) = wait_until(fleet, id, index, state)? else {
                bail!("the campaign was over before {state} was met; met: {met:?}")
            };
            if strike(fleet, index)? {
                blows += 1;
                met.insert(log.entered()?.pop().unwrap_or_else(|| (*state).to_owned()));
                mend(fleet, index)?;
            }
            if attempts >= 4 {
                if met.contains(*state) || brief.contains(state) {
                    break;
                }
                bail!("{state} was not met in {attempts} attempts; met: {met:?}");
            }
        }
    }
    println!("{blows} blows met trials at {met:?}");
    Ok(blows)
}
