//! Notifications both ways (virtio 1.2, 2.7.7 and 2.7.10), and used elements that become visible at once.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use super::bad;
use super::chain::broken;
use crate::GuestMemory;
use crate::adapter::AdapterError;

/// Whether one side wants to hear of the other's step from index `before` to `after`, when it asked to be told of the
/// entry at `event` (2.7.10, as `vring_need_event` of linux/virtio_ring.h computes it, modulo 2^16).
const fn crosses(event: Wrapping<u16>, after: Wrapping<u16>, before: Wrapping<u16>) -> bool {
    let beyond = after.0.wrapping_sub(event.0).wrapping_sub(1);
    beyond < after.0.wrapping_sub(before.0)
}

/// Whether the driver wants to be interrupted now that the used index of `queue` went on from `before`.
pub(super) fn wants_interrupt(queue: &Queue, memory: &GuestMemory, event_index: bool, before: u16) -> bool {
    if queue.next_used() == before {
        return false;
    }
    // The used index is written before the driver's wish is read, and the driver does it the other way round.
    fence(Ordering::SeqCst);
    let word = |address| {
        let word: u16 = memory.load(GuestAddress(address), Ordering::Relaxed).unwrap_or(0);
        u16::from_le(word)
    };
    if event_index {
        // used_event stands behind the available ring (2.7.6); the whole ring was seen to lie in memory.
        let event = word(queue.avail_ring() + 4 + 2 * u64::from(queue.size()));
        return crosses(Wrapping(event), Wrapping(queue.next_used()), Wrapping(before));
    }
    u32::from(word(queue.avail_ring())) & VRING_AVAIL_F_NO_INTERRUPT == 0
}

/// Asks the driver to notify of the next buffer that it makes available (`avail_event`, 2.7.8). Whether there is one
/// already, whose notification may not come.
pub(super) fn ask_for_next(queue: &mut Queue, memory: &GuestMemory) -> Result<bool, AdapterError> {
    queue.enable_notification(memory).map_err(|error| broken("used ring", &error))
}

/// Tells the driver whether the device wants to be notified (2.7.10). Whether it has made buffers available already, whose
/// notification may not come.
pub(super) fn want(queue: &mut Queue, memory: &GuestMemory, wanted: bool) -> Result<bool, AdapterError> {
    if wanted {
        return ask_for_next(queue, memory);
    }
    queue.disable_notification(memory).map_err(|error| broken("used ring", &error))?;
    Ok(false)
}

/// Whether the driver has made buffers of `queue` available that the device has not taken (2.7.6).
pub(super) fn has_available(queue: &Queue, memory: &GuestMemory) -> bool {
    queue.ready()
        && queue.avail_idx(memory, Ordering::Acquire).is_ok_and(|index| index.0 != queue.next_avail())
}

/// Gives chains back, each with the bytes written to it, so that the driver sees all or none of them (2.7.8): those
/// of one frame belong together.
pub(super) fn publish(
    queue: &mut Queue,
    memory: &GuestMemory,
    elements: impl IntoIterator<Item = (u16, u32)>,
) -> Result<(), AdapterError> {
    let outside = |_| bad("used ring", "part of it is outside of guest memory".to_owned());
    let ring = queue.used_ring();
    let mut next = queue.next_used();
    for (head, written) in elements {
        let at = ring + 4 + 8 * u64::from(next % queue.size());
        memory.write_obj(u32::from(head).to_le(), GuestAddress(at)).map_err(outside)?;
        memory.write_obj(written.to_le(), GuestAddress(at + 4)).map_err(outside)?;
        next = next.wrapping_add(1);
    }
    queue.set_next_used(next);
    memory.store(next.to_le(), GuestAddress(ring + 2), Ordering::Release).map_err(outside)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_1_2_s2_7_10_an_event_is_crossed_when_the_index_goes_past_it() {
        let crosses = |event, after, before| crosses(Wrapping(event), Wrapping(after), Wrapping(before));
        assert!(crosses(0, 1, 0), "the entry at 0 was used");
        assert!(!crosses(1, 1, 0), "that at 1 was not");
        assert!(!crosses(0, 2, 1), "it was before");
        assert!(crosses(5, 8, 4) && !crosses(8, 8, 4) && !crosses(3, 8, 4));
        assert!(crosses(0xffff, 2, 0xfffe), "indices wrap");
        assert!(!crosses(7, 7, 7), "nothing was used");
    }
}
