//! What has to hold after the device has done something:
//!
//! * nothing outside of guest memory is touched, or this process faults (`fuzzing/guarded.rs`); in it the device writes to
//!   used rings and to device-writable buffers that it was given, and to nothing else;
//! * chains become used in their order, each once, with the bytes that were written to it: a frame as it came from the
//!   port, in as many chains as its header says, all but the last of them full; a frame that leaves is the chain's;
//! * the interrupt is raised by what the driver wants to hear of, and by nothing else;
//! * one step makes a bounded number of calls of the port;
//! * a fault is the guest's, typed and counted, and then nothing moves before a reset.
//!
//! A guest that changes memory while the device works with it, or has its buffers where its queues are, may get anything
//! within its own memory: then the first, the fourth and the last of these are left.

use std::ops::Range;

use toll_protocol::report::FrameCounters;
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress};

use super::{Guest, HOLE, HOLE_END, NEXT, REGIONS, STATUS, Step, WRITE};
use super::{LONGEST_RECEIVED, MINIMUM_FRAME, Ring};
use crate::adapter::{Adapter, AdapterError};
use crate::fuzzing::wire::locked;
use crate::port::splitting;
use crate::vnet_header::{self, GSO_TYPE, HDR_LEN};

const HEADER: usize = vnet_header::LENGTH;
/// Bits of InterruptStatus, and DEVICE_NEEDS_RESET.
const USED_BUFFER: u32 = 1;
const CONFIGURATION: u32 = 2;
const NEEDS_RESET: u32 = 0x40;

/// All of guest memory, at a moment. The regions that meet are one.
struct Image(Vec<u8>);

/// Where the guest's bytes are in an image, if all are in one piece.
fn place(address: u64, length: usize) -> Option<Range<usize>> {
    let (start, region) = match address {
        0..HOLE => (address, 0..HOLE),
        HOLE_END.. => (address - HOLE_END + HOLE, HOLE..HOLE + REGIONS[2].1 as u64),
        _ => return None,
    };
    let end = start.checked_add(length as u64)?;
    (start >= region.start && end <= region.end).then_some(start as usize..end as usize)
}

impl Image {
    fn of(guest: &Guest) -> Self {
        let mut bytes = vec![0; REGIONS.iter().map(|(_, length)| length).sum()];
        for (address, length) in REGIONS {
            let at = place(address, length).expect("a region");
            guest.guarded.memory().read_slice(&mut bytes[at], GuestAddress(address)).expect("a region");
        }
        Self(bytes)
    }

    fn word(&self, address: u64) -> u16 {
        place(address, 2).map_or(0, |at| u16::from_le_bytes([self.0[at.start], self.0[at.start + 1]]))
    }

    fn long(&self, address: u64) -> u32 {
        u32::from(self.word(address)) | u32::from(self.word(address + 2)) << 16
    }
}

/// A chain as the driver has made it.
#[derive(Debug)]
struct Chain {
    head: u16,
    /// Place, and whether it is for the device to write to. None that follows one that is nowhere.
    buffers: Vec<(Range<usize>, bool)>,
}

impl Chain {
    /// From `head` on, of at most `size` descriptors.
    fn read(image: &Image, table: u64, size: u16, head: u16) -> Self {
        let (mut buffers, mut next) = (Vec::new(), Some(head));
        while let Some(index) = next.filter(|index| *index < size && buffers.len() < usize::from(size)) {
            let at = table + 16 * u64::from(index);
            let address = u64::from(image.long(at)) | u64::from(image.long(at + 4)) << 32;
            let length = image.long(at + 8) as usize;
            // An empty buffer is nowhere.
            let whole = if length == 0 { Some(0..0) } else { place(address, length) };
            // Of one that is in part nowhere, an answer of a byte may be there.
            let Some(place) = whole.clone().or_else(|| place(address, 1)) else { break };
            let flags = image.word(at + 12);
            buffers.push((place, flags & WRITE != 0));
            next = (whole.is_some() && flags & NEXT != 0).then(|| image.word(at + 14));
        }
        Self { head, buffers }
    }

    fn length(&self) -> usize {
        self.buffers.iter().map(|(place, _)| place.len()).sum()
    }

    /// Its first `length` bytes.
    fn bytes(&self, image: &Image, length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (place, _) in &self.buffers {
            let count = place.len().min(length - bytes.len());
            bytes.extend_from_slice(&image.0[place.start..place.start + count]);
        }
        bytes
    }
}

/// A queue before the device does something.
#[derive(Debug)]
struct Queue {
    index: usize,
    size: u16,
    used: u64,
    next_used: u16,
    /// What is available and was not taken; too many, if the driver says so.
    waiting: u16,
    chains: Vec<Chain>,
    /// What the driver wants to hear of: flags, and the entry of used_event.
    flags: u16,
    event: u16,
}

/// What there was before a step.
pub(super) struct Watch<'s> {
    step: &'s Step,
    image: Image,
    queues: Vec<Queue>,
    /// Where the device may write.
    writable: Vec<Range<usize>>,
    /// Whether that is all apart from what it reads queues from, and nobody changes memory meanwhile.
    stable: bool,
    /// And no buffer is another one's as well.
    clear: bool,
    live: bool,
    interrupt: u32,
    counters: FrameCounters,
    /// Calls of the port at most.
    most: u32,
}

/// Whether any of `some` has bytes of any of `others`.
fn touch<'r>(
    some: impl Iterator<Item = &'r Range<usize>>,
    others: impl Iterator<Item = &'r Range<usize>>,
) -> bool {
    let tagged = |(place, tag): (&Range<usize>, bool)| (place.start, place.end, tag);
    let mut all: Vec<_> =
        some.map(|place| (place, true)).chain(others.map(|place| (place, false))).map(tagged).collect();
    all.retain(|(start, end, _)| start < end);
    all.sort_unstable();
    let mut ends = [0; 2];
    all.into_iter().any(|(start, end, tag)| {
        let touches = start < ends[usize::from(!tag)];
        let own = &mut ends[usize::from(tag)];
        *own = end.max(*own);
        touches
    })
}

/// Whether no two of them have a byte in common.
fn distinct<'r>(places: impl Iterator<Item = &'r Range<usize>>) -> bool {
    let mut all: Vec<_> =
        places.filter(|place| !place.is_empty()).map(|place| (place.start, place.end)).collect();
    all.sort_unstable();
    all.windows(2).all(|pair| pair[0].1 <= pair[1].0)
}

fn status(guest: &mut Guest) -> u32 {
    register(guest, STATUS)
}

fn register(guest: &mut Guest, offset: u64) -> u32 {
    let mut bytes = [0; 4];
    guest.device.read(offset, &mut bytes).expect("a register is read without work");
    u32::from_le_bytes(bytes)
}

impl<'s> Watch<'s> {
    pub(super) fn begin(guest: &mut Guest, step: &'s Step) -> Self {
        let image = Image::of(guest);
        let control = guest.device.mmio.control_queue();
        let (mut queues, mut structures, mut useds) = (Vec::new(), Vec::new(), Vec::new());
        let (mut buffers, mut read) = (Vec::new(), Vec::new());
        let mut most = 0;
        for (index, ring) in guest.device.rings.iter().enumerate() {
            let Some(ring) = ring else { continue };
            let queue = &guest.device.mmio.queues[index];
            let (table, available, used) = (queue.desc_table(), queue.avail_ring(), queue.used_ring());
            let size = ring.size();
            let length = usize::from(size);
            structures
                .extend([place(table, 16 * length), place(available, 6 + 2 * length)].into_iter().flatten());
            useds.extend(place(used, 6 + 8 * length));
            let position = ring.position();
            let waiting = image.word(available + 2).wrapping_sub(position);
            let entry = |at: u16| image.word(available + 4 + 2 * u64::from(position.wrapping_add(at) % size));
            let chains: Vec<_> =
                (0..waiting.min(size)).map(|at| Chain::read(&image, table, size, entry(at))).collect();
            let receives = index % 2 == 0 || Some(index) == control;
            for (place, writable) in chains.iter().flat_map(|chain| &chain.buffers) {
                if receives && *writable { &mut buffers } else { &mut read }.push(place.clone());
            }
            most += 2 * u32::from(size) + 2;
            queues.push(Queue {
                index,
                size,
                used,
                next_used: ring.next_used(),
                waiting,
                chains,
                flags: image.word(available),
                event: image.word(available + 4 + 2 * u64::from(size)),
            });
        }
        if guest.switches.segment_combining {
            most *= splitting::MOST_TAKEN;
        }
        let mut quiet = true;
        for wire in &guest.wires {
            let mut wire = locked(wire);
            quiet &= wire.stores.is_empty();
            wire.calls = 0;
            wire.left.clear();
        }
        let restarts = match step {
            Step::Live(_) => true,
            Step::Write(offset, ..) => u64::from(*offset) == STATUS,
            _ => false,
        };
        let stable = quiet
            && !restarts
            && distinct(useds.iter())
            && !touch(useds.iter().chain(&buffers), structures.iter())
            && !touch(buffers.iter(), useds.iter());
        let clear = stable && distinct(buffers.iter()) && !touch(useds.iter().chain(&buffers), read.iter());
        useds.append(&mut buffers);
        Self {
            step,
            image,
            queues,
            writable: useds,
            stable,
            clear,
            live: guest.device.mmio.live(),
            interrupt: register(guest, 0x60),
            counters: guest.device.counters(),
            most,
        }
    }

    /// Looks at what the device has made of it.
    pub(super) fn end(self, guest: &mut Guest, result: &Result<(), AdapterError>) {
        let step = self.step;
        let counters = guest.device.counters();
        match result {
            Ok(()) => {}
            Err(AdapterError::Guest { .. }) => {
                assert!(counters.guest_errors > self.counters.guest_errors, "{step:?}");
                assert_ne!(status(guest) & NEEDS_RESET, 0, "{step:?}");
                assert!(!guest.device.mmio.live() && !guest.device.can_receive(), "{step:?}");
            }
            Err(error @ (AdapterError::Port(_) | AdapterError::Mtu { .. })) => {
                unreachable!("neither the port nor the device fails: {error}")
            }
        }
        let calls: u32 = guest.wires.iter().map(|wire| locked(wire).calls).sum();
        assert!(calls <= self.most, "{step:?} made {calls} calls of the port, of {}", self.most);
        if !self.live && !guest.device.mmio.live() {
            assert_eq!(calls, 0, "{step:?}: a device that is not live");
        }
        for pair in 0..guest.wires.len() {
            let waiting = guest.device.bus.pairs.get(pair).waiting.len();
            assert!(waiting <= HEADER + LONGEST_RECEIVED, "{step:?}: {waiting} bytes wait");
        }
        let interrupt = register(guest, 0x60);
        assert_eq!(interrupt & !(USED_BUFFER | CONFIGURATION), 0, "{step:?}");
        assert_eq!(guest.device.interrupt(), interrupt != 0, "{step:?}");
        if self.stable {
            self.followed(guest, interrupt, result.is_ok());
        }
        // The one that was given last may wait for more buffers.
        for wire in &guest.wires {
            let mut wire = locked(wire);
            let old = wire.given.len().saturating_sub(1);
            wire.given.drain(..old);
        }
    }

    /// What has to hold of memory and the interrupt, if nobody else has changed them.
    fn followed(&self, guest: &mut Guest, interrupt: u32, all_is_well: bool) {
        let step = self.step;
        let after = Image::of(guest);
        self.nothing_else_is_written(&after);
        let mut wanted = false;
        for queue in &self.queues {
            if guest.device.rings.get(queue.index).is_some_and(Option::is_some) {
                wanted |= self.used(guest, queue, &after, all_is_well);
            }
        }
        let acknowledges = matches!(step, Step::Write(0x64, ..));
        assert!(!wanted || interrupt & USED_BUFFER != 0, "{step:?}: an interrupt is lacking");
        if !wanted && !acknowledges {
            assert_eq!(
                interrupt & USED_BUFFER,
                self.interrupt & USED_BUFFER,
                "{step:?}: nobody wants an interrupt"
            );
        }
    }

    fn nothing_else_is_written(&self, after: &Image) {
        let mut expected = self.image.0.clone();
        for place in &self.writable {
            expected[place.clone()].copy_from_slice(&after.0[place.clone()]);
        }
        // The whole at once: they are compared after each step.
        if expected != after.0 {
            let at = expected.iter().zip(&after.0).position(|(expected, found)| expected != found);
            unreachable!("{:?} wrote to byte {at:?} of memory: {:#?}", self.step, self.queues);
        }
    }

    /// Looks at what became used in a queue. Whether the driver wants to hear of it.
    fn used(&self, guest: &mut Guest, queue: &Queue, after: &Image, all_is_well: bool) -> bool {
        let step = self.step;
        let control = guest.device.mmio.control_queue() == Some(queue.index);
        let events = guest.device.mmio.driver_features().event_index();
        let index = guest.device.rings[queue.index].as_ref().map_or(queue.next_used, Ring::next_used);
        let count = index.wrapping_sub(queue.next_used);
        assert!(
            count == 0 || after.word(queue.used + 2) == index,
            "{step:?}: {count} are not shown: {queue:?}"
        );
        assert!(count <= queue.waiting.min(queue.size), "{step:?}: {count} became used: {queue:?}");
        let chains = &queue.chains[..count.into()];
        let mut elements = Vec::new();
        for (at, chain) in (0..).zip(chains) {
            let slot = queue.used + 4 + 8 * u64::from(queue.next_used.wrapping_add(at) % queue.size);
            let (id, length) = (after.long(slot), after.long(slot + 4) as usize);
            assert_eq!(id, u32::from(chain.head), "{step:?}: in the order of the driver: {queue:?}");
            let writable = chain.buffers.iter().filter(|(_, writable)| *writable);
            let room: usize = writable.map(|(place, _)| place.len()).sum();
            assert!(length <= room, "{step:?}: {length} bytes were written to {room}: {queue:?}");
            elements.push((chain, length));
        }
        if control {
            let answers = elements.iter().all(|(_, length)| *length == 1);
            assert!(answers, "{step:?}: an answer is one byte: {queue:?}");
        } else if queue.index % 2 == 1 {
            assert!(elements.iter().all(|(_, length)| *length == 0), "{step:?}: {queue:?}");
            if self.clear && all_is_well {
                self.sent(guest, queue.index / 2, chains);
            }
        } else if self.clear {
            self.received(guest, queue.index / 2, &elements, after);
        }
        let crossed = queue.next_used.wrapping_add(count).wrapping_sub(queue.event).wrapping_sub(1) < count;
        count > 0 && if events { crossed } else { queue.flags & 1 == 0 }
    }

    /// What left is what the guest has sent, in its order.
    fn sent(&self, guest: &Guest, pair: usize, chains: &[Chain]) {
        let wire = locked(&guest.wires[pair]);
        let mut frames =
            chains.iter().map(|chain| chain.bytes(&self.image, chain.length()).split_off(HEADER));
        for left in &wire.left {
            let (header, left) = left.split_at(if guest.switches.offloads() { HEADER } else { 0 });
            let first = frames.next().expect("a frame left that nobody sent");
            if left == first {
                continue;
            }
            assert!(guest.switches.segment_combining, "{:?}: {left:x?} for {first:x?}", self.step);
            // Segments that were joined: the payload of each, in order.
            let headers = usize::from(u16::from_le_bytes([header[HDR_LEN], header[HDR_LEN + 1]]));
            let mut payload = first[headers..].to_vec();
            while payload.len() < left.len() - headers {
                payload.extend(&frames.next().expect("payload left that nobody sent")[headers..]);
            }
            assert!(header[GSO_TYPE] != 0 && payload == left[headers..], "{:?}", self.step);
        }
        assert_eq!(frames.count(), 0, "{:?}: frames became used that did not leave", self.step);
    }

    /// Each frame that the guest got is one that the port gave, in the port's order.
    fn received(&self, guest: &Guest, pair: usize, elements: &[(&Chain, usize)], after: &Image) {
        let step = self.step;
        let mut wire = locked(&guest.wires[pair]);
        let before = if guest.switches.offloads() { HEADER } else { 0 };
        let mut rest = elements;
        while let Some((chain, length)) = rest.first() {
            let header = chain.bytes(after, *length);
            assert!(header.len() >= HEADER, "{step:?}: a frame without its header");
            let count = usize::from(u16::from_le_bytes([header[10], header[11]]));
            let (frame, others) = rest.split_at_checked(count).expect("all buffers of a frame at once");
            let (_, full) = frame.split_last().expect("a frame has a buffer");
            assert!(full.iter().all(|(chain, length)| *length == chain.length()), "{step:?}: {frame:?}");
            let features = guest.device.bus.features;
            assert!(count == 1 || features.mergeable(), "{step:?}: {count} buffers");
            let finished = header[..vnet_header::NUM_BUFFERS] == [0; vnet_header::NUM_BUFFERS];
            assert!(finished || features.receive_offloads().checksum, "{step:?}: {header:x?}");
            let bytes: Vec<u8> =
                frame.iter().flat_map(|(chain, length)| chain.bytes(after, *length)).skip(HEADER).collect();
            if guest.switches.segment_combining {
                assert!(bytes.len() >= MINIMUM_FRAME, "{step:?}");
            } else {
                // Others may have been dropped before it.
                let is = |given: Vec<u8>| given[before.min(given.len())..] == bytes[..];
                while !is(wire.given.pop_front().expect("the port gave it")) {}
            }
            rest = others;
        }
    }
}
