//! Which handshakes go on. Pure.
//!
//! ```text
//!            address not proved                       proved (by a Retry, RFC 9000, 8.1.2)
//! Initial --> fewer than UNPROVED held? take           fewer than PROVED, and than OF_ONE of its address? take
//!             else Retry, which keeps no state         else ignored: an honest client sends it again
//! ```
//! Whoever sends under false addresses holds UNPROVED places at most, and never one that an agent needs which answers a
//! Retry. Whoever has addresses of their own holds OF_ONE places by each. A place is held until QUIC has forgotten the
//! connection ([`super::place`]), so that what it remembers has these bounds too.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// Connections that are no agent's and whose address nobody has proved; from then on a Retry asks for the proof.
pub const UNPROVED: usize = 64;
/// Connections that are no agent's and whose address is proved: some 30 KiB of memory each.
pub const PROVED: usize = 512;
/// The same of one address: hosts behind one address translator may all come back at once.
pub const OF_ONE: usize = 64;

/// What becomes of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on, and takes a place.
    Take(Place),
    /// The client is to prove its address first.
    Retry,
    /// It is not answered.
    Ignore,
}

/// A place that a connection takes until QUIC has forgotten it, but for the time that it is an agent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Of an address that is not proved.
    Unproved,
    /// Of this address.
    Proved(IpAddr),
}

/// Places that are held.
#[derive(Debug, Default)]
pub struct Admission {
    unproved: usize,
    proved: usize,
    by_address: HashMap<IpAddr, usize>,
}

impl Admission {
    /// What becomes of one more handshake from `address`, which is `proved` or not.
    pub fn admit(&mut self, address: IpAddr, proved: bool) -> Verdict {
        let place = if proved {
            let address = network(address);
            let of_one = self.by_address.get(&address).copied().unwrap_or_default();
            if self.proved >= PROVED || of_one >= OF_ONE {
                return Verdict::Ignore;
            }
            Place::Proved(address)
        } else {
            if self.unproved >= UNPROVED {
                return Verdict::Retry;
            }
            Place::Unproved
        };
        self.back(place);
        Verdict::Take(place)
    }

    /// A place is taken, whatever the bounds: an agent's connection has ended, and is remembered.
    pub fn back(&mut self, place: Place) {
        match place {
            Place::Unproved => self.unproved += 1,
            Place::Proved(address) => {
                self.proved += 1;
                *self.by_address.entry(address).or_default() += 1;
            }
        }
    }

    /// A place is given back.
    pub fn over(&mut self, place: Place) {
        match place {
            Place::Unproved => self.unproved = self.unproved.saturating_sub(1),
            Place::Proved(address) => {
                self.proved = self.proved.saturating_sub(1);
                if let Some(of_one) = self.by_address.get_mut(&address) {
                    *of_one -= 1;
                    if *of_one == 0 {
                        self.by_address.remove(&address);
                    }
                }
            }
        }
    }

    /// How many there are.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.unproved + self.proved
    }
}

/// What counts as one address: of IPv6 the network of 64 bits, any address of which its host may take (RFC 4291, 2.5.4).
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> IpAddr {
        IpAddr::from(u32::try_from(n).expect("small").to_be_bytes())
    }

    #[test]
    fn false_addresses_fill_no_place_that_a_proved_one_needs() {
        let mut admission = Admission::default();
        for n in 0..10_000 {
            let expected = if n < UNPROVED { Verdict::Take(Place::Unproved) } else { Verdict::Retry };
            assert_eq!(admission.admit(address(n), false), expected, "{n}");
        }
        let agent = address(1);
        assert_eq!(admission.admit(agent, true), Verdict::Take(Place::Proved(agent)));
        assert_eq!(admission.held(), UNPROVED + 1);
    }

    #[test]
    fn one_address_leaves_places_to_others_and_all_together_have_a_bound() {
        let mut admission = Admission::default();
        for _ in 0..OF_ONE {
            assert!(matches!(admission.admit(address(1), true), Verdict::Take(_)));
        }
        assert_eq!(admission.admit(address(1), true), Verdict::Ignore);
        let of_others =
            (2..).take(PROVED).filter(|n| matches!(admission.admit(address(*n), true), Verdict::Take(_)));
        assert_eq!(of_others.count(), PROVED - OF_ONE);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        let mut admission = Admission::default();
        let host = |n: u128| IpAddr::from(Ipv6Addr::from_bits((0x2001_0db8 << 96) | n));
        for n in 0..OF_ONE as u128 {
            assert!(matches!(admission.admit(host(n), true), Verdict::Take(_)));
        }
        assert_eq!(admission.admit(host(u128::from(u64::MAX)), true), Verdict::Ignore);
        assert!(matches!(admission.admit(host(1 << 64), true), Verdict::Take(_)));
    }

    #[test]
    fn what_is_over_gives_its_place_back() {
        let mut admission = Admission::default();
        for round in 0..3 {
            let mut places = Vec::new();
            for proved in [true, false].repeat(OF_ONE.min(UNPROVED)) {
                let Verdict::Take(place) = admission.admit(address(7), proved) else { panic!("{round}") };
                places.push(place);
            }
            places.into_iter().for_each(|place| admission.over(place));
            assert_eq!(admission.held(), 0);
        }
        assert!(admission.by_address.is_empty());
    }

    #[test]
    fn ends_of_agents_ask_for_proof_and_are_counted_by_their_address() {
        let mut admission = Admission::default();
        for _ in 0..1000 {
            admission.back(Place::Unproved);
        }
        assert_eq!(admission.admit(address(1), false), Verdict::Retry);
        for _ in 0..OF_ONE {
            admission.back(Place::Proved(address(1)));
        }
        assert_eq!(admission.admit(address(1), true), Verdict::Ignore);
        assert!(matches!(admission.admit(address(2), true), Verdict::Take(_)));
    }
}
