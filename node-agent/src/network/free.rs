//! Addresses that nobody was found to use, and for how long that is believed: a host that was switched off while it was
//! asked, or gets the address later, must not go unnoticed for ever. Time is a parameter.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long an address is taken for free after nobody has answered for it.
const BELIEVED: Duration = Duration::from_secs(600);
/// Addresses that are remembered. More than any range of guests has in use; an orchestrator that makes them up gets no
/// more memory than this.
const MOST: usize = 4096;

/// When each address was found free.
#[derive(Debug, Default)]
pub(super) struct FreeAddresses(HashMap<Ipv4Addr, Instant>);

impl FreeAddresses {
    /// Whether the address was found free lately.
    pub(super) fn contains(&self, address: Ipv4Addr, now: Instant) -> bool {
        self.0.get(&address).is_some_and(|found| is_believed(*found, now))
    }

    /// Nobody uses the address now.
    pub(super) fn insert(&mut self, address: Ipv4Addr, now: Instant) {
        if self.0.len() >= MOST {
            self.0.retain(|_, found| is_believed(*found, now));
        }
        if self.0.len() >= MOST {
            self.0.clear();
        }
        self.0.insert(address, now);
    }

    /// Whether somebody uses the address is not known any more.
    pub(super) fn forget(&mut self, address: Ipv4Addr) {
        self.0.remove(&address);
    }
}

fn is_believed(found: Instant, now: Instant) -> bool {
    now.saturating_duration_since(found) < BELIEVED
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 101);

    #[test]
    fn an_address_is_free_for_a_while_and_not_for_ever() {
        let (mut free, now) = (FreeAddresses::default(), Instant::now());
        assert!(!free.contains(ADDRESS, now));
        free.insert(ADDRESS, now);
        assert!(free.contains(ADDRESS, now));
        assert!(free.contains(ADDRESS, now + BELIEVED / 2));
        assert!(!free.contains(ADDRESS, now + BELIEVED));
        free.insert(ADDRESS, now + BELIEVED);
        assert!(free.contains(ADDRESS, now + BELIEVED));
        free.forget(ADDRESS);
        assert!(!free.contains(ADDRESS, now + BELIEVED));
    }

    #[test]
    fn an_orchestrator_that_makes_addresses_up_gets_a_bound_of_memory() {
        let (mut free, now) = (FreeAddresses::default(), Instant::now());
        for n in 0..3 * MOST as u32 {
            free.insert(Ipv4Addr::from(n), now);
        }
        assert!(free.0.len() <= MOST, "{}", free.0.len());
    }
}
