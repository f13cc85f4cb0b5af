//! Why the host's network can't be made ready for a trial, with what to do.

use std::net::Ipv4Addr;
use std::time::Duration;

use toll_protocol::units::AddressRange;

/// How long the kernel may take for all requests of one step.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the host's network can't be made ready.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// There is no link of that name in the agent's network namespace.
    #[error("there is no network interface {name}")]
    NoSuchLink {
        /// Its name.
        name: String,
    },
    /// The test NIC is not fit for a trial.
    #[error("network interface {nic} {why}")]
    Unfit {
        /// Its name.
        nic: String,
        /// What is wrong with it, and what to do.
        why: String,
    },
    /// No test NIC was named, and there is no default route to take it from.
    #[error(
        "no network interface was named, and the host has no default route to find it by: name one with --nic"
    )]
    NoDefaultRoute,
    /// The addresses for guests are not fit for the NIC's network.
    #[error("the guests' addresses {range} can't be used on {nic}: {why}")]
    GuestAddresses {
        /// What was asked for.
        range: AddressRange,
        /// The test NIC.
        nic: String,
        /// What is wrong with them, and what to do.
        why: String,
    },
    /// The other end's address is none that an end of this host may talk to.
    #[error("the peer's address can't be used: {why}")]
    Peer {
        /// What is wrong with it.
        why: String,
    },
    /// Somebody on the NIC's network has the address of a virtual end already.
    #[error(
        "address {address} is in use by {user}: give the guests addresses that nobody uses (--guest-addresses)"
    )]
    AddressInUse {
        /// The address.
        address: Ipv4Addr,
        /// Who answered, by their MAC address, or `this host`.
        user: String,
    },
    /// The network could not be asked whether an address is free.
    #[error(
        "whether {address} is in use could not be asked by ARP: CAP_NET_RAW is needed, and an Ethernet NIC"
    )]
    Probe {
        /// The address.
        address: Ipv4Addr,
        /// The system's word.
        source: std::io::Error,
    },
    /// The character device of a macvtap link is not known.
    #[error("the device of macvtap {link} was not found")]
    Device {
        /// The link.
        link: String,
        /// Why.
        source: std::io::Error,
    },
    /// A request was refused.
    #[error("{what}")]
    Netlink {
        /// The request.
        what: String,
        /// The kernel's word.
        #[source]
        source: rtnetlink::Error,
    },
    /// The kernel did not answer.
    #[error("the kernel did not answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// A netlink or lock socket could not be opened.
    #[error("{what}")]
    Socket {
        /// Which, and what to do.
        what: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
}

impl NetworkError {
    pub(super) fn netlink(what: impl Into<String>, source: rtnetlink::Error) -> Self {
        Self::Netlink { what: what.into(), source }
    }

    /// Whether the kernel's word is this error number.
    pub(super) fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Netlink { source: rtnetlink::Error::NetlinkError(error), .. }
            if error.raw_code() == -errno)
    }
}
