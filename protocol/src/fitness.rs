//! What a host lacks for what stands at an end: asked by the scheduler before it sends a trial there, and by the agent before
//! it runs one. Pure.

use crate::facts::{HostFacts, KvmFact};
use crate::port::{Port, Wire};
use crate::trial::{EndKind, NativeProgram, Nic};

/// What a host lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Lack<'a> {
    /// KVM, or one that runs guests.
    #[error("this host can't run a guest: {0}")]
    Kvm(&'a str),
    /// iperf3, or one that is like the native ends.
    #[error("this host can't run iperf3: {0}")]
    Iperf3(&'a str),
    /// A test NIC.
    #[error("this host has no test NIC")]
    Nic,
    /// A wire with this port.
    #[error(
        "this host has no port `{port}`: its virtual ends reach the wire by {wire}; leave the port out of the \
         campaign, or start the agent with another --wire"
    )]
    Port {
        /// What was asked for.
        port: Port,
        /// What there is.
        wire: Wire,
    },
    /// TAP devices.
    #[error("this host can't create a TAP: {0}")]
    Tun(&'a str),
}

/// What the host with these facts lacks for an end of this `kind`, if it lacks something.
pub fn lack<'a>(kind: &EndKind, facts: &'a HostFacts) -> Option<Lack<'a>> {
    match kind {
        EndKind::Native { program: NativeProgram::Endpoint } => None,
        EndKind::Native { program: NativeProgram::Iperf3 } => {
            facts.iperf3.as_ref().err().map(|why| Lack::Iperf3(why))
        }
        EndKind::Virtual { engine, nic } => {
            if let (true, KvmFact::Unusable { reason, .. }) = (engine.traits().guest, &facts.kvm) {
                return Some(Lack::Kvm(reason));
            }
            lack_of_port(nic, facts)
        }
    }
}

fn lack_of_port<'a>(nic: &Nic, facts: &'a HostFacts) -> Option<Lack<'a>> {
    if !nic.port.is_on_the_wire() {
        return None;
    }
    let Some(wire) = facts.wire else { return Some(Lack::Nic) };
    let Some(port) = wire.port(nic.port) else { return Some(Lack::Port { port: nic.port, wire }) };
    facts.tun.as_ref().err().filter(|_| port.traits().needs_tun).map(|why| Lack::Tun(why))
}
