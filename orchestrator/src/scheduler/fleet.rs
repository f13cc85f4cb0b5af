//! The hosts: who is there, who is free, and which address a guest on each may have. Pure.
//!
//! ```text
//!             connected                     trial begun
//!   unknown ------------> free <----------------------------> busy
//!     away <--- lost ------+  |  torn down, nothing is left
//!       |                     +--> barred (cordoned), given up (something is left, or its process died)
//!       +-- back, holding trials that are over --> stale, until they are torn down --> free
//! ```

mod addresses;
mod owners;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use toll_protocol::adapters::ETHERNET_MTU;
use toll_protocol::facts::{HostFacts, NicFacts};
use toll_protocol::service::{AgentState, AgentStatus};
use toll_protocol::trial::TrialId;
use toll_protocol::units::InterfaceAddress;

use super::Policy;
use super::ends::unreachable;
use super::fit::obstacle;
use super::flight::TEARDOWN;
use super::process::Process;
use crate::link::Session;
use crate::plan::{self, Cell};
use crate::service::handle::Node;

/// A host that has been away for so long, and that no campaign waits for, is no host of the fleet any more.
const FORGOTTEN: Duration = Duration::from_secs(3600);
/// Why nothing runs before a cluster has said which nodes are cordoned.
const NO_NODES: &str = "the cluster has not told of its nodes yet";

/// How long after the last attempt it is told that somebody else wants to be a host: a refused agent tries again within 5 s.
const CONFLICT_TOLD: Duration = Duration::from_secs(60);

/// A host's number in the fleet. It is another host's once this one has been forgotten, which no campaign then waits for.
pub(super) type HostIndex = usize;

/// What an agent tells of its host.
#[derive(Debug)]
pub(super) struct Told {
    pub facts: Box<HostFacts>,
    pub labels: BTreeMap<String, String>,
}

/// Somebody else wanted to be a host and was refused.
#[derive(Debug, Clone, Copy)]
struct Conflict {
    /// Where the agent of the host is.
    holder: IpAddr,
    /// Where the last one is that was refused.
    newcomer: IpAddr,
    /// When.
    at: Duration,
}

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    /// Empty for one that has been forgotten, whose number is free.
    pub name: String,
    pub facts: Option<Box<HostFacts>>,
    labels: BTreeMap<String, String>,
    /// Its last connection.
    session: Option<Session>,
    conflict: Option<Conflict>,
    /// Since when it has not been connected.
    pub away_since: Option<Duration>,
    /// Since when its node is barred.
    barred_since: Option<Duration>,
    pub busy: Option<TrialId>,
    /// Since when it has been free: what dispatch latency is measured from.
    pub free_since: Duration,
    /// Trials that are over and that its agent may hold something of, since they were told.
    stale: BTreeMap<TrialId, Duration>,
    /// Why it gets no more trials.
    pub given_up: Option<String>,
    guest_address: Option<InterfaceAddress>,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { holder, newcomer, .. } = self;
        write!(
            f,
            "another agent of this name, at {newcomer}, is refused: this one is at {holder} and answers"
        )
    }
}

impl Host {
    /// One that has not been heard of yet.
    fn expected(name: &str, barred: bool, now: Duration) -> Self {
        Self {
            name: name.to_owned(),
            facts: None,
            labels: BTreeMap::new(),
            session: None,
            conflict: None,
            away_since: Some(now),
            barred_since: barred.then_some(now),
            busy: None,
            free_since: now,
            stale: BTreeMap::new(),
            given_up: None,
            guest_address: None,
        }
    }
}

/// Whether a host can take a trial.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Availability {
    Free,
    /// It can soon.
    Later,
    /// It can't, for longer than it is waited for, but might come back.
    Overdue(String),
    /// It can't any more.
    Never(String),
}

impl Availability {
    const fn rank(&self) -> u8 {
        match self {
            Self::Free => 0,
            Self::Later => 1,
            Self::Overdue(_) => 2,
            Self::Never(_) => 3,
        }
    }
}

/// Every host that has been heard of.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    pub hosts: Vec<Host>,
    index: HashMap<String, HostIndex>,
    /// Numbers of hosts that have been forgotten.
    free: Vec<HostIndex>,
    /// What a cluster says; `None` if there is no cluster.
    nodes: Option<BTreeMap<String, Node>>,
    /// Whether the cluster has yet to speak for the first time.
    silent_cluster: bool,
    /// When an agent was last heard of for the first time.
    pub last_joined: Option<Duration>,
}

impl Fleet {
    /// No hosts yet. With `cluster`, none gets a trial before the cluster has told of its nodes.
    pub fn new(cluster: bool) -> Self {
        Self { silent_cluster: cluster, ..Self::default() }
    }

    /// The number of `name`, which is away if it has not been heard of.
    pub fn expect(&mut self, name: &str, now: Duration) -> HostIndex {
        if let Some(index) = self.index.get(name) {
            return *index;
        }
        let host = Host::expected(name, self.barred(name).is_some(), now);
        let index = self.free.pop().unwrap_or(self.hosts.len());
        match self.hosts.get_mut(index) {
            Some(forgotten) => *forgotten = host,
            None => self.hosts.push(host),
        }
        self.index.insert(name.to_owned(), index);
        index
    }

    pub fn find(&self, name: &str) -> Option<HostIndex> {
        self.index.get(name).copied()
    }

    pub fn get_mut(&mut self, name: &str) -> Option<&mut Host> {
        self.index.get(name).map(|index| &mut self.hosts[*index])
    }

    /// Number of the connection on which the agent of a host speaks, if it does.
    pub fn session(&self, name: &str) -> Option<u64> {
        let host = &self.hosts[self.find(name)?];
        host.session.filter(|_| host.away_since.is_none()).map(|session| session.number)
    }

    /// Whether a connection of this number is newer than all that the agent of a host had before.
    pub fn is_newer(&self, name: &str, number: u64) -> bool {
        let last = self.find(name).and_then(|index| self.hosts[index].session);
        last.is_none_or(|last| number > last.number)
    }

    /// An agent is there. Returns what process it is, and the trials that it holds and that are over for everybody else:
    /// they are to be torn down. `live` are the trials in flight.
    pub fn connected(
        &mut self,
        name: &str,
        session: Session,
        told: Told,
        held: &[TrialId],
        live: impl Fn(TrialId) -> bool,
        now: Duration,
    ) -> (Process, Vec<TrialId>) {
        let new = self.find(name).is_none();
        let index = self.expect(name, now);
        if new || self.hosts[index].facts.is_none() {
            self.last_joined = Some(now);
        }
        let host = &mut self.hosts[index];
        (host.facts, host.labels) = (Some(told.facts), told.labels);
        let process = Process::of(host.session.replace(session), session);
        (host.away_since, host.given_up) = (None, None);
        host.free_since = now;
        let over: BTreeSet<TrialId> = held.iter().copied().filter(|trial| !live(*trial)).collect();
        host.stale = over.iter().map(|trial| (*trial, now)).collect();
        (process, over.into_iter().collect())
    }

    /// Somebody else wanted to be a host, and was refused. Whether that is news: whoever comes, the one who holds the
    /// name is in conflict, until nobody has come for a while.
    pub fn refused(&mut self, name: &str, holder: IpAddr, newcomer: IpAddr, now: Duration) -> bool {
        let Some(host) = self.get_mut(name) else { return false };
        let before = host.conflict.replace(Conflict { holder, newcomer, at: now });
        before.is_none_or(|before| before.holder != holder || now.saturating_sub(before.at) > CONFLICT_TOLD)
    }

    /// An agent tells what its test NIC is now.
    pub fn tells_nic(&mut self, name: &str, nic: Option<Box<NicFacts>>) {
        if let Some(facts) = self.get_mut(name).and_then(|host| host.facts.as_mut()) {
            facts.nic = nic.filter(|nic| nic.is_bounded()).map(|nic| *nic);
        }
    }

    pub fn lost(&mut self, name: &str, now: Duration) -> Option<TrialId> {
        let host = self.get_mut(name)?;
        host.away_since = Some(now);
        host.busy
    }

    /// A trial that was over is off the host, or something is left of it.
    pub fn torn_down(&mut self, name: &str, trial: TrialId, leftovers: &[String], now: Duration) -> bool {
        let Some(host) = self.get_mut(name) else { return false };
        if host.stale.remove(&trial).is_none() {
            return false;
        }
        host.free_since = now;
        if !leftovers.is_empty() {
            host.given_up =
                Some(format!("something of trial {trial} is left on {name}: {}", leftovers.join("; ")));
        }
        true
    }

    /// A host was away when a trial ended there: it is not free before its agent has been told.
    pub fn untold(&mut self, name: &str, trial: TrialId, now: Duration) {
        if let Some(host) = self.get_mut(name) {
            host.stale.insert(trial, now);
        }
    }

    pub fn nodes(&mut self, nodes: BTreeMap<String, Node>, now: Duration) {
        (self.nodes, self.silent_cluster) = (Some(nodes), false);
        let nodes = self.nodes.as_ref();
        for host in &mut self.hosts {
            let node = nodes.and_then(|nodes| nodes.get(&host.name));
            let barred = node.is_some_and(|node| node.barred.is_some());
            host.barred_since = barred.then(|| host.barred_since.unwrap_or(now));
        }
    }

    /// Gives up hosts that don't confirm that a trial is off them, and forgets those that are gone, but for those
    /// `wanted` by a campaign. Whether one was forgotten.
    pub fn tick(&mut self, wanted: impl Fn(HostIndex) -> bool, now: Duration) -> bool {
        let gone = |host: &Host| host.away_since.is_some_and(|since| now.saturating_sub(since) > FORGOTTEN);
        let all = self.index.values().copied();
        let gone = all.filter(|index| gone(&self.hosts[*index]));
        let forgotten: Vec<HostIndex> = gone.filter(|index| self.is_forgettable(*index, &wanted)).collect();
        forgotten.iter().for_each(|index| self.forget(*index));
        for host in &mut self.hosts {
            let connected = host.away_since.is_none();
            let overdue = host.stale.iter().find(|(_, since)| now.saturating_sub(**since) > TEARDOWN);
            if let (true, Some((trial, _)), None) = (connected, overdue, &host.given_up) {
                let name = &host.name;
                host.given_up =
                    Some(format!("the agent of {name} did not confirm the clean-up of trial {trial}"));
            }
        }
        !forgotten.is_empty()
    }

    /// Whether a host is away and nobody waits for it.
    fn is_forgettable(&self, index: HostIndex, wanted: impl Fn(HostIndex) -> bool) -> bool {
        let host = &self.hosts[index];
        host.away_since.is_some() && host.busy.is_none() && !wanted(index)
    }

    /// Takes a host for one that never was. Its number is the next new host's.
    fn forget(&mut self, index: HostIndex) {
        let forgotten = Host::expected("", false, Duration::ZERO);
        let host = std::mem::replace(&mut self.hosts[index], forgotten);
        self.index.remove(&host.name);
        self.free.push(index);
    }

    /// Whether `name` may be one of at most `most` hosts: one that is away and not `wanted` gives way to it.
    pub fn has_room_for(&mut self, name: &str, most: usize, wanted: impl Fn(HostIndex) -> bool) -> bool {
        if self.find(name).is_some() || self.index.len() < most {
            return true;
        }
        let forgettable = self.index.values().copied().filter(|index| self.is_forgettable(*index, &wanted));
        let longest = forgettable.min_by_key(|index| self.hosts[*index].away_since);
        longest.map(|index| self.forget(index)).is_some()
    }

    /// Whether the host can take a trial; one that can't is waited for as long as `policy` says.
    pub fn availability(&self, index: HostIndex, policy: Policy, now: Duration) -> Availability {
        let host = &self.hosts[index];
        let grace = if host.session.is_some() { policy.grace } else { policy.arrival };
        let name = &host.name;
        if let Some(why) = &host.given_up {
            return Availability::Never(why.clone());
        }
        let longer = |since: Duration| now.saturating_sub(since) > grace;
        if let Some(since) = host.away_since {
            if longer(since) {
                let why = format!("the agent of {name} has been away for over {}", seconds(grace));
                return Availability::Overdue(why);
            }
            return Availability::Later;
        }
        if let (Some(since), Some(why)) = (host.barred_since, self.barred(name)) {
            if longer(since) && host.busy.is_none() {
                return Availability::Overdue(format!("{name}: {why}, for over {}", seconds(grace)));
            }
            return Availability::Later;
        }
        if host.busy.is_some() || !host.stale.is_empty() { Availability::Later } else { Availability::Free }
    }

    /// Whether two hosts can take a trial: the worse of both answers.
    pub fn both(&self, hosts: [HostIndex; 2], policy: Policy, now: Duration) -> Availability {
        let mut worst = Availability::Free;
        for host in hosts {
            let answer = self.availability(host, policy, now);
            if answer.rank() > worst.rank() {
                worst = answer;
            }
        }
        worst
    }

    /// What one of two hosts lacks to be its end of `cell`.
    pub fn lacks(&self, [a, b]: [HostIndex; 2], cell: &Cell) -> Option<String> {
        let lacking = [(a, &cell.a), (b, &cell.b)].into_iter().find_map(|(host, end)| {
            let host = &self.hosts[host];
            let why = obstacle(end, host.facts.as_deref()?)?;
            Some(format!("{}: {why}", host.name))
        });
        let lacking = lacking.or_else(|| {
            let told =
                |host: HostIndex| Some((self.hosts[host].name.as_str(), self.hosts[host].facts.as_deref()?));
            unreachable(cell, [told(a)?, told(b)?])
        });
        lacking.or_else(|| self.impostor([a, b], cell))
    }

    fn barred(&self, name: &str) -> Option<&str> {
        if self.silent_cluster {
            return Some(NO_NODES);
        }
        self.nodes.as_ref()?.get(name)?.barred.as_deref()
    }

    /// Hosts that a campaign could be planned on now: connected, wanted by `selects`, not barred, with a test NIC.
    pub fn candidates(&self, selects: impl Fn(&BTreeMap<String, String>) -> bool) -> Vec<HostIndex> {
        let usable = |index: &HostIndex| {
            let host = &self.hosts[*index];
            let barred = self.barred(&host.name).is_some() || host.given_up.is_some();
            let nic = host.facts.as_ref().is_some_and(|facts| facts.nic.is_some());
            host.away_since.is_none() && nic && !barred && selects(&self.labels(host))
        };
        let mut hosts: Vec<HostIndex> = (0..self.hosts.len()).filter(usable).collect();
        hosts.sort_by_cached_key(|index| natural(&self.hosts[*index].name));
        hosts
    }

    /// Hosts as a plan needs them. Each gets an address for guests: only now, when all NICs of the fleet that are
    /// there have told theirs.
    pub fn for_a_plan(&mut self, hosts: &[HostIndex]) -> Vec<plan::Host> {
        self.give_addresses(hosts);
        let plan = |host: &Host| {
            let nic = host.facts.as_ref()?.nic.as_ref()?;
            let rate = nic.speed.filter(|speed| speed.0 > 0);
            Some(plan::Host {
                name: host.name.clone(),
                virtual_address: host.guest_address,
                mtu: u16::try_from(nic.mtu).unwrap_or(ETHERNET_MTU),
                rate,
            })
        };
        hosts.iter().filter_map(|index| plan(&self.hosts[*index])).collect()
    }

    /// The node's labels and the agent's own, which win.
    fn labels(&self, host: &Host) -> BTreeMap<String, String> {
        let node = self.nodes.as_ref().and_then(|nodes| nodes.get(&host.name));
        let mut labels = node.map(|node| node.labels.clone()).unwrap_or_default();
        labels.extend(host.labels.clone());
        labels
    }

    /// Takes the addresses of a plan that a former process of the orchestrator made.
    pub fn restore(&mut self, hosts: &[plan::Host], now: Duration) {
        for planned in hosts {
            let index = self.expect(&planned.name, now);
            self.hosts[index].guest_address = planned.virtual_address;
        }
    }

    /// Every host, for people.
    pub fn statuses(&self, now: Duration) -> Vec<AgentStatus> {
        let mut statuses: Vec<AgentStatus> = self
            .hosts
            .iter()
            .filter_map(|host| {
                let facts = HostFacts::clone(host.facts.as_ref()?);
                let away = host.away_since.map(|since| now.saturating_sub(since));
                let barred = host.given_up.clone().or_else(|| self.barred(&host.name).map(str::to_owned));
                let (state, reason) = match (away, barred, host.busy) {
                    (Some(away), given_up, _) => {
                        let away = format!("not connected for {}", seconds(away));
                        (AgentState::Away, Some(given_up.unwrap_or(away)))
                    }
                    (None, Some(why), _) => (AgentState::Barred, Some(why)),
                    (None, None, Some(_)) => (AgentState::Busy, None),
                    (None, None, None) => (AgentState::Idle, None),
                };
                let conflict =
                    host.conflict.filter(|conflict| now.saturating_sub(conflict.at) < CONFLICT_TOLD);
                let reason = match (reason, conflict) {
                    (reason, None) => reason,
                    (None, Some(conflict)) => Some(conflict.to_string()),
                    (Some(reason), Some(conflict)) => Some(format!("{reason}; {conflict}")),
                };
                let (name, trial, labels) = (host.name.clone(), host.busy, self.labels(host));
                Some(AgentStatus { name, state, reason, trial, labels, facts })
            })
            .collect();
        statuses.sort_by_cached_key(|status| natural(&status.name));
        statuses
    }
}

fn seconds(span: Duration) -> String {
    format!("{} s", span.as_secs())
}

/// Orders `host-2` before `host-10`: runs of digits compare as numbers.
fn natural(name: &str) -> Vec<(u64, String)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(text);
        let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        let (number, tail) = tail.split_at(digits);
        parts.push((0, word.to_owned()));
        // A number too long to be one compares as text, after all that are.
        parts.push(number.parse().map_or((u64::MAX, number.to_owned()), |number| (number, String::new())));
        rest = tail;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::natural;

    #[test]
    fn hosts_are_in_the_order_that_people_expect() {
        let mut names = vec!["host-10", "host-2", "a", "host-2b", "host-1", "rack2-1", "rack10-1"];
        names.sort_by_key(|name| natural(name));
        assert_eq!(names, ["a", "host-1", "host-2", "host-2b", "host-10", "rack2-1", "rack10-1"]);
    }
}
