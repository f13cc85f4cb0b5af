//! Whom an end may talk to: the other end of its trial, at the address that its host told, and nobody else. An agent is
//! not believed about where an end is, nor an orchestrator about where a peer is: a word of either would let somebody
//! reach what the host reaches, its own loop-back too.

use std::net::Ipv4Addr;

use crate::units::InterfaceAddress;

/// Why an address can't be a peer's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No host is reached by it.
    #[error("{address} is {what}, and no address of a host on a network")]
    Special {
        /// The address.
        address: Ipv4Addr,
        /// What it is.
        what: &'static str,
    },
    /// The host that is to connect has it itself.
    #[error("{address} is this host's own address")]
    Own {
        /// The address.
        address: Ipv4Addr,
    },
    /// All hosts of a network have it.
    #[error("{address} is the address of the network {network} itself, or its broadcast address")]
    Network {
        /// The address.
        address: Ipv4Addr,
        /// The network, as an interface on it has it.
        network: InterfaceAddress,
    },
}

/// Whether a host can have `address` on a network (RFC 6890): none of this network, loop-back, link-local, multicast
/// or reserved.
///
/// # Errors
/// [`PeerError::Special`].
pub fn check(address: Ipv4Addr) -> Result<(), PeerError> {
    let what = match address.octets() {
        [0, ..] => "unspecified",
        [127, ..] => "a loop-back address",
        [169, 254, ..] => "a link-local address",
        [224..=239, ..] => "a multicast address",
        [255, 255, 255, 255] => "the broadcast address",
        [240..=255, ..] => "reserved",
        _ => return Ok(()),
    };
    Err(PeerError::Special { address, what })
}

/// Whether a host whose NIC has the address `own` may have a peer at `address`.
///
/// # Errors
/// [`PeerError`].
pub fn check_from(own: InterfaceAddress, address: Ipv4Addr) -> Result<(), PeerError> {
    check(address)?;
    if address == own.address {
        return Err(PeerError::Own { address });
    }
    if own.contains(address) && !own.is_host(address) {
        return Err(PeerError::Network { address, network: own });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(address: &str) -> String {
        let own = "10.91.0.1/24".parse().expect("an address");
        check_from(own, address.parse().expect("an address")).expect_err(address).to_string()
    }

    #[test]
    fn an_address_that_leads_to_no_other_host_is_refused_and_named() {
        for (address, why) in [
            ("0.0.0.0", "unspecified"),
            ("0.1.2.3", "unspecified"),
            ("127.0.0.1", "loop-back"),
            ("127.9.9.9", "loop-back"),
            ("169.254.169.254", "link-local"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.255", "multicast"),
            ("240.0.0.1", "reserved"),
            ("255.255.255.255", "broadcast"),
            ("10.91.0.1", "own address"),
            ("10.91.0.0", "address of the network"),
            ("10.91.0.255", "broadcast address"),
        ] {
            let told = refused(address);
            assert!(told.contains(address) && told.contains(why), "{told}");
        }
    }

    #[test]
    fn hosts_of_this_network_and_of_others_are_taken() {
        let own = "10.91.0.1/24".parse().expect("an address");
        for address in ["10.91.0.2", "10.92.0.255", "192.0.2.7", "223.255.255.255", "1.0.0.1"] {
            assert_eq!(check_from(own, address.parse().expect("an address")), Ok(()), "{address}");
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_is_what_the_standard_library_calls_no_special_address(bits: u32) {
            let address = Ipv4Addr::from(bits);
            let special = address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_broadcast()
                || address.is_unspecified();
            prop_assert!(!special || check(address).is_err());
        }
    }
}
