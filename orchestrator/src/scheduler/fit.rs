//! Whether a host can be an end of a trial: a pure question to its facts.

use std::net::Ipv4Addr;

use toll_protocol::facts::HostFacts;
use toll_protocol::lack::lack;
use toll_protocol::trial::EndSpec;

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
    if let Some(lack) = lack(end, facts) {
        return Some(lack.to_string());
    }
    (!end.kind.is_native() && end.address.address == Ipv4Addr::UNSPECIFIED).then(|| {
        "no address is left for a guest: start the agent with --guest-addresses FIRST-LAST, addresses of the test NIC's \
         network that nobody else uses"
            .to_owned()
    })
}
