//! The two ends of a trial: where each is, as its host told, and what each gets of its host when the trial begins. An
//! agent is believed about its own addresses when it tells of its host, and about nothing else: where its end is follows
//! from that, and an answer that says otherwise fails the trial before anybody is sent there. Pure.

use std::net::Ipv4Addr;
use std::time::Duration;

use toll_protocol::facts::HostFacts;
use toll_protocol::peer;
use toll_protocol::report::Failure;
use toll_protocol::trial::{EndReady, EndSpec, NetworkMode};

use super::course::Course;
use super::fit::own_cpu;
use super::fleet::Fleet;
use super::flight::Flight;
use super::{Command, Now};
use crate::plan::{Cell, Plan};

/// Where the other end finds `end`, on a host with these facts.
pub(super) fn place(end: &EndSpec, facts: &HostFacts) -> Option<Ipv4Addr> {
    match end.kind.network_mode() {
        // Behind address translation it is the host that connects.
        None | Some(NetworkMode::Nat) => Some(facts.nic.as_ref()?.address?.address),
        Some(NetworkMode::HostOnly | NetworkMode::Bridged) => Some(end.address.address),
    }
}

/// Why the ends of `cell` can't be told of each other, on hosts with these names and facts, if they can't.
pub(super) fn unreachable(cell: &Cell, hosts: [(&str, &HostFacts); 2]) -> Option<String> {
    if cell.is_local() {
        return None;
    }
    let [a, b] = [(&cell.a, hosts[0]), (&cell.b, hosts[1])];
    let places = [place(a.0, a.1.1), place(b.0, b.1.1)];
    if let [Some(one), Some(other)] = places
        && one == other
    {
        return Some(format!("{} and {} both say that they have the address {one}", hosts[0].0, hosts[1].0));
    }
    [(a, b), (b, a)].into_iter().find_map(|((end, (name, facts)), (_, (_, other)))| {
        let why = misplaced(end, facts, other)?;
        Some(format!("{name}: {why}"))
    })
}

/// Why the place of `end`, as its host tells it, is none that a host with the facts `other` may be sent to.
fn misplaced(end: &EndSpec, facts: &HostFacts, other: &HostFacts) -> Option<String> {
    let Some(place) = place(end, facts) else {
        return Some(
            "its test NIC has no IPv4 address in a network with room for others: give it one of a prefix of 1 to 30 \
             bits"
                .into(),
        );
    };
    let other = other.nic.as_ref().and_then(|nic| nic.address);
    let checked = other.map_or_else(|| peer::check(place), |other| peer::check_from(other, place));
    if let Err(error) = checked {
        return Some(format!("its agent says that its end is where no peer can be: {error}"));
    }
    let on_the_wire = end.kind.network_mode() == Some(NetworkMode::Bridged);
    let outside = facts.guest_addresses.filter(|range| on_the_wire && !range.contains(place));
    outside
        .map(|range| format!("its guest was to have {place}, and its addresses for guests are {range} now"))
}

/// Why `ready` is no answer of `end`, on a host with these facts, if it is none.
pub(super) fn stray(end: &EndSpec, facts: Option<&HostFacts>, ready: EndReady) -> Option<Failure> {
    let place = facts.and_then(|facts| place(end, facts));
    (place != Some(*ready.address.ip())).then(|| {
        let place = place.map_or_else(|| "not known".to_owned(), |place| format!("at {place}"));
        Failure::new(format!(
            "its agent says that its end is at {}, and by what it told of its host it is {place}: nobody is sent there",
            ready.address
        ))
    })
}

/// Begins a trial of a plan: its hosts are busy with it, and each end is told what is its own, and where the other is.
pub(super) fn begin(
    fleet: &mut Fleet,
    course: &mut Course,
    plan: &Plan,
    index: usize,
    (grace, now): (Duration, Now),
    out: &mut Vec<Command>,
) -> Flight {
    let planned = &plan.trials[index];
    let mut cell = plan.cells[planned.cell].clone();
    let mut free_since = course.ready_since;
    let hosts = plan.cells[planned.cell].hosts();
    for (host, end) in hosts.into_iter().zip([&mut cell.a, &mut cell.b]) {
        if let Some(host) = fleet.get_mut(host) {
            host.busy = Some(planned.id);
            free_since = free_since.max(host.free_since);
            let facts = host.facts.as_deref();
            end.cpu = end.cpu.and_then(|cpu| own_cpu(facts?, cpu));
            end.io_cpu = end.io_cpu.and_then(|cpu| own_cpu(facts?, cpu));
        }
    }
    let at = |host, end| place(end, fleet.hosts[fleet.find(host)?].facts.as_deref()?);
    let places = [at(hosts[0], &cell.a), at(hosts[1], &cell.b)];
    [cell.b.peer, cell.a.peer] = places;
    course.flying += 1;
    let campaign = course.id.clone();
    out.push(Command::Begun { campaign, trial: planned.id, unix_ms: now.unix_ms, since: free_since });
    Flight::begin(index, planned.id, &cell, grace, now, out)
}
