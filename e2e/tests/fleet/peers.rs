//! An end talks only to its peer: agents that say that their ends are where they are not.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::net::{SocketAddrV4, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use tokio::sync::{mpsc, oneshot};
use toll_e2e::campaigns::{NATIVE, fleet_campaign};
use toll_e2e::fleet::{Fleet, LIMIT, no_fleet};
use toll_e2e::machine::wait_for;
use toll_e2e::suite::test;
use toll_node_agent::identity::Identity;
use toll_node_agent::transport::{Transport, TransportEvent};
use toll_protocol::PROTOCOL_VERSION;
use toll_protocol::facts::HostFacts;
use toll_protocol::message::{FromAgent, Instance, ToAgent};
use toll_protocol::result::{CampaignResult, RunStatus};
use toll_protocol::service::{AgentState, AgentStatus};
use toll_protocol::trial::EndReady;

use crate::measuring::on;

pub fn tests() -> Vec<Trial> {
    vec![
        test("an_end_goes_nowhere_but_to_its_peer", &[no_fleet()], rogue_ready),
        test("a_host_that_tells_an_address_that_is_none_gets_no_peer", &[no_fleet()], rogue_hello),
    ]
}

/// An agent that speaks the protocol and lies: the end of each trial is at the next of `places`.
struct Rogue {
    /// What its label `rogue` says: the agent whose place it takes is known for a while after its end, and looks alike.
    mark: String,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Rogue {
    /// Takes the place of the agent of host `index`, with its certificate.
    fn replace(fleet: &mut Fleet, index: usize, facts: HostFacts, places: Vec<SocketAddrV4>) -> Result<Self> {
        fleet.hosts[index].agent = None;
        let host = &fleet.hosts[index];
        let pki = fleet.path("pki").join(&host.name);
        let [ca, certificate, key] = ["ca.pem", "certificate.pem", "key.pem"].map(|file| pki.join(file));
        let identity = Identity::read(&ca, &certificate, &key)?;
        let transport = Transport::new(
            toll_e2e::fleet::ORCHESTRATOR.parse()?,
            "toll-orchestrator".to_owned(),
            &identity,
        )?;
        let (stop, stopped) = oneshot::channel();
        static COUNT: AtomicUsize = AtomicUsize::new(1);
        let mark = COUNT.fetch_add(1, Ordering::Relaxed).to_string();
        let (name, labels) = (host.name.clone(), BTreeMap::from([("rogue".to_owned(), mark.clone())]));
        // Sockets belong to the namespace of the thread that opens them.
        let thread = host.namespace.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
            Ok::<_, std::io::Error>(std::thread::spawn(move || {
                let entered = nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET);
                entered.expect("the namespace can be entered");
                runtime.block_on(lie(transport, (name, labels), facts, places, stopped));
            }))
        })??;
        Ok(Self { mark, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Rogue {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn lie(
    transport: Transport,
    (name, labels): (String, BTreeMap<String, String>),
    facts: HostFacts,
    places: Vec<SocketAddrV4>,
    mut stopped: oneshot::Receiver<()>,
) {
    let (to_link, outgoing) = mpsc::channel(64);
    let (events, mut from_transport) = mpsc::channel(64);
    let (stop_transport, link_stopped) = oneshot::channel();
    let transport = tokio::spawn(transport.run(outgoing, events, link_stopped));
    let mut places = places.into_iter().cycle();
    loop {
        let event = tokio::select! {
            _ = &mut stopped => break,
            event = from_transport.recv() => event,
        };
        let message = match event {
            None => break,
            Some(TransportEvent::HelloWanted(answer)) => {
                let hello = FromAgent::Hello {
                    version: PROTOCOL_VERSION,
                    name: name.clone(),
                    instance: Instance(1),
                    facts: Box::new(facts.clone()),
                    labels: labels.clone(),
                    held: Vec::new(),
                };
                let _ = answer.send(hello);
                continue;
            }
            Some(TransportEvent::Message(message)) => message,
            Some(_) => continue,
        };
        let answer = match message {
            ToAgent::Prepare { trial, .. } => {
                let address = places.next().unwrap_or(SocketAddrV4::new([127, 0, 0, 1].into(), 9999));
                FromAgent::Ready { trial, ready: EndReady { address } }
            }
            ToAgent::Teardown { trial } => FromAgent::TornDown { trial, leftovers: Vec::new() },
            _ => continue,
        };
        if to_link.send(answer).await.is_err() {
            break;
        }
    }
    let _ = stop_transport.send(());
    drop(from_transport);
    let _ = transport.await;
}

/// Reasons of the runs, none of which may have figures.
fn reasons(result: &CampaignResult) -> Result<BTreeSet<&str>> {
    let runs = result.cells.iter().flat_map(|cell| &cell.runs);
    runs.map(|run| {
        ensure!(run.status != RunStatus::Measured, "a run with a rogue has figures: {run:?}");
        run.reason.as_deref().context("a reason")
    })
    .collect()
}

fn wait_for_idle(fleet: &Fleet, rogue: &Rogue) -> Result<()> {
    wait_for("the rogue agent", LIMIT, || {
        let is_it = |agent: &AgentStatus| agent.labels.get("rogue") == Some(&rogue.mark);
        let agents = fleet.agents()?;
        Ok(agents.iter().any(|agent| is_it(agent) && agent.state == AgentState::Idle).then_some(()))
    })
}

/// Where nobody may come: services of the other host's own, and of a third machine.
const PLACES: [&str; 8] = [
    "127.0.0.1:9999",
    "10.91.0.1:9999",
    "10.91.0.254:9999",
    "169.254.169.254:80",
    "224.0.0.1:9999",
    "0.0.0.0:9999",
    "255.255.255.255:9999",
    "10.91.0.255:9999",
];

/// The peer of host-1 says that it is at places that are not its own, where somebody listens or nobody does: nobody comes
/// there, and the result does not tell the two apart.
fn rogue_ready() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let listeners = [(PLACES[0], true), (PLACES[1], true), (PLACES[2], false)].map(|(place, on_host)| {
            let namespace = if on_host { &fleet.hosts[0].namespace } else { &fleet.wire };
            namespace.run(|| {
                let listener = TcpListener::bind(place)?;
                listener.set_nonblocking(true)?;
                Ok::<_, std::io::Error>(listener)
            })
        });
        let listeners = listeners.into_iter().map(|made| Ok(made??)).collect::<Result<Vec<_>>>()?;
        let facts = fleet.agents()?.into_iter().find(|agent| agent.name == "host-2").context("host-2")?.facts;
        let places = PLACES.map(|place| place.parse().expect("an address"));
        let rogue = Rogue::replace(fleet, 1, facts, places.to_vec())?;
        wait_for_idle(fleet, &rogue)?;
        let id = fleet.submit(&fleet_campaign(&[NATIVE], 4, "200ms", "pairs: all"))?;
        let (result, status) = fleet.result(&id, LIMIT)?;
        let counts = status.counts.context("counts")?;
        ensure!(counts.failed == 8 && counts.planned == 8, "{counts:?}");
        for reason in reasons(&result)? {
            ensure!(!reason.contains("refused") && !reason.contains("answer"), "{reason}");
            ensure!(
                PLACES.iter().any(|place| reason.contains(place.split(':').next().unwrap_or(place))),
                "{reason}"
            );
        }
        for listener in &listeners {
            let came = listener.accept().map(|(_, from)| from).map_err(|error| error.kind());
            ensure!(came == Err(ErrorKind::WouldBlock), "somebody came: {came:?}");
        }
        Ok(())
    })
}

/// A host whose very NIC has, as it says, an address of nobody's, or its peer's.
fn rogue_hello() -> Result<()> {
    on(Fleet::up(2)?, |fleet| {
        let facts = fleet.agents()?.into_iter().find(|agent| agent.name == "host-2").context("host-2")?.facts;
        for address in ["127.0.0.1/8", "169.254.169.254/16", "10.91.0.1/24"] {
            let mut facts = facts.clone();
            facts.nic.as_mut().context("a NIC")?.address = Some(address.parse()?);
            let (place, _) = address.split_once('/').context("an address")?;
            let place = SocketAddrV4::new(place.parse()?, 9999);
            let rogue = Rogue::replace(fleet, 1, facts, vec![place])?;
            wait_for_idle(fleet, &rogue)?;
            let id = fleet.submit(&fleet_campaign(&[NATIVE], 1, "200ms", "pairs: all"))?;
            let (result, status) = fleet.result(&id, LIMIT)?;
            let counts = status.counts.context("counts")?;
            ensure!(
                counts.skipped == 2 && counts.planned == 2,
                "{address}: {counts:?} {:?}",
                reasons(&result)
            );
            for reason in reasons(&result)? {
                ensure!(reason.contains("host-2") && reason.contains(&place.ip().to_string()), "{reason}");
            }
        }
        Ok(())
    })
}
