//! Whether a host can be an end of a trial: a pure question to its facts.

use std::net::Ipv4Addr;

use toll_protocol::facts::HostFacts;
use toll_protocol::fitness::lack;
use toll_protocol::trial::{Adapter, EndSpec};

/// pcnet is an Ethernet chip: frames of 1518 bytes with FCS (IEEE 802.3).
const PCNET_MTU: u16 = 1500;

/// The machine's number of the host's `n`th CPU. A lab gives each host some of the machine's, a container too;
/// pinning by the machine's numbers would work for root and take the CPU of another host.
pub(super) fn own_cpu(facts: &HostFacts, n: u32) -> Option<u32> {
    facts.cpus.get(usize::try_from(n).ok()?).copied()
}

/// Why a host can't be this end, if it can't.
pub(super) fn obstacle(end: &EndSpec, facts: &HostFacts) -> Option<String> {
    let pins = [end.cpu, end.io_cpu].into_iter().flatten();
    if let Some(cpu) = pins.into_iter().find(|cpu| own_cpu(facts, *cpu).is_none()) {
        let count = facts.cpus.len();
        return Some(format!(
            "the arm is pinned to CPU {cpu} of the host, which has {count} (the first is 0)"
        ));
    }
    if let Some(lack) = lack(&end.kind, facts) {
        return Some(lack.to_string());
    }
    let nic = end.kind.nic()?;
    if end.address.address == Ipv4Addr::UNSPECIFIED {
        return Some(
            "no address is left for a guest: start the agent with --guest-addresses FIRST-LAST, addresses of the \
             test NIC's network that nobody else uses"
                .into(),
        );
    }
    if matches!(nic.adapter, Adapter::Pcnet(_)) && end.mtu > PCNET_MTU {
        return Some(format!(
            "pcnet carries packets of at most {PCNET_MTU} bytes; the path's MTU is {}",
            end.mtu
        ));
    }
    None
}
