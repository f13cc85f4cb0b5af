//! A lab: several hosts on one machine, each a network namespace with a stack of its own and a real agent
//! process. Nothing of it exists in the machine's own network.
//!
//! ```text
//!  machine's network         (untouched; the process leaves it before it makes anything)
//!  lab namespace:            unnamed, ends with its processes
//!    control bridge 10.78.0.254/24 <- orchestrator's QUIC socket     test bridge (no address)
//!      |            |                                                  |            |
//!      | veth       | veth                              veth with link rate     veth with link rate
//!      |            |                                                  |            |
//!    ctl0         ctl0                                               eth0         eth0
//!    host-1       host-2   (namespaces)                              host-1       host-2
//! ```
//! The control network is a second NIC of each host, so that orders never share the link that is measured.

pub mod agents;
pub mod namespace;
mod network;
mod shaping;

use std::net::Ipv4Addr;

use nix::sched::CpuSet;
use toll_protocol::campaign;
use toll_protocol::units::InterfaceAddress;

pub use agents::AgentProcess;
pub use namespace::{NamespaceError, enter};

/// Length of the networks' prefixes.
const PREFIX: u8 = 24;
/// Address of the orchestrator on the control network.
pub const ORCHESTRATOR: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 254);

/// Why a lab can't be made.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// A namespace.
    #[error("the lab's namespaces can't be made")]
    Namespace(#[from] NamespaceError),
    /// A netlink request.
    #[error("the lab's network can't be made: {what}")]
    Network {
        /// What was being done.
        what: String,
        /// The kernel's word.
        source: rtnetlink::Error,
    },
    /// An interface that was just made is not there.
    #[error("the lab's network can't be made: interface {name} is not there")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// An operation on a file, a socket or a process.
    #[error("the lab can't be made: {what}")]
    Io {
        /// What was being done.
        what: String,
        /// The system's word.
        source: std::io::Error,
    },
}

/// One host of a lab.
#[derive(Debug)]
pub struct LabHost {
    /// Its name: `host-1`.
    pub name: String,
    /// Its namespace.
    pub namespace: namespace::Namespace,
    /// Its CPUs.
    pub cpus: Vec<usize>,
    /// Address of its test NIC.
    pub native: InterfaceAddress,
    /// Address for the virtual end that stands on it.
    pub virtual_end: InterfaceAddress,
}

/// The hosts and the network between them. They end with the processes inside and with this value.
#[derive(Debug)]
pub struct Lab {
    /// Hosts, `host-1` first.
    pub hosts: Vec<LabHost>,
}

impl Lab {
    /// Makes the hosts and their network in the namespace that the calling process is in, which must be a lab's
    /// own ([`enter`]).
    ///
    /// # Errors
    /// [`LabError`].
    pub async fn new(spec: &campaign::Lab) -> Result<Self, LabError> {
        let allowed = allowed_cpus()?;
        let mut hosts = Vec::new();
        for index in 0..spec.count {
            let address = |base: u32| {
                let last = u8::try_from(base + index).unwrap_or(u8::MAX);
                InterfaceAddress { address: Ipv4Addr::new(10, 77, 0, last), prefix: PREFIX }
            };
            hosts.push(LabHost {
                name: format!("host-{}", index + 1),
                namespace: namespace::Namespace::new()?,
                cpus: share(&allowed, index as usize, spec.count as usize),
                native: address(1),
                virtual_end: address(101),
            });
        }
        network::connect(&hosts, spec).await?;
        Ok(Self { hosts })
    }
}

/// CPUs that this process may use.
fn allowed_cpus() -> Result<Vec<usize>, LabError> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0)).map_err(|source| {
        LabError::Io { what: "reading the CPUs that may be used".into(), source: source.into() }
    })?;
    Ok((0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect())
}

/// The CPUs of one host out of `count`: hosts have disjoint shares while there are enough, so that the two ends
/// of a trial don't compete for a core. Placement changes results by 2.
fn share(allowed: &[usize], index: usize, count: usize) -> Vec<usize> {
    if allowed.len() < count {
        return allowed.get(index % allowed.len().max(1)).copied().into_iter().collect();
    }
    let each = allowed.len() / count;
    allowed[index * each..(index + 1) * each].to_vec()
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn hosts_have_cpus_of_their_own_while_there_are_enough() {
        assert_eq!(share(&[0, 1], 0, 2), [0]);
        assert_eq!(share(&[0, 1], 1, 2), [1]);
        assert_eq!(share(&[4, 5, 6, 7, 9], 1, 2), [6, 7]);
        assert_eq!(share(&[0, 1], 2, 3), [0]);
        assert_eq!(share(&[3], 5, 16), [3]);
    }
}
