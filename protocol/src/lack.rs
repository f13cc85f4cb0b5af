//! What a host lacks for an end: a pure question to its facts, asked before a trial is sent to it and by its agent.

use crate::facts::{HostFacts, KvmFact, Wire};
use crate::trial::{EndKind, EndSpec, NativeProgram, Nic, Port};

/// Why a host can't run an end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lack {
    /// Usable KVM.
    #[error("no guest can run: {0}")]
    Kvm(String),
    /// A program of native ends.
    #[error("iperf3 can't run: {0}")]
    Iperf3(String),
    /// A NIC to test.
    #[error("the host has no test NIC: start the agent with --nic")]
    Nic,
    /// A port on its wire.
    #[error(
        "the arm asks for the port {asked}, and this host's wire is {wire}: leave `port` out of the arm, or start the agent \
         with another --wire"
    )]
    Port {
        /// What is asked for.
        asked: Port,
        /// How the host's virtual ends reach the wire.
        wire: Wire,
    },
    /// TAP devices.
    #[error("no TAP device can be made: {0}")]
    Tap(String),
    /// A path that the adapter can use.
    #[error("{adapter} carries packets of at most {most} bytes; the path's MTU is {mtu}")]
    Mtu {
        /// The adapter's name.
        adapter: String,
        /// The largest MTU of the adapter.
        most: u16,
        /// The path's.
        mtu: u16,
    },
}

/// The first thing that a host with these facts lacks for `end`. Where CPUs and addresses are to be had is not asked: whoever
/// plans a trial hands them out.
pub fn lack(end: &EndSpec, facts: &HostFacts) -> Option<Lack> {
    match &end.kind {
        EndKind::Native { program: NativeProgram::Iperf3 } => facts.iperf3.clone().err().map(Lack::Iperf3),
        EndKind::Native { .. } => None,
        EndKind::Virtual { engine, nic } => match &facts.kvm {
            KvmFact::Unusable { reason, .. } if engine.traits().guest => Some(Lack::Kvm(reason.clone())),
            KvmFact::Unusable { .. } | KvmFact::Usable(_) => lack_of_virtual(nic, end.mtu, facts),
        },
    }
}

fn lack_of_virtual(nic: &Nic, mtu: u16, facts: &HostFacts) -> Option<Lack> {
    let (most, adapter, asked) = (*nic.adapter.mtus().end(), nic.adapter.to_string(), nic.port);
    if mtu > most {
        return Some(Lack::Mtu { adapter, most, mtu });
    }
    if !asked.is_on_the_wire() {
        return None;
    }
    let Some(wire) = facts.wire else { return Some(Lack::Nic) };
    match (wire.port(asked), &facts.tun) {
        (None, _) => Some(Lack::Port { asked, wire }),
        (Some(port), Err(reason)) if port.traits().needs_tun => Some(Lack::Tap(reason.clone())),
        (Some(_), _) => None,
    }
}

#[cfg(test)]
mod tests;
